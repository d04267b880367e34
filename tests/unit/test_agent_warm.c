/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: of a deployment with spares as many workers serve as are wanted, the moment that one is
 * loaded; a spare is told to nobody, has its device to itself, and leaves it to who is to serve.
 * Method: scripts for the rules; then seeded worlds of two agents with devices, whose workers crash
 * and which are killed and come back. Replay one with HEADRACE_SEED.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/settings.h"
#include "workers/agent_core.h"

#define GIB ((uint64_t)1 << 30)

/* ---- scripts ---- */

struct world {
    struct agent_core *core;
    uint64_t now_ms;
    char said[1024], reason[AGENT_REASON_SIZE];
};

static const char *word_of(const struct agent_todo *todo)
{
    static const char *const words[] = {
        [AGENT_TODO_CLAIM] = "claim", [AGENT_TODO_START] = "start", [AGENT_TODO_SERVE] = "serve",
        [AGENT_TODO_STOP] = "stop",   [AGENT_TODO_KILL] = "kill",   [AGENT_TODO_GONE] = "gone",
        [AGENT_TODO_EXIT] = "exit",
    };

    if (todo->type == AGENT_TODO_REPLICA)
        return todo->state;
    return todo->type == AGENT_TODO_START && todo->warm ? "start-warm" : words[todo->type];
}

static const char *world_said(struct world *world)
{
    struct agent_todo todo;
    size_t size = 0;

    world->said[0] = '\0';
    while (agent_core_next_todo(world->core, &todo)) {
        if (todo.type == AGENT_TODO_DEVICES)
            continue;
        if (todo.type == AGENT_TODO_REPLICA)
            mem_copy_text(world->reason, todo.reason);
        size += (size_t)snprintf(world->said + size, sizeof(world->said) - size, "%s%s%s%s",
                                 size > 0 ? " " : "", word_of(&todo),
                                 todo.worker[0] != '\0' ? ":" : "", todo.worker);
    }
    return world->said;
}

#define SAYS(world, want) assert_string_equal(world_said(world), want)

static void world_open(struct world *world, size_t gpus, uint32_t warm_max)
{
    const struct device_info infos[] = {
        {.uuid = "GPU-a", .name = "NVIDIA A10G", .major = 8, .total_size = 24 * GIB},
        {.uuid = "GPU-b", .name = "NVIDIA A10G", .index = 1, .major = 8, .total_size = 24 * GIB}};
    struct agent_options options = agent_options_default;

    *world = (struct world){.now_ms = 1000};
    options.warm_max = warm_max;
    world->core = agent_core_new(&options);
    agent_core_tick(world->core, world->now_ms);
    agent_core_on_inventory(world->core, infos, gpus, "there is no driver");
}

static void world_tick(struct world *world, uint64_t more_ms)
{
    world->now_ms += more_ms;
    agent_core_tick(world->core, world->now_ms);
}

struct wish {
    const char *id;
    uint32_t gib; /* 0: on the CPU */
    uint32_t wanted, warm;
};

static char *wish_config(const struct wish *wish)
{
    return wish->gib == 0
               ? xstrdup("{}")
               : xasprintf("{\"resources\":{\"accelerator_memory\":\"%uGiB\"}}", wish->gib);
}

static void want(struct agent_core *core, const struct wish *wishes, size_t count)
{
    struct agent_deployment deployments[4];

    for (size_t i = 0; i < count; i++) {
        deployments[i] = (struct agent_deployment){.model = "m",
                                                   .engine = "sim",
                                                   .config = wish_config(&wishes[i]),
                                                   .slot_count = 1,
                                                   .replicas_wanted = wishes[i].wanted,
                                                   .replicas_warm = wishes[i].warm,
                                                   .was_active = true};
        mem_copy_text(deployments[i].id, wishes[i].id);
        mem_copy_text(deployments[i].pool, wishes[i].id);
        mem_copy_text(deployments[i].device, wishes[i].gib == 0 ? "cpu" : "cuda");
    }
    agent_core_on_deployments(core, deployments, count);
}

static void want_one(struct world *world, uint32_t wanted, uint32_t warm)
{
    const struct wish wish = {"d", 0, wanted, warm};

    want(world->core, &wish, 1);
}

