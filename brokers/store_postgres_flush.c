/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One flush, from the batch to the verdict.
 *
 *            ┌─ committed ─────────────────────────▶ COMMITTED
 *   send ────┼─ HR001 (guard) ─────────────────────▶ STALE
 *     ▲      ├─ 22…, 23… ─▶ trials of halves ──────▶ REFUSED, the row
 *     │      ├─ lost ─▶ ask for the flush number ─┬▶ COMMITTED
 *     │      │                                    └▶ RETRY
 *     │      └─ anything else ─▶ a pause ──────────▶ RETRY
 *     └── without attempts, when no single job is refused
 *
 * A trial is the same transaction with a part of the jobs, ended by an exception of our own, so it
 * can never commit. The halving looks for one bad row; the caller fails it and sends again, and a
 * second one is found then.
 *
 * Asking for the flush number first locks the shard's row, thus waits until the lost session's
 * transaction is over: an answer that came before its commit would be wrong (PROTOCOL 13).
 */

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/loop.h"
#include "brokers/fault.h"
#include "brokers/store_postgres.h"

#define SQLSTATE_STALE "HR001"
#define SQLSTATE_TRIAL "HR002"
#define SQLSTATE_READ_ONLY "25006"

PG_STATEMENT(resolve_lock, "SELECT epoch FROM shard WHERE id = $1 FOR UPDATE");
PG_STATEMENT(resolve_flush, "SELECT 1 FROM flush WHERE shard = $1 AND epoch = $2 AND number = $3");
PG_STATEMENT(resolve_rows,
             "SELECT job.id FROM unnest($1::uuid[], $2::smallint[], $3::smallint[], "
             "$4::bigint[], $5::timestamptz[]) AS u (id, round, state, token, state_at) "
             "JOIN job ON job.id = u.id AND job.round = u.round AND job.state = u.state "
             "AND job.token = u.token AND job.state_at = u.state_at");

static void flush_send(struct store *store);
static void resolve_ask(struct store *store);

void store_flush_done(struct store *store)
{
    mem_free(&store->flush.applied);
    store->flush = (struct store_flush){0};
}

static void flush_answer(struct store *store, struct flush_result result)
{
    struct store_flush flush = store->flush;

    store->flush = (struct store_flush){0};
    result.number = flush.flush->number;
    result.refused_why = flush.why; /* of the copy: the store's may be used by the next flush */
    flush.done(flush.opaque, &result);
    mem_free(&flush.applied);
}

static void flush_answer_later(struct store *store)
{
    loop_timer_start(store->flush_pause, STORE_PAUSE_MS, 0);
}

void store_on_flush_pause(void *opaque)
{
    flush_answer(opaque, (struct flush_result){.verdict = FLUSH_RETRY});
}

/* ---- which rows were written ---- */

static int id_compare(const void *a, const void *b)
{
    return memcmp(a, b, WIRE_ID_SIZE);
}

/* Marks the jobs whose ids are rows of one of the statements. */
static void applied_mark(struct store_flush *flush, const struct pg_answer *answer,
                         const size_t statements[FLUSH_STATEMENT_COUNT])
{
    size_t count = 0, job_count = flush->flush->job_count;
    struct wire_id *ids = xcalloc(job_count * FLUSH_STATEMENT_COUNT + 1, sizeof(*ids));

    for (int s = 0; s < FLUSH_STATEMENT_COUNT; s++) {
        if (statements[s] == SIZE_MAX)
            continue;
        for (size_t row = 0; row < pg_row_count(answer, statements[s]); row++) {
            assert(count < job_count * FLUSH_STATEMENT_COUNT);
            ids[count++] = pg_id(answer, statements[s], row, 0);
        }
    }
    qsort(ids, count, sizeof(*ids), id_compare);
    for (size_t i = 0; i < job_count; i++)
        flush->applied[i] = bsearch(&flush->flush->jobs[i].spec->submit.id, ids, count,
                                    sizeof(*ids), id_compare) != NULL;
    mem_free(&ids);
}

static void flush_committed(struct store *store, const struct pg_answer *answer,
                            const size_t statements[FLUSH_STATEMENT_COUNT])
{
    applied_mark(&store->flush, answer, statements);
    flush_answer(
        store, (struct flush_result){.verdict = FLUSH_COMMITTED, .applied = store->flush.applied});
}

/* ---- trials ---- */

static void flush_refuse(struct store *store, size_t index)
{
    flush_answer(store, (struct flush_result){.verdict = FLUSH_REFUSED, .refused_index = index});
}

static void trial_send(struct store *store)
{
    struct store_flush *flush = &store->flush;
    size_t half = (flush->high - flush->low + 1) / 2;

    flush->range = (struct flush_range){.first = flush->low,
                                        .beyond = flush->low + half,
                                        .trial = true,
                                        .without_attempts = flush->without_attempts};
    flush_send(store);
}

/* The whole flush was refused. */
static void trials_begin(struct store *store)
{
    struct store_flush *flush = &store->flush;

    flush->low = 0;
    flush->high = flush->flush->job_count;
    if (flush->high > 0) {
        trial_send(store);
    } else if (!flush->without_attempts) {
        flush->without_attempts = true;
        flush->range.without_attempts = true;
        flush_send(store);
    } else {
        flush_answer_later(store); /* the flush row itself: nothing of it comes from outside */
    }
}

