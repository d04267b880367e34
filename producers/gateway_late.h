/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Whether a job would start before its start deadline: an estimate from sums that are there anyway.
 *
 *   jobs before it = own jobs of its class or above, and as many of each other tenant that waits,
 *                    because tenants take turns; at most all that wait
 *   waiting time   = (jobs before it + 1) × service time / slots, or nothing while slots are free
 *
 * The estimate is pure; the figures come by late_send().   Thread: the loop's.
 * Tests: tests/unit/test_gateway_late.c
 */

#include <stdint.h>

#include "base/err.h"

struct pg_answer;
struct pg_pool;

struct late_figures {
    uint64_t waiting, own_waiting; /* of the class or above */
    uint64_t tenants;              /* that wait, this one included */
    uint64_t running, slots;       /* slots 0: no worker, or nothing is known */
    uint64_t service_us;
};

/* Seconds; negative: there is no estimate. */
double late_estimate_s(const struct late_figures *figures);

struct late_question {
    const char *pool, *tenant;
    uint32_t rank; /* enum job_rank */
};
int late_send(struct pg_pool *pool, const struct late_question *question,
              void (*done)(void *opaque, const struct pg_answer *answer), void *opaque,
              struct err *err) MUST_CHECK;
struct late_figures late_read(const struct pg_answer *answer);
