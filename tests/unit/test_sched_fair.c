/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what tenants get of a pool, in a pool that runs: a newcomer waits for one service time
 * however much the others have queued, weights are kept in slot-time, debts outlive idleness, and
 * an overdue lower class gets its share and no more.
 *
 * Method: a simulated pool of slots with random service times, many seeds; the scheduler is the
 * real one. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "brokers/sched.h"

#define SLOTS 16
#define TENANTS 3
#define BACKLOG 4096 /* of them are in the window; behind it are as many as one likes */
#define SEEDS 40

struct runner {
    struct sched_job *job; /* NULL: the slot is free */
    uint64_t from_us, until_us;
};

struct tenant {
    struct sched_lane lane;
    struct sched_flow flow;
    struct sched_job jobs[BACKLOG];
    size_t next;     /* of jobs: used in turn, for they are over long before */
    uint64_t refill; /* waiting jobs are kept at this many */
    uint64_t least_us, most_us;
    uint64_t waiting, used_us, started;
};

struct world {
    struct sched_pool pool;
    struct sched_ageing ageing;
    struct tenant tenants[TENANTS];
    struct runner slots[SLOTS];
    struct rng rng;
    uint64_t now_us, seq;
    struct sched_job *watched;
    uint64_t watched_start_us;
};

static struct world *world_new(uint64_t seed)
{
    struct world *world = xcalloc(1, sizeof(*world));

    sched_pool_init(&world->pool);
    rng_seed(&world->rng, seed);
    world->now_us = 1000000000;
    return world;
}

static void tenant_is(struct world *world, int index, enum job_rank rank, uint64_t refill,
                      uint64_t least_us, uint64_t most_us)
{
    struct tenant *tenant = &world->tenants[index];

    sched_lane_init(&tenant->lane, rank, (uint64_t)index);
    sched_flow_init(&tenant->flow, &tenant->lane);
    tenant->refill = refill;
    tenant->least_us = least_us;
    tenant->most_us = most_us;
}

static struct sched_job *submit(struct world *world, struct tenant *tenant)
{
    struct sched_job *job = &tenant->jobs[tenant->next++ % BACKLOG];

    assert_false(heap_holds(&job->node));
    *job = (struct sched_job){.slot_count = 1, .accepted_us = world->now_us, .flow = &tenant->flow};
    sched_push(&world->pool, &tenant->flow, job, world->now_us + 600000000, world->seq++);
    tenant->waiting++;
    return job;
}

static struct tenant *tenant_of(const struct sched_job *job)
{
    return HEAP_ENTRY(job->flow, struct tenant, flow);
}

static void start(struct world *world, struct runner *slot)
{
    struct sched_job *job = sched_take(&world->pool, &world->ageing, world->now_us);
    struct tenant *tenant;

    if (job == NULL)
        return;
    tenant = tenant_of(job);
    tenant->waiting--;
    tenant->started++;
    *slot = (struct runner){job, world->now_us,
                            world->now_us + tenant->least_us +
                                rng_below(&world->rng, tenant->most_us - tenant->least_us + 1)};
    if (job == world->watched)
        world->watched_start_us = world->now_us;
}

static void finish(struct world *world, struct runner *slot)
{
    struct sched_job *job = TAKE(slot->job);

    tenant_of(job)->used_us += world->now_us - slot->from_us;
    sched_settle(&world->pool, job, world->now_us - slot->from_us, true);
}

/* On to the next end of a job. */
static void step(struct world *world)
{
    struct runner *first = NULL;

    for (int i = 0; i < TENANTS; i++) {
        while (world->tenants[i].waiting < world->tenants[i].refill)
            (void)submit(world, &world->tenants[i]);
    }
    for (int i = 0; i < SLOTS; i++) {
        if (world->slots[i].job == NULL)
            start(world, &world->slots[i]);
        if (world->slots[i].job != NULL &&
            (first == NULL || world->slots[i].until_us < first->until_us))
            first = &world->slots[i];
    }
    if (first == NULL)
        return;
    world->now_us = first->until_us;
    finish(world, first);
}

static void run_until(struct world *world, uint64_t now_us)
{
    while (world->now_us < now_us)
        step(world);
}

static void world_free(struct world **world_p)
{
    struct world *world = *world_p;

    for (int i = 0; i < TENANTS; i++)
        world->tenants[i].refill = 0;
    while (sched_can(&world->pool))
        step(world);
    for (int i = 0; i < TENANTS; i++) {
        sched_flow_done(&world->tenants[i].flow);
        sched_lane_done(&world->tenants[i].lane);
    }
    sched_pool_done(&world->pool);
    mem_free(world_p);
}

/* Tenant 0 has thousands waiting, all of its jobs in the slots; one job of tenant 1 comes at any
 * moment: it gets the next slot that becomes free. */
static void test_a_newcomer_waits_one_service_time(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct world *world = world_new(seed);
        uint64_t most_us = 1000 + rng_below(&world->rng, 1000000);
        uint64_t arrival_us;

        tenant_is(world, 0, JOB_RANK_PRIORITY_0, 2000, 1000, most_us);
        tenant_is(world, 1, JOB_RANK_PRIORITY_0, 0, 1000, most_us);
        for (int round = 0; round < 5; round++) {
            run_until(world, world->now_us + rng_below(&world->rng, 50 * most_us));
            arrival_us = world->now_us;
            world->watched = submit(world, &world->tenants[1]);
            world->watched_start_us = 0;
            while (world->watched_start_us == 0)
                step(world);
            assert_true(world->watched_start_us - arrival_us <= most_us);
        }
        world_free(&world);
    }
}

