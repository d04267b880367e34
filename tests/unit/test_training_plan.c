/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: who waits gets what is free in the right order, all nodes or none; who makes room has a
 * lower priority and is as few as will do; what is silent too long is buried.
 * Method: a plan is written down as text, one action a word, and compared.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/rng.h"
#include "workers/training_plan.h"

#define TRAINERS_MAX 4
#define JOBS_MAX 8
#define GIB ((uint64_t)1 << 30)

struct world {
    struct training_trainer trainers[TRAINERS_MAX];
    struct training_waiting waiting[JOBS_MAX];
    struct training_running running[JOBS_MAX];
    struct training_node nodes[JOBS_MAX * TRAINERS_MAX];
    struct training_facts facts;
    uint64_t clock_us;
};

static void world_trainer(struct world *world, uint32_t gpus, uint32_t cpus)
{
    world->trainers[world->facts.trainer_count++] = (struct training_trainer){
        .has = {gpus, cpus, 64 * GIB}, .accelerator = gpus > 0 ? "H100" : ""};
}

static struct training_waiting *world_wait(struct world *world, int64_t priority, uint32_t nodes,
                                           uint32_t gpus, uint32_t cpus)
{
    struct training_waiting *job = &world->waiting[world->facts.waiting_count++];

    *job = (struct training_waiting){.need = {gpus, cpus, GIB},
                                     .accelerator = gpus > 0 ? "H100" : "",
                                     .tenant = "t",
                                     .node_count = nodes,
                                     .priority = priority,
                                     .created_us = ++world->clock_us};
    return job;
}

/* On so many trainers from one on. */
static struct training_running *world_run(struct world *world, int64_t priority, size_t from,
                                          size_t count, uint32_t gpus, uint32_t cpus)
{
    size_t at = world->facts.running_count++;

    world->running[at] = (struct training_running){.need = {gpus, cpus, GIB},
                                                   .tenant = "t",
                                                   .priority = priority,
                                                   .created_us = ++world->clock_us};
    for (size_t i = 0; i < count; i++)
        world->nodes[world->facts.node_count++] = (struct training_node){at, from + i};
    return &world->running[at];
}

static void world_plan(struct world *world, struct training_plan *ret_plan)
{
    world->facts.trainers = world->trainers;
    world->facts.waiting = world->waiting;
    world->facts.running = world->running;
    world->facts.nodes = world->nodes;
    world->facts.lease_ms = 6000;
    world->facts.late_ms = 3000;
    training_plan_make(&world->facts, ret_plan);
}

/* "0@1,2": waiting job 0 on trainers 1 and 2; "!3>0": running job 3 is to end for waiting job 0;
 * "-2": trainer 2 is gone. */
static void expect(struct world *world, const char *wanted)
{
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(4096);
    struct training_plan plan;

    world_plan(world, &plan);
    for (size_t i = 0; i < plan.count; i++) {
        const struct training_action *action = &plan.actions[i];

        buf_printf(&text, "%s", i == 0 ? "" : " ");
        if (action->type == TRAINING_PREEMPT)
            buf_printf(&text, "!%zu>%zu", action->job, action->by);
        else
            buf_printf(&text, action->type == TRAINING_BURY ? "-%zu" : "%zu", action->job);
        for (size_t r = 0; r < action->trainer_count; r++)
            buf_printf(&text, "%s%u", r == 0 ? "@" : ",", action->trainers[r]);
    }
    assert_string_equal(buf_text(&text), wanted);
    training_plan_done(&plan);
}

static void test_order(void **state)
{
    struct world world = {0};

    (void)state;
    expect(&world, "");
    world_trainer(&world, 0, 4);
    world_wait(&world, 0, 1, 0, 2);
    world_wait(&world, 0, 1, 0, 2);
    world_wait(&world, 0, 1, 0, 2);
    world_wait(&world, 7, 1, 0, 2);
    expect(&world, "3@0 0@0"); /* the priority, then the oldest */
    world.waiting[0].priority = INT64_MIN;
    world.waiting[2].priority = INT64_MAX;
    expect(&world, "2@0 3@0");
}

static void test_tenants_share_a_priority(void **state)
{
    struct world world = {0};

    (void)state;
    world_trainer(&world, 0, 4);
    world_wait(&world, 0, 1, 0, 1);
    world_wait(&world, 0, 1, 0, 1);
    world_wait(&world, 0, 1, 0, 1);
    world_wait(&world, 0, 1, 0, 1)->tenant = "u";
    world_run(&world, 0, 0, 1, 0, 1);
    expect(&world, "3@0 0@0 1@0"); /* t has one already; then both have one */
}

static void test_fits(void **state)
{
    struct world world = {0};

    (void)state;
    world_trainer(&world, 8, 32);
    world_trainer(&world, 0, 8);
    world_trainer(&world, 2, 16);
    world_wait(&world, 0, 1, 0, 4);
    expect(&world, "0@1"); /* no GPU is wasted on it */
    world_wait(&world, 0, 1, 2, 4);
    expect(&world, "0@1 1@2"); /* the tightest */
    world.waiting[1].accelerator = "A100";
    expect(&world, "0@1");
    world.waiting[0].need.memory_size = 65 * GIB;
    expect(&world, "");
}

