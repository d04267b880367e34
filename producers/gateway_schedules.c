/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Schedules: made, listed, shown, paused, resumed, run by hand, removed. What is due is submitted
 * by gateway_ticks.c. A cron line, its zone and the moments that they name are Postgres' to judge
 * (schedule_set() of the migrations); the request is checked here, as if it had been submitted.
 */

#include <jansson.h>
#include <string.h>

#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_body.h"
#include "producers/gateway_time.h"
#include "schema/api_key.h"
#include "schema/job.h"

#define BODY_SIZE_MAX (128u << 10)
#define JITTER_MAX 86400
#define SCHEDULES_MAX 1000 /* of a tenant */
#define CRON_LENGTH_MAX 200
#define ZONE_LENGTH_MAX 60

#define COLUMNS                                                                                    \
    "name, model_id, model_name, environment, cron, timezone, jitter_seconds, catch_up, "          \
    "next_at, paused_at, last_at, last_status, last_job_id, last_reason, created_by, created_at"

PG_STATEMENT(schedules_list, "SELECT " COLUMNS " FROM headrace_v1.schedules WHERE tenant = $1 "
                             "ORDER BY name LIMIT 1000");
PG_STATEMENT(schedule_one,
             "SELECT " COLUMNS " FROM headrace_v1.schedules WHERE tenant = $1 AND name = $2");
PG_STATEMENT(schedule_request, "SELECT body FROM schedule WHERE tenant = $1 AND name = $2");
PG_STATEMENT(
    schedule_ticks,
    "SELECT tick_at, status, job_id, by_hand, reason FROM headrace_v1.schedule_ticks WHERE "
    "schedule_id = (SELECT id FROM schedule WHERE tenant = $1 AND name = $2) "
    "ORDER BY tick_at DESC LIMIT 20");
PG_STATEMENT(schedule_set,
             "SELECT problem FROM schedule_set($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, "
             "$11, $12)");
PG_STATEMENT(schedule_pause, "UPDATE schedule SET paused_at = coalesce(paused_at, now()) "
                             "WHERE tenant = $1 AND name = $2 RETURNING name");
PG_STATEMENT(
    schedule_resume,
    "UPDATE schedule SET paused_at = NULL, next_at = CASE WHEN paused_at IS NULL OR cron IS "
    "NULL THEN next_at ELSE cron_next(cron, zone, now()) END "
    "WHERE tenant = $1 AND name = $2 RETURNING name");
PG_STATEMENT(schedule_run,
             "INSERT INTO schedule_tick (schedule_id, tick_at, due_at, by_hand) SELECT id, "
             "clock_timestamp(), now(), true FROM schedule WHERE tenant = $1 AND name = $2 "
             "RETURNING tick_at");
PG_STATEMENT(schedule_audit,
             "INSERT INTO audit (tenant, actor, action, target) SELECT $1, $3, $4, $2 "
             "WHERE EXISTS (SELECT FROM schedule WHERE tenant = $1 AND name = $2)");
PG_STATEMENT(schedule_delete,
             "WITH gone AS (DELETE FROM schedule WHERE tenant = $1 AND name = $2 RETURNING name), "
             "told AS (INSERT INTO audit (tenant, actor, action, target) "
             "SELECT $1, $3, 'SCHEDULE_DELETED', name FROM gone) SELECT name FROM gone");

/* ---- as JSON ---- */

static json_t *json_of_id(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    struct wire_id id = pg_id(answer, at, row, column);
    char text[JOB_ID_TEXT_SIZE];

    if (pg_is_null(answer, at, row, column))
        return json_null();
    job_id_format(&id, text);
    return json_string(text);
}

