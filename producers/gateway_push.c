/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Push: an archive becomes a deployment.
 *
 *   headers -> stream into an upload of the blob store, paused while a part is written -> digest
 *   -> look through the whole archive on a thread -> plan (engine, slots) -> blob by its digest
 *   -> rows, in one transaction -> 201
 *
 * With Content-Type: application/json there is no archive: the body is a headrace.json, for engines
 * that need no files. Expressions of a chain are compiled, on a thread as well.
 *
 * A workspace of training jobs (/v1/training_archives) goes the same way, without a plan: its rows
 * are those of the archive. A deployment that was made of checkpoints says so in a header, and is
 * then in training_lineage in the same transaction.
 *
 * Failures: nothing is accepted before everything was checked; an upload that is dropped leaves
 * nothing behind. A crash after the blob leaves a blob that the next push of the same files takes.
 */

#include <jansson.h>
#include <openssl/evp.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <uv.h>

#include "base/assert.h"
#include "base/loop.h"
#include "brokers/blob.h"
#include "brokers/jq.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_archive.h"

#define PART_SIZE (1u << 20)
#define JSON_BODY_MAX (64u << 10)
#define ROWS_TIMEOUT_MS 10000

PG_STATEMENT(push_create, "SELECT model, deployment FROM deployment_create($1, $2, $3, $4, $5, $6, "
                          "$7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)");

PG_STATEMENT(push_archive,
             "WITH kept AS (INSERT INTO archive (digest, blob, size, file_count) VALUES ($2, $3, "
             "$4, $5) ON CONFLICT DO NOTHING) SELECT 1");
PG_STATEMENT(push_archive_of, "INSERT INTO training_archive (tenant, digest) VALUES ($1, $2) ON "
                              "CONFLICT (tenant, digest) DO UPDATE SET created_at = now()");
PG_STATEMENT(push_lineage, "SELECT training_lineage_put($1, $2, $3, $4)");

#define ORIGINS_MAX 8
#define ORIGIN_NAME_SIZE 256

/* A checkpoint that a deployment was made of. */
struct push_origin {
    struct wire_id job;
    char checkpoint[ORIGIN_NAME_SIZE];
};

struct push {
    uv_work_t work;
    struct call *call; /* NULL: the client left while it sent */
    struct gateway *gateway;
    struct blob_upload *upload; /* NULL: a push without files */
    struct buf part;
    bool writing, ended; /* ended: the body is complete */
    bool has_digest;     /* that the client announced */
    uint8_t announced[BLOB_DIGEST_SIZE], digest[BLOB_DIGEST_SIZE];
    char blob[BLOB_KEY_SIZE];
    char name[CONFIG_NAME_SIZE], environment[CONFIG_NAME_SIZE];
    char device[MODEL_DEVICE_SIZE]; /* "": as headrace.json says */
    struct push_origin origins[ORIGINS_MAX];
    size_t origin_count;
    bool is_workspace; /* of training jobs: no model */
    struct model_facts facts;
    struct model_plan plan;
    struct err err; /* of the work on the thread */
};

static void push_free(struct push **push_p)
{
    struct push *push = TAKE(*push_p);

    if (push == NULL)
        return;
    blob_upload_free(&push->upload);
    buf_done(&push->part);
    model_facts_done(&push->facts);
    model_plan_done(&push->plan);
    free(push);
}

static void push_fail(struct push *push, const struct err *err)
{
    if (push->call != NULL) {
        push->call->reading = false;
        call_fail(&push->call, err);
    }
    push_free(&push);
}

/* ---- rows ---- */

static void on_created(void *opaque, const struct pg_answer *answer)
{
    struct push *push = opaque;
    struct call *call = TAKE(push->call);
    char text[200];

    (void)snprintf(text, sizeof(text), "model '%.64s' has a deployment '%.64s' already",
                   call->match.model, push->name);
    push_free(&push);
    if (answer->err.code == ERR_CONFLICT && strcmp(answer->constraint, "deployment_name") == 0)
        call_fail_as(&call, 409, "client_error", text);
    else if (call_take_answer(&call, answer))
        deployment_show(call, pg_c(answer, 0, 0, 0), pg_c(answer, 0, 0, 1));
}

