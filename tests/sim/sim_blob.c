/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The blob store and what collects from it, by the rules of brokers/blob_care.h. An input lies
 * under day/id, a result under day/id/token. The input of a job that has succeeded goes after a
 * while; that of any other stays as long as there is a row, since a replay may need it. Without a
 * row it goes when its day is over and every shard has read and written its intake far beyond it;
 * never because the row is missing alone, since that of an accepted job may still be on its way
 * (PROTOCOL 26). Worlds are too short for a day's rows to be dropped: what is collected without a
 * row never had one.
 */

#include <stdio.h>

#include "schema/job_id.h"
#include "tests/sim/sim.h"

#define DAY_US (2 * SEC)
#define KEEP_US (12 * SEC) /* from the end of a day */
#define INPUT_KEEP_US (3 * SEC)
#define LOOK_US (500 * MS)

static uint64_t day_of(const struct sim_job *job)
{
    return job_id_time_ms(&job->id) * MS / DAY_US;
}

void blob_put_input(struct sim *sim, int index)
{
    sim->jobs[index].blob_there = true;
    sim->jobs[index].blob_put_us = sim->now_us;
}

static void blob_delete(struct sim *sim, int index)
{
    check_blob_delete(sim, index);
    sim->jobs[index].blob_there = false;
}

/* As blob_days_over() has it. */
static bool day_is_over(const struct sim *sim, uint64_t day)
{
    if ((day + 1) * DAY_US + KEEP_US > sim->now_us)
        return false;
    for (int i = 0; i < sim->shards_open; i++) {
        const struct sim_flush *newest = sim->ledger.shards[i].newest;

        if (newest == NULL || newest->floor_us < (day + 2) * DAY_US)
            return false;
    }
    return true;
}

static bool may_go(const struct sim *sim, int index)
{
    const struct sim_row *row = &sim->ledger.rows[index];

    if (row->present)
        return row->state == JOB_SUCCEEDED && row->final_at_us + INPUT_KEEP_US < sim->now_us;
    if (!sim_guarded(sim, OWNER_GUARD_COLLECTOR)) /* "no row names it" */
        return true;
    return day_is_over(sim, day_of(&sim->jobs[index]));
}

static void collector_looks(struct sim *sim, void *opaque, uint64_t number)
{
    for (int i = 0; sim->ledger.up && i < sim->job_count; i++) {
        if (!sim->jobs[i].blob_there || !may_go(sim, i))
            continue;
        sim_trace(sim, "the input of job %d is collected", i);
        sim_hit(sim, FAULT_COLLECTED);
        blob_delete(sim, i);
    }
    sim_post(sim, NULL, LOOK_US, collector_looks, opaque, number);
}

void blob_begin(struct sim *sim)
{
    sim_post(sim, NULL, LOOK_US, collector_looks, NULL, 0);
}
