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
};

static const char *world_said(struct world *world)
{
    static const char *const words[] = {
        [AGENT_TODO_CLAIM] = "claim", [AGENT_TODO_FETCH] = "fetch", [AGENT_TODO_START] = "start",
        [AGENT_TODO_STOP] = "stop",   [AGENT_TODO_KILL] = "kill",   [AGENT_TODO_REPLICA] = "",
        [AGENT_TODO_GONE] = "gone",   [AGENT_TODO_EXIT] = "exit",
    };
    struct agent_todo todo;
    size_t size = 0;

    world->said[0] = '\0';
    while (agent_core_next_todo(world->core, &todo)) {
        const char *word = todo.type == AGENT_TODO_REPLICA ? todo.state : words[todo.type];
        const char *what = todo.type == AGENT_TODO_FETCH ? todo.deployment->digest : todo.worker;

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
    agent_core_on_adopted(world.core, "d-0", "d", 1, 7, 2);
    agent_core_on_adopted(world.core, "d-1", "d", 1, 8, 0);
    agent_core_on_adopted(world.core, "d-2", "d", 1, 9, 0);
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
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
