/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a relay loses and mixes no byte, holds no more than its room while a side does not read,
 * and passes each kind of end on. Method: two socket pairs; the test is both clients. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/loop.h"
#include "base/mem.h"
#include "brokers/relay.h"

#define WAIT_MS 20000
#define BIG_SIZE (8u << 20)

struct world {
    struct loop *loop;
    struct relay *relay;
    int near[2], far[2]; /* the relay's ends, and ours */
    int eof[2];
    bool over, hold, refuse;
    size_t seen;
};

static struct world world;

static bool on_bytes(void *opaque, int side, const void *bytes, size_t size)
{
    (void)opaque, (void)side, (void)bytes;
    world.seen += size;
    return !world.refuse;
}

static bool on_eof(void *opaque, int side)
{
    (void)opaque;
    world.eof[side]++;
    return !world.hold;
}

static void on_end(void *opaque)
{
    (void)opaque;
    world.over = true;
    relay_free(&world.relay);
}

static int world_open(void **state)
{
    static const struct relay_calls calls = {
        .on_bytes = on_bytes, .on_eof = on_eof, .on_end = on_end};
    struct err err;

    (void)state;
    memset(&world, 0, sizeof(world));
    if (loop_open(&world.loop, &err) < 0)
        return -1;
    for (int i = 0; i < 2; i++) {
        int pair[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
        world.near[i] = pair[0];
        world.far[i] = pair[1];
    }
    assert_int_equal(relay_new(world.loop, world.near, &calls, NULL, &world.relay, &err), 0);
    return 0;
}

static int world_close(void **state)
{
    (void)state;
    relay_free(&world.relay);
    for (int i = 0; i < 2; i++) {
        (void)close(world.near[i]);
        (void)close(world.far[i]);
    }
    loop_close(&world.loop);
    return 0;
}

static void turn(void)
{
    bool never = false;

    (void)loop_run_until(world.loop, &never, 1);
}

static void want(int side, const char *text)
{
    char got[64] = "";
    size_t size = 0;

    for (int i = 0; i < 1000 && size < strlen(text); i++) {
        ssize_t n = recv(world.far[side], got + size, strlen(text) - size, 0);

        size += n > 0 ? (size_t)n : 0;
        turn();
    }
    assert_string_equal(got, text);
}

static void want_end(int side)
{
    char byte;
    ssize_t n = -1;

    for (int i = 0; i < 1000 && n < 0; i++) {
        n = recv(world.far[side], &byte, 1, 0);
        turn();
    }
    assert_int_equal(n, 0);
}

static void want_over(void)
{
    assert_true(loop_run_until(world.loop, &world.over, WAIT_MS));
}

static void test_both_ways_and_an_end(void **state)
{
    (void)state;
    assert_int_equal(send(world.far[0], "there", 5, 0), 5);
    assert_int_equal(send(world.far[1], "back", 4, 0), 4);
    want(1, "there");
    want(0, "back");
    assert_int_equal(relay_size_from(world.relay, 0), 5);
    assert_int_equal(shutdown(world.far[0], SHUT_WR), 0);
    want_end(1);
    assert_int_equal(send(world.far[1], "late", 4, 0), 4); /* half a close leaves the other half */
    want(0, "late");
    assert_false(world.over);
    assert_int_equal(shutdown(world.far[1], SHUT_WR), 0);
    want_end(0);
    want_over();
    assert_int_equal(world.eof[0] + world.eof[1], 2);
}

static void test_much_of_it_at_all_speeds(void **state)
{
    uint8_t *out = xmalloc(BIG_SIZE), *in = xmalloc(BIG_SIZE);
    size_t sent = 0, got = 0, most = 0;

    (void)state;
    for (size_t i = 0; i < BIG_SIZE; i++)
        out[i] = (uint8_t)(i * 7 + i / 251);
    for (int i = 0; i < 50; i++) { /* nobody reads: it comes to a stop */
        ssize_t n = send(world.far[0], out + sent, BIG_SIZE - sent, 0);

        sent += n > 0 ? (size_t)n : 0;
        turn();
    }
    most = relay_size_from(world.relay, 0);
    assert_true(most > 0 && most < 4u * RELAY_SIZE + (1u << 20)); /* its room, and the kernel's */
    for (int i = 0; got < BIG_SIZE; i++) {
        ssize_t n = send(world.far[0], out + sent, BIG_SIZE - sent, 0);

        sent += n > 0 ? (size_t)n : 0;
        n = recv(world.far[1], in + got, BIG_SIZE - got > 77777 ? 77777 : BIG_SIZE - got, 0);
        got += n > 0 ? (size_t)n : 0;
        turn();
        assert_true(i < 100000);
    }
    assert_memory_equal(in, out, BIG_SIZE);
    assert_int_equal(world.seen, BIG_SIZE);
    free(out);
    free(in);
}

static void test_an_end_that_is_held(void **state)
{
    (void)state;
    world.hold = true;
    assert_int_equal(shutdown(world.far[1], SHUT_WR), 0);
    for (int i = 0; i < 20 && world.eof[1] == 0; i++)
        turn();
    assert_int_equal(world.eof[1], 1);
    assert_true(relay_has_ended(world.relay, 1) && !relay_was_broken(world.relay, 1));
    relay_put(world.relay, 0, "bye", 3);
    relay_finish(world.relay, 0);
    want(0, "bye");
    want_end(0);
    world.hold = false;
    assert_int_equal(shutdown(world.far[0], SHUT_WR), 0);
    want_over();
}

static void test_a_side_that_breaks(void **state)
{
    (void)state;
    (void)close(world.far[1]);
    world.far[1] = dup(world.far[0]);
    want_end(0);
    assert_int_equal(send(world.far[0], "nobody", 6, 0), 6);
    for (int i = 0; i < 20; i++)
        turn();
    assert_int_equal(shutdown(world.far[0], SHUT_WR), 0);
    want_over();
}

static void test_bytes_that_are_refused(void **state)
{
    (void)state;
    world.refuse = true;
    assert_int_equal(send(world.far[0], "no", 2, 0), 2);
    for (int i = 0; i < 20 && world.seen == 0; i++)
        turn();
    relay_put(world.relay, 0, "too big", 7);
    relay_finish(world.relay, 0);
    want(0, "too big");
    want_end(0);
    assert_int_equal(world.seen, 2);
    assert_int_equal(recv(world.far[1], &(char){0}, 1, 0), -1);
    assert_int_equal(errno, EAGAIN);
}

static void test_a_linger_has_an_end(void **state)
{
    (void)state;
    assert_int_equal(shutdown(world.far[0], SHUT_WR), 0);
    want_end(1);
    want_over(); /* side 1 says nothing: RELAY_LINGER_MS */
    assert_int_equal(world.eof[1], 0);
}

#define IN_WORLD(test) cmocka_unit_test_setup_teardown(test, world_open, world_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_WORLD(test_both_ways_and_an_end),   IN_WORLD(test_much_of_it_at_all_speeds),
        IN_WORLD(test_an_end_that_is_held),    IN_WORLD(test_a_side_that_breaks),
        IN_WORLD(test_bytes_that_are_refused), IN_WORLD(test_a_linger_has_an_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
