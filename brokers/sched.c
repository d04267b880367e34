/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/sched.h"

#include "base/assert.h"

#define AGED_MAX 4                   /* jobs' worth that ageing may save up */
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
    *lane = (struct sched_lane){.rank = rank, .node = {.tie = tie}, .weight = SCHED_WEIGHT_ONE};
}

void sched_lane_done(struct sched_lane *lane)
{
    assert(!heap_holds(&lane->node));
    heap_done(&lane->flows);
}

void sched_flow_init(struct sched_flow *flow, struct sched_lane *lane)
{
    *flow = (struct sched_flow){.lane = lane};
}

void sched_flow_done(struct sched_flow *flow)
{
    assert(!heap_holds(&flow->node));
    heap_done(&flow->jobs);
}

/* ---- who may run ---- */

static void lane_place(struct sched_pool *pool, struct sched_lane *lane)
{
    struct heap *rank = &pool->ranks[lane->rank];

    if (lane->parked || lane->flows.count == 0) {
        heap_remove(rank, &lane->node);
        return;
    }
    if (heap_holds(&lane->node))
        return;
    if (lane->served_us < pool->virtual_us[lane->rank])
        lane->served_us = pool->virtual_us[lane->rank];
    heap_push(rank, &lane->node, lane->served_us, lane->node.tie);
}

/* A flow stands in its lane as its first job would. */
static void flow_place(struct sched_pool *pool, struct sched_flow *flow)
{
    const struct heap_node *first = heap_first(&flow->jobs);
    struct heap *flows = &flow->lane->flows;

    if (first == NULL || flow->parked) {
        heap_remove(flows, &flow->node);
    } else if (!heap_holds(&flow->node) || flow->node.key != first->key ||
               flow->node.tie != first->tie) {
        heap_remove(flows, &flow->node);
        heap_push(flows, &flow->node, first->key, first->tie);
    }
    lane_place(pool, flow->lane);
}

void sched_push(struct sched_pool *pool, struct sched_flow *flow, struct sched_job *job,
                uint64_t start_deadline_us, uint64_t seq)
{
    job->flow = flow;
    heap_push(&flow->jobs, &job->node, start_deadline_us, seq);
    pool->waiting[flow->lane->rank]++;
    flow_place(pool, flow);
}

void sched_remove(struct sched_pool *pool, struct sched_job *job)
{
    struct sched_flow *flow = job->flow;

    if (!heap_holds(&job->node))
        return;
    heap_remove(&flow->jobs, &job->node);
    pool->waiting[flow->lane->rank]--;
    flow_place(pool, flow);
}

void sched_park_lane(struct sched_pool *pool, struct sched_lane *lane, bool parked)
{
    lane->parked = parked;
    lane_place(pool, lane);
}

void sched_park_flow(struct sched_pool *pool, struct sched_flow *flow, bool parked)
{
    flow->parked = parked;
    flow_place(pool, flow);
}

bool sched_can(const struct sched_pool *pool)
{
    for (int rank = 0; rank < JOB_RANK_COUNT; rank++) {
        if (pool->ranks[rank].count > 0)
            return true;
    }
    return false;
}

/* ---- who runs next ---- */

static struct sched_lane *rank_lane(const struct sched_pool *pool, int rank)
{
    struct heap_node *node = heap_first(&pool->ranks[rank]);

    return node == NULL ? NULL : HEAP_ENTRY(node, struct sched_lane, node);
}

static struct sched_job *lane_job(const struct sched_lane *lane)
{
    const struct sched_flow *flow = HEAP_ENTRY(heap_first(&lane->flows), struct sched_flow, node);

    return HEAP_ENTRY(heap_first(&flow->jobs), struct sched_job, node);
}

static uint64_t job_cost_us(const struct sched_pool *pool, const struct sched_job *job)
{
    return pool->estimate_us * job->slot_count;
}

struct choice {
    struct sched_job *job; /* NULL: none may run */
    int64_t
        overdue_cost_us; /* of a lower rank's overdue job: what runs now feeds ageing's share… */
    bool aged;           /* …or this is what the share is for; cost 0: none is overdue */
};

