/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: every exchange ends in one call that says what happened; refused addresses are refused
 * before a packet leaves.
 * Method: our own server on the same loop, and sockets that misbehave.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/http_client.h"
#include "base/loop.h"

#define WAIT_MS 5000

struct world {
    struct loop *loop;
    struct http_server *server;
    struct http_client *client;
    char url[64];
};

/* What on_done told, kept. */
struct told {
    bool done;
    enum http_outcome outcome;
    int status;
    char body[256], error[256], echo[64], address[64];
    uint64_t progress;
    int pieces;
};

static void on_body(struct http_request *request, void *opaque)
{
    struct buf *body = http_request_body(request);
    const char *mark = http_request_header(request, "X-Mark");
    const struct http_header headers[] = {{"X-Echo", mark != NULL ? mark : "none"}};

    (void)opaque;
    http_request_answer(&request, strcmp(http_request_target(request), "/404") == 0 ? 404 : 200,
                        headers, 1, body->bytes, body->size);
}

static void on_gone(struct http_request *request, void *opaque)
{
    (void)opaque;
    http_request_drop(&request);
}

static void handler(struct http_request *request, void *opaque)
{
    if (strcmp(http_request_target(request), "/silent") == 0)
        http_request_on_gone(request, on_gone, NULL);
    else
        http_request_collect_body(request, 1 << 20, on_body, opaque);
}

static int setup(void **state)
{
    struct world *world = calloc(1, sizeof(*world));
    const struct http_server_options server = {.port = 0};
    const struct http_client_options client = {.connection_count_max = 4};
    struct err err;

    if (loop_open(&world->loop, &err) < 0 ||
        http_server_open(world->loop, &server, handler, world, &world->server, &err) < 0 ||
        http_client_open(world->loop, &client, &world->client, &err) < 0)
        return -1;
    (void)snprintf(world->url, sizeof(world->url), "http://127.0.0.1:%u",
                   http_server_port(world->server));
    *state = world;
    return 0;
}

static int teardown(void **state)
{
    struct world *world = *state;

    http_client_close(&world->client);
    http_server_close(&world->server);
    loop_close(&world->loop);
    free(world);
    return 0;
}

static void on_done(const struct http_result *result, void *opaque)
{
    struct told *told = opaque;
    const char *echo = result->status != 0 ? http_transfer_header(result->transfer, "x-echo")
                                           : NULL;

    assert_false(told->done);
    told->done = true;
    told->outcome = result->outcome;
    told->status = result->status;
    mem_copy_text(told->body, buf_text(result->body));
    mem_copy_text(told->error, result->error);
    mem_copy_text(told->echo, echo != NULL ? echo : "");
    mem_copy_text(told->address, result->address);
}

static void on_progress(uint64_t sent_size, void *opaque)
{
    ((struct told *)opaque)->progress = sent_size;
}

static bool on_receive(const void *bytes, size_t size, void *opaque)
{
    struct told *told = opaque;

    (void)bytes;
    told->pieces += size > 0;
    return false;
}

static struct told exchange(struct world *world, struct http_client *client,
                            const struct http_send *send, const char *url)
{
    struct http_send full = *send;
    struct told told = {.done = false};
    struct err err;

    full.url = url;
    full.on_done = on_done;
    full.opaque = &told;
    assert_int_equal(http_client_send(client, &full, NULL, &err), 0);
    assert_true(loop_run_until(world->loop, &told.done, WAIT_MS));
    return told;
}

static struct told ask(struct world *world, const struct http_send *send, const char *path)
{
    OWNED(mem_free) char *url = xasprintf("%s%s", world->url, path);

    return exchange(world, world->client, send, url);
}

static void test_body_and_headers_go_both_ways(void **state)
{
    const struct http_header headers[] = {{"X-Mark", "here"}};
    const struct http_send send = {
        .body = "hello", .body_size = 5, .headers = headers, .header_count = 1};
    struct told told = ask(*state, &send, "/");

    assert_int_equal(told.outcome, HTTP_OUTCOME_ANSWERED);
    assert_int_equal(told.status, 200);
    assert_string_equal(told.body, "hello");
    assert_string_equal(told.echo, "here");
    assert_string_equal(told.address, "127.0.0.1");
    told = ask(*state, &(struct http_send){.method = "DELETE"}, "/404");
    assert_int_equal(told.outcome, HTTP_OUTCOME_ANSWERED);
    assert_int_equal(told.status, 404);
}

