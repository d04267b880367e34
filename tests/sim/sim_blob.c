/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The blob store and what collects from it. An input lies under day/id, a result under
 * day/id/token. Inputs go with their day, when no job of that day is live any more and it is old
 * enough; never because a row is missing, since the row of an accepted job may still be on its way
 * (PROTOCOL 26).
 */

#include <stdio.h>

#include "schema/job_id.h"
#include "tests/sim/sim.h"

#define DAY_US (2 * SEC)
#define KEEP_US (12 * SEC) /* from the end of a day */
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

static bool day_is_over(const struct sim *sim, uint64_t day)
{
    if ((day + 1) * DAY_US + KEEP_US > sim->now_us)
        return false;
    for (int i = 0; i < sim->job_count; i++) {
        if (day_of(&sim->jobs[i]) == day && sim->ledger.rows[i].present &&
            !job_state_final(sim->ledger.rows[i].state))
            return false;
    }
    return true;
}

static bool may_go(const struct sim *sim, int index)
{
    if (!sim_guarded(sim, OWNER_GUARD_COLLECTOR)) /* "no row names it" */
        return !sim->ledger.rows[index].present;
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
