/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Training jobs: one, those of a project, those that are searched for; stop, priority; what a job
 * waits for, and what there is. All of it is read from the views; what changes a job are functions
 * of the migrations (training_stop, training_prioritize), which the ledger hears of as well.
 */

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "producers/gateway_training.h"

#define LIST_MAX 1000
#define WIRE_PREFIX "TRAINING_JOB_"
#define STATUSES_SIZE 256

PG_STATEMENT(training_job_one,
             "SELECT " TRAINING_JOB_COLUMNS ", spec::text FROM headrace_v1.training_jobs "
             "WHERE" TRAINING_OF_PATH);
PG_STATEMENT(training_jobs_of,
             "SELECT " TRAINING_JOB_COLUMNS " FROM headrace_v1.training_jobs WHERE tenant = $1 AND "
             "($2::text IS NULL OR $2 IN (project_id, project)) AND ($3::uuid IS NULL OR job_id = "
             "$3) AND ($4::text IS NULL OR status = ANY (string_to_array($4, ','))) ORDER BY CASE "
             "WHEN $5 THEN created_at END, CASE WHEN NOT $5 THEN created_at END DESC LIMIT 1000");
PG_STATEMENT(training_has_project,
             "SELECT 1 FROM training_project WHERE tenant = $1 AND $2 IN (id, "
             "name) AND deleted_at IS NULL");
PG_STATEMENT(training_job_stop,
             "SELECT training_stop(job_id, tenant, $4) FROM headrace_v1.training_jobs "
             "WHERE" TRAINING_OF_PATH);
PG_STATEMENT(training_job_set,
             "SELECT training_prioritize(job_id, tenant, $4) FROM headrace_v1.training_jobs "
             "WHERE" TRAINING_OF_PATH);
PG_STATEMENT(training_job_delete,
             "WITH found AS (SELECT job_id AS id, ended_at IS NOT NULL AS over FROM "
             "headrace_v1.training_jobs WHERE" TRAINING_OF_PATH
             "), gone AS (DELETE FROM training_job t USING found f WHERE t.job_id = f.id AND "
             "f.over RETURNING t.job_id), told AS (INSERT INTO audit (tenant, actor, action, "
             "target) SELECT $1, $4, 'TRAINING_JOB_DELETED', job_id::text FROM gone) SELECT over "
             "FROM found");
PG_STATEMENT(training_queue_events,
             "SELECT e.status, e.message, e.exit_code, e.at FROM headrace_v1.training_events e "
             "WHERE e.tenant = $1 AND e.job_id = $2 ORDER BY e.number LIMIT 1000");

/* Those that run, and those in front of it, of its type of hardware. */
PG_STATEMENT(
    training_queue_others,
    "SELECT o.job_id, o.name, o.status, o.gpu_count * o.node_count, o.created_at, o.priority FROM "
    "headrace_v1.training_jobs t JOIN headrace_v1.training_jobs o ON o.tenant = t.tenant AND "
    "o.job_id <> t.job_id AND coalesce(o.accelerator, '') = coalesce(t.accelerator, '') WHERE "
    "t.tenant = $1 AND t.job_id = $2 AND (o.status IN ('CREATED', 'DEPLOYING', 'RUNNING') OR "
    "(o.status = 'PENDING' AND (o.priority > t.priority OR (o.priority = t.priority AND "
    "(o.created_at, o.job_id) < (t.created_at, t.job_id))))) ORDER BY o.priority DESC, "
    "o.created_at LIMIT 100");
PG_STATEMENT(training_queue_capacity,
             "SELECT (capacity ->> 'limit')::bigint, (capacity ->> 'usage_count')::bigint FROM "
             "training_job WHERE tenant = $1 AND job_id = $2");
PG_STATEMENT(training_capacity_all,
             "SELECT coalesce(accelerator, ''), count(*), sum(gpu_count)::bigint, "
             "sum(gpus_used)::bigint, sum(cpu_count)::bigint, sum(cpus_used)::bigint, "
             "sum(memory_bytes)::bigint, sum(memory_bytes_used)::bigint FROM "
             "headrace_v1.training_trainers WHERE alive AND NOT draining GROUP BY 1 ORDER BY 1");

/* ---- as JSON ---- */

static json_t *json_of_number(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    return pg_is_null(answer, at, row, column)
               ? json_null()
               : json_integer((json_int_t)pg_i64(answer, at, row, column));
}

