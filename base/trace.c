/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Trace contexts (W3C Trace Context 1, "traceparent") and spans (OTLP/HTTP, JSON encoding).
 *
 * Ended spans wait in a ring. A batch is posted when the ring holds one, or when the interval is
 * over; one post is in flight at a time. A batch that the collector refuses, or that does not reach
 * it, is dropped and counted: traces are for looking, and nothing may wait or grow for them.
 *
 * OTLP's JSON: ids are lower-case hex, 64-bit numbers decimal strings, kinds and status numbers.
 *
 * Shutdown: tracer_flush() posts what waits; tracer_close() drops the rest.
 */

#include "base/trace.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/http_client.h"
#include "base/loop.h"
#include "base/rng.h"

#define TRACE_RING_BATCHES 8
#define TRACE_POST_TIMEOUT_MS 10000

struct tracer {
    struct loop *loop;
    struct http_client *client; /* NULL: there is no endpoint, nothing is recorded */
    struct loop_timer *timer, *flush_timer;
    char *url;
    char *service_name, *service_version, *service_instance;
    double sample_share;
    uint32_t batch_count;
    struct trace_span *ring; /* ring_room of them; `waiting` from `first` on are in use */
    uint32_t ring_room, first, waiting;
    uint32_t posted; /* spans of the post in flight; 0: none */
    char *body;      /* of that post */
    uint64_t recorded, exported, dropped;
    void (*on_flushed)(void *opaque);
    void *flushed_opaque;
};

/* ---- Contexts */

static bool bytes_are_zero(const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] != 0)
            return false;
    }
    return true;
}

bool trace_context_is_set(const struct trace_context *context)
{
    return !bytes_are_zero(context->trace_id, sizeof(context->trace_id));
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; /* capitals are not allowed */
}

static bool hex_read(const char *text, uint8_t *to, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);

        if (high < 0 || low < 0)
            return false;
        to[i] = (uint8_t)(high * 16 + low);
    }
    return true;
}

static void hex_write(const uint8_t *bytes, size_t size, char *to)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < size; i++) {
        to[2 * i] = digits[bytes[i] >> 4];
        to[2 * i + 1] = digits[bytes[i] & 15];
    }
    to[2 * size] = '\0';
}

int trace_context_parse(const char *text, struct trace_context *ret_context, struct err *err)
{
    struct trace_context context = {.sampled = false};
    size_t size = strnlen(text, TRACE_PARENT_SIZE);
    uint8_t version, flags;

    /* "00-" 32 digits "-" 16 digits "-" 2 digits; a later version may go on behind another dash. */
    if (size < TRACE_PARENT_SIZE - 1 || text[2] != '-' || text[35] != '-' || text[52] != '-')
        return err_set(err, ERR_MALFORMED, "traceparent is not version-trace-span-flags");
    if (!hex_read(text, &version, 1) || !hex_read(text + 3, context.trace_id, 16) ||
        !hex_read(text + 36, context.span_id, 8) || !hex_read(text + 53, &flags, 1))
        return err_set(err, ERR_MALFORMED, "traceparent has something else than hex digits");
    if (version == 0xff || (text[55] != '\0' && (version == 0 || text[55] != '-')))
        return err_set(err, ERR_MALFORMED, "traceparent's version or length is wrong");
    if (!trace_context_is_set(&context) || bytes_are_zero(context.span_id, sizeof(context.span_id)))
        return err_set(err, ERR_MALFORMED, "traceparent's trace or span is zero");
    context.sampled = (flags & 1) != 0;
    *ret_context = context;
    return 0;
}

struct trace_context trace_context_read(const char *text, size_t size)
{
    struct trace_context context = {.sampled = false};
    char copy[TRACE_PARENT_SIZE + 16]; /* a later version may be longer */
    struct err err;

    if (size == 0 || size >= sizeof(copy))
        return context;
    memcpy(copy, text, size);
    copy[size] = '\0';
    if (trace_context_parse(copy, &context, &err) < 0)
        return (struct trace_context){.sampled = false};
    return context;
}

void trace_context_format(const struct trace_context *context, char to[TRACE_PARENT_SIZE])
{
    char trace_id[33], span_id[17];

    hex_write(context->trace_id, sizeof(context->trace_id), trace_id);
    hex_write(context->span_id, sizeof(context->span_id), span_id);
    (void)snprintf(to, TRACE_PARENT_SIZE, "00-%s-%s-%02x", trace_id, span_id,
                   context->sampled ? 1u : 0u);
}

struct trace_context trace_context_new(bool sampled)
{
    struct trace_context context = {.sampled = sampled};

