/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what a worker decides, event by event: credit, order of start, ends, and leaving.
 * Method: a script of events drives the core; its to-dos come out as text, one word each, and are
 * compared with what the rule says. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "workers/worker_core.h"

#define EPOCH ((uint64_t)3 << 32)
#define BOOT 99
#define WALL_US 1000000000000u

struct world {
    struct worker_core *core;
    uint64_t now_us;
    char said[1024];
    struct message_heartbeat beat;
    uint64_t beat_tokens[64];
    bool tells_credit; /* what a Finished grants is written as well */
};

static void world_add(struct world *world, const char *fmt, ...) PRINTF_LIKE(2, 3);

static void world_add(struct world *world, const char *fmt, ...)
{
    size_t size = strlen(world->said);
    va_list args;

    if (size > 0)
        world->said[size++] = ' ';
    va_start(args, fmt);
    (void)vsnprintf(world->said + size, sizeof(world->said) - size, fmt, args);
    va_end(args);
}

/* Behind what was said last. */
static void world_tell_credit(struct world *world, uint64_t granted)
{
    size_t size = strlen(world->said);

    (void)snprintf(world->said + size, sizeof(world->said) - size, "(%u)", (unsigned)granted);
}

static void world_write_todo(struct world *world, const struct worker_todo *todo)
{
    unsigned n = (unsigned)(todo->token - EPOCH);

    switch (todo->type) {
    case WORKER_TODO_FETCH:
        world_add(world, "fetch%u", n);
        break;
    case WORKER_TODO_RUN:
        world_add(world, "run%u", n);
        break;
    case WORKER_TODO_CANCEL:
        world_add(world, "cancel%u", n);
        break;
    case WORKER_TODO_FORGET:
        world_add(world, "forget%u", n);
        break;
    case WORKER_TODO_HELLO:
        world_add(world, "hello");
        break;
    case WORKER_TODO_HEARTBEAT:
        world_add(world, "beat:%u/%u", (unsigned)todo->heartbeat.granted,
                  (unsigned)todo->heartbeat.received);
        world->beat = todo->heartbeat;
        break;
    case WORKER_TODO_STARTED:
        world_add(world, "started%u", n);
        break;
    case WORKER_TODO_FINISHED:
        world_add(world, "%s%u",
                  todo->finished.error_class == 0
                      ? "success"
                      : error_class_name((enum error_class)todo->finished.error_class),
                  n);
        if (world->tells_credit)
            world_tell_credit(world, todo->finished.granted);
        break;
    case WORKER_TODO_BYE:
        world_add(world, "bye");
        break;
    case WORKER_TODO_HOST_START:
        world_add(world, "host-start");
        break;
    case WORKER_TODO_HOST_KILL:
        world_add(world, "host-kill");
        break;
    case WORKER_TODO_HOST_DRAIN:
        world_add(world, "host-drain");
        break;
    case WORKER_TODO_EXIT:
        world_add(world, "exit%d", todo->exit.code);
        break;
    }
}

/* The to-dos since the last call, as text. */
static const char *world_said(struct world *world)
{
    struct worker_todo todo;

    world->said[0] = '\0';
    while (worker_core_next_todo(world->core, &todo))
        world_write_todo(world, &todo);
    return world->said;
}

#define SAYS(world, want) assert_string_equal(world_said(world), want)

static void world_tick(struct world *world, uint64_t more_us)
{
    world->now_us += more_us;
    worker_core_tick(world->core, world->now_us, WALL_US + world->now_us);
}

static void world_open_with(struct world *world, uint32_t slot_count, bool resumes,
                            uint64_t ahead_us)
{
    struct worker_options options = worker_options_default;

    options.worker = "w";
    options.pool = "p";
    options.machine = "m";
    options.device = "cpu";
    options.boot = BOOT;
    options.slot_count = slot_count;
    options.resumes = resumes;
    options.ahead_us = ahead_us;
    *world = (struct world){.now_us = 1000000, .tells_credit = ahead_us > 0};
    world->core = worker_core_new(&options, world->now_us);
    world_tick(world, 0);
    SAYS(world, "host-start");
}

static void world_open_as(struct world *world, uint32_t slot_count, bool resumes)
{
    world_open_with(world, slot_count, resumes, 0);
}

