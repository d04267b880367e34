/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/webhook_sender.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/loop.h"
#include "base/rng.h"
#include "base/trace.h"
#include "brokers/fault.h"
#include "brokers/model_names.h"
#include "schema/job_id.h"
#include "workers/webhook_body.h"

#define RESULTS_MAX 500      /* tries written in one transaction */
#define RESULTS_AGAIN_MS 200 /* after a failed write */
#define ANSWER_SIZE_MAX (64u * 1024)
#define SIGNATURE_SIZE_MAX 1024
#define HEADERS_MAX 10

struct webhook_sender {
    struct webhook_sender_options options;
    struct loop *loop;
    struct http_client *client;
    struct loop_turn *turn;
    struct loop_timer *again;
    struct wire_decoder *decoder;
    struct rng rng;
    struct webhook_delivery *table;   /* all in memory, by key */
    struct webhook_delivery *waiting; /* for secrets */
    struct webhook_delivery **ended;  /* results to be written */
    uint32_t ended_count, writing_count;
    struct webhook_delivery *writing[RESULTS_MAX];
    bool stopped;
    void (*on_drained)(void *opaque);
    void *drained_opaque;
};

/* A delivery that is on its way: what the callbacks need to find both. */
struct flight {
    struct webhook_sender *sender;
    struct webhook_delivery *delivery;
    struct trace_span span; /* of the POST */
    struct metric *latency;
};

static void results_write(struct webhook_sender *sender);

uint32_t webhook_sender_count(const struct webhook_sender *sender)
{
    return (uint32_t)HASH_COUNT(sender->table);
}

uint32_t webhook_sender_room(const struct webhook_sender *sender)
{
    uint32_t count = webhook_sender_count(sender);

    return sender->stopped || count >= sender->options.in_memory_max
               ? 0
               : sender->options.in_memory_max - count;
}

static void count_series(struct webhook_sender *sender, enum webhook_metric row, const char *value)
{
    metric_add(metrics_series(sender->options.metrics, row, &value), 1);
}

static void forget(struct webhook_sender *sender, struct webhook_delivery *delivery)
{
    HASH_DEL(sender->table, delivery);
    webhook_delivery_free(&delivery);
    metric_set(metrics_of(sender->options.metrics, WEBHOOK_METRIC_webhook_in_memory),
               webhook_sender_count(sender));
    if (sender->on_drained != NULL && sender->table == NULL) {
        void (*call)(void *) = sender->on_drained;

        sender->on_drained = NULL;
        call(sender->drained_opaque);
    }
}

/* ---- results ---- */

static const char *status_class(const struct webhook_delivery *delivery, bool blocked)
{
    static const char *const classes[] = {"1xx", "2xx", "3xx", "4xx", "5xx"};
    int class = delivery->http_status / 100;

    if (blocked)
        return "blocked";
    return class >= 1 && class <= 5 ? classes[class - 1] : "none";
}

/* The try is over: decides what follows and stages it for the next write. */
static void try_ended(struct webhook_sender *sender, struct webhook_delivery *delivery,
                      bool blocked, uint64_t retry_after_ms)
{
    const struct webhook_try try = {
        .number = ++delivery->try_count,
        .http_status = delivery->http_status,
        .blocked = blocked,
        .retry_after_ms = retry_after_ms,
        .jitter = rng_unit(&sender->rng),
        .time_scale = sender->options.time_scale,
    };
    struct webhook_next next = webhook_plan_next(&try);
    static const char *const names[] = {"delivered", "", "given_up", "gone"};

    delivery->outcome = next.outcome;
    delivery->delay_ms = next.delay_ms;
    sender->options.on_try(sender->options.opaque, delivery);
    buf_done(&delivery->body);
    count_series(sender, WEBHOOK_METRIC_webhook_tries_total, status_class(delivery, blocked));
    if (next.outcome != WEBHOOK_AGAIN)
        count_series(sender, WEBHOOK_METRIC_webhook_deliveries_total, names[next.outcome]);
    assert(sender->ended_count < sender->options.in_memory_max);
    sender->ended[sender->ended_count++] = delivery;
}

