/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: an engine that batches never waits while there is work, however its service time drifts,
 * and what its worker holds stays a few seconds of work.
 * Method: a worker's core between an owner with no end of work, who hears of credit and is heard
 * after a delay each, and an engine that computes what it has in one batch, a quarter of a second
 * of work at most, of a fixed cost and one a request, which drifts over a factor of several
 * hundred. Each millisecond is a turn.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "workers/worker_core.h"
#include "workers/worker_pace.h"

#define EPOCH ((uint64_t)3 << 32)
#define BOOT 99
#define WALL_US 1000000000000u
#define SLOTS 512u
#define HOLD_US 1000000u
#define DELAY_US 30000u  /* from a heartbeat to the attempts that it has allowed */
#define START_US 400000u /* until there is a pace, of what 16 requests took, and more has come */
#define TURN_US 1000u
#define BATCH_US 4000u
#define BATCH_MAX 64u
#define WORK_US 250000.0
#define NEWS_MAX 4096u

struct sim {
    struct worker_core *core;
    uint64_t now_us, start_us;
    double service_us; /* of one request, now */
    uint64_t sent, told;
    struct {
        uint64_t at_us, granted;
    } news[NEWS_MAX]; /* credit on its way, in heartbeats and Finished: a ring */
    uint64_t news_first, news_count;

    uint64_t waiting[SLOTS + 1]; /* in the host, a ring */
    uint64_t waiting_first, waiting_count;
    uint64_t batch_us, batch_first, batch_count; /* batch_us: when it ends; 0: none runs */

    uint64_t idle_us, done_count, batches;
    double held_us_max;
};

static void tell_owner(struct sim *sim, uint64_t granted)
{
    const uint64_t at = sim->news_count % NEWS_MAX;

    if (granted <= sim->told)
        return;
    sim->told = granted;
    assert_true(sim->news_count - sim->news_first < NEWS_MAX);
    sim->news[at].at_us = sim->now_us + DELAY_US;
    sim->news[at].granted = granted;
    sim->news_count++;
}

static void take_todos(struct sim *sim)
{
    struct worker_todo todo;

    while (worker_core_next_todo(sim->core, &todo)) {
        if (todo.type == WORKER_TODO_HEARTBEAT)
            tell_owner(sim, todo.heartbeat.granted);
        if (todo.type == WORKER_TODO_RUN) {
            assert_true(sim->waiting_count - sim->waiting_first <= SLOTS);
            sim->waiting[sim->waiting_count++ % (SLOTS + 1)] = todo.token;
        }
        if (todo.type == WORKER_TODO_FINISHED) {
            tell_owner(sim, todo.finished.granted);
            worker_core_on_finished_reported(sim->core, todo.token);
        }
        if (todo.type == WORKER_TODO_HELLO)
            worker_core_on_hello_reported(sim->core);
    }
}

/* The owner has work without end: it sends what it may. */
static void turn_owner(struct sim *sim)
{
    while (sim->news_first < sim->news_count &&
           sim->news[sim->news_first % NEWS_MAX].at_us <= sim->now_us) {
        const uint64_t granted = sim->news[sim->news_first++ % NEWS_MAX].granted;

        for (; sim->sent < granted; sim->sent++) {
            const struct message_attempt attempt = {.token = EPOCH + sim->sent + 1,
                                                    .worker = WIRE_TEXT_OF("w"),
                                                    .boot = BOOT,
                                                    .job.bytes = {1},
                                                    .number = 1,
                                                    .input = {(const uint8_t *)"{}", 2},
                                                    .run_limit_ms = 3600000};

            worker_core_on_attempt(sim->core, &attempt);
        }
        worker_core_on_read(sim->core, sim->sent);
    }
}

/* A budget of work, as tokens are: a quarter of a second. */
static uint64_t batch_max(const struct sim *sim)
{
    const double fit = WORK_US / sim->service_us;

    return fit > BATCH_MAX ? BATCH_MAX : fit < 1 ? 1 : (uint64_t)fit;
}

static void turn_engine(struct sim *sim)
{
    const struct worker_result result = {.output = {(const uint8_t *)"1", 1}, .batch_count = 1};

    if (sim->batch_us != 0 && sim->batch_us <= sim->now_us) {
        for (uint64_t i = 0; i < sim->batch_count; i++) {
            const uint64_t token = sim->waiting[sim->waiting_first++ % (SLOTS + 1)];

            worker_core_on_host_final(sim->core, token, SLOTS + ++sim->done_count, &result);
        }
        sim->batch_us = 0;
        take_todos(sim);
    }
    if (sim->batch_us == 0 && sim->waiting_count > sim->waiting_first) {
        sim->batch_count = sim->waiting_count - sim->waiting_first;
        if (sim->batch_count > batch_max(sim))
            sim->batch_count = batch_max(sim);
        sim->batch_us = sim->now_us + BATCH_US +
                        (uint64_t)(sim->service_us * (double)sim->batch_count);
        sim->batches++;
    }
    if (sim->batch_us == 0 && sim->now_us > sim->start_us)
        sim->idle_us += TURN_US;
}

static void turn(struct sim *sim)
{
    double held_us;

    sim->now_us += TURN_US;
    worker_core_tick(sim->core, sim->now_us, WALL_US + sim->now_us);
    take_todos(sim);
    turn_owner(sim);
    take_todos(sim);
    turn_engine(sim);
    held_us = (double)worker_core_stats(sim->core).in_host *
              (sim->service_us + (double)BATCH_US / BATCH_MAX);
    if (sim->now_us > sim->start_us && held_us > sim->held_us_max)
        sim->held_us_max = held_us;
}

