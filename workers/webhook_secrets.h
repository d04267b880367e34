/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The secrets of tenants, opened and kept for some seconds. Those who ask while they are being
 * read are answered together.
 *
 * Thread: the loop's.   Tests: tests/stack/test_webhook.py
 */

#include "base/seal.h"
#include "brokers/pg.h"
#include "workers/webhook_sign.h"

struct loop;
struct webhook_secret_cache;

/* key may be NULL: then no webhook is signed, and tenants with secrets are an error. */
struct webhook_secret_cache *webhook_secret_cache_new(struct pg *pg, const struct seal_key *key);
void webhook_secret_cache_free(struct webhook_secret_cache **cache_p);

/* Forgets everything: a secret was made, rotated or deleted. */
void webhook_secret_cache_clear(struct webhook_secret_cache *cache);

/* The tenant's secrets when they are known and fresh; else NULL, and they are asked for: `ready`
 * is called (see _on_ready) when that is over. An unreachable ledger keeps old ones in use. */
const struct webhook_secrets *webhook_secret_cache_get(struct webhook_secret_cache *cache,
                                                       const char *tenant, uint64_t now_ms);

/* Called after each answer: those who waited ask again. err is NULL, or why it failed. */
void webhook_secret_cache_on_ready(struct webhook_secret_cache *cache,
                                   void (*ready)(void *opaque, const struct err *err),
                                   void *opaque);
