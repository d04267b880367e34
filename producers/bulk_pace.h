/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * How many lines of a bulk job may be jobs at a time: what its pool takes, as measured.
 *
 * A line that enters before its pool can run it only waits there, in a row that costs two more
 * writes, in front of everybody who reads queues. So lines enter chunk by chunk, and each chunk
 * that has ended says how long it was in: shorter than HORIZON, and the pool takes more; longer
 * than twice that, and fewer enter. While online work waits in the pool nothing enters beyond the
 * one chunk that always may: it runs by the share that ageing gives it, so that no bulk job
 * starves, and what the others need is not measured by how much bulk waits behind them.
 *
 * Source: the idea of L. Brakmo, L. Peterson, "TCP Vegas", 1995: a delay that grows is the sign.
 * Pure.   Thread: any.   Tests: tests/unit/test_bulk_pace.c
 */

#include <stdbool.h>
#include <stdint.h>

#define BULK_PACE_CHUNK 1000 /* lines that enter together, at most */
#define BULK_PACE_HORIZON_US 300000

struct bulk_pace {
    uint64_t window; /* lines */
    bool yields;     /* online work waits in the pool */
};

void bulk_pace_init(struct bulk_pace *pace);

/* Lines that may be jobs now; a chunk may be, however many it has. */
uint64_t bulk_pace_window(const struct bulk_pace *pace, uint64_t window_max);

/* All jobs of a chunk are final, so long after they were sent. */
void bulk_pace_ended(struct bulk_pace *pace, uint64_t lines, uint64_t took_us, uint64_t window_max);

/* Does online work wait in the pool? */
void bulk_pace_measured(struct bulk_pace *pace, bool online_waits);