/* The part that was tried is refused, or is good and the fault lies behind it. */
static void trial_done(struct store *store, bool refused)
{
    struct store_flush *flush = &store->flush;
    bool single = flush->high - flush->low == 1;

    if (refused && flush->range.beyond - flush->range.first == 1) {
        flush_refuse(store, flush->range.first);
    } else if (refused) {
        flush->high = flush->range.beyond;
        trial_send(store);
    } else if (!single) {
        flush->low = flush->range.beyond;
        trial_send(store);
    } else if (!flush->without_attempts) { /* each job is good by itself */
        flush->without_attempts = true;
        flush->range = (struct flush_range){.beyond = flush->flush->job_count,
                                            .without_attempts = true};
        flush_send(store);
    } else {
        flush_refuse(store, flush->low);
    }
}

/* ---- a lost commit ---- */

static void on_resolve_terminated(void *opaque, const struct pg_answer *answer)
{
    (void)answer; /* whatever came of it, asking again finds out */
    resolve_ask(opaque);
}

static void on_resolved(void *opaque, const struct pg_answer *answer)
{
    struct store *store = opaque;
    static const size_t statements[FLUSH_STATEMENT_COUNT] = {3, SIZE_MAX, SIZE_MAX};

    if (strcmp(answer->sqlstate, STORE_NO_PATIENCE) == 0) {
        store_terminate_others(store, store->flush.flush->shard, store->flush.flush->epoch,
                               on_resolve_terminated);
    } else if (answer->err.code == ERR_UNKNOWN || answer->err.code == ERR_UNAVAILABLE) {
        resolve_ask(store);
    } else if (answer->err.code != ERR_OK) {
        pg_reset(store->pg); /* and ask again on another connection */
        resolve_ask(store);
    } else if (pg_row_count(answer, 2) > 0) {
        flush_committed(store, answer, statements);
    } else {
        flush_answer(store, (struct flush_result){.verdict = FLUSH_RETRY});
    }
}

static void resolve_ask(struct store *store)
{
    const struct flush *flush = store->flush.flush;
    struct pg_batch *batch = pg_batch_new();

    store_add_patience(batch);
    pg_add(batch, &resolve_lock);
    pg_bind_i16(batch, (int64_t)flush->shard);
    pg_add(batch, &resolve_flush);
    pg_bind_i16(batch, (int64_t)flush->shard);
    pg_bind_i64(batch, (int64_t)flush->epoch);
    pg_bind_i64(batch, (int64_t)flush->number);
    pg_add(batch, &resolve_rows);
    pg_bind_array(batch, PG_ID, flush->job_count);
    for (size_t i = 0; i < flush->job_count; i++)
        pg_bind_id(batch, &flush->jobs[i].spec->submit.id);
    pg_bind_array(batch, PG_I16, flush->job_count);
    for (size_t i = 0; i < flush->job_count; i++)
        pg_bind_i16(batch, (int64_t)(flush->jobs[i].spec->round & INT16_MAX));
    pg_bind_array(batch, PG_I16, flush->job_count);
    for (size_t i = 0; i < flush->job_count; i++)
        pg_bind_i16(batch, (int64_t)flush->jobs[i].state);
    pg_bind_array(batch, PG_I64, flush->job_count);
    for (size_t i = 0; i < flush->job_count; i++)
        pg_bind_i64(batch, (int64_t)flush->jobs[i].token);
    pg_bind_array(batch, PG_TIME, flush->job_count);
    for (size_t i = 0; i < flush->job_count; i++)
        pg_bind_time(batch, flush->jobs[i].state_us);
    store_send(store, &batch, on_resolved, store);
}

/* ---- sending ---- */

static bool is_refusal(const char *sqlstate)
{
    return strncmp(sqlstate, "22", 2) == 0 || strncmp(sqlstate, "23", 2) == 0;
}

static void on_flush(void *opaque, const struct pg_answer *answer)
{
    struct store *store = opaque;
    struct store_flush *flush = &store->flush;
    if (answer->err.code == ERR_OK) {
        assert(!flush->range.trial);
        flush_committed(store, answer, flush->statements.at);
    } else if (strcmp(answer->sqlstate, SQLSTATE_STALE) == 0) {
        flush_answer(store, (struct flush_result){.verdict = FLUSH_STALE});
    } else if (strcmp(answer->sqlstate, SQLSTATE_TRIAL) == 0) {
        trial_done(store, false);
    } else if (is_refusal(answer->sqlstate)) {
        mem_copy_text(flush->why, answer->err.text);
        if (flush->range.trial)
            trial_done(store, true);
        else
            trials_begin(store);
    } else if (answer->err.code == ERR_UNKNOWN && flush->range.trial) {
        flush_send(store);
    } else if (answer->err.code == ERR_UNKNOWN) {
        resolve_ask(store);
    } else {
        if (strcmp(answer->sqlstate, SQLSTATE_READ_ONLY) == 0)
            pg_reset(store->pg); /* this server is a standby now: look for the other one */
        flush_answer_later(store);
    }
}

static void flush_send(struct store *store)
{
    struct pg_batch *batch = pg_batch_new();

    store_write_flush(store, store->flush.flush, &store->flush.range, batch,
                      &store->flush.statements);
    pg_batch_set_fault(batch, FAULT_broker_flush_written);
    store_send(store, &batch, on_flush, store);
}

void store_flush(struct store *store, const struct flush *flush, store_flush_fn *done, void *opaque)
{
    assert(store->flush.flush == NULL);
    assert(flush->job_count <= FLUSH_JOBS_MAX);
    store->flush = (struct store_flush){
        .flush = flush,
        .done = done,
        .opaque = opaque,
        .range = {.beyond = flush->job_count},
        .applied = xcalloc(flush->job_count + 1, sizeof(bool)),
    };
    flush_send(store);
}
