/* SPDX-License-Identifier: Apache-2.0 */

/*
 * /v1/batches, as OpenAI has them: a bulk job is a row, which `headrace ingest` works on.
 *
 * Created, it is validated later: what is wrong with its lines is in its `errors`. A cancel is a
 * change of the row; whoever works on it is told by a notification.
 */

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/http_client.h"
#include "base/settings.h"
#include "brokers/pg.h"
#include "producers/bulk_line.h"
#include "producers/gateway.h"
#include "producers/gateway_file.h"

#define BODY_SIZE_MAX (64u << 10)
#define PAGE_DEFAULT 20
#define PAGE_MAX 100
#define WINDOW_HOURS_MAX 72
#define URL_SIZE_MAX 2048
#define METADATA_COUNT_MAX 16
#define METADATA_KEY_MAX 64
#define METADATA_VALUE_MAX 512
#define OPEN_STATES "('validating', 'in_progress', 'finalizing', 'cancelling')"

#define BATCH_COLUMNS                                                                              \
    "b.id, b.endpoint, b.errors::text, b.input_file_id, b.completion_window, b.status, "           \
    "b.output_file_id, b.error_file_id, b.created_at, b.in_progress_at, b.expires_at, "            \
    "b.finalizing_at, b.completed_at, b.failed_at, b.expired_at, b.cancelling_at, "                \
    "b.cancelled_at, b.total, b.completed, b.failed, b.metadata::text"

PG_STATEMENT(batch_input,
             "SELECT f.purpose, f.blob IS NOT NULL, (SELECT count(*) FROM bulk b WHERE b.tenant = "
             "$1 AND b.status IN " OPEN_STATES ") FROM file f WHERE f.tenant = $1 AND f.id = $2 "
             "AND f.deleted_at IS NULL AND (f.expires_at > now()) IS NOT FALSE");
PG_STATEMENT(
    batch_create,
    "INSERT INTO bulk AS b (id, tenant, key_prefix, endpoint, input_file_id, input_blob, "
    "input_size, completion_window, expires_at, metadata, output_expiry_s, targets, skip_bad) "
    "SELECT "
    "$3, $1, $4, $5, f.id, f.blob, f.size, $6, now() + $7 * interval '1 hour', $8, "
    "nullif($9::bigint, 0), $11, $12 FROM file f WHERE f.tenant = $1 AND f.id = $2 AND "
    "f.deleted_at "
    "IS NULL AND (f.expires_at > now()) IS NOT FALSE AND f.purpose = 'batch' AND f.blob "
    "IS NOT NULL AND (SELECT count(*) FROM bulk o WHERE o.tenant = $1 AND o.status IN " OPEN_STATES
    ") < $10 RETURNING " BATCH_COLUMNS);
/* As the two above, of an input that is at a URL: the ingest makes a file of it. */
PG_STATEMENT(batch_open,
             "SELECT 'batch', true, count(*) FROM bulk b WHERE b.tenant = $1 AND b.status "
             "IN " OPEN_STATES);
PG_STATEMENT(
    batch_create_url,
    "INSERT INTO bulk AS b (id, tenant, key_prefix, endpoint, input_file_id, input_blob, "
    "input_size, completion_window, expires_at, metadata, output_expiry_s, targets, skip_bad, "
    "input_url) SELECT $3, $1, $4, $5, $2, '', 0, $6, now() + $7 * interval '1 hour', $8, "
    "nullif($9::bigint, 0), $11, $12, $13 WHERE (SELECT count(*) FROM bulk o WHERE o.tenant = $1 "
    "AND o.status IN " OPEN_STATES ") < $10 RETURNING " BATCH_COLUMNS);
PG_STATEMENT(batch_notify, "SELECT pg_notify('headrace_bulk', '')");
PG_STATEMENT(batches_newest, "SELECT " BATCH_COLUMNS " FROM bulk b WHERE b.tenant = $1 AND ($2 > "
                             "b.id) IS NOT FALSE ORDER BY b.id DESC LIMIT $3");
