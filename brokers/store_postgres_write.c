/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The statements of a flush. Each takes one array a column and unnests them together, so that a
 * thousand rows are one parse, one plan and one round trip. unnest() stands in the select list:
 * as a function in FROM each array would first be copied into a store of its own.
 *
 * Which rows were written comes back by RETURNING; the results and the queue deltas of a job are
 * written by the same statement, and only if its row was. `(id IN (SELECT id FROM applied)) IS
 * TRUE` is one lookup in a hash a row; as a bare IN the planner would make a join of it, and its
 * guess of the size of an unknown array (ten) makes that a nested loop.
 *
 * state_before is the job's state until now, for the deltas; 7 stands for a waiting job that is not
 * due yet, there and in what the statement returns.
 *
 * flush_update names no range of ids: for each id the executor leaves out the partitions of other
 * days by itself, and with a range the planner could walk that instead of looking up the ids.
 *
 * Numbers from the wire are cut to their column's range, and texts of workers are made valid UTF-8
 * without NUL: a strange error message must not cost a job its result. Other texts are stored as
 * they are or refused (SQLSTATE 22), and then the halving finds their job. When it comes back as
 * failed by error class unstorable, its texts are made storable too, and what has no storable form
 * is left out: so it has a row, and its client an answer.
 */

#include <string.h>

#include "base/assert.h"
#include "brokers/store_postgres.h"

PG_STATEMENT(flush_guard, "SELECT flush_guard($1, $2, $3)");
PG_STATEMENT(flush_undo, "SELECT flush_undo()");

PG_STATEMENT(
    flush_insert,
    "WITH u AS MATERIALIZED (SELECT unnest($1::uuid[]) AS id, unnest($2::timestamptz[]) AS "
    "accepted_at, unnest($3::timestamptz[]) AS received_at, unnest($4::timestamptz[]) AS "
    "start_deadline_at, unnest($5::timestamptz[]) AS total_deadline_at, unnest($6::bigint[]) "
    "AS seq, unnest($7::bigint[]) AS input_size, unnest($8::bigint[]) AS run_limit_ms, "
    "unnest($9::bigint[]) AS queue_limit_ms, unnest($10::bigint[]) AS total_limit_ms, "
    "unnest($11::integer[]) AS initial_delay_ms, unnest($12::integer[]) AS max_delay_ms, "
    "unnest($13::integer[]) AS slot_count, unnest($14::smallint[]) AS round, "
    "unnest($15::smallint[]) AS rank, unnest($16::smallint[]) AS max_attempts, "
    "unnest($17::boolean[]) AS sync, unnest($18::text[]) AS tenant, unnest($19::text[]) AS "
    "model, unnest($20::text[]) AS deployment, unnest($21::text[]) AS environment, "
    "unnest($22::text[]) AS pool, unnest($23::bytea[]) AS input_digest, unnest($24::text[]) "
    "AS input_blob, unnest($25::text[]) AS webhook_url, unnest($26::text[]) AS "
    "idempotency_key, unnest($27::text[]) AS gateway, unnest($28::text[]) AS trace, "
    "unnest($29::text[]) AS key_prefix, unnest($30::smallint[]) AS state, "
    "unnest($31::timestamptz[]) AS state_at, unnest($32::timestamptz[]) AS due_at, "
    "unnest($33::timestamptz[]) AS started_at, unnest($34::bigint[]) AS token, "
    "unnest($35::bigint[]) AS fence, unnest($36::smallint[]) AS error_class, "
    "unnest($37::smallint[]) AS attempt_count, unnest($38::smallint[]) AS user_failures, "
    "unnest($39::smallint[]) AS oom_failures, unnest($40::smallint[]) AS lost_failures, "
    "unnest($41::text[]) AS worker, unnest($42::text[]) AS error_message, unnest($54::text[]) AS "
    "input_type, unnest($55::text[]) AS route, unnest($56::boolean[]) AS stream), applied AS "
    "(INSERT "
    "INTO job (id, accepted_at, received_at, start_deadline_at, total_deadline_at, seq, "
    "input_size, run_limit_ms, queue_limit_ms, total_limit_ms, initial_delay_ms, "
    "max_delay_ms, slot_count, round, rank, max_attempts, sync, tenant, model, deployment, "
    "environment, pool, input_digest, input_blob, webhook_url, idempotency_key, gateway, "
    "trace, key_prefix, state, state_at, due_at, started_at, token, fence, error_class, "
    "attempt_count, user_failures, oom_failures, lost_failures, worker, error_message, input_type, "
    "route, stream, shard) "
    "SELECT u.*, $43::smallint FROM u ON CONFLICT (id) DO NOTHING RETURNING id), results AS "
    "(INSERT INTO job_result (job_id, round, token, output_size, output, output_blob, output_type, "
    "http_status) SELECT * FROM (SELECT unnest($44::uuid[]) AS id, unnest($45::smallint[]) AS "
    "round, unnest($46::bigint[]) AS token, unnest($47::bigint[]) AS output_size, "
    "unnest($48::bytea[]) AS output, unnest($49::text[]) AS output_blob, unnest($50::text[]) AS "
    "output_type, unnest($51::smallint[]) AS http_status) r WHERE (r.id IN "
    "(SELECT id FROM applied)) IS TRUE ON CONFLICT DO NOTHING), inputs AS (INSERT INTO "
    "job_input (job_id, input) SELECT * FROM (SELECT unnest($52::uuid[]) AS id, "
    "unnest($53::bytea[]) AS input) i WHERE (i.id IN (SELECT id FROM applied)) IS TRUE ON "
    "CONFLICT DO NOTHING), deltas AS (INSERT INTO queue_delta (shard, rank, deployment, pool, "
    "waiting, running, delayed, bytes) SELECT $43::smallint, rank, deployment, pool, count(*) "
    "FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 2), count(*) FILTER (WHERE state "
    "= 1 AND due_at IS NOT NULL), sum(input_size)::bigint FROM u WHERE state IN (1, 2) AND (id "
    "IN (SELECT id FROM applied)) IS TRUE GROUP BY rank, deployment, pool) SELECT id FROM "
    "applied");