/* It is ours and is started. */
static void begin(struct world *world, const char *worker)
{
    agent_core_on_claimed(world->core, worker, true);
    agent_core_on_started(world->core, worker, true, false, "");
}

static void end(struct world *world, const char *worker, int signal)
{
    agent_core_on_ended(world->core, worker, 0, signal, "");
}

/* d-0 serves, d-1 is a spare. */
static void world_pair(struct world *world)
{
    world_open(world, 0, 8);
    want_one(world, 1, 1);
    SAYS(world, "claim:d-0 claim:d-1");
    begin(world, "d-0");
    begin(world, "d-1");
    SAYS(world, "start-warm:d-0 LOADING:d-0 start-warm:d-1 LOADING:d-1");
    agent_core_on_warm(world->core, "d-0", 7);
    SAYS(world, "serve:d-0 READY:d-0");
    agent_core_on_ready(world->core, "d-0", 7);
    SAYS(world, "");
    agent_core_on_warm(world->core, "d-1", 8);
    SAYS(world, "WARM:d-1");
    want_one(world, 1, 1);
    SAYS(world, "");
}

/* The names say nothing: who is loaded first serves first. */
static void test_first_to_load_serves(void **state)
{
    struct world world;

    (void)state;
    world_open(&world, 0, 8);
    want_one(&world, 1, 1);
    begin(&world, "d-1");
    SAYS(&world, "claim:d-0 claim:d-1 start-warm:d-1 LOADING:d-1");
    begin(&world, "d-0");
    SAYS(&world, "start-warm:d-0 LOADING:d-0");
    agent_core_on_warm(world.core, "d-1", 8);
    SAYS(&world, "serve:d-1 READY:d-1");
    agent_core_on_warm(world.core, "d-0", 7);
    SAYS(&world, "WARM:d-0");
    agent_core_free(&world.core);
}

static void test_serves_when_one_is_lost(void **state)
{
    struct world world;

    (void)state;
    world_pair(&world);
    end(&world, "d-0", 9);
    SAYS(&world, "gone:d-0 STARTING:d-0 serve:d-1 READY:d-1");
    world_tick(&world, 200);
    SAYS(&world, "start-warm:d-0 LOADING:d-0");
    agent_core_on_started(world.core, "d-0", true, false, "");
    agent_core_on_warm(world.core, "d-0", 9);
    SAYS(&world, "WARM:d-0");
    end(&world, "d-0", 9); /* nobody knew of it: nobody is told */
    SAYS(&world, "STARTING:d-0");
    agent_core_free(&world.core);
}

static void test_serves_when_more_are_wanted(void **state)
{
    struct world world;

    (void)state;
    world_pair(&world);
    want_one(&world, 2, 1);
    SAYS(&world, "claim:d-2 serve:d-1 READY:d-1");
    begin(&world, "d-2");
    SAYS(&world, "start-warm:d-2 LOADING:d-2");
    agent_core_on_warm(world.core, "d-2", 9);
    SAYS(&world, "WARM:d-2");
    assert_int_equal(agent_core_stats(world.core).ready, 2);
    assert_int_equal(agent_core_stats(world.core).warm, 1);
    agent_core_free(&world.core);
}

/* Scaled to zero a spare stays, and the next wish finds it loaded. */
static void test_zero_and_back(void **state)
{
    struct world world;

    (void)state;
    world_pair(&world);
    want_one(&world, 0, 1);
    SAYS(&world, "stop:d-0 DRAINING:d-0 stop:d-1 DRAINING:d-1");
    end(&world, "d-0", 0);
    end(&world, "d-1", 0);
    SAYS(&world, "STOPPED:d-0 STOPPED:d-1");
    want_one(&world, 0, 1);
    begin(&world, "d-0");
    agent_core_on_warm(world.core, "d-0", 9);
    SAYS(&world, "claim:d-0 start-warm:d-0 LOADING:d-0 WARM:d-0");
    want_one(&world, 0, 1);
    SAYS(&world, "");
    assert_int_equal(agent_core_stats(world.core).ready, 0);
    want_one(&world, 1, 1);
    SAYS(&world, "claim:d-1 serve:d-0 READY:d-0");
    agent_core_free(&world.core);
}

