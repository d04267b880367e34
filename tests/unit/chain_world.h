/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The world of tests/unit/test_chain_coordinator.c: what its ledger, its intake and its owner know.
 */

#include "chain_random.h"

#include "chain_fakes.h"

#include "schema/job.h"
#include "schema/message.h"

#define PROCESSES 2
#define RUNS 3
#define ZOMBIES_MAX 64

struct job {
    TAILQ_ENTRY(job) link;
    struct wire_id id;
    size_t run;
    char step[CHAIN_NAME_SIZE], gateway[64];
    uint32_t item, round;
    enum job_state state;
    bool cached;
    char *input, *output;
};

struct record {
    TAILQ_ENTRY(record) link;
    size_t size;
    uint8_t bytes[];
};

/* A row of chain_wait. */
struct wait_row {
    bool open, approval, decided;
    uint64_t due_ms;
    char *payload; /* approved; NULL: rejected, or nobody has decided */
};

struct run {
    struct wait_row waits[CHAIN_STEPS_MAX];
    uint64_t due_ms; /* put off until then */
    bool woken;      /* while its attempt ran */
    struct wire_id id;
    char text[JOB_ID_TEXT_SIZE];
    enum job_state state;
    unsigned process;
    uint64_t token, number, row_token, over_ms;
    bool row, closed;
    char *output, *error;
    enum error_class error_class;
};

struct zombie { /* an attempt that is over, and does not know it yet */
    unsigned process, life;
    uint64_t token;
};

struct world {
    struct rng rng;
    struct chain *chain;
    struct loop loops[PROCESSES];
    struct coordinator *coordinators[PROCESSES];
    unsigned lives[PROCESSES];
    struct run runs[RUNS];
    TAILQ_HEAD(, job) jobs;
    TAILQ_HEAD(, record) intake;
    struct zombie zombies[ZOMBIES_MAX];
    size_t zombie_count;
    uint64_t token, output_count, crashes, takeovers, repeats, put_offs, wakes;
    unsigned fail_percent, fault_percent; /* 0: nothing goes wrong any more */
    bool takes_over;                      /* runs from coordinators that live */
    struct wire_decoder *decoder;
};

static bool fault(struct world *world, unsigned percent)
{
    return world->fault_percent > 0 && chance(&world->rng, percent);
}

static bool job_live(const struct job *job)
{
    return job->state == JOB_QUEUED || job->state == JOB_IN_PROGRESS;
}

static struct job *job_find(struct world *world, const struct wire_id *id)
{
    struct job *job;

    TAILQ_FOREACH(job, &world->jobs, link)
    {
        if (job_id_equal(&job->id, id))
            return job;
    }
    return NULL;
}

static struct run *run_find(struct world *world, const struct wire_id *id)
{
    for (size_t i = 0; i < RUNS; i++) {
        if (job_id_equal(&world->runs[i].id, id))
            return &world->runs[i];
    }
    fail_msg("nobody knows that run");
    return NULL;
}