PG_STATEMENT(
    flush_update,
    "WITH applied AS (UPDATE job SET state_before = CASE WHEN job.state = 1 AND job.due_at IS "
    "NOT NULL THEN 7 ELSE job.state END, state = u.state, state_at = "
    "u.state_at, due_at = u.due_at, started_at = coalesce(u.started_at, job.started_at), "
    "token = u.token, fence = greatest(job.fence, u.fence), error_class = u.error_class, "
    "attempt_count = u.attempt_count, user_failures = u.user_failures, oom_failures = "
    "u.oom_failures, lost_failures = u.lost_failures, worker = coalesce(u.worker, "
    "job.worker), error_message = u.error_message FROM (SELECT unnest($1::uuid[]) AS id, "
    "unnest($2::smallint[]) AS round, unnest($3::bigint[]) AS final_token, "
    "unnest($4::smallint[]) AS state, unnest($5::timestamptz[]) AS state_at, "
    "unnest($6::timestamptz[]) AS due_at, unnest($7::timestamptz[]) AS started_at, "
    "unnest($8::bigint[]) AS token, unnest($9::bigint[]) AS fence, unnest($10::smallint[]) AS "
    "error_class, unnest($11::smallint[]) AS attempt_count, unnest($12::smallint[]) AS "
    "user_failures, unnest($13::smallint[]) AS oom_failures, unnest($14::smallint[]) AS "
    "lost_failures, unnest($15::text[]) AS worker, unnest($16::text[]) AS error_message) u "
    "WHERE job.id = u.id AND job.round = u.round AND job.state IN (1, 2) AND CASE WHEN "
    "u.final_token <> 0 THEN job.fence < u.final_token ELSE job.fence <= u.fence END "
    "RETURNING job.id, job.shard, job.rank, job.deployment, job.pool, job.input_size, CASE WHEN "
    "job.state = 1 AND job.due_at IS NOT NULL THEN 7 ELSE job.state END AS state, "
    "job.state_before), results AS (INSERT INTO job_result (job_id, round, token, "
    "output_size, output, output_blob, output_type, http_status) SELECT * FROM (SELECT "
    "unnest($17::uuid[]) AS id, "
    "unnest($18::smallint[]) AS round, unnest($19::bigint[]) AS token, unnest($20::bigint[]) "
    "AS output_size, unnest($21::bytea[]) AS output, unnest($22::text[]) AS output_blob, "
    "unnest($23::text[]) AS output_type, unnest($24::smallint[]) AS http_status) r "
    "WHERE (r.id IN (SELECT id FROM applied)) IS TRUE ON CONFLICT DO NOTHING), deltas AS "
    "(INSERT INTO queue_delta (shard, rank, deployment, pool, waiting, running, delayed, bytes) "
    "SELECT shard, rank, deployment, pool, sum((state IN (1, 7))::integer - (state_before IN "
    "(1, 7))::integer), sum((state = 2)::integer - (state_before = 2)::integer), sum((state = "
    "7)::integer - (state_before = 7)::integer), -coalesce(sum(input_size) FILTER (WHERE state "
    "IN (3, 4, 5, 6)), 0)::bigint FROM applied WHERE state <> state_before GROUP BY shard, rank, "
    "deployment, pool) SELECT id FROM applied");

