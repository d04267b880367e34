/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: the agent keeps what runs equal to what should run, tells owners of deaths, and gives up on
 * nothing but a first load that fails.
 * Method: a script of events drives the core; its to-dos come out as text and are compared. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "workers/agent_core.h"

struct world {
    struct agent_core *core;
    uint64_t now_ms;
    char said[1024];
    char reason[AGENT_REASON_SIZE], device[AGENT_DEVICE_SIZE]; /* of the last REPLICA */
};

static const char *world_said(struct world *world)
{
    static const char *const words[] = {
        [AGENT_TODO_CLAIM] = "claim", [AGENT_TODO_FETCH] = "fetch", [AGENT_TODO_START] = "start",
        [AGENT_TODO_SERVE] = "serve", [AGENT_TODO_STOP] = "stop",   [AGENT_TODO_KILL] = "kill",
        [AGENT_TODO_REPLICA] = "",    [AGENT_TODO_GONE] = "gone",   [AGENT_TODO_EXIT] = "exit",
        [AGENT_TODO_PROBE] = "probe",
    };
    struct agent_todo todo;
    size_t size = 0;

    world->said[0] = '\0';
    while (agent_core_next_todo(world->core, &todo)) {
        const char *word = todo.type == AGENT_TODO_REPLICA ? todo.state : words[todo.type];
        const char *what = todo.type == AGENT_TODO_FETCH   ? todo.deployment->digest
                           : todo.type == AGENT_TODO_PROBE ? todo.reason
                                                           : todo.worker;

        if (todo.type == AGENT_TODO_DEVICES)
            continue;
        if (todo.type == AGENT_TODO_REPLICA) {
            mem_copy_text(world->reason, todo.reason);
            mem_copy_text(world->device, todo.device);
        }
        size += (size_t)snprintf(world->said + size, sizeof(world->said) - size, "%s%s%s%s",
                                 size > 0 ? " " : "", word, what[0] != '\0' ? ":" : "", what);
        if (todo.type == AGENT_TODO_START && todo.folder[0] != '\0')
            size += (size_t)snprintf(world->said + size, sizeof(world->said) - size, "@%s",
                                     todo.folder);
        if (todo.type == AGENT_TODO_GONE)
            size += (size_t)snprintf(world->said + size, sizeof(world->said) - size, "/%u%s",
                                     (unsigned)todo.boot, todo.left ? "-left" : "");
    }
    return world->said;
}

#define SAYS(world, want) assert_string_equal(world_said(world), want)

static void world_open(struct world *world)
{
    *world = (struct world){.now_ms = 1000};
    world->core = agent_core_new(&agent_options_default);
    agent_core_tick(world->core, world->now_ms);
}

static void world_tick(struct world *world, uint64_t more_ms)
{
    world->now_ms += more_ms;
    agent_core_tick(world->core, world->now_ms);
}

/* One deployment "d" that wants so many workers; count 0 and no_row: there is none. */
static void want(struct world *world, uint32_t replicas, const char *digest, bool was_active)
{
    struct agent_deployment deployment = {.id = "d",
                                          .model = "m",
                                          .pool = "d",
                                          .engine = "sim",
                                          .device = "cpu",
                                          .config = xstrdup("{}"),
                                          .shard = 1,
                                          .slot_count = 1,
                                          .replicas_wanted = replicas,
                                          .was_active = was_active};

    mem_copy_text(deployment.digest, digest);
    agent_core_on_deployments(world->core, &deployment, 1);
}

static void want_nothing(struct world *world)
{
    struct agent_deployment none;

    agent_core_on_deployments(world->core, &none, 0);
}

/* Up to a worker that is ready, boot 7. */
static void world_ready(struct world *world)
{
    world_open(world);
    want(world, 1, "", false);
    SAYS(world, "claim:d-0");
    agent_core_on_claimed(world->core, "d-0", true);
    SAYS(world, "start:d-0 LOADING:d-0");
    agent_core_on_started(world->core, "d-0", true, false, "");
    agent_core_on_ready(world->core, "d-0", 7);
    SAYS(world, "READY:d-0");
}