/* What its process says of itself counts, not its row; and a drain ends all. */
static void test_adopts(void **state)
{
    struct world world;

    (void)state;
    world_open(&world, 0, 8);
    agent_core_on_adopted(world.core, "d-0", "d", "{}", "cpu", 1, 7, 0, true);
    agent_core_on_adopted(world.core, "d-1", "d", "{}", "cpu", 1, 8, 0, false);
    SAYS(&world, "WARM:d-0");
    want_one(&world, 1, 1);
    SAYS(&world, "");
    end(&world, "d-1", 9);
    SAYS(&world, "gone:d-1 STARTING:d-1 serve:d-0 READY:d-0");
    agent_core_drain(world.core);
    SAYS(&world, "stop:d-0 DRAINING:d-0 STOPPED:d-1");
    end(&world, "d-0", 0);
    SAYS(&world, "STOPPED:d-0 exit");
    agent_core_free(&world.core);
}

static void test_no_more_than_the_machine_may(void **state)
{
    const struct wish two[] = {{"d", 0, 0, 1}, {"e", 0, 0, 1}};
    struct world world;

    (void)state;
    world_open(&world, 0, 1);
    want(world.core, two, 2);
    SAYS(&world, "claim:d-0 claim:e-0");
    begin(&world, "d-0");
    agent_core_on_claimed(world.core, "e-0", true);
    SAYS(&world, "start-warm:d-0 LOADING:d-0 STOPPED:e-0");
    want(world.core, two, 2);
    SAYS(&world, ""); /* another machine may have it */
    agent_core_free(&world.core);
    world_open(&world, 0, 0);
    agent_core_on_adopted(world.core, "d-0", "d", "{}", "cpu", 1, 7, 0, true);
    want(world.core, two, 2);
    SAYS(&world, "WARM:d-0 stop:d-0 DRAINING:d-0");
    agent_core_free(&world.core);
}

/* Its room is another's as soon as that one is to serve; then it waits. */
static void test_leaves_its_room(void **state)
{
    const struct wish two[] = {{"d", 20, 0, 1}, {"e", 20, 1, 0}};
    struct world world;

    (void)state;
    world_open(&world, 1, 8);
    want(world.core, two, 1);
    begin(&world, "d-0");
    agent_core_on_warm(world.core, "d-0", 7);
    SAYS(&world, "claim:d-0 start-warm:d-0 LOADING:d-0 WARM:d-0");
    want(world.core, two, 2);
    SAYS(&world, "claim:e-0");
    agent_core_on_claimed(world.core, "e-0", true);
    SAYS(&world, "STARTING:e-0 stop:d-0 DRAINING:d-0");
    world_tick(&world, 1000); /* it asks again, and who goes is told once */
    SAYS(&world, "");
    end(&world, "d-0", 0);
    SAYS(&world, "STOPPED:d-0");
    want(world.core, two, 2);
    agent_core_on_claimed(world.core, "d-0", true);
    SAYS(&world, "claim:d-0 STARTING:d-0");
    assert_string_equal(world.reason, "its room is kept for a worker that is to serve");
    assert_true(agent_core_due_ms(world.core) <= world.now_ms);
    world_tick(&world, 0);
    SAYS(&world, "start:e-0 LOADING:e-0");
    world_tick(&world, 1000);
    SAYS(&world, "STARTING:d-0"); /* now it is the device that is full */
    agent_core_free(&world.core);
}

/* A spare does not drive out another, nor one that serves. */
static void test_takes_no_room_of_others(void **state)
{
    const struct wish wishes[] = {{"d", 20, 0, 1}, {"e", 20, 0, 1}, {"f", 20, 1, 0}};
    struct world world;

    (void)state;
    world_open(&world, 1, 8);
    want(world.core, wishes, 2);
    begin(&world, "d-0");
    agent_core_on_warm(world.core, "d-0", 7);
    SAYS(&world, "claim:d-0 claim:e-0 start-warm:d-0 LOADING:d-0 WARM:d-0");
    agent_core_on_claimed(world.core, "e-0", true);
    SAYS(&world, "STARTING:e-0");
    agent_core_free(&world.core);
    world_open(&world, 1, 8);
    want(world.core, &wishes[2], 1);
    begin(&world, "f-0");
    agent_core_on_ready(world.core, "f-0", 7);
    SAYS(&world, "claim:f-0 start:f-0 LOADING:f-0 READY:f-0");
    want(world.core, &wishes[1], 2);
    agent_core_on_claimed(world.core, "e-0", true);
    SAYS(&world, "claim:e-0 STARTING:e-0");
    agent_core_free(&world.core);
}

