/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/webhook_post.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/trace.h"
#include "brokers/fault.h"
#include "brokers/model_names.h"
#include "schema/job.h"
#include "schema/job_id.h"
#include "schema/result_body.h"

#define ANSWER_SIZE_MAX (64u * 1024)
#define SIGNATURE_SIZE_MAX 1024
#define HEADERS_MAX 10
#define SERIES_KEY_SIZE 210 /* three names of at most 64 bytes each */

struct public_series;

struct webhook_poster {
    struct webhook_poster_options options;
    struct http_client *client;
    struct wire_decoder *decoder;
    struct public_series *series; /* by key */
};

/* A delivery that is on its way: what the callbacks need to find both. */
struct flight {
    struct webhook_poster *poster;
    struct webhook_delivery *delivery;
    struct webhook_secrets secrets; /* while a blob is read */
    struct trace_span span;         /* of the POST */
    struct metric *latency;
};

/* The beginning of an answer, made safe for a text column: no NUL, no broken UTF-8. */
static void keep_answer(struct webhook_delivery *delivery, struct buf *body)
{
    const char *text = buf_text(body);
    size_t size = body->size < sizeof(delivery->answer) - 1 ? body->size
                                                            : sizeof(delivery->answer) - 1;

    for (size_t i = 0; i < size; i++)
        delivery->answer[i] = text[i] >= ' ' && text[i] < 0x7f ? text[i] : '.';
    delivery->answer[size] = '\0';
}

/* The span of one POST, a child of what asked for the job; returns the context that the receiver
 * gets: unset when there is none. */
static struct trace_context span_start(struct flight *flight, struct wire_text trace)
{
    struct tracer *tracer = flight->poster->options.tracer;
    const struct webhook_delivery *delivery = flight->delivery;
    struct trace_context parent = trace_context_read(trace.text, trace.size);
    struct trace_context own = parent;
    char id[JOB_ID_TEXT_SIZE];

    if (trace_context_is_set(&parent))
        own = tracer_begin(tracer, &parent);
    trace_start(tracer, &flight->span, "deliver", TRACE_KIND_CLIENT, &own, &parent,
                delivery->started_us);
    if (!flight->span.live)
        return own;
    job_id_format(&delivery->key.job, id);
    trace_set_text(&flight->span, "headrace.job", id);
    trace_set_text(&flight->span, "headrace.tenant", delivery->tenant);
    trace_set_number(&flight->span, "headrace.try", delivery->try_count + 1);
    return own;
}

static void span_end(struct flight *flight)
{
    const struct webhook_delivery *delivery = flight->delivery;

    if (delivery->http_status != 0)
        trace_set_number(&flight->span, "http.response.status_code", delivery->http_status);
    if (delivery->error[0] != '\0')
        trace_set_text(&flight->span, "error.message", delivery->error);
    trace_end(flight->poster->options.tracer, &flight->span, delivery->error[0] != '\0',
              delivery->started_us + delivery->took_us);
}

/* What came back, into the delivery. */
static void keep_result(struct webhook_delivery *delivery, const struct http_result *result)
{
    bool answered = result->outcome == HTTP_OUTCOME_ANSWERED ||
                    result->outcome == HTTP_OUTCOME_BODY_TOO_BIG;

    delivery->http_status = answered ? result->status : 0;
    delivery->took_us = result->took_us;
    mem_copy_text(delivery->address, result->address);
    delivery->error[0] = delivery->answer[0] = '\0';
    if (answered)
        keep_answer(delivery, result->body);
    if (result->outcome == HTTP_OUTCOME_BLOCKED)
        mem_copy_text(delivery->error, "the address is not public and is not allowed");
    else if (!answered)
        webhook_delivery_set_error(delivery, result->error);
    else if (delivery->http_status >= 300)
        (void)snprintf(delivery->error, sizeof(delivery->error), "HTTP %d", delivery->http_status);
}