static void test_starts_and_stops(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world);
    want(&world, 1, "", true);
    SAYS(&world, "");
    want_nothing(&world);
    SAYS(&world, "stop:d-0 DRAINING:d-0");
    want_nothing(&world);
    SAYS(&world, "");
    agent_core_on_ended(world.core, "d-0", 0, 0, "exited with code 0");
    SAYS(&world, "STOPPED:d-0"); /* it said Bye itself */
    agent_core_free(&world.core);
}

static void test_stop_that_is_not_obeyed(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world);
    want_nothing(&world);
    SAYS(&world, "stop:d-0 DRAINING:d-0");
    world_tick(&world, agent_options_default.stop_ms - 1);
    SAYS(&world, "");
    world_tick(&world, 1);
    SAYS(&world, "kill:d-0");
    world_tick(&world, 100000);
    SAYS(&world, "");
    agent_core_on_ended(world.core, "d-0", 0, 9, "killed");
    SAYS(&world, "gone:d-0/7-left STOPPED:d-0"); /* by us: no job of it is to blame */
    agent_core_free(&world.core);
}

/* It crashed on the way out: what it ran may have done that. */
static void test_a_crash_while_it_stops_is_one(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world);
    want_nothing(&world);
    SAYS(&world, "stop:d-0 DRAINING:d-0");
    agent_core_on_ended(world.core, "d-0", 0, 11, "killed");
    SAYS(&world, "gone:d-0/7 STOPPED:d-0");
    agent_core_free(&world.core);
}

static void test_crash_is_told_and_restarted(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world);
    for (uint64_t wait_ms = 200; wait_ms <= 1600; wait_ms *= 2) {
        agent_core_on_ended(world.core, "d-0", 0, 9, "killed");
        SAYS(&world, "gone:d-0/7 STARTING:d-0");
        world_tick(&world, wait_ms - 1);
        SAYS(&world, "");
        assert_int_equal(agent_core_due_ms(world.core), world.now_ms + 1);
        world_tick(&world, 1);
        SAYS(&world, "start:d-0 LOADING:d-0");
        agent_core_on_started(world.core, "d-0", true, false, "");
        agent_core_on_ready(world.core, "d-0", 7);
        SAYS(&world, "READY:d-0");
    }
    world_tick(&world, agent_options_default.steady_ms); /* it has proven itself */
    agent_core_on_ended(world.core, "d-0", 3, 0, "device fault");
    SAYS(&world, "gone:d-0/7-left STARTING:d-0");
    world_tick(&world, 200);
    SAYS(&world, "start:d-0 LOADING:d-0");
    agent_core_free(&world.core);
}