static void world_open(struct world *world, uint32_t slot_count)
{
    world_open_as(world, slot_count, false);
}

/* Up to the first heartbeat, which grants all slots. */
static void world_become_ready(struct world *world, uint32_t slot_count)
{
    char want[32];

    worker_core_on_host_ready(world->core, slot_count);
    worker_core_on_read(world->core, 10);
    world_tick(world, 0);
    SAYS(world, "hello");
    worker_core_on_hello_reported(world->core);
    world_tick(world, 0);
    (void)snprintf(want, sizeof(want), "beat:%u/0", slot_count);
    SAYS(world, want);
}

static void world_ready(struct world *world, uint32_t slot_count)
{
    world_open(world, slot_count);
    world_become_ready(world, slot_count);
}

static struct message_attempt attempt_of(uint64_t n)
{
    return (struct message_attempt){.token = EPOCH + n,
                                    .worker = WIRE_TEXT_OF("w"),
                                    .boot = BOOT,
                                    .job.bytes = {(uint8_t)n, 1},
                                    .number = 1,
                                    .input = {(const uint8_t *)"{}", 2},
                                    .run_limit_ms = 60000};
}

static void give(struct world *world, uint64_t n)
{
    const struct message_attempt attempt = attempt_of(n);

    worker_core_on_attempt(world->core, &attempt);
}

static void revoke(struct world *world, uint64_t n)
{
    const struct message_revoke message = {
        .token = EPOCH + n, .worker = WIRE_TEXT_OF("w"), .boot = BOOT};

    worker_core_on_revoke(world->core, &message);
}

static void end(struct world *world, uint64_t n, enum error_class class)
{
    worker_core_on_host_final(world->core, EPOCH + n, 1000,
                              &(struct worker_result){.error_class = class});
}

/* ---- credit ---- */

static void test_hello_waits_for_both(void **state)
{
    struct world world;

    (void)state;
    world_open(&world, 2);
    worker_core_on_read(world.core, 5);
    world_tick(&world, 0);
    SAYS(&world, "");
    worker_core_on_host_ready(world.core, 2);
    world_tick(&world, 0);
    SAYS(&world, "hello");
    world_tick(&world, 5000000); /* no heartbeat before the Hello is in the log */
    SAYS(&world, "");
    worker_core_on_hello_reported(world.core);
    world_tick(&world, 0);
    SAYS(&world, "beat:2/0");
    assert_int_equal(world.beat.position, 5);
    worker_core_free(&world.core);
}

static void test_credit_is_cumulative(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 2);
    world.tells_credit = true;
    give(&world, 1);
    give(&world, 2);
    SAYS(&world, ""); /* nothing starts before all is read */
    worker_core_on_read(world.core, 12);
    SAYS(&world, "run1 run2");
    world_tick(&world, 5000);
    end(&world, 1, ERROR_CLASS_NONE);
    world_tick(&world, 0);
    SAYS(&world, "success1(3)"); /* it carries the credit; a heartbeat repeats it */
    world_tick(&world, 15000);
    SAYS(&world, "started2 beat:3/2");
    assert_int_equal(world.beat.tokens.count, 2); /* 1 is held until its Finished is reported */
    worker_core_on_finished_reported(world.core, EPOCH + 1);
    world_tick(&world, 1000000);
    SAYS(&world, "beat:3/2");
    assert_int_equal(world.beat.tokens.count, 1);
    assert_int_equal(world.beat.position, 12);
    worker_core_free(&world.core);
}

/* Two slots have done one job, of that length. */
static void world_open_ahead(struct world *world, uint64_t service_us)
{
    world_open_with(world, 2, false, 5000);
    world_become_ready(world, 2);
    give(world, 1);
    worker_core_on_read(world->core, 11);
    world_tick(world, service_us);
    end(world, 1, ERROR_CLASS_NONE);
}

