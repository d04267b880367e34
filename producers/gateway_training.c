/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Training projects, and archives of workspaces: known by digest, or sent.
 *
 * A project is a model that nobody calls (gateway_watch.c does not show it), so that its jobs are
 * jobs like others. An archive belongs to those tenants that have sent it (training_archive).
 */

#include <jansson.h>
#include <sodium.h>
#include <string.h>

#include "base/rng.h"
#include "brokers/blob.h"
#include "producers/gateway_training.h"
#include "schema/api_key.h"
#include "schema/training_config.h"

#define PROJECT_COLUMNS                                                                            \
    "p.project_id, p.name, p.tenant, p.created_at, p.updated_at, p.jobs, p.jobs_open"
#define PROJECT_COLUMN_COUNT 7

/* A project with its newest job, where it has any. */
PG_STATEMENT(training_projects,
             "SELECT " PROJECT_COLUMNS ", j.* FROM headrace_v1.training_projects p LEFT JOIN "
             "LATERAL (SELECT " TRAINING_JOB_COLUMNS " FROM headrace_v1.training_jobs j WHERE "
             "j.project_id = p.project_id ORDER BY j.created_at DESC LIMIT 1) j ON true WHERE "
             "p.tenant = $1 AND ($2::text IS NULL OR $2 IN (p.project_id, p.name)) ORDER BY "
             "p.updated_at DESC LIMIT 1000");
PG_STATEMENT(training_project_put, "SELECT training_project_put($1, $2, $3, $4, $5, $6)");

/* One that has jobs which are not over stays. */
PG_STATEMENT(
    training_project_delete,
    "WITH found AS (SELECT id FROM training_project WHERE tenant = $1 AND $2 IN (id, name) AND "
    "deleted_at IS NULL ORDER BY id = $2 DESC LIMIT 1), busy AS (SELECT count(*) AS n FROM "
    "training_job t, found f WHERE t.project_id = f.id AND t.ended_at IS NULL), gone AS (UPDATE "
    "training_project p SET deleted_at = now() FROM found f, busy b WHERE p.id = f.id AND b.n = 0 "
    "RETURNING p.id), checkpoints AS (UPDATE training_checkpoint c SET state = 'DELETED', files = "
    "NULL FROM training_job t, gone g WHERE t.project_id = g.id AND c.job_id = t.job_id), told AS "
    "(INSERT INTO audit (tenant, actor, action, target) SELECT $1, $3, 'TRAINING_PROJECT_DELETED', "
    "id FROM gone) SELECT f.id, b.n FROM found f, busy b");

PG_STATEMENT(training_archive_find,
             "SELECT a.blob, a.size FROM archive a JOIN training_archive t ON t.digest = a.digest "
             "WHERE t.tenant = $1 AND a.digest = $2");

/* ---- projects ---- */

static json_t *project_json(const struct pg_answer *answer, size_t row)
{
    json_t *latest = pg_is_null(answer, 0, row, PROJECT_COLUMN_COUNT)
                         ? json_null()
                         : training_job_json_at(answer, 0, row, PROJECT_COLUMN_COUNT);

    return json_pack("{s:s, s:s, s:s, s:o, s:o, s:I, s:I, s:o}", "id", pg_c(answer, 0, row, 0),
                     "name", pg_c(answer, 0, row, 1), "team_name", pg_c(answer, 0, row, 2),
                     "created_at", json_of_time(answer, 0, row, 3), "updated_at",
                     json_of_time(answer, 0, row, 4), "job_count",
                     (json_int_t)pg_i64(answer, 0, row, 5), "open_job_count",
                     (json_int_t)pg_i64(answer, 0, row, 6), "latest_job", latest);
}

static void on_projects(void *opaque, const struct pg_answer *answer)
{
    call_answer_rows(opaque, answer, "training_projects", project_json);
}

static void fail_no_project(struct call **call_p)
{
    call_fail_as(call_p, 404, "client_error", "there is no such training project");
}

static void on_project(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        fail_no_project(&call);
        return;
    }
    body = json_pack("{s:o}", "training_project", project_json(answer, 0));
    call_answer_json(&call, 200, &body);
}

static void ask_projects(struct call *call, const char *project, pg_done_fn *done)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &training_projects);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, project);
    call_query(call, &batch, done);
}

void training_projects_begin(struct call *call)
{
    ask_projects(call, NULL, on_projects);
}

void training_project_begin(struct call *call)
{
    ask_projects(call, call->match.model, on_project);
}

static void on_put(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    if (call_take_answer(&call, answer))
        ask_projects(call, pg_c(answer, 0, 0, 0), on_project);
}