static void on_written(void *opaque, const struct pg_answer *answer)
{
    struct webhook_sender *sender = opaque;
    uint32_t count = sender->writing_count;

    sender->writing_count = 0;
    if (answer->err.code != ERR_OK) {
        /* Perhaps written, perhaps not: writing it again changes nothing that was. */
        for (uint32_t i = 0; i < count; i++)
            sender->ended[sender->ended_count++] = sender->writing[i];
        sender->options.on_trouble(sender->options.opaque, NULL, &answer->err);
        loop_timer_start(sender->again, RESULTS_AGAIN_MS, 0);
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        forget(sender, sender->writing[i]);
    if (sender->ended_count > 0)
        results_write(sender);
    if (!sender->stopped)
        sender->options.on_room(sender->options.opaque);
}

static void results_write(struct webhook_sender *sender)
{
    uint32_t count = sender->ended_count < RESULTS_MAX ? sender->ended_count : RESULTS_MAX;
    struct err err;

    if (count == 0 || sender->writing_count > 0 || loop_timer_is_running(sender->again))
        return;
    memcpy(sender->writing, sender->ended, count * sizeof(struct webhook_delivery *));
    if (webhook_store_results(sender->options.pg, sender->writing, count, on_written, sender,
                              &err) < 0) {
        loop_timer_start(sender->again, RESULTS_AGAIN_MS, 0);
        return;
    }
    sender->writing_count = count;
    sender->ended_count -= count;
    memmove(sender->ended, sender->ended + count,
            sender->ended_count * sizeof(struct webhook_delivery *));
}

static void on_again(void *opaque)
{
    results_write(opaque);
}

/* ---- one POST ---- */

/* Seconds, or nothing: the date form of Retry-After is rare and the schedule is long enough. */
static uint64_t retry_after_ms(const struct http_result *result)
{
    const char *text = http_transfer_header(result->transfer, "Retry-After");
    uint64_t seconds = 0;

    for (; text != NULL && *text >= '0' && *text <= '9' && seconds < WEBHOOK_RETRY_AFTER_MS_MAX;
         text++)
        seconds = seconds * 10 + (uint64_t)(*text - '0');
    return text != NULL && *text == '\0' ? seconds * 1000 : 0;
}

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
    struct tracer *tracer = flight->sender->options.tracer;
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
    trace_end(flight->sender->options.tracer, &flight->span, delivery->error[0] != '\0',
              delivery->started_us + delivery->took_us);
}

static void on_posted(const struct http_result *result, void *opaque)
{
    struct flight *flight = opaque;
    struct webhook_sender *sender = flight->sender;
    struct webhook_delivery *delivery = flight->delivery;
    bool blocked = result->outcome == HTTP_OUTCOME_BLOCKED;
    uint64_t wait_ms = 0;

    fault_point(FAULT_webhook_posted);
    delivery->http_status = result->outcome == HTTP_OUTCOME_ANSWERED ||
                                    result->outcome == HTTP_OUTCOME_BODY_TOO_BIG
                                ? result->status
                                : 0;
    delivery->took_us = result->took_us;
    mem_copy_text(delivery->address, result->address);
    delivery->error[0] = '\0';
    if (blocked)
        mem_copy_text(delivery->error, "the address is not public and is not allowed");
    else if (delivery->http_status == 0)
        mem_copy_text(delivery->error, result->error);
    else if (delivery->http_status >= 300)
        (void)snprintf(delivery->error, sizeof(delivery->error), "HTTP %d", delivery->http_status);
    metric_observe(flight->latency, (double)result->took_us / 1e6);
    span_end(flight);
    free(flight);
    if (delivery->http_status != 0) {
        keep_answer(delivery, result->body);
        wait_ms = retry_after_ms(result);
    }
    metric_observe(metrics_of(sender->options.metrics, WEBHOOK_METRIC_webhook_try_seconds),
                   (double)result->took_us / 1e6);
    try_ended(sender, delivery, blocked, wait_ms);
}

/* A try that could not even begin counts as one without an answer. */
static void try_failed(struct webhook_sender *sender, struct webhook_delivery *delivery,
                       const struct err *err)
{
    delivery->started_us = clock_wall_us();
    delivery->http_status = 0;
    mem_copy_text(delivery->error, err->text);
    sender->options.on_trouble(sender->options.opaque, delivery, err);
    try_ended(sender, delivery, false, 0);
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
    if (secrets->count == 0)
        return;
    webhook_sign_baseten(secrets, &message, &headers->baseten);
    webhook_sign_standard(secrets, &message, &headers->standard);
    headers_add(headers, "X-BASETEN-SIGNATURE", buf_text(&headers->baseten));
    headers_add(headers, "webhook-signature", buf_text(&headers->standard));
}