/* Jobs of 1 ms in two slots: as many again may wait, and no more. */
static void test_short_jobs_come_ahead(void **state)
{
    struct world world;

    (void)state;
    world_open_ahead(&world, 1000);
    SAYS(&world, "run1 success1(5)"); /* one received, two slots, two ahead */
    for (uint64_t n = 2; n <= 6; n++)
        give(&world, n);
    worker_core_on_read(world.core, 16);
    SAYS(&world, "HANDED_BACK6(5) run2 run3");
    assert_int_equal(worker_core_stats(world.core).slots_busy, 2);
    end(&world, 2, ERROR_CLASS_NONE);
    SAYS(&world, "success2(7) run4"); /* at once */
    worker_core_free(&world.core);
}

/* Another worker could begin a long one meanwhile. */
static void test_long_jobs_do_not_come_ahead(void **state)
{
    struct world world;

    (void)state;
    world_open_ahead(&world, 20000);
    SAYS(&world, "run1 started1 success1(3)");
    worker_core_free(&world.core);
}

/* The mean has said nothing of a job that takes long: what waits behind it goes back, and no more
 * comes ahead until one has ended. */
static void test_what_came_ahead_does_not_wait_long(void **state)
{
    struct world world;

    (void)state;
    world_open_ahead(&world, 1000);
    for (uint64_t n = 2; n <= 4; n++)
        give(&world, n);
    worker_core_on_read(world.core, 14);
    world_tick(&world, 99000);
    SAYS(&world, "run1 success1(5) run2 run3 started2 started3 beat:5/4");
    world_tick(&world, 2000);
    SAYS(&world, "HANDED_BACK4(5)");
    give(&world, 5);
    worker_core_on_read(world.core, 15);
    world_tick(&world, 101000);
    SAYS(&world, "HANDED_BACK5(5)");
    end(&world, 2, ERROR_CLASS_NONE);
    SAYS(&world, "success2(6)"); /* of its slot, and none ahead */
    worker_core_free(&world.core);
}

/* What was granted counts, though jobs have become long since. One that takes two slots has no
 * other beside it that waits. */
static void test_what_was_granted_ahead_is_taken(void **state)
{
    struct message_attempt wide = attempt_of(6);
    struct world world;

    (void)state;
    world_open_ahead(&world, 1000);
    give(&world, 2);
    give(&world, 3);
    worker_core_on_read(world.core, 13);
    world_tick(&world, 9000000);
    SAYS(&world, "run1 success1(5) run2 run3 started2 started3 beat:5/3");
    end(&world, 2, ERROR_CLASS_NONE);
    SAYS(&world, "success2(5)");
    give(&world, 4);
    give(&world, 5);
    worker_core_on_read(world.core, 15);
    SAYS(&world, "run4");
    wide.slot_count = 2;
    worker_core_on_attempt(world.core, &wide);
    SAYS(&world, "HANDED_BACK6(5)");
    worker_core_free(&world.core);
}

static void test_above_its_credit(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 1);
    world.tells_credit = true;
    give(&world, 1);
    give(&world, 2);
    worker_core_on_read(world.core, 12);
    SAYS(&world, "HANDED_BACK2(1) run1");
    end(&world, 1, ERROR_CLASS_NONE);
    world_tick(&world, 20000);
    SAYS(&world, "success1(3) beat:3/2");
    worker_core_free(&world.core);
}

static void test_what_is_skipped(void **state)
{
    static const struct {
        const char *what, *worker;
        uint64_t boot, shard, token;
    } rows[] = {
        {"another boot", "w", BOOT + 1, 0, EPOCH + 2},  {"another worker", "v", BOOT, 0, EPOCH + 2},
        {"another shard", "w", BOOT, 1, EPOCH + 2},     {"an older owner", "w", BOOT, 0, EPOCH - 2},
        {"a repeated record", "w", BOOT, 0, EPOCH + 1},
    };
    struct world world;

    (void)state;
    world_ready(&world, 4);
    give(&world, 1);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct message_attempt attempt = attempt_of(0);

        attempt.worker = WIRE_TEXT_OF(rows[i].worker);
        attempt.boot = rows[i].boot;
        attempt.shard = rows[i].shard;
        attempt.token = rows[i].token;
        worker_core_on_attempt(world.core, &attempt);
    }
    worker_core_on_read(world.core, 20);
    SAYS(&world, "run1");
    assert_int_equal(worker_core_stats(world.core).skipped, COUNT_OF(rows));
    assert_int_equal(worker_core_stats(world.core).received, 1);
    worker_core_free(&world.core);
}

