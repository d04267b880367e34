/* SPDX-License-Identifier: Apache-2.0 */

/*
 * How many jobs of a tenant may wait for their next try.
 *
 * A job between two attempts stays in memory, and so a tenant whose model fails everything would
 * turn its whole backlog into delayed jobs. At its cap (options.delayed_jobs, delayed_bytes) no
 * first attempt of that tenant is dispatched: those that would be next are barred, out of the way
 * of other tenants, until a tenth of the cap is free again. Its retries go on, as do deadlines and
 * cancels of what is barred. All tenants together have room for two of them at their cap: the more
 * there is delayed, the less each may add (as the window does, see owner_lane.c), so that one can
 * never take the room of the others.
 */

#include <stdlib.h>
#include <string.h>

#include "brokers/owner_int.h"

#define DELAYED_ROOM 2 /* tenants at their cap that there is memory for */

struct delayer *delayed_join(struct owner *owner, const char tenant[OWNER_NAME_SIZE])
{
    struct delayer *delayer;

    HASH_FIND(hh, owner->delayers, tenant, OWNER_NAME_SIZE, delayer);
    if (delayer == NULL) {
        delayer = xcalloc(1, sizeof(*delayer));
        memcpy(delayer->tenant, tenant, OWNER_NAME_SIZE);
        TAILQ_INIT(&delayer->barred);
        HASH_ADD(hh, owner->delayers, tenant, OWNER_NAME_SIZE, delayer);
    }
    delayer->lane_count++;
    return delayer;
}

void delayed_leave(struct owner *owner, struct delayer **delayer_p)
{
    struct delayer *delayer = TAKE(*delayer_p);

    if (--delayer->lane_count > 0)
        return;
    assert(delayer->jobs == 0 && TAILQ_EMPTY(&delayer->barred));
    HASH_DEL(owner->delayers, delayer);
    free(delayer);
}

void delayed_count(struct owner *owner, struct delayer *delayer, int sign, size_t size)
{
    uint64_t one = (uint64_t)(int64_t)sign;

    delayer->jobs += one;
    delayer->bytes += one * size;
    owner->delayed_jobs += one;
    owner->delayed_bytes += one * size;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t room(uint64_t limit, uint64_t used)
{
    return limit > used ? limit - used : 0;
}

/* What each tenant may have now. */
static uint64_t jobs_max(const struct owner *owner)
{
    return least(owner->options.delayed_jobs,
                 room(DELAYED_ROOM * owner->options.delayed_jobs, owner->delayed_jobs));
}

/* True when the tenant has `share` tenths of what it may have delayed. */
static bool delayer_is_over(const struct owner *owner, const struct delayer *delayer,
                            uint64_t share)
{
    const struct owner_options *options = &owner->options;
    uint64_t jobs = jobs_max(owner);
    uint64_t bytes = least(options->delayed_bytes,
                           room(DELAYED_ROOM * options->delayed_bytes, owner->delayed_bytes));

    return delayer->jobs * 10 >= jobs * share || delayer->bytes >= bytes / 10 * share;
}

bool delayed_bars(const struct owner *owner, const struct job *job)
{
    return job->attempt_count == 0 && delayer_is_over(owner, job->lane->delayer, 10);
}

void delayed_bar(struct owner *owner, struct job *job)
{
    struct delayer *delayer = job->lane->delayer;

    if (TAILQ_EMPTY(&delayer->barred))
        TAILQ_INSERT_TAIL(&owner->barring, delayer, link);
    job_move(owner, job, JOB_BARRED);
    TAILQ_INSERT_TAIL(&delayer->barred, job, barred_link);
}

/* The job leaves its place among the barred ones; called by job_move() alone. */
void delayed_unbar(struct owner *owner, struct job *job)
{
    struct delayer *delayer = job->lane->delayer;

    TAILQ_REMOVE(&delayer->barred, job, barred_link);
    if (TAILQ_EMPTY(&delayer->barred))
        TAILQ_REMOVE(&owner->barring, delayer, link);
}

/* As many as there is room for go back to their lanes, so that a small room does not move many jobs
 * to and fro. */
void delayed_run(struct owner *owner)
{
    struct delayer *delayer, *next;
    struct job *job;

    TAILQ_FOREACH_SAFE(delayer, &owner->barring, link, next)
    {
        uint64_t count = delayer_is_over(owner, delayer, 9) ? 0
                                                            : room(jobs_max(owner), delayer->jobs);

        for (; count > 0 && (job = TAILQ_FIRST(&delayer->barred)) != NULL; count--)
            job_move(owner, job, JOB_WAITING);
    }
}
