/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: over real sockets, every request that is seen is answered once or known to be gone, and
 * what two programs could read in two ways is seen by nobody. Method: server and clients share one
 * loop; clients write bytes as given and look for bytes in what comes back. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/http_server.h"
#include "base/loop.h"

#define WAIT_MS 20000
#define ANSWER_SIZE_MAX (64u << 20)
#define ECHO_SIZE_MAX 1000
#define CLIENTS_MAX 8

struct world {
    struct loop *loop;
    struct http_server *server;
    struct loop_timer *timer;
    struct http_request *waiting;
    struct http_stream *stream;
    int seen, gone, stream_gone, room, done_count, done_status;
    size_t uploaded, upload_pause_size;
    bool upload_ended, drained;
    char peer[64];
    struct loop_watch *watches[CLIENTS_MAX]; /* of open clients, for a test that fails */
};

static struct world world;

static void answer_text(struct http_request **request_p, int status, const char *text)
{
    const struct http_header type = {"Content-Type", "text/plain"};

    http_request_answer(request_p, status, &type, 1, text, strlen(text));
}

static void on_gone(struct http_request *request, void *opaque)
{
    (void)opaque;
    world.gone++;
    assert_true(http_request_is_gone(request));
    assert_ptr_equal(http_request_user(request), &world);
    world.waiting = NULL;
    http_request_drop(&request);
}

static void on_echo(struct http_request *request, void *opaque)
{
    struct buf *body = http_request_body(request);

    (void)opaque;
    for (int i = 0; i < HTTP_BODY_PADDING && body->size > 0; i++)
        assert_int_equal(body->bytes[body->size + (size_t)i], 0);
    http_request_answer_buf(&request, 200, NULL, 0, body);
}

static void on_upload(struct http_request *request, const void *bytes, size_t size, void *opaque)
{
    char text[32];

    (void)bytes, (void)opaque;
    world.uploaded += size;
    if (size == 0) {
        world.upload_ended = true;
        world.waiting = NULL;
        (void)snprintf(text, sizeof(text), "got %zu", world.uploaded);
        answer_text(&request, 200, text);
    } else if (world.upload_pause_size > 0 && world.uploaded >= world.upload_pause_size) {
        http_request_pause_body(request);
    }
}

static void on_refused_upload(struct http_request *request, const void *bytes, size_t size,
                              void *opaque)
{
    (void)bytes, (void)opaque;
    world.uploaded += size;
    answer_text(&request, 409, "enough");
}

static void on_stream_gone(struct http_stream *stream, void *opaque)
{
    struct err err;

    (void)opaque;
    assert_ptr_equal(stream, world.stream);
    assert_int_equal(http_stream_write(stream, "x", 1, &err), ERR_CANCELED);
    world.stream_gone++;
    http_stream_end(&world.stream);
}

static void on_stream_room(struct http_stream *stream, void *opaque)
{
    (void)stream, (void)opaque;
    world.room++;
}

static void start_stream(struct http_request *request)
{
    const struct http_header type = {"Content-Type", "text/event-stream"};
    const struct http_stream_calls calls = {on_stream_room, on_stream_gone};

    world.stream = http_request_answer_stream(&request, 200, &type, 1, 64 << 10, &calls, NULL);
}

static void answer_file(struct http_request *request)
{
    FILE *file = tmpfile();
    int fd;

    assert_non_null(file);
    (void)fputs("0123456789", file);
    (void)fflush(file);
    fd = dup(fileno(file));
    (void)fclose(file);
    http_request_answer_file(&request, 206, NULL, 0, fd, 2, 5);
}

