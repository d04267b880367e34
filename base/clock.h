/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The only place that reads a clock. Loops read it once a turn and hand the value on; decisions
 * take time as an argument, so that a simulation can run a year of faults in a second.
 *
 * HEADRACE_TEST_CLOCK_SCALE is not read here: tests shorten settings, never time itself.
 * Thread: any.
 */

#include <stdint.h>

uint64_t clock_mono_ms(void); /* milliseconds on a clock that never jumps; for leases, timers */
uint64_t clock_mono_us(void);
uint64_t clock_thread_us(void); /* CPU that this thread has used */
uint64_t clock_wall_ms(void);   /* milliseconds since 1970, UTC; for people and for ids */
uint64_t clock_wall_us(void);

/* "2026-01-31T12:34:56.123456+00:00"; to must hold CLOCK_TEXT_SIZE bytes. */
#define CLOCK_TEXT_SIZE 40
void clock_format_iso(uint64_t wall_us, char *to);