static int read_project(struct call *call, json_t **ret_body, const char **ret_name,
                        struct err *err)
{
    static const char *const outer[] = {"training_project"}, *const inner[] = {"name"};
    const json_t *project;
    int r = call_read_json(call, ret_body, err);

    project = json_object_get(*ret_body, "training_project");
    if (r == 0)
        r = fields_check(*ret_body, outer, COUNT_OF(outer), err);
    if (r == 0 && !json_is_object(project))
        r = err_set(err, ERR_MALFORMED, "training_project must be an object with a name");
    if (r == 0)
        r = fields_check(project, inner, COUNT_OF(inner), err);
    *ret_name = json_string_value(json_object_get(project, "name"));
    if (r == 0 && *ret_name == NULL)
        r = err_set(err, ERR_MALFORMED, "training_project.name must be a text");
    return r < 0 ? r : training_name_check("training_project.name", *ret_name, err);
}

static void on_put_body(struct call *call)
{
    uint32_t shards = gateway_watch_shard_count(call->gateway->watch);
    uint8_t random[SHORT_ID_RANDOM_SIZE];
    char id[SHORT_ID_SIZE], deployment[SHORT_ID_SIZE];
    json_t *body = NULL;
    struct pg_batch *batch;
    const char *name;
    struct err err;
    int r = read_project(call, &body, &name, &err);

    if (r == 0 && shards == 0)
        r = err_set(&err, ERR_UNAVAILABLE, "Kafka was not reached yet: no home for a project");
    if (r < 0) {
        json_decref(body);
        call_fail(&call, &err);
        return;
    }
    rng_secret_bytes(random, sizeof(random));
    short_id_make(random, id);
    rng_secret_bytes(random, sizeof(random));
    short_id_make(random, deployment);
    batch = pg_batch_new();
    pg_add(batch, &training_project_put);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, name);
    pg_bind_c(batch, id);
    pg_bind_c(batch, deployment);
    pg_bind_i32(batch, (int64_t)rng_below(&call->gateway->rng, shards));
    pg_bind_c(batch, call->key_prefix);
    json_decref(body);
    call_query(call, &batch, on_put);
}

void training_project_put_begin(struct call *call)
{
    call_collect_body(call, TRAINING_BODY_MAX, on_put_body);
}

static void on_deleted(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        fail_no_project(&call);
    } else if (pg_i64(answer, 0, 0, 1) > 0) {
        call_fail_as(&call, 409, "client_error",
                     "jobs of the project are not over: stop them first");
    } else {
        body = json_pack("{s:s, s:b}", "id", pg_c(answer, 0, 0, 0), "deleted", 1);
        call_answer_json(&call, 200, &body);
    }
}

void training_project_delete_begin(struct call *call)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &training_project_delete);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, call->match.model);
    pg_bind_c(batch, call->key_prefix);
    call_query(call, &batch, on_deleted);
}

/* ---- archives ---- */

void training_answer_blob(struct call *call, int fd, uint64_t size, const struct err *err,
                          const char *what)
{
    struct err mine = *err;

    if (err->code == ERR_OK) {
        call_set_type(call, WIRE_TEXT_OF(MEDIA_TYPE_BYTES));
        call_answer_file(&call, 200, fd, size);
        return;
    }
    if (mine.code == ERR_NOT_FOUND) /* its row is there */
        mine.code = ERR_IO;
    (void)err_wrap(&mine, "%s cannot be read", what);
    call_fail(&call, &mine);
}

static void on_archive_open(void *opaque, int fd, uint64_t size, const struct err *err)
{
    training_answer_blob(opaque, fd, size, err, "the archive");
}

static void on_archive(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct err err;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0)
        call_fail_as(&call, 404, "client_error", "there is no archive of that digest here");
    else if (blob_open(call->gateway->blobs, pg_c(answer, 0, 0, 0), on_archive_open, call, &err) <
             0)
        call_fail(&call, &err);
}

void training_archive_begin(struct call *call)
{
    const char *text = call->match.param;
    uint8_t digest[BLOB_DIGEST_SIZE];
    struct pg_batch *batch;
    size_t size = 0;

    if (sodium_hex2bin(digest, sizeof(digest), text, strlen(text), NULL, &size, NULL) != 0 ||
        size != sizeof(digest)) {
        call_fail_as(&call, 404, "client_error", "an archive's name is 64 hex digits");
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &training_archive_find);
    pg_bind_c(batch, call->tenant);
    pg_bind_bytes(batch, (struct wire_bytes){digest, sizeof(digest)});
    call_query(call, &batch, on_archive);
}
