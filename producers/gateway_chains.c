/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Runs of chains, for people who look at them. A chain is a model whose engine is `chain` and a run
 * a job: what is done with either has the routes of models and of requests.
 */

#include <jansson.h>

#include "brokers/pg.h"
#include "producers/gateway.h"

#define PAGE_DEFAULT 100
#define PAGE_MAX 1000

PG_STATEMENT(
    chain_runs_list,
    "SELECT j.id::text, coalesce(m.name, j.model), j.deployment, state_name(j.state), "
    "j.attempt_count, j.accepted_at, CASE WHEN j.state NOT IN (1, 2) THEN j.state_at END, "
    "j.error_message, coalesce(n.jobs, 0), coalesce(n.over, 0) FROM chain_run r JOIN job j "
    "ON j.id = r.run_id LEFT JOIN model m ON m.id = j.model CROSS JOIN LATERAL (SELECT "
    "count(*) AS jobs, count(*) FILTER (WHERE x.state NOT IN (1, 2)) AS over FROM "
    "chain_step s JOIN job x ON x.id = s.job_id WHERE s.run_id = r.run_id) n WHERE "
    "j.tenant = $1 AND ($2 IN (j.model, m.name)) IS NOT FALSE ORDER BY r.run_id DESC "
    "LIMIT $3");

PG_STATEMENT(
    chain_run_find,
    "SELECT j.id::text, coalesce(m.name, j.model), j.deployment, state_name(j.state), "
    "j.attempt_count, j.accepted_at, CASE WHEN j.state NOT IN (1, 2) THEN j.state_at END, "
    "j.error_message FROM job j JOIN deployment d ON d.id = j.deployment LEFT JOIN model m "
    "ON m.id = j.model WHERE j.id = $1 AND j.tenant = $2 AND d.engine = 'chain'");

/* Of each step that is declared what its jobs came to; those that began first stand first. */
PG_STATEMENT(
    chain_run_steps,
    "SELECT k.key, k.value ->> 'model', count(s.job_id), count(*) FILTER (WHERE x.state = 3), "
    "count(*) FILTER (WHERE x.state IN (4, 5, 6)), count(*) FILTER (WHERE x.state = 2), "
    "max(x.attempt_count), min(x.accepted_at), CASE WHEN bool_and(x.state NOT IN (1, 2)) THEN "
    "max(x.state_at) END, (array_agg(x.error_message ORDER BY s.item) FILTER (WHERE x.state IN (4, "
    "5, 6)))[1], CASE WHEN count(s.job_id) = 1 THEN min(s.job_id::text) END FROM job j JOIN "
    "deployment d ON d.id = j.deployment AND d.engine = 'chain' CROSS JOIN LATERAL "
    "jsonb_each(d.config -> 'steps') k LEFT JOIN (chain_step s JOIN job x ON x.id = s.job_id) ON "
    "s.run_id = j.id AND s.step = k.key WHERE j.id = $1 AND j.tenant = $2 GROUP BY k.key, k.value "
    "ORDER BY min(x.accepted_at) NULLS LAST, k.key");

static json_t *run_json(const struct pg_answer *answer, size_t row)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:I, s:o, s:o, s:o}", "id", pg_c(answer, 0, row, 0),
                     "chain", pg_c(answer, 0, row, 1), "deployment_id", pg_c(answer, 0, row, 2),
                     "status", pg_c(answer, 0, row, 3), "attempts",
                     (json_int_t)pg_i64(answer, 0, row, 4), "accepted_at",
                     json_of_time(answer, 0, row, 5), "ended_at", json_of_time(answer, 0, row, 6),
                     "error_message", json_of_text(answer, 0, row, 7));
}

static json_t *listed_json(const struct pg_answer *answer, size_t row)
{
    json_t *run = run_json(answer, row);

    (void)json_object_set_new(run, "jobs", json_integer((json_int_t)pg_i64(answer, 0, row, 8)));
    (void)json_object_set_new(run, "jobs_over",
                              json_integer((json_int_t)pg_i64(answer, 0, row, 9)));
    return run;
}

static void on_runs(void *opaque, const struct pg_answer *answer)
{
    call_answer_rows(opaque, answer, "chain_runs", listed_json);
}

void chain_runs_begin(struct call *call)
{
    const char *chain = http_target_query(&call->target, "chain");
    struct pg_batch *batch;
    int64_t limit;
    struct err err;

    if (call_query_number(call, "limit", PAGE_DEFAULT, 1, PAGE_MAX, &limit, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &chain_runs_list);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, chain);
    pg_bind_i64(batch, limit);
    call_query(call, &batch, on_runs);
}

/* Told from its jobs. What has none waits, or was skipped; the run's own end says which. */
static const char *step_status(const struct pg_answer *answer, size_t row, bool run_is_over)
{
    int64_t jobs = pg_i64(answer, 1, row, 2);
    bool over = !pg_is_null(answer, 1, row, 8);

    if (pg_is_null(answer, 1, row, 1)) /* a transform */
        return "NO_JOB";
    if (jobs == 0)
        return run_is_over ? "NOT_RUN" : "WAITING";
    if (!over)
        return pg_i64(answer, 1, row, 5) > 0 ? "IN_PROGRESS" : "QUEUED";
    return pg_i64(answer, 1, row, 4) > 0 ? "FAILED" : "SUCCEEDED";
}

static json_t *step_json(const struct pg_answer *answer, size_t row, bool run_is_over)
{
    return json_pack(
        "{s:s, s:o, s:s, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:o}", "name",
        pg_c(answer, 1, row, 0), "model", json_of_text(answer, 1, row, 1), "status",
        step_status(answer, row, run_is_over), "jobs", (json_int_t)pg_i64(answer, 1, row, 2),
        "succeeded", (json_int_t)pg_i64(answer, 1, row, 3), "failed",
        (json_int_t)pg_i64(answer, 1, row, 4), "running", (json_int_t)pg_i64(answer, 1, row, 5),
        "attempts", (json_int_t)pg_i64(answer, 1, row, 6), "began_at",
        json_of_time(answer, 1, row, 7), "ended_at", json_of_time(answer, 1, row, 8),
        "error_message", json_of_text(answer, 1, row, 9), "request_id",
        json_of_text(answer, 1, row, 10));
}

static void on_run(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body, *steps;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "client_error",
                     "there is no such run of a chain; a new one takes a moment to be seen");
        return;
    }
    body = run_json(answer, 0);
    steps = json_array();
    for (size_t i = 0; i < pg_row_count(answer, 1); i++)
        (void)json_array_append_new(steps, step_json(answer, i, !pg_is_null(answer, 0, 0, 6)));
    (void)json_object_set_new(body, "steps", steps);
    call_answer_json(&call, 200, &body);
}

/* What is no id is not ours, and no fault: clients put there what they like. */
bool chain_caller(const struct call *call, struct wire_id *ret_run)
{
    const char *text = http_request_header(call->request, "X-Baseten-Chain-Request-Id");
    struct err err;

    return call->match.route == ROUTE_RUN_REMOTE && text != NULL &&
           job_id_parse(text, ret_run, &err) == 0;
}

void chain_run_begin(struct call *call)
{
    struct pg_batch *batch;
    struct wire_id id;
    struct err err;

    if (call_job_id(call, &id, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &chain_run_find);
    pg_bind_id(batch, &id);
    pg_bind_c(batch, call->tenant);
    pg_add(batch, &chain_run_steps);
    pg_bind_id(batch, &id);
    pg_bind_c(batch, call->tenant);
    call_query(call, &batch, on_run);
}