/* A dead row begins its next round in another place; budgets and numbers of attempts begin anew. */
PG_STATEMENT(
    flush_replay,
    "WITH applied AS (UPDATE job SET state = u.state, state_at = u.state_at, round = u.round, seq "
    "= u.seq, rank = u.rank, replayed_at = u.replayed_at, start_deadline_at = "
    "u.start_deadline_at, total_deadline_at = u.total_deadline_at, due_at = NULL, started_at = "
    "NULL, worker = NULL, token = 0, fence = greatest(job.fence, u.fence), attempt_count = 0, "
    "user_failures = 0, oom_failures = 0, "
    "lost_failures = 0, error_class = u.error_class, error_message = u.error_message FROM (SELECT "
    "unnest($1::uuid[]) AS id, unnest($2::smallint[]) AS round, unnest($3::bigint[]) AS seq, "
    "unnest($4::smallint[]) AS rank, unnest($5::timestamptz[]) AS replayed_at, "
    "unnest($6::timestamptz[]) AS start_deadline_at, unnest($7::timestamptz[]) AS "
    "total_deadline_at, unnest($8::smallint[]) AS state, unnest($9::timestamptz[]) AS state_at, "
    "unnest($10::smallint[]) AS error_class, unnest($11::text[]) AS error_message, "
    "unnest($12::bigint[]) AS fence) u WHERE "
    "job.id = u.id AND job.round = u.round - 1 AND job.state IN (4, 5) RETURNING job.id, "
    "job.shard, job.rank, job.deployment, job.pool, job.state, job.input_size), deltas AS (INSERT "
    "INTO "
    "queue_delta (shard, rank, deployment, pool, waiting, running, bytes) SELECT shard, rank, "
    "deployment, pool, count(*), 0, sum(input_size)::bigint FROM applied WHERE state = 1 GROUP BY "
    "shard, rank, "
    "deployment, pool) SELECT id FROM applied");

/* Rows that were updated by the statement before move to another line. */
PG_STATEMENT(
    flush_place,
    "WITH u AS MATERIALIZED (SELECT unnest($1::uuid[]) AS id, unnest($2::smallint[]) AS rank, "
    "unnest($3::bigint[]) AS seq), old AS MATERIALIZED (SELECT j.id, j.shard, j.rank, "
    "j.deployment, "
    "j.pool, j.state, (j.due_at IS NOT NULL)::integer AS due, j.input_size, u.rank AS new_rank, "
    "u.seq FROM u JOIN job j ON j.id = u.id), moved AS (UPDATE job SET rank = old.new_rank, seq = "
    "old.seq FROM old WHERE job.id = old.id RETURNING job.id), sides AS (SELECT shard, rank, "
    "deployment, pool, state, due, input_size, -1 AS n FROM old UNION ALL SELECT shard, new_rank, "
    "deployment, pool, state, due, input_size, 1 FROM old) INSERT INTO queue_delta (shard, rank, "
    "deployment, pool, waiting, running, delayed, bytes) SELECT shard, rank, deployment, pool, "
    "coalesce(sum(n) FILTER (WHERE state = 1), 0), coalesce(sum(n) FILTER (WHERE state = 2), 0), "
    "coalesce(sum(n * due) FILTER (WHERE state = 1), 0), sum(n * input_size)::bigint FROM sides "
    "WHERE state IN (1, 2) GROUP BY shard, rank, deployment, pool");

PG_STATEMENT(flush_tags,
             "INSERT INTO job_tag (job_id, tag) SELECT u.id, t.tag FROM (SELECT "
             "unnest($1::uuid[]) AS id, unnest($2::text[]) AS tags) u CROSS JOIN LATERAL "
             "unnest(string_to_array(u.tags, ',')) AS t (tag) ON CONFLICT DO NOTHING");

PG_STATEMENT(flush_steps, "INSERT INTO chain_step (run_id, step, item, round, job_id) SELECT "
                          "unnest($1::uuid[]), unnest($2::text[]), unnest($3::integer[]), "
                          "unnest($4::smallint[]), unnest($5::uuid[]) ON CONFLICT DO NOTHING");

/* Behind the statements of the jobs: what they did is what counts. Written once: a second copy of
 * a Place says less than the first. */