/* Ten times the load, ten times the length of a job: half of the time each. */
static void test_load_and_length_buy_nothing(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS / 4; seed++) {
        struct world *world = world_new(seed);
        uint64_t from_us, all_us;

        tenant_is(world, 0, JOB_RANK_PRIORITY_0, 1000, 100000, 200000);
        tenant_is(world, 1, JOB_RANK_PRIORITY_0, 100, 10000, 20000);
        run_until(world, world->now_us + 60000000);
        all_us = world->tenants[0].used_us + world->tenants[1].used_us;
        from_us = world->tenants[1].used_us;
        assert_in_range(from_us * 100 / all_us, 48, 52);
        world_free(&world);
    }
}

static void test_weights_are_shares_of_slot_time(void **state)
{
    struct world *world = world_new(1);
    uint64_t all_us = 0;

    (void)state;
    for (int i = 0; i < 3; i++)
        tenant_is(world, i, JOB_RANK_PRIORITY_1, 200, 5000, 50000);
    world->tenants[0].lane.weight = 100;
    world->tenants[1].lane.weight = 300;
    world->tenants[2].lane.weight = 600;
    run_until(world, world->now_us + 60000000);
    for (int i = 0; i < 3; i++)
        all_us += world->tenants[i].used_us;
    assert_in_range(world->tenants[0].used_us * 1000 / all_us, 90, 110);
    assert_in_range(world->tenants[1].used_us * 1000 / all_us, 285, 315);
    assert_in_range(world->tenants[2].used_us * 1000 / all_us, 580, 620);
    world_free(&world);
}

/* A change of weight while jobs run: the sums stay whole (the scheduler asserts it). */
static void test_weights_may_change_at_any_time(void **state)
{
    struct world *world = world_new(3);

    (void)state;
    for (int i = 0; i < 3; i++)
        tenant_is(world, i, JOB_RANK_PRIORITY_1, 50, 5000, 50000);
    for (int i = 0; i < 1000; i++) {
        world->tenants[rng_below(&world->rng, 3)].lane.weight = 1 + (uint32_t)rng_below(&world->rng,
                                                                                        1000);
        run_until(world, world->now_us + 10000);
    }
    world_free(&world);
}

/* Who took more than estimated owes it, also after a while without jobs. */
static void test_a_debt_outlives_idleness(void **state)
{
    struct world *world = world_new(5);
    struct tenant *debtor = &world->tenants[0];
    uint64_t owed_us;

    (void)state;
    tenant_is(world, 0, JOB_RANK_PRIORITY_0, 0, 3000000, 3000000);
    tenant_is(world, 1, JOB_RANK_PRIORITY_0, 100, 10000, 10000);
    run_until(world, world->now_us + 1000000);
    for (int i = 0; i < SLOTS; i++) /* three seconds each, charged at ten milliseconds */
        (void)submit(world, debtor);
    run_until(world, world->now_us + 4000000);
    owed_us = debtor->lane.served_us - world->pool.virtual_us[JOB_RANK_PRIORITY_0];
    assert_true(owed_us > 10000000);
    world->watched = submit(world, debtor); /* comes back: the others first, for what it took */
    world->watched_start_us = 0;
    run_until(world, world->now_us + 500000);
    assert_int_equal(world->watched_start_us, 0);
    while (world->watched_start_us == 0)
        step(world);
    world_free(&world);
}

/* 5 % of the slot-time, though the jobs of the lower class take twenty times as long; and all that
 * the higher one leaves. */
static void test_ageing_is_a_share_of_slot_time(void **state)
{
    static const struct {
        uint32_t percent;
        uint64_t least, most; /* per mille of the time for the lower class */
    } rows[] = {{5, 40, 55}, {20, 180, 210}, {0, 0, 0}};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct world *world = world_new(i + 1);
        uint64_t all_us;

        world->ageing = (struct sched_ageing){rows[i].percent, 1000000};
        tenant_is(world, 0, JOB_RANK_PRIORITY_0, 200, 5000, 15000);
        tenant_is(world, 1, JOB_RANK_PRIORITY_2, 200, 200000, 200000);
        run_until(world, world->now_us + 200000000);
        all_us = world->tenants[0].used_us + world->tenants[1].used_us;
        assert_in_range(world->tenants[1].used_us * 1000 / all_us, rows[i].least, rows[i].most);
        world->tenants[0].refill = 0;
        run_until(world, world->now_us + 1000000);
        assert_true(world->tenants[1].started > 0);
        world_free(&world);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_newcomer_waits_one_service_time),
        cmocka_unit_test(test_load_and_length_buy_nothing),
        cmocka_unit_test(test_weights_are_shares_of_slot_time),
        cmocka_unit_test(test_weights_may_change_at_any_time),
        cmocka_unit_test(test_a_debt_outlives_idleness),
        cmocka_unit_test(test_ageing_is_a_share_of_slot_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