static json_t *json_of_job(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    struct wire_id id = pg_id(answer, at, row, column);
    char text[JOB_ID_TEXT_SIZE];

    job_id_format(&id, text);
    return json_string(text);
}

static json_t *status_json(const char *status)
{
    return json_sprintf(WIRE_PREFIX "%s", status);
}

/* Of one node; there are no instance types here, so that its name says what was asked for. */
static json_t *instance_json(const struct pg_answer *answer, size_t at, size_t row, size_t c)
{
    const char *gpu = pg_c(answer, at, row, c);
    int64_t gpus = pg_i64(answer, at, row, c + 1), cpus = pg_i64(answer, at, row, c + 2);
    int64_t mib = pg_i64(answer, at, row, c + 3) >> 20;
    json_t *name = gpus > 0 ? json_sprintf("%s:%lldx%lldx%lldMi", gpu, (long long)gpus,
                                           (long long)cpus, (long long)mib)
                            : json_sprintf("%lldx%lldMi", (long long)cpus, (long long)mib);

    return json_pack("{s:O, s:o, s:I, s:I, s:I, s:o, s:n}", "id", name, "name", name,
                     "memory_limit_mib", (json_int_t)mib, "millicpu_limit",
                     (json_int_t)(cpus * 1000), "gpu_count", (json_int_t)gpus, "gpu_type",
                     gpus > 0 ? json_string(gpu) : json_null(), "gpu_memory_limit_mib");
}

static void job_add_wire(json_t *job, const struct pg_answer *answer, size_t at, size_t row,
                         size_t c)
{
    const char *project = pg_c(answer, at, row, c + 1);
    json_t *more = json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:s, s:{s:s, s:s}, s:o, s:o, s:I, s:s}", "id",
        json_of_job(answer, at, row, c), "created_at", json_of_time(answer, at, row, c + 7),
        "current_status", status_json(pg_c(answer, at, row, c + 4)), "error_message",
        json_of_text(answer, at, row, c + 5), "instance_type",
        instance_json(answer, at, row, c + 9), "updated_at", json_of_time(answer, at, row, c + 8),
        "training_project_id", project, "training_project", "id", project, "name",
        pg_c(answer, at, row, c + 2), "name", json_of_text(answer, at, row, c + 3),
        "checkpoint_sync_status", json_of_text(answer, at, row, c + 23), "priority",
        (json_int_t)pg_i64(answer, at, row, c + 6), "availability_model", "dedicated");

    (void)json_object_update_new(job, more);
}

/* What is ours. */
static void job_add_own(json_t *job, const struct pg_answer *answer, size_t at, size_t row,
                        size_t c)
{
    json_t *more = json_pack(
        "{s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:o, s:o, s:I, s:o}", "node_count",
        (json_int_t)pg_i64(answer, at, row, c + 13), "created_by",
        json_of_text(answer, at, row, c + 14), "started_at", json_of_time(answer, at, row, c + 15),
        "ended_at", json_of_time(answer, at, row, c + 16), "cause",
        json_of_text(answer, at, row, c + 17), "exit_code", json_of_number(answer, at, row, c + 18),
        "signal", json_of_number(answer, at, row, c + 19), "retry_count",
        (json_int_t)pg_i64(answer, at, row, c + 20), "preemption_count",
        (json_int_t)pg_i64(answer, at, row, c + 21), "placement_count",
        (json_int_t)pg_i64(answer, at, row, c + 22), "queue_position",
        json_of_number(answer, at, row, c + 24), "outlook", json_of_text(answer, at, row, c + 25),
        "checkpoint_count", (json_int_t)pg_i64(answer, at, row, c + 26), "archive_digest",
        json_of_text(answer, at, row, c + 27));

    (void)json_object_update_new(job, more);
}

json_t *training_job_json_at(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    json_t *job = json_object();

    job_add_wire(job, answer, at, row, column);
    job_add_own(job, answer, at, row, column);
    return job;
}

static json_t *listed_json(const struct pg_answer *answer, size_t row)
{
    return training_job_json_at(answer, 0, row, 0);
}

/* ---- one ---- */

void training_fail_missing(struct call **call_p)
{
    call_fail_as(call_p, 404, "client_error", "there is no such training job");
}