    rng_secret_bytes(context.trace_id, sizeof(context.trace_id));
    rng_secret_bytes(context.span_id, sizeof(context.span_id));
    return context;
}

struct trace_context trace_context_child(const struct trace_context *parent)
{
    struct trace_context context = *parent;

    rng_secret_bytes(context.span_id, sizeof(context.span_id));
    return context;
}

/* FNV-1a over the parent's span id and the name, its bits mixed once more at the end. */
struct trace_context trace_context_derive(const struct trace_context *parent, const void *name,
                                          size_t size)
{
    const uint8_t *bytes = name;
    struct trace_context context = *parent;
    uint64_t hash = 0xcbf29ce484222325u;

    for (size_t i = 0; i < sizeof(parent->span_id); i++)
        hash = (hash ^ parent->span_id[i]) * 0x100000001b3u;
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9u;
    hash = (hash ^ hash >> 27) | 1; /* all zero means no span */
    memcpy(context.span_id, &hash, sizeof(context.span_id));
    return context;
}

/* ---- Export */

/* A string of ours that may have been cut inside a character, as JSON. */
static json_t *text_json(const char *text)
{
    size_t size = strlen(text);
    json_t *json = json_stringn(text, size);

    for (int i = 0; json == NULL && i < 3 && size > 0; i++)
        json = json_stringn(text, --size);
    return json == NULL ? json_string("(not UTF-8)") : json;
}

static json_t *attribute_json(const char *key, json_t *value, const char *type)
{
    return json_pack("{s:s, s:{s:o}}", "key", key, "value", type, value);
}

static json_t *number_json(uint64_t number, bool negative)
{
    char text[24];

    (void)snprintf(text, sizeof(text), "%s%llu", negative ? "-" : "", (unsigned long long)number);
    return json_string(text);
}

static json_t *span_attributes(const struct trace_span *span)
{
    json_t *all = json_array();

    for (uint32_t i = 0; i < span->attribute_count; i++) {
        const struct trace_attribute *a = &span->attributes[i];
        uint64_t size = a->number < 0 ? 0 - (uint64_t)a->number : (uint64_t)a->number;

        if (a->is_number)
            (void)json_array_append_new(
                all, attribute_json(a->key, number_json(size, a->number < 0), "intValue"));
        else
            (void)json_array_append_new(all,
                                        attribute_json(a->key, text_json(a->text), "stringValue"));
    }
    return all;
}

static json_t *span_json(const struct trace_span *span)
{
    char trace_id[33], span_id[17], parent_id[17];
    json_t *json;

    hex_write(span->context.trace_id, sizeof(span->context.trace_id), trace_id);
    hex_write(span->context.span_id, sizeof(span->context.span_id), span_id);
    hex_write(span->parent_id, sizeof(span->parent_id), parent_id);
    json = json_pack("{s:s, s:s, s:s, s:i, s:o, s:o, s:o, s:{s:i}}", "traceId", trace_id, "spanId",
                     span_id, "name", span->name, "kind", (int)span->kind, "startTimeUnixNano",
                     number_json(span->start_us * 1000, false), "endTimeUnixNano",
                     number_json(span->end_us * 1000, false), "attributes", span_attributes(span),
                     "status", "code", span->failed ? 2 : 0);
    if (!bytes_are_zero(span->parent_id, sizeof(span->parent_id)))
        (void)json_object_set_new(json, "parentSpanId", json_string(parent_id));
    return json;
}

static json_t *resource_json(const struct tracer *tracer)
{
    json_t *attributes = json_array();

    (void)json_array_append_new(
        attributes, attribute_json("service.name", text_json(tracer->service_name), "stringValue"));
    (void)json_array_append_new(
        attributes,
        attribute_json("service.version", text_json(tracer->service_version), "stringValue"));
    (void)json_array_append_new(
        attributes,
        attribute_json("service.instance.id", text_json(tracer->service_instance), "stringValue"));
    return json_pack("{s:o}", "attributes", attributes);
}

/* The oldest `count` spans of the ring as one request. */
static char *batch_text(const struct tracer *tracer, uint32_t count)
{
    json_t *spans = json_array(), *root;
    char *text;

    for (uint32_t i = 0; i < count; i++)
        (void)json_array_append_new(
            spans, span_json(&tracer->ring[(tracer->first + i) % tracer->ring_room]));
    root = json_pack("{s:[{s:o, s:[{s:{s:s, s:s}, s:o}]}]}", "resourceSpans", "resource",
                     resource_json(tracer), "scopeSpans", "scope", "name", "headrace", "version",
                     HEADRACE_VERSION, "spans", spans);
    text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    if (text == NULL)
        NEVER("memory is exhausted");
    return text;
}