static void test_upload_from_a_file(void **state)
{
    char path[] = "/tmp/headrace-client-XXXXXX";
    int fd = mkstemp(path);
    const struct http_send send = {
        .method = "POST", .body_fd = fd, .body_size = 8, .on_progress = on_progress};
    struct told told;

    assert_int_equal(write(fd, "contents", 8), 8);
    told = ask(*state, &send, "/");
    assert_string_equal(told.body, "contents");
    assert_int_equal(told.progress, 8);
    (void)close(fd);
    (void)unlink(path);
}

static void test_answer_is_bounded(void **state)
{
    const struct http_send send = {.body = "0123456789", .body_size = 10, .answer_size_max = 4};
    struct told told = ask(*state, &send, "/");

    assert_int_equal(told.outcome, HTTP_OUTCOME_BODY_TOO_BIG);
    assert_int_equal(told.status, 200);
}

static void test_receiver_may_stop(void **state)
{
    const struct http_send send = {.body = "0123456789", .body_size = 10, .on_receive = on_receive};
    struct told told = ask(*state, &send, "/");

    assert_int_equal(told.outcome, HTTP_OUTCOME_CANCELED);
    assert_int_equal(told.pieces, 1);
}

static bool refuse_all(const struct sockaddr *address, socklen_t address_size, void *opaque)
{
    (void)address_size;
    *(int *)opaque += address->sa_family == AF_INET;
    return false;
}

static void test_refused_address(void **state)
{
    struct world *world = *state;
    int asked = 0;
    const struct http_client_options options = {.check_address = refuse_all,
                                                .check_opaque = &asked};
    struct http_client *client;
    struct told told;
    struct err err;

    assert_int_equal(http_client_open(world->loop, &options, &client, &err), 0);
    told = exchange(world, client, &(struct http_send){.method = "GET"}, world->url);
    assert_int_equal(told.outcome, HTTP_OUTCOME_BLOCKED);
    assert_true(asked > 0);
    assert_int_equal(http_server_counts(world->server).connections_total, 0);
    http_client_close(&client);
}

static void test_nobody_answers(void **state)
{
    const struct http_send send = {.method = "GET", .timeout_ms = 100};
    struct told told = ask(*state, &send, "/silent");

    assert_int_equal(told.outcome, HTTP_OUTCOME_TIMEOUT);
    told = exchange(*state, ((struct world *)*state)->client, &send, "http://127.0.0.1:1/");
    assert_int_equal(told.outcome, HTTP_OUTCOME_UNREACHABLE);
    told = exchange(*state, ((struct world *)*state)->client, &send, "http://name.invalid/");
    assert_true(told.outcome == HTTP_OUTCOME_NAME || told.outcome == HTTP_OUTCOME_TIMEOUT);
    assert_string_not_equal(told.error, "");
}

static void test_bad_urls_and_headers_are_refused_at_once(void **state)
{
    static const char *const urls[] = {"ftp://host/", "file:///etc/passwd", "nonsense", "http://"};
    const struct http_header evil[] = {{"X-A", "b\r\nX-C: d"}};
    struct world *world = *state;
    struct http_send send = {.on_done = on_done};
    struct err err;

    for (size_t i = 0; i < COUNT_OF(urls); i++) {
        send.url = urls[i];
        assert_int_equal(http_client_send(world->client, &send, NULL, &err), ERR_MALFORMED);
    }
    send.url = world->url;
    send.headers = evil;
    send.header_count = 1;
    assert_int_equal(http_client_send(world->client, &send, NULL, &err), ERR_MALFORMED);
    assert_int_equal(http_client_open_count(world->client), 0);
}

static void test_close_ends_what_is_open(void **state)
{
    struct world *world = *state;
    OWNED(mem_free) char *url = xasprintf("%s/silent", world->url);
    struct told told[2] = {{.done = false}, {.done = false}};
    struct http_send send = {.url = url, .on_done = on_done};
    struct http_transfer *transfer;
    struct err err;

    send.opaque = &told[0];
    assert_int_equal(http_client_send(world->client, &send, &transfer, &err), 0);
    send.opaque = &told[1];
    assert_int_equal(http_client_send(world->client, &send, NULL, &err), 0);
    http_transfer_cancel(transfer);
    assert_true(told[0].done);
    assert_false(told[1].done);
    http_client_close(&world->client);
    assert_int_equal(told[1].outcome, HTTP_OUTCOME_CANCELED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_body_and_headers_go_both_ways, setup, teardown),
        cmocka_unit_test_setup_teardown(test_upload_from_a_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_answer_is_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(test_receiver_may_stop, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused_address, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nobody_answers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_urls_and_headers_are_refused_at_once, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_close_ends_what_is_open, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
