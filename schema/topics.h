/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The topics of Kafka that we write to and read from, as one table (schema/topics.def).
 *
 * Thread: any.   Tests: tests/unit/test_topics.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/wire.h"

enum topic {
#define TOPIC(name, text, partitions, retention_hours, append_time, meaning) TOPIC_##name,
#include "schema/topics.def"
#undef TOPIC
    TOPIC_COUNT
};

enum topic_partitions {
    TOPIC_PARTITIONS_SHARDS,
    TOPIC_PARTITIONS_ONE,
    TOPIC_PARTITIONS_POOL,
};

#define TOPIC_NAME_SIZE 80 /* "dispatch.", a pool of 64 bytes, a terminator */
#define TOPIC_DISPATCH_PARTITIONS_DEFAULT 16

const char *topic_name(enum topic topic); /* static storage; DISPATCH: only the beginning */
const char *topic_meaning(enum topic topic);
enum topic_partitions topic_partitions(enum topic topic);
uint64_t topic_retention_ms(enum topic topic);
bool topic_append_time(enum topic topic);

/* "dispatch.<pool>". ERR_RANGE unless the pool is 1 to 64 of a-z A-Z 0-9 . _ - */
int topic_dispatch_name(struct wire_text pool, char to[TOPIC_NAME_SIZE],
                        struct err *err) MUST_CHECK;

/* The partition of its pool's dispatch topic that a worker reads: a hash of its name. */
uint32_t topic_dispatch_partition(const char *worker, uint32_t partition_count);