static void tracer_post(struct tracer *tracer);

static void tracer_flush_over(struct tracer *tracer)
{
    void (*call)(void *) = tracer->on_flushed;

    loop_timer_stop(tracer->flush_timer);
    tracer->on_flushed = NULL;
    if (call != NULL)
        call(tracer->flushed_opaque);
}

static void tracer_posted(const struct http_result *result, void *opaque)
{
    struct tracer *tracer = opaque;

    if (result->outcome == HTTP_OUTCOME_ANSWERED && result->status / 100 == 2)
        tracer->exported += tracer->posted;
    else
        tracer->dropped += tracer->posted;
    tracer->posted = 0;
    mem_free(&tracer->body);
    if (result->outcome == HTTP_OUTCOME_CANCELED)
        return; /* the tracer is closing */
    if (tracer->waiting >= tracer->batch_count ||
        (tracer->on_flushed != NULL && tracer->waiting > 0))
        tracer_post(tracer);
    else if (tracer->on_flushed != NULL)
        loop_timer_start(tracer->flush_timer, 0, 0); /* told from the loop, not from here */
}

static void tracer_post(struct tracer *tracer)
{
    const struct http_header type = {"Content-Type", "application/json"};
    uint32_t count = tracer->waiting < tracer->batch_count ? tracer->waiting : tracer->batch_count;
    struct http_send send = {.url = tracer->url,
                             .headers = &type,
                             .header_count = 1,
                             .timeout_ms = TRACE_POST_TIMEOUT_MS,
                             .on_done = tracer_posted,
                             .opaque = tracer};
    struct err err;

    if (tracer->posted > 0 || count == 0)
        return;
    tracer->body = batch_text(tracer, count);
    tracer->first = (tracer->first + count) % tracer->ring_room;
    tracer->waiting -= count;
    tracer->posted = count;
    send.body = tracer->body;
    send.body_size = strlen(tracer->body);
    if (http_client_send(tracer->client, &send, NULL, &err) < 0) {
        tracer->dropped += count; /* cannot be: the URL was checked when the tracer was opened */
        tracer->posted = 0;
        mem_free(&tracer->body);
    }
}

static void tracer_interval_over(void *opaque)
{
    tracer_post(opaque);
}

static void tracer_flush_due(void *opaque)
{
    tracer_flush_over(opaque);
}

/* ---- The tracer */

static int tracer_connect(struct tracer *tracer, const struct tracer_options *options,
                          struct err *err)
{
    const struct http_client_options client = {.connection_count_max = 1};
    size_t size = strlen(options->endpoint);
    uint32_t interval_ms = options->interval_ms == 0 ? 5000 : options->interval_ms;

    while (size > 0 && options->endpoint[size - 1] == '/')
        size--;
    if (strncmp(options->endpoint, "http://", 7) != 0 &&
        strncmp(options->endpoint, "https://", 8) != 0)
        return err_set(err, ERR_USAGE, "trace endpoint is neither http:// nor https://");
    tracer->url = xasprintf("%.*s/v1/traces", (int)size, options->endpoint);
    tracer->ring_room = tracer->batch_count * TRACE_RING_BATCHES;
    tracer->ring = xcalloc(tracer->ring_room, sizeof(*tracer->ring));
    tracer->timer = loop_timer_new(tracer->loop, tracer_interval_over, tracer);
    tracer->flush_timer = loop_timer_new(tracer->loop, tracer_flush_due, tracer);
    loop_timer_start(tracer->timer, interval_ms, interval_ms);
    return http_client_open(tracer->loop, &client, &tracer->client, err);
}

static char *copy_or_empty(const char *text)
{
    return xstrdup(text == NULL ? "" : text);
}

int tracer_open(struct loop *loop, const struct tracer_options *options, struct tracer **ret_tracer,
                struct err *err)
{
    OWNED(tracer_close) struct tracer *tracer = xcalloc(1, sizeof(*tracer));
    int r = 0;

    tracer->loop = loop;
    tracer->sample_share = options->sample_share;
    tracer->batch_count = options->batch_count == 0 ? 512 : options->batch_count;
    tracer->service_name = copy_or_empty(options->service_name);
    tracer->service_version = copy_or_empty(options->service_version);
    tracer->service_instance = copy_or_empty(options->service_instance);
    if (options->endpoint != NULL && options->endpoint[0] != '\0')
        r = tracer_connect(tracer, options, err);
    if (r < 0)
        return r;
    *ret_tracer = TAKE(tracer);
    return 0;
}