PG_STATEMENT(flush_commands,
             "INSERT INTO command_done (command_id, applied, reason, epoch, number) SELECT id, "
             "applied AND here, CASE WHEN applied AND NOT here THEN 'the job is gone' ELSE reason "
             "END, $6, $7 FROM (SELECT u.*, u.round = 0 OR EXISTS (SELECT FROM job j WHERE j.id = "
             "u.job AND j.round = u.round) AS here FROM (SELECT unnest($1::bigint[]) AS id, "
             "unnest($2::uuid[]) AS job, unnest($3::smallint[]) AS round, unnest($4::boolean[]) AS "
             "applied, unnest($5::text[]) AS reason) u) c ON CONFLICT DO NOTHING");

PG_STATEMENT(
    flush_attempts,
    "INSERT INTO attempt (job_id, token, boot, dispatched_at, started_at, ended_at, round, "
    "number, error_class, batch_count, worker, device, error_message) SELECT "
    "unnest($1::uuid[]) AS job_id, unnest($2::bigint[]) AS token, unnest($3::bigint[]) AS "
    "boot, unnest($4::timestamptz[]) AS dispatched_at, unnest($5::timestamptz[]) AS "
    "started_at, unnest($6::timestamptz[]) AS ended_at, unnest($7::smallint[]) AS round, "
    "unnest($8::smallint[]) AS number, unnest($9::smallint[]) AS error_class, "
    "unnest($10::integer[]) AS batch_count, unnest($11::text[]) AS worker, "
    "unnest($12::text[]) AS device, unnest($13::text[]) AS error_message ON CONFLICT DO "
    "NOTHING");

PG_STATEMENT(flush_row,
             "INSERT INTO flush (shard, epoch, number, intake_floor, outcome_floor, floor_at, "
             "published_epoch, published_number, final_ids, command_floor) "
             "VALUES ($1, $2, $3, $4, $5, coalesce($6, 'epoch'), $7, $8, $9, $10)");
PG_STATEMENT(flush_row_ends,
             "INSERT INTO flush (shard, epoch, number, intake_floor, outcome_floor, floor_at, "
             "published_epoch, published_number, final_ids, command_floor, end_names, end_numbers) "
             "VALUES ($1, $2, $3, $4, $5, coalesce($6, 'epoch'), $7, $8, $9, $10, $11, $12)");

/* A range's jobs of one action. */
struct selection {
    const struct flush_job **jobs;
    size_t count;
};

static void selection_done(struct selection *selection)
{
    mem_free(&selection->jobs);
}

static void selection_make(const struct flush *flush, const struct flush_range *range,
                           enum flush_action action, struct selection *ret_selection)
{
    struct selection selection = {
        .jobs = xcalloc(range->beyond - range->first + 1, sizeof(struct flush_job *))};

    for (size_t i = range->first; i < range->beyond; i++) {
        if (flush->jobs[i].action == action)
            selection.jobs[selection.count++] = &flush->jobs[i];
    }
    *ret_selection = selection;
}

/* ---- values ---- */

static int64_t cut(uint64_t value, int64_t highest)
{
    return value > (uint64_t)highest ? highest : (int64_t)value;
}

/* Size of the UTF-8 character at text, 0 when there is none that Postgres would store. */
static size_t utf8_size(const uint8_t *text, size_t left)
{
    size_t size = text[0] < 0x80   ? 1
                  : text[0] < 0xc2 ? 0
                  : text[0] < 0xe0 ? 2
                  : text[0] < 0xf0 ? 3
                  : text[0] < 0xf5 ? 4
                                   : 0;

    if (size == 0 || size > left || text[0] == 0)
        return 0;
    for (size_t i = 1; i < size; i++) {
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    }
    if ((text[0] == 0xe0 && text[1] < 0xa0) || (text[0] == 0xed && text[1] > 0x9f) ||
        (text[0] == 0xf0 && text[1] < 0x90) || (text[0] == 0xf4 && text[1] > 0x8f))
        return 0;
    return size;
}

void store_bind_storable(struct store *store, struct pg_batch *batch, struct wire_text text)
{
    const uint8_t *bytes = (const uint8_t *)text.text;
    size_t good = 0, size;

    while (good < text.size && (size = utf8_size(bytes + good, text.size - good)) > 0)
        good += size;
    if (good == text.size) {
        pg_bind_text(batch, text);
        return;
    }
    buf_clear(&store->text);
    for (size_t i = 0; i < text.size; i += size) {
        size = utf8_size(bytes + i, text.size - i);
        if (size == 0) {
            buf_append_byte(&store->text, '?');
            size = 1;
        } else {
            buf_append(&store->text, bytes + i, size);
        }
    }
    pg_bind_text(batch, (struct wire_text){(const char *)store->text.bytes, store->text.size});
}

