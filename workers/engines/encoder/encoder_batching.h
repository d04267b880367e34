/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * When a batch leaves: as soon as it is full, or when its oldest request has waited long enough.
 *
 *     "batching": {"max_items": 32, "max_tokens": 4096, "max_wait_ms": 2}
 *
 * is a member of an engine's settings; each key is optional. Items are texts or, for tensors, rows
 * of the first axis; only texts have tokens. Without a wait, the default, a batch is what is there
 * when the engine is free: nothing waits for company. A wait buys fuller batches with latency.
 *
 * Pure. Thread: any.   Tests: tests/unit/test_encoder_batching.c
 */

#include <jansson.h>
#include <stdint.h>

#include "base/err.h"

struct encoder_batching {
    uint32_t item_max;
    uint32_t token_max; /* 0: tokens are not counted */
    uint64_t wait_us;
};

/* Reads settings.batching over what *batching holds. settings may be NULL; what is wrong is named
 * with its limit: ERR_USAGE, ERR_MALFORMED, ERR_RANGE. */
int encoder_batching_read(const json_t *settings, struct encoder_batching *batching,
                          struct err *err) MUST_CHECK;

/* When a batch of what waits should leave: 0 at once, else a time. */
uint64_t encoder_batching_due_us(const struct encoder_batching *batching, uint64_t item_count,
                                 uint64_t token_count, uint64_t oldest_us);

/* due_us as engine.h's step() tells it: 0 when it is now or past. */
uint64_t encoder_batching_wake_us(uint64_t due_us, uint64_t now_us);
