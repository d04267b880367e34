/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: parts call while they live and never after they were freed; signals reach the loop. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/loop.h"

#define WAIT_MS 5000

struct world {
    struct loop *loop;
    struct loop_timer *timer;
    struct loop_watch *watch;
    struct loop_wake *wake;
    struct loop_turn *turn;
    int calls, other_calls, never_calls;
    unsigned events;
    bool done;
};

static int world_open(void **state)
{
    static struct world world;
    struct err err;

    world = (struct world){0};
    *state = &world;
    return loop_open(&world.loop, &err);
}

static int world_close(void **state)
{
    struct world *world = *state;

    loop_timer_free(&world->timer);
    loop_watch_free(&world->watch);
    loop_wake_free(&world->wake);
    loop_turn_free(&world->turn);
    loop_close(&world->loop);
    assert_null(world->loop);
    return 0;
}

static void count_to_three(void *opaque)
{
    struct world *world = opaque;

    world->done = ++world->calls >= 3;
}

static void count_other(void *opaque)
{
    ((struct world *)opaque)->other_calls++;
}

static void count_never(void *opaque)
{
    ((struct world *)opaque)->never_calls++;
}

/* How many turns three calls take is not ours to say, nor whether a fourth comes in the last one:
 * when the machine is busy, libuv runs a timer at both ends of a turn. */
static void test_timer_repeats_until_stopped(void **state)
{
    struct world *world = *state;
    struct loop_timer *never = loop_timer_new(world->loop, count_never, world);

    world->timer = loop_timer_new(world->loop, count_to_three, world);
    world->turn = loop_turn_new(world->loop, count_other, world);
    assert_false(loop_timer_is_running(world->timer));
    loop_timer_start(world->timer, 0, 1);
    assert_true(loop_timer_is_running(world->timer));
    loop_timer_start(never, 0, 0);
    loop_timer_free(&never); /* due, and freed before the loop ran: never calls */
    assert_null(never);
    assert_true(loop_run_until(world->loop, &world->done, WAIT_MS));
    loop_timer_stop(world->timer);
    assert_false(loop_timer_is_running(world->timer));
    assert_true(world->calls >= 3);
    assert_int_equal(world->never_calls, 0);
    assert_true(world->other_calls > 0); /* the turns */
}

static void test_run_until_gives_up(void **state)
{
    struct world *world = *state;

    assert_false(loop_run_until(world->loop, &world->done, 1));
}

static void is_done(void *opaque)
{
    ((struct world *)opaque)->done = true;
}

/* What is due as a turn begins is told before the turn waits: nothing else need ever happen. */
static void test_run_until_does_not_wait_for_others(void **state)
{
    struct world *world = *state;
    struct loop_timer *due = loop_timer_new(world->loop, is_done, world);

    world->timer = loop_timer_new(world->loop, count_other, world);
    loop_timer_start(world->timer, WAIT_MS, 0);
    assert_false(loop_run_until(world->loop, &world->done, 0));
    assert_int_equal(world->other_calls, 0);
    loop_timer_start(due, 0, 0);
    assert_true(loop_run_until(world->loop, &world->done, 2 * WAIT_MS));
    assert_int_equal(world->other_calls, 0);
    loop_timer_free(&due);
}

static void test_stop_before_run_returns_at_once(void **state)
{
    struct world *world = *state;

    world->timer = loop_timer_new(world->loop, count_other, world);
    loop_timer_start(world->timer, 3600 * 1000, 0);
    loop_stop(world->loop);
    loop_run(world->loop);
    assert_int_equal(world->other_calls, 0);
}

static void note_events(void *opaque, unsigned events)
{
    struct world *world = opaque;

    world->events |= events;
    world->done = true;
    loop_watch_set(world->watch, 0);
}