/* One device: the spare waits for it; when who serves crashes it gets it, and serves. */
static void test_one_device_for_both(void **state)
{
    const struct wish wish = {"d", 20, 1, 1};
    struct world world;

    (void)state;
    world_open(&world, 1, 8);
    want(world.core, &wish, 1);
    begin(&world, "d-0");
    agent_core_on_warm(world.core, "d-0", 7);
    SAYS(&world, "claim:d-0 claim:d-1 start-warm:d-0 LOADING:d-0 serve:d-0 READY:d-0");
    agent_core_on_claimed(world.core, "d-1", true);
    SAYS(&world, "STARTING:d-1");
    assert_string_equal(world.reason,
                        "taken: NVIDIA A10G (GPU-a) runs a worker of this deployment already");
    end(&world, "d-0", 9);
    SAYS(&world, "gone:d-0 STARTING:d-0");
    world_tick(&world, 0);
    SAYS(&world, "start-warm:d-1 LOADING:d-1");
    agent_core_on_started(world.core, "d-1", true, false, "");
    agent_core_on_warm(world.core, "d-1", 8);
    SAYS(&world, "serve:d-1 READY:d-1");
    world_tick(&world, 200);
    SAYS(&world, "STARTING:d-0");
    agent_core_free(&world.core);
}

/* A row is another agent's now: whoever serves for it here does so until that one is surely ready.
 */
static void test_a_row_that_went_away(void **state)
{
    struct world world;

    (void)state;
    world_open(&world, 0, 8);
    agent_core_on_adopted(world.core, "d-1", "d", "{}", "cpu", 1, 8, 0, false);
    want_one(&world, 1, 1);
    SAYS(&world, "claim:d-0");
    agent_core_on_claimed(world.core, "d-0", false);
    SAYS(&world, "");
    for (uint64_t i = 0; i < agent_options_default.steady_ms / 1000; i++) {
        world_tick(&world, 1000 - (i == 0));
        want_one(&world, 1, 1);
        SAYS(&world, "claim:d-0");
        agent_core_on_claimed(world.core, "d-0", false);
        SAYS(&world, "");
    }
    world_tick(&world, 1);
    SAYS(&world, "stop:d-1 DRAINING:d-1");
    agent_core_free(&world.core);
}

/* ---- seeded worlds ---- */

#define SIM_AGENTS 2
#define SIM_WISHES 3
#define SIM_ROWS 24
#define SIM_CLAIMS 256
#define SIM_STEPS 600
#define SIM_WARM_MAX 2

/* A row of `replica`, and the process that belongs to it. */
struct row {
    char worker[AGENT_NAME_SIZE], deployment[AGENT_NAME_SIZE], state[12];
    size_t host;
    bool stopped, alive, loaded, warm, serves, told;
    bool has_served; /* the process that ended last */
    uint64_t boot;
};

struct sim {
    uint64_t seed, now_ms, boots;
    struct rng rng;
    struct agent_core *agents[SIM_AGENTS];
    struct wish wishes[SIM_WISHES];
    struct row rows[SIM_ROWS];
    size_t row_count;
    struct {
        size_t agent;
        char worker[AGENT_NAME_SIZE];
    } claims[SIM_CLAIMS];
    size_t claim_count;
    uint64_t serves, crashes, kills, warms;
};

static struct sim totals;