PG_STATEMENT(batch_find, "SELECT " BATCH_COLUMNS " FROM bulk b WHERE b.tenant = $1 AND b.id = $2");
PG_STATEMENT(batch_cancel, "UPDATE bulk b SET status = 'cancelling', cancelling_at = now() WHERE "
                           "b.tenant = $1 AND b.id = $2 AND b.status IN ('validating', "
                           "'in_progress') RETURNING " BATCH_COLUMNS);

PG_STATEMENT(batch_retry, "SELECT " BATCH_COLUMNS " FROM bulk_retry($1, $2, $3, $4) b");

static const char *const endpoints[] = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings",
                                        "/v1/moderations", "/v1/responses"};

/* ---- a row ---- */

static json_t *json_of_id(const struct pg_answer *answer, size_t at, size_t row, size_t column,
                          const char *prefix)
{
    struct wire_id id = pg_id(answer, at, row, column);
    char text[OPENAI_ID_SIZE];

    if (pg_is_null(answer, at, row, column))
        return json_null();
    openai_id_format(prefix, &id, text);
    return json_string(text);
}

static json_t *json_of_json(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    json_t *json = pg_is_null(answer, at, row, column)
                       ? NULL
                       : json_loads(pg_c(answer, at, row, column), 0, NULL);

    return json == NULL ? json_null() : json;
}

static json_t *batch_json(const struct pg_answer *answer, size_t at, size_t row)
{
    static const char *const times[] = {"created_at",    "in_progress_at", "expires_at",
                                        "finalizing_at", "completed_at",   "failed_at",
                                        "expired_at",    "cancelling_at",  "cancelled_at"};
    json_t *batch = json_pack(
        "{s:o, s:s, s:s, s:o, s:o, s:s, s:s, s:o, s:o, s:{s:I, s:I, s:I}, s:o}", "id",
        json_of_id(answer, at, row, 0, BATCH_ID_PREFIX), "object", "batch", "endpoint",
        pg_c(answer, at, row, 1), "errors", json_of_json(answer, at, row, 2), "input_file_id",
        json_of_id(answer, at, row, 3, FILE_ID_PREFIX), "completion_window",
        pg_c(answer, at, row, 4), "status", pg_c(answer, at, row, 5), "output_file_id",
        json_of_id(answer, at, row, 6, FILE_ID_PREFIX), "error_file_id",
        json_of_id(answer, at, row, 7, FILE_ID_PREFIX), "request_counts", "total",
        (json_int_t)pg_i64(answer, at, row, 17), "completed",
        (json_int_t)pg_i64(answer, at, row, 18), "failed", (json_int_t)pg_i64(answer, at, row, 19),
        "metadata", json_of_json(answer, at, row, 20));

    for (size_t i = 0; i < COUNT_OF(times); i++)
        (void)json_object_set_new(batch, times[i], json_of_second(answer, at, row, 8 + i));
    return batch;
}

/* ---- create ---- */

struct batch_ask {
    struct wire_id input;
    const char *endpoint, *window, *url; /* borrowed; url NULL: the input is a file */
    int64_t hours, expiry_s;
    bool skip_bad;
    json_t *body, *metadata;
    const char *targets; /* as JSON */
};

static int read_text(const json_t *body, const char *name, const char **ret_text, struct err *err)
{
    const json_t *value = json_object_get(body, name);

    if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value))
        return err_set(err, ERR_MALFORMED, "%s must be a string", name);
    *ret_text = json_string_value(value);
    return 0;
}

static int read_endpoint(struct batch_ask *ask, struct err *err)
{
    int r = read_text(ask->body, "endpoint", &ask->endpoint, err);

    for (size_t i = 0; r == 0 && i < COUNT_OF(endpoints); i++) {
        if (strcmp(endpoints[i], ask->endpoint) == 0)
            return 0;
    }
    return r < 0 ? r
                 : err_set(err, ERR_RANGE,
                           "endpoint is '%.60s'; it must be /v1/chat/completions, /v1/completions, "
                           "/v1/embeddings, /v1/moderations or /v1/responses",
                           ask->endpoint);
}

