/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Metrics: counters, gauges and histograms, declared in a table, read by Prometheus.
 *
 * The table stands beside the program, one row a metric, with a sentence each:
 *
 *     METRIC_COUNTER(requests_total, "method,status", "requests answered")
 *     METRIC_GAUGE(queue_size, "pool", "what waits now")
 *     METRIC_HISTOGRAM(wait_seconds, "pool", METRIC_SECONDS, "time from accept to start")
 *
 * and twice included makes the enum and the rows:
 *
 *     enum gate_metric {
 *     #define METRICS_ENUM(name) GATE_METRIC_##name,
 *     #include "base/metrics_rows.def"
 *     #include "producers/gate_metrics.def"
 *     #include "base/metrics_end.def"
 *         GATE_METRIC_COUNT
 *     };
 *     static const struct metric_row gate_metric_rows[] = {
 *     #define METRICS_ROWS
 *     #include "base/metrics_rows.def"
 *     #include "producers/gate_metrics.def"
 *     #include "base/metrics_end.def"
 *     };
 *
 * The name on the wire is <prefix><name>; prefixes are given at open, the second one (a name that
 * users' dashboards already know) is written as a copy of every metric.
 *
 * A metric without labels is used by its number. One with labels is used by a handle that
 * metrics_series() makes once for a set of values and the caller keeps: looking one up costs a lock
 * and a hash, using one does not. At most METRICS_SERIES_MAX series a metric: later sets of values
 * share one series whose labels say "other", and metrics_overflow_total counts them.
 *
 * Thread: updates any; open, close and series creation any (locked).
 * Tests: tests/unit/test_metrics.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define METRICS_SERIES_MAX 1000
#define METRICS_LABELS_MAX 8

struct metrics;
struct metric; /* a series: one metric with one set of label values */
struct http_request;
struct http_server;
struct loop;

enum metric_type { METRIC_TYPE_COUNTER, METRIC_TYPE_GAUGE, METRIC_TYPE_HISTOGRAM };

struct metric_row {
    const char *name;
    enum metric_type type;
    const char *labels;    /* "method,status"; "" for none */
    const double *buckets; /* upper bounds, ascending */
    size_t bucket_count;
    const char *help;
};

/* Buckets that fit: 0.5 ms … 1 h; 64 B … 256 MiB; 1 … 4,096. */
extern const double metric_buckets_seconds[], metric_buckets_bytes[], metric_buckets_count[];
#define METRIC_SECONDS metric_buckets_seconds, 22
#define METRIC_BYTES metric_buckets_bytes, 12
#define METRIC_COUNTS metric_buckets_count, 13

struct metrics_options {
    const char *prefix;       /* "headrace_" */
    const char *prefix_again; /* NULL: none */
    const struct metric_row *rows;
    size_t row_count;
};

int metrics_open(const struct metrics_options *options, struct metrics **ret_metrics,
                 struct err *err) MUST_CHECK;
void metrics_close(struct metrics **metrics_p);

/* The series of row `index` with these label values, in the order of the row; never NULL. Belongs
 * to metrics; the same values give the same pointer. */
struct metric *metrics_series(struct metrics *metrics, size_t index, const char *const *values);

/* The only series of a row without labels: metrics_of(m, GATE_METRIC_up). */
struct metric *metrics_of(struct metrics *metrics, size_t index);

/* A label value that stands for something deleted should not stay: forgets the series; the handle
 * must not be used again. */
void metrics_forget(struct metrics *metrics, size_t index, const char *const *values);

void metric_add(struct metric *metric, double more);      /* counter: more >= 0; gauge */
void metric_set(struct metric *metric, double value);     /* gauge */
void metric_observe(struct metric *metric, double value); /* histogram */

/* Prometheus' text form, with the usual process_… metrics at its end. */
int metrics_write(struct metrics *metrics, struct buf *to, struct err *err) MUST_CHECK;

/* ---- Pages: /metrics, /healthz (200 while the loop turns) and /readyz (200, or 503 and why not).
 */

struct metrics_pages {
    struct metrics *metrics;
    /* Returns NULL when ready, else the reason in a few words (valid until the next call). */
    const char *(*not_ready)(void *opaque);
    void *opaque;
};

/* Answers a request for one of the three (taken) and returns true; else leaves it and returns
 * false. To be called first by a program's handler, or see metrics_serve(). */
bool metrics_pages_answer(const struct metrics_pages *pages, struct http_request **request_p);

/* A server for these pages alone, for programs that have no other. pages must outlive it. */
int metrics_serve(struct loop *loop, const char *address, uint16_t port,
                  const struct metrics_pages *pages, struct http_server **ret_server,
                  struct err *err) MUST_CHECK;

#ifdef __cplusplus
}
#endif