int training_bind_path(struct pg_batch *batch, const struct pg_statement *statement,
                       struct call *call, struct err *err)
{
    struct wire_id job;
    int r = call_job_id_named(call, "job id", &job, err);

    if (r < 0)
        return r;
    pg_add(batch, statement);
    pg_bind_c(batch, call->tenant);
    pg_bind_id(batch, &job);
    pg_bind_c(batch, call->match.model != NULL ? call->match.model : "-");
    return 0;
}

static void on_job(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body, *job;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        training_fail_missing(&call);
        return;
    }
    job = training_job_json_at(answer, 0, 0, 0);
    (void)json_object_set_new(job, "spec",
                              json_loads(pg_c(answer, 0, 0, TRAINING_JOB_COLUMN_COUNT), 0, NULL));
    body = json_pack("{s:O, s:o}", "training_project", json_object_get(job, "training_project"),
                     "training_job", job);
    call_answer_json(&call, 200, &body);
}

void training_job_show(struct call *call, const struct wire_id *job)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &training_job_one);
    pg_bind_c(batch, call->tenant);
    pg_bind_id(batch, job);
    pg_bind_c(batch, "-");
    call_query(call, &batch, on_job);
}

/* Asks one statement about the job of the path. */
static struct pg_batch *path_batch(struct call **call_p, const struct pg_statement *statement)
{
    struct pg_batch *batch = pg_batch_new();
    struct err err;

    if (training_bind_path(batch, statement, *call_p, &err) == 0)
        return batch;
    pg_batch_free(&batch);
    call_fail(call_p, &err);
    return NULL;
}

void training_job_begin(struct call *call)
{
    struct pg_batch *batch = path_batch(&call, &training_job_one);

    if (batch != NULL)
        call_query(call, &batch, on_job);
}

/* ---- many ---- */

static void on_jobs(void *opaque, const struct pg_answer *answer)
{
    call_answer_rows(opaque, answer, "training_jobs", listed_json);
}

struct search {
    const char *project;
    bool has_job, ascending;
    struct wire_id job;
    char statuses[STATUSES_SIZE]; /* "": all */
};

static void on_jobs_of(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    if (answer->err.code == ERR_OK && pg_row_count(answer, 1) == 0)
        call_fail_as(&call, 404, "client_error", "there is no such training project");
    else
        call_answer_rows(call, answer, "training_jobs", listed_json);
}

static void search_add(struct pg_batch *batch, const struct call *call, const struct search *search)
{
    pg_add(batch, &training_jobs_of);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, search->project);
    pg_bind_id(batch, search->has_job ? &search->job : NULL);
    pg_bind_c(batch, search->statuses[0] != '\0' ? search->statuses : NULL);
    pg_bind_bool(batch, search->ascending);
}

void training_jobs_begin(struct call *call)
{
    const struct search search = {.project = call->match.model};
    struct pg_batch *batch = pg_batch_new();

    search_add(batch, call, &search);
    pg_add(batch, &training_has_project);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, call->match.model);
    call_query(call, &batch, on_jobs_of);
}

/* One status as the wire says it, or without the prefix; QUEUED is what some clients call PENDING.
 */
static int search_add_status(struct search *search, const char *text, struct err *err)
{
    static const char *const known[] = {"PENDING",   "CREATED", "DEPLOYING",     "RUNNING",
                                        "COMPLETED", "FAILED",  "DEPLOY_FAILED", "STOPPED"};
    const char *status = strncmp(text, WIRE_PREFIX, sizeof(WIRE_PREFIX) - 1) == 0
                             ? text + sizeof(WIRE_PREFIX) - 1
                             : text;
    size_t used = strlen(search->statuses);

    if (strcmp(status, "QUEUED") == 0)
        status = "PENDING";
    for (size_t i = 0; i < COUNT_OF(known); i++) {
        if (strcmp(known[i], status) != 0)
            continue;
        if (used + strlen(status) + 2 < sizeof(search->statuses))
            (void)snprintf(search->statuses + used, sizeof(search->statuses) - used, "%s%s",
                           used > 0 ? "," : "", status);
        return 0;
    }
    return err_set(err, ERR_RANGE,
                   "statuses: '%.60s' is none; it must be TRAINING_JOB_ and one of PENDING, "
                   "CREATED, DEPLOYING, RUNNING, COMPLETED, FAILED, DEPLOY_FAILED, STOPPED",
                   text);
}