static int check_window(struct batch_ask *ask, struct err *err)
{
    size_t size = strlen(ask->window);
    char digits[4] = "";
    struct err mine;

    if (size >= 2 && size <= 3 && ask->window[size - 1] == 'h') {
        memcpy(digits, ask->window, size - 1);
        if (settings_parse_int("completion_window", digits, &ask->hours, &mine) == 0 &&
            ask->hours >= 1 && ask->hours <= WINDOW_HOURS_MAX)
            return 0;
    }
    return err_set(err, ERR_RANGE, "completion_window is '%.20s'; it must be 24h, or 1h to %dh",
                   ask->window, WINDOW_HOURS_MAX);
}

static int read_window(struct batch_ask *ask, struct err *err)
{
    int r = read_text(ask->body, "completion_window", &ask->window, err);

    return r < 0 ? r : check_window(ask, err);
}

static int read_metadata(struct batch_ask *ask, struct err *err)
{
    const char *key;
    json_t *value;

    ask->metadata = json_object_get(ask->body, "metadata");
    if (ask->metadata == NULL || json_is_null(ask->metadata)) {
        ask->metadata = NULL;
        return 0;
    }
    if (!json_is_object(ask->metadata) || json_object_size(ask->metadata) > METADATA_COUNT_MAX)
        return err_set(err, ERR_RANGE, "metadata must be an object of at most %d strings",
                       METADATA_COUNT_MAX);
    json_object_foreach(ask->metadata, key, value)
    {
        if (count_characters(key) > METADATA_KEY_MAX || !json_is_string(value) ||
            count_characters(json_string_value(value)) > METADATA_VALUE_MAX)
            return err_set(err, ERR_RANGE,
                           "metadata '%.64s' must be a string of at most %d characters, under a "
                           "name of at most %d",
                           key, METADATA_VALUE_MAX, METADATA_KEY_MAX);
    }
    return 0;
}

static int read_expiry(struct batch_ask *ask, struct err *err)
{
    const json_t *after = json_object_get(ask->body, "output_expires_after");
    double seconds = json_number_value(json_object_get(after, "seconds")); /* 3600.0 is 3600 */
    const char *anchor = json_string_value(json_object_get(after, "anchor"));

    if (after == NULL || json_is_null(after))
        return 0;
    if (anchor == NULL || strcmp(anchor, "created_at") != 0 || seconds < FILE_EXPIRY_S_MIN ||
        seconds > FILE_EXPIRY_S_MAX || seconds != (double)(int64_t)seconds)
        return err_set(err, ERR_RANGE,
                       "output_expires_after must have the anchor created_at and seconds of %d to "
                       "%d",
                       FILE_EXPIRY_S_MIN, FILE_EXPIRY_S_MAX);
    ask->expiry_s = (int64_t)seconds;
    return 0;
}

/* What bad lines do; NULL: they stop it, as OpenAI has it. */
static int check_on_bad_line(struct batch_ask *ask, const char *text, struct err *err)
{
    ask->skip_bad = text != NULL && strcmp(text, "skip") == 0;
    if (text == NULL || ask->skip_bad || strcmp(text, "stop") == 0)
        return 0;
    return err_set(err, ERR_RANGE, "on_bad_line is '%.20s'; it must be stop or skip", text);
}

static int read_on_bad_line(struct batch_ask *ask, struct err *err)
{
    const json_t *value = json_object_get(ask->body, "on_bad_line");

    if (value == NULL || json_is_null(value))
        return 0;
    if (!json_is_string(value))
        return err_set(err, ERR_MALFORMED, "on_bad_line must be a string");
    return check_on_bad_line(ask, json_string_value(value), err);
}

static void new_id(struct wire_id *ret_id)
{
    uint8_t entropy[JOB_ID_RANDOM_SIZE];

    rng_secret_bytes(entropy, sizeof(entropy));
    *ret_id = job_id_make(0, clock_wall_ms(), entropy);
}

