/* SPDX-License-Identifier: Apache-2.0 */

/*
 * /v1/files but for the upload (gateway_upload.c): list, show, content, delete.
 *
 * A file that is deleted is gone for everybody at once. Its blob goes with it, and then its row:
 * what a crash leaves, or a bulk job still reads, or is in parts, an ingest sweeps
 * (ingest_sweep.c).
 */

#include <jansson.h>
#include <string.h>

#include "base/log.h"
#include "brokers/blob.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_file.h"

#define PAGE_DEFAULT 10000 /* and at most, as OpenAI has it */

#define FILE_IS_THERE                                                                              \
    "f.tenant = $1 AND f.deleted_at IS NULL AND (f.expires_at > now()) IS NOT FALSE"

PG_STATEMENT(files_newest,
             "SELECT " FILE_COLUMNS " FROM file f WHERE " FILE_IS_THERE
             " AND ($2 = f.purpose) IS NOT FALSE AND ($3 > f.id) IS NOT FALSE ORDER BY f.id DESC "
             "LIMIT $4");
PG_STATEMENT(files_oldest,
             "SELECT " FILE_COLUMNS " FROM file f WHERE " FILE_IS_THERE
             " AND ($2 = f.purpose) IS NOT FALSE AND ($3 < f.id) IS NOT FALSE ORDER BY f.id LIMIT "
             "$4");
PG_STATEMENT(
    file_find,
    "SELECT " FILE_COLUMNS
    ", f.blob, f.bulk_id, f.part = 'error' FROM file f WHERE f.id = $2 AND " FILE_IS_THERE);
PG_STATEMENT(
    file_delete,
    "UPDATE file f SET deleted_at = now() WHERE f.id = $2 AND " FILE_IS_THERE
    " RETURNING f.id, CASE WHEN NOT EXISTS (SELECT FROM bulk b WHERE b.input_file_id = f.id AND "
    "b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')) "
    "THEN f.blob END");
PG_STATEMENT(file_forget, "DELETE FROM file WHERE id = $1 AND deleted_at IS NOT NULL");

/* ---- list ---- */

/* One more than the page was asked for: whether there are more. */
void call_answer_page(struct call *call, const struct pg_answer *answer, size_t limit,
                      json_t *(*row_json)(const struct pg_answer *answer, size_t at, size_t row))
{
    size_t count;
    json_t *data, *body;

    if (!call_take_answer(&call, answer))
        return;
    count = pg_row_count(answer, 0);
    data = json_array();
    for (size_t i = 0; i < count && i < limit; i++)
        (void)json_array_append_new(data, row_json(answer, 0, i));
    body = json_pack("{s:s, s:b}", "object", "list", "has_more", count > limit);
    (void)json_object_set_new(body, "first_id", json_null());
    (void)json_object_set_new(body, "last_id", json_null());
    if (json_array_size(data) > 0) {
        (void)json_object_set(body, "first_id", json_object_get(json_array_get(data, 0), "id"));
        (void)json_object_set(
            body, "last_id",
            json_object_get(json_array_get(data, json_array_size(data) - 1), "id"));
    }
    (void)json_object_set_new(body, "data", data);
    call_answer_json(&call, 200, &body);
}

static void on_files(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    call_answer_page(call, answer, (size_t)call->output_size, file_json);
}

static int check_purpose(const char *purpose, struct err *err)
{
    if (purpose == NULL || purpose[strspn(purpose, "abcdefghijklmnopqrstuvwxyz_-")] == '\0')
        return 0;
    return err_set(err, ERR_RANGE, "purpose is '%.40s'; no file has such a one", purpose);
}

static int read_order(const struct call *call, bool *ret_oldest, struct err *err)
{
    const char *order = http_target_query(&call->target, "order");

    *ret_oldest = order != NULL && strcmp(order, "asc") == 0;
    if (order == NULL || *ret_oldest || strcmp(order, "desc") == 0)
        return 0;
    return err_set(err, ERR_RANGE, "order is '%.20s'; it must be asc or desc", order);
}

