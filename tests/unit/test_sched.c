/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: who runs next. Ranks are strict but for the ageing share; tenants share a rank by the
 * slot-time that they were served; within a tenant the earliest start deadline goes first. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/rng.h"
#include "brokers/sched.h"

#define LANES 4
#define JOBS 64

static const struct sched_ageing strict;

struct world {
    struct sched_pool pool;
    struct sched_lane lanes[LANES];
    struct sched_flow flows[LANES];
    struct sched_job jobs[JOBS];
    int job_count;
};

static void world_begin(struct world *world)
{
    *world = (struct world){0};
    sched_pool_init(&world->pool);
}

static void world_end(struct world *world)
{
    while (sched_take(&world->pool, &strict, 0) != NULL)
        continue;
    for (int i = 0; i < LANES; i++) {
        sched_flow_done(&world->flows[i]);
        sched_lane_done(&world->lanes[i]);
    }
    sched_pool_done(&world->pool);
}

static void lane(struct world *world, int index, enum job_rank rank)
{
    sched_lane_init(&world->lanes[index], rank, (uint64_t)index);
    sched_flow_init(&world->flows[index], &world->lanes[index]);
}

static struct sched_job *push(struct world *world, int lane_index, uint64_t deadline_us)
{
    struct sched_job *job = &world->jobs[world->job_count];

    job->slot_count = 1;
    sched_push(&world->pool, &world->flows[lane_index], job, deadline_us,
               (uint64_t)world->job_count++);
    return job;
}

static struct sched_job *take(struct world *world, const struct sched_ageing *ageing,
                              uint64_t now_us)
{
    struct sched_job *first = sched_peek(&world->pool, ageing, now_us);
    struct sched_job *taken = sched_take(&world->pool, ageing, now_us);

    assert_ptr_equal(first, taken);
    return taken;
}

static void test_higher_ranks_go_first(void **state)
{
    struct sched_job *low, *high, *sync;
    struct world world;

    (void)state;
    world_begin(&world);
    lane(&world, 0, JOB_RANK_PRIORITY_2);
    lane(&world, 1, JOB_RANK_PRIORITY_0);
    lane(&world, 2, JOB_RANK_SYNC);
    low = push(&world, 0, 1);
    high = push(&world, 1, 100);
    sync = push(&world, 2, 200);
    assert_ptr_equal(take(&world, &strict, 0), sync);
    assert_ptr_equal(take(&world, &strict, 0), high);
    assert_ptr_equal(take(&world, &strict, 0), low);
    assert_null(take(&world, &strict, 0));
    world_end(&world);
}

static void test_deadline_then_arrival(void **state)
{
    struct sched_job *a, *b, *c;
    struct world world;

    (void)state;
    world_begin(&world);
    lane(&world, 0, JOB_RANK_PRIORITY_0);
    a = push(&world, 0, 50);
    b = push(&world, 0, 10);
    c = push(&world, 0, 50);
    assert_ptr_equal(take(&world, &strict, 0), b);
    assert_ptr_equal(take(&world, &strict, 0), a);
    assert_ptr_equal(take(&world, &strict, 0), c);
    world_end(&world);
}

/* A tenant whose jobs take ten times as long gets a tenth of the jobs, not of the time. */
static void test_tenants_share_slot_time(void **state)
{
    int taken[2] = {0, 0};
    struct world world;

    (void)state;
    world_begin(&world);
    lane(&world, 0, JOB_RANK_PRIORITY_0);
    lane(&world, 1, JOB_RANK_PRIORITY_0);
    for (int i = 0; i < 30; i++) {
        (void)push(&world, 0, 1);
        (void)push(&world, 1, 1);
    }
    for (int i = 0; i < 22; i++) {
        struct sched_job *job = take(&world, &strict, 0);
        int which = job->flow->lane == &world.lanes[1];

        taken[which]++;
        sched_settle(&world.pool, job, which == 0 ? 100000 : 1000000, false);
    }
    assert_in_range(taken[0], 18, 21);
    assert_in_range(taken[1], 1, 4);
    world_end(&world);
}

static void test_idleness_saves_nothing_up(void **state)
{
    struct world world;
    int own = 0;

    (void)state;
    world_begin(&world);
    lane(&world, 0, JOB_RANK_PRIORITY_0);
    lane(&world, 1, JOB_RANK_PRIORITY_0);
    for (int i = 0; i < 20; i++)
        (void)push(&world, 0, 1);
    for (int i = 0; i < 10; i++)
        sched_settle(&world.pool, take(&world, &strict, 0), 100000, true);
    for (int i = 0; i < 10; i++) /* lane 1 wakes up after lane 0 was served ten times */
        (void)push(&world, 1, 1);
    for (int i = 0; i < 10; i++)
        own += take(&world, &strict, 0)->flow->lane == &world.lanes[1];
    assert_in_range(own, 4, 6);
    world_end(&world);
}

