/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * How many slots of work a worker may hold, by how fast its engine has been of late.
 *
 *     hold_us of work at the measured pace, WORKER_PACE_SLOTS_LEAST at least, its slots at most
 *
 * An engine that computes what waits in one batch is never waited for by one of its requests more
 * than by another: what it holds beyond its batches is a queue, and a queue belongs into the
 * ledger, where it is fair, can be taken back and is shared with other workers. It must be long
 * enough, though, that the engine has work until more has come: hold_us is many times as long as
 * that takes.
 *
 * The pace is the slots that came out over the time in which some were in, each counted less the
 * longer it is past: by half after a fifteenth of hold_us, but what took longer than that counts
 * whole. Time without an answer counts as it passes, so an engine that becomes slow is noticed
 * before it has answered.
 *
 * Pure. Times are microseconds on one monotonic clock that does not go back.
 * Thread: its owner's.   Tests: tests/unit/test_worker_pace.c
 */

#include <stdbool.h>
#include <stdint.h>

#define WORKER_PACE_SLOTS_FIRST 16u /* before anything has been measured */
#define WORKER_PACE_SLOTS_LEAST 2u

struct worker_pace {
    uint64_t hold_us; /* 0: all slots, always */
    uint32_t slot_max;
    double busy_us, slot_count; /* of late */
    uint64_t mark_us;           /* up to here they are counted */
    bool is_busy;
};

/* The engine has something from now on. */
void worker_pace_begin(struct worker_pace *pace, uint64_t now_us);

/* It has answered for so many slots; is_empty: it has nothing any more. */
void worker_pace_note(struct worker_pace *pace, uint64_t now_us, uint32_t slot_count,
                      bool is_empty);

/* The slots that may be in use; 1 to slot_max. */
uint32_t worker_pace_slots(const struct worker_pace *pace, uint64_t now_us);
