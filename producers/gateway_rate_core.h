/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A rate limit as the generic cell rate algorithm: one number, the theoretical arrival time of the
 * next submit. It moves on by one interval for each submit and may be ahead of now by a burst.
 *
 * The same arithmetic runs in Redis (gateway_rate.c), where all gateways meet; here it stands in
 * while Redis is away.
 *
 * Pure.   Thread: any.   Tests: tests/unit/test_gateway_rate.c
 *
 * Source: ITU-T I.371, the virtual scheduling form of the GCRA.
 */

#include <stdbool.h>
#include <stdint.h>

#include "schema/limits.h"

struct rate {
    double interval_us; /* between two submits; 0: no limit */
    double burst;       /* submits that may come at once, at least 1 */
};

/* No limit when rate_per_second is not set. */
struct rate rate_of(const struct limits *limits);

/* How many of `count` submits pass now; moves tat_us on for them. ret_wait_us: until the next one
 * would, 0 when all have passed. */
uint32_t rate_take(const struct rate *rate, double *tat_us, double now_us, uint32_t count,
                   double *ret_wait_us);
