/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which waiting job of a pool runs next. Pure: time comes in, a job comes out.
 *
 *   pool ─▶ rank (sync, priority 0, 1, 2, bulk: strict, but for the ageing share)
 *        ─▶ lane of the tenant that was served the least slot-time for its weight
 *        ─▶ flow (API key of the tenant) whose next job is due first
 *        ─▶ job with the earliest start deadline, then the oldest
 *
 * Tenants share a rank by start-time fair queuing: a lane is charged an estimate when its job is
 * taken and the difference when the job ends. What it was served too much it keeps owing, also
 * while it is idle; idleness itself saves nothing up: a lane that comes back starts at the rank's
 * virtual time. That is what the lane served last had finished, without what it has running: so a
 * newcomer is next, however many jobs the others have in their slots.
 *
 * Ageing is a share, never a promotion: of the slot-time that is handed out while several ranks
 * wait, up to ageing_percent goes to a lower rank whose next job has waited longer than
 * ageing_after_us.
 *
 * A lane or a flow that may not run now (its tenant or key is at a limit) is parked: it keeps its
 * jobs and is in nobody's way.
 *
 * Every call is O(log n). Source of the fair queuing: P. Goyal, H. Vin, H. Cheng, "Start-time Fair
 * Queuing", SIGCOMM 1996.
 *
 * Thread: its owner's.   Tests: tests/unit/test_sched.c, tests/unit/test_sched_fair.c
 */

#include "brokers/owner_heap.h"
#include "schema/job.h"

#define SCHED_WEIGHT_ONE 100 /* the weight that nobody asked for */

struct sched_flow; /* jobs of one key in a lane */
struct sched_lane; /* jobs of one tenant in one rank of one pool */

struct sched_job {
    struct heap_node node;
    struct sched_flow *flow;
    uint64_t accepted_us;
    uint32_t slot_count;
    bool aged;           /* ageing has paid for its run */
    uint64_t cost_us;    /* slot-microseconds that its run is expected to take, while it runs */
    uint64_t charged_us; /* the same on its lane's clock */
};

struct sched_flow {
    struct heap jobs;
    struct heap_node node; /* in its lane, while it has jobs and is not parked */
    struct sched_lane *lane;
    bool parked;
};

struct sched_lane {
    struct heap flows;
    struct heap_node node; /* in its rank, while it has flows and is not parked */
    enum job_rank rank;
    bool parked;
    uint32_t weight;
    uint64_t served_us; /* slot-microseconds, on the rank's virtual clock */
    uint64_t open_us;   /* of these: charged for jobs that run */
};

struct sched_pool {
    struct heap ranks[JOB_RANK_COUNT]; /* lanes that may run, by served_us */
    uint64_t virtual_us[JOB_RANK_COUNT];
    uint64_t waiting[JOB_RANK_COUNT]; /* parked ones too */
    uint64_t estimate_us; /* what a job is expected to take a slot for: a moving average */
    bool taught;          /* by a job that has ended; else it is a guess */
    int64_t aged_us;      /* slot-microseconds that ageing may still spend */
};

struct sched_ageing {
    uint32_t percent; /* 0: strict ranks */
    uint64_t after_us;
};

void sched_pool_init(struct sched_pool *pool);
void sched_pool_done(struct sched_pool *pool);
void sched_lane_init(struct sched_lane *lane, enum job_rank rank, uint64_t tie);
void sched_lane_done(struct sched_lane *lane);
void sched_flow_init(struct sched_flow *flow, struct sched_lane *lane);
void sched_flow_done(struct sched_flow *flow);

void sched_push(struct sched_pool *pool, struct sched_flow *flow, struct sched_job *job,
                uint64_t start_deadline_us, uint64_t seq);

/* Takes a waiting job out again (canceled, expired, adopted); nothing when it does not wait. */
void sched_remove(struct sched_pool *pool, struct sched_job *job);

/* The job that sched_take() would take now. NULL when none waits that may run. */
struct sched_job *sched_peek(const struct sched_pool *pool, const struct sched_ageing *ageing,
                             uint64_t now_us);

/* Takes it and charges its lane the estimate. */
struct sched_job *sched_take(struct sched_pool *pool, const struct sched_ageing *ageing,
                             uint64_t now_us);

/* The job ran for ran_us: its lane pays the difference. counts: it teaches the estimate. */
void sched_settle(struct sched_pool *pool, struct sched_job *job, uint64_t ran_us, bool counts);

void sched_park_lane(struct sched_pool *pool, struct sched_lane *lane, bool parked);
void sched_park_flow(struct sched_pool *pool, struct sched_flow *flow, bool parked);

/* Whether some job that waits may run. */
bool sched_can(const struct sched_pool *pool);