static void bind_create(struct pg_batch *batch, const struct push *push)
{
    const struct call *call = push->call;
    uint32_t shards = gateway_watch_shard_count(push->gateway->watch);
    uint8_t random[SHORT_ID_RANDOM_SIZE];
    char model_id[SHORT_ID_SIZE], id[SHORT_ID_SIZE];
    bool has_files = push->blob[0] != '\0';

    rng_secret_bytes(random, sizeof(random));
    short_id_make(random, model_id);
    rng_secret_bytes(random, sizeof(random));
    short_id_make(random, id);
    pg_add(batch, &push_create);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, call->match.model);
    pg_bind_c(batch, model_id);
    pg_bind_c(batch, id);
    pg_bind_c(batch, push->name);
    pg_bind_i32(batch, (int64_t)rng_below(&push->gateway->rng, shards));
    pg_bind_c(batch, push->plan.engine);
    pg_bind_c(batch, push->plan.settings);
    pg_bind_bytes(batch, (struct wire_bytes){has_files ? push->digest : NULL,
                                             has_files ? BLOB_DIGEST_SIZE : 0});
    pg_bind_c(batch, push->blob);
    pg_bind_i64(batch, has_files ? (int64_t)blob_upload_size(push->upload) : 0);
    pg_bind_i32(batch, push->facts.file_count);
    pg_bind_c(batch, push->plan.device);
    pg_bind_i32(batch, push->plan.slot_count);
    pg_bind_i32(batch, push->plan.replica_count);
    pg_bind_c(batch, push->environment);
    pg_bind_c(batch, call->key_prefix);
    pg_bind_i32(batch, push->plan.warm_count);
    for (size_t i = 0; i < push->origin_count; i++) {
        pg_add(batch, &push_lineage);
        pg_bind_c(batch, call->tenant);
        pg_bind_c(batch, id);
        pg_bind_id(batch, &push->origins[i].job);
        pg_bind_c(batch, push->origins[i].checkpoint);
    }
}

/* ---- rows of a workspace ---- */

static void on_archived(void *opaque, const struct pg_answer *answer)
{
    struct push *push = opaque;
    struct call *call = TAKE(push->call);
    char hex[2 * BLOB_DIGEST_SIZE + 1];
    json_t *body;

    (void)sodium_bin2hex(hex, sizeof(hex), push->digest, sizeof(push->digest));
    body = json_pack("{s:s, s:I, s:I}", "digest", hex, "size_bytes",
                     (json_int_t)blob_upload_size(push->upload), "file_count",
                     (json_int_t)push->facts.file_count);
    push_free(&push);
    if (call_take_answer(&call, answer))
        call_answer_json(&call, 200, &body);
    else
        json_decref(body);
}

static void bind_archive(struct pg_batch *batch, const struct push *push)
{
    const struct wire_bytes digest = {push->digest, BLOB_DIGEST_SIZE};

    pg_add(batch, &push_archive);
    pg_bind_c(batch, push->call->tenant);
    pg_bind_bytes(batch, digest);
    pg_bind_c(batch, push->blob);
    pg_bind_i64(batch, (int64_t)blob_upload_size(push->upload));
    pg_bind_i32(batch, push->facts.file_count);
    pg_add(batch, &push_archive_of);
    pg_bind_c(batch, push->call->tenant);
    pg_bind_bytes(batch, digest);
}

static void push_create_rows(struct push *push)
{
    struct pg_batch *batch;
    struct err err;
    int r;

    if (!push->is_workspace && gateway_watch_shard_count(push->gateway->watch) == 0) {
        (void)err_set(&err, ERR_UNAVAILABLE, "Kafka was not reached yet: no home for a deployment");
        push_fail(push, &err);
        return;
    }
    batch = pg_batch_new();
    if (push->is_workspace)
        bind_archive(batch, push);
    else
        bind_create(batch, push);
    r = pg_pool_send(push->gateway->pg, &batch, ROWS_TIMEOUT_MS,
                     push->is_workspace ? on_archived : on_created, push, &err);
    pg_batch_free(&batch);
    if (r < 0)
        push_fail(push, &err);
}

