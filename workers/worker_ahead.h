/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * How many attempts a worker takes beside those that run, so that a slot is not empty while the
 * next one is on its way: as many as the slots get done in `ahead_us`, and no more than again the
 * slots. Of jobs that take long none may wait here: another worker could have begun it meanwhile.
 *
 * Pure. Thread: any.   Tests: tests/unit/test_worker_core.c
 */

#include <stdbool.h>
#include <stdint.h>

/* service_us: a moving mean of what a job takes the host; 0: not known, and none may wait. */
uint32_t worker_ahead_count(uint32_t slot_count, uint64_t ahead_us, uint64_t service_us);

/* The mean after one more job; an eighth of it is new. */
uint64_t worker_ahead_mean(uint64_t mean_us, uint64_t service_us);

/* Whether an attempt of that cost is taken, or handed back. One that is larger than the whole
 * worker runs when it is empty, as its owner decided. One that takes one slot may wait for it if it
 * was granted, even if fewer would be now. */
bool worker_ahead_takes(uint32_t busy, uint32_t cost, uint32_t slot_count, bool granted);

/* Until when one that came ahead waits, where it has had to since then; UINT64_MAX: none does. What
 * runs takes longer than the mean has said, and another worker could begin it. */
uint64_t worker_ahead_until_us(uint64_t since_us, uint64_t ahead_us);