static void on_posted(const struct http_result *http, void *opaque)
{
    OWNED(mem_free) struct flight *flight = opaque;
    struct webhook_poster *poster = flight->poster;
    struct webhook_delivery *delivery = flight->delivery;
    bool blocked = http->outcome == HTTP_OUTCOME_BLOCKED;
    const char *retry_after = http_transfer_header(http->transfer, "Retry-After");
    struct webhook_gate_result result = {
        .neutral = blocked || http->outcome == HTTP_OUTCOME_CANCELED,
        .took_ms = http->took_us / 1000,
    };

    fault_point(FAULT_webhook_posted);
    keep_result(delivery, http);
    result.http_status = delivery->http_status;
    if (delivery->http_status != 0 && retry_after != NULL)
        result.retry_after_ms = webhook_plan_retry_after(retry_after, clock_wall_ms() / 1000);
    metric_observe(flight->latency, (double)http->took_us / 1e6);
    metric_observe(metrics_of(poster->options.metrics, WEBHOOK_METRIC_webhook_try_seconds),
                   (double)http->took_us / 1e6);
    span_end(flight);
    buf_done(&delivery->body);
    poster->options.done(poster->options.opaque, delivery, blocked, &result);
}

/* A try that could not even begin counts as one without an answer. */
static void try_failed(struct webhook_poster *poster, struct webhook_delivery *delivery,
                       const struct err *err)
{
    const struct webhook_gate_result result = {.neutral = true};

    delivery->started_us = clock_wall_us();
    delivery->took_us = 0;
    delivery->http_status = 0;
    delivery->address[0] = delivery->answer[0] = '\0';
    webhook_delivery_set_error(delivery, err->text);
    buf_done(&delivery->body);
    poster->options.on_trouble(poster->options.opaque, delivery, err);
    poster->options.done(poster->options.opaque, delivery, false, &result);
}

/* Header values that must outlive the call that copies them. */
struct post_headers {
    struct http_header list[HEADERS_MAX];
    size_t count;
    char timestamp[24], trace[TRACE_PARENT_SIZE], id[JOB_ID_TEXT_SIZE];
    struct buf baseten, standard;
};

static void headers_add(struct post_headers *headers, const char *name, const char *value)
{
    assert(headers->count < HEADERS_MAX);
    headers->list[headers->count++] = (struct http_header){.name = name, .value = value};
}

static void headers_done(struct post_headers *headers)
{
    buf_done(&headers->baseten);
    buf_done(&headers->standard);
}

static void headers_fill(struct post_headers *headers, const struct webhook_delivery *delivery,
                         const struct webhook_secrets *secrets, const struct trace_context *trace)
{
    uint64_t now_s = clock_wall_ms() / 1000;
    const struct webhook_message message = {
        .id = delivery->webhook_id,
        .timestamp_s = now_s,
        .body = delivery->body.bytes,
        .body_size = delivery->body.size,
    };

    job_id_format(&delivery->key.job, headers->id);
    (void)snprintf(headers->timestamp, sizeof(headers->timestamp), "%" PRIu64, now_s);
    headers_add(headers, "Content-Type", "application/json");
    headers_add(headers, "X-BASETEN-REQUEST-ID", headers->id);
    headers_add(headers, "webhook-id", delivery->webhook_id);
    headers_add(headers, "webhook-timestamp", headers->timestamp);
    if (trace_context_is_set(trace)) {
        trace_context_format(trace, headers->trace);
        headers_add(headers, "traceparent", headers->trace);
    }
    webhook_sign_baseten(secrets, &message, &headers->baseten);
    webhook_sign_standard(secrets, &message, &headers->standard);
    if (headers->baseten.size > 0)
        headers_add(headers, "X-BASETEN-SIGNATURE", buf_text(&headers->baseten));
    if (headers->standard.size > 0)
        headers_add(headers, "webhook-signature", buf_text(&headers->standard));
}

/* The metrics that users know by name, of one deployment. */
struct public_series {
    char *key;  /* model, deployment, environment */
    char *name; /* of the model, as it was when the series were looked up */
    struct metric *requests, *latency;
    UT_hash_handle hh;
};

static void public_series_free(struct webhook_poster *poster, struct public_series *series)
{
    HASH_DEL(poster->series, series);
    free(series->key);
    free(series->name);
    free(series);
}

static void public_series_drop(struct webhook_poster *poster)
{
    struct public_series *series, *next;

    HASH_ITER(hh, poster->series, series, next)
    public_series_free(poster, series);
}