/* ---- the archive ---- */

static void on_stored(void *opaque, const struct err *err)
{
    struct push *push = opaque;

    if (err->code != ERR_OK)
        push_fail(push, err);
    else
        push_create_rows(push);
}

/* thread: libuv's pool */
static int check_expressions(struct push *push)
{
    return strcmp(push->plan.engine, "chain") == 0 ? jq_check_json(push->plan.settings, &push->err)
                                                   : 0;
}

static int plan(struct push *push, struct err *err)
{
    mem_copy_text(push->facts.device, push->device);
    return model_plan_make(&push->facts, &push->plan, err);
}

/* thread: libuv's pool   The push belongs to this thread until on_looked(). */
static void look(uv_work_t *work)
{
    struct push *push = (struct push *)work;
    uint64_t size_max = push->gateway->settings.unpacked_max_size;
    int r = gateway_archive_look(blob_upload_path(push->upload), size_max, &push->facts,
                                 &push->err);

    if (r == 0 && !push->is_workspace)
        r = plan(push, &push->err);
    if (r == 0 && push->plan.wants_checkpoints && !push->facts.has_checkpoints)
        r = err_set(&push->err, ERR_UNSUPPORTED,
                    "config.yaml: training_checkpoints: the archive has no files of them; "
                    "`headrace push` brings them along");
    if (r == 0 && !push->is_workspace)
        r = check_expressions(push);
    push->err.code = r;
}

static void on_looked(uv_work_t *work, int status)
{
    struct push *push = (struct push *)work;
    struct err err;

    assert(status == 0);
    if (push->err.code < 0) {
        if (push->err.code == ERR_UNSUPPORTED) /* 501 would speak of us, not of the files */
            push->err.code = ERR_MISMATCH;
        err = push->err;
        push_fail(push, &err);
        return;
    }
    blob_key_archive(push->digest, push->blob);
    if (blob_upload_end(push->upload, push->blob, on_stored, push, &err) < 0)
        push_fail(push, &err);
}

static void push_check(struct push *push)
{
    struct err err;
    int r;

    blob_upload_digest(push->upload, push->digest);
    if (push->has_digest && memcmp(push->digest, push->announced, BLOB_DIGEST_SIZE) != 0) {
        (void)err_set(&err, ERR_MISMATCH,
                      "the archive's SHA-256 is not the announced one: %llu bytes came",
                      (unsigned long long)blob_upload_size(push->upload));
        push_fail(push, &err);
        return;
    }
    r = uv_queue_work(loop_uv(push->gateway->loop), &push->work, look, on_looked);
    assert(r == 0);
}

/* ---- the body ---- */

static void push_write(struct push *push);

static uint64_t archive_size_max(const struct push *push)
{
    const struct gateway_settings *settings = &push->gateway->settings;

    return push->is_workspace ? settings->training_archive_max_size : settings->archive_max_size;
}

static const char *archive_limit(const struct push *push)
{
    return push->is_workspace ? "training-archive-max" : "archive-max";
}

static void on_written(void *opaque, const struct err *err)
{
    struct push *push = opaque;

    push->writing = false;
    if (err->code != ERR_OK) {
        push_fail(push, err);
    } else if (push->part.size >= PART_SIZE || (push->ended && push->part.size > 0)) {
        push_write(push);
    } else if (push->ended) {
        push_check(push);
    } else {
        http_request_resume_body(push->call->request);
    }
}

static void push_write(struct push *push)
{
    struct err err;

    if (!push->ended)
        http_request_pause_body(push->call->request);
    push->writing = true;
    if (blob_upload_write(push->upload, &push->part, on_written, push, &err) < 0)
        push_fail(push, &err);
}

