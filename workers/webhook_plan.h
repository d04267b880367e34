/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What follows a try of a webhook: pure, time and jitter are arguments.
 *
 *   2xx                                 delivered
 *   network error, 408, 425, 429, 5xx   again, up to WEBHOOK_TRIES_MAX tries over about 75 hours
 *   410                                 the endpoint is gone: given up, and the endpoint disabled
 *   other 3xx, 4xx; refused address     again, but final after WEBHOOK_REFUSALS_MAX tries
 *
 * Thread: any.   Tests: tests/unit/test_webhook_plan.c
 */

#include <stdbool.h>
#include <stdint.h>

#define WEBHOOK_TRIES_MAX 10
#define WEBHOOK_REFUSALS_MAX 3
#define WEBHOOK_RETRY_AFTER_MS_MAX (24u * 3600 * 1000)

enum webhook_outcome {
    WEBHOOK_DELIVERED,
    WEBHOOK_AGAIN,
    WEBHOOK_GIVEN_UP,
    WEBHOOK_GIVEN_UP_GONE, /* and nothing more goes to this endpoint */
    WEBHOOK_PUT_OFF,       /* not tried: its endpoint has no place, or its circuit is open */
};

struct webhook_try {
    uint32_t number;         /* of this try, from 1; a replay starts anew */
    int http_status;         /* 0: no answer (network error, timeout) */
    int blocked;             /* the address is one that we do not connect to */
    uint64_t retry_after_ms; /* the receiver's Retry-After; 0: none */
    double jitter;           /* 0.0 … below 1.0 */
    double time_scale;       /* 1.0; tests shorten the schedule */
};

struct webhook_next {
    enum webhook_outcome outcome;
    uint64_t delay_ms; /* AGAIN: from the end of this try */
};

struct webhook_next webhook_plan_next(const struct webhook_try *try);

/* Milliseconds that a Retry-After asks for: seconds, or an HTTP date; 0: nothing that makes sense.
 * More than a day counts as a day. */
uint64_t webhook_plan_retry_after(const char *text, uint64_t now_s);

/* True when a delivery of this age would be given up, had it been tried on schedule. */
bool webhook_plan_is_over(uint64_t age_ms, double time_scale);
