/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One POST: body from the record (and its blob), signatures, headers, span; what came back is
 * written into the delivery.
 *
 * Happy path: send → blob, when the record names one → POST → done(delivery, result), from the
 * loop or from inside of send when it cannot even begin.
 * Failures: a receiver's are results. What is ours (no blob store, a record that does not decode)
 * is told to on_trouble and counts as a try without an answer, neutral to the receiver's health.
 * Shutdown: webhook_poster_close() cancels what is open; done is called for each.
 *
 * Thread: the loop's.   Tests: tests/stack/test_webhook.py
 */

#include "brokers/address_guard.h"
#include "base/http_client.h"
#include "base/metrics.h"
#include "brokers/blob.h"
#include "workers/webhook_delivery.h"
#include "workers/webhook_gate.h"
#include "workers/webhook_sign.h"

struct loop;
struct model_names;
struct tracer;
struct webhook_poster;

enum webhook_metric {
#define METRICS_ENUM(name) WEBHOOK_METRIC_##name,
#include "base/metrics_rows.def"
#include "workers/webhook_metrics.def"
#include "base/metrics_end.def"
    WEBHOOK_METRIC_COUNT
};

struct webhook_poster_options {
    struct blob_store *blobs; /* NULL: results in blobs cannot be delivered */
    struct metrics *metrics;
    struct tracer *tracer;
    struct model_names *names;
    struct address_allow allow;
    uint32_t connections_max;
    uint32_t timeout_ms;
    void (*on_trouble)(void *opaque, const struct webhook_delivery *delivery,
                       const struct err *err);
    /* The try is over: status, times, error and answer are in the delivery. */
    void (*done)(void *opaque, struct webhook_delivery *delivery, bool blocked,
                 const struct webhook_gate_result *result);
    void *opaque;
};

int webhook_poster_open(struct loop *loop, const struct webhook_poster_options *options,
                        struct webhook_poster **ret_poster, struct err *err) MUST_CHECK;
void webhook_poster_close(struct webhook_poster **poster_p);

/* The delivery must live until done. */
void webhook_poster_send(struct webhook_poster *poster, struct webhook_delivery *delivery,
                         const struct webhook_secrets *secrets);