static struct public_series *public_series_make(struct webhook_poster *poster, const char *key,
                                                const char *name,
                                                const struct message_completed *completed)
{
    struct public_series *series = xcalloc(1, sizeof(*series));
    OWNED(mem_free) char *model = wire_text_dup(completed->model);
    OWNED(mem_free) char *deployment = wire_text_dup(completed->deployment);
    OWNED(mem_free) char *environment = wire_text_dup(completed->environment);
    const char *const values[] = {model, name, deployment, environment, "stable"};

    if (HASH_COUNT(poster->series) >= METRICS_SERIES_MAX)
        public_series_drop(poster);
    series->key = xstrdup(key);
    series->name = xstrdup(name);
    series->requests = metrics_series(poster->options.metrics,
                                      WEBHOOK_METRIC_async_webhook_requests_total, values);
    series->latency = metrics_series(poster->options.metrics,
                                     WEBHOOK_METRIC_async_webhook_latency_seconds, values);
    HASH_ADD_KEYPTR(hh, poster->series, series->key, strlen(series->key), series);
    return series;
}

/* Of the record: a delivery that was claimed from its row carries no model. */
static void post_count(struct flight *flight, const struct message_completed *completed)
{
    struct webhook_poster *poster = flight->poster;
    const char *name = model_names_find(poster->options.names, completed->model);
    struct public_series *series;
    char key[SERIES_KEY_SIZE], model[SERIES_KEY_SIZE / 3];

    (void)snprintf(model, sizeof(model), "%.*s", (int)completed->model.size, completed->model.text);
    (void)snprintf(key, sizeof(key), "%s\n%.*s\n%.*s", model, (int)completed->deployment.size,
                   completed->deployment.text, (int)completed->environment.size,
                   completed->environment.size > 0 ? completed->environment.text : "");
    name = name != NULL ? name : model;
    HASH_FIND_STR(poster->series, key, series);
    if (series != NULL && strcmp(series->name, name) != 0) { /* it was renamed */
        public_series_free(poster, series);
        series = NULL;
    }
    if (series == NULL)
        series = public_series_make(poster, key, name, completed);
    metric_add(series->requests, 1);
    flight->latency = series->latency;
}

/* Signs and sends; the body is ready. */
static int post(struct webhook_poster *poster, struct webhook_delivery *delivery,
                const struct webhook_secrets *secrets, const struct message_completed *completed,
                struct err *err)
{
    OWNED(headers_done)
    struct post_headers headers = {
        .baseten = BUF_WITH_LIMIT(SIGNATURE_SIZE_MAX),
        .standard = BUF_WITH_LIMIT(SIGNATURE_SIZE_MAX),
    };
    struct flight *flight = xcalloc(1, sizeof(*flight));
    struct http_send send = {
        .method = "POST",
        .url = delivery->url,
        .body = delivery->body.bytes,
        .body_size = delivery->body.size,
        .timeout_ms = poster->options.timeout_ms,
        .connect_timeout_ms = poster->options.timeout_ms,
        .answer_size_max = ANSWER_SIZE_MAX,
        .on_done = on_posted,
        .opaque = flight,
    };
    struct trace_context context;
    int r;

    *flight = (struct flight){.poster = poster, .delivery = delivery};
    delivery->started_us = clock_wall_us();
    if (completed->trace.size >= TRACE_PARENT_SIZE - 1)
        (void)snprintf(delivery->trace, sizeof(delivery->trace), "%.32s",
                       completed->trace.text + 3);
    context = span_start(flight, completed->trace);
    post_count(flight, completed);
    headers_fill(&headers, delivery, secrets, &context);
    send.headers = headers.list;
    send.header_count = headers.count;
    r = http_client_send(poster->client, &send, NULL, err);
    if (r < 0)
        free(flight);
    return r;
}