static json_t *schedule_json(const struct pg_answer *answer, size_t at, size_t row)
{
    json_t *last = pg_is_null(answer, at, row, 10)
                       ? json_null()
                       : json_pack("{s:o, s:o, s:o, s:o}", "at", json_of_time(answer, at, row, 10),
                                   "status", json_of_text(answer, at, row, 11), "request_id",
                                   json_of_id(answer, at, row, 12), "reason",
                                   json_of_text(answer, at, row, 13));

    return json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:o, s:o, s:o, s:o, s:o, s:o}", "name",
        json_of_text(answer, at, row, 0), "model_id", json_of_text(answer, at, row, 1),
        "model_name", json_of_text(answer, at, row, 2), "environment",
        json_of_text(answer, at, row, 3), "cron", json_of_text(answer, at, row, 4), "timezone",
        json_of_text(answer, at, row, 5), "jitter_seconds", (json_int_t)pg_i64(answer, at, row, 6),
        "catch_up", json_of_text(answer, at, row, 7), "next_at", json_of_time(answer, at, row, 8),
        "paused_at", json_of_time(answer, at, row, 9), "last", last, "created_by",
        json_of_text(answer, at, row, 14), "created_at", json_of_time(answer, at, row, 15));
}

static void ask_one(struct pg_batch *batch, const struct pg_statement *statement,
                    const struct call *call, const char *name)
{
    pg_add(batch, statement);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, name);
}

static json_t *row_json(const struct pg_answer *answer, size_t row)
{
    return schedule_json(answer, 0, row);
}

static void on_listed(void *opaque, const struct pg_answer *answer)
{
    call_answer_rows(opaque, answer, "schedules", row_json);
}

void schedules_begin(struct call *call)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &schedules_list);
    pg_bind_c(batch, call->tenant);
    call_query(call, &batch, on_listed);
}

static void fail_missing(struct call *call)
{
    call_fail_as(&call, 404, "client_error", "there is no schedule of this name");
}

static void on_shown(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body, *ticks;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0 || pg_row_count(answer, 1) == 0) {
        fail_missing(call);
        return;
    }
    body = schedule_json(answer, 0, 0);
    (void)json_object_set_new(body, "request",
                              json_loads(pg_c(answer, 1, 0, 0), JSON_DECODE_ANY, NULL));
    ticks = json_array();
    for (size_t i = 0; i < pg_row_count(answer, 2); i++)
        (void)json_array_append_new(
            ticks, json_pack("{s:o, s:o, s:o, s:b, s:o}", "at", json_of_time(answer, 2, i, 0),
                             "status", json_of_text(answer, 2, i, 1), "request_id",
                             json_of_id(answer, 2, i, 2), "by_hand", pg_bool(answer, 2, i, 3),
                             "reason", json_of_text(answer, 2, i, 4)));
    (void)json_object_set_new(body, "ticks", ticks);
    call_answer_json(&call, 200, &body);
}

void schedule_begin(struct call *call)
{
    struct pg_batch *batch = pg_batch_new();

    ask_one(batch, &schedule_one, call, call->match.param);
    ask_one(batch, &schedule_request, call, call->match.param);
    ask_one(batch, &schedule_ticks, call, call->match.param);
    call_query(call, &batch, on_shown);
}

/* ---- made ---- */

struct wanted {
    const char *name, *model, *environment, *cron, *zone, *catch_up; /* borrowed; cron NULL: once */
    uint64_t run_at_us;
    json_int_t jitter_s;
    char *request; /* JSON text; the struct's own */
};

/* A member that is text of at most `most` characters; *ret stays when it is missing or null. */
static int read_text(const json_t *body, const char *field, size_t most, const char **ret,
                     struct err *err)
{
    const json_t *value = json_object_get(body, field);

    if (value == NULL || json_is_null(value))
        return 0;
    if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value))
        return err_set(err, ERR_MALFORMED, "%s must be a text", field);
    if (json_string_length(value) == 0 || json_string_length(value) > most)
        return err_set(err, ERR_RANGE, "%s has %zu characters; it must have 1 to %zu", field,
                       json_string_length(value), most);
    *ret = json_string_value(value);
    return 0;
}

