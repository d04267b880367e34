/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Checkpoints of a training job, their files, and the bytes of these. A checkpoint is what all
 * nodes that wrote one of that name have written: COMPLETE when all parts are. URLs of files are
 * routes of this gateway and want a key as any other.
 */

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "brokers/blob.h"
#include "producers/gateway_training.h"

#define PAGE_DEFAULT 1000
#define PAGE_MAX 1000
#define URL_SIZE_MAX 8192

PG_STATEMENT(training_checkpoints_job, "SELECT " TRAINING_JOB_COLUMNS
                                       " FROM headrace_v1.training_jobs WHERE" TRAINING_OF_PATH);
PG_STATEMENT(
    training_checkpoints_of,
    "SELECT c.name, min(c.created_at), max(c.completed_at), (array_agg(c.type ORDER BY "
    "c.rank))[1], (array_agg(c.base_model ORDER BY c.rank))[1], (array_agg(c.lora::text ORDER BY "
    "c.rank))[1], sum(c.size_bytes)::bigint, sum(c.file_count)::bigint, "
    "sum(c.uploaded_bytes)::bigint, count(*), bool_and(c.state = 'COMPLETE') FROM "
    "training_checkpoint c JOIN headrace_v1.training_jobs t ON t.job_id = c.job_id WHERE t.tenant "
    "= $1 AND t.job_id = $2 AND ($3 = '-' OR $3 IN (t.project_id, t.project)) AND c.state <> "
    "'DELETED' GROUP BY c.name ORDER BY max(c.completed_at) NULLS LAST, min(c.created_at) LIMIT "
    "10000");

/* Files of all of them, or of one ($4), from an offset ($5) on. */
PG_STATEMENT(
    training_files_of,
    "SELECT c.rank, c.name, f.value ->> 'path', (f.value ->> 'size')::bigint, f.value ->> "
    "'digest', c.completed_at, count(*) OVER () FROM training_checkpoint c JOIN "
    "headrace_v1.training_jobs t ON t.job_id = c.job_id CROSS JOIN LATERAL "
    "jsonb_array_elements(c.files) f WHERE t.tenant = $1 AND t.job_id = $2 AND ($3 = '-' OR $3 IN "
    "(t.project_id, t.project)) AND c.state = 'COMPLETE' AND ($4::text IS NULL OR c.name = $4) "
    "ORDER BY c.completed_at, c.name, c.rank, 3 OFFSET $5 LIMIT $6");
PG_STATEMENT(
    training_file_find,
    "SELECT training_blob(t.project_id, f.value) FROM training_checkpoint c JOIN "
    "headrace_v1.training_jobs t ON t.job_id = c.job_id CROSS JOIN LATERAL "
    "jsonb_array_elements(c.files) f WHERE t.tenant = $1 AND t.job_id = $2 AND ($3 = '-' OR $3 IN "
    "(t.project_id, t.project)) AND c.state = 'COMPLETE' AND c.name = $4 AND c.rank = $5 AND "
    "f.value ->> 'path' = $6");

/* ---- checkpoints ---- */

static json_t *checkpoint_json(const struct pg_answer *answer, size_t row, const char *job)
{
    const char *lora = pg_c(answer, 1, row, 5);
    bool complete = pg_bool(answer, 1, row, 10);

    return json_pack(
        "{s:s, s:o, s:s, s:o, s:o, s:I, s:s, s:s, s:o, s:I, s:I, s:I}", "checkpoint_id",
        pg_c(answer, 1, row, 0), "created_at", json_of_time(answer, 1, row, 1), "checkpoint_type",
        pg_c(answer, 1, row, 3), "base_model", json_of_text(answer, 1, row, 4),
        "lora_adapter_config",
        pg_is_null(answer, 1, row, 5) ? json_null() : json_loads(lora, JSON_DECODE_ANY, NULL),
        "size_bytes", (json_int_t)pg_i64(answer, 1, row, 6), "sync_status",
        complete ? "COMPLETE" : "SYNCING", "training_job_id", job, "completed_at",
        complete ? json_of_time(answer, 1, row, 2) : json_null(), "file_count",
        (json_int_t)pg_i64(answer, 1, row, 7), "uploaded_bytes",
        (json_int_t)pg_i64(answer, 1, row, 8), "node_count", (json_int_t)pg_i64(answer, 1, row, 9));
}

static void on_checkpoints(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *list, *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        training_fail_missing(&call);
        return;
    }
    list = json_array();
    for (size_t i = 0; i < pg_row_count(answer, 1); i++)
        (void)json_array_append_new(list, checkpoint_json(answer, i, call->job));
    body = json_pack("{s:o, s:o}", "training_job", training_job_json_at(answer, 0, 0, 0),
                     "checkpoints", list);
    call_answer_json(&call, 200, &body);
}

/* Both statements about the job of the path. */
static struct pg_batch *pair(struct call **call_p, const struct pg_statement *first,
                             const struct pg_statement *second)
{
    struct pg_batch *batch = pg_batch_new();
    struct err err;

    if (training_bind_path(batch, first, *call_p, &err) == 0 &&
        training_bind_path(batch, second, *call_p, &err) == 0)
        return batch;
    pg_batch_free(&batch);
    call_fail(call_p, &err);
    return NULL;
}