static void on_chunk(struct http_request *request, const void *bytes, size_t size, void *opaque)
{
    struct push *push = opaque;
    uint64_t limit = archive_size_max(push);
    struct err err;

    (void)request;
    if (bytes == NULL) {
        push->ended = true;
        push->call->reading = false;
    } else {
        buf_append(&push->part, bytes, size);
        if (blob_upload_size(push->upload) + push->part.size > limit) {
            (void)err_set(&err, ERR_TOO_BIG, "the archive has more than %llu bytes (%s)",
                          (unsigned long long)limit, archive_limit(push));
            push_fail(push, &err);
            return;
        }
        if (buf_check(&push->part, "what came while a part was written", &err) < 0) {
            push_fail(push, &err);
            return;
        }
    }
    if (push->writing)
        return;
    if (push->part.size >= PART_SIZE || (push->ended && push->part.size > 0))
        push_write(push);
    else if (push->ended)
        push_check(push);
}

/* The client left while it sent. A write that is under way is dropped by the upload itself. */
static void push_dropped(struct call *call)
{
    push_free((struct push **)&call->state);
}

/* ---- the headers ---- */

static int read_hex(const char *text, uint8_t to[BLOB_DIGEST_SIZE])
{
    size_t size = 0;

    return sodium_hex2bin(to, BLOB_DIGEST_SIZE, text, strlen(text), NULL, &size, NULL) == 0 &&
                   size == BLOB_DIGEST_SIZE
               ? 0
               : -1;
}

static int read_base64(const char *text, uint8_t to[BLOB_DIGEST_SIZE])
{
    size_t size = 0;

    return sodium_base642bin(to, BLOB_DIGEST_SIZE, text, strcspn(text, ",:"), NULL, &size, NULL,
                             sodium_base64_VARIANT_ORIGINAL) == 0 &&
                   size == BLOB_DIGEST_SIZE
               ? 0
               : -1;
}

/* "sha-256=<hex>" of our own header, or the base64 of RFC 3230's Digest and RFC 9530's
 * Content-Digest, which stands between colons. */
static int read_digest(struct push *push, struct err *err)
{
    static const char *const names[] = {"X-Headrace-Digest", "Digest", "Content-Digest"};

    for (size_t i = 0; i < COUNT_OF(names); i++) {
        const char *value = http_request_header(push->call->request, names[i]);
        const char *text;

        if (value == NULL)
            continue;
        text = value + strcspn(value, "=");
        text += *text == '=';
        text += *text == ':';
        if (strncasecmp(value, "sha-256=", 8) != 0 ||
            (read_hex(text, push->announced) < 0 && read_base64(text, push->announced) < 0))
            return err_set(err, ERR_MALFORMED,
                           "%s is '%.100s'; it must be sha-256=<64 hex digits, or base64>",
                           names[i], value);
        push->has_digest = true;
        return 0;
    }
    return 0;
}

static int read_names(struct push *push, struct err *err)
{
    const struct call *call = push->call;
    const char *name = http_request_header(call->request, "X-Headrace-Deployment-Name");
    const char *environment = http_target_query(&call->target, "environment");
    int r = name_check("the model's name", call->match.model, err);

    if (name == NULL)
        name = http_target_query(&call->target, "name");
    if (r == 0 && name != NULL && name[0] != '\0') {
        r = name_check("the deployment's name", name, err);
        if (r == 0)
            mem_copy_text(push->name, name);
    }
    if (r == 0 && environment != NULL) {
        r = name_check("environment", environment, err);
        if (r == 0)
            mem_copy_text(push->environment, environment);
    }
    return r;
}

/* What it may be is the plan's to say. */
static int read_device(struct push *push, struct err *err)
{
    const char *device = http_target_query(&push->call->target, "device");

    if (device == NULL)
        return 0;
    if (strlen(device) >= sizeof(push->device))
        return err_set(err, ERR_RANGE, "device is '%.40s'; it must be cpu, cuda or cuda:N", device);
    mem_copy_text(push->device, device);
    return 0;
}