static void test_gang_all_or_nothing(void **state)
{
    struct world world = {0};

    (void)state;
    world_trainer(&world, 0, 4);
    world_trainer(&world, 0, 4);
    world_wait(&world, 0, 2, 0, 3);
    world_wait(&world, 0, 1, 0, 2);
    expect(&world, "0@0,1"); /* each node on another trainer; the second waits */
    world_run(&world, 0, 1, 1, 0, 2);
    expect(&world, ""); /* it waits for one, and the other is kept for it */
    world.waiting[0].node_count = 3;
    expect(&world, "1@1"); /* it can never run here: it is in nobody's way */
}

static void test_preemption(void **state)
{
    struct world world = {0};

    (void)state;
    world_trainer(&world, 0, 4);
    world_run(&world, 2, 0, 1, 0, 1);
    world_run(&world, 1, 0, 1, 0, 1);
    world_run(&world, 1, 0, 1, 0, 1);
    world_run(&world, 5, 0, 1, 0, 1);
    world_wait(&world, 1, 1, 0, 1);
    expect(&world, ""); /* not for its own level */
    world.waiting[0].priority = 3;
    expect(&world, "!2>0"); /* the lowest, of these the youngest */
    world.waiting[0].need.cpu_count = 3;
    expect(&world, "!0>0 !1>0 !2>0");
    world.waiting[0].need.cpu_count = 4;
    expect(&world, ""); /* it would not help */
    world.waiting[0].need.cpu_count = 1;
    world.running[2].ending = true;
    expect(&world, ""); /* it comes free already */
    world_wait(&world, 0, 1, 0, 1);
    world.running[1].ending = true;
    world.facts.node_count = 3; /* one has ended: room for the first, which keeps all of it */
    expect(&world, "0@0");
}

static void test_preemption_takes_no_more_than_it_needs(void **state)
{
    struct world world = {0};

    (void)state;
    world_trainer(&world, 0, 4);
    world_trainer(&world, 0, 8);
    world_run(&world, 0, 1, 1, 0, 4);
    world_run(&world, 1, 0, 1, 0, 4);
    world_run(&world, 0, 1, 1, 0, 4);
    world_wait(&world, 9, 1, 0, 8);
    expect(&world, "!0>0 !2>0");
    world.waiting[0].need.cpu_count = 4;
    expect(&world, "!2>0");
}

static void test_trainers_that_are_away(void **state)
{
    struct world world = {0};

    (void)state;
    world_trainer(&world, 0, 4);
    world_trainer(&world, 0, 4);
    world_wait(&world, 0, 1, 0, 1);
    world.trainers[0].silent_ms = 3001;
    expect(&world, "0@1");
    world.trainers[1].draining = true;
    expect(&world, "");
    world.trainers[0].silent_ms = 6001;
    expect(&world, ""); /* perhaps it is we who hear nothing */
    world.facts.may_bury = true;
    expect(&world, "-0");
}

/* Whatever is asked for: nothing is given twice, and no job makes room for its own level. */
static void test_no_trainer_is_overfull(void **state)
{
    struct rng rng;

    (void)state;
    rng_seed(&rng, 7);
    for (int round = 0; round < 2000; round++) {
        struct training_need used[TRAINERS_MAX] = {0};
        struct world world = {0};
        struct training_plan plan;

        for (uint64_t i = rng_below(&rng, TRAINERS_MAX) + 1; i > 0; i--)
            world_trainer(&world, (uint32_t)rng_below(&rng, 3), (uint32_t)rng_below(&rng, 9));
        for (uint64_t i = rng_below(&rng, JOBS_MAX); i > 0; i--)
            world_wait(&world, (int64_t)rng_below(&rng, 3), 1 + (uint32_t)rng_below(&rng, 3),
                       (uint32_t)rng_below(&rng, 2), (uint32_t)rng_below(&rng, 5));
        for (uint64_t i = rng_below(&rng, 3); i > 0; i--)
            world_run(&world, (int64_t)rng_below(&rng, 3),
                      rng_below(&rng, world.facts.trainer_count), 1, 0, 1);
        world_plan(&world, &plan);
        for (size_t i = 0; i < world.facts.node_count; i++)
            used[world.nodes[i].trainer].cpu_count++;
        for (size_t i = 0; i < plan.count; i++) {
            const struct training_action *action = &plan.actions[i];

            for (size_t r = 0; r < action->trainer_count; r++) {
                used[action->trainers[r]].cpu_count += world.waiting[action->job].need.cpu_count;
                used[action->trainers[r]].gpu_count += world.waiting[action->job].need.gpu_count;
            }
            if (action->type == TRAINING_PREEMPT)
                assert_true(world.running[action->job].priority <
                            world.waiting[action->by].priority);
            if (action->type == TRAINING_PLACE)
                assert_int_equal(action->trainer_count, world.waiting[action->job].node_count);
        }
        for (size_t i = 0; i < world.facts.trainer_count; i++) {
            bool had = world.trainers[i].has.cpu_count >= 3; /* room for what runs in any case */

            assert_true(!had || used[i].cpu_count <= world.trainers[i].has.cpu_count);
            assert_true(used[i].gpu_count <= world.trainers[i].has.gpu_count);
        }
        training_plan_done(&plan);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_tenants_share_a_priority),
        cmocka_unit_test(test_fits),
        cmocka_unit_test(test_gang_all_or_nothing),
        cmocka_unit_test(test_preemption),
        cmocka_unit_test(test_preemption_takes_no_more_than_it_needs),
        cmocka_unit_test(test_trainers_that_are_away),
        cmocka_unit_test(test_no_trainer_is_overfull),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
