/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/sched.h"

#include "base/assert.h"

#define SHARE_ONE 100                /* hundredths */
#define SHARE_MAX (4 * SHARE_ONE)    /* what ageing may save up */
#define ESTIMATE_START_US 100000     /* of a pool that has not finished a job yet */
#define ESTIMATE_MAX_US 3600000000ul /* keeps the arithmetic far from its end */

void sched_pool_init(struct sched_pool *pool)
{
    *pool = (struct sched_pool){.estimate_us = ESTIMATE_START_US};
}

void sched_pool_done(struct sched_pool *pool)
{
    for (int rank = 0; rank < JOB_RANK_COUNT; rank++)
        heap_done(&pool->ranks[rank]);
}

void sched_lane_init(struct sched_lane *lane, enum job_rank rank, uint64_t tie)
{
    *lane = (struct sched_lane){.rank = rank, .node = {.tie = tie}};
}

void sched_lane_done(struct sched_lane *lane)
{
    assert(!heap_holds(&lane->node));
    heap_done(&lane->jobs);
}

void sched_push(struct sched_pool *pool, struct sched_lane *lane, struct sched_job *job,
                uint64_t start_deadline_us, uint64_t seq)
{
    job->lane = lane;
    heap_push(&lane->jobs, &job->node, start_deadline_us, seq);
    pool->waiting[lane->rank]++;
    if (heap_holds(&lane->node))
        return;
    if (lane->served_us < pool->virtual_us[lane->rank])
        lane->served_us = pool->virtual_us[lane->rank];
    heap_push(&pool->ranks[lane->rank], &lane->node, lane->served_us, lane->node.tie);
}

void sched_remove(struct sched_pool *pool, struct sched_job *job)
{
    struct sched_lane *lane = job->lane;

    if (!heap_holds(&job->node))
        return;
    heap_remove(&lane->jobs, &job->node);
    pool->waiting[lane->rank]--;
    if (lane->jobs.count == 0)
        heap_remove(&pool->ranks[lane->rank], &lane->node);
}

static struct sched_lane *rank_lane(const struct sched_pool *pool, int rank)
{
    struct heap_node *node = heap_first(&pool->ranks[rank]);

    return node == NULL ? NULL : HEAP_ENTRY(node, struct sched_lane, node);
}

static struct sched_job *lane_job(const struct sched_lane *lane)
{
    return HEAP_ENTRY(heap_first(&lane->jobs), struct sched_job, node);
}

/* The highest rank that waits, unless it is the turn of an overdue lower one. */
static struct sched_lane *choose(struct sched_pool *pool, const struct sched_ageing *ageing,
                                 uint64_t now_us)
{
    struct sched_lane *first = NULL;

    for (int rank = 0; rank < JOB_RANK_COUNT; rank++) {
        struct sched_lane *lane = rank_lane(pool, rank);

        if (lane == NULL)
            continue;
        if (first == NULL) {
            first = lane;
            continue;
        }
        if (now_us - lane_job(lane)->accepted_us < ageing->after_us ||
            now_us < lane_job(lane)->accepted_us)
            continue;
        pool->aged_share += ageing->percent;
        if (pool->aged_share > SHARE_MAX)
            pool->aged_share = SHARE_MAX;
        if (pool->aged_share < SHARE_ONE)
            return first;
        pool->aged_share -= SHARE_ONE;
        return lane;
    }
    return first;
}

struct sched_job *sched_take(struct sched_pool *pool, const struct sched_ageing *ageing,
                             uint64_t now_us, uint64_t *ret_charged_us)
{
    struct sched_lane *lane = choose(pool, ageing, now_us);
    struct sched_job *job;

    if (lane == NULL)
        return NULL;
    job = lane_job(lane);
    sched_remove(pool, job);
    pool->virtual_us[lane->rank] = lane->served_us;
    *ret_charged_us = pool->estimate_us * job->slot_count;
    lane->served_us += *ret_charged_us;
    if (heap_holds(&lane->node))
        heap_move(&pool->ranks[lane->rank], &lane->node, lane->served_us);
    return job;
}

void sched_settle(struct sched_pool *pool, struct sched_lane *lane, uint32_t slot_count,
                  uint64_t charged_us, uint64_t ran_us, bool counts)
{
    if (ran_us > ESTIMATE_MAX_US)
        ran_us = ESTIMATE_MAX_US;
    if (counts)
        pool->estimate_us = (7 * pool->estimate_us + ran_us) / 8;
    lane->served_us += ran_us * slot_count;
    lane->served_us -= charged_us < lane->served_us ? charged_us : lane->served_us;
    if (heap_holds(&lane->node))
        heap_move(&pool->ranks[lane->rank], &lane->node, lane->served_us);
}