static void handler(struct http_request *request, void *opaque)
{
    const char *target = http_request_target(request);

    assert_ptr_equal(opaque, &world);
    world.seen++;
    (void)snprintf(world.peer, sizeof(world.peer), "%s", http_request_peer(request));
    http_request_set_user(request, &world);
    if (strcmp(target, "/hello") == 0) {
        answer_text(&request, 200, "hi");
    } else if (strcmp(target, "/header") == 0) {
        const char *value = http_request_header(request, "x-tEST");

        answer_text(&request, 200, value == NULL ? "absent" : value);
    } else if (strcmp(target, "/echo") == 0) {
        http_request_collect_body(request, ECHO_SIZE_MAX, on_echo, NULL);
    } else if (strcmp(target, "/echo-later") == 0) {
        http_request_on_gone(request, on_gone, NULL);
        world.waiting = request; /* the body is asked for in a later turn */
    } else if (strcmp(target, "/upload") == 0) {
        http_request_on_gone(request, on_gone, NULL);
        world.waiting = request;
        http_request_stream_body(request, on_upload, NULL);
    } else if (strcmp(target, "/upload-refused") == 0) {
        http_request_stream_body(request, on_refused_upload, NULL);
    } else if (strcmp(target, "/refuse") == 0) {
        answer_text(&request, 401, "no key");
    } else if (strcmp(target, "/drop") == 0) {
        http_request_drop(&request);
    } else if (strcmp(target, "/file") == 0) {
        answer_file(request);
    } else if (strcmp(target, "/stream") == 0) {
        start_stream(request);
    } else {
        http_request_on_gone(request, on_gone, NULL);
        world.waiting = request;
    }
}

static void on_done(const struct http_done *done, void *opaque)
{
    (void)opaque;
    world.done_count++;
    world.done_status = done->status;
}

static int world_open_with(const struct http_server_options *given)
{
    struct http_server_options options = *given;
    struct err err;

    memset(&world, 0, sizeof(world));
    options.on_done = on_done;
    if (loop_open(&world.loop, &err) < 0)
        return -1;
    if (http_server_open(world.loop, &options, handler, &world, &world.server, &err) < 0)
        fail_msg("%s", err.text);
    return 0;
}

static int world_open(void **state)
{
    (void)state;
    return world_open_with(&(struct http_server_options){.server_name = "test"});
}

static int world_open_hasty(void **state)
{
    (void)state;
    return world_open_with(&(struct http_server_options){
        .idle_timeout_ms = 150, .header_timeout_ms = 150, .body_timeout_ms = 150});
}

static int world_close(void **state)
{
    (void)state;
    http_stream_end(&world.stream);
    http_server_close(&world.server);
    for (int i = 0; i < CLIENTS_MAX; i++)
        loop_watch_free(&world.watches[i]);
    loop_timer_free(&world.timer);
    loop_close(&world.loop);
    return 0;
}

/* ---- Clients */

struct client {
    int fd, slot;
    struct loop_watch *watch;
    struct buf in;
    const char *needle;
    size_t want_size;
    bool closed, done;
};

static void client_check(struct client *client)
{
    if (client->closed ||
        (client->needle != NULL && strstr(buf_text(&client->in), client->needle) != NULL) ||
        (client->want_size > 0 && client->in.size >= client->want_size))
        client->done = true;
}

static void client_readable(void *opaque, unsigned events)
{
    struct client *client = opaque;
    char bytes[65536];
    ssize_t n = recv(client->fd, bytes, sizeof(bytes), MSG_DONTWAIT);

    (void)events;
    if (n > 0)
        buf_append(&client->in, bytes, (size_t)n);
    else
        client->closed = true;
    if (client->closed)
        loop_watch_set(client->watch, 0);
    client_check(client);
}

