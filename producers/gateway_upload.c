/* SPDX-License-Identifier: Apache-2.0 */

/*
 * POST /v1/files: a form becomes a blob and a row. POST /model/{m}/{t}/bulk: the body does, and a
 * bulk job with it, in one transaction.
 *
 *   headers -> stream the form into an upload of the blob store, paused while a part is written
 *   -> look at its other fields -> blob by the file's id -> row -> 200
 *
 * Failures: nothing is kept of an upload that is refused, dropped or cut off. A crash between the
 * blob and the row leaves a blob that nobody names.
 */

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "brokers/blob.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_file.h"

#define PART_SIZE (1u << 20)
#define PART_SIZE_MAX (8u << 20) /* with what comes while a part is written */
#define FORM_SIZE_MAX (1u << 20) /* of a body, besides the file */

PG_STATEMENT(
    file_insert,
    "INSERT INTO file AS f (id, tenant, purpose, filename, size, digest, blob, expires_at) "
    "VALUES ($1, $2, $3, $4, $5, $6, $7, now() + nullif($8::bigint, 0) * interval '1 "
    "second') RETURNING " FILE_COLUMNS);

struct upload {
    struct call *call;
    struct gateway *gateway;
    struct http_form *form; /* NULL: the body is the file, lines of a bulk job */
    char *targets;          /* of that; NULL: it is none */
    struct blob_upload *upload;
    struct buf part; /* of the file, not yet written */
    struct file_fields fields;
    struct wire_id id;
    char blob[BLOB_KEY_SIZE];
    uint64_t expiry_s, body_size, file_size;
    bool writing, ended; /* ended: the body is complete */
};

static void upload_free(struct upload **upload_p)
{
    struct upload *upload = TAKE(*upload_p);

    http_form_free(&upload->form);
    free(upload->targets);
    blob_upload_free(&upload->upload);
    buf_done(&upload->part);
    free(upload);
}

static void upload_dropped(struct call *call)
{
    upload_free((struct upload **)&call->state);
}

static void upload_fail(struct upload *upload, const struct err *err)
{
    upload->call->reading = false;
    call_fail(&upload->call, err);
    upload_free(&upload);
}

/* ---- the row ---- */

static void on_inserted(void *opaque, const struct pg_answer *answer)
{
    struct upload *upload = opaque;
    struct call *call = TAKE(upload->call);
    bool lines = upload->targets != NULL;
    json_t *body;

    upload_free(&upload);
    if (!call_take_answer(&call, answer))
        return;
    if (lines) {
        batch_native_answer(call, answer, 1);
        return;
    }
    body = file_json(answer, 0, 0);
    call_answer_json(&call, 200, &body);
}

static void on_stored(void *opaque, const struct err *err)
{
    struct upload *upload = opaque;
    uint8_t digest[BLOB_DIGEST_SIZE];
    struct pg_batch *batch;
    struct err bad = *err;
    int r = err->code;

    if (r == 0) {
        batch = pg_batch_new();
        blob_upload_digest(upload->upload, digest);
        pg_add(batch, &file_insert);
        pg_bind_id(batch, &upload->id);
        pg_bind_c(batch, upload->call->tenant);
        pg_bind_c(batch, upload->fields.purpose);
        pg_bind_c(batch, upload->fields.filename);
        pg_bind_i64(batch, (int64_t)blob_upload_size(upload->upload));
        pg_bind_bytes(batch, (struct wire_bytes){digest, sizeof(digest)});
        pg_bind_c(batch, upload->blob);
        pg_bind_i64(batch, (int64_t)upload->expiry_s);
        if (upload->targets != NULL)
            batch_native_add(batch, upload->call, &upload->id, upload->targets);
        r = pg_pool_send(upload->gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_inserted, upload,
                         &bad);
        pg_batch_free(&batch);
    }
    if (r < 0)
        upload_fail(upload, &bad);
}

/* ---- the body ---- */

static int upload_check(struct upload *upload, struct err *err)
{
    int r = upload->form == NULL ? 0 : http_form_end(upload->form, err);

    if (r == 0)
        r = file_fields_check(&upload->fields, &upload->expiry_s, err);
    if (r == 0 && blob_upload_size(upload->upload) + upload->part.size == 0)
        r = err_set(err, ERR_RANGE, "the file is empty");
    return r;
}