/* ---- revokes ---- */

static void test_revoke_behind_its_attempt(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 2);
    give(&world, 1);
    revoke(&world, 1);
    worker_core_on_read(world.core, 12);
    SAYS(&world, ""); /* never started, never told */
    world_tick(&world, 2000);
    SAYS(&world, "beat:3/1");
    assert_int_equal(world.beat.tokens.count, 0);
    worker_core_free(&world.core);
}

static void test_revoke_of_a_running_one(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 1);
    give(&world, 1);
    worker_core_on_read(world.core, 11);
    revoke(&world, 1);
    worker_core_on_read(world.core, 12);
    SAYS(&world, "run1 cancel1");
    world_tick(&world, 1000000);
    SAYS(&world, "beat:1/1"); /* its slot is not free before the host says so */
    assert_int_equal(world.beat.tokens.count, 0);
    end(&world, 1, ERROR_CLASS_CANCELED);
    world_tick(&world, 2000);
    SAYS(&world, "beat:2/1");
    worker_core_free(&world.core);
}

/* ---- limits ---- */

static void test_run_limit_then_grace(void **state)
{
    struct message_attempt attempt = attempt_of(1);
    struct world world;

    (void)state;
    world_ready(&world, 2);
    attempt.run_limit_ms = 50;
    worker_core_on_attempt(world.core, &attempt);
    give(&world, 2);
    worker_core_on_read(world.core, 12);
    SAYS(&world, "run1 run2");
    world_tick(&world, 10000);
    SAYS(&world, "started1 started2");
    world_tick(&world, 40000);
    SAYS(&world, "MODEL_TIMEOUT1 cancel1");
    worker_core_on_finished_reported(world.core, EPOCH + 1);
    world_tick(&world, 1900000);
    SAYS(&world, "beat:2/2");
    world_tick(&world, 100000);
    SAYS(&world, "host-kill");
    worker_core_on_host_gone(world.core, ERROR_CLASS_LOST_WORKER, false, "killed");
    SAYS(&world, "HANDED_BACK2"); /* it did nothing */
    world_tick(&world, 50000);
    SAYS(&world, "host-start");
    worker_core_free(&world.core);
}

static void give_limited(struct world *world, uint64_t n, uint64_t run_limit_ms)
{
    struct message_attempt attempt = attempt_of(n);

    attempt.run_limit_ms = run_limit_ms;
    worker_core_on_attempt(world->core, &attempt);
}

/* One job stops the whole host, so that its neighbours pass their limits too: they go back free. */
static void test_neighbours_of_a_hang_pay_nothing(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 4);
    give_limited(&world, 1, 50);
    give_limited(&world, 2, 50);
    give_limited(&world, 3, 1000);
    give(&world, 4);
    worker_core_on_read(world.core, 14);
    SAYS(&world, "run1 run2 run3 run4");
    world_tick(&world, 50000);
    SAYS(&world, "MODEL_TIMEOUT1 cancel1 cancel2 started3 started4");
    world_tick(&world, 950000);
    SAYS(&world, "cancel3 beat:4/4");
    world_tick(&world, 1049999);
    SAYS(&world, "beat:4/4");
    world_tick(&world, 1);
    SAYS(&world, "host-kill");
    worker_core_on_host_gone(world.core, ERROR_CLASS_LOST_WORKER, false, "killed");
    SAYS(&world, "HANDED_BACK2 HANDED_BACK3 HANDED_BACK4");
    worker_core_free(&world.core);
}

/* The host answers: each was slow by itself and pays; a result that comes late all the same counts.
 */
static void test_a_host_that_answers_is_not_to_blame(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 3);
    for (uint64_t n = 1; n <= 3; n++)
        give_limited(&world, n, 5);
    worker_core_on_read(world.core, 13);
    world_tick(&world, 5000);
    SAYS(&world, "run1 run2 run3 MODEL_TIMEOUT1 cancel1 cancel2 cancel3");
    end(&world, 1, ERROR_CLASS_CANCELED);
    end(&world, 2, ERROR_CLASS_CANCELED);
    end(&world, 3, ERROR_CLASS_NONE);
    SAYS(&world, "MODEL_TIMEOUT2 success3");
    worker_core_free(&world.core);
}