/* Makes the body from the record and what its blob held, and posts it. */
static void begin(struct webhook_poster *poster, struct webhook_delivery *delivery,
                  const struct message_completed *completed, struct wire_bytes output,
                  const struct webhook_secrets *secrets)
{
    struct err err;
    int r;

    buf_init(&delivery->body, WEBHOOK_BODY_SIZE_MAX);
    r = result_body_write(completed, output, &delivery->body, &err);
    if (r == 0)
        r = post(poster, delivery, secrets, completed, &err);
    if (r < 0)
        try_failed(poster, delivery, &err);
}

/* What it points to lives until the next record is decoded. */
static int record_read(struct webhook_poster *poster, const struct webhook_delivery *delivery,
                       struct message *message, struct err *err)
{
    int r = message_decode(poster->decoder, delivery->record.bytes, delivery->record.size, message,
                           err);

    if (r == 0 && message->type != MESSAGE_COMPLETED)
        r = err_set(err, ERR_MALFORMED, "record is no `completed` message");
    return r;
}

static void on_blob(void *opaque, struct buf *bytes, const struct err *err)
{
    OWNED(mem_free) struct flight *flight = opaque;
    struct message message;
    struct err read_err = *err;
    int r = err->code;

    if (r == ERR_OK)
        r = record_read(flight->poster, flight->delivery, &message, &read_err);
    if (r == ERR_OK)
        begin(flight->poster, flight->delivery, &message.completed,
              (struct wire_bytes){bytes->bytes, bytes->size}, &flight->secrets);
    else
        try_failed(flight->poster, flight->delivery, &read_err);
    sodium_memzero(&flight->secrets, sizeof(flight->secrets));
}

static int blob_read(struct webhook_poster *poster, struct webhook_delivery *delivery,
                     struct wire_text blob, const struct webhook_secrets *secrets, struct err *err)
{
    OWNED(mem_free) char *key = wire_text_dup(blob);
    struct flight *flight;
    int r;

    if (poster->options.blobs == NULL)
        return err_set(err, ERR_DEPENDENCY, "the result is in a blob and there is no --blobs");
    flight = xcalloc(1, sizeof(*flight));
    *flight = (struct flight){.poster = poster, .delivery = delivery, .secrets = *secrets};
    r = blob_get(poster->options.blobs, key, WEBHOOK_BODY_SIZE_MAX, on_blob, flight, err);
    if (r < 0)
        free(flight);
    return r;
}

void webhook_poster_send(struct webhook_poster *poster, struct webhook_delivery *delivery,
                         const struct webhook_secrets *secrets)
{
    struct message message;
    struct err err;
    int r = record_read(poster, delivery, &message, &err);

    if (r == 0 &&
        (message.completed.output_blob.size == 0 || message.completed.state != JOB_SUCCEEDED))
        begin(poster, delivery, &message.completed, message.completed.output, secrets);
    else if (r == 0)
        r = blob_read(poster, delivery, message.completed.output_blob, secrets, &err);
    if (r < 0)
        try_failed(poster, delivery, &err);
}

static bool check_address(const struct sockaddr *address, socklen_t address_size, void *opaque)
{
    const struct webhook_poster *poster = opaque;

    (void)address_size;
    return address_allowed(&poster->options.allow, address);
}

int webhook_poster_open(struct loop *loop, const struct webhook_poster_options *options,
                        struct webhook_poster **ret_poster, struct err *err)
{
    OWNED(webhook_poster_close) struct webhook_poster *poster = xcalloc(1, sizeof(*poster));
    /* The gate sees to it that a host gets no more than its share: what waits inside of the client
     * would use up its time there. */
    const struct http_client_options client = {
        .connection_count_max = options->connections_max,
        .connection_count_max_per_host = options->connections_max,
        .check_address = check_address,
        .check_opaque = poster,
        .user_agent = "Headrace-Webhook/" HEADRACE_VERSION,
    };
    int r;

    poster->options = *options;
    poster->decoder = wire_decoder_new();
    r = http_client_open(loop, &client, &poster->client, err);
    if (r < 0)
        return r;
    *ret_poster = TAKE(poster);
    return 0;
}

void webhook_poster_close(struct webhook_poster **poster_p)
{
    struct webhook_poster *poster = TAKE(*poster_p);

    if (poster == NULL)
        return;
    http_client_close(&poster->client);
    wire_decoder_free(&poster->decoder);
    public_series_drop(poster);
    free(poster);
}