static void upload_store(struct upload *upload)
{
    uint8_t entropy[JOB_ID_RANDOM_SIZE];
    struct err err;

    rng_secret_bytes(entropy, sizeof(entropy));
    upload->id = job_id_make(0, clock_wall_ms(), entropy);
    blob_key_file(&upload->id, upload->blob);
    if (blob_upload_end(upload->upload, upload->blob, on_stored, upload, &err) < 0)
        upload_fail(upload, &err);
}

static void upload_write(struct upload *upload);

/* Goes on after bytes came or a part was written. */
static void upload_go_on(struct upload *upload)
{
    if (upload->writing)
        return;
    if (upload->part.size >= PART_SIZE || (upload->ended && upload->part.size > 0))
        upload_write(upload);
    else if (upload->ended)
        upload_store(upload);
    else
        http_request_resume_body(upload->call->request);
}

static void on_written(void *opaque, const struct err *err)
{
    struct upload *upload = opaque;

    upload->writing = false;
    if (err->code != ERR_OK)
        upload_fail(upload, err);
    else
        upload_go_on(upload);
}

static void upload_write(struct upload *upload)
{
    struct err err;

    if (!upload->ended)
        http_request_pause_body(upload->call->request);
    upload->writing = true;
    if (blob_upload_write(upload->upload, &upload->part, on_written, upload, &err) < 0)
        upload_fail(upload, &err);
}

static int upload_take(struct upload *upload, const void *bytes, size_t size, struct err *err)
{
    uint64_t limit = upload->gateway->settings.file_max_size;

    if (upload->file_size + size > limit)
        return err_set(err, ERR_TOO_BIG, "the file has more than the %llu bytes of file-max",
                       (unsigned long long)limit);
    upload->file_size += size;
    buf_append(&upload->part, bytes, size);
    return buf_check(&upload->part, "what came while a part was written", err);
}

static int on_piece(void *opaque, const struct http_form_piece *piece, struct err *err)
{
    struct upload *upload = opaque;
    bool is_file = false;
    int r = file_fields_take(&upload->fields, piece, &is_file, err);

    return r < 0 || !is_file ? r : upload_take(upload, piece->bytes, piece->size, err);
}

static void on_chunk(struct http_request *request, const void *bytes, size_t size, void *opaque)
{
    struct upload *upload = opaque;
    struct err err;
    int r;

    (void)request;
    upload->body_size += size;
    if (bytes == NULL) {
        upload->ended = true;
        upload->call->reading = false;
        r = upload_check(upload, &err);
    } else if (upload->body_size > upload->gateway->settings.file_max_size + FORM_SIZE_MAX) {
        r = err_set(&err, ERR_TOO_BIG, "the form has more than file-max and %u bytes",
                    FORM_SIZE_MAX);
    } else if (upload->form != NULL) {
        r = http_form_feed(upload->form, bytes, size, &err);
    } else {
        r = upload_take(upload, bytes, size, &err);
    }
    if (r < 0)
        upload_fail(upload, &err);
    else if (bytes == NULL || upload->part.size >= PART_SIZE)
        upload_go_on(upload);
}

static void upload_begin(struct call *call, const char *targets)
{
    uint64_t announced = http_request_announced_size(call->request);
    uint64_t limit = call->gateway->settings.file_max_size;
    struct upload *upload = xcalloc(1, sizeof(*upload));
    struct err err;
    int r = 0;

    upload->call = call;
    upload->gateway = call->gateway;
    upload->part = BUF_WITH_LIMIT(PART_SIZE_MAX);
    call->state = upload;
    call->on_dropped = upload_dropped;
    if (announced != UINT64_MAX && announced > limit + FORM_SIZE_MAX)
        r = err_set(&err, ERR_TOO_BIG,
                    "the body has %llu bytes; a file may have at most %llu (file-max)",
                    (unsigned long long)announced, (unsigned long long)limit);
    if (r == 0 && targets == NULL)
        r = http_form_new(call->request, on_piece, upload, &upload->form, &err);
    if (r == 0)
        r = blob_upload_new(call->gateway->blobs, &upload->upload, &err);
    if (r < 0) {
        upload_fail(upload, &err);
        return;
    }
    if (targets != NULL) {
        upload->targets = xstrdup(targets);
        upload->fields = (struct file_fields){
            .purpose = "batch", .filename = "lines.jsonl", .has_file = true, .has_purpose = true};
    }
    if (call_begin_reading(call))
        http_request_stream_body(call->request, on_chunk, upload);
}

void file_upload_begin(struct call *call)
{
    upload_begin(call, NULL);
}

void file_upload_lines(struct call *call, const char *targets)
{
    upload_begin(call, targets);
}