/* One array parameter: an item a job of the selection. */
#define BIND_EACH(type, bind)                                                                      \
    do {                                                                                           \
        pg_bind_array(batch, (type), selection->count);                                            \
        for (size_t n_ = 0; n_ < selection->count; n_++) {                                         \
            const struct flush_job *job = selection->jobs[n_];                                     \
            const struct message_submit *submit = &job->spec->submit;                              \
                                                                                                   \
            (void)submit;                                                                          \
            bind;                                                                                  \
        }                                                                                          \
    } while (0)
#define BIND_I16(value) BIND_EACH(PG_I16, pg_bind_i16(batch, cut((value), INT16_MAX)))
#define BIND_I32(value) BIND_EACH(PG_I32, pg_bind_i32(batch, cut((value), INT32_MAX)))
#define BIND_I64(value) BIND_EACH(PG_I64, pg_bind_i64(batch, cut((value), INT64_MAX)))
#define BIND_TIME(value) BIND_EACH(PG_TIME, pg_bind_time(batch, (value)))
#define BIND_TEXT(value) BIND_EACH(PG_TEXT, pg_bind_text(batch, (value)))

static bool unstorable(const struct flush_job *job)
{
    return job->error_class == ERROR_CLASS_UNSTORABLE;
}

static void bind_spec_text(struct store *store, struct pg_batch *batch, const struct flush_job *job,
                           struct wire_text text)
{
    if (unstorable(job))
        store_bind_storable(store, batch, text);
    else
        pg_bind_text(batch, text);
}
#define BIND_SPEC_TEXT(value) BIND_EACH(PG_TEXT, bind_spec_text(store, batch, job, (value)))

/* What never changes: $1 to $29 of flush_insert. */
static void bind_spec(struct store *store, struct pg_batch *batch,
                      const struct selection *selection)
{
    static const uint8_t zeros[32];
    const struct wire_bytes no_digest = {zeros, sizeof(zeros)};

    BIND_EACH(PG_ID, pg_bind_id(batch, &submit->id));
    BIND_TIME(job->spec->accepted_us);
    BIND_TIME(unstorable(job) ? job->spec->accepted_us : submit->received_us);
    BIND_TIME(job->spec->start_deadline_us);
    BIND_TIME(job->spec->total_deadline_us);
    BIND_I64(job->spec->seq);
    BIND_I64(submit->input_size);
    BIND_I64(submit->run_limit_ms);
    BIND_I64(submit->queue_limit_ms);
    BIND_I64(submit->total_limit_ms);
    BIND_I32(submit->initial_delay_ms);
    BIND_I32(submit->max_delay_ms);
    BIND_I32(job->spec->slot_count);
    BIND_I16(job->spec->round);
    BIND_I16(job->spec->rank);
    BIND_I16(submit->max_attempts);
    BIND_EACH(PG_BOOL, pg_bind_bool(batch, submit->sync));
    BIND_SPEC_TEXT(submit->tenant);
    BIND_SPEC_TEXT(submit->model);
    BIND_SPEC_TEXT(submit->deployment);
    BIND_SPEC_TEXT(submit->environment);
    BIND_SPEC_TEXT(submit->pool);
    BIND_EACH(PG_BYTES, pg_bind_bytes(batch, unstorable(job) ? no_digest : submit->input_digest));
    BIND_SPEC_TEXT(submit->input_blob);
    BIND_SPEC_TEXT(submit->webhook_url);
    BIND_SPEC_TEXT(submit->idempotency_key);
    BIND_SPEC_TEXT(submit->gateway);
    BIND_SPEC_TEXT(submit->trace);
    BIND_SPEC_TEXT(submit->key_prefix);
}

/* What a flush changes: from `state` to `error_message`, in the order of both statements. */
static void bind_state(struct store *store, struct pg_batch *batch,
                       const struct selection *selection)
{
    BIND_I16((uint64_t)job->state);
    BIND_TIME(job->state_us);
    BIND_TIME(job->due_us);
    BIND_TIME(job->started_us);
    BIND_I64(job->token);
    BIND_I64(job->fence);
    BIND_I16((uint64_t)job->error_class);
    BIND_I16(job->attempt_count);
    BIND_I16(job->user_failures);
    BIND_I16(job->oom_failures);
    BIND_I16(job->lost_failures);
    BIND_EACH(PG_TEXT, store_bind_storable(store, batch, job->worker));
    BIND_EACH(PG_TEXT, store_bind_storable(store, batch, job->error_message));
}

/* A failure has one only when its model itself has answered. */
static bool has_result(const struct flush_job *job)
{
    return job->state == JOB_SUCCEEDED ||
           (job->state == JOB_FAILED &&
            (job->http_status != 0 || job->output.size > 0 || job->output_blob.size > 0));
}