static void open_sim(struct sim *sim, uint64_t hold_us, double service_us)
{
    struct worker_options options = worker_options_default;

    options.worker = "w";
    options.pool = "p";
    options.machine = "m";
    options.device = "cpu";
    options.boot = BOOT;
    options.slot_count = SLOTS;
    options.hold_us = hold_us;
    *sim = (struct sim){.now_us = 1000000, .service_us = service_us};
    sim->core = worker_core_new(&options, sim->now_us);
    worker_core_tick(sim->core, sim->now_us, WALL_US);
    worker_core_on_host_ready(sim->core, SLOTS);
    worker_core_on_read(sim->core, 0);
    take_todos(sim);
    sim->start_us = sim->now_us + START_US;
}

/* Drifts by up to this factor a second, up or down, within these limits. */
#define SEED_COUNT 12u
#define DRIFT_A_SECOND 1.6
#define SERVICE_US_MIN 100.0
#define SERVICE_US_MAX 60000.0

static void drift(struct sim *sim, struct rng *rng, double *step)
{
    if (sim->now_us % 1000000 < TURN_US)
        *step = pow(DRIFT_A_SECOND, (2 * rng_unit(rng) - 1) * (double)TURN_US / 1e6);
    sim->service_us *= *step;
    sim->service_us = fmin(fmax(sim->service_us, SERVICE_US_MIN), SERVICE_US_MAX);
}

static void run_drifting(struct sim *sim, uint64_t seed, uint64_t hold_us)
{
    struct rng rng;
    double step = 1;

    rng_seed(&rng, seed);
    open_sim(sim, hold_us, SERVICE_US_MIN * pow(SERVICE_US_MAX / SERVICE_US_MIN, rng_unit(&rng)));
    while (sim->now_us < 61000000) {
        drift(sim, &rng, &step);
        turn(sim);
    }
    worker_core_free(&sim->core);
}

/* What is held may be that of a pace that was, and a batch of the new one: a few seconds. */
static void test_the_engine_never_waits_and_little_is_held(void **state)
{
    uint64_t batches = 0, done_count = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= SEED_COUNT; seed++) {
        struct sim sim;

        run_drifting(&sim, seed, HOLD_US);
        if (sim.idle_us > 0 || sim.held_us_max > 3.0 * HOLD_US)
            fail_msg("seed %d: idle %d us, held %.1f s at most", (int)seed, (int)sim.idle_us,
                     sim.held_us_max / 1e6);
        batches += sim.batches;
        done_count += sim.done_count;
    }
    (void)print_message("%d requests in %d batches\n", (int)done_count, (int)batches);
}

/* The measure is one: without a pace, the same worker holds tens of seconds. */
static void test_without_a_pace_all_slots_are_held(void **state)
{
    double held_us_max = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= SEED_COUNT; seed++) {
        struct sim sim;

        run_drifting(&sim, seed, 0);
        held_us_max = fmax(held_us_max, sim.held_us_max);
    }
    assert_true(held_us_max > 25e6);
}

/* From one turn to the next many times as slow, and as fast again: what is held then lasts a part
 * of a second, in which more comes if the part is long enough. */
static void check_sudden(double factor, uint64_t idle_us_max)
{
    struct sim sim;

    open_sim(&sim, HOLD_US, 300);
    while (sim.now_us < 10000000)
        turn(&sim);
    assert_true(worker_core_stats(sim.core).slots_allowed > 400);
    sim.service_us *= factor;
    while (sim.now_us < 60000000)
        turn(&sim);
    assert_true(worker_core_stats(sim.core).slots_allowed < 1.2e6 / sim.service_us);
    assert_true(worker_core_stats(sim.core).in_host < 1.2e6 / sim.service_us);
    sim.service_us /= factor;
    while (sim.now_us < 70000000)
        turn(&sim);
    assert_true(worker_core_stats(sim.core).slots_allowed > 400);
    if (sim.idle_us > idle_us_max)
        fail_msg("%g times: idle %d us", factor, (int)sim.idle_us);
    worker_core_free(&sim.core);
}

static void test_a_sudden_change_passes(void **state)
{
    (void)state;
    check_sudden(10, 0);
    check_sudden(100, 4 * DELAY_US);
}

static void test_slots(void **state)
{
    struct worker_pace pace = {.hold_us = 1000000, .slot_max = 64};

    (void)state;
    assert_int_equal(worker_pace_slots(&pace, 5), WORKER_PACE_SLOTS_FIRST);
    worker_pace_begin(&pace, 1000);
    assert_int_equal(worker_pace_slots(&pace, 500000), WORKER_PACE_SLOTS_FIRST);
    assert_int_equal(worker_pace_slots(&pace, 2000000),
                     WORKER_PACE_SLOTS_LEAST); /* no answer yet */
    worker_pace_note(&pace, 101000, 3, true);  /* 33 ms each */
    assert_int_equal(worker_pace_slots(&pace, 101000), 30);
    assert_int_equal(worker_pace_slots(&pace, 999000000), 30); /* it has nothing to do */
    worker_pace_begin(&pace, 999000000);
    worker_pace_note(&pace, 999001000, 1000, false);
    assert_int_equal(worker_pace_slots(&pace, 999001000), 64);
    pace.hold_us = 0;
    pace.is_busy = false;
    assert_int_equal(worker_pace_slots(&pace, 0), 64);
    pace = (struct worker_pace){.hold_us = 1000000, .slot_max = 1};
    assert_int_equal(worker_pace_slots(&pace, 0), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slots),
        cmocka_unit_test(test_the_engine_never_waits_and_little_is_held),
        cmocka_unit_test(test_without_a_pace_all_slots_are_held),
        cmocka_unit_test(test_a_sudden_change_passes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
