/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Runs of chains, for people who look at them. A chain is a model whose engine is `chain` and a run
 * a job: what is done with either has the routes of models and of requests.
 */

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "brokers/pg.h"
#include "base/loop.h"
#include "producers/gateway.h"
#include "producers/gateway_status.h"
#include "schema/chain.h"
#include "schema/job_id.h"

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
    chain_decide,
    "SELECT taken, approved, due_at > now() FROM chain_wait_decide($1, $2, $3, $4, $5, $6)");

/* A run is of a chain, or of a model whose calls of other models were told to be its own: a chain
 * in Python. */
PG_STATEMENT(
    chain_run_find,
    "SELECT j.id::text, coalesce(m.name, j.model), j.deployment, state_name(j.state), "
    "j.attempt_count, j.accepted_at, CASE WHEN j.state NOT IN (1, 2) THEN j.state_at END, "
    "j.error_message, CASE d.engine WHEN 'chain' THEN d.config::text END, c.source_run_id::text, "
    "array_to_json(c.source_steps)::text FROM job j JOIN "
    "deployment d ON d.id = j.deployment LEFT JOIN model m ON m.id = j.model LEFT JOIN chain_run c "
    "ON c.run_id = j.id WHERE j.id = $1 AND "
    "j.tenant = $2 AND (d.engine = 'chain' OR EXISTS (SELECT FROM chain_step s WHERE s.run_id = "
    "j.id))");

/* Of each step that is declared, and of each model that was called, what its jobs came to, in their
 * newest rounds; those that began first stand first. */
PG_STATEMENT(
    chain_run_steps,
    "WITH run AS (SELECT j.id, j.tenant, CASE d.engine WHEN 'chain' THEN d.config -> 'steps' ELSE "
    "'{}' END AS steps FROM job j JOIN deployment d ON d.id = j.deployment WHERE j.id = $1 AND "
    "j.tenant = $2), newest AS MATERIALIZED (SELECT DISTINCT ON (s.step, s.item, s.round > 0) "
    "s.step, s.job_id, x.state, CASE WHEN s.taken_at IS NULL THEN x.attempt_count ELSE 0 END AS "
    "attempt_count, coalesce(s.taken_at, x.accepted_at) AS accepted_at, coalesce(s.taken_at, "
    "x.state_at) AS state_at, x.error_message, s.taken_at FROM run JOIN chain_step s ON s.run_id = "
    "run.id AND s.round >= 0 JOIN job x ON x.id = s.job_id AND "
    "x.tenant = "
    "run.tenant ORDER BY s.step, s.item, s.round > 0, s.round DESC), calls AS MATERIALIZED (SELECT "
    "DISTINCT ON (c.step, c.item) c.step, NULL::uuid AS job_id, coalesce(c.state, 2) AS state, "
    "c.attempts::integer AS attempt_count, c.began_at AS accepted_at, c.ended_at AS state_at, "
    "c.error_message, NULL::timestamptz AS taken_at FROM run JOIN chain_call c ON c.run_id = "
    "run.id "
    "AND c.round > 0 ORDER BY c.step, c.item, c.round DESC), names AS (SELECT k.key AS "
    "step, k.value ->> 'model' AS model FROM run CROSS JOIN LATERAL jsonb_each(run.steps) k UNION "
    "SELECT n.step, n.step FROM newest n, run WHERE NOT run.steps ? n.step) SELECT k.step, "
    "k.model, "
    "count(x.state), count(*) FILTER (WHERE x.state = 3), count(*) FILTER (WHERE x.state IN (4, "
    "5, 6)), count(*) FILTER (WHERE x.state = 2), max(x.attempt_count), min(x.accepted_at), CASE "
    "WHEN bool_and(x.state NOT IN (1, 2)) THEN max(x.state_at) END, (array_agg(x.error_message) "
    "FILTER (WHERE x.state IN (4, 5, 6)))[1], CASE WHEN count(x.job_id) = 1 THEN "
    "min(x.job_id::text) END, CASE WHEN bool_and(x.state NOT IN (1, 2)) THEN extract(epoch FROM "
    "max(x.state_at) - min(x.accepted_at))::float8 END, bool_or(w.approval), bool_or(w.approved), "
    "bool_or(w.due_at > now()), min(w.asked), min(w.due_at), count(x.taken_at), CASE WHEN "
    "count(x.job_id) = 1 THEN (SELECT coalesce(nullif(r.output_type, ''), 'application/json') FROM "
    "job o JOIN job_result r ON r.job_id = o.id AND r.round = o.round WHERE o.id = "
    "min(x.job_id::text)::uuid) END, CASE WHEN count(x.job_id) = 1 THEN (SELECT r.output_size FROM "
    "job o JOIN job_result r ON r.job_id = o.id AND r.round = o.round WHERE o.id = "
    "min(x.job_id::text)::uuid) END FROM names k LEFT "
    "JOIN (TABLE newest UNION ALL TABLE calls) x ON x.step = k.step LEFT JOIN chain_wait w ON "
    "w.run_id = $1 AND w.step = k.step GROUP BY k.step, "
    "k.model ORDER BY min(x.accepted_at) NULLS LAST, k.step");