static void test_ageing_is_a_share(void **state)
{
    struct sched_ageing ageing = {.percent = 10, .after_us = 1000};
    struct world world;
    int low = 0;

    (void)state;
    world_begin(&world);
    lane(&world, 0, JOB_RANK_PRIORITY_0);
    lane(&world, 1, JOB_RANK_PRIORITY_1);
    for (int i = 0; i < 40; i++)
        push(&world, 0, 1)->accepted_us = 5000;
    for (int i = 0; i < 20; i++)
        push(&world, 1, 1)->accepted_us = 0;
    for (int i = 0; i < 40; i++)
        low += take(&world, &ageing, 5500)->flow->lane == &world.lanes[1];
    assert_int_equal(low, 4);
    world_end(&world);
}

static void test_removed_jobs_are_never_taken(void **state)
{
    struct sched_job *a, *b;
    struct world world;

    (void)state;
    world_begin(&world);
    lane(&world, 0, JOB_RANK_PRIORITY_0);
    a = push(&world, 0, 1);
    b = push(&world, 0, 2);
    sched_remove(&world.pool, a);
    sched_remove(&world.pool, a);
    assert_int_equal(world.pool.waiting[JOB_RANK_PRIORITY_0], 1);
    assert_ptr_equal(take(&world, &strict, 0), b);
    assert_null(take(&world, &strict, 0));
    world_end(&world);
}

/* Parked: in nobody's way, and back in its place later. */
static void test_parked_ones_step_aside(void **state)
{
    struct sched_job *first, *second;
    struct world world;

    (void)state;
    world_begin(&world);
    lane(&world, 0, JOB_RANK_PRIORITY_0);
    lane(&world, 1, JOB_RANK_PRIORITY_0);
    first = push(&world, 0, 1);
    second = push(&world, 1, 2);
    sched_park_lane(&world.pool, &world.lanes[0], true);
    assert_ptr_equal(sched_peek(&world.pool, &strict, 0), second);
    sched_park_flow(&world.pool, &world.flows[1], true);
    assert_null(take(&world, &strict, 0));
    assert_false(sched_can(&world.pool));
    assert_int_equal(world.pool.waiting[JOB_RANK_PRIORITY_0], 2);
    (void)push(&world, 0, 3); /* what comes meanwhile stays aside, too */
    sched_remove(&world.pool, second);
    assert_null(take(&world, &strict, 0));
    sched_park_flow(&world.pool, &world.flows[1], false);
    assert_null(take(&world, &strict, 0));
    sched_park_lane(&world.pool, &world.lanes[0], false);
    assert_ptr_equal(take(&world, &strict, 0), first);
    world_end(&world);
}

/* Keys of one tenant: together they stand in the order of their jobs, and none blocks another. */
static void test_flows_of_a_lane_go_by_their_jobs(void **state)
{
    struct sched_job *a, *b, *c;
    struct world world;

    (void)state;
    world_begin(&world);
    lane(&world, 0, JOB_RANK_PRIORITY_0);
    sched_flow_init(&world.flows[1], &world.lanes[0]); /* another key of the same tenant */
    a = push(&world, 0, 30);
    b = push(&world, 1, 20);
    c = push(&world, 0, 10);
    assert_ptr_equal(take(&world, &strict, 0), c);
    sched_park_flow(&world.pool, &world.flows[1], true);
    assert_ptr_equal(take(&world, &strict, 0), a);
    sched_park_flow(&world.pool, &world.flows[1], false);
    assert_ptr_equal(take(&world, &strict, 0), b);
    world_end(&world);
}

/* The heap against the plain answer, with removals from the middle. */
static void test_heap_orders_and_removes(void **state)
{
    struct heap_node nodes[200] = {0};
    struct heap heap = {0};
    struct rng rng;
    uint64_t last = 0;
    size_t left = 0;

    (void)state;
    rng_seed(&rng, 7);
    for (size_t i = 0; i < COUNT_OF(nodes); i++)
        heap_push(&heap, &nodes[i], rng_below(&rng, 50), i);
    for (size_t i = 0; i < COUNT_OF(nodes); i += 3)
        heap_remove(&heap, &nodes[i]);
    for (size_t i = 1; i < COUNT_OF(nodes); i += 9)
        heap_move(&heap, &nodes[i], rng_below(&rng, 50));
    while (heap_first(&heap) != NULL) {
        struct heap_node *node = heap_first(&heap);

        assert_true(node->key >= last);
        last = node->key;
        heap_remove(&heap, node);
        left++;
    }
    assert_int_equal(left, 133);
    heap_done(&heap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_higher_ranks_go_first),
        cmocka_unit_test(test_deadline_then_arrival),
        cmocka_unit_test(test_tenants_share_slot_time),
        cmocka_unit_test(test_idleness_saves_nothing_up),
        cmocka_unit_test(test_ageing_is_a_share),
        cmocka_unit_test(test_removed_jobs_are_never_taken),
        cmocka_unit_test(test_parked_ones_step_aside),
        cmocka_unit_test(test_flows_of_a_lane_go_by_their_jobs),
        cmocka_unit_test(test_heap_orders_and_removes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