static void bind_results(struct store *store, struct pg_batch *batch, const struct selection *all)
{
    struct selection results = {.jobs = xcalloc(all->count + 1, sizeof(struct flush_job *))};
    const struct selection *selection = &results;

    for (size_t i = 0; i < all->count; i++) {
        if (has_result(all->jobs[i]))
            results.jobs[results.count++] = all->jobs[i];
    }
    BIND_EACH(PG_ID, pg_bind_id(batch, &submit->id));
    BIND_I16(job->spec->round);
    BIND_I64(job->final_token);
    BIND_I64(job->output_size);
    BIND_EACH(PG_BYTES, pg_bind_bytes(batch, job->output));
    BIND_TEXT(job->output_blob);
    BIND_EACH(PG_TEXT, store_bind_storable(store, batch, job->output_type));
    BIND_I16(job->http_status);
    selection_done(&results);
}

/* An input is worth a row while its job may still run: not final, or dead and to be replayed. */
static void bind_inputs(struct pg_batch *batch, const struct selection *all)
{
    struct selection kept = {.jobs = xcalloc(all->count + 1, sizeof(struct flush_job *))};
    const struct selection *selection = &kept;

    for (size_t i = 0; i < all->count; i++) {
        const struct flush_job *job = all->jobs[i];

        if (job->spec->submit.input.size > 0 &&
            (!job_state_final(job->state) || job_state_dead(job->state)))
            kept.jobs[kept.count++] = job;
    }
    BIND_EACH(PG_ID, pg_bind_id(batch, &submit->id));
    BIND_EACH(PG_BYTES, pg_bind_bytes(batch, submit->input));
    selection_done(&kept);
}

/* Few jobs have tags: their rows cost the others nothing. */
static void write_tags(struct store *store, const struct selection *inserts, struct pg_batch *batch)
{
    OWNED(selection_done)
    struct selection tagged = {.jobs = xcalloc(inserts->count + 1, sizeof(struct flush_job *))};
    const struct selection *selection = &tagged;

    for (size_t i = 0; i < inserts->count; i++) {
        if (inserts->jobs[i]->spec->submit.tags.size > 0 && !unstorable(inserts->jobs[i]))
            tagged.jobs[tagged.count++] = inserts->jobs[i];
    }
    if (tagged.count == 0)
        return;
    pg_add(batch, &flush_tags);
    BIND_EACH(PG_ID, pg_bind_id(batch, &submit->id));
    BIND_EACH(PG_TEXT, store_bind_storable(store, batch, submit->tags));
}

/* Which run and step of a chain the few jobs belong to that do. */
static void write_steps(struct store *store, const struct selection *inserts,
                        struct pg_batch *batch)
{
    OWNED(selection_done) struct selection steps = {0};
    const struct selection *selection = &steps;

    for (size_t i = 0; i < inserts->count; i++) {
        if (inserts->jobs[i]->spec->submit.step.size == 0)
            continue;
        if (steps.jobs == NULL)
            steps.jobs = xcalloc(inserts->count, sizeof(struct flush_job *));
        steps.jobs[steps.count++] = inserts->jobs[i];
    }
    if (steps.count == 0)
        return;
    pg_add(batch, &flush_steps);
    BIND_EACH(PG_ID, pg_bind_id(batch, &submit->parent));
    BIND_EACH(PG_TEXT, store_bind_storable(store, batch, submit->step));
    BIND_EACH(PG_I32, pg_bind_i32(batch, cut(submit->step_item, INT32_MAX)));
    BIND_EACH(PG_I16, pg_bind_i16(batch, cut(submit->step_round, INT16_MAX)));
    BIND_EACH(PG_ID, pg_bind_id(batch, &submit->id));
}

static void write_inserts(struct store *store, uint32_t shard, const struct selection *selection,
                          struct pg_batch *batch)
{
    pg_add(batch, &flush_insert);
    bind_spec(store, batch, selection);
    bind_state(store, batch, selection);
    pg_bind_i16(batch, (int64_t)shard);
    bind_results(store, batch, selection);
    bind_inputs(batch, selection);
    BIND_SPEC_TEXT(submit->input_type);
    BIND_SPEC_TEXT(submit->route);
    BIND_EACH(PG_BOOL, pg_bind_bool(batch, submit->stream));
}

static void write_updates(struct store *store, const struct selection *selection,
                          struct pg_batch *batch)
{
    pg_add(batch, &flush_update);
    BIND_EACH(PG_ID, pg_bind_id(batch, &submit->id));
    BIND_I16(job->spec->round);
    BIND_I64(job->final_token);
    bind_state(store, batch, selection);
    bind_results(store, batch, selection);
}