static int64_t share(int64_t cost_us, const struct sched_ageing *ageing)
{
    return cost_us * (int64_t)ageing->percent / 100;
}

/* The highest rank that waits, unless it is the turn of an overdue lower one. */
static struct choice choose(const struct sched_pool *pool, const struct sched_ageing *ageing,
                            uint64_t now_us)
{
    struct choice choice = {.job = NULL};

    for (int rank = 0; rank < JOB_RANK_COUNT; rank++) {
        const struct sched_lane *lane = rank_lane(pool, rank);
        struct sched_job *job = lane == NULL ? NULL : lane_job(lane);

        if (job == NULL)
            continue;
        if (choice.job == NULL) {
            choice.job = job;
            continue;
        }
        if (ageing->percent == 0 || now_us < job->accepted_us ||
            now_us - job->accepted_us < ageing->after_us)
            continue;
        choice.overdue_cost_us = (int64_t)job_cost_us(pool, job);
        choice.aged = pool->aged_us + share(choice.overdue_cost_us, ageing) >=
                      choice.overdue_cost_us;
        if (choice.aged)
            choice.job = job;
        return choice;
    }
    return choice;
}

struct sched_job *sched_peek(const struct sched_pool *pool, const struct sched_ageing *ageing,
                             uint64_t now_us)
{
    return choose(pool, ageing, now_us).job;
}

static void feed_ageing(struct sched_pool *pool, const struct sched_ageing *ageing,
                        const struct choice *choice)
{
    int64_t cost_us = (int64_t)choice->job->cost_us;

    pool->aged_us += share(cost_us, ageing);
    if (choice->aged)
        pool->aged_us -= cost_us;
    else if (pool->aged_us > AGED_MAX * choice->overdue_cost_us)
        pool->aged_us = AGED_MAX * choice->overdue_cost_us;
}

static uint64_t weigh(const struct sched_lane *lane, uint64_t slot_us)
{
    return slot_us * SCHED_WEIGHT_ONE / lane->weight;
}

struct sched_job *sched_take(struct sched_pool *pool, const struct sched_ageing *ageing,
                             uint64_t now_us)
{
    const struct choice choice = choose(pool, ageing, now_us);
    struct sched_job *job = choice.job;
    struct sched_lane *lane;
    uint64_t finished_us;

    if (job == NULL)
        return NULL;
    lane = job->flow->lane;
    finished_us = lane->served_us - lane->open_us;
    if (finished_us > pool->virtual_us[lane->rank])
        pool->virtual_us[lane->rank] = finished_us;
    job->aged = choice.aged;
    job->cost_us = job_cost_us(pool, job);
    job->charged_us = weigh(lane, job->cost_us);
    if (choice.overdue_cost_us > 0)
        feed_ageing(pool, ageing, &choice);
    sched_remove(pool, job);
    lane->served_us += job->charged_us;
    lane->open_us += job->charged_us;
    if (heap_holds(&lane->node))
        heap_move(&pool->ranks[lane->rank], &lane->node, lane->served_us);
    return job;
}

void sched_settle(struct sched_pool *pool, struct sched_job *job, uint64_t ran_us, bool counts)
{
    struct sched_lane *lane = job->flow->lane;
    uint64_t spent_us;

    if (ran_us > ESTIMATE_MAX_US)
        ran_us = ESTIMATE_MAX_US;
    if (counts) {
        pool->estimate_us = (7 * pool->estimate_us + ran_us) / 8;
        pool->taught = true;
    }
    spent_us = ran_us * job->slot_count;
    if (job->aged)
        pool->aged_us -= (int64_t)spent_us - (int64_t)job->cost_us;
    assert(lane->open_us >= job->charged_us && lane->served_us >= lane->open_us);
    lane->open_us -= job->charged_us;
    lane->served_us = lane->served_us - job->charged_us + weigh(lane, spent_us);
    job->cost_us = job->charged_us = 0;
    job->aged = false;
    if (heap_holds(&lane->node))
        heap_move(&pool->ranks[lane->rank], &lane->node, lane->served_us);
}
