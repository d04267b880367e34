/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Sends deliveries: finds out whether they may go now, POSTs, decides what follows, has it written.
 *
 * Happy path: put → gate (workers/webhook_gate.h) → secrets of its tenant → POST
 * (workers/webhook_post.h) → result staged → written with others of the same turn
 * (workers/webhook_results.h) → out of memory. A delivery that must be tried again, or that finds
 * no place, leaves memory too: its row says when it comes back.
 *
 * Failures: the receiver's are results (workers/webhook_plan.h). An unreachable ledger: results
 * wait and are written again, deliveries keep their place, so that the table fills up and no more
 * are put: nothing is lost, nothing grows. A secret that does not open: the delivery is dropped
 * from memory and claimed again later; the error is counted and shown.
 *
 * Shutdown: webhook_sender_drain() takes no more, waits for what is being sent and written; what
 * waits in lines is put back at once, for the next sender.
 *
 * Thread: the loop's.   Tests: tests/stack/test_webhook.py
 */

#include "workers/webhook_post.h"
#include "workers/webhook_secrets.h"
#include "workers/webhook_store.h"

struct webhook_sender;

struct webhook_sender_options {
    struct pg *results_pg; /* for what becomes of deliveries: commits need no flush */
    struct webhook_secret_cache *secrets;
    struct webhook_poster_options poster; /* without done, on_trouble and opaque */
    struct metrics *metrics;
    uint32_t in_memory_max;
    uint32_t per_host_max, per_endpoint_max;
    uint32_t failures_max; /* in a row that open a circuit; 0: none does */
    double time_scale;
    /* Something went wrong that its operator must know; called with the delivery's id. */
    void (*on_trouble)(void *opaque, const struct webhook_delivery *delivery,
                       const struct err *err);
    /* A try is over, or will not be made; its result is in the delivery. */
    void (*on_try)(void *opaque, const struct webhook_delivery *delivery);
    /* A circuit opened or closed. */
    void (*on_circuit)(void *opaque, const struct webhook_endpoint *endpoint);
    /* Results were written, so there is room; soon: among them some that come back within a second.
     */
    void (*on_room)(void *opaque, bool soon);
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
