/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: as many lines of a bulk job enter as its pool takes, hardly any while online work waits,
 * and never none.
 *
 * Method: a pool that takes so many lines a tick, online work first but for an ageing share, and a
 * collector that notices ends late.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "base/mem.h"
#include "producers/bulk_pace.h"

#define TICK_US 10000
#define TICKS_S 100 /* of a second */
#define CHUNKS 100000
#define WINDOW_MAX 16000
#define NOTICED_TICKS 6 /* an end is seen so late */
#define AGEING_PERCENT 5

struct world {
    struct bulk_pace pace;
    uint64_t tick, sent_at[CHUNKS], ended_at[CHUNKS];
    uint32_t sent, run, noticed; /* chunks; run: those that are wholly run */
    uint64_t part;               /* lines of chunk `run` that are run */
    double credit;               /* parts of lines that were not run yet */
    uint64_t lines;              /* that were run, of all */
    uint64_t online_waiting, live_max;
};

static struct world *world_new(void)
{
    struct world *world = xcalloc(1, sizeof(*world));

    bulk_pace_init(&world->pace);
    return world;
}

static uint64_t live(const struct world *world)
{
    return (uint64_t)(world->sent - world->noticed) * BULK_PACE_CHUNK;
}

static void enter(struct world *world)
{
    while (world->sent == world->noticed ||
           live(world) + BULK_PACE_CHUNK <= bulk_pace_window(&world->pace, WINDOW_MAX)) {
        assert_true(world->sent < CHUNKS);
        world->sent_at[world->sent++] = world->tick;
    }
    if (live(world) > world->live_max)
        world->live_max = live(world);
}

static void run(struct world *world, double per_tick, uint64_t online_per_tick)
{
    uint64_t online;
    double left = per_tick;

    world->online_waiting += online_per_tick;
    online = world->online_waiting < (uint64_t)left ? world->online_waiting : (uint64_t)left;
    left -= (double)online;
    if (left < per_tick * AGEING_PERCENT / 100) {
        left = per_tick * AGEING_PERCENT / 100;
        online = (uint64_t)(per_tick - left);
    }
    world->online_waiting -= online < world->online_waiting ? online : world->online_waiting;
    world->credit += left;
    while (world->run < world->sent && world->credit >= 1) {
        world->credit -= 1;
        world->lines++;
        if (++world->part < BULK_PACE_CHUNK)
            continue;
        world->part = 0;
        world->ended_at[world->run++] = world->tick;
    }
    if (world->run == world->sent)
        world->credit = 0; /* an idle pool saves nothing up */
}

static void notice(struct world *world)
{
    while (world->noticed < world->run &&
           world->ended_at[world->noticed] + NOTICED_TICKS <= world->tick) {
        bulk_pace_ended(&world->pace, BULK_PACE_CHUNK,
                        (world->tick - world->sent_at[world->noticed]) * TICK_US, WINDOW_MAX);
        world->noticed++;
    }
}

/* Lines that were run meanwhile. */
static uint64_t pass(struct world *world, uint64_t seconds, double per_s, uint64_t online_per_s)
{
    uint64_t before = world->lines, end = world->tick + seconds * TICKS_S;

    world->live_max = 0;
    while (world->tick < end) {
        if (world->tick % TICKS_S == 0)
            bulk_pace_measured(&world->pace, world->online_waiting > 0);
        enter(world);
        run(world, per_s / TICKS_S, online_per_s / TICKS_S);
        notice(world);
        world->tick++;
    }
    return world->lines - before;
}

static void test_a_pool_is_kept_busy_and_not_more(void **state)
{
    static const double rates[] = {20, 300, 2000, 5000, 10000, 20000, 40000};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rates); i++) {
        struct world *world = world_new();
        double most = 2 * BULK_PACE_CHUNK + rates[i];

        (void)pass(world, 10, rates[i], 0);
        assert_true((double)pass(world, 20, rates[i], 0) >= 0.97 * 20 * rates[i]);
        assert_true(world->live_max <= WINDOW_MAX && (double)world->live_max <= most);
        free(world);
    }
}

static void test_online_work_lets_one_chunk_in_and_it_ends(void **state)
{
    struct world *world = world_new();
    uint64_t during;

    (void)state;
    (void)pass(world, 10, 10000, 0);
    (void)pass(world, 5, 10000, 15000); /* what was in runs out, by the share of ageing */
    assert_true(world->pace.yields);
    during = pass(world, 60, 10000, 15000);
    assert_true(during >= 60 * 10000 * AGEING_PERCENT / 100 * 9 / 10); /* it does not starve */
    (void)pass(world, 10, 10000, 15000);
    assert_int_equal(world->live_max, BULK_PACE_CHUNK);
    free(world);
}

static void test_it_comes_back_when_online_work_is_done(void **state)
{
    struct world *world = world_new();

    (void)state;
    (void)pass(world, 10, 10000, 0);
    (void)pass(world, 5, 10000, 15000);
    (void)pass(world, 10, 10000, 0); /* what waited, and then bulk again */
    assert_int_equal(world->online_waiting, 0);
    assert_true(pass(world, 5, 10000, 0) >= 5 * 10000 * 97 / 100);
    free(world);
}

static void test_online_work_that_never_waits_takes_nothing_away(void **state)
{
    struct world *world = world_new();

    (void)state;
    (void)pass(world, 10, 10000, 4000);
    assert_true(pass(world, 10, 10000, 4000) >= 10 * 6000 * 97 / 100);
    free(world);
}

static void test_limits(void **state)
{
    struct bulk_pace pace;

    (void)state;
    bulk_pace_init(&pace);
    assert_int_equal(bulk_pace_window(&pace, 100), 100); /* the setting is the highest */
    for (int i = 0; i < 100; i++)
        bulk_pace_ended(&pace, BULK_PACE_CHUNK, 1, WINDOW_MAX);
    assert_int_equal(bulk_pace_window(&pace, WINDOW_MAX), WINDOW_MAX);
    for (int i = 0; i < 1000; i++)
        bulk_pace_ended(&pace, BULK_PACE_CHUNK, 1000000000, WINDOW_MAX);
    assert_int_equal(bulk_pace_window(&pace, WINDOW_MAX), 2 * BULK_PACE_CHUNK);
    bulk_pace_measured(&pace, true);
    assert_int_equal(bulk_pace_window(&pace, WINDOW_MAX), BULK_PACE_CHUNK);
    bulk_pace_measured(&pace, false);
    assert_int_equal(bulk_pace_window(&pace, WINDOW_MAX), 2 * BULK_PACE_CHUNK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_pool_is_kept_busy_and_not_more),
        cmocka_unit_test(test_online_work_lets_one_chunk_in_and_it_ends),
        cmocka_unit_test(test_it_comes_back_when_online_work_is_done),
        cmocka_unit_test(test_online_work_that_never_waits_takes_nothing_away),
        cmocka_unit_test(test_limits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
