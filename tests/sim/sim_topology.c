/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What people change while jobs run: shards are added, a deployment moves to another pool, a pool
 * goes to zero and comes back, programs are replaced by newer ones whose messages older ones do not
 * know.
 */

#include "tests/sim/sim.h"

#define CHANGES_US (8 * SEC) /* all of it within this time */

/* Shards are only added, and only new deployments use them. */
static void shards_are_added(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    if (sim->shards_open == sim->shard_count)
        return;
    sim_trace(sim, "shards: %d to %d", sim->shards_open, sim->shard_count);
    sim_hit(sim, FAULT_SHARDS_ADDED);
    sim->shards_open = sim->shard_count;
    group_look(sim, 0);
}

/* New jobs of the deployment go to another pool of its shard; those that wait stay where they are,
 * and are served there. */
static void deployment_moves(struct sim *sim, void *opaque, uint64_t number)
{
    int from = (int)sim_between(sim, 0, (uint64_t)sim->pool_count - 1);
    int to = (from + sim->shard_count) % sim->pool_count;

    (void)opaque;
    (void)number;
    if (from == to)
        return;
    sim_trace(sim, "the deployment of pool p%d moves to p%d", from, to);
    sim_hit(sim, FAULT_DEPLOYMENT_MOVED);
    for (int i = 0; i < sim->job_count; i++) {
        if (sim->jobs[i].pool == from && !sim->jobs[i].produced && sim->jobs[i].key < 0)
            sim->jobs[i].pool = to;
    }
}

static void pool_goes_to_zero(struct sim *sim, void *opaque, uint64_t number)
{
    int pool = (int)sim_between(sim, 0, (uint64_t)sim->pool_count - 1);
    uint64_t back_us = sim->now_us + sim_between(sim, 1 * SEC, 4 * SEC);

    (void)opaque;
    (void)number;
    sim_trace(sim, "pool p%d goes to zero", pool);
    sim_hit(sim, FAULT_POOL_ZERO);
    for (int i = 0; i < sim->worker_count; i++) {
        if (sim->workers[i].pool != pool)
            continue;
        sim->workers[i].away_until_us = back_us;
        worker_leave(sim, &sim->workers[i]);
    }
}

/* ---- a newer message version ---- */

static void broker_is_upgraded(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_broker *broker = opaque;

    (void)number;
    sim_trace(sim, "%s is replaced by a newer one", broker->process.name);
    broker->upgraded = true;
    if (broker->process.alive)
        broker_dies(sim, broker);
}

/* A gateway that is upgraded before its readers, against the rule: a shard that meets what it does
 * not know stands still, and skips nothing, until its broker is upgraded too. */
static void upgrade_begins(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    sim_trace(sim, "gateways speak a newer version");
    sim->newer_submits = true;
    for (int i = 0; i < SIM_BROKERS; i++)
        sim_post(sim, NULL, sim_between(sim, 100 * MS, 2 * SEC), broker_is_upgraded,
                 &sim->brokers[i], 0);
}

void topology_settle(struct sim *sim)
{
    for (int i = 0; i < SIM_BROKERS; i++)
        sim->brokers[i].upgraded = true;
    shards_are_added(sim, NULL, 0);
}

void topology_plan(struct sim *sim)
{
    if (sim->shards_open < sim->shard_count)
        sim_post(sim, NULL, sim_between(sim, 1 * SEC, CHANGES_US), shards_are_added, NULL, 0);
    if (sim->faults.deployment_moves)
        sim_post(sim, NULL, sim_between(sim, 1 * SEC, CHANGES_US), deployment_moves, NULL, 0);
    if (sim->faults.pool_zero)
        sim_post(sim, NULL, sim_between(sim, 1 * SEC, CHANGES_US), pool_goes_to_zero, NULL, 0);
    if (sim->faults.upgrade)
        sim_post(sim, NULL, sim_between(sim, 1 * SEC, CHANGES_US), upgrade_begins, NULL, 0);
}