static int read_when(const json_t *body, struct wanted *wanted, struct err *err)
{
    const json_t *jitter = json_object_get(body, "jitter_seconds");
    const char *run_at = NULL;
    int r = read_text(body, "cron", CRON_LENGTH_MAX, &wanted->cron, err);

    if (r == 0)
        r = read_text(body, "run_at", 64, &run_at, err);
    if (r == 0 && (wanted->cron != NULL) == (run_at != NULL))
        r = err_set(err, ERR_MALFORMED, "when? one of cron and run_at");
    if (r == 0 && run_at != NULL && gateway_time_parse(run_at, &wanted->run_at_us, err) < 0)
        r = err_wrap(err, "run_at");
    if (r == 0 && run_at != NULL && wanted->run_at_us == 0)
        r = err_set(err, ERR_RANGE, "run_at is '%.40s', which is before 1970", run_at);
    if (r == 0)
        r = read_text(body, "timezone", ZONE_LENGTH_MAX, &wanted->zone, err);
    if (r == 0)
        r = read_text(body, "catch_up", 8, &wanted->catch_up, err);
    if (r == 0 && strcmp(wanted->catch_up, "skip") != 0 && strcmp(wanted->catch_up, "one") != 0 &&
        strcmp(wanted->catch_up, "all") != 0)
        r = err_set(err, ERR_RANGE, "catch_up is '%s'; it must be skip, one or all",
                    wanted->catch_up);
    if (r < 0 || jitter == NULL || json_is_null(jitter))
        return r;
    wanted->jitter_s = json_integer_value(jitter);
    if (!json_is_integer(jitter) || wanted->jitter_s < 0 || wanted->jitter_s > JITTER_MAX)
        return err_set(err, ERR_RANGE, "jitter_seconds must be a number from 0 to %d", JITTER_MAX);
    return 0;
}

/* The request as it will be submitted: what its route would refuse is refused now. */
static int read_request(const struct call *call, const json_t *body, struct wanted *wanted,
                        struct err *err)
{
    const json_t *request = json_object_get(body, "request");
    struct submit_body submit;
    int r;

    if (!json_is_object(request))
        return err_set(err, ERR_MALFORMED, "request must be an object: the body of async_predict");
    wanted->request = json_dumps(request, JSON_COMPACT);
    if (wanted->request == NULL)
        return err_set(err, ERR_MALFORMED, "request cannot be written as JSON");
    if (strlen(wanted->request) > JOB_INPUT_INLINE_MAX)
        return err_set(err, ERR_TOO_BIG, "request has %zu bytes; a schedule may have %u",
                       strlen(wanted->request), JOB_INPUT_INLINE_MAX);
    r = body_read_submit(call->gateway->reader, wanted->request, strlen(wanted->request), false,
                         call->gateway->settings.loopback_webhooks, &submit, err);
    if (r < 0)
        return err_wrap(err, "request");
    submit_body_done(&submit);
    if (submit.run_at_us > 0)
        return err_set(err, ERR_RANGE, "request.run_at: it is the schedule that says when");
    return 0;
}

static int read_model(const struct call *call, struct wanted *wanted, struct err *err)
{
    const struct config *config = gateway_watch_config(call->gateway->watch);
    const struct config_model *found;

    if (wanted->model == NULL)
        return err_set(err, ERR_MALFORMED, "model is missing: an id or a name");
    found = config == NULL ? NULL : gateway_config_find_model(config, call->tenant, wanted->model);
    if (found == NULL)
        return err_set(err, ERR_NOT_FOUND, "there is no model '%.80s'", wanted->model);
    wanted->model = found->id;
    return 0;
}

static int read_wanted(const struct call *call, const json_t *body, struct wanted *wanted,
                       struct err *err)
{
    static const char *const fields[] = {"name",    "model",          "environment",
                                         "cron",    "timezone",       "run_at",
                                         "request", "jitter_seconds", "catch_up"};
    int r = fields_check(body, fields, COUNT_OF(fields), err);

