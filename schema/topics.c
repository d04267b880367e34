/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/topics.h"

#include <ctype.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"

#define POOL_SIZE_MAX 64
#define HOUR_MS (60ull * 60 * 1000)

static const struct {
    const char *name;
    enum topic_partitions partitions;
    uint32_t retention_hours;
    bool append_time;
    const char *meaning;
} topics[TOPIC_COUNT] = {
#define TOPIC(name, text, partitions, retention_hours, append_time, meaning)                       \
    [TOPIC_##name] = {text, TOPIC_PARTITIONS_##partitions, retention_hours, append_time, meaning},
#include "schema/topics.def"
#undef TOPIC
};

const char *topic_name(enum topic topic)
{
    assert(topic < TOPIC_COUNT);
    return topics[topic].name;
}

const char *topic_meaning(enum topic topic)
{
    assert(topic < TOPIC_COUNT);
    return topics[topic].meaning;
}

enum topic_partitions topic_partitions(enum topic topic)
{
    assert(topic < TOPIC_COUNT);
    return topics[topic].partitions;
}

uint64_t topic_retention_ms(enum topic topic)
{
    assert(topic < TOPIC_COUNT);
    return topics[topic].retention_hours * HOUR_MS;
}

bool topic_append_time(enum topic topic)
{
    assert(topic < TOPIC_COUNT);
    return topics[topic].append_time;
}

int topic_dispatch_name(struct wire_text pool, char to[TOPIC_NAME_SIZE], struct err *err)
{
    if (pool.size == 0 || pool.size > POOL_SIZE_MAX)
        return err_set(err, ERR_RANGE, "a pool's name has 1 to %d bytes, not %zu", POOL_SIZE_MAX,
                       pool.size);
    for (size_t i = 0; i < pool.size; i++) {
        unsigned char byte = (unsigned char)pool.text[i];

        if (byte >= 0x80 || (!isalnum(byte) && strchr("._-", byte) == NULL) || byte == 0)
            return err_set(err, ERR_RANGE,
                           "byte %zu of a pool's name is 0x%02x; allowed are "
                           "letters, digits, '.', '_' and '-'",
                           i, byte);
    }
    (void)snprintf(to, TOPIC_NAME_SIZE, "%s%.*s", topics[TOPIC_DISPATCH].name, (int)pool.size,
                   pool.text);
    return 0;
}

uint32_t topic_dispatch_partition(const char *worker, uint32_t partition_count)
{
    uint32_t hash = 2166136261u; /* FNV-1a, 32 bits */

    assert(partition_count > 0);
    for (const char *c = worker; *c != 0; c++)
        hash = (hash ^ (uint8_t)*c) * 16777619u;
    return hash % partition_count;
}