void files_begin(struct call *call)
{
    const char *after = http_target_query(&call->target, "after");
    const char *purpose = http_target_query(&call->target, "purpose");
    struct pg_batch *batch;
    struct wire_id id;
    int64_t limit;
    bool oldest = false;
    struct err err;
    int r = call_query_number(call, "limit", PAGE_DEFAULT, 1, PAGE_DEFAULT, &limit, &err);

    if (r == 0)
        r = read_order(call, &oldest, &err);
    if (r == 0)
        r = check_purpose(purpose, &err);
    if (r == 0 && after != NULL)
        r = file_id_parse(after, &id, &err);
    if (r < 0) {
        call_fail(&call, &err);
        return;
    }
    call->output_size = (uint64_t)limit;
    batch = pg_batch_new();
    pg_add(batch, oldest ? &files_oldest : &files_newest);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, purpose);
    pg_bind_id(batch, after == NULL ? NULL : &id);
    pg_bind_i64(batch, limit + 1);
    call_query(call, &batch, on_files);
}

/* ---- one file ---- */

/* Asks for the file in the path; a call that names none is answered. */
static void ask_file(struct call *call, const struct pg_statement *statement, pg_done_fn *done)
{
    struct pg_batch *batch;
    struct wire_id id;
    struct err err;

    if (file_id_parse(call->match.param, &id, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, statement);
    pg_bind_c(batch, call->tenant);
    pg_bind_id(batch, &id);
    call_query(call, &batch, done);
}

/* False: the call is over. */
static bool take_file(struct call **call_p, const struct pg_answer *answer)
{
    struct err err;

    if (!call_take_answer(call_p, answer))
        return false;
    if (pg_row_count(answer, 0) > 0)
        return true;
    (void)err_set(&err, ERR_NOT_FOUND, "there is no file '%.60s'", (*call_p)->match.param);
    call_fail(call_p, &err);
    return false;
}

static void on_file(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!take_file(&call, answer))
        return;
    body = file_json(answer, 0, 0);
    call_answer_json(&call, 200, &body);
}

void file_begin(struct call *call)
{
    ask_file(call, &file_find, on_file);
}

/* ---- content ---- */

static void on_content_blob(void *opaque, int fd, uint64_t size, const struct err *err)
{
    struct call *call = opaque;
    struct err mine = *err;

    if (err->code == ERR_OK) {
        call_set_type(call, WIRE_TEXT_OF(MEDIA_TYPE_BYTES));
        call_answer_file(&call, 200, fd, size);
        return;
    }
    if (mine.code == ERR_NOT_FOUND) /* its row is there */
        mine.code = ERR_IO;
    (void)err_wrap(&mine, "the file cannot be read");
    call_fail(&call, &mine);
}

static void on_content(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct wire_id bulk;
    struct err err;

    if (!take_file(&call, answer))
        return;
    if (pg_is_null(answer, 0, 0, 6)) {
        bulk = pg_id(answer, 0, 0, 7);
        content_begin(call, &bulk, pg_bool(answer, 0, 0, 8));
        return;
    }
    if (blob_open(call->gateway->blobs, pg_c(answer, 0, 0, 6), on_content_blob, call, &err) < 0)
        call_fail(&call, &err);
}

void file_content_begin(struct call *call)
{
    ask_file(call, &file_find, on_content);
}

/* ---- delete ---- */

static void on_forgotten(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (answer->err.code != ERR_OK)
        log_warn("file_not_forgotten", LOG_STR("file", call->match.param), LOG_ERR(&answer->err));
    body = json_pack("{s:s, s:s, s:b}", "id", call->match.param, "object", "file", "deleted", 1);
    call_answer_json(&call, 200, &body);
}

static void on_removed(void *opaque, const struct err *err)
{
    static const struct pg_answer kept = {.err.code = ERR_OK};
    struct call *call = opaque;
    struct pg_batch *batch;
    struct wire_id id;
    struct err ignored;

    if (err->code != ERR_OK || file_id_parse(call->match.param, &id, &ignored) < 0) {
        log_warn("file_blob_not_removed", LOG_STR("file", call->match.param), LOG_ERR(err));
        on_forgotten(call, &kept);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &file_forget);
    pg_bind_id(batch, &id);
    call_query(call, &batch, on_forgotten);
}

static void on_deleted(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct err err;

    if (!take_file(&call, answer))
        return;
    if (pg_is_null(answer, 0, 0, 1)) { /* an ingest removes it, when nobody needs it any more */
        on_forgotten(call, answer);
        return;
    }
    if (blob_remove(call->gateway->blobs, pg_c(answer, 0, 0, 1), on_removed, call, &err) < 0)
        on_removed(call, &err);
}

void file_delete_begin(struct call *call)
{
    ask_file(call, &file_delete, on_deleted);
}
