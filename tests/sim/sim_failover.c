/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A standby takes the ledger over. A synchronous one has all that was committed; another one lags
 * by some milliseconds, and what it lacks is lost: rows, flushes, epochs, reservations, deliveries.
 *
 * What was told of a lost commit may then be told otherwise (docs/guarantees.md), so these jobs are
 * marked and excused from "for ever". What still holds: no accepted job is lost, since the floors
 * have gone back with the rows; no epoch is given out twice; no owner goes on as if nothing had
 * happened, since its next flush does not find the one before it.
 */

#include <string.h>

#include "tests/sim/sim.h"

struct standby {
    struct sim_ledger ledger; /* as it has it */
    struct sim_delivery deliveries[SIM_JOBS_MAX];
};

static void comes_up(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    if (!sim->ledger.up)
        ledger_come_up(sim);
}

static void goes_down(struct sim *sim)
{
    ledger_go_down(sim);
    sim_post(sim, NULL, sim_between(sim, 20 * MS, 1 * SEC), comes_up, NULL, 0);
}

static void rewind_job(struct sim *sim, int index, const struct sim_row *row)
{
    struct sim_job *job = &sim->jobs[index];
    struct sim_row *now = &sim->ledger.rows[index];
    uint32_t ended = !row->present ? 0 : job_state_final(row->state) ? row->round : row->round - 1;

    if (now->present == row->present && now->state == row->state && now->fence == row->fence &&
        now->token == row->token && now->state_us == row->state_us && now->round == row->round)
        return;
    *now = *row;
    job->rewound = true;
    job->verdict_true = job->verdict_false = job->seen_final = false;
    for (uint32_t i = ended; i < COUNT_OF(job->rounds); i++) {
        job->rounds[i].committed = (struct wire_bytes){0};
        job->rounds[i].told = false;
    }
}

static void rewind_shard(struct sim_shard *shard, const struct sim_shard *to)
{
    shard->epoch = to->epoch;
    shard->flush_count = to->flush_count;
    shard->newest = to->newest;
    shard->intake_floor = to->intake_floor;
    shard->outcome_floor = to->outcome_floor;
    shard->command_floor = to->command_floor;
}

static void takes_over(struct sim *sim, void *opaque, uint64_t number)
{
    const struct standby *standby = opaque;

    (void)number;
    if (sim->faults_over || !sim->ledger.up)
        return;
    sim_trace(sim, "a standby that lags takes the ledger over");
    sim_hit(sim, FAULT_FAILOVER_LOST);
    goes_down(sim);
    for (int i = 0; i < sim->job_count; i++) {
        if (sim->deliveries[i].present && (!standby->deliveries[i].present ||
                                           standby->deliveries[i].round < sim->deliveries[i].round))
            sim->jobs[i].rewound = true; /* its `completed` was read already */
        sim->deliveries[i] = standby->deliveries[i];
        rewind_job(sim, i, &standby->ledger.rows[i]);
    }
    for (int i = 0; i < sim->shard_count; i++)
        rewind_shard(&sim->ledger.shards[i], &standby->ledger.shards[i]);
    command_rewind(sim, &standby->ledger);
    for (int i = 0; i < sim->key_count; i++) {
        if (sim->ledger.keys[i].present && !standby->ledger.keys[i].present)
            sim->jobs[sim->ledger.keys[i].job].rewound = true;
        sim->ledger.keys[i] = standby->ledger.keys[i];
    }
}

void failover_begin(struct sim *sim, bool loses_commits)
{
    struct standby *standby;

    if (!sim->ledger.up)
        return;
    if (!loses_commits) {
        sim_trace(sim, "a standby takes the ledger over");
        sim_hit(sim, FAULT_FAILOVER);
        goes_down(sim);
        return;
    }
    standby = sim_alloc(sim, sizeof(*standby));
    standby->ledger = sim->ledger;
    memcpy(standby->deliveries, sim->deliveries, sizeof(sim->deliveries));
    sim_post(sim, NULL, sim_between(sim, 5 * MS, 400 * MS), takes_over, standby, 0);
}
