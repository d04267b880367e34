/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which training jobs begin on which trainers, and which make room for them.
 *
 *   waiting jobs, best first: priority, then the tenant that has the least, then the oldest
 *     ─▶ all of its nodes fit into what is free: PLACE, each node on another trainer
 *     ─▶ they fit into what is free soon, or would be if jobs of a lower priority ended: PREEMPT
 *        as few of those as will do; it waits, and what it could use is kept for it
 *     ─▶ they fit into trainers that are empty: it waits in the same way
 *     ─▶ else no trainers that are here can ever run it: it is in nobody's way
 *
 * So a large job is not starved by small ones behind it. A trainer that is silent for lease_ms is
 * buried: what it ran waits again. One that is late (late_ms) or drains is given nothing.
 *
 * Pure: facts in, actions out. It does no I/O, reads no clock and keeps nothing from call to call;
 * whoever carries the actions out does so only if nobody else has meanwhile.
 *
 * Thread: any.   Tests: tests/unit/test_training_plan.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TRAINING_NODES_MAX 1024 /* of a job */

struct training_need { /* of one node; what a trainer has */
    uint32_t gpu_count, cpu_count;
    uint64_t memory_size;
};

struct training_trainer {
    struct training_need has;
    const char *accelerator; /* of its GPUs; "": it has none */
    uint64_t silent_ms;      /* since it was heard of */
    bool draining;
};

struct training_waiting {
    struct training_need need;
    const char *accelerator; /* "": any trainer will do */
    const char *tenant;
    uint32_t node_count;
    int64_t priority; /* higher first */
    uint64_t created_us;
};

struct training_running { /* one that is placed and not over */
    struct training_need need;
    const char *tenant;
    int64_t priority;
    uint64_t created_us;
    bool ending; /* its nodes were told to end */
};

struct training_node {       /* not ended */
    size_t running, trainer; /* indices */
};

struct training_facts {
    const struct training_trainer *trainers;
    const struct training_waiting *waiting;
    const struct training_running *running;
    const struct training_node *nodes;
    size_t trainer_count, waiting_count, running_count, node_count;
    uint64_t lease_ms, late_ms;
    bool may_bury; /* who asks was in touch all the time: silence is not our own */
};

enum training_action_type {
    TRAINING_PLACE,   /* waiting[job] on the trainers */
    TRAINING_PREEMPT, /* running[job] is to end for waiting[by] */
    TRAINING_BURY,    /* trainers[job] is gone */
};

struct training_action {
    enum training_action_type type;
    size_t job, by;
    uint32_t *trainers; /* PLACE: by rank */
    size_t trainer_count;
};

struct training_plan {
    struct training_action *actions;
    size_t count, room;
};

void training_plan_make(const struct training_facts *facts, struct training_plan *ret_plan);
void training_plan_done(struct training_plan *plan);