/* Models with a deployment that is a chain, or the entrypoint of one in Python. */
PG_STATEMENT(
    chains_list,
    "SELECT m.id, m.name, m.created_at, count(*), m.tenant FROM model m JOIN deployment d ON "
    "d.model_id = m.id AND d.deleted_at IS NULL AND (d.engine = 'chain' OR d.config -> 'truss' -> "
    "'model_metadata' ? 'headrace_entrypoint') WHERE m.tenant = $1 AND ($2 IN (m.id, m.name)) IS "
    "NOT FALSE AND m.deleted_at IS NULL GROUP BY m.id ORDER BY m.id = $2 DESC, m.name LIMIT 10000");

/* ---- chains ---- */

static json_t *chain_json(const struct pg_answer *answer, size_t row)
{
    return json_pack("{s:s, s:s, s:o, s:I, s:s}", "id", pg_c(answer, 0, row, 0), "name",
                     pg_c(answer, 0, row, 1), "created_at", json_of_time(answer, 0, row, 2),
                     "deployments_count", (json_int_t)pg_i64(answer, 0, row, 3), "team_name",
                     pg_c(answer, 0, row, 4));
}

static void on_chains(void *opaque, const struct pg_answer *answer)
{
    call_answer_rows(opaque, answer, "chains", chain_json);
}

static void on_chain(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "model_does_not_exist", "there is no such chain");
        return;
    }
    body = chain_json(answer, 0);
    call_answer_json(&call, 200, &body);
}

static void chains_query(struct call *call, const char *chain, pg_done_fn *done)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &chains_list);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, chain);
    call_query(call, &batch, done);
}

void chains_begin(struct call *call)
{
    chains_query(call, NULL, on_chains);
}

void chain_begin(struct call *call)
{
    chains_query(call, call->match.model, on_chain);
}

/* ---- runs ---- */

static json_t *run_json(const struct pg_answer *answer, size_t at, size_t row)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:I, s:o, s:o, s:o}", "id", pg_c(answer, at, row, 0),
                     "chain", pg_c(answer, at, row, 1), "deployment_id", pg_c(answer, at, row, 2),
                     "status", pg_c(answer, at, row, 3), "attempts",
                     (json_int_t)pg_i64(answer, at, row, 4), "accepted_at",
                     json_of_time(answer, at, row, 5), "ended_at", json_of_time(answer, at, row, 6),
                     "error_message", json_of_text(answer, at, row, 7));
}