/* The metrics that users know by name. */
static void post_count(struct flight *flight, const struct message_completed *completed)
{
    struct webhook_sender_options *options = &flight->sender->options;
    OWNED(mem_free) char *deployment = wire_text_dup(completed->deployment);
    OWNED(mem_free) char *environment = wire_text_dup(completed->environment);
    /* Of the record: a delivery that was claimed from its row carries no model. */
    OWNED(mem_free) char *model = wire_text_dup(completed->model);
    const char *name = model_names_find(options->names, completed->model);
    const char *const values[] = {model, name != NULL ? name : model, deployment, environment,
                                  "stable"};

    metric_add(
        metrics_series(options->metrics, WEBHOOK_METRIC_async_webhook_requests_total, values), 1);
    flight->latency = metrics_series(options->metrics, WEBHOOK_METRIC_async_webhook_latency_seconds,
                                     values);
}

/* Signs and sends; the body is ready. */
static int post(struct webhook_sender *sender, struct webhook_delivery *delivery,
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
        .timeout_ms = sender->options.timeout_ms,
        .connect_timeout_ms = sender->options.timeout_ms,
        .answer_size_max = ANSWER_SIZE_MAX,
        .on_done = on_posted,
        .opaque = flight,
    };
    struct trace_context context;
    int r;

    *flight = (struct flight){.sender = sender, .delivery = delivery};
    delivery->started_us = clock_wall_us();
    if (completed->trace.size >= TRACE_PARENT_SIZE - 1)
        (void)snprintf(delivery->trace, sizeof(delivery->trace), "%.32s",
                       completed->trace.text + 3);
    context = span_start(flight, completed->trace);
    post_count(flight, completed);
    headers_fill(&headers, delivery, secrets, &context);
    send.headers = headers.list;
    send.header_count = headers.count;
    r = http_client_send(sender->client, &send, NULL, err);
    if (r < 0)
        free(flight);
    return r;
}

/* Makes the body from the record and what its blob held, and posts it. */
static void begin(struct webhook_sender *sender, struct webhook_delivery *delivery,
                  struct wire_bytes output)
{
    const struct webhook_secrets *secrets = webhook_secret_cache_get(
        sender->options.secrets, delivery->tenant, clock_mono_ms());
    struct message message;
    struct err err;
    int r;

    if (secrets == NULL) { /* they went stale while the blob was read */
        delivery->next = sender->waiting;
        sender->waiting = delivery;
        return;
    }
    r = message_decode(sender->decoder, delivery->record.bytes, delivery->record.size, &message,
                       &err);
    if (r == 0 && message.type != MESSAGE_COMPLETED)
        r = err_set(&err, ERR_MALFORMED, "record is no `completed` message");
    buf_init(&delivery->body, WEBHOOK_BODY_SIZE_MAX);
    if (r == 0)
        r = webhook_body_write(&message.completed,
                               output.size > 0 ? output : message.completed.output, &delivery->body,
                               &err);
    if (r == 0)
        r = post(sender, delivery, secrets, &message.completed, &err);
    if (r < 0)
        try_failed(sender, delivery, &err);
}

static void on_blob(void *opaque, struct buf *bytes, const struct err *err)
{
    struct flight *flight = opaque;
    struct webhook_sender *sender = flight->sender;
    struct webhook_delivery *delivery = flight->delivery;

    free(flight);
    if (err->code != ERR_OK)
        try_failed(sender, delivery, err);
    else
        begin(sender, delivery, (struct wire_bytes){bytes->bytes, bytes->size});
}

/* Reads the result's blob when the record names one; false when the record is all there is. */
static bool begin_with_blob(struct webhook_sender *sender, struct webhook_delivery *delivery)
{
    OWNED(mem_free) char *key = NULL;
    struct flight *flight;
    struct message message;
    struct err err;

    if (message_decode(sender->decoder, delivery->record.bytes, delivery->record.size, &message,
                       &err) < 0 ||
        message.type != MESSAGE_COMPLETED || message.completed.output_blob.size == 0)
        return false;
    if (sender->options.blobs == NULL) {
        (void)err_set(&err, ERR_DEPENDENCY, "the result is in a blob and there is no --blobs");
        try_failed(sender, delivery, &err);
        return true;
    }
    key = wire_text_dup(message.completed.output_blob);
    flight = xcalloc(1, sizeof(*flight));
    *flight = (struct flight){.sender = sender, .delivery = delivery};
    if (blob_get(sender->options.blobs, key, WEBHOOK_BODY_SIZE_MAX, on_blob, flight, &err) < 0) {
        free(flight);
        try_failed(sender, delivery, &err);
    }
    return true;
}