static void test_first_load_that_fails_is_final(void **state)
{
    static const struct {
        const char *what;
        bool was_active;
        int exit_code;
        const char *want;
    } rows[] = {
        {"first load", false, 2, "FAILED:d-0"},
        {"it has worked before", true, 2, "STARTING:d-0"},
        {"a crash while loading", false, 3, "STARTING:d-0"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct world world;

        world_open(&world);
        want(&world, 1, "", rows[i].was_active);
        agent_core_on_claimed(world.core, "d-0", true);
        agent_core_on_started(world.core, "d-0", true, false, "");
        SAYS(&world, "claim:d-0 start:d-0 LOADING:d-0");
        agent_core_on_ended(world.core, "d-0", rows[i].exit_code, 0, "no config.json");
        SAYS(&world, rows[i].want);
        world_tick(&world, 100000);
        SAYS(&world, rows[i].want[0] == 'F' ? "" : "start:d-0 LOADING:d-0");
        agent_core_free(&world.core);
    }
}

static void test_a_start_that_cannot_be(void **state)
{
    struct world world;

    (void)state;
    world_open(&world);
    want(&world, 2, "", false);
    SAYS(&world, "claim:d-0 claim:d-1");
    agent_core_on_claimed(world.core, "d-0", true);
    agent_core_on_claimed(world.core, "d-1", true);
    SAYS(&world, "start:d-0 LOADING:d-0 start:d-1 LOADING:d-1");
    agent_core_on_started(world.core, "d-1", false, false, "no processes left");
    SAYS(&world, "STARTING:d-1"); /* again, later */
    agent_core_on_started(world.core, "d-0", false, true, "a secret does not open");
    SAYS(&world, "STARTING:d-0 FAILED:d-0 FAILED:d-1");
    world_tick(&world, 100000);
    SAYS(&world, "");
    agent_core_free(&world.core);
    world_open(&world);
    want(&world, 1, "", true); /* it was active before: the fault may pass */
    SAYS(&world, "claim:d-0");
    agent_core_on_claimed(world.core, "d-0", true);
    SAYS(&world, "start:d-0 LOADING:d-0");
    agent_core_on_started(world.core, "d-0", false, true, "a secret does not open");
    SAYS(&world, "STARTING:d-0");
    agent_core_free(&world.core);
}

static void test_archive_first(void **state)
{
    struct world world;

    (void)state;
    world_open(&world);
    want(&world, 2, "abc", false);
    agent_core_on_claimed(world.core, "d-0", true);
    agent_core_on_claimed(world.core, "d-1", true);
    SAYS(&world, "claim:d-0 claim:d-1 fetch:abc"); /* once for both */
    agent_core_on_fetched(world.core, "abc", "/models/abc", false, "");
    SAYS(&world, "start:d-0@/models/abc LOADING:d-0 start:d-1@/models/abc LOADING:d-1");
    agent_core_free(&world.core);
}

static void test_archive_that_cannot_be_had(void **state)
{
    struct world world;

    (void)state;
    world_open(&world);
    want(&world, 1, "abc", false);
    agent_core_on_claimed(world.core, "d-0", true);
    agent_core_on_fetched(world.core, "abc", NULL, false, "blob store is away");
    SAYS(&world, "claim:d-0 fetch:abc STARTING:d-0");
    world_tick(&world, 200);
    SAYS(&world, "fetch:abc");
    agent_core_on_fetched(world.core, "abc", NULL, true, "its SHA-256 is wrong");
    SAYS(&world, "FAILED:d-0");
    agent_core_free(&world.core);
}

static void test_rows_of_other_agents(void **state)
{
    struct world world;

    (void)state;
    world_open(&world);
    want(&world, 1, "", false);
    agent_core_on_claimed(world.core, "d-0", false);
    SAYS(&world, "claim:d-0");
    want(&world, 1, "", false); /* asked again: the other one may have gone */
    SAYS(&world, "claim:d-0");
    want_nothing(&world);
    SAYS(&world, "");
    agent_core_on_claimed(world.core, "d-0", true); /* too late */
    SAYS(&world, "");
    agent_core_free(&world.core);
}

static void test_adopts_what_runs(void **state)
{
    struct world world;

    (void)state;
    world_open(&world);
    agent_core_on_adopted(world.core, "d-0", "d", "{}", "cpu", 1, 7, 2, false);
    agent_core_on_adopted(world.core, "d-1", "d", "{}", "cpu", 1, 8, 0, false);
    agent_core_on_adopted(world.core, "d-2", "d", "{}", "cpu", 1, 9, 0, false);
    agent_core_on_ended(world.core, "d-1", AGENT_EXIT_UNKNOWN, 0, "it ended while no agent ran");
    SAYS(&world, "gone:d-1/8 STARTING:d-1");
    want(&world, 2, "", true);
    SAYS(&world, "stop:d-2 DRAINING:d-2"); /* fewer are wanted by now */
    world_tick(&world, 200);
    SAYS(&world, "start:d-1 LOADING:d-1");
    agent_core_free(&world.core);
}

static void test_drain_waits_for_all(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world);
    want(&world, 2, "", true);
    agent_core_on_claimed(world.core, "d-1", true);
    SAYS(&world, "claim:d-1 start:d-1 LOADING:d-1");
    agent_core_drain(world.core);
    SAYS(&world, "stop:d-0 DRAINING:d-0");
    agent_core_on_started(world.core, "d-1", true, false, ""); /* it was on its way */
    SAYS(&world, "stop:d-1 DRAINING:d-1");
    want(&world, 2, "", true); /* nothing new is started */
    agent_core_on_ended(world.core, "d-0", 0, 0, "exited with code 0");
    SAYS(&world, "STOPPED:d-0");
    agent_core_on_ended(world.core, "d-1", 0, 0, "exited with code 0");
    SAYS(&world, "STOPPED:d-1 exit");
    agent_core_free(&world.core);
}