static json_t *listed_json(const struct pg_answer *answer, size_t row)
{
    json_t *run = run_json(answer, 0, row);

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

/* Of a step without a job; of a transform nothing is written down. */
static const char *wait_status(const struct pg_answer *answer, size_t row, bool run_is_over)
{
    if (pg_is_null(answer, STATUS_MORE, row, 12))
        return "NO_JOB";
    if (!pg_is_null(answer, STATUS_MORE, row, 13))
        return pg_bool(answer, STATUS_MORE, row, 13) ? "APPROVED" : "REJECTED";
    if (!pg_bool(answer, STATUS_MORE, row, 14))
        return pg_bool(answer, STATUS_MORE, row, 12) ? "EXPIRED" : "SUCCEEDED";
    if (run_is_over)
        return "CANCELED";
    return pg_bool(answer, STATUS_MORE, row, 12) ? "WAITING_FOR_APPROVAL" : "IN_PROGRESS";
}

/* Told from its jobs. What has none waits, or was skipped; the run's own end says which. */
static const char *step_status(const struct pg_answer *answer, size_t row, bool run_is_over)
{
    int64_t jobs = pg_i64(answer, STATUS_MORE, row, 2);
    bool over = !pg_is_null(answer, STATUS_MORE, row, 8);

    if (pg_is_null(answer, STATUS_MORE, row, 1) && jobs == 0) /* a built-in that calls nobody */
        return wait_status(answer, row, run_is_over);
    if (jobs == 0)
        return run_is_over ? "NOT_RUN" : "WAITING";
    if (!over)
        return pg_i64(answer, STATUS_MORE, row, 5) > 0 ? "IN_PROGRESS" : "QUEUED";
    return pg_i64(answer, STATUS_MORE, row, 4) > 0 ? "FAILED" : "SUCCEEDED";
}

static json_t *step_json(const struct pg_answer *answer, size_t row, bool run_is_over)
{
    json_t *seconds = pg_is_null(answer, STATUS_MORE, row, 11)
                          ? json_null()
                          : json_real(pg_double(answer, STATUS_MORE, row, 11));
    const char *asked = pg_c(answer, STATUS_MORE, row, 15);
    json_t *step = json_pack("{s:s, s:o, s:s, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o}",
                             "name", pg_c(answer, STATUS_MORE, row, 0), "model",
                             json_of_text(answer, STATUS_MORE, row, 1), "status",
                             step_status(answer, row, run_is_over), "jobs",
                             (json_int_t)pg_i64(answer, STATUS_MORE, row, 2), "succeeded",
                             (json_int_t)pg_i64(answer, STATUS_MORE, row, 3), "failed",
                             (json_int_t)pg_i64(answer, STATUS_MORE, row, 4), "running",
                             (json_int_t)pg_i64(answer, STATUS_MORE, row, 5), "attempts",
                             (json_int_t)pg_i64(answer, STATUS_MORE, row, 6), "began_at",
                             json_of_time(answer, STATUS_MORE, row, 7), "ended_at",
                             json_of_time(answer, STATUS_MORE, row, 8), "error_message",
                             json_of_text(answer, STATUS_MORE, row, 9), "request_id",
                             json_of_text(answer, STATUS_MORE, row, 10), "seconds", seconds);

    if (pg_i64(answer, STATUS_MORE, row, 17) > 0)
        (void)json_object_set_new(step, "cached",
                                  json_integer((json_int_t)pg_i64(answer, STATUS_MORE, row, 17)));
    if (!pg_is_null(answer, STATUS_MORE, row, 18)) {
        (void)json_object_set_new(step, "output_type", json_of_text(answer, STATUS_MORE, row, 18));
        (void)json_object_set_new(step, "output_size",
                                  json_integer((json_int_t)pg_i64(answer, STATUS_MORE, row, 19)));
    }
    if (pg_is_null(answer, STATUS_MORE, row, 12))
        return step;
    (void)json_object_set_new(step, "due_at", json_of_time(answer, STATUS_MORE, row, 16));
    if (pg_bool(answer, STATUS_MORE, row, 12))
        (void)json_object_set_new(step, "asked", json_loads(asked, JSON_DECODE_ANY, NULL));
    return step;
}

/* What its file says of each step: which it needs, and whether it is one job or many; and that one
 * which calls a URL has not begun. */
static void steps_join_file(json_t *steps, const char *config, bool run_is_over)
{
    OWNED(chain_free) struct chain *chain = NULL;
    json_t *json = json_loads(config, 0, NULL);
    struct err err;
    size_t i;
    json_t *step;

    if (json != NULL && chain_parse(json, &chain, &err) == 0) {
        json_array_foreach(steps, i, step)
        {
            int at = chain_find(chain, json_string_value(json_object_get(step, "name")));

            if (at < 0)
                continue;
            if (chain->steps[at].kind == CHAIN_HTTP &&
                json_integer_value(json_object_get(step, "jobs")) == 0)
                (void)json_object_set_new(step, "status",
                                          json_string(run_is_over ? "NOT_RUN" : "WAITING"));
            (void)json_object_set_new(step, "map", json_boolean(chain->steps[at].map != NULL));
            (void)json_object_set_new(step, "needs", chain_needs_json(chain, (size_t)at));
        }
    }
    json_decref(json);
}

/* Of a run again: steps without a job of their own whose outputs it has taken over. */
static void steps_mark_reused(json_t *steps, const char *source_steps)
{
    json_t *names = json_loads(source_steps, 0, NULL), *step, *name;
    size_t i, k;

    json_array_foreach(steps, i, step)
    {
        const char *status = json_string_value(json_object_get(step, "status"));

        json_array_foreach(names, k, name)
        {
            if (json_equal(name, json_object_get(step, "name")) &&
                (strcmp(status, "NOT_RUN") == 0 || strcmp(status, "WAITING") == 0))
                (void)json_object_set_new(step, "status", json_string("REUSED"));
        }
    }
    json_decref(names);
}

/* Of a new run the row takes a moment: it is looked for again, as far as its id may have one. */
#define ROW_GAP_MS 50
#define ROW_TRIES_MAX 200

struct row_wait {
    struct loop_timer *timer;
    uint32_t tries;
};

static void row_wait_free(struct call *call)
{
    struct row_wait *wait = call->state;

    loop_timer_free(&wait->timer);
    free(wait);
}

static void run_ask(void *opaque);

/* False: it has been looked for often enough. */
static bool run_ask_later(struct call *call)
{
    struct row_wait *wait = call->state;

    if (wait == NULL) {
        call->state = wait = xcalloc(1, sizeof(*wait));
        call->on_freed = row_wait_free;
        wait->timer = loop_timer_new(call->gateway->loop, run_ask, call);
    }
    if (++wait->tries > ROW_TRIES_MAX)
        return false;
    loop_timer_start(wait->timer, ROW_GAP_MS, 0);
    return true;
}

static void on_run(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body, *steps;
    struct wire_id id;
    struct err err;
    bool over;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, STATUS_ROW) == 0) {
        if (call_job_id(call, &id, &err) < 0 || !status_may_be_queued(answer, &id) ||
            !run_ask_later(call))
            call_fail_as(&call, 404, "client_error", "there is no such run of a chain");
        return;
    }
    body = run_json(answer, STATUS_ROW, 0);
    over = !pg_is_null(answer, STATUS_ROW, 0, 6);
    steps = json_array();
    for (size_t i = 0; i < pg_row_count(answer, STATUS_MORE); i++)
        (void)json_array_append_new(steps, step_json(answer, i, over));
    if (!pg_is_null(answer, STATUS_ROW, 0, 8))
        steps_join_file(steps, pg_c(answer, STATUS_ROW, 0, 8), over);
    if (!pg_is_null(answer, STATUS_ROW, 0, 9)) {
        steps_mark_reused(steps, pg_c(answer, STATUS_ROW, 0, 10));
        (void)json_object_set_new(body, "source_run_id",
                                  json_string(pg_c(answer, STATUS_ROW, 0, 9)));
    }
    (void)json_object_set_new(body, "steps", steps);
    call_answer_json(&call, 200, &body);
}