    if (r == 0)
        r = read_text(body, "name", 64, &wanted->name, err);
    if (r == 0 && wanted->name == NULL)
        r = err_set(err, ERR_MALFORMED, "name is missing");
    if (r == 0 && strspn(wanted->name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                       "0123456789._-") != strlen(wanted->name))
        r = err_set(err, ERR_RANGE,
                    "name is '%.64s'; it may have letters, digits, '.', '_' and '-'", wanted->name);
    if (r == 0)
        r = read_text(body, "model", CONFIG_NAME_SIZE - 1, &wanted->model, err);
    if (r == 0)
        r = read_text(body, "environment", CONFIG_NAME_SIZE - 1, &wanted->environment, err);
    if (r == 0)
        r = read_model(call, wanted, err);
    if (r == 0)
        r = read_when(body, wanted, err);
    return r < 0 ? r : read_request(call, body, wanted, err);
}

static void on_set(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    const char *problem;
    struct err err;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    problem = pg_c(answer, 0, 0, 0);
    if (*problem != '\0') {
        (void)err_set(&err, ERR_RANGE, "%s", problem);
        call_fail(&call, &err);
        return;
    }
    body = schedule_json(answer, 1, 0);
    call_answer_json(&call, 200, &body);
}

static void on_body(struct call *call)
{
    struct wanted wanted = {.environment = "production", .zone = "UTC", .catch_up = "one"};
    struct pg_batch *batch;
    json_t *body = NULL;
    struct err err;
    int r = call_read_json(call, &body, &err);

    if (r == 0)
        r = read_wanted(call, body, &wanted, &err);
    if (r < 0) {
        json_decref(body);
        mem_free(&wanted.request);
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    ask_one(batch, &schedule_set, call, wanted.name);
    pg_bind_c(batch, wanted.model);
    pg_bind_c(batch, wanted.environment);
    pg_bind_c(batch, wanted.request);
    pg_bind_c(batch, wanted.cron);
    pg_bind_c(batch, wanted.zone);
    pg_bind_time(batch, wanted.run_at_us);
    pg_bind_i32(batch, wanted.jitter_s);
    pg_bind_c(batch, wanted.catch_up);
    pg_bind_c(batch, call->key_prefix);
    pg_bind_i32(batch, SCHEDULES_MAX);
    ask_one(batch, &schedule_one, call, wanted.name);
    json_decref(body);
    mem_free(&wanted.request);
    call_query(call, &batch, on_set);
}

void schedule_set_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, on_body);
}

/* ---- changed ---- */

static void on_changed(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0 || pg_row_count(answer, 2) == 0) {
        fail_missing(call);
        return;
    }
    body = schedule_json(answer, 2, 0);
    call_answer_json(&call, 200, &body);
}

static void change(struct call *call, const struct pg_statement *statement, const char *action)
{
    struct pg_batch *batch = pg_batch_new();

    ask_one(batch, statement, call, call->match.param);
    ask_one(batch, &schedule_audit, call, call->match.param);
    pg_bind_c(batch, call->key_prefix);
    pg_bind_c(batch, action);
    ask_one(batch, &schedule_one, call, call->match.param);
    call_query(call, &batch, on_changed);
}

void schedule_pause_begin(struct call *call)
{
    change(call, &schedule_pause, "SCHEDULE_PAUSED");
}

void schedule_resume_begin(struct call *call)
{
    change(call, &schedule_resume, "SCHEDULE_RESUMED");
}

void schedule_run_begin(struct call *call)
{
    change(call, &schedule_run, "SCHEDULE_RUN");
}

static void on_deleted(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        fail_missing(call);
        return;
    }
    body = json_pack("{s:s}", "name", pg_c(answer, 0, 0, 0));
    call_answer_json(&call, 200, &body);
}

void schedule_delete_begin(struct call *call)
{
    struct pg_batch *batch = pg_batch_new();

    ask_one(batch, &schedule_delete, call, call->match.param);
    pg_bind_c(batch, call->key_prefix);
    call_query(call, &batch, on_deleted);
}