/* The first obeys, the second does not: then the second is the one that pays. */
static void test_the_one_that_does_not_obey_pays(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 3);
    give_limited(&world, 1, 5);
    give_limited(&world, 2, 5);
    give(&world, 3);
    worker_core_on_read(world.core, 13);
    world_tick(&world, 5000);
    SAYS(&world, "run1 run2 run3 MODEL_TIMEOUT1 cancel1 cancel2");
    end(&world, 1, ERROR_CLASS_CANCELED);
    world_tick(&world, 2000000);
    SAYS(&world, "MODEL_TIMEOUT2 host-kill started3 beat:4/3");
    worker_core_on_host_gone(world.core, ERROR_CLASS_LOST_WORKER, false, "killed");
    SAYS(&world, "HANDED_BACK3");
    worker_core_free(&world.core);
}

/* A user's cancel that the host does not take is no reason to charge others. */
static void test_a_cancel_that_hangs_costs_others_nothing(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 2);
    give(&world, 1);
    give_limited(&world, 2, 500);
    worker_core_on_read(world.core, 12);
    revoke(&world, 1);
    worker_core_on_read(world.core, 13);
    SAYS(&world, "run1 run2 cancel1");
    world_tick(&world, 500000);
    SAYS(&world, "cancel2");
    world_tick(&world, 1500000);
    SAYS(&world, "host-kill beat:2/2");
    worker_core_on_host_gone(world.core, ERROR_CLASS_LOST_WORKER, false, "killed");
    SAYS(&world, "HANDED_BACK2");
    worker_core_free(&world.core);
}

static void test_total_deadline(void **state)
{
    struct message_attempt attempt = attempt_of(1);
    struct world world;

    (void)state;
    world_ready(&world, 2);
    attempt.deadline_us = WALL_US + world.now_us - 1;
    worker_core_on_attempt(world.core, &attempt);
    attempt = attempt_of(2);
    attempt.deadline_us = WALL_US + world.now_us + 5000;
    worker_core_on_attempt(world.core, &attempt);
    worker_core_on_read(world.core, 12);
    SAYS(&world, "EXPIRED1 run2");
    world_tick(&world, 5000);
    SAYS(&world, "EXPIRED2 cancel2 beat:3/2");
    worker_core_free(&world.core);
}

/* What a request and its answer are made of goes through; also the model's own answer to a failure.
 */
static void test_types_are_carried(void **state)
{
    struct message_attempt attempt = attempt_of(1);
    const struct worker_result result = {.error_class = ERROR_CLASS_MODEL_ERROR,
                                         .output = {(const uint8_t *)"no", 2},
                                         .output_type = WIRE_TEXT_OF("text/plain"),
                                         .http_status = 418};
    struct worker_todo todo;
    struct world world;

    (void)state;
    world_ready(&world, 2);
    attempt.input_type = WIRE_TEXT_OF("image/png");
    attempt.route = WIRE_TEXT_OF("POST /v1/x");
    attempt.gateway = WIRE_TEXT_OF("gw-1");
    attempt.stream = true;
    worker_core_on_attempt(world.core, &attempt);
    worker_core_on_read(world.core, 11);
    assert_true(worker_core_next_todo(world.core, &todo));
    assert_int_equal(todo.type, WORKER_TODO_RUN);
    assert_true(wire_text_equal(todo.run.input_type, "image/png"));
    assert_true(wire_text_equal(todo.run.route, "POST /v1/x"));
    assert_true(wire_text_equal(todo.run.gateway, "gw-1"));
    assert_true(todo.run.stream);
    worker_core_on_host_final(world.core, EPOCH + 1, 2, &result);
    assert_true(worker_core_next_todo(world.core, &todo));
    assert_int_equal(todo.type, WORKER_TODO_FINISHED);
    assert_int_equal(todo.finished.output_size, 2);
    assert_true(wire_text_equal(todo.finished.output_type, "text/plain"));
    assert_int_equal(todo.finished.http_status, 418);
    worker_core_free(&world.core);
}

/* ---- the host ---- */