static void run_ask(void *opaque)
{
    (void)status_ask(opaque, &chain_run_find, &chain_run_steps, on_run);
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
    run_ask(call);
}

/* ---- forget: what came of a step, and of all that needs it, does not count any more ---- */

/* Rounds that do not count are negative. One statement decides that the run is over and writes. */
PG_STATEMENT(
    chain_forget,
    "WITH calls AS (UPDATE chain_call c SET round = -c.round WHERE c.run_id = $1 AND c.round > 0 "
    "AND c.step = ANY (string_to_array($3, ',')) AND EXISTS (SELECT FROM job j WHERE j.id = $1 AND "
    "j.tenant = $2 AND j.state NOT IN (1, 2))), gone AS (UPDATE chain_step s SET round = -s.round "
    "WHERE s.run_id = $1 AND s.round > 0 "
    "AND s.step = ANY (string_to_array($3, ',')) AND EXISTS (SELECT FROM job j WHERE j.id = $1 AND "
    "j.tenant = $2 AND j.state NOT IN (1, 2)) RETURNING 1), told AS (INSERT INTO audit (tenant, "
    "actor, action, target) SELECT $2, $4, 'CHAIN_RUN_FORGOTTEN', $1::text FROM (SELECT FROM gone "
    "LIMIT 1) g) SELECT count(*) FROM gone");

static void on_forgotten(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    body = json_pack("{s:s, s:I}", "id", call->job, "forgotten",
                     (json_int_t)pg_i64(answer, 0, 0, 0));
    call_answer_json(&call, 200, &body);
}

/* Names of the steps from that one on, with commas between. */
static int names_from(const char *config, const char *from, struct buf *to, struct err *err)
{
    OWNED(chain_free) struct chain *chain = NULL;
    json_t *json = json_loads(config, 0, NULL);
    uint64_t steps;
    int at, r = json == NULL ? err_set(err, ERR_INTERNAL, "the chain's file cannot be read")
                             : chain_parse(json, &chain, err);

    json_decref(json);
    if (r < 0)
        return r;
    at = chain_find(chain, from);
    if (at < 0)
        return err_set(err, ERR_NOT_FOUND, "from: the chain has no step '%.64s'", from);
    steps = chain_steps_behind(chain, (size_t)at);
    for (size_t i = 0; i < chain->step_count; i++) {
        if ((steps >> i & 1) != 0)
            buf_printf(to, "%s%s", to->size > 0 ? "," : "", chain->steps[i].name);
    }
    return buf_check(to, "the steps", err);
}