static void start(struct webhook_sender *sender, struct webhook_delivery *delivery)
{
    if (webhook_secret_cache_get(sender->options.secrets, delivery->tenant, clock_mono_ms()) ==
        NULL) {
        delivery->next = sender->waiting;
        sender->waiting = delivery;
        return;
    }
    if (!begin_with_blob(sender, delivery))
        begin(sender, delivery, (struct wire_bytes){0});
}

/* Secrets arrived, or could not be had: those who wait ask again, or leave memory until later. */
static void on_secrets_ready(void *opaque, const struct err *err)
{
    struct webhook_sender *sender = opaque;
    struct webhook_delivery *line = TAKE(sender->waiting);

    while (line != NULL) {
        struct webhook_delivery *delivery = line;

        line = delivery->next;
        delivery->next = NULL;
        if (err != NULL) {
            sender->options.on_trouble(sender->options.opaque, delivery, err);
            forget(sender, delivery);
        } else {
            start(sender, delivery);
        }
    }
}

void webhook_sender_put(struct webhook_sender *sender, struct webhook_delivery **delivery_p)
{
    OWNED(webhook_delivery_free) struct webhook_delivery *delivery = TAKE(*delivery_p);
    struct webhook_delivery *known;

    assert(webhook_sender_room(sender) > 0);
    HASH_FIND(hh, sender->table, &delivery->key, sizeof(delivery->key), known);
    if (known != NULL)
        return;
    HASH_ADD(hh, sender->table, key, sizeof(delivery->key), delivery);
    metric_set(metrics_of(sender->options.metrics, WEBHOOK_METRIC_webhook_in_memory),
               webhook_sender_count(sender));
    start(sender, TAKE(delivery));
}

/* ---- life ---- */

static bool address_allowed(const struct sockaddr *address, socklen_t address_size, void *opaque)
{
    const struct webhook_sender *sender = opaque;

    (void)address_size;
    return webhook_address_allowed(&sender->options.allow, address);
}

int webhook_sender_new(struct loop *loop, const struct webhook_sender_options *options,
                       struct webhook_sender **ret_sender, struct err *err)
{
    OWNED(webhook_sender_free) struct webhook_sender *sender = xcalloc(1, sizeof(*sender));
    const struct http_client_options client = {
        .connection_count_max = options->connections_max,
        .connection_count_max_per_host = options->connections_per_host_max,
        .check_address = address_allowed,
        .check_opaque = sender,
        .user_agent = "Headrace-Webhook/" HEADRACE_VERSION,
    };
    uint64_t seed;
    int r;

    sender->options = *options;
    sender->loop = loop;
    rng_secret_bytes(&seed, sizeof(seed));
    rng_seed(&sender->rng, seed);
    sender->ended = xcalloc(options->in_memory_max, sizeof(struct webhook_delivery *));
    sender->decoder = wire_decoder_new();
    sender->turn = loop_turn_new(loop, on_again, sender);
    sender->again = loop_timer_new(loop, on_again, sender);
    r = http_client_open(loop, &client, &sender->client, err);
    if (r < 0)
        return r;
    webhook_secret_cache_on_ready(options->secrets, on_secrets_ready, sender);
    *ret_sender = TAKE(sender);
    return 0;
}

void webhook_sender_free(struct webhook_sender **sender_p)
{
    struct webhook_sender *sender = TAKE(*sender_p);
    struct webhook_delivery *delivery, *next;

    if (sender == NULL)
        return;
    http_client_close(&sender->client);
    loop_turn_free(&sender->turn);
    loop_timer_free(&sender->again);
    HASH_ITER(hh, sender->table, delivery, next)
    {
        HASH_DEL(sender->table, delivery);
        webhook_delivery_free(&delivery);
    }
    wire_decoder_free(&sender->decoder);
    free(sender->ended);
    free(sender);
}

void webhook_sender_drain(struct webhook_sender *sender, void (*on_drained)(void *opaque),
                          void *opaque)
{
    sender->stopped = true;
    if (sender->table == NULL) {
        on_drained(opaque);
        return;
    }
    sender->on_drained = on_drained;
    sender->drained_opaque = opaque;
}