/* "JOB/CHECKPOINT", or several with commas between. */
static int read_origins(struct push *push, struct err *err)
{
    const char *at = http_request_header(push->call->request, "X-Headrace-Training-Checkpoint");

    while (at != NULL && *at != '\0') {
        size_t size = strcspn(at, ","), id_size = strcspn(at, "/");
        struct push_origin *origin = &push->origins[push->origin_count];
        char id[JOB_ID_TEXT_SIZE];

        if (push->origin_count == ORIGINS_MAX || id_size >= size || id_size >= sizeof(id) ||
            size - id_size - 1 >= sizeof(origin->checkpoint) || size == id_size + 1)
            return err_set(err, ERR_MALFORMED,
                           "X-Headrace-Training-Checkpoint must be JOB/CHECKPOINT, at most %d of "
                           "them with commas between",
                           ORIGINS_MAX);
        (void)snprintf(id, sizeof(id), "%.*s", (int)id_size, at);
        (void)snprintf(origin->checkpoint, sizeof(origin->checkpoint), "%.*s",
                       (int)(size - id_size - 1), at + id_size + 1);
        if (job_id_parse(id, &origin->job, err) < 0)
            return err_wrap(err, "X-Headrace-Training-Checkpoint");
        push->origin_count++;
        at += size;
        at += strspn(at, ", ");
    }
    return 0;
}

/* thread: libuv's pool   The push belongs to this thread until on_compiled(). */
static void compile(uv_work_t *work)
{
    struct push *push = (struct push *)work;

    push->err.code = check_expressions(push);
}

static void on_compiled(uv_work_t *work, int status)
{
    struct push *push = (struct push *)work;
    struct err err = push->err;

    assert(status == 0);
    if (err.code < 0)
        push_fail(push, &err);
    else
        push_create_rows(push);
}

/* A push without files: the body is what headrace.json would say. */
static void on_json(struct call *call)
{
    struct push *push = call->state;
    struct buf *body = http_request_body(call->request);
    struct err err;
    int r;

    push->facts.headrace_json = xstrdup(buf_text(body));
    r = plan(push, &err);
    if (r == ERR_UNSUPPORTED)
        err.code = ERR_MISMATCH;
    if (r < 0) {
        push_fail(push, &err);
    } else if (strcmp(push->plan.engine, "chain") != 0) {
        push_create_rows(push);
    } else {
        r = uv_queue_work(loop_uv(push->gateway->loop), &push->work, compile, on_compiled);
        assert(r == 0);
    }
}

static int push_begin_upload(struct push *push, struct err *err)
{
    struct call *call = push->call;
    uint64_t announced = http_request_announced_size(call->request);
    uint64_t limit = archive_size_max(push);
    int r;

    if (announced != UINT64_MAX && announced > limit)
        return err_set(
            err, ERR_TOO_BIG, "the archive has %llu bytes; at most %llu are allowed (%s)",
            (unsigned long long)announced, (unsigned long long)limit, archive_limit(push));
    r = blob_upload_new(push->gateway->blobs, &push->upload, err);
    if (r < 0)
        return r;
    if (call_begin_reading(call))
        http_request_stream_body(call->request, on_chunk, push);
    return 0;
}

void push_begin(struct call *call)
{
    const char *type = http_request_header(call->request, "Content-Type");
    struct push *push = xcalloc(1, sizeof(*push));
    struct err err;
    int r;

    push->call = call;
    push->gateway = call->gateway;
    push->part = BUF_WITH_LIMIT((size_t)PART_SIZE * 64);
    call->state = push;
    call->on_dropped = push_dropped;
    push->is_workspace = call->match.route == ROUTE_TRAINING_ARCHIVE_SEND;
    r = read_digest(push, &err);
    if (r == 0 && !push->is_workspace)
        r = read_names(push, &err);
    if (r == 0)
        r = read_device(push, &err);
    if (r == 0)
        r = read_origins(push, &err);
    if (r == 0 && !push->is_workspace && type != NULL &&
        strncasecmp(type, "application/json", 16) == 0)
        call_collect_body(call, JSON_BODY_MAX, on_json);
    else if (r == 0)
        r = push_begin_upload(push, &err);
    if (r < 0)
        push_fail(push, &err);
}