static void test_crash(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 4);
    give(&world, 1);
    give(&world, 2);
    worker_core_on_read(world.core, 12);
    SAYS(&world, "run1 run2");
    worker_core_on_host_gone(world.core, ERROR_CLASS_LOST_WORKER, false, "signal 6");
    SAYS(&world, "LOST_WORKER1 LOST_WORKER2");
    give(&world, 3);
    worker_core_on_read(world.core, 13);
    world_tick(&world, 50000);
    SAYS(&world, "host-start");
    worker_core_on_host_ready(world.core, 4);
    SAYS(&world, "run3");
    worker_core_free(&world.core);
}

/* Runs of a chain go on elsewhere: nobody pays for their coordinator, and a drain waits for none.
 */
static void test_runs_of_chains(void **state)
{
    struct world world;

    (void)state;
    world_open_as(&world, 4, true);
    world_become_ready(&world, 4);
    assert_true(world.beat.resumes);
    give(&world, 1);
    worker_core_on_read(world.core, 11);
    SAYS(&world, "run1");
    worker_core_on_host_gone(world.core, ERROR_CLASS_LOST_WORKER, false, "signal 9");
    SAYS(&world, "LOST_COORDINATOR1");
    world_tick(&world, 50000);
    SAYS(&world, "host-start");
    worker_core_on_host_ready(world.core, 4);
    give(&world, 2);
    worker_core_on_read(world.core, 12);
    SAYS(&world, "run2");
    worker_core_drain(world.core);
    SAYS(&world, "HANDED_BACK2 cancel2");
    worker_core_free(&world.core);
}

/* A host that does not come back keeps nobody waiting. */
static void test_host_stays_away(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 1);
    worker_core_on_host_gone(world.core, ERROR_CLASS_LOST_WORKER, false, "signal 6");
    give(&world, 1);
    worker_core_on_read(world.core, 11);
    world_tick(&world, 50000);
    SAYS(&world, "host-start");
    world_tick(&world, 4900000);
    SAYS(&world, "beat:1/1");
    world_tick(&world, 100000);
    SAYS(&world, "HANDED_BACK1");
    world_tick(&world, 1000000);
    SAYS(&world, "beat:1/1"); /* and grants nothing */
    worker_core_free(&world.core);
}

static void test_alone_has_the_host(void **state)
{
    struct message_attempt alone = attempt_of(2);
    struct world world;

    (void)state;
    world_ready(&world, 4);
    world.tells_credit = true;
    give(&world, 1);
    worker_core_on_read(world.core, 11);
    alone.alone = true;
    worker_core_on_attempt(world.core, &alone);
    give(&world, 3);
    worker_core_on_read(world.core, 13);
    SAYS(&world, "run1");
    end(&world, 1, ERROR_CLASS_NONE);
    SAYS(&world, "success1(4) run2");
    world_tick(&world, 1000000);
    SAYS(&world, "started2 beat:4/3"); /* nothing more is granted */
    end(&world, 2, ERROR_CLASS_NONE);
    world_tick(&world, 20000);
    SAYS(&world, "success2(6) run3 started3 beat:6/3");
    worker_core_free(&world.core);
}

static void test_beside_one_alone_for_long(void **state)
{
    struct message_attempt alone = attempt_of(1);
    struct world world;

    (void)state;
    world_ready(&world, 2);
    alone.alone = true;
    worker_core_on_attempt(world.core, &alone);
    give(&world, 2);
    worker_core_on_read(world.core, 12);
    SAYS(&world, "run1");
    world_tick(&world, 5000000);
    SAYS(&world, "started1 HANDED_BACK2 beat:2/2");
    worker_core_on_host_gone(world.core, ERROR_CLASS_LOST_WORKER, false, "signal 6");
    SAYS(&world, "LOST_WORKER1");
    worker_core_free(&world.core);
}

static void test_device_fault_leaves(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 2);
    give(&world, 1);
    worker_core_on_read(world.core, 11);
    SAYS(&world, "run1");
    worker_core_on_host_gone(world.core, ERROR_CLASS_DEVICE_FAULT, false, "Xid 79");
    SAYS(&world, "DEVICE_FAULT1");
    worker_core_on_finished_reported(world.core, EPOCH + 1);
    SAYS(&world, "bye");
    worker_core_on_bye_reported(world.core);
    SAYS(&world, "exit3");
    worker_core_free(&world.core);
}