static void write_replays(struct store *store, const struct selection *selection,
                          struct pg_batch *batch)
{
    pg_add(batch, &flush_replay);
    BIND_EACH(PG_ID, pg_bind_id(batch, &submit->id));
    BIND_I16(job->spec->round);
    BIND_I64(job->spec->seq);
    BIND_I16(job->spec->rank);
    BIND_TIME(job->spec->queued_us);
    BIND_TIME(job->spec->start_deadline_us);
    BIND_TIME(job->spec->total_deadline_us);
    BIND_I16((uint64_t)job->state);
    BIND_TIME(job->state_us);
    BIND_I16((uint64_t)job->error_class);
    BIND_EACH(PG_TEXT, store_bind_storable(store, batch, job->error_message));
    BIND_I64(job->fence);
}

static void write_places(const struct selection *updates, struct pg_batch *batch)
{
    OWNED(selection_done)
    struct selection placed = {.jobs = xcalloc(updates->count + 1, sizeof(struct flush_job *))};
    const struct selection *selection = &placed;

    for (size_t i = 0; i < updates->count; i++) {
        if (updates->jobs[i]->placed)
            placed.jobs[placed.count++] = updates->jobs[i];
    }
    if (placed.count == 0)
        return;
    pg_add(batch, &flush_place);
    BIND_EACH(PG_ID, pg_bind_id(batch, &submit->id));
    BIND_I16(job->spec->rank);
    BIND_I64(job->spec->seq);
}

#define COMMAND_EACH(type, bind)                                                                   \
    do {                                                                                           \
        pg_bind_array(batch, (type), flush->command_count);                                        \
        for (size_t n_ = 0; n_ < flush->command_count; n_++) {                                     \
            const struct flush_command *command = &flush->commands[n_];                            \
                                                                                                   \
            bind;                                                                                  \
        }                                                                                          \
    } while (0)

static void write_commands(const struct flush *flush, struct pg_batch *batch)
{
    if (flush->command_count == 0)
        return;
    pg_add(batch, &flush_commands);
    COMMAND_EACH(PG_I64, pg_bind_i64(batch, cut(command->id, INT64_MAX)));
    COMMAND_EACH(PG_ID, pg_bind_id(batch, &command->job));
    COMMAND_EACH(PG_I16, pg_bind_i16(batch, cut(command->round, INT16_MAX)));
    COMMAND_EACH(PG_BOOL, pg_bind_bool(batch, command->applied));
    COMMAND_EACH(PG_TEXT, pg_bind_c(batch, command->reason));
    pg_bind_i64(batch, (int64_t)flush->epoch);
    pg_bind_i64(batch, cut(flush->number, INT64_MAX));
}

static bool range_has_job(const struct flush *flush, const struct flush_range *range,
                          const struct wire_id *id)
{
    for (size_t i = range->first; i < range->beyond; i++) {
        if (memcmp(flush->jobs[i].spec->submit.id.bytes, id->bytes, WIRE_ID_SIZE) == 0)
            return true;
    }
    return false;
}

#define ATTEMPT_EACH(type, bind)                                                                   \
    do {                                                                                           \
        pg_bind_array(batch, (type), count);                                                       \
        for (size_t n_ = 0; n_ < count; n_++) {                                                    \
            const struct flush_attempt *attempt = attempts[n_];                                    \
                                                                                                   \
            bind;                                                                                  \
        }                                                                                          \
    } while (0)

static void bind_attempts(struct store *store, struct pg_batch *batch,
                          const struct flush_attempt *const *attempts, size_t count)
{
    ATTEMPT_EACH(PG_ID, pg_bind_id(batch, &attempt->job));
    ATTEMPT_EACH(PG_I64, pg_bind_i64(batch, cut(attempt->token, INT64_MAX)));
    ATTEMPT_EACH(PG_I64, pg_bind_i64(batch, (int64_t)attempt->boot));
    ATTEMPT_EACH(PG_TIME, pg_bind_time(batch, attempt->dispatched_us));
    ATTEMPT_EACH(PG_TIME, pg_bind_time(batch, attempt->started_us));
    ATTEMPT_EACH(PG_TIME, pg_bind_time(batch, attempt->ended_us));
    ATTEMPT_EACH(PG_I16, pg_bind_i16(batch, cut(attempt->round, INT16_MAX)));
    ATTEMPT_EACH(PG_I16, pg_bind_i16(batch, cut(attempt->number, INT16_MAX)));
    ATTEMPT_EACH(PG_I16, pg_bind_i16(batch, (int64_t)attempt->error_class));
    ATTEMPT_EACH(PG_I32, pg_bind_i32(batch, cut(attempt->batch_count, INT32_MAX)));
    ATTEMPT_EACH(PG_TEXT, attempt->worker.size == 0
                              ? pg_bind_c(batch, "")
                              : store_bind_storable(store, batch, attempt->worker));
    ATTEMPT_EACH(PG_TEXT, store_bind_storable(store, batch, attempt->device));
    ATTEMPT_EACH(PG_TEXT, store_bind_storable(store, batch, attempt->error_message));
}

