/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The consumer group of the brokers: Kafka gives each partition of `intake` to one live member.
 *
 * A member is out once its session has ended: it is dead, or it stands still for longer than its
 * session. Its shards go to the members with the fewest; when one has two more than another, a
 * shard is moved, which is a revoke (the old one may flush what it has), not a loss. The old one
 * hears of a loss late, and goes on until then. `outcome` is no part of this: it is assigned by
 * hand to whoever has the shard (PROTOCOL 16).
 */

#include "tests/sim/sim.h"

static int group_load(const struct sim *sim, int broker)
{
    int count = 0;

    for (int shard = 0; shard < sim->shards_open; shard++)
        count += sim->assigned[shard] == broker;
    return count;
}

/* The live member with the fewest shards; which of several is chance. -1: none lives. */
static int group_choose(struct sim *sim, int other_than)
{
    int first = (int)sim_between(sim, 0, SIM_BROKERS - 1), best = -1;

    for (int i = 0; i < SIM_BROKERS; i++) {
        int broker = (first + i) % SIM_BROKERS;

        if (broker == other_than || !process_runs(sim, &sim->brokers[broker].process))
            continue;
        if (best < 0 || group_load(sim, broker) < group_load(sim, best))
            best = broker;
    }
    return best;
}

void group_assign(struct sim *sim, int shard, int broker)
{
    for (int i = 0; i < SIM_BROKERS; i++) {
        if (i != broker && sim->brokers[i].seats[shard].assigned)
            seat_revoke(sim, &sim->brokers[i].seats[shard]);
    }
    sim->assigned[shard] = broker;
    seat_assign(sim, &sim->brokers[broker].seats[shard]);
}

/* One shard moves from the broker with the most to the one with the fewest. */
static void group_balance(struct sim *sim)
{
    int least = group_choose(sim, -1);

    for (int shard = 0; least >= 0 && shard < sim->shards_open; shard++) {
        if (group_load(sim, sim->assigned[shard]) < group_load(sim, least) + 2)
            continue;
        sim_hit(sim, FAULT_SHARD_MOVED);
        group_assign(sim, shard, least);
        return;
    }
}

static void group_looks(struct sim *sim, void *opaque, uint64_t number)
{
    bool again = false;

    (void)opaque;
    (void)number;
    for (int shard = 0; shard < sim->shards_open; shard++) {
        int broker = sim->assigned[shard];

        if (broker >= 0 && process_runs(sim, &sim->brokers[broker].process) &&
            sim->brokers[broker].seats[shard].assigned)
            continue;
        broker = group_choose(sim, broker);
        if (broker < 0)
            broker = group_choose(sim, -1);
        if (broker >= 0)
            group_assign(sim, shard, broker);
        else
            again = true;
    }
    group_balance(sim);
    if (again)
        group_look(sim, 200 * MS);
}

void group_look(struct sim *sim, uint64_t delay_us)
{
    sim_post(sim, NULL, delay_us, group_looks, NULL, 0);
}

void group_settle(struct sim *sim)
{
    for (int shard = 0; shard < sim->shards_open; shard++)
        group_assign(sim, shard, group_choose(sim, sim->assigned[shard]));
}