static int search_read_statuses(struct search *search, const json_t *list, struct err *err)
{
    size_t i;
    const json_t *item;

    if (list == NULL || json_is_null(list))
        return 0;
    if (!json_is_array(list) || json_array_size(list) > 16)
        return err_set(err, ERR_MALFORMED, "statuses must be a list of at most 16 texts");
    json_array_foreach(list, i, item)
    {
        int r = json_is_string(item)
                    ? search_add_status(search, json_string_value(item), err)
                    : err_set(err, ERR_MALFORMED, "statuses[%zu] must be a text", i);

        if (r < 0)
            return r;
    }
    return 0;
}

static int search_read_order(struct search *search, const json_t *list, struct err *err)
{
    const char *field, *order;

    if (list == NULL || json_is_null(list) || (json_is_array(list) && json_array_size(list) == 0))
        return 0;
    field = json_string_value(json_object_get(json_array_get(list, 0), "field"));
    order = json_string_value(json_object_get(json_array_get(list, 0), "order"));
    if (json_array_size(list) != 1 || field == NULL || order == NULL ||
        strcmp(field, "created_at") != 0 ||
        (strcmp(order, "asc") != 0 && strcmp(order, "desc") != 0))
        return err_set(err, ERR_RANGE,
                       "order_by must be one field, created_at, with the order asc or desc");
    search->ascending = strcmp(order, "asc") == 0;
    return 0;
}

static int search_read(const json_t *body, struct search *search, struct err *err)
{
    static const char *const fields[] = {"project_id", "job_id", "statuses", "order_by"};
    const json_t *project = json_object_get(body, "project_id");
    const json_t *job = json_object_get(body, "job_id");
    int r = fields_check(body, fields, COUNT_OF(fields), err);

    if (r == 0 && project != NULL && !json_is_null(project) && !json_is_string(project))
        r = err_set(err, ERR_MALFORMED, "project_id must be a text");
    search->project = json_string_value(project);
    search->has_job = job != NULL && !json_is_null(job);
    if (r == 0 && search->has_job && !json_is_string(job))
        r = err_set(err, ERR_MALFORMED, "job_id must be a text");
    if (r == 0 && search->has_job && job_id_parse(json_string_value(job), &search->job, err) < 0)
        r = err_wrap(err, "job_id");
    if (r == 0)
        r = search_read_statuses(search, json_object_get(body, "statuses"), err);
    return r < 0 ? r : search_read_order(search, json_object_get(body, "order_by"), err);
}

static void on_search_body(struct call *call)
{
    struct search search = {.project = NULL};
    struct pg_batch *batch;
    json_t *body = NULL;
    struct err err;
    int r = call_read_json(call, &body, &err);

    if (r == 0)
        r = search_read(body, &search, &err);
    if (r < 0) {
        call_fail(&call, &err);
    } else {
        batch = pg_batch_new();
        search_add(batch, call, &search);
        call_query(call, &batch, on_jobs);
    }
    json_decref(body);
}

void training_search_begin(struct call *call)
{
    call_collect_body(call, TRAINING_BODY_MAX, on_search_body);
}

/* ---- what changes one ---- */

static void on_changed(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct wire_id job;
    struct err err;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0 || pg_is_null(answer, 0, 0, 0))
        training_fail_missing(&call);
    else if (strcmp(pg_c(answer, 0, 0, 0), "not_pending") == 0)
        call_fail_as(&call, 409, "client_error",
                     "the job does not wait any more: its priority cannot be changed");
    else if (call_job_id_named(call, "job id", &job, &err) < 0)
        call_fail(&call, &err);
    else
        training_job_show(call, &job);
}

void training_job_stop_begin(struct call *call)
{
    struct pg_batch *batch = path_batch(&call, &training_job_stop);

    if (batch == NULL)
        return;
    pg_bind_c(batch, call->key_prefix);
    call_query(call, &batch, on_changed);
}

