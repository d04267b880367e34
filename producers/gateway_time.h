/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Points in time as people write them into queries: RFC 3339, "2026-01-31T12:34:56.5Z" or with an
 * offset, or a day alone. Pure.
 *
 * Thread: any.   Tests: tests/unit/test_gateway_time.c
 */

#include <stdint.h>

#include "base/err.h"

/* Microseconds since 1970; 0 for what lies before. ERR_MALFORMED says what it must look like. */
int gateway_time_parse(const char *text, uint64_t *ret_us, struct err *err) MUST_CHECK;