static void test_watch_sees_bytes_and_departure(void **state)
{
    struct world *world = *state;
    int pair[2];
    struct err err;
    char byte = 'x';

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(loop_watch_new(world->loop, pair[0], note_events, world, &world->watch, &err),
                     0);
    loop_watch_set(world->watch, LOOP_READABLE | LOOP_GONE);
    assert_int_equal(write(pair[1], &byte, 1), 1);
    assert_true(loop_run_until(world->loop, &world->done, WAIT_MS));
    assert_int_equal(world->events, LOOP_READABLE);

    world->done = false;
    world->events = 0;
    assert_int_equal(read(pair[0], &byte, 1), 1);
    (void)close(pair[1]);
    loop_watch_set(world->watch, LOOP_GONE);
    assert_true(loop_run_until(world->loop, &world->done, WAIT_MS));
    assert_true(world->events & LOOP_GONE);
    loop_watch_free(&world->watch);
    (void)close(pair[0]);
    assert_int_equal(loop_watch_new(world->loop, -1, note_events, world, &world->watch, &err),
                     ERR_IO);
}

/* A process that hangs after SIGTERM is ended at its limit, with the code that it was given. */
static void test_process_that_hangs_is_ended(void **state)
{
    pid_t pid = fork();
    int status;

    (void)state;
    assert_true(pid >= 0);
    if (pid == 0) {
        loop_end_within(50, 7);
        loop_end_within(1, 9); /* only the first counts */
        for (;;)
            (void)pause(); /* a loop that does not turn */
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 7);
}

struct block {
    uv_work_t work;
    int pipe[2];
};

static void block_run(uv_work_t *work)
{
    char byte;

    (void)!read(((struct block *)work)->pipe[0], &byte, 1);
}

/* What blocks on a thread of libuv's cannot be interrupted: neither the end of the loop nor that of
 * the process waits for it. */
static void test_end_does_not_wait_for_what_blocks(void **state)
{
    pid_t pid = fork();
    uint64_t began_ms = clock_mono_ms();
    struct block block;
    struct loop *loop;
    struct err err;
    int status;

    (void)state;
    assert_true(pid >= 0);
    if (pid == 0) {
        if (pipe(block.pipe) < 0 || loop_open(&loop, &err) < 0 ||
            uv_queue_work(loop_uv(loop), &block.work, block_run, NULL) != 0)
            exit(1);
        loop_close(&loop);
        exit(7);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 7);
    assert_in_range(clock_mono_ms() - began_ms, 400, WAIT_MS);
}

static void *send_from_afar(void *opaque)
{
    loop_wake_send(opaque);
    return NULL;
}

static void note_done(void *opaque)
{
    ((struct world *)opaque)->done = true;
}

static void test_wake_from_another_thread(void **state)
{
    struct world *world = *state;
    pthread_t thread;

    world->wake = loop_wake_new(world->loop, note_done, world);
    assert_int_equal(pthread_create(&thread, NULL, send_from_afar, world->wake), 0);
    assert_true(loop_run_until(world->loop, &world->done, WAIT_MS));
    (void)pthread_join(thread, NULL);
}

static void test_signals_drain_and_reload(void **state)
{
    struct world *world = *state;
    struct err err;

    assert_int_equal(loop_on_signals(world->loop, note_done, count_to_three, world, &err), 0);
    assert_int_equal(kill(getpid(), SIGTERM), 0);
    assert_true(loop_run_until(world->loop, &world->done, WAIT_MS));
    assert_int_equal(world->calls, 0);
    world->done = false;
    world->calls = 2;
    assert_int_equal(kill(getpid(), SIGHUP), 0);
    assert_true(loop_run_until(world->loop, &world->done, WAIT_MS));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_timer_repeats_until_stopped, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_run_until_gives_up, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_run_until_does_not_wait_for_others, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(test_stop_before_run_returns_at_once, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(test_watch_sees_bytes_and_departure, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(test_wake_from_another_thread, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_signals_drain_and_reload, world_open, world_close),
        cmocka_unit_test(test_process_that_hangs_is_ended),
        cmocka_unit_test(test_end_does_not_wait_for_what_blocks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