static void client_open(struct client *client)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                  .sin_port = htons(http_server_port(world.server))};
    struct err err;

    *client = (struct client){.in = BUF_WITH_LIMIT(ANSWER_SIZE_MAX)};
    client->fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(client->fd >= 0);
    assert_int_equal(connect(client->fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(
        loop_watch_new(world.loop, client->fd, client_readable, client, &client->watch, &err), 0);
    loop_watch_set(client->watch, LOOP_READABLE);
    client->slot = 0;
    while (world.watches[client->slot] != NULL)
        client->slot++;
    assert_true(client->slot < CLIENTS_MAX);
    world.watches[client->slot] = client->watch;
}

static void client_close(struct client *client)
{
    loop_watch_free(&world.watches[client->slot]);
    (void)close(client->fd);
    buf_done(&client->in);
}

static void client_send(struct client *client, const char *text)
{
    assert_int_equal(send(client->fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

/* Runs the loop until the needle has come, or the server has closed. */
static void client_wait(struct client *client, const char *needle)
{
    client->needle = needle;
    client->done = false;
    client_check(client);
    if (!loop_run_until(world.loop, &client->done, WAIT_MS))
        fail_msg("no '%s' in '%s'", needle, buf_text(&client->in));
}

static void client_expect(struct client *client, const char *needle)
{
    client_wait(client, needle);
    if (strstr(buf_text(&client->in), needle) == NULL)
        fail_msg("no '%s' in '%s'", needle, buf_text(&client->in));
}

static void client_expect_end(struct client *client)
{
    client_wait(client, NULL);
    assert_true(client->closed);
}

static void turns(uint32_t ms)
{
    bool never = false;

    (void)loop_run_until(world.loop, &never, ms);
}

#define GET(path) "GET " path " HTTP/1.1\r\nHost: h\r\n\r\n"

/* ---- Tests */

static void test_answers_at_once(void **state)
{
    struct client client;

    (void)state;
    client_open(&client);
    client_send(&client, GET("/hello"));
    client_expect(&client, "\r\n\r\nhi");
    assert_non_null(strstr(buf_text(&client.in), "HTTP/1.1 200 OK\r\n"));
    assert_non_null(strstr(buf_text(&client.in), "Content-Length: 2\r\n"));
    assert_non_null(strstr(buf_text(&client.in), "Server: test\r\n"));
    assert_string_equal(world.peer, "127.0.0.1");
    buf_clear(&client.in);
    client_send(&client, "GET /header HTTP/1.1\r\nHost: h\r\nX-Test: some value\r\n\r\n");
    client_expect(&client, "\r\n\r\nsome value"); /* the connection was kept */
    buf_clear(&client.in);
    client_send(&client, "HEAD /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    client_expect(&client, "Content-Length: 2\r\n");
    buf_clear(&client.in);
    client_send(&client, GET("/file"));
    client_expect(&client, "\r\n\r\n23456");
    turns(1);
    assert_int_equal(world.done_count, 4);
    assert_int_equal(world.done_status, 206);
    client_close(&client);
}

static void answer_waiting(void *opaque)
{
    (void)opaque;
    answer_text(&world.waiting, 200, "later");
}

static void test_answers_later(void **state)
{
    struct client client;

    (void)state;
    world.timer = loop_timer_new(world.loop, answer_waiting, NULL);
    client_open(&client);
    for (int i = 0; i < 3; i++) {
        client_send(&client, GET("/wait"));
        loop_timer_start(world.timer, 20, 0);
        client_expect(&client, "\r\n\r\nlater");
        buf_clear(&client.in);
    }
    assert_int_equal(world.seen, 3);
    assert_int_equal(world.gone, 0);
    client_close(&client);
}

static void test_thousand_requests_on_one_connection(void **state)
{
    struct client client;
    char request[128];

    (void)state;
    client_open(&client);
    for (int i = 0; i < 1000; i++) {
        int n = snprintf(request, sizeof(request),
                         "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nbody %04d", i);

        client_send(&client, request);
        client_expect(&client, request + n - 9);
        buf_clear(&client.in);
    }
    assert_int_equal(world.seen, 1000);
    assert_int_equal(http_server_counts(world.server).connections_total, 1);
    client_close(&client);
}

static void test_pipelined_requests(void **state)
{
    struct client client;

    (void)state;
    client_open(&client);
    client_send(&client, GET("/hello") GET("/hello") "POST /echo HTTP/1.1\r\nHost: h\r\n"
                                                     "Content-Length: 4\r\n\r\nlast");
    client_expect(&client, "last");
    assert_int_equal(world.seen, 3);
    client_close(&client);
}

static void test_bodies(void **state)
{
    struct client client;

    (void)state;
    client_open(&client);
    client_send(&client, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
    client_expect(&client, "Content-Length: 0\r\n");
    buf_clear(&client.in);
    client_send(&client, "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                         "5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n");
    client_expect(&client, "hello world");
    buf_clear(&client.in);
    client_send(&client, "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                         "0\r\n\r\n");
    client_expect(&client, "Content-Length: 0\r\n");
    buf_clear(&client.in);
    client_send(&client, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n"
                         "Expect: 100-continue\r\n\r\n");
    client_expect(&client, "100 Continue");
    client_send(&client, "abc");
    client_expect(&client, "\r\n\r\nabc");
    buf_clear(&client.in);
    client_send(&client, "POST /echo-later HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nxyz");
    turns(5);
    assert_non_null(world.waiting);
    http_request_collect_body(TAKE(world.waiting), 10, on_echo, NULL);
    client_expect(&client, "\r\n\r\nxyz");
    buf_clear(&client.in);
    client_send(&client, "POST /echo-later HTTP/1.1\r\nHost: h\r\n\r\n");
    turns(5);
    assert_non_null(world.waiting);
    http_request_collect_body(TAKE(world.waiting), 10, on_echo, NULL);
    client_expect(&client, "Content-Length: 0\r\n");
    client_close(&client);
}

static void test_body_limit(void **state)
{
    struct client client;
    char body[3000];

    (void)state;
    memset(body, 'x', sizeof(body) - 1);
    body[sizeof(body) - 1] = '\0';
    client_open(&client);
    client_send(&client, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n");
    client_send(&client, body + sizeof(body) - 1 - 1001);
    client_expect(&client, "413");
    client_expect(&client, "over its limit");
    buf_clear(&client.in);
    client_send(&client, GET("/hello")); /* small enough to be swallowed: the connection lives */
    client_expect(&client, "\r\n\r\nhi");
    buf_clear(&client.in);
    client_send(&client, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999999\r\n\r\n");
    client_expect(&client, "413");
    client_expect_end(&client);
    client_close(&client);

    client_open(&client); /* without a length the limit is met on the way */
    client_send(&client, "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    client_send(&client, "ba8\r\n");
    client_send(&client, body + sizeof(body) - 1 - 0xba8);
    client_send(&client, "\r\n0\r\n\r\n");
    client_expect(&client, "413");
    assert_int_equal(http_server_counts(world.server).refused_total, 3);
    client_close(&client);
}

static void test_refusals_reach_a_client_that_still_sends(void **state)
{
    struct client client;
    char part[65536];
    ssize_t n;

    (void)state;
    memset(part, 'x', sizeof(part));
    client_open(&client);
    client_send(&client, "POST /refuse HTTP/1.1\r\nHost: h\r\nContent-Length: 800000\r\n\r\n");
    for (int i = 0; i < 10; i++) {
        n = send(client.fd, part, sizeof(part), MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)n;
        turns(1);
    }
    client_expect(&client, "no key");
    client_expect_end(&client);
    client_close(&client);

    client_open(&client); /* and in the middle of an endless body */
    client_send(&client, "POST /upload-refused HTTP/1.1\r\nHost: h\r\n"
                         "Transfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 200 && !client.closed; i++) {
        client_send(&client, "2000\r\n");
        n = 0;
        while (n < 0x2000 && !client.closed) {
            ssize_t sent = send(client.fd, part, (size_t)(0x2000 - n), MSG_DONTWAIT | MSG_NOSIGNAL);

            n += sent > 0 ? sent : 0;
            turns(1);
            if (sent < 0 && strstr(buf_text(&client.in), "enough") != NULL)
                break;
        }
        if (strstr(buf_text(&client.in), "enough") != NULL)
            break;
        client_send(&client, "\r\n");
    }
    client_expect(&client, "409 Conflict");
    client_expect(&client, "enough");
    client_close(&client);
}

struct bad_row {
    const char *what, *request;
    size_t size; /* 0: strlen */
    const char *want;
};

#define POST "POST /echo HTTP/1.1\r\nHost: h\r\n"
#define BYTES(text) text, sizeof(text) - 1
static const struct bad_row bad_rows[] = {
    {"length twice", POST "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 0, "400"},
    {"length twice, equal", POST "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 0, "400"},
    {"length list", POST "Content-Length: 5, 5\r\n\r\nhello", 0, "400"},
    {"length with a sign", POST "Content-Length: +5\r\n\r\nhello", 0, "400"},
    {"length in hex", POST "Content-Length: 0x5\r\n\r\nhello", 0, "400"},
    {"length past 64 bits", POST "Content-Length: 99999999999999999999\r\n\r\n", 0, "413"},
    {"length and chunked", POST "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
     0, "400"},
    {"chunked twice",
     POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, "400"},
    {"unknown coding", POST "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 0, "501"},
    {"coding list", POST "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 0, "501"},
    {"coding in 1.0",
     "POST /echo HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, "400"},
    {"space before colon", POST "Content-Length : 5\r\n\r\nhello", 0, "400"},
    {"folded header", POST "X-A: b\r\n c\r\n\r\n", 0, "400"},
    {"folded length", POST "Content-Length: 1\r\n 0\r\n\r\n1234567890", 0, "400"},
    {"bare line feeds", "GET /hello HTTP/1.1\nHost: h\n\n", 0, "400"},
    {"one bare line feed", "GET /hello HTTP/1.1\r\nHost: h\r\nX-A: b\n\r\n", 0, "400"},
    {"bare line feed in front", "GET /hello HTTP/1.1\nHost: h\r\n\r\n", 0, "400"},
    {"NUL in a value", BYTES("GET /hello HTTP/1.1\r\nHost: h\r\nX-A: b\0c\r\n\r\n"), "400"},
    {"two NULs in a value", BYTES("GET /hello HTTP/1.1\r\nHost: h\r\nX-A: b\0\0c\r\n\r\n"), "400"},
    {"NUL at a value's end", BYTES("GET /hello HTTP/1.1\r\nHost: h\r\nX-A: b\0\r\n\r\n"), "400"},
    {"NUL starts a line",
     BYTES("GET /hello HTTP/1.1\r\nHost: h\r\n\0: x\r\nContent-Length: 9\r\n\r\n"), "400"},
    {"NUL in the target", BYTES("GET /hello\0x HTTP/1.1\r\nHost: h\r\n\r\n"), "400"},
    {"name with a bracket", "GET /hello HTTP/1.1\r\nHost: h\r\nX(A): b\r\n\r\n", 0, "400"},
    {"empty name", "GET /hello HTTP/1.1\r\nHost: h\r\n: b\r\n\r\n", 0, "400"},
    {"two spaces in the line", "GET  /hello HTTP/1.1\r\nHost: h\r\n\r\n", 0, "400"},
    {"host twice", "GET /hello HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n", 0, "400"},
    {"host with a path", "GET /hello HTTP/1.1\r\nHost: h/x\r\n\r\n", 0, "400"},
    {"no host", "GET /hello HTTP/1.1\r\n\r\n", 0, "400"},
    {"unknown method", "ABCDEFGHIJKLMNOPQRST /hello HTTP/1.1\r\nHost: h\r\n\r\n", 0, "501"},
    {"bad chunk size", POST "Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n", 0, "400"},
    {"huge chunk size", POST "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 0, "413"},
    {"no line break after a chunk", POST "Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n", 0, "400"},
};

static void test_ambiguous_requests_are_refused(void **state)
{
    char want[32];

    (void)state;
    for (size_t i = 0; i < COUNT_OF(bad_rows); i++) {
        const struct bad_row *row = &bad_rows[i];
        size_t size = row->size == 0 ? strlen(row->request) : row->size;
        struct client client;

        client_open(&client);
        assert_int_equal(send(client.fd, row->request, size, MSG_NOSIGNAL), (ssize_t)size);
        (void)snprintf(want, sizeof(want), "HTTP/1.1 %s ", row->want);
        client_wait(&client, want);
        if (strncmp(buf_text(&client.in), want, strlen(want)) != 0)
            fail_msg("%s: '%s'", row->what, buf_text(&client.in));
        client_expect_end(&client); /* nothing behind it is read as a second request */
        if (strstr(buf_text(&client.in), " 200 ") != NULL)
            fail_msg("%s: answered: '%s'", row->what, buf_text(&client.in));
        client_close(&client);
    }
}

static void test_large_headers(void **state)
{
    struct client client;
    char request[40000];
    int n = snprintf(request, sizeof(request), "GET /header HTTP/1.1\r\nHost: h\r\n");

    (void)state;
    for (int i = 0; i < 60; i++)
        n += snprintf(request + n, sizeof(request) - (size_t)n, "X-%d: %0100d\r\n", i, i);
    n += snprintf(request + n, sizeof(request) - (size_t)n, "X-Test: end\r\n\r\n");
    client_open(&client);
    client_send(&client, request); /* more than one read, still one honest layout */
    client_expect(&client, "\r\n\r\nend");
    client_close(&client);

    n -= 2;
    for (int i = 0; i < 200; i++)
        n += snprintf(request + n, sizeof(request) - (size_t)n, "X-%d: %0100d\r\n", i, i);
    (void)snprintf(request + n, sizeof(request) - (size_t)n, "\r\n");
    client_open(&client);
    client_send(&client, request);
    client_expect(&client, " 431 ");
    client_close(&client);
}

#define CUT_UPLOAD "POST /upload HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhalf"
#define CUT_LATER "POST /echo-later HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n"

/* The end of the stream is there before the last bytes are read, and makes no edge of its own. */
static void test_client_leaves_with_its_last_bytes(void **state)
{
    uint64_t began_us = clock_mono_us();
    struct client client;

    (void)state;
    client_open(&client);
    client_send(&client, CUT_UPLOAD);
    client_close(&client);
    while (world.gone == 0)
        turns(1);
    assert_false(world.upload_ended);

    /* While the body has to wait. */
    client_open(&client);
    client_send(&client, CUT_LATER "half");
    while (world.seen == 1)
        turns(1);
    turns(2);
    http_request_collect_body(world.waiting, ECHO_SIZE_MAX, on_echo, NULL);
    client_close(&client);
    while (world.gone == 1)
        turns(1);
    while (http_server_counts(world.server).connections > 0)
        turns(1);
    assert_true(clock_mono_us() - began_us < 20000000u); /* long before the body's time is over */
}

static void test_client_leaves(void **state)
{
    struct client client;
    struct http_request *held;

    (void)state;
    client_open(&client);
    client_send(&client, GET("/wait"));
    turns(5);
    assert_non_null(world.waiting);
    client_close(&client);
    while (world.gone == 0)
        turns(1);

    /* In the middle of a body. */
    client_open(&client);
    client_send(&client, "POST /upload HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhalf");
    while (world.uploaded == 0)
        turns(1);
    client_close(&client);
    while (world.gone == 1)
        turns(1);
    assert_false(world.upload_ended);

    /* A collected body without on_gone: nobody hears of it, nothing is left. */
    client_open(&client);
    client_send(&client, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhalf");
    turns(5);
    client_close(&client);
    while (http_server_counts(world.server).connections > 0)
        turns(1);

    /* An answer to nobody is dropped. */
    client_open(&client);
    client_send(&client, GET("/wait"));
    turns(5);
    held = TAKE(world.waiting);
    http_request_on_gone(held, NULL, NULL);
    client_close(&client);
    while (http_server_counts(world.server).connections > 0)
        turns(1);
    assert_true(http_request_is_gone(held));
    assert_null(http_request_header(held, "Host"));
    assert_string_equal(http_request_method(held), "GET");
    answer_text(&held, 200, "nobody listens");
    assert_int_equal(world.done_status, 0);
    assert_int_equal(http_server_counts(world.server).requests, 0);

    client_open(&client);
    client_send(&client, GET("/drop"));
    client_expect_end(&client);
    assert_int_equal(client.in.size, 0);
    client_close(&client);
}

static void test_upload_with_back_pressure(void **state)
{
    struct client client;
    const size_t total = 4u << 20;
    char *bytes = xmalloc(total);
    char head[128];
    size_t sent = 0;
    ssize_t n;

    (void)state;
    memset(bytes, 'u', total);
    world.upload_pause_size = 100000;
    client_open(&client);
    (void)snprintf(head, sizeof(head),
                   "POST /upload HTTP/1.1\r\nHost: h\r\nContent-Length: %zu\r\n\r\n", total);
    client_send(&client, head);
    for (int i = 0; i < 50; i++) { /* until the kernel takes no more: the server reads no more */
        n = send(client.fd, bytes + sent, total - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        sent += n > 0 ? (size_t)n : 0;
        turns(1);
    }
    assert_in_range(world.uploaded, 100000, 200000);
    world.upload_pause_size = 0;
    http_request_resume_body(world.waiting);
    while (sent < total) {
        n = send(client.fd, bytes + sent, total - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        sent += n > 0 ? (size_t)n : 0;
        turns(1);
    }
    client_expect(&client, "got 4194304");
    free(bytes);
    client_close(&client);
}

static void test_stream(void **state)
{
    struct client client;
    struct err err;
    char part[10000];
    size_t sent = 0;
    int r = 0;

    (void)state;
    memset(part, 's', sizeof(part));
    client_open(&client);
    client_send(&client, GET("/stream"));
    client_expect(&client, "Transfer-Encoding: chunked\r\n");
    assert_int_equal(http_stream_write(world.stream, "data: 1\n\n", 9, &err), 0);
    client_expect(&client, "data: 1\n\n");
    assert_int_equal(http_stream_write(world.stream, "data: 2\n\n", 9, &err), 0);
    client_expect(&client, "data: 2\n\n");

    loop_watch_set(client.watch, 0); /* a reader that stalls */
    while (r == 0 && sent < ANSWER_SIZE_MAX) {
        r = http_stream_write(world.stream, part, sizeof(part), &err);
        sent += r == 0 ? sizeof(part) : 0;
        if (http_stream_waiting_size(world.stream) > 50000)
            turns(1);
    }
    assert_int_equal(r, ERR_FULL);
    assert_int_equal(world.room, 0);
    loop_watch_set(client.watch, LOOP_READABLE);
    while (world.room == 0)
        turns(1);
    assert_int_equal(http_stream_write(world.stream, "last", 4, &err), 0);
    http_stream_end(&world.stream);
    client_expect(&client, "last\r\n0\r\n\r\n");
    assert_in_range(client.in.size, sent, sent + sent / 10);
    assert_int_equal(world.stream_gone, 0);

    buf_clear(&client.in);
    client_send(&client, GET("/stream")); /* the connection was kept */
    client_expect(&client, "chunked");
    http_stream_abort(&world.stream);
    client_expect_end(&client);
    assert_null(strstr(buf_text(&client.in), "0\r\n\r\n"));
    client_close(&client);

    client_open(&client);
    client_send(&client, GET("/stream"));
    client_expect(&client, "chunked");
    client_close(&client);
    while (world.stream_gone == 0)
        turns(1);
}

static void test_slow_clients_are_cut(void **state)
{
    struct client silent, head, body, idle;

    (void)state;
    client_open(&silent);
    client_open(&head);
    client_open(&body);
    client_open(&idle);
    client_send(&idle, GET("/hello"));
    client_expect(&idle, "\r\n\r\nhi");
    client_send(&body, "POST /upload HTTP/1.1\r\nHost: h\r\nContent-Length: 50\r\n\r\n");
    client_send(&head, "GET /hello HTTP/1.1\r\n");
    for (int i = 0; i < 100 && !(head.closed && body.closed); i++) { /* a byte now and then */
        (void)send(head.fd, "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (i < 40)
            (void)send(body.fd, "y", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        turns(10);
    }
    client_expect(&head, "HTTP/1.1 408 ");
    client_expect(&body, "HTTP/1.1 408 ");
    client_expect(&silent, "HTTP/1.1 408 ");
    client_expect_end(&head);
    client_expect_end(&body);
    client_expect_end(&silent);
    client_expect_end(&idle);
    assert_int_equal(world.seen, 2);
    assert_int_equal(world.gone, 1);
    assert_false(world.upload_ended);
    client_close(&silent);
    client_close(&head);
    client_close(&body);
    client_close(&idle);
}

static void test_waiting_is_not_slow(void **state)
{
    struct client client;

    (void)state;
    client_open(&client);
    client_send(&client, GET("/wait"));
    turns(600); /* four times every timeout */
    assert_non_null(world.waiting);
    answer_text(&world.waiting, 200, "later");
    client_expect(&client, "\r\n\r\nlater");
    client_close(&client);
}

static void on_drained(void *opaque)
{
    (void)opaque;
    world.drained = true;
}

static void test_drain_waits_for_answers(void **state)
{
    struct client busy, idle, late;
    uint16_t port = http_server_port(world.server);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port)};

    (void)state;
    client_open(&idle);
    client_send(&idle, GET("/hello"));
    client_expect(&idle, "\r\n\r\nhi");
    client_open(&busy);
    client_send(&busy, GET("/wait"));
    turns(5);
    http_server_drain(world.server, on_drained, NULL);
    client_expect_end(&idle);
    late.fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(late.fd, (struct sockaddr *)&address, sizeof(address)), -1);
    (void)close(late.fd);
    turns(20);
    assert_false(world.drained);
    answer_text(&world.waiting, 200, "later");
    client_expect(&busy, "Connection: close\r\n");
    client_expect(&busy, "\r\n\r\nlater");
    client_expect_end(&busy);
    assert_true(loop_run_until(world.loop, &world.drained, WAIT_MS));
    client_close(&busy);
    client_close(&idle);
}

static void test_close_cuts_what_is_open(void **state)
{
    struct client waiting, streaming, half;

    (void)state;
    client_open(&waiting);
    client_open(&streaming);
    client_open(&half);
    client_send(&waiting, GET("/wait"));
    client_send(&streaming, GET("/stream"));
    client_send(&half, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhalf");
    turns(10);
    http_server_close(&world.server);
    assert_int_equal(world.gone, 1);
    assert_int_equal(world.stream_gone, 1);
    client_expect_end(&waiting);
    client_expect_end(&streaming);
    client_expect_end(&half);
    client_close(&waiting);
    client_close(&streaming);
    client_close(&half);
}

static int world_open_small(void **state)
{
    (void)state;
    return world_open_with(&(struct http_server_options){.connection_count_max = 2});
}

static int world_open_narrow(void **state)
{
    (void)state;
    return world_open_with(&(struct http_server_options){.connection_count_max_per_address = 2});
}

static void test_connections_past_the_limit_wait(void **state)
{
    struct client clients[3];

    (void)state;
    for (int i = 0; i < 3; i++) {
        client_open(&clients[i]);
        client_send(&clients[i], GET("/hello"));
    }
    client_expect(&clients[0], "\r\n\r\nhi");
    client_expect(&clients[1], "\r\n\r\nhi");
    turns(50);
    assert_int_equal(clients[2].in.size, 0);
    assert_int_equal(http_server_counts(world.server).connections, 2);
    client_close(&clients[0]);
    client_expect(&clients[2], "\r\n\r\nhi");
    client_close(&clients[1]);
    client_close(&clients[2]);
}

static void test_one_address_cannot_take_all(void **state)
{
    struct client clients[3];

    (void)state;
    for (int i = 0; i < 3; i++)
        client_open(&clients[i]);
    client_expect_end(&clients[2]);
    client_send(&clients[0], GET("/hello"));
    client_expect(&clients[0], "\r\n\r\nhi");
    for (int i = 0; i < 3; i++)
        client_close(&clients[i]);
}

static void test_open_names_what_is_wrong(void **state)
{
    struct http_server_options options = {.address = "nowhere"};
    struct http_server *other = NULL;
    struct err err;

    (void)state;
    assert_int_equal(http_server_open(world.loop, &options, handler, &world, &other, &err),
                     ERR_USAGE);
    assert_non_null(strstr(err.text, "'nowhere'"));
    options = (struct http_server_options){.port = http_server_port(world.server)};
    assert_int_equal(http_server_open(world.loop, &options, handler, &world, &other, &err),
                     ERR_DEPENDENCY);
    assert_non_null(strstr(err.text, "listen on 127.0.0.1"));
    options = (struct http_server_options){.tls_cert_path = "/nowhere/cert.pem",
                                           .tls_key_path = "/nowhere/key.pem"};
    assert_int_equal(http_server_open(world.loop, &options, handler, &world, &other, &err),
                     ERR_USAGE);
    assert_non_null(strstr(err.text, "/nowhere/cert.pem"));
    options = (struct http_server_options){.reuse_port = true, .address = "::1"};
    if (http_server_open(world.loop, &options, handler, &world, &other, &err) == 0) {
        struct http_server *third = NULL;

        options.port = http_server_port(other);
        assert_int_equal(http_server_open(world.loop, &options, handler, &world, &third, &err), 0);
        http_server_close(&third);
    } /* else: a machine without IPv6 */
    http_server_close(&other);
}

#define IN_WORLD(test) cmocka_unit_test_setup_teardown(test, world_open, world_close)
#define IN_HASTY_WORLD(test) cmocka_unit_test_setup_teardown(test, world_open_hasty, world_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_WORLD(test_answers_at_once),
        IN_WORLD(test_answers_later),
        IN_WORLD(test_thousand_requests_on_one_connection),
        IN_WORLD(test_pipelined_requests),
        IN_WORLD(test_bodies),
        IN_WORLD(test_body_limit),
        IN_WORLD(test_refusals_reach_a_client_that_still_sends),
        IN_WORLD(test_ambiguous_requests_are_refused),
        IN_WORLD(test_large_headers),
        IN_WORLD(test_client_leaves),
        IN_WORLD(test_client_leaves_with_its_last_bytes),
        IN_WORLD(test_upload_with_back_pressure),
        IN_WORLD(test_stream),
        IN_HASTY_WORLD(test_slow_clients_are_cut),
        IN_HASTY_WORLD(test_waiting_is_not_slow),
        IN_WORLD(test_drain_waits_for_answers),
        IN_WORLD(test_close_cuts_what_is_open),
        cmocka_unit_test_setup_teardown(test_connections_past_the_limit_wait, world_open_small,
                                        world_close),
        cmocka_unit_test_setup_teardown(test_one_address_cannot_take_all, world_open_narrow,
                                        world_close),
        IN_WORLD(test_open_names_what_is_wrong),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