void training_checkpoints_begin(struct call *call)
{
    struct pg_batch *batch = pair(&call, &training_checkpoints_job, &training_checkpoints_of);

    if (batch != NULL)
        call_query(call, &batch, on_checkpoints);
}

/* ---- files ---- */

static void append_field(struct buf *to, const char *name, const char *value)
{
    static const char plain[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/";

    buf_printf(to, "%s=", name);
    for (; *value != '\0'; value++) {
        if (strchr(plain, *value) != NULL)
            buf_append_byte(to, (uint8_t)*value);
        else
            buf_printf(to, "%%%02X", (unsigned)(uint8_t)*value);
    }
}

static json_t *file_json(const struct call *call, const struct pg_answer *answer, size_t row)
{
    OWNED(buf_done) struct buf url = BUF_WITH_LIMIT(URL_SIZE_MAX);
    const char *name = pg_c(answer, 1, row, 1), *path = pg_c(answer, 1, row, 2);

    gateway_append_base_url(call, &url);
    buf_printf(&url, "/v1/training_projects/%s/jobs/%s/checkpoint_file?rank=%lld&",
               pg_c(answer, 0, 0, 1), call->job, (long long)pg_i64(answer, 1, row, 0));
    append_field(&url, "checkpoint", name);
    append_field(&url, "&path", path);
    return json_pack("{s:s, s:o, s:I, s:I, s:o, s:s, s:s, s:s}", "url", buf_text(&url),
                     "relative_file_name", json_sprintf("%s/%s", name, path), "node_rank",
                     (json_int_t)pg_i64(answer, 1, row, 0), "size_bytes",
                     (json_int_t)pg_i64(answer, 1, row, 3), "last_modified",
                     json_of_time(answer, 1, row, 5), "checkpoint_id", name, "path", path, "digest",
                     pg_c(answer, 1, row, 4));
}

static void on_files(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    int64_t offset = 0, total;
    size_t count;
    json_t *list, *body;
    struct err err;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        training_fail_missing(&call);
        return;
    }
    if (call_query_number(call, "page_token", 0, 0, INT32_MAX, &offset, &err) < 0)
        offset = 0; /* it was checked before the query */
    count = pg_row_count(answer, 1);
    total = count > 0 ? pg_i64(answer, 1, 0, 6) : 0;
    list = json_array();
    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(list, file_json(call, answer, i));
    body = json_pack("{s:o, s:o, s:I}", "presigned_urls", list, "next_page_token",
                     offset + (int64_t)count < total ? json_integer(offset + (json_int_t)count)
                                                     : json_null(),
                     "total_count", (json_int_t)total);
    call_answer_json(&call, 200, &body);
}

void training_files_begin(struct call *call)
{
    struct pg_batch *batch;
    int64_t size, offset;
    struct err err;
    int r = call_query_number(call, "page_size", PAGE_DEFAULT, 1, PAGE_MAX, &size, &err);

    if (r == 0)
        r = call_query_number(call, "page_token", 0, 0, INT32_MAX, &offset, &err);
    if (r < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pair(&call, &training_checkpoints_job, &training_files_of);
    if (batch == NULL)
        return;
    pg_bind_c(batch, http_target_query(&call->target, "checkpoint"));
    pg_bind_i64(batch, offset);
    pg_bind_i64(batch, size);
    call_query(call, &batch, on_files);
}

/* ---- one file ---- */

static void on_open(void *opaque, int fd, uint64_t size, const struct err *err)
{
    struct call *call = opaque;

    training_answer_blob(call, fd, size, err, "the checkpoint's file");
}

static void on_file(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct err err;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0)
        call_fail_as(&call, 404, "client_error",
                     "the job has no complete checkpoint with such a file");
    else if (blob_open(call->gateway->blobs, pg_c(answer, 0, 0, 0), on_open, call, &err) < 0)
        call_fail(&call, &err);
}

void training_file_begin(struct call *call)
{
    const char *checkpoint = http_target_query(&call->target, "checkpoint");
    const char *path = http_target_query(&call->target, "path");
    struct pg_batch *batch = pg_batch_new();
    int64_t rank;
    struct err err;
    int r = call_query_number(call, "rank", 0, 0, 1023, &rank, &err);

    if (r == 0 && (checkpoint == NULL || path == NULL))
        r = err_set(&err, ERR_MALFORMED, "%s is missing in the query",
                    checkpoint == NULL ? "checkpoint" : "path");
    if (r == 0)
        r = training_bind_path(batch, &training_file_find, call, &err);
    if (r < 0) {
        pg_batch_free(&batch);
        call_fail(&call, &err);
        return;
    }
    pg_bind_c(batch, checkpoint);
    pg_bind_i32(batch, rank);
    pg_bind_c(batch, path);
    call_query(call, &batch, on_file);
}