static void test_failed_loads(void **state)
{
    static const struct {
        const char *what;
        bool final;
        int tries;
    } rows[] = {{"for good", true, 1}, {"perhaps not", false, 3}};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct world world;

        world_open(&world, 1);
        for (int n = 1; n < rows[i].tries; n++) {
            worker_core_on_host_gone(world.core, ERROR_CLASS_MODEL_UNAVAILABLE, rows[i].final,
                                     "no such file");
            SAYS(&world, "");
            world_tick(&world, 6000000);
            SAYS(&world, "host-start");
        }
        worker_core_on_host_gone(world.core, ERROR_CLASS_MODEL_UNAVAILABLE, rows[i].final,
                                 "no such file");
        SAYS(&world, "exit2");
        worker_core_free(&world.core);
    }
}

static void test_a_load_that_hangs(void **state)
{
    const uint64_t hour_us = worker_options_default.load_us;
    struct world world;

    (void)state;
    world_open(&world, 1);
    world_tick(&world, hour_us - 1);
    SAYS(&world, "");
    worker_core_on_host_loading(world.core); /* it gets on with it */
    world_tick(&world, hour_us - 1);
    SAYS(&world, "");
    world_tick(&world, 1);
    SAYS(&world, "host-kill");
    world_tick(&world, hour_us);
    SAYS(&world, ""); /* once */
    worker_core_on_host_gone(world.core, ERROR_CLASS_LOST_WORKER, false, "was killed by signal 9");
    SAYS(&world, "exit2");
    worker_core_free(&world.core);
}

/* ---- inputs ---- */

static void test_input_by_blob_key(void **state)
{
    struct message_attempt attempt = attempt_of(1);
    struct world world;

    (void)state;
    world_ready(&world, 3);
    attempt.input = (struct wire_bytes){0};
    attempt.input_blob = WIRE_TEXT_OF("day/id/input");
    worker_core_on_attempt(world.core, &attempt);
    attempt.token++;
    worker_core_on_attempt(world.core, &attempt);
    attempt.token++;
    worker_core_on_attempt(world.core, &attempt);
    worker_core_on_read(world.core, 13);
    SAYS(&world, "fetch1 fetch2 fetch3");
    worker_core_on_read(world.core, 13);
    SAYS(&world, ""); /* asked for once */
    worker_core_on_input(world.core, EPOCH + 2, ERROR_CLASS_NONE, "");
    SAYS(&world, "run2");
    worker_core_on_input(world.core, EPOCH + 1, ERROR_CLASS_LOST_WORKER, "no such blob");
    SAYS(&world, "LOST_WORKER1");
    revoke(&world, 3);
    SAYS(&world, "forget3");
    worker_core_on_input(world.core, EPOCH + 3, ERROR_CLASS_NONE, "");
    SAYS(&world, "");
    worker_core_free(&world.core);
}

/* ---- leaving ---- */

static void test_drain(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 2);
    give(&world, 1);
    worker_core_on_read(world.core, 11);
    SAYS(&world, "run1");
    worker_core_drain(world.core);
    give(&world, 2);
    worker_core_on_read(world.core, 12);
    world_tick(&world, 0);
    SAYS(&world, "HANDED_BACK2 beat:2/2");
    assert_true(world.beat.draining);
    world_tick(&world, 29000000);
    SAYS(&world, "started1 beat:2/2");
    end(&world, 1, ERROR_CLASS_NONE);
    SAYS(&world, "success1 host-drain");
    worker_core_on_host_gone(world.core, ERROR_CLASS_NONE, false, "drained");
    worker_core_on_finished_reported(world.core, EPOCH + 2);
    SAYS(&world, "");
    worker_core_on_finished_reported(world.core, EPOCH + 1);
    SAYS(&world, "bye");
    worker_core_on_bye_reported(world.core);
    SAYS(&world, "exit0");
    worker_core_free(&world.core);
}