static void test_tells_again(void **state)
{
    struct world world;

    (void)state;
    world_ready(&world);
    agent_core_tell_again(world.core);
    SAYS(&world, "READY:d-0");
    agent_core_free(&world.core);
}

/* ---- devices ---- */

#define GIB ((uint64_t)1 << 30)

/* Two GPUs of 24 GiB, or the first `count` of them. */
static void world_gpus(struct world *world, size_t count)
{
    const struct device_info infos[] = {
        {.uuid = "GPU-a", .name = "NVIDIA A10G", .major = 8, .minor = 6, .total_size = 24 * GIB},
        {.uuid = "GPU-b",
         .name = "NVIDIA A10G",
         .index = 1,
         .major = 8,
         .minor = 6,
         .total_size = 24 * GIB}};

    agent_core_on_inventory(world->core, infos, count, "there is no driver");
}

static void deployment_of(struct agent_deployment *to, const char *id, const char *digest,
                          const char *resources, bool was_active)
{
    *to = (struct agent_deployment){.model = "m",
                                    .engine = "sim",
                                    .device = "cuda",
                                    .config = xasprintf("{\"resources\":{%s}}", resources),
                                    .shard = 1,
                                    .slot_count = 1,
                                    .replicas_wanted = 1,
                                    .was_active = was_active};
    mem_copy_text(to->id, id);
    mem_copy_text(to->pool, id);
    mem_copy_text(to->digest, digest);
}

static void want_gpu(struct world *world, const char *resources, bool was_active)
{
    struct agent_deployment deployment;

    deployment_of(&deployment, "d", "", resources, was_active);
    agent_core_on_deployments(world->core, &deployment, 1);
}

#define TWENTY "\"accelerator_memory\":\"20GiB\""

/* Up to a worker that is ready on GPU-a, boot 7. */
static void world_ready_on_gpu(struct world *world)
{
    world_open(world);
    world_gpus(world, 2);
    want_gpu(world, TWENTY, false);
    SAYS(world, "claim:d-0");
    agent_core_on_claimed(world->core, "d-0", true);
    SAYS(world, "start:d-0 LOADING:d-0");
    assert_string_equal(world->device, "cuda:GPU-a");
    agent_core_on_started(world->core, "d-0", true, false, "");
    agent_core_on_ready(world->core, "d-0", 7);
    SAYS(world, "READY:d-0");
}

