/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a flush makes final, added up by hour and end, for the view job_hours: counting here costs
 * Postgres two arrays a flush, where counting in SQL would cost it something for each job.
 *
 * Jobs of a flush are mostly of few models, so a group is looked for among the groups from the
 * newest back; a thousand jobs of a thousand models are half a million comparisons of a size.
 */

#include <string.h>

#include "brokers/store_postgres.h"

#define HOUR_US (3600 * (uint64_t)1000000)
#define NAME_COUNT 3   /* tenant, model, deployment */
#define NUMBER_COUNT 7 /* hour, state, error class, jobs, attempts, µs waited, µs ran */

struct end {
    const struct flush_job *job; /* the first of them, for the names and the way it ended */
    uint64_t hour_us;
    uint64_t jobs, attempts, wait_us, run_us;
};

static bool same_text(struct wire_text a, struct wire_text b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.text, b.text, a.size) == 0);
}

static uint64_t hour_of(const struct flush_job *job)
{
    return job->state_us - job->state_us % HOUR_US;
}

static uint64_t between(uint64_t from_us, uint64_t to_us)
{
    return to_us > from_us ? to_us - from_us : 0;
}

static bool end_is_of(const struct end *end, const struct flush_job *job)
{
    const struct message_submit *a = &end->job->spec->submit, *b = &job->spec->submit;

    return end->job->state == job->state && end->job->error_class == job->error_class &&
           end->hour_us == hour_of(job) && same_text(a->deployment, b->deployment) &&
           same_text(a->model, b->model) && same_text(a->tenant, b->tenant);
}

static void end_add(struct end *end, const struct flush_job *job)
{
    uint64_t started_us = job->started_us != 0 ? job->started_us : job->state_us;

    end->jobs++;
    end->attempts += job->attempt_count;
    end->wait_us += between(job->spec->queued_us, started_us);
    end->run_us += between(started_us, job->state_us);
}

static size_t ends_add_up(const struct flush *flush, struct end *ends)
{
    size_t count = 0;

    for (size_t i = 0; i < flush->job_count; i++) {
        const struct flush_job *job = &flush->jobs[i];
        size_t at = count;

        if (!job_state_final(job->state))
            continue;
        while (at > 0 && !end_is_of(&ends[at - 1], job))
            at--;
        if (at == 0) {
            ends[count] = (struct end){.job = job, .hour_us = hour_of(job)};
            at = ++count;
        }
        end_add(&ends[at - 1], job);
    }
    return count;
}

static void bind_number(struct pg_batch *batch, uint64_t value)
{
    pg_bind_i64(batch, value > INT64_MAX ? INT64_MAX : (int64_t)value);
}

void store_bind_ends(struct store *store, const struct flush *flush, struct pg_batch *batch)
{
    struct end *ends = xcalloc(flush->job_count + 1, sizeof(*ends));
    size_t count = ends_add_up(flush, ends);

    pg_bind_array(batch, PG_TEXT, count * NAME_COUNT);
    for (size_t i = 0; i < count; i++) {
        const struct message_submit *submit = &ends[i].job->spec->submit;

        store_bind_storable(store, batch, submit->tenant);
        store_bind_storable(store, batch, submit->model);
        store_bind_storable(store, batch, submit->deployment);
    }
    pg_bind_array(batch, PG_I64, count * NUMBER_COUNT);
    for (size_t i = 0; i < count; i++) {
        bind_number(batch, ends[i].hour_us / 1000000);
        bind_number(batch, (uint64_t)ends[i].job->state);
        bind_number(batch, (uint64_t)ends[i].job->error_class);
        bind_number(batch, ends[i].jobs);
        bind_number(batch, ends[i].attempts);
        bind_number(batch, ends[i].wait_us);
        bind_number(batch, ends[i].run_us);
    }
    mem_free(&ends);
}
