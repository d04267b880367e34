/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A job's id: a UUIDv7 that names its shard, so that every later message about the job goes to the
 * right partition by number, and no lookup is needed.
 *
 *      0                   1                   2                   3
 *     | unix milliseconds, 48 bits                  |0111| random 12 |
 *     |10| shard, 10 bits | random, 52 bits                          |
 *
 * Source: RFC 9562, section 5.7. Pure: time and random bytes are arguments.
 * Thread: any.   Tests: tests/unit/test_job_id.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/wire.h"

#define JOB_SHARD_COUNT_MAX 1024
#define JOB_ID_TEXT_SIZE 37 /* 36 characters and a terminator */
#define JOB_ID_RANDOM_SIZE 8

/* The entropy is JOB_ID_RANDOM_SIZE bytes of rng_secret_bytes(), or a hash for derived ids. */
struct wire_id job_id_make(uint32_t shard, uint64_t wall_ms,
                           const uint8_t entropy[JOB_ID_RANDOM_SIZE]);

uint32_t job_id_shard(const struct wire_id *id);
uint64_t job_id_time_ms(const struct wire_id *id);
bool job_id_equal(const struct wire_id *a, const struct wire_id *b);
bool job_id_is_none(const struct wire_id *id); /* all its bytes are 0 */

/* Takes the 36-character form and 32 hex digits; ERR_MALFORMED for anything else. */
int job_id_parse(const char *text, struct wire_id *ret_id, struct err *err) MUST_CHECK;
void job_id_format(const struct wire_id *id, char to[JOB_ID_TEXT_SIZE]);