static void on_forget_run(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    const char *from = http_target_query(&call->target, "from");
    OWNED(buf_done) struct buf names = BUF_WITH_LIMIT(CHAIN_STEPS_MAX * CHAIN_NAME_SIZE);
    struct pg_batch *batch;
    struct wire_id id;
    struct err err;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0 || pg_is_null(answer, 0, 0, 8)) {
        call_fail_as(&call, 404, "client_error", "there is no such run of a declared chain");
        return;
    }
    if (pg_is_null(answer, 0, 0, 6)) {
        call_fail_as(&call, 409, "client_error", "the run is not over; cancel it first");
        return;
    }
    if (names_from(pg_c(answer, 0, 0, 8), from, &names, &err) < 0 ||
        call_job_id(call, &id, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &chain_forget);
    pg_bind_id(batch, &id);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, buf_text(&names));
    pg_bind_c(batch, call->key_prefix);
    call_query(call, &batch, on_forgotten);
}

void chain_forget_begin(struct call *call)
{
    const char *from = http_target_query(&call->target, "from");
    struct pg_batch *batch;
    struct wire_id id;
    struct err err;
    int r = call_job_id(call, &id, &err);

    if (r == 0 && (from == NULL || from[0] == '\0'))
        r = err_set(&err, ERR_RANGE, "from is missing: the step from which on nothing counts");
    if (r < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &chain_run_find);
    pg_bind_id(batch, &id);
    pg_bind_c(batch, call->tenant);
    call_query(call, &batch, on_forget_run);
}

/* ---- approvals ---- */

static bool decides_yes(const struct call *call)
{
    return call->match.route == ROUTE_CHAIN_APPROVE;
}

static void on_decided(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;
    char text[200];

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "client_error", "no step of that name of such a run is asked for");
        return;
    }
    if (!pg_bool(answer, 0, 0, 0)) {
        (void)snprintf(text, sizeof(text), "step '%.64s' %s", call->match.param,
                       pg_is_null(answer, 0, 0, 1) ? "is not asked for any more"
                       : pg_bool(answer, 0, 0, 1)  ? "was approved before"
                                                   : "was rejected before");
        call_fail_as(&call, 409, "client_error", text);
        return;
    }
    body = json_pack("{s:s, s:s, s:b}", "run_id", call->job, "step", call->match.param, "approved",
                     decides_yes(call));
    call_answer_json(&call, 200, &body);
}

int chain_decision_read(struct call *call, bool yes, json_t **ret_json, struct err *err)
{
    struct buf *body = http_request_body(call->request);
    json_error_t where;

    if (body == NULL || body->size == 0) {
        *ret_json = json_null();
        return 0;
    }
    *ret_json = json_loadb((const char *)body->bytes, body->size, JSON_DECODE_ANY, &where);
    if (*ret_json == NULL)
        return err_set(err, ERR_MALFORMED, "the body is no JSON: line %d: %s", where.line,
                       where.text);
    if (yes || json_is_null(*ret_json) ||
        (json_is_object(*ret_json) && (json_object_size(*ret_json) == 0 ||
                                       (json_object_size(*ret_json) == 1 &&
                                        json_is_string(json_object_get(*ret_json, "reason"))))))
        return 0;
    json_decref(*ret_json);
    return err_set(err, ERR_MALFORMED, "the body must be {\"reason\": a text}, or nothing");
}

bool chain_step_in_path(struct call *call, struct wire_id *ret_run)
{
    struct err err;

    if (job_id_parse(call->match.model, ret_run, &err) < 0) {
        call_fail_as(&call, 400, "client_error", "the run's id must be a UUID");
        return false;
    }
    if (name_check("step", call->match.param, &err) < 0) {
        call_fail_as(&call, 404, "client_error", "there is no step of such a name");
        return false;
    }
    job_id_format(ret_run, call->job);
    return true;
}

static void on_decision_body(struct call *call)
{
    struct pg_batch *batch;
    json_t *payload = NULL;
    struct wire_id id;
    struct err err;
    char *text;

    if (!chain_step_in_path(call, &id))
        return;
    if (chain_decision_read(call, decides_yes(call), &payload, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    text = json_dumps(payload, JSON_COMPACT | JSON_ENCODE_ANY);
    json_decref(payload);
    batch = pg_batch_new();
    pg_add(batch, &chain_decide);
    pg_bind_c(batch, call->tenant);
    pg_bind_id(batch, &id);
    pg_bind_c(batch, call->match.param);
    pg_bind_bool(batch, decides_yes(call));
    pg_bind_c(batch, call->key_prefix);
    pg_bind_c(batch, text);
    free(text);
    call_query(call, &batch, on_decided);
}

void chain_decide_begin(struct call *call)
{
    call_collect_body(call, CHAIN_DECISION_SIZE_MAX, on_decision_body);
}