static void test_drain_has_an_end(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 1);
    give(&world, 1);
    worker_core_on_read(world.core, 11);
    worker_core_drain(world.core);
    SAYS(&world, "run1");
    world_tick(&world, 30000000);
    SAYS(&world, "started1 HANDED_BACK1 cancel1 beat:1/1");
    world_tick(&world, 500000);
    SAYS(&world, "host-kill");
    worker_core_on_host_gone(world.core, ERROR_CLASS_LOST_WORKER, false, "killed");
    SAYS(&world, "");
    world_tick(&world, 500000);
    SAYS(&world, "exit3 beat:1/1"); /* Kafka took nothing */
    worker_core_free(&world.core);
}

/* All was told, and only the host is slow to end: no reason to say that nothing was heard. */
static void test_late_host_is_no_fault(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 1);
    worker_core_drain(world.core);
    SAYS(&world, "host-drain bye");
    worker_core_on_bye_reported(world.core);
    SAYS(&world, "");
    world_tick(&world, 31000000);
    SAYS(&world, "exit0 host-kill");
    worker_core_free(&world.core);
}

static void test_drain_while_loading(void **state)
{
    struct world world;

    (void)state;
    world_open(&world, 1);
    worker_core_drain(world.core);
    SAYS(&world, "host-drain");
    world_tick(&world, 2000000); /* it is deep in its load and does not listen */
    SAYS(&world, "host-kill");
    worker_core_on_host_gone(world.core, ERROR_CLASS_LOST_WORKER, false, "killed");
    SAYS(&world, "exit0"); /* nobody knows of it, so there is nothing to say */
    worker_core_free(&world.core);
}

static void test_second_signal_is_haste(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 1);
    give(&world, 1);
    worker_core_on_read(world.core, 11);
    worker_core_drain(world.core);
    SAYS(&world, "run1");
    worker_core_drain(world.core);
    SAYS(&world, "HANDED_BACK1 cancel1");
    worker_core_free(&world.core);
}

/* ---- cost ---- */

/* A job that is shorter than 10 ms costs its owner one record, and credit is told lazily while
 * half of it is left. */
static void test_short_jobs_are_cheap(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world, 8);
    for (uint64_t n = 1; n <= 3; n++) {
        give(&world, n);
        worker_core_on_read(world.core, 10 + n);
        end(&world, n, ERROR_CLASS_NONE);
        worker_core_on_finished_reported(world.core, EPOCH + n);
        world_tick(&world, 1000);
    }
    SAYS(&world, "run1 success1 run2 success2 run3 success3");
    world_tick(&world, 20000);
    SAYS(&world, "beat:11/3");
    worker_core_free(&world.core);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hello_waits_for_both),
        cmocka_unit_test(test_credit_is_cumulative),
        cmocka_unit_test(test_short_jobs_come_ahead),
        cmocka_unit_test(test_long_jobs_do_not_come_ahead),
        cmocka_unit_test(test_what_came_ahead_does_not_wait_long),
        cmocka_unit_test(test_what_was_granted_ahead_is_taken),
        cmocka_unit_test(test_above_its_credit),
        cmocka_unit_test(test_what_is_skipped),
        cmocka_unit_test(test_revoke_behind_its_attempt),
        cmocka_unit_test(test_revoke_of_a_running_one),
        cmocka_unit_test(test_run_limit_then_grace),
        cmocka_unit_test(test_neighbours_of_a_hang_pay_nothing),
        cmocka_unit_test(test_a_host_that_answers_is_not_to_blame),
        cmocka_unit_test(test_the_one_that_does_not_obey_pays),
        cmocka_unit_test(test_a_cancel_that_hangs_costs_others_nothing),
        cmocka_unit_test(test_total_deadline),
        cmocka_unit_test(test_types_are_carried),
        cmocka_unit_test(test_crash),
        cmocka_unit_test(test_runs_of_chains),
        cmocka_unit_test(test_host_stays_away),
        cmocka_unit_test(test_alone_has_the_host),
        cmocka_unit_test(test_beside_one_alone_for_long),
        cmocka_unit_test(test_device_fault_leaves),
        cmocka_unit_test(test_failed_loads),
        cmocka_unit_test(test_a_load_that_hangs),
        cmocka_unit_test(test_input_by_blob_key),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_drain_has_an_end),
        cmocka_unit_test(test_late_host_is_no_fault),
        cmocka_unit_test(test_drain_while_loading),
        cmocka_unit_test(test_second_signal_is_haste),
        cmocka_unit_test(test_short_jobs_are_cheap),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