static void on_set_body(struct call *call)
{
    static const char *const fields[] = {"priority"};
    json_t *body = NULL;
    const json_t *priority;
    struct pg_batch *batch;
    double number;
    struct err err;
    int r = call_read_json(call, &body, &err);

    if (r == 0)
        r = fields_check(body, fields, COUNT_OF(fields), &err);
    priority = json_object_get(body, "priority");
    number = json_number_value(priority); /* 5.0 is a whole number, too */
    if (r == 0 && (!json_is_number(priority) || number != trunc(number)))
        r = err_set(&err, ERR_MALFORMED, "priority must be a whole number");
    json_decref(body);
    if (r == 0 && (number < -1000000 || number > 1000000))
        r = err_set(&err, ERR_RANGE, "priority is %g; it must be -1000000 to 1000000", number);
    if (r < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = path_batch(&call, &training_job_set);
    if (batch == NULL)
        return;
    pg_bind_i64(batch, (int64_t)number);
    call_query(call, &batch, on_changed);
}

void training_job_set_begin(struct call *call)
{
    call_collect_body(call, TRAINING_BODY_MAX, on_set_body);
}

static void on_deleted(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        training_fail_missing(&call);
    } else if (!pg_bool(answer, 0, 0, 0)) {
        call_fail_as(&call, 409, "client_error", "the job is not over: stop it first");
    } else {
        body = json_pack("{s:s, s:b}", "id", call->job, "deleted", 1);
        call_answer_json(&call, 200, &body);
    }
}

void training_job_delete_begin(struct call *call)
{
    struct pg_batch *batch = path_batch(&call, &training_job_delete);

    if (batch == NULL)
        return;
    pg_bind_c(batch, call->key_prefix);
    call_query(call, &batch, on_deleted);
}

/* Where its workspace is: an archive of this gateway, which wants the key as well. */
static void on_download(void *opaque, const struct pg_answer *answer)
{
    OWNED(buf_done) struct buf url = BUF_WITH_LIMIT(4096);
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        training_fail_missing(&call);
        return;
    }
    body = json_pack("{s:[]}", "artifact_presigned_urls");
    if (!pg_is_null(answer, 0, 0, 27)) {
        gateway_append_base_url(call, &url);
        buf_printf(&url, "/v1/training_archives/%s", pg_c(answer, 0, 0, 27));
        (void)json_array_append_new(json_object_get(body, "artifact_presigned_urls"),
                                    json_string(buf_text(&url)));
    }
    call_answer_json(&call, 200, &body);
}

void training_job_download_begin(struct call *call)
{
    struct pg_batch *batch = path_batch(&call, &training_job_one);

    if (batch != NULL)
        call_query(call, &batch, on_download);
}

/* ---- what it waits for ---- */

static void add_others(json_t *body, const struct pg_answer *answer, size_t at)
{
    json_t *active = json_array(), *ahead = json_array();

    for (size_t i = 0; i < pg_row_count(answer, at); i++) {
        json_t *other = json_pack(
            "{s:o, s:o, s:o, s:I, s:o, s:I}", "training_job_id", json_of_job(answer, at, i, 0),
            "training_job_name", json_of_text(answer, at, i, 1), "status",
            status_json(pg_c(answer, at, i, 2)), "requested_gpus",
            (json_int_t)pg_i64(answer, at, i, 3), "submitted_at", json_of_time(answer, at, i, 4),
            "priority", (json_int_t)pg_i64(answer, at, i, 5));

        (void)json_array_append_new(strcmp(pg_c(answer, at, i, 2), "PENDING") == 0 ? ahead : active,
                                    other);
    }
    (void)json_object_set_new(body, "active_at_submit", active);
    (void)json_object_set_new(body, "pending_ahead_at_submit", ahead);
}

static json_t *events_json(const struct pg_answer *answer, size_t at, const json_t *job)
{
    json_t *events = json_array();

    for (size_t i = 0; i < pg_row_count(answer, at); i++)
        (void)json_array_append_new(events,
                                    json_pack("{s:O, s:O, s:o, s:o, s:o, s:o}", "training_job_id",
                                              json_object_get(job, "id"), "training_job_name",
                                              json_object_get(job, "name"), "status",
                                              status_json(pg_c(answer, at, i, 0)), "created",
                                              json_of_time(answer, at, i, 3), "event_message",
                                              json_of_text(answer, at, i, 1), "exit_code",
                                              json_of_number(answer, at, i, 2)));
    return events;
}

/* From its acceptance to its first start, to its end without one, or to now. */
static json_int_t pending_s(const struct pg_answer *answer)
{
    enum { CREATED = 7, STARTED = 15, ENDED = 16 };
    uint64_t from_us = pg_time_us(answer, 0, 0, CREATED), to_us = clock_wall_us();

    if (!pg_is_null(answer, 0, 0, STARTED))
        to_us = pg_time_us(answer, 0, 0, STARTED);
    else if (!pg_is_null(answer, 0, 0, ENDED))
        to_us = pg_time_us(answer, 0, 0, ENDED);
    return to_us > from_us ? (json_int_t)((to_us - from_us) / 1000000) : 0;
}