void tracer_close(struct tracer **tracer_p)
{
    struct tracer *tracer = TAKE(*tracer_p);

    if (tracer == NULL)
        return;
    http_client_close(&tracer->client);
    loop_timer_free(&tracer->timer);
    loop_timer_free(&tracer->flush_timer);
    free(tracer->body);
    free(tracer->ring);
    free(tracer->url);
    free(tracer->service_name);
    free(tracer->service_version);
    free(tracer->service_instance);
    free(tracer);
}

bool tracer_is_on(const struct tracer *tracer)
{
    return tracer->client != NULL;
}

void tracer_flush(struct tracer *tracer, uint32_t timeout_ms, void (*on_flushed)(void *opaque),
                  void *opaque)
{
    assert(tracer->on_flushed == NULL);
    if (tracer->client == NULL) {
        on_flushed(opaque);
        return;
    }
    tracer->on_flushed = on_flushed;
    tracer->flushed_opaque = opaque;
    tracer_post(tracer);
    loop_timer_start(tracer->flush_timer, tracer->posted == 0 ? 0 : timeout_ms, 0);
}

struct tracer_counts tracer_counts(const struct tracer *tracer)
{
    return (struct tracer_counts){.recorded = tracer->recorded,
                                  .exported = tracer->exported,
                                  .dropped = tracer->dropped,
                                  .waiting = tracer->waiting + tracer->posted};
}

/* The share is held against the trace's own random bits: no second source of randomness. */
static bool trace_is_sampled(const struct tracer *tracer, const struct trace_context *context)
{
    uint32_t bits = (uint32_t)context->trace_id[12] << 24 | (uint32_t)context->trace_id[13] << 16 |
                    (uint32_t)context->trace_id[14] << 8 | context->trace_id[15];

    return bits < tracer->sample_share * 0x1.0p32;
}

struct trace_context tracer_begin(struct tracer *tracer, const struct trace_context *parent)
{
    bool has_parent = parent != NULL && trace_context_is_set(parent);
    struct trace_context context = {.sampled = false};

    if (tracer->client == NULL)
        return has_parent ? *parent : context;
    if (has_parent)
        return trace_context_child(parent);
    context = trace_context_new(false);
    context.sampled = trace_is_sampled(tracer, &context);
    return context;
}

/* ---- Spans */

void trace_start(struct tracer *tracer, struct trace_span *span, const char *name,
                 enum trace_kind kind, const struct trace_context *context,
                 const struct trace_context *parent, uint64_t now_us)
{
    span->live = tracer->client != NULL && context->sampled && trace_context_is_set(context);
    if (!span->live)
        return;
    span->failed = false;
    span->kind = kind;
    span->context = *context;
    memset(span->parent_id, 0, sizeof(span->parent_id));
    if (parent != NULL && trace_context_is_set(parent))
        memcpy(span->parent_id, parent->span_id, sizeof(span->parent_id));
    span->name = name;
    span->start_us = now_us;
    span->end_us = 0;
    span->attribute_count = 0;
}

static struct trace_attribute *span_attribute(struct trace_span *span, const char *key)
{
    struct trace_attribute *attribute;

    if (!span->live || span->attribute_count == TRACE_ATTRIBUTES_MAX)
        return NULL;
    attribute = &span->attributes[span->attribute_count++];
    attribute->key = key;
    return attribute;
}

void trace_set_text(struct trace_span *span, const char *key, const char *text)
{
    struct trace_attribute *attribute = span_attribute(span, key);

    if (attribute == NULL)
        return;
    attribute->is_number = false;
    mem_copy_text(attribute->text, text);
}

void trace_set_number(struct trace_span *span, const char *key, int64_t number)
{
    struct trace_attribute *attribute = span_attribute(span, key);

    if (attribute == NULL)
        return;
    attribute->is_number = true;
    attribute->number = number;
}

void trace_end(struct tracer *tracer, struct trace_span *span, bool failed, uint64_t now_us)
{
    if (!span->live)
        return;
    span->live = false; /* a second end is no second span */
    span->failed = failed;
    span->end_us = now_us < span->start_us ? span->start_us : now_us;
    tracer->recorded++;
    if (tracer->waiting == tracer->ring_room) {
        tracer->dropped++;
        return;
    }
    tracer->ring[(tracer->first + tracer->waiting) % tracer->ring_room] = *span;
    tracer->waiting++;
    if (tracer->waiting >= tracer->batch_count)
        tracer_post(tracer);
}
