/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a form's fields come out as they went in, however the bytes are cut, and what is no form is
 * refused. Method: a server and a client on one loop; the client writes the body in parts of every
 * size that is asked for. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/http_server.h"
#include "base/loop.h"

#define WAIT_MS 20000
#define FIELDS_MAX 8

struct field {
    char name[64], filename[64], type[64];
    struct buf value;
};

static struct world {
    struct loop *loop;
    struct http_server *server;
    struct http_request *request;
    struct http_form *form;
    struct loop_timer *timer;
    struct field fields[FIELDS_MAX];
    int field_count;
    bool over;
    struct err err;
} world;

static int refuse_at; /* field that on_piece says no to, from 1; 0: none */

static int on_piece(void *opaque, const struct http_form_piece *piece, struct err *err)
{
    struct field *field;

    (void)opaque;
    field = &world.fields[world.field_count == 0 ? 0 : world.field_count - 1];
    if (world.field_count == 0 || strcmp(field->name, piece->name) != 0) {
        field = &world.fields[world.field_count++];
        mem_copy_text(field->name, piece->name);
        mem_copy_text(field->filename, piece->filename == NULL ? "" : piece->filename);
        mem_copy_text(field->type, piece->type == NULL ? "" : piece->type);
        field->value = BUF_WITH_LIMIT(1 << 20);
    }
    assert_int_equal(piece->offset, field->value.size);
    buf_append(&field->value, piece->bytes, piece->size);
    if (world.field_count == refuse_at)
        return err_set(err, ERR_RANGE, "no more of this");
    return 0;
}

static void world_end(int code)
{
    world.err.code = code;
    world.over = true;
    http_form_free(&world.form);
    http_request_answer(&world.request, 200, NULL, 0, "", 0);
    loop_stop(world.loop);
}

static void on_chunk(struct http_request *request, const void *bytes, size_t size, void *opaque)
{
    (void)request, (void)opaque;
    if (world.over)
        return;
    if (bytes == NULL)
        world_end(http_form_end(world.form, &world.err));
    else if (http_form_feed(world.form, bytes, size, &world.err) < 0)
        world_end(world.err.code);
}

static void on_request(struct http_request *request, void *opaque)
{
    (void)opaque;
    world.request = request;
    if (http_form_new(request, on_piece, NULL, &world.form, &world.err) < 0)
        world_end(world.err.code);
    else
        http_request_stream_body(request, on_chunk, NULL);
}

static void on_late(void *opaque)
{
    (void)opaque;
    loop_stop(world.loop);
}

/* Sends the body in parts of that size, each once the server has had a look at the one before. */
static int send_body(const char *type, const char *body, size_t size, size_t part_size)
{
    struct http_server_options options = {.port = 0};
    struct sockaddr_in address = {.sin_family = AF_INET};
    char head[512];
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct err err;
    int code;

    memset(&world, 0, sizeof(world));
    assert_int_equal(loop_open(&world.loop, &err), 0);
    assert_int_equal(http_server_open(world.loop, &options, on_request, NULL, &world.server, &err),
                     0);
    world.timer = loop_timer_new(world.loop, on_late, NULL);
    address.sin_port = htons(http_server_port(world.server));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    (void)snprintf(head, sizeof(head),
                   "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n",
                   type, size);
    assert_int_equal(write(fd, head, strlen(head)), strlen(head));
    for (size_t at = 0; at < size && !world.over; at += part_size) {
        size_t now = size - at < part_size ? size - at : part_size;

        assert_int_equal(write(fd, body + at, now), now);
        loop_timer_start(world.timer, 1, 0);
        loop_run(world.loop);
    }
    loop_timer_start(world.timer, WAIT_MS, 0);
    if (!world.over)
        loop_run(world.loop);
    assert_true(world.over);
    code = world.err.code;
    (void)close(fd);
    loop_timer_free(&world.timer);
    http_server_close(&world.server);
    loop_close(&world.loop);
    return code;
}

static void fields_done(void)
{
    for (int i = 0; i < world.field_count; i++)
        buf_done(&world.fields[i].value);
}

static const char form[] =
    "--edge\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n"
    "--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a b.jsonl\"\r\n"
    "Content-Type: application/jsonl\r\n\r\n{\"a\": 1}\r\n--edg\r\n-- edge\n\r\n\r\n"
    "--edge\r\nContent-Disposition: form-data; name=\"empty\"\r\n\r\n\r\n--edge--\r\n";

static void test_fields(void **state)
{
    static const size_t parts[] = {1, 3, 7, 64, sizeof(form)};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        assert_int_equal(
            send_body("multipart/form-data; boundary=edge", form, sizeof(form) - 1, parts[i]), 0);
        assert_int_equal(world.field_count, 3);
        assert_string_equal(world.fields[0].name, "purpose");
        assert_string_equal(buf_text(&world.fields[0].value), "batch");
        assert_string_equal(world.fields[0].filename, "");
        assert_string_equal(world.fields[1].filename, "a b.jsonl");
        assert_string_equal(world.fields[1].type, "application/jsonl");
        assert_string_equal(buf_text(&world.fields[1].value),
                            "{\"a\": 1}\r\n--edg\r\n-- edge\n\r\n");
        assert_string_equal(world.fields[2].name, "empty");
        assert_int_equal(world.fields[2].value.size, 0);
        fields_done();
    }
}

static void test_refused(void **state)
{
    static const struct {
        const char *type, *body, *text;
    } rows[] = {
        {"application/json", "{}", "it must be multipart/form-data"},
        {"multipart/form-data", "{}", "has no boundary"},
        {"multipart/form-data; boundary=edge",
         "--edge\r\nContent-Disposition: form-data; name=\"a\"", "ends in the middle"},
        {"multipart/form-data; boundary=edge",
         "--edge\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nvalue", "ends in the middle"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        assert_int_equal(send_body(rows[i].type, rows[i].body, strlen(rows[i].body), 1000),
                         ERR_MALFORMED);
        if (strstr(world.err.text, rows[i].text) == NULL)
            fail_msg("row %zu: %s", i, world.err.text);
        fields_done();
    }
}

static void test_what_the_caller_refuses(void **state)
{
    (void)state;
    refuse_at = 2;
    assert_int_equal(
        send_body("multipart/form-data; boundary=edge", form, sizeof(form) - 1, sizeof(form)),
        ERR_RANGE);
    assert_string_equal(world.err.text, "no more of this");
    assert_int_equal(world.field_count, 2);
    fields_done();
    refuse_at = 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_what_the_caller_refuses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
