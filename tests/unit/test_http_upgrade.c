/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a connection that leaves HTTP carries bytes both ways until its holder closes it (over TLS:
 * test_http_pump.c), and a client that leaves before the 101 is told of. Method: server and client
 * share one loop; the client writes bytes as given. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/http_server.h"
#include "base/loop.h"

#define ASK "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"

struct world {
    struct loop *loop;
    struct http_server *server;
    struct http_request *request; /* waits */
    struct http_upgraded *upgraded;
    int fd, client;
    int opened, gone;
    bool drained;
    struct buf early, got;
};

static struct world world;

static void on_open(void *opaque, int fd, const void *bytes, size_t size)
{
    (void)opaque;
    world.opened++;
    world.fd = fd;
    if (size > 0)
        buf_append(&world.early, bytes, size);
}

static void on_gone(void *opaque)
{
    (void)opaque;
    world.gone++;
    world.upgraded = NULL;
}

static void handler(struct http_request *request, void *opaque)
{
    (void)opaque;
    world.request = request;
}

static void on_drained(void *opaque)
{
    (void)opaque;
    world.drained = true;
}

static int world_open(void **state)
{
    const struct http_server_options options = {0};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct err err;

    (void)state;
    memset(&world, 0, sizeof(world));
    world.early = world.got = BUF_WITH_LIMIT(1 << 20);
    if (loop_open(&world.loop, &err) < 0 ||
        http_server_open(world.loop, &options, handler, NULL, &world.server, &err) < 0)
        return -1;
    address.sin_port = htons(http_server_port(world.server));
    world.client = socket(AF_INET, SOCK_STREAM, 0);
    return connect(world.client, (struct sockaddr *)&address, sizeof(address));
}

static int world_close(void **state)
{
    (void)state;
    http_upgraded_close(&world.upgraded);
    if (world.request != NULL)
        http_request_drop(&world.request);
    http_server_close(&world.server);
    loop_close(&world.loop);
    (void)close(world.client);
    buf_done(&world.early);
    buf_done(&world.got);
    return 0;
}

static void turns(int count)
{
    bool never = false;

    for (int i = 0; i < count; i++)
        (void)loop_run_until(world.loop, &never, 1);
}

static void ask(const char *text)
{
    assert_int_equal(send(world.client, text, strlen(text), 0), (ssize_t)strlen(text));
    for (int i = 0; i < 1000 && world.request == NULL; i++)
        turns(1);
    assert_non_null(world.request);
}

static void answer(void)
{
    static const struct http_upgrade_calls calls = {.on_open = on_open, .on_gone = on_gone};
    const struct http_header header = {"Upgrade", "echo"};

    world.upgraded = http_request_upgrade(&world.request, &header, 1, &calls, NULL);
}

/* What the client sees, until the needle is in it; NULL: until its end. */
static void want(const char *needle)
{
    for (int i = 0; i < 5000; i++) {
        char bytes[4096];
        ssize_t n = recv(world.client, bytes, sizeof(bytes), MSG_DONTWAIT);

        if (n > 0)
            buf_append(&world.got, bytes, (size_t)n);
        if (n == 0 && needle == NULL)
            return;
        if (needle != NULL && strstr(buf_text(&world.got), needle) != NULL)
            return;
        turns(1);
    }
    fail_msg("no '%s' in '%s'", needle, buf_text(&world.got));
}

static void test_bytes_both_ways(void **state)
{
    char bytes[16] = "";

    (void)state;
    ask(ASK "early");
    turns(20); /* it waits like any other request */
    answer();
    want("\r\n\r\n");
    assert_non_null(strstr(buf_text(&world.got), "HTTP/1.1 101 Switching Protocols\r\n"));
    assert_non_null(strstr(buf_text(&world.got), "Upgrade: echo\r\n"));
    assert_non_null(strstr(buf_text(&world.got), "Connection: Upgrade\r\n"));
    assert_int_equal(world.opened, 1);
    assert_string_equal(buf_text(&world.early), "early");
    assert_int_equal(send(world.client, "more", 4, 0), 4);
    for (int i = 0; i < 1000 && recv(world.fd, bytes, sizeof(bytes), 0) != 4; i++) {
        assert_int_equal(errno, EAGAIN);
        turns(1);
    }
    assert_string_equal(bytes, "more");
    assert_int_equal(send(world.fd, "back", 4, 0), 4);
    want("back");
    assert_int_equal(http_server_counts(world.server).connections, 1);
    http_upgraded_close(&world.upgraded);
    want(NULL);
    turns(5);
    assert_int_equal(http_server_counts(world.server).connections, 0);
    assert_int_equal(http_server_counts(world.server).requests, 0);
}

static void test_client_leaves_before(void **state)
{
    (void)state;
    ask(ASK);
    (void)close(world.client);
    turns(20);
    answer();
    assert_null(world.upgraded); /* nothing will be called */
    turns(20);
    assert_int_equal(world.opened + world.gone, 0);
    world.client = dup(0);
}

static void test_holder_gives_up_at_once(void **state)
{
    (void)state;
    ask(ASK);
    answer();
    http_upgraded_close(&world.upgraded);
    want(NULL);
    assert_int_equal(world.opened + world.gone, 0);
    turns(5);
    assert_int_equal(http_server_counts(world.server).connections, 0);
}

static void test_drain_waits_for_it(void **state)
{
    (void)state;
    ask(ASK);
    answer();
    want("\r\n\r\n");
    http_server_drain(world.server, on_drained, NULL);
    turns(50);
    assert_false(world.drained);
    http_upgraded_close(&world.upgraded);
    assert_true(loop_run_until(world.loop, &world.drained, 5000));
}

static void test_lame_server_does_not_say_close(void **state)
{
    (void)state;
    http_server_lame(world.server);
    ask(ASK);
    answer();
    want("\r\n\r\n");
    assert_null(strstr(buf_text(&world.got), "close"));
    http_upgraded_close(&world.upgraded);
}

#define IN_WORLD(test) cmocka_unit_test_setup_teardown(test, world_open, world_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_WORLD(test_bytes_both_ways),
        IN_WORLD(test_client_leaves_before),
        IN_WORLD(test_holder_gives_up_at_once),
        IN_WORLD(test_drain_waits_for_it),
        IN_WORLD(test_lame_server_does_not_say_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