/* The input is one or the other. */
static int check_input(struct batch_ask *ask, const char *file, const char *url, struct err *err)
{
    OWNED(mem_free) char *whole = NULL;
    int r;

    if ((file != NULL) == (url != NULL))
        return err_set(err, ERR_MALFORMED,
                       "where is the input? one of input_file_id and input_url");
    if (file != NULL)
        return openai_id_parse(FILE_ID_PREFIX, file, &ask->input)
                   ? 0
                   : err_set(err, ERR_NOT_FOUND, "input_file_id: there is no file '%.60s'", file);
    if (strlen(url) > URL_SIZE_MAX)
        return err_set(err, ERR_RANGE, "input_url has %zu bytes; at most %d are allowed",
                       strlen(url), URL_SIZE_MAX);
    r = http_url_resolve(url, url, &whole, err);
    if (r < 0)
        return err_wrap(err, "input_url");
    ask->url = url;
    new_id(&ask->input);
    return 0;
}

static int read_input(struct batch_ask *ask, struct err *err)
{
    const char *file = NULL, *url = NULL;
    int r = 0;

    if (json_object_get(ask->body, "input_file_id") != NULL)
        r = read_text(ask->body, "input_file_id", &file, err);
    if (r == 0 && json_object_get(ask->body, "input_url") != NULL)
        r = read_text(ask->body, "input_url", &url, err);
    return r < 0 ? r : check_input(ask, file, url, err);
}

static int read_ask(struct call *call, struct batch_ask *ask, struct err *err)
{
    int r = call_read_json(call, &ask->body, err);

    if (r == 0)
        r = read_input(ask, err);
    if (r == 0)
        r = read_endpoint(ask, err);
    if (r == 0)
        r = read_window(ask, err);
    if (r == 0)
        r = read_metadata(ask, err);
    if (r == 0)
        r = read_on_bad_line(ask, err);
    return r < 0 ? r : read_expiry(ask, err);
}

/* Answers to the statements of ask_add(), from `at` on. */
static void answer_created(struct call *call, const struct pg_answer *answer, size_t at, int status)
{
    const struct gateway_settings *settings = &call->gateway->settings;
    struct err err = {.code = ERR_OK};
    json_t *body;

    if (pg_row_count(answer, at + 1) > 0) {
        body = batch_json(answer, at + 1, 0);
        call_answer_json(&call, status, &body);
        return;
    }
    if (pg_row_count(answer, at) == 0)
        (void)err_set(&err, ERR_NOT_FOUND, "input_file_id: there is no such file");
    else if (strcmp(pg_c(answer, at, 0, 0), "batch") != 0 || !pg_bool(answer, at, 0, 1))
        (void)err_set(&err, ERR_RANGE, "input_file_id: its purpose is '%s'; it must be batch",
                      pg_c(answer, at, 0, 0));
    else
        (void)err_set(
            &err, ERR_LIMIT,
            "%lld bulk jobs of the tenant are open; at most %lld may be (batches-open-max)",
            (long long)pg_i64(answer, at, 0, 2), (long long)settings->batches_open_max);
    call_fail(&call, &err);
}

static void ask_add(struct pg_batch *batch, const struct call *call, const struct batch_ask *ask)
{
    struct wire_id id;
    char *metadata = ask->metadata == NULL ? NULL : json_dumps(ask->metadata, JSON_COMPACT);

    new_id(&id);
    pg_add(batch, ask->url == NULL ? &batch_input : &batch_open);
    pg_bind_c(batch, call->tenant);
    if (ask->url == NULL)
        pg_bind_id(batch, &ask->input);
    pg_add(batch, ask->url == NULL ? &batch_create : &batch_create_url);
    pg_bind_c(batch, call->tenant);
    pg_bind_id(batch, &ask->input);
    pg_bind_id(batch, &id);
    pg_bind_c(batch, call->key_prefix);
    pg_bind_c(batch, ask->endpoint);
    pg_bind_c(batch, ask->window);
    pg_bind_double(batch, (double)ask->hours);
    pg_bind_json(batch, metadata);
    pg_bind_i64(batch, ask->expiry_s);
    pg_bind_i64(batch, call->gateway->settings.batches_open_max);
    pg_bind_json(batch, ask->targets);
    pg_bind_bool(batch, ask->skip_bad);
    if (ask->url != NULL)
        pg_bind_c(batch, ask->url);
    pg_add(batch, &batch_notify);
    free(metadata);
}

