/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Writes down what became of deliveries, in groups, and how endpoints are.
 *
 * Happy path: add → written with all others of 10 ms, or of the write before → on_written for each
 * → on_room. Group by group, one at a time. Health goes in a transaction of its own, when a circuit
 * changes, else at most each half minute and endpoint.
 *
 * Failures: ledger away: results wait and are written again; writing one twice changes nothing.
 * Its commits need no flush to disk: what a power cut takes back is sent again.
 *
 * Thread: the loop's.   Tests: tests/stack/test_webhook.py
 */

#include "workers/webhook_store.h"

struct loop;
struct webhook_results;

struct webhook_results_options {
    struct pg *pg; /* of its own, with synchronous_commit off */
    uint32_t room; /* results that can wait */
    void (*on_written)(void *opaque, struct webhook_delivery *delivery);
    void (*on_room)(void *opaque); /* behind each group */
    void (*on_trouble)(void *opaque, const struct webhook_delivery *delivery,
                       const struct err *err);
    void *opaque;
};

struct webhook_results *webhook_results_new(struct loop *loop,
                                            const struct webhook_results_options *options);
void webhook_results_free(struct webhook_results **results_p);

/* The delivery's outcome is set; it must live until on_written. */
void webhook_results_add(struct webhook_results *results, struct webhook_delivery *delivery);

/* Something may have changed about the endpoint. */
void webhook_results_touch(struct webhook_results *results, struct webhook_endpoint *endpoint,
                           uint64_t now_ms);