#define SIM_CHECK(sim, fact)                                                                       \
    do {                                                                                           \
        if (!(fact))                                                                               \
            fail_msg("seed %" PRIu64 ": %s", (sim)->seed, #fact);                                  \
    } while (0)

static struct row *row_of(struct sim *sim, const char *worker)
{
    struct row *row;

    for (size_t i = 0; i < sim->row_count; i++) {
        if (strcmp(sim->rows[i].worker, worker) == 0)
            return &sim->rows[i];
    }
    SIM_CHECK(sim, sim->row_count < SIM_ROWS);
    row = &sim->rows[sim->row_count++];
    mem_copy_text(row->worker, worker);
    mem_copy_text(row->deployment, worker);
    *strrchr(row->deployment, '-') = '\0';
    row->stopped = true;
    return row;
}

static void sim_replica(struct sim *sim, const struct agent_todo *todo)
{
    struct row *row = row_of(sim, todo->worker);

    mem_copy_text(row->state, todo->state);
    row->stopped = strcmp(todo->state, "STOPPED") == 0;
    SIM_CHECK(sim, strcmp(todo->state, "WARM") != 0 || (row->alive && row->loaded && !row->serves));
    SIM_CHECK(sim, strcmp(todo->state, "READY") != 0 || (row->alive && row->serves));
}

static void sim_start(struct sim *sim, size_t agent, const struct agent_todo *todo)
{
    struct row *row = row_of(sim, todo->worker);

    SIM_CHECK(sim, row->host == agent && !row->alive);
    row->alive = true;
    row->warm = todo->warm;
    row->loaded = row->serves = row->told = false;
    row->boot = ++sim->boots;
    agent_core_on_started(sim->agents[agent], todo->worker, true, false, "");
}

static void sim_serve(struct sim *sim, const struct agent_todo *todo)
{
    struct row *row = row_of(sim, todo->worker);

    SIM_CHECK(sim, row->alive && row->warm && row->loaded && !row->serves && !row->told);
    row->serves = true;
    sim->serves++;
}

/* What is promised of a device is never more than it has. */
static void sim_check_devices(struct sim *sim, size_t agent)
{
    const struct devices *devices = agent_core_devices(sim->agents[agent]);
    struct device_view view;

    for (size_t i = 0; devices_view(devices, i, &view); i++)
        SIM_CHECK(sim, view.reserved_size <= view.info->total_size);
}

static void sim_act(struct sim *sim, size_t agent)
{
    struct agent_todo todo;

    while (agent_core_next_todo(sim->agents[agent], &todo)) {
        switch (todo.type) {
        case AGENT_TODO_CLAIM:
            SIM_CHECK(sim, sim->claim_count < SIM_CLAIMS);
            sim->claims[sim->claim_count].agent = agent;
            mem_copy_text(sim->claims[sim->claim_count++].worker, todo.worker);
            break;
        case AGENT_TODO_START:
            sim_start(sim, agent, &todo);
            break;
        case AGENT_TODO_SERVE:
            sim_serve(sim, &todo);
            break;
        case AGENT_TODO_STOP:
        case AGENT_TODO_KILL:
            row_of(sim, todo.worker)->told = true;
            break;
        case AGENT_TODO_REPLICA:
            sim_replica(sim, &todo);
            break;
        case AGENT_TODO_GONE:
            SIM_CHECK(sim, row_of(sim, todo.worker)->has_served);
            break;
        default:
            break;
        }
    }
    sim_check_devices(sim, agent);
}

static void sim_answer(struct sim *sim)
{
    size_t agent = sim->claims[0].agent;
    char worker[AGENT_NAME_SIZE];
    struct row *row;
    bool ours;

    if (sim->claim_count == 0)
        return;
    mem_copy_text(worker, sim->claims[0].worker);
    memmove(&sim->claims[0], &sim->claims[1], --sim->claim_count * sizeof(sim->claims[0]));
    row = row_of(sim, worker);
    ours = row->stopped || row->host == agent;
    if (ours) {
        row->host = agent;
        row->stopped = false;
    }
    agent_core_on_claimed(sim->agents[agent], worker, ours);
    sim_act(sim, agent);
}

static void sim_load(struct sim *sim, struct row *row)
{
    if (!row->alive || row->loaded)
        return;
    row->loaded = true;
    row->serves = !row->warm;
    sim->warms += row->warm;
    if (row->warm)
        agent_core_on_warm(sim->agents[row->host], row->worker, row->boot);
    else
        agent_core_on_ready(sim->agents[row->host], row->worker, row->boot);
    sim_act(sim, row->host);
}

static void sim_end(struct sim *sim, struct row *row, int signal)
{
    if (!row->alive)
        return;
    row->alive = false;
    row->has_served = row->serves;
    row->serves = false;
    agent_core_on_ended(sim->agents[row->host], row->worker, 0, signal, "");
    sim_act(sim, row->host);
}

static void sim_agent_new(struct sim *sim, size_t agent)
{
    const struct device_info infos[] = {
        {.uuid = "GPU-a", .name = "NVIDIA A10G", .major = 8, .total_size = 24 * GIB},
        {.uuid = "GPU-b", .name = "NVIDIA A10G", .index = 1, .major = 8, .total_size = 24 * GIB}};
    struct agent_options options = agent_options_default;

    options.warm_max = SIM_WARM_MAX;
    sim->agents[agent] = agent_core_new(&options);
    agent_core_tick(sim->agents[agent], sim->now_ms);
    agent_core_on_inventory(sim->agents[agent], infos, 2, "");
}

/* kill -9 of an agent; the next one finds what runs, and where it is. */
static char *wish_of(const struct sim *sim, const char *deployment)
{
    for (size_t i = 0; i < SIM_WISHES; i++) {
        if (strcmp(sim->wishes[i].id, deployment) == 0)
            return wish_config(&sim->wishes[i]);
    }
    return xstrdup("{}");
}

static void sim_kill(struct sim *sim, size_t agent)
{
    char devices[SIM_ROWS][AGENT_DEVICE_SIZE];
    size_t left = 0;

    for (size_t i = 0; i < sim->row_count; i++) {
        struct device_placement placement;
        bool placed = agent_core_placement(sim->agents[agent], sim->rows[i].worker, &placement);

        (void)snprintf(devices[i], AGENT_DEVICE_SIZE, placed ? "cuda:%s" : "cpu",
                       placed ? placement.uuids[0] : "");
    }
    for (size_t i = 0; i < sim->claim_count; i++) {
        if (sim->claims[i].agent != agent)
            sim->claims[left++] = sim->claims[i];
    }
    sim->claim_count = left;
    agent_core_free(&sim->agents[agent]);
    sim_agent_new(sim, agent);
    sim->kills++;
    for (size_t i = 0; i < sim->row_count; i++) {
        struct row *row = &sim->rows[i];
        bool adopts = row->alive && row->loaded && !row->told; /* else its row says DRAINING */
        char *config;

        if (row->host != agent || row->stopped)
            continue;
        config = wish_of(sim, row->deployment);
        agent_core_on_adopted(sim->agents[agent], row->worker, row->deployment, config,
                              adopts ? devices[i] : "", 0, adopts ? row->boot : 0, 0,
                              adopts && row->warm && !row->serves);
        free(config);
        row->has_served |= !adopts;
        row->told = row->told && adopts;
        row->alive = adopts;
        if (!adopts)
            agent_core_on_ended(sim->agents[agent], row->worker, AGENT_EXIT_UNKNOWN, 0, "");
    }
    sim_act(sim, agent);
}

static void sim_read(struct sim *sim, size_t agent)
{
    agent_core_tick(sim->agents[agent], sim->now_ms);
    want(sim->agents[agent], sim->wishes, SIM_WISHES);
    sim_act(sim, agent);
}

static void sim_wish(struct sim *sim)
{
    struct wish *wish = &sim->wishes[rng_below(&sim->rng, SIM_WISHES)];

    wish->wanted = (uint32_t)rng_below(&sim->rng, wish->gib == 0 ? 4 : 2);
    wish->warm = (uint32_t)rng_below(&sim->rng, 3);
}

static void sim_step(struct sim *sim)
{
    struct row *row = &sim->rows[rng_below(&sim->rng, sim->row_count + 1) % SIM_ROWS];
    size_t agent = (size_t)rng_below(&sim->rng, SIM_AGENTS);

    switch (rng_below(&sim->rng, 12)) {
    case 0:
        if (rng_below(&sim->rng, 4) == 0)
            sim_wish(sim);
        break;
    case 1:
        sim->crashes += row->alive;
        sim_end(sim, row, 9);
        break;
    case 2:
        if (rng_below(&sim->rng, 8) == 0)
            sim_kill(sim, agent);
        break;
    case 3:
    case 4:
        sim->now_ms += rng_below(&sim->rng, 3000);
        agent_core_tick(sim->agents[agent], sim->now_ms);
        sim_act(sim, agent);
        break;
    case 5:
    case 6:
        sim_read(sim, agent);
        break;
    case 7:
        if (row->told)
            sim_end(sim, row, 0);
        break;
    case 8:
    case 9:
        sim_load(sim, row);
        break;
    default:
        sim_answer(sim);
    }
}

/* Left alone, what is wanted serves, and no spare is one too many. */
static void sim_calm(struct sim *sim)
{
    uint32_t spares[SIM_AGENTS] = {0};

    for (uint32_t turn = 0; turn < 200; turn++) {
        sim->now_ms += 1000;
        for (size_t agent = 0; agent < SIM_AGENTS; agent++)
            sim_read(sim, agent);
        while (sim->claim_count > 0)
            sim_answer(sim);
        for (size_t i = 0; i < sim->row_count; i++) {
            sim_load(sim, &sim->rows[i]);
            if (sim->rows[i].told)
                sim_end(sim, &sim->rows[i], 0);
        }
    }
    for (size_t i = 0; i < SIM_WISHES; i++) {
        uint32_t serving = 0, warm = 0;

        for (size_t j = 0; j < sim->row_count; j++) {
            const struct row *row = &sim->rows[j];

            if (strcmp(row->deployment, sim->wishes[i].id) != 0 || !row->alive)
                continue;
            serving += row->serves;
            warm += !row->serves;
            spares[row->host] += !row->serves;
            SIM_CHECK(sim, strcmp(row->state, row->serves ? "READY" : "WARM") == 0);
        }
        SIM_CHECK(sim, serving == sim->wishes[i].wanted);
        SIM_CHECK(sim, warm <= sim->wishes[i].warm);
    }
    for (size_t agent = 0; agent < SIM_AGENTS; agent++)
        SIM_CHECK(sim, spares[agent] <= SIM_WARM_MAX);
}

static void sim_run(uint64_t seed)
{
    struct sim sim = {
        .seed = seed, .now_ms = 1, .wishes = {{"c", 0, 1, 1}, {"g", 10, 1, 1}, {"h", 20, 0, 1}}};

    rng_seed(&sim.rng, seed);
    for (size_t i = 0; i < SIM_AGENTS; i++)
        sim_agent_new(&sim, i);
    for (uint32_t i = 0; i < SIM_STEPS; i++)
        sim_step(&sim);
    sim_calm(&sim);
    for (size_t i = 0; i < SIM_AGENTS; i++)
        agent_core_free(&sim.agents[i]);
    totals.serves += sim.serves;
    totals.crashes += sim.crashes;
    totals.kills += sim.kills;
    totals.warms += sim.warms;
}

static void test_seeds(void **state)
{
    const char *seed = getenv("HEADRACE_SEED");

    (void)state;
    if (seed != NULL) {
        int64_t number;
        struct err err;

        assert_int_equal(settings_parse_int("HEADRACE_SEED", seed, &number, &err), 0);
        sim_run((uint64_t)number);
        return;
    }
    for (uint64_t i = 1; i <= 50; i++)
        sim_run(i);
    (void)printf("%" PRIu64 " loads, %" PRIu64 " told to serve, %" PRIu64 " crashes, %" PRIu64
                 " kills of agents\n",
                 totals.warms, totals.serves, totals.crashes, totals.kills);
    assert_true(totals.serves > 300 && totals.warms > totals.serves && totals.crashes > 500 &&
                totals.kills > 150);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_to_load_serves),
        cmocka_unit_test(test_serves_when_one_is_lost),
        cmocka_unit_test(test_serves_when_more_are_wanted),
        cmocka_unit_test(test_zero_and_back),
        cmocka_unit_test(test_adopts),
        cmocka_unit_test(test_no_more_than_the_machine_may),
        cmocka_unit_test(test_leaves_its_room),
        cmocka_unit_test(test_takes_no_room_of_others),
        cmocka_unit_test(test_one_device_for_both),
        cmocka_unit_test(test_a_row_that_went_away),
        cmocka_unit_test(test_seeds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
