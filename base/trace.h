/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Traces: W3C trace context in and out, spans to an OTLP/HTTP collector.
 *
 * A struct trace_context travels by value with the work (24 bytes and flags); its text form is the
 * `traceparent` header: 00-<32 hex>-<16 hex>-<2 hex>. Spans are recorded into a bounded ring and
 * posted as OTLP JSON to <endpoint>/v1/traces every 5 s or 512 spans; when the ring is full the
 * span is dropped and counted. Without an endpoint, or with a context that is not sampled,
 * trace_start() gives an inert span and costs a branch.
 *
 * Thread: the loop's that the tracer was opened on; contexts are values.
 * Tests: tests/unit/test_trace.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct loop;
struct tracer;

#define TRACE_PARENT_SIZE 56 /* with its terminator */

struct trace_context {
    uint8_t trace_id[16]; /* all zero: no trace */
    uint8_t span_id[8];
    bool sampled;
};

bool trace_context_is_set(const struct trace_context *context);

/* ERR_MALFORMED unless it is a valid traceparent (of any version but ff, as W3C wants). */
int trace_context_parse(const char *text, struct trace_context *ret_context,
                        struct err *err) MUST_CHECK;
void trace_context_format(const struct trace_context *context, char to[TRACE_PARENT_SIZE]);

/* The same for a text that came with a message: unset when it is none. */
struct trace_context trace_context_read(const char *text, size_t size);

/* A new trace, or a new span id inside `parent` (same trace, same sampled flag). */
struct trace_context trace_context_new(bool sampled);
struct trace_context trace_context_child(const struct trace_context *parent);

/* A span id inside `parent` that is made of the parent and `name` alone: who finds the same work
 * again, in another process too, calls its span the same. */
struct trace_context trace_context_derive(const struct trace_context *parent, const void *name,
                                          size_t size);

struct tracer_options {
    const char *endpoint; /* "http://127.0.0.1:4318"; NULL or "": nothing is recorded */
    const char *service_name, *service_version, *service_instance; /* copied */
    double sample_share;  /* of the traces that begin here; 0 … 1 */
    uint32_t interval_ms; /* [5 s] */
    uint32_t batch_count; /* spans a post [512]; the ring holds eight times as many */
};

int tracer_open(struct loop *loop, const struct tracer_options *options, struct tracer **ret_tracer,
                struct err *err) MUST_CHECK;

/* False: there is no endpoint, and nothing is worth preparing for it. */
bool tracer_is_on(const struct tracer *tracer);

/* Posts what is waiting and calls on_flushed when that is over, or after timeout_ms. */
void tracer_flush(struct tracer *tracer, uint32_t timeout_ms, void (*on_flushed)(void *opaque),
                  void *opaque);
void tracer_close(struct tracer **tracer_p); /* drops what is waiting */

struct tracer_counts {
    uint64_t recorded, exported, dropped;
    uint32_t waiting;
};
struct tracer_counts tracer_counts(const struct tracer *tracer);

/* The context for work that starts here: a child of `parent` when that is set, else a new trace,
 * sampled by the tracer's share. Cheap without an endpoint: the parent is only handed on. */
struct trace_context tracer_begin(struct tracer *tracer, const struct trace_context *parent);

enum trace_kind { /* OTLP's numbers */
                  TRACE_KIND_INTERNAL = 1,
                  TRACE_KIND_SERVER,
                  TRACE_KIND_CLIENT,
                  TRACE_KIND_PRODUCER,
                  TRACE_KIND_CONSUMER,
};

#define TRACE_ATTRIBUTES_MAX 8
#define TRACE_TEXT_SIZE 64

struct trace_attribute {
    const char *key; /* static storage, borrowed */
    bool is_number;
    int64_t number;
    char text[TRACE_TEXT_SIZE]; /* cut */
};

struct trace_span { /* on the caller's side while it is open; copied when it ends */
    bool live;      /* false: everything below is ignored */
    bool failed;
    enum trace_kind kind;
    struct trace_context context;
    uint8_t parent_id[8];
    const char *name;          /* static storage, borrowed */
    uint64_t start_us, end_us; /* wall clock */
    uint32_t attribute_count;
    struct trace_attribute attributes[TRACE_ATTRIBUTES_MAX];
};

/* `context` is what the span itself is called (from tracer_begin or trace_context_child), `parent`
 * what it hangs under (NULL: a root). now_us: wall clock. */
void trace_start(struct tracer *tracer, struct trace_span *span, const char *name,
                 enum trace_kind kind, const struct trace_context *context,
                 const struct trace_context *parent, uint64_t now_us);
void trace_set_text(struct trace_span *span, const char *key, const char *text);
void trace_set_number(struct trace_span *span, const char *key, int64_t number);
void trace_end(struct tracer *tracer, struct trace_span *span, bool failed, uint64_t now_us);