/* No device will ever do, here or elsewhere: the first load has failed, with what was asked for. */
static void test_no_device_is_final(void **state)
{
    static const struct {
        size_t gpus;
        const char *resources, *why;
    } rows[] = {
        {0, TWENTY, "no device: needs a device with 20.0 GiB, and there is no driver"},
        {2, "\"accelerator\":\"H100\"",
         "no device: needs H100, and this machine has NVIDIA A10G (GPU 0)"},
        {2, "\"compute_capability\":\"9.0\"",
         "too old: needs compute capability 9.0, NVIDIA A10G (GPU-a) has 8.6"},
        {1, "\"accelerator_memory\":\"40GiB\"",
         "too small: needs 40.0 GiB, NVIDIA A10G (GPU-a) has 24.0 GiB free of 24.0 GiB"},
        {2, "\"accelerator\":\"A10G:x\"",
         "resources.accelerator is 'A10G:x'; it must be TYPE or TYPE:N with N of 1 to 16"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct world world;

        world_open(&world);
        world_gpus(&world, rows[i].gpus);
        want_gpu(&world, rows[i].resources, false);
        SAYS(&world, "claim:d-0");
        agent_core_on_claimed(world.core, "d-0", true);
        SAYS(&world, "FAILED:d-0"); /* nothing was fetched or started */
        assert_string_equal(world.reason, rows[i].why);
        want_gpu(&world, rows[i].resources, false);
        SAYS(&world, "");
        agent_core_free(&world.core);
    }
}

/* One that has worked before waits, and so does one for which there is no room now. */
static void test_waits_for_room(void **state)
{
    struct agent_deployment two[2];
    struct world world;

    (void)state;
    world_open(&world);
    world_gpus(&world, 1);
    for (int i = 0; i < 3; i++) { /* it says so once */
        deployment_of(&two[0], "d", "", TWENTY, false);
        deployment_of(&two[1], "e", "", TWENTY, false);
        agent_core_on_deployments(world.core, two, 2);
        if (i > 0) {
            world_tick(&world, 1000);
            SAYS(&world, "");
            continue;
        }
        SAYS(&world, "claim:d-0 claim:e-0");
        agent_core_on_claimed(world.core, "d-0", true);
        agent_core_on_claimed(world.core, "e-0", true);
        SAYS(&world, "start:d-0 LOADING:d-0 STARTING:e-0");
        assert_string_equal(
            world.reason,
            "too small: needs 20.0 GiB, NVIDIA A10G (GPU-a) has 4.0 GiB free of 24.0 GiB");
    }
    agent_core_on_started(world.core, "d-0", true, false, "");
    agent_core_on_ready(world.core, "d-0", 7);
    deployment_of(&two[0], "e", "", TWENTY, false);
    agent_core_on_deployments(world.core, two, 1);
    SAYS(&world, "READY:d-0 stop:d-0 DRAINING:d-0");
    agent_core_on_ended(world.core, "d-0", 0, 0, "");
    SAYS(&world, "STOPPED:d-0");
    world_tick(&world, 1000);
    SAYS(&world, "start:e-0 LOADING:e-0"); /* its room is free once it has ended */
    agent_core_free(&world.core);
}

/* Another machine's devices would do, ours will not: its agent is to have the row. */
static void test_leaves_it_to_others(void **state)
{
    struct agent_elsewhere there = {.host = "b",
                                    .info = {.name = "NVIDIA H100", .total_size = 80 * GIB},
                                    .free_size = 80 * GIB,
                                    .empty = true};
    struct world world;

    (void)state;
    world_open(&world);
    world_gpus(&world, 0);
    agent_core_on_elsewhere(world.core, &there, 1);
    want_gpu(&world, "\"accelerator\":\"H100\"", false);
    SAYS(&world, "");
    there.empty = false; /* full now, and ours never will do: it is theirs all the same */
    there.free_size = 0;
    agent_core_on_elsewhere(world.core, &there, 1);
    want_gpu(&world, "\"accelerator\":\"H100\"", false);
    SAYS(&world, "");
    want_gpu(&world, "\"accelerator\":\"H200\"", false);
    SAYS(&world, "claim:d-0"); /* nobody's: we say so */
    agent_core_free(&world.core);
    world_ready_on_gpu(&world); /* ours would do, and is taken: who has room now may have it */
    world_gpus(&world, 1);
    SAYS(&world, "");
    agent_core_free(&world.core);
}

/* A row that waits here is given up when there is room elsewhere. */
static void test_gives_up_what_waits(void **state)
{
    struct agent_elsewhere there = {.host = "b",
                                    .info = {.name = "NVIDIA A10G", .total_size = 24 * GIB},
                                    .free_size = 24 * GIB,
                                    .empty = true};
    struct world world;

    (void)state;
    world_open(&world);
    world_gpus(&world, 0);
    want_gpu(&world, TWENTY, true);
    SAYS(&world, "claim:d-0");
    agent_core_on_claimed(world.core, "d-0", true);
    SAYS(&world, "STARTING:d-0"); /* it has worked before: this may pass */
    agent_core_on_elsewhere(world.core, &there, 1);
    world_tick(&world, 1000);
    SAYS(&world, "STOPPED:d-0");
    want_gpu(&world, TWENTY, true);
    SAYS(&world, "");
    agent_core_free(&world.core);
}

/* An Xid that nothing survives: told to stop, told again to hand back at once, killed; its attempts
 * are nobody's fault, and the worker comes back on the other device. */
static void test_lost_device(void **state)
{
    struct world world;

    (void)state;
    world_ready_on_gpu(&world);
    agent_core_on_xid(world.core, "GPU-a", 79, "Xid 79: GPU has fallen off the bus");
    SAYS(&world, "stop:d-0 DRAINING:d-0");
    world_tick(&world, 1000);
    SAYS(&world, "stop:d-0");
    want_gpu(&world, TWENTY, true);
    world_tick(&world, 4000);
    SAYS(&world, "kill:d-0");
    agent_core_on_ended(world.core, "d-0", 0, 9, "killed");
    SAYS(&world, "gone:d-0/7-left STOPPED:d-0");
    want_gpu(&world, TWENTY, true);
    SAYS(&world, "claim:d-0");
    agent_core_on_claimed(world.core, "d-0", true);
    SAYS(&world, "start:d-0 LOADING:d-0");
    assert_string_equal(world.device, "cuda:GPU-b");
    world_tick(&world, 55000);
    SAYS(&world, "probe:GPU-a");
    agent_core_free(&world.core);
}

/* Three workers in a row lose their context there: the fourth is placed elsewhere. */
static void test_faults_move_it(void **state)
{
    struct world world;

    (void)state;
    world_ready_on_gpu(&world);
    for (int i = 0; i < 3; i++) {
        agent_core_on_worker_fault(world.core, "d-0", DEVICE_FAULT_CONTEXT, "its context is lost");
        if (i == 2) {
            SAYS(&world, "stop:d-0 DRAINING:d-0");
            break;
        }
        SAYS(&world, "");
        agent_core_on_ended(world.core, "d-0", 3, 0, "its context is lost");
        SAYS(&world, "gone:d-0/7-left STARTING:d-0");
        world_tick(&world, 30000);
        SAYS(&world, "start:d-0 LOADING:d-0");
        assert_string_equal(world.device, "cuda:GPU-a");
        agent_core_on_started(world.core, "d-0", true, false, "");
        agent_core_on_ready(world.core, "d-0", 7);
        SAYS(&world, "READY:d-0");
    }
    agent_core_on_ended(world.core, "d-0", 3, 0, "its context is lost");
    SAYS(&world, "gone:d-0/7-left STOPPED:d-0");
    want_gpu(&world, TWENTY, true);
    SAYS(&world, "claim:d-0");
    agent_core_on_claimed(world.core, "d-0", true);
    SAYS(&world, "start:d-0 LOADING:d-0");
    assert_string_equal(world.device, "cuda:GPU-b");
    agent_core_free(&world.core);
}

/* Its device goes out while its archive is fetched, or its process is being started. */
static void test_lost_before_it_runs(void **state)
{
    struct agent_deployment deployment;
    struct world world;

    (void)state;
    world_open(&world);
    world_gpus(&world, 2);
    deployment_of(&deployment, "d", "abc", TWENTY, false);
    agent_core_on_deployments(world.core, &deployment, 1);
    SAYS(&world, "claim:d-0");
    agent_core_on_claimed(world.core, "d-0", true);
    SAYS(&world, "fetch:abc");
    agent_core_on_xid(world.core, "GPU-a", 48, "Xid 48");
    SAYS(&world, "STARTING:d-0");
    agent_core_on_fetched(world.core, "abc", "/m", false, NULL);
    SAYS(&world, "");
    world_tick(&world, 1000);
    SAYS(&world, "start:d-0@/m LOADING:d-0");
    assert_string_equal(world.device, "cuda:GPU-b");
    agent_core_on_xid(world.core, "GPU-b", 48, "Xid 48");
    SAYS(&world, "");
    agent_core_on_started(world.core, "d-0", true, false, "");
    SAYS(&world, "stop:d-0 DRAINING:d-0");
    agent_core_free(&world.core);
}

/* What an adopted worker has is promised to it, and nobody else gets it. */
static void test_adopts_on_a_device(void **state)
{
    struct agent_deployment two[2];
    struct world world;

    (void)state;
    world_open(&world);
    world_gpus(&world, 1);
    agent_core_on_adopted(world.core, "d-0", "d", "{\"resources\":{" TWENTY "}}", "cuda:GPU-a", 1,
                          7, 0, false);
    deployment_of(&two[0], "d", "", TWENTY, true);
    deployment_of(&two[1], "e", "", TWENTY, false);
    agent_core_on_deployments(world.core, two, 2);
    SAYS(&world, "claim:e-0");
    agent_core_on_claimed(world.core, "e-0", true);
    SAYS(&world, "STARTING:e-0");
    agent_core_on_xid(world.core, "GPU-a", 79, "Xid 79");
    SAYS(&world, "stop:d-0 DRAINING:d-0");
    assert_string_equal(world.device, "cuda:GPU-a");
    agent_core_free(&world.core);
}

/* The driver has not answered since the start: who needs a GPU waits and says why, who does not is
 * started; with the first answer all are placed. */
static void test_silent_driver(void **state)
{
    struct agent_deployment two[2];
    struct world world;

    (void)state;
    world_open(&world);
    agent_core_on_silent(world.core, "the driver does not answer");
    deployment_of(&two[0], "d", "", TWENTY, false);
    deployment_of(&two[1], "e", "", TWENTY, false);
    mem_copy_text(two[1].device, "cpu");
    agent_core_on_deployments(world.core, two, 2);
    SAYS(&world, "claim:d-0 claim:e-0");
    agent_core_on_claimed(world.core, "e-0", true);
    SAYS(&world, "start:e-0 LOADING:e-0");
    agent_core_on_claimed(world.core, "d-0", true);
    SAYS(&world, "STARTING:d-0");
    assert_string_equal(world.reason, "no device now: needs a device with 20.0 GiB, and the driver "
                                      "does not answer");
    world_tick(&world, 1000);
    SAYS(&world, "");
    world_gpus(&world, 1);
    world_tick(&world, 1000);
    SAYS(&world, "start:d-0 LOADING:d-0");
    assert_string_equal(world.device, "cuda:GPU-a");
    agent_core_on_started(world.core, "d-0", true, false, "");
    agent_core_on_ready(world.core, "d-0", 7);
    SAYS(&world, "READY:d-0");
    agent_core_on_silent(world.core, "the driver does not answer");
    world_tick(&world, 100000);
    SAYS(&world, ""); /* who runs goes on */
    agent_core_free(&world.core);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_starts_and_stops),
        cmocka_unit_test(test_stop_that_is_not_obeyed),
        cmocka_unit_test(test_a_crash_while_it_stops_is_one),
        cmocka_unit_test(test_crash_is_told_and_restarted),
        cmocka_unit_test(test_first_load_that_fails_is_final),
        cmocka_unit_test(test_a_start_that_cannot_be),
        cmocka_unit_test(test_archive_first),
        cmocka_unit_test(test_archive_that_cannot_be_had),
        cmocka_unit_test(test_rows_of_other_agents),
        cmocka_unit_test(test_adopts_what_runs),
        cmocka_unit_test(test_drain_waits_for_all),
        cmocka_unit_test(test_tells_again),
        cmocka_unit_test(test_no_device_is_final),
        cmocka_unit_test(test_waits_for_room),
        cmocka_unit_test(test_leaves_it_to_others),
        cmocka_unit_test(test_gives_up_what_waits),
        cmocka_unit_test(test_lost_device),
        cmocka_unit_test(test_faults_move_it),
        cmocka_unit_test(test_lost_before_it_runs),
        cmocka_unit_test(test_adopts_on_a_device),
        cmocka_unit_test(test_silent_driver),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
