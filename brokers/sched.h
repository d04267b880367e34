/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which waiting job of a pool runs next. Pure: time comes in, a job comes out.
 *
 *   pool ─▶ rank (sync, priority 0, 1, 2: strict, but for the ageing share)
 *        ─▶ lane of the tenant that was served the least slot-time
 *        ─▶ job with the earliest start deadline, then the oldest
 *
 * Tenants share a rank by start-time fair queuing: a lane is charged an estimate when its job is
 * taken and the difference when the job ends; a lane that comes back from idleness starts at the
 * rank's virtual time, so that idleness saves nothing up.
 *
 * Ageing is a share, never a promotion: of what is taken while several ranks wait, up to
 * ageing_percent goes to a lower rank whose next job has waited longer than ageing_after_us.
 *
 * Every call is O(log n). Source of the fair queuing: P. Goyal, H. Vin, H. Cheng, "Start-time Fair
 * Queuing", SIGCOMM 1996.
 *
 * Thread: its owner's.   Tests: tests/unit/test_sched.c
 */

#include "brokers/owner_heap.h"
#include "schema/job.h"

struct sched_lane; /* jobs of one tenant in one rank of one pool */

struct sched_job {
    struct heap_node node;
    struct sched_lane *lane;
    uint64_t accepted_us;
    uint32_t slot_count;
};

struct sched_lane {
    struct heap jobs;
    struct heap_node node; /* in its rank, while it has jobs */
    enum job_rank rank;
    uint64_t served_us; /* slot-microseconds, on the rank's virtual clock */
};

struct sched_pool {
    struct heap ranks[JOB_RANK_COUNT]; /* lanes with jobs, by served_us */
    uint64_t virtual_us[JOB_RANK_COUNT];
    uint64_t waiting[JOB_RANK_COUNT];
    uint64_t estimate_us; /* what a job is expected to take a slot for: a moving average */
    uint32_t aged_share;  /* hundredths of a slot that ageing may still spend */
};

struct sched_ageing {
    uint32_t percent; /* 0: strict ranks */
    uint64_t after_us;
};

void sched_pool_init(struct sched_pool *pool);
void sched_pool_done(struct sched_pool *pool);
void sched_lane_init(struct sched_lane *lane, enum job_rank rank, uint64_t tie);
void sched_lane_done(struct sched_lane *lane);

void sched_push(struct sched_pool *pool, struct sched_lane *lane, struct sched_job *job,
                uint64_t start_deadline_us, uint64_t seq);

/* Takes a waiting job out again (canceled, expired, adopted); nothing when it does not wait. */
void sched_remove(struct sched_pool *pool, struct sched_job *job);

/* Takes the next job and charges its lane the estimate, which is returned for the correction.
 * NULL when none waits. */
struct sched_job *sched_take(struct sched_pool *pool, const struct sched_ageing *ageing,
                             uint64_t now_us, uint64_t *ret_charged_us);

/* The job ran for ran_us: its lane pays the difference. counts: it teaches the estimate. */
void sched_settle(struct sched_pool *pool, struct sched_lane *lane, uint32_t slot_count,
                  uint64_t charged_us, uint64_t ran_us, bool counts);
