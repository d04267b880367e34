/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The statements of the webhook sender: deliveries in, claims, results, secrets.
 *
 * A delivery in memory is claimed: its next_at lies one claim ahead, so that another sender (or
 * this one after a crash) takes it up when nothing was heard of it by then.
 *
 * Thread: the loop's.   Tests: tests/stack/test_webhook.py
 */

#include "brokers/pg.h"
#include "workers/webhook_delivery.h"
#include "workers/webhook_gate.h"
#include "workers/webhook_sign.h"

#define WEBHOOK_STORE_TIMEOUT_MS 10000

enum delivery_state {
    DELIVERY_PENDING = 1,
    DELIVERY_SUCCEEDED,
    DELIVERY_FAILED,
    DELIVERY_CANCELED,
};

/* Inserts what is not there yet. Answer: statement 0, one row (job_id, round) for each that is new
 * and PENDING. Jobs that were canceled and endpoints that are gone get rows that are final. */
int webhook_store_insert(struct pg *pg, struct webhook_delivery *const *deliveries,
                         const bool *canceled, size_t count, uint64_t claim_ms, pg_done_fn *done,
                         void *opaque, struct err *err) MUST_CHECK;

/* Claims up to `limit` deliveries of the shards that are due. Answer: statement 0, rows for
 * webhook_store_row(). */
int webhook_store_claim(struct pg *pg, const uint32_t *shards, size_t shard_count, size_t limit,
                        uint64_t claim_ms, pg_done_fn *done, void *opaque,
                        struct err *err) MUST_CHECK;
struct webhook_delivery *webhook_store_row(const struct pg_answer *answer, size_t row);

#define WEBHOOK_RESULTS_MAX 500 /* in one transaction */

/* Writes tries and what follows from them, what was put off, and endpoints that are gone, in one
 * transaction. */
int webhook_store_results(struct pg *pg, struct webhook_delivery *const *deliveries, size_t count,
                          pg_done_fn *done, void *opaque, struct err *err) MUST_CHECK;

/* Writes what is known of endpoints (webhook_gate.h); times of circuits count from now_ms. */
int webhook_store_health(struct pg *pg, struct webhook_endpoint *const *endpoints, size_t count,
                         uint64_t now_ms, pg_done_fn *done, void *opaque,
                         struct err *err) MUST_CHECK;

/* Deletes endpoints that are enabled and were not heard of for four days; at most 10,000. */
int webhook_store_sweep(struct pg *pg, pg_done_fn *done, void *opaque, struct err *err) MUST_CHECK;

/* The active secrets and keys of a tenant, newest first. Answer: statement 0, rows (id, sealed,
 * kind). */
int webhook_store_secrets(struct pg *pg, const char *tenant, pg_done_fn *done, void *opaque,
                          struct err *err) MUST_CHECK;