/* A trial of a part writes the attempts of its jobs only. */
static void write_attempts(struct store *store, const struct flush *flush,
                           const struct flush_range *range, struct pg_batch *batch)
{
    const struct flush_attempt **attempts = xcalloc(flush->attempt_count + 1,
                                                    sizeof(struct flush_attempt *));
    bool whole = range->first == 0 && range->beyond == flush->job_count;
    size_t count = 0;

    for (size_t i = 0; i < flush->attempt_count; i++) {
        if (whole || range_has_job(flush, range, &flush->attempts[i].job))
            attempts[count++] = &flush->attempts[i];
    }
    if (count > 0) {
        pg_add(batch, &flush_attempts);
        bind_attempts(store, batch, attempts, count);
    }
    mem_free(&attempts);
}

static void write_row(struct store *store, const struct flush *flush, struct pg_batch *batch)
{
    size_t final_count = 0;

    for (size_t i = 0; i < flush->job_count; i++)
        final_count += job_state_final(flush->jobs[i].state);
    pg_add(batch, final_count > 0 ? &flush_row_ends : &flush_row);
    pg_bind_i16(batch, (int64_t)flush->shard);
    pg_bind_i64(batch, (int64_t)flush->epoch);
    pg_bind_i64(batch, cut(flush->number, INT64_MAX));
    pg_bind_i64(batch, flush->intake_floor);
    pg_bind_i64(batch, flush->outcome_floor);
    pg_bind_time(batch, flush->floor_us);
    pg_bind_i64(batch, (int64_t)flush->published_epoch);
    pg_bind_i64(batch, cut(flush->published_number, INT64_MAX));
    pg_bind_array(batch, PG_ID, final_count);
    for (size_t i = 0; i < flush->job_count; i++) {
        if (job_state_final(flush->jobs[i].state))
            pg_bind_id(batch, &flush->jobs[i].spec->submit.id);
    }
    pg_bind_i64(batch, cut(flush->command_floor, INT64_MAX));
    if (final_count > 0)
        store_bind_ends(store, flush, batch);
}

/* What a trial leaves out. */
static void write_end(struct store *store, const struct flush *flush, struct pg_batch *batch)
{
    write_commands(flush, batch);
    write_row(store, flush, batch);
}

void store_write_flush(struct store *store, const struct flush *flush,
                       const struct flush_range *range, struct pg_batch *batch,
                       struct flush_statements *ret_statements)
{
    struct flush_statements statements = {{SIZE_MAX, SIZE_MAX, SIZE_MAX}};
    size_t statement_count = 1;
    OWNED(selection_done) struct selection inserts = {0};
    OWNED(selection_done) struct selection updates = {0};
    OWNED(selection_done) struct selection replays = {0};

    selection_make(flush, range, FLUSH_INSERT, &inserts);
    selection_make(flush, range, FLUSH_UPDATE, &updates);
    selection_make(flush, range, FLUSH_REPLAY, &replays);
    pg_add(batch, &flush_guard);
    pg_bind_i16(batch, (int64_t)flush->shard);
    pg_bind_i64(batch, (int64_t)flush->epoch);
    pg_bind_i64(batch, (int64_t)flush->number);
    if (inserts.count > 0) {
        write_inserts(store, flush->shard, &inserts, batch);
        statements.at[FLUSH_INSERTED] = statement_count++;
    }
    if (updates.count > 0) {
        write_updates(store, &updates, batch);
        statements.at[FLUSH_UPDATED] = statement_count++;
    }
    if (replays.count > 0) {
        write_replays(store, &replays, batch);
        statements.at[FLUSH_REPLAYED] = statement_count++;
    }
    write_places(&updates, batch);
    write_tags(store, &inserts, batch);
    write_steps(store, &inserts, batch);
    if (!range->without_attempts)
        write_attempts(store, flush, range, batch);
    if (range->trial)
        pg_add(batch, &flush_undo);
    else
        write_end(store, flush, batch);
    *ret_statements = statements;
}