/* What there was of its type of GPU when it was accepted; nobody reserves any. */
static json_t *capacity_then_json(const struct pg_answer *answer, size_t at)
{
    if (pg_row_count(answer, at) == 0 || pg_is_null(answer, at, 0, 0))
        return json_null();
    return json_pack("{s:I, s:I, s:I}", "baseline", (json_int_t)pg_i64(answer, at, 0, 0), "limit",
                     (json_int_t)pg_i64(answer, at, 0, 0), "usage_count",
                     (json_int_t)pg_i64(answer, at, 0, 1));
}

static void on_queue(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body, *job;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        training_fail_missing(&call);
        return;
    }
    job = training_job_json_at(answer, 0, 0, 0);
    body = json_pack(
        "{s:O, s:O, s:s, s:I, s:O, s:o, s:I, s:o, s:n, s:O, s:O, s:O, s:o}", "target_job_id",
        json_object_get(job, "id"), "target_job_name", json_object_get(job, "name"), "gpu_type",
        pg_c(answer, 0, 0, 9), "requested_gpus",
        (json_int_t)(pg_i64(answer, 0, 0, 10) * pg_i64(answer, 0, 0, 13)), "submitted_at",
        json_object_get(job, "created_at"), "released_at", json_of_time(answer, 0, 0, 15),
        "pending_seconds", pending_s(answer), "org_capacity", capacity_then_json(answer, 3),
        "team_capacity", "queue_position", json_object_get(job, "queue_position"), "outlook",
        json_object_get(job, "outlook"), "events_window_end", json_object_get(job, "updated_at"),
        "events", events_json(answer, 2, job));
    add_others(body, answer, 1);
    json_decref(job);
    call_answer_json(&call, 200, &body);
}

void training_queue_begin(struct call *call)
{
    struct pg_batch *batch = path_batch(&call, &training_job_one);
    struct wire_id job;
    struct err err;
    int r;

    if (batch == NULL)
        return;
    r = call_job_id_named(call, "job id", &job, &err);
    if (r < 0) {
        pg_batch_free(&batch);
        call_fail(&call, &err);
        return;
    }
    pg_add(batch, &training_queue_others);
    pg_bind_c(batch, call->tenant);
    pg_bind_id(batch, &job);
    pg_add(batch, &training_queue_events);
    pg_bind_c(batch, call->tenant);
    pg_bind_id(batch, &job);
    pg_add(batch, &training_queue_capacity);
    pg_bind_c(batch, call->tenant);
    pg_bind_id(batch, &job);
    call_query(call, &batch, on_queue);
}

/* baseline and limit are what the trainers that are there have: nobody reserves any. */
static json_t *capacity_json(const struct pg_answer *answer, size_t row)
{
    const char *gpu = pg_c(answer, 0, row, 0);
    int64_t gpus = pg_i64(answer, 0, row, 2);

    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "gpu_type", gpu, "baseline",
                     (json_int_t)gpus, "limit", (json_int_t)gpus, "usage_count",
                     (json_int_t)pg_i64(answer, 0, row, 3), "trainer_count",
                     (json_int_t)pg_i64(answer, 0, row, 1), "cpu_count",
                     (json_int_t)pg_i64(answer, 0, row, 4), "cpu_usage_count",
                     (json_int_t)pg_i64(answer, 0, row, 5), "memory_bytes",
                     (json_int_t)pg_i64(answer, 0, row, 6), "memory_usage_bytes",
                     (json_int_t)pg_i64(answer, 0, row, 7));
}

static void on_capacity(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *list, *body;

    if (!call_take_answer(&call, answer))
        return;
    list = json_array();
    for (size_t i = 0; i < pg_row_count(answer, 0); i++)
        (void)json_array_append_new(list, capacity_json(answer, i));
    body = json_pack("{s:o, s:[]}", "gpu_capacities", list, "team_gpu_capacities");
    call_answer_json(&call, 200, &body);
}

void training_capacity_begin(struct call *call)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &training_capacity_all);
    call_query(call, &batch, on_capacity);
}
