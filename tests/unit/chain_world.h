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
    bool cached, tried;
    char *input, *output;
};

/* A step that has taken over the output of a job, or a job whose output may be. */
struct taken {
    TAILQ_ENTRY(taken) link;
    size_t run;
    char step[CHAIN_NAME_SIZE];
    uint32_t item;
    uint8_t digest[BLOB_DIGEST_SIZE];
    struct wire_id job;
};

struct record {
    TAILQ_ENTRY(record) link;
    size_t size;
    uint8_t bytes[];
};

/* A row of chain_wait. */
struct wait_row {
    bool open, approval, decided, canceled, kept;
    uint64_t due_ms;
    char *payload; /* approved; NULL: rejected, or nobody has decided */
};

struct run {
    struct wait_row waits[CHAIN_STEPS_MAX];
    uint64_t due_ms; /* put off until then */
    bool woken;      /* while its attempt ran */
    bool unclean;    /* one of its attempts ended otherwise than by being put off */
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
    TAILQ_HEAD(taken_head, taken) taken, cache;
    struct zombie zombies[ZOMBIES_MAX];
    size_t zombie_count;
    uint64_t token, output_count, crashes, takeovers, repeats, put_offs, wakes, hits, losses;
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

/* ---- the cache ---- */

static struct taken *taken_find(const struct world *world, size_t run, const char *step_name,
                                uint32_t item)
{
    struct taken *taken;

    TAILQ_FOREACH(taken, &world->taken, link)
    {
        if (taken->run == run && taken->item == item && strcmp(taken->step, step_name) == 0)
            return taken;
    }
    return NULL;
}

static struct taken *cache_find(const struct world *world, const uint8_t digest[BLOB_DIGEST_SIZE])
{
    struct taken *entry;

    TAILQ_FOREACH(entry, &world->cache, link)
    {
        if (memcmp(entry->digest, digest, sizeof(entry->digest)) == 0)
            return entry;
    }
    return NULL;
}

static void answer_taken(const struct world *world, const struct pg_batch *batch,
                         struct pg_result *result, size_t at)
{
    size_t run = (size_t)(run_find((struct world *)world, &batch->ids[0]) - world->runs);
    const struct taken *taken;

    TAILQ_FOREACH(taken, &world->taken, link)
    {
        struct cell *cells;

        if (taken->run != run)
            continue;
        cells = row_add(result, at);
        cells[0].text = xstrdup(taken->step);
        cells[1].number = taken->item;
        cells[2].number = 1;
        cells[3].id = taken->job;
        cells[4].number = JOB_SUCCEEDED;
    }
}

/* Arrays of runs, tokens, steps, items, rounds, deployments and digests. */
static void answer_take(struct world *world, const struct pg_batch *batch, struct pg_result *result,
                        size_t at)
{
    size_t count = batch->id_count;

    assert_true(batch->number_count == 3 * count && batch->text_count == 2 * count &&
                batch->digest_count == count);
    for (size_t i = 0; i < count; i++) {
        struct run *run = run_find(world, &batch->ids[i]);
        size_t of = (size_t)(run - world->runs);
        uint32_t item = (uint32_t)batch->numbers[count + i];
        struct taken *taken = taken_find(world, of, batch->texts[i], item);
        const struct taken *entry = cache_find(world, batch->digests[i]);
        struct cell *cells;

        if (taken == NULL && entry != NULL && run->row_token == (uint64_t)batch->numbers[i]) {
            taken = xcalloc(1, sizeof(*taken));
            taken->run = of;
            taken->item = item;
            taken->job = entry->job;
            mem_copy_text(taken->step, batch->texts[i]);
            TAILQ_INSERT_TAIL(&world->taken, taken, link);
            world->hits++;
        }
        if (taken == NULL)
            continue;
        cells = row_add(result, at);
        cells[0].number = (int64_t)i + 1;
        cells[1].id = taken->job;
        cells[2].text = xstrdup(job_find(world, &taken->job)->output);
    }
}

static void take_cached(struct world *world, const struct pg_batch *batch)
{
    for (size_t i = 0; i < batch->id_count; i++) {
        struct taken *entry = cache_find(world, batch->digests[i]);
        const struct job *job = job_find(world, &batch->ids[i]);

        assert_true(job != NULL && job->state == JOB_SUCCEEDED);
        if (entry == NULL) {
            entry = xcalloc(1, sizeof(*entry));
            memcpy(entry->digest, batch->digests[i], sizeof(entry->digest));
            TAILQ_INSERT_TAIL(&world->cache, entry, link);
        }
        entry->job = job->id;
    }
}

static void taken_done(struct taken_head *head)
{
    struct taken *taken;

    while ((taken = TAILQ_FIRST(head)) != NULL) {
        TAILQ_REMOVE(head, taken, link);
        free(taken);
    }
}
