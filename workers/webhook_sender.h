/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Sends deliveries: signs, POSTs, decides what follows, writes the try down.
 *
 * Happy path: put → secrets of its tenant → POST → result staged → written with others of the same
 * turn → out of memory. A delivery that must be tried again leaves memory too: its row says when.
 *
 * Failures: the receiver's are results (workers/webhook_plan.h). An unreachable ledger: results
 * wait and are written again, deliveries keep their place, so that the table fills up and no more
 * are put: nothing is lost, nothing grows. A secret that does not open: the delivery is dropped
 * from memory and claimed again later; the error is counted and shown.
 *
 * Shutdown: webhook_sender_drain() takes no more, waits for what is being sent and written.
 *
 * Thread: the loop's.   Tests: tests/stack/test_webhook.py
 */

#include "base/http_client.h"
#include "base/metrics.h"
#include "brokers/blob.h"
#include "workers/webhook_address.h"
#include "workers/webhook_secrets.h"
#include "workers/webhook_store.h"

struct loop;
struct model_names;
struct tracer;
struct webhook_sender;

enum webhook_metric {
#define METRICS_ENUM(name) WEBHOOK_METRIC_##name,
#include "base/metrics_rows.def"
#include "workers/webhook_metrics.def"
#include "base/metrics_end.def"
    WEBHOOK_METRIC_COUNT
};

struct webhook_sender_options {
    struct pg *pg;
    struct webhook_secret_cache *secrets;
    struct blob_store *blobs; /* NULL: results in blobs cannot be delivered */
    struct metrics *metrics;
    struct tracer *tracer;
    struct model_names *names;
    struct webhook_allow allow;
    uint32_t in_memory_max;
    uint32_t connections_max, connections_per_host_max;
    uint32_t timeout_ms;
    double time_scale;
    /* Something went wrong that its operator must know; called with the delivery's id. */
    void (*on_trouble)(void *opaque, const struct webhook_delivery *delivery,
                       const struct err *err);
    /* A try is over; its result is in the delivery. */
    void (*on_try)(void *opaque, const struct webhook_delivery *delivery);
    /* There is room again, or a retry that fell due soon was written: look for more. */
    void (*on_room)(void *opaque);
    void *opaque;
};

int webhook_sender_new(struct loop *loop, const struct webhook_sender_options *options,
                       struct webhook_sender **ret_sender, struct err *err) MUST_CHECK;
void webhook_sender_free(struct webhook_sender **sender_p);

uint32_t webhook_sender_room(const struct webhook_sender *sender);

/* Takes the delivery; one that is in memory already is dropped instead. Needs room. */
void webhook_sender_put(struct webhook_sender *sender, struct webhook_delivery **delivery_p);

void webhook_sender_drain(struct webhook_sender *sender, void (*on_drained)(void *opaque),
                          void *opaque);
uint32_t webhook_sender_count(const struct webhook_sender *sender);
