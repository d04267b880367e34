/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The record of a run of a chain: its file, its input, and what each job came to, those of earlier
 * runs that it has taken over included. With it a run can be planned again without a job
 * (`headrace chains rerun --dry-run`).
 */

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "brokers/pg.h"
#include "producers/gateway.h"

#define JOBS_MAX 2000

PG_STATEMENT(
    record_run,
    "SELECT j.id::text, coalesce(m.name, j.model), j.deployment, state_name(j.state), "
    "d.config::text, coalesce(r.input, i.input) FROM job j JOIN deployment d ON d.id = "
    "j.deployment AND d.engine = 'chain' LEFT JOIN model m ON m.id = j.model LEFT JOIN chain_run r "
    "ON r.run_id = j.id LEFT JOIN job_input i ON i.job_id = j.id WHERE j.id = $1 AND j.tenant = "
    "$2");
PG_STATEMENT(
    record_jobs,
    "WITH own AS (SELECT s.step, s.item, s.job_id, s.round::integer AS round FROM chain_step s "
    "WHERE s.run_id = $1 AND s.round > 0 UNION ALL SELECT u.step, u.item, u.job_id, 0 FROM "
    "chain_reused($1) u) SELECT DISTINCT ON (o.step, o.item) o.step, o.item, j.id::text, "
    "state_name(j.state), CASE WHEN j.error_class <> 0 THEN error_class_name(j.error_class) END, "
    "j.error_message, encode(j.input_digest, 'hex'), x.output, x.output_blob IS NOT NULL OR "
    "coalesce(x.output_type, '') !~ '^(application/json.*)?$' FROM own o JOIN job j ON j.id = "
    "o.job_id AND j.tenant = $2 LEFT "
    "JOIN job_result x ON x.job_id = j.id AND x.round = j.round ORDER BY o.step, o.item, "
    "(j.state = 3) DESC, o.round DESC LIMIT 2001");
PG_STATEMENT(record_waits, "SELECT w.step, w.approval, w.approved, w.payload FROM chain_wait w "
                           "JOIN job j ON j.id = w.run_id WHERE w.run_id = $1 AND j.tenant = $2 "
                           "ORDER BY w.step");

/* Those that have ended, its own before those of the run that it is again. */
PG_STATEMENT(
    record_calls,
    "SELECT DISTINCT ON (c.step, c.item) c.step, c.item, state_name(c.state), "
    "c.error_class, c.error_message, c.output FROM job j LEFT JOIN chain_run r ON r.run_id "
    "= j.id JOIN chain_call c ON c.run_id IN (j.id, r.source_run_id) WHERE j.id = $1 AND "
    "j.tenant = $2 AND c.round > 0 AND c.state IS NOT NULL ORDER BY c.step, c.item, "
    "c.run_id = j.id DESC, c.round DESC LIMIT 2000");

static json_t *json_of_bytes(struct wire_bytes bytes)
{
    json_t *json = bytes.size == 0
                       ? NULL
                       : json_loadb((const char *)bytes.bytes, bytes.size, JSON_DECODE_ANY, NULL);

    return json == NULL ? json_null() : json;
}

static json_t *job_json(const struct pg_answer *answer, size_t row)
{
    return json_pack(
        "{s:s, s:I, s:s, s:s, s:o, s:o, s:s, s:o, s:b}", "step", pg_c(answer, 1, row, 0), "item",
        (json_int_t)pg_i64(answer, 1, row, 1), "request_id", pg_c(answer, 1, row, 2), "status",
        pg_c(answer, 1, row, 3), "error_class", json_of_text(answer, 1, row, 4), "error_message",
        json_of_text(answer, 1, row, 5), "input_digest", pg_c(answer, 1, row, 6), "output",
        json_of_bytes(pg_bytes(answer, 1, row, 7)), "output_is_large", pg_bool(answer, 1, row, 8));
}

static json_t *wait_json(const struct pg_answer *answer, size_t row)
{
    const char *payload = pg_is_null(answer, 2, row, 3) ? "null" : pg_c(answer, 2, row, 3);
    json_t *json = json_loads(payload, JSON_DECODE_ANY, NULL);

    return json_pack("{s:s, s:b, s:o, s:o}", "step", pg_c(answer, 2, row, 0), "approval",
                     pg_bool(answer, 2, row, 1), "approved",
                     pg_is_null(answer, 2, row, 2) ? json_null()
                                                   : json_boolean(pg_bool(answer, 2, row, 2)),
                     "payload", json == NULL ? json_null() : json);
}

static json_t *call_json(const struct pg_answer *answer, size_t row)
{
    return json_pack("{s:s, s:I, s:s, s:o, s:o, s:o}", "step", pg_c(answer, 3, row, 0), "item",
                     (json_int_t)pg_i64(answer, 3, row, 1), "status", pg_c(answer, 3, row, 2),
                     "error_class", json_of_text(answer, 3, row, 3), "error_message",
                     json_of_text(answer, 3, row, 4), "output",
                     json_of_bytes(pg_bytes(answer, 3, row, 5)));
}

static json_t *rows_json(const struct pg_answer *answer, size_t result,
                         json_t *(*row_json)(const struct pg_answer *answer, size_t row))
{
    json_t *rows = json_array();

    for (size_t i = 0; i < pg_row_count(answer, result); i++)
        (void)json_array_append_new(rows, row_json(answer, i));
    return rows;
}

static void on_record(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    char text[100];
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "client_error", "there is no such run of a declared chain");
        return;
    }
    if (pg_row_count(answer, 1) > JOBS_MAX) {
        (void)snprintf(text, sizeof(text), "the run has over %d jobs: its record is in SQL only",
                       JOBS_MAX);
        call_fail_as(&call, 413, "payload_too_large", text);
        return;
    }
    body = json_pack("{s:s, s:s, s:s, s:s, s:o, s:o, s:b, s:o, s:o, s:o}", "id",
                     pg_c(answer, 0, 0, 0), "chain", pg_c(answer, 0, 0, 1), "deployment_id",
                     pg_c(answer, 0, 0, 2), "status", pg_c(answer, 0, 0, 3), "config",
                     json_loads(pg_c(answer, 0, 0, 4), 0, NULL), "input",
                     json_of_bytes(pg_bytes(answer, 0, 0, 5)), "input_is_kept",
                     !pg_is_null(answer, 0, 0, 5), "jobs", rows_json(answer, 1, job_json), "waits",
                     rows_json(answer, 2, wait_json), "calls", rows_json(answer, 3, call_json));
    call_answer_json(&call, 200, &body);
}

void chain_record_begin(struct call *call)
{
    static const struct pg_statement *const statements[] = {&record_run, &record_jobs,
                                                            &record_waits, &record_calls};
    struct pg_batch *batch;
    struct wire_id id;
    struct err err;

    if (call_job_id(call, &id, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    for (size_t i = 0; i < COUNT_OF(statements); i++) {
        pg_add(batch, statements[i]);
        pg_bind_id(batch, &id);
        pg_bind_c(batch, call->tenant);
    }
    call_query(call, &batch, on_record);
}