static void on_created(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    if (call_take_answer(&call, answer))
        answer_created(call, answer, 0, 200);
}

static void on_create(struct call *call)
{
    struct batch_ask ask = {.targets = "[]"};
    struct pg_batch *batch;
    struct err err;

    if (read_ask(call, &ask, &err) < 0) {
        json_decref(ask.body);
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    ask_add(batch, call, &ask);
    json_decref(ask.body);
    call_query(call, &batch, on_created);
}

void batch_create_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, on_create);
}

/* ---- list, show, cancel ---- */

static void on_batches(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    call_answer_page(call, answer, (size_t)call->output_size, batch_json);
}

static int batch_id_of(const char *text, struct wire_id *ret_id, struct err *err)
{
    return openai_id_parse(BATCH_ID_PREFIX, text, ret_id)
               ? 0
               : err_set(err, ERR_NOT_FOUND, "there is no batch '%.60s'", text);
}

void batches_begin(struct call *call)
{
    const char *after = http_target_query(&call->target, "after");
    struct pg_batch *batch;
    struct wire_id id;
    int64_t limit;
    struct err err;
    int r = call_query_number(call, "limit", PAGE_DEFAULT, 1, PAGE_MAX, &limit, &err);

    if (r == 0 && after != NULL)
        r = batch_id_of(after, &id, &err);
    if (r < 0) {
        call_fail(&call, &err);
        return;
    }
    call->output_size = (uint64_t)limit;
    batch = pg_batch_new();
    pg_add(batch, &batches_newest);
    pg_bind_c(batch, call->tenant);
    pg_bind_id(batch, after == NULL ? NULL : &id);
    pg_bind_i64(batch, limit + 1);
    call_query(call, &batch, on_batches);
}

/* Statements that are about the batch in the path; a call that names none is answered. */
static void ask_batch(struct call *call, const struct pg_statement *const *statements, size_t count,
                      pg_done_fn *done)
{
    struct pg_batch *batch;
    struct wire_id id;
    struct err err;

    if (batch_id_of(call->match.param, &id, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    for (size_t i = 0; i < count; i++) {
        pg_add(batch, statements[i]);
        pg_bind_c(batch, call->tenant);
        pg_bind_id(batch, &id);
    }
    if (count > 1)
        pg_add(batch, &batch_notify);
    call_query(call, &batch, done);
}

/* False: the call is over. */
static bool take_batch(struct call **call_p, const struct pg_answer *answer, size_t at)
{
    struct err err;

    if (!call_take_answer(call_p, answer))
        return false;
    if (pg_row_count(answer, at) > 0)
        return true;
    (void)err_set(&err, ERR_NOT_FOUND, "there is no batch '%.60s'", (*call_p)->match.param);
    call_fail(call_p, &err);
    return false;
}

static void on_batch(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!take_batch(&call, answer, 0))
        return;
    body = batch_json(answer, 0, 0);
    call_answer_json(&call, 200, &body);
}

void batch_begin(struct call *call)
{
    static const struct pg_statement *const statements[] = {&batch_find};

    ask_batch(call, statements, 1, on_batch);
}

static void on_cancel(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct err err;
    json_t *body;

    if (!take_batch(&call, answer, 1))
        return;
    if (pg_row_count(answer, 0) == 0 && strcmp(pg_c(answer, 1, 0, 5), "cancelling") != 0) {
        (void)err_set(&err, ERR_CONFLICT, "a batch that is %s cannot be cancelled",
                      pg_c(answer, 1, 0, 5));
        call_fail(&call, &err);
        return;
    }
    body = batch_json(answer, 1, 0);
    call_answer_json(&call, 200, &body);
}

void batch_cancel_begin(struct call *call)
{
    static const struct pg_statement *const statements[] = {&batch_cancel, &batch_find};

    ask_batch(call, statements, 2, on_cancel);
}

/* ---- what is there so far ---- */

static void on_output(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct wire_id id;

    if (!take_batch(&call, answer, 0))
        return;
    id = pg_id(answer, 0, 0, 0);
    content_begin(call, &id, call->match.route == ROUTE_BATCH_ERRORS);
}

void batch_output_begin(struct call *call)
{
    static const struct pg_statement *const statements[] = {&batch_find};

    ask_batch(call, statements, 1, on_output);
}

/* ---- POST /model/{m}/{t}/bulk: lines of one model, by its predict ---- */

/* The deployment that the path means, as ingest_target.c reads it. The caller frees. */
static char *targets_of(const struct config_choice *choice)
{
    const struct config_deployment *deployment = choice->deployment;
    json_t *all = json_pack("[{s:s, s:s, s:s, s:s, s:s, s:I, s:I}]", "model", choice->model->id,
                            "name", choice->model->name, "deployment", deployment->id,
                            "environment", choice->environment, "pool", deployment->pool, "shard",
                            (json_int_t)deployment->shard, "run_limit_ms",
                            (json_int_t)deployment->run_limit_ms);
    char *text = json_dumps(all, JSON_COMPACT);

    json_decref(all);
    return text;
}

static int native_ask(const struct call *call, struct batch_ask *ask, struct err *err)
{
    ask->endpoint = BULK_PREDICT;
    ask->window = http_target_query(&call->target, "completion_window");
    if (ask->window == NULL)
        ask->window = "24h";
    if (check_on_bad_line(ask, http_target_query(&call->target, "on_bad_line"), err) < 0)
        return err->code;
    return check_window(ask, err);
}

/* The body was stored, and its row comes with these. */
void batch_native_add(struct pg_batch *batch, const struct call *call, const struct wire_id *file,
                      const char *targets)
{
    struct batch_ask ask = {.input = *file, .targets = targets};
    struct err err;

    if (native_ask(call, &ask, &err) < 0)
        NEVER("the query was looked at before the body");
    ask_add(batch, call, &ask);
}

void batch_native_answer(struct call *call, const struct pg_answer *answer, size_t at)
{
    answer_created(call, answer, at, 201);
}

static void on_native(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    if (call_take_answer(&call, answer))
        answer_created(call, answer, 0, 201);
}

static void on_choice(struct call *call, const struct config_choice *choice)
{
    const char *file = http_target_query(&call->target, "input_file_id");
    const char *url = http_target_query(&call->target, "input_url");
    OWNED(mem_free) char *targets = targets_of(choice);
    struct batch_ask ask = {.targets = targets};
    struct pg_batch *batch;
    struct err err;
    int r = native_ask(call, &ask, &err);

    if (r == 0 && file == NULL && url == NULL) {
        file_upload_lines(call, targets);
        return;
    }
    if (r == 0)
        r = check_input(&ask, file, url, &err);
    if (r < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    ask_add(batch, call, &ask);
    call_query(call, &batch, on_native);
}

void bulk_begin(struct call *call)
{
    gateway_watch_choose(call, on_choice);
}

/* ---- retry of what failed ---- */

static void on_retried(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct err err;
    json_t *body;

    if (!take_batch(&call, answer, 0))
        return;
    if (pg_row_count(answer, 1) == 0) {
        (void)err_set(&err, ERR_CONFLICT,
                      "the batch is %s with %lld failed lines: one that is over, with some, and "
                      "whose input file is there can be tried again",
                      pg_c(answer, 0, 0, 5), (long long)pg_i64(answer, 0, 0, 19));
        call_fail(&call, &err);
        return;
    }
    body = batch_json(answer, 1, 0);
    call_answer_json(&call, 200, &body);
}

void batch_retry_begin(struct call *call)
{
    struct wire_id id, again;
    struct pg_batch *batch;
    struct err err;

    if (batch_id_of(call->match.param, &id, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    new_id(&again);
    batch = pg_batch_new();
    pg_add(batch, &batch_find);
    pg_bind_c(batch, call->tenant);
    pg_bind_id(batch, &id);
    pg_add(batch, &batch_retry);
    pg_bind_c(batch, call->tenant);
    pg_bind_id(batch, &id);
    pg_bind_id(batch, &again);
    pg_bind_c(batch, call->key_prefix);
    pg_add(batch, &batch_notify);
    call_query(call, &batch, on_retried);
}
