/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/job_id.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"

struct wire_id job_id_make(uint32_t shard, uint64_t wall_ms,
                           const uint8_t entropy[JOB_ID_RANDOM_SIZE])
{
    struct wire_id id;

    assert(shard < JOB_SHARD_COUNT_MAX);
    for (int i = 0; i < 6; i++)
        id.bytes[i] = (uint8_t)(wall_ms >> (40 - 8 * i));
    memcpy(id.bytes + 6, entropy, 2);
    memcpy(id.bytes + 10, entropy + 2, 6);
    id.bytes[6] = (uint8_t)(0x70 | (id.bytes[6] & 0x0f));
    id.bytes[8] = (uint8_t)(0x80 | (shard >> 4));
    id.bytes[9] = (uint8_t)((shard & 0x0f) << 4 | (entropy[0] >> 4));
    return id;
}

uint32_t job_id_shard(const struct wire_id *id)
{
    return (id->bytes[8] & 0x3fu) << 4 | id->bytes[9] >> 4;
}

uint64_t job_id_time_ms(const struct wire_id *id)
{
    uint64_t ms = 0;

    for (int i = 0; i < 6; i++)
        ms = ms << 8 | id->bytes[i];
    return ms;
}

bool job_id_equal(const struct wire_id *a, const struct wire_id *b)
{
    return memcmp(a, b, sizeof(*a)) == 0;
}

bool job_id_is_none(const struct wire_id *id)
{
    static const struct wire_id none;

    return job_id_equal(id, &none);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int job_id_parse(const char *text, struct wire_id *ret_id, struct err *err)
{
    size_t size = strnlen(text, JOB_ID_TEXT_SIZE);
    bool dashes = size == 36;
    struct wire_id id;
    size_t at = 0;

    if (size != 36 && size != 32)
        return err_set(err, ERR_MALFORMED, "id has %s%zu characters, a UUID has 36 or 32",
                       size > 36 ? "more than " : "", size > 36 ? (size_t)36 : size);
    for (int i = 0; i < WIRE_ID_SIZE; i++) {
        int high, low;

        if (dashes && (i == 4 || i == 6 || i == 8 || i == 10) && text[at++] != '-')
            return err_set(err, ERR_MALFORMED, "id is no UUID: '-' expected at character %zu", at);
        high = hex_digit(text[at]);
        low = hex_digit(text[at + 1]);
        if (high < 0 || low < 0)
            return err_set(err, ERR_MALFORMED,
                           "id is no UUID: hex digits expected at character %zu", at + 1);
        id.bytes[i] = (uint8_t)(high << 4 | low);
        at += 2;
    }
    *ret_id = id;
    return 0;
}

void job_id_format(const struct wire_id *id, char to[JOB_ID_TEXT_SIZE])
{
    static const char digits[] = "0123456789abcdef";
    char *at = to;

    for (int i = 0; i < WIRE_ID_SIZE; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *at++ = '-';
        *at++ = digits[id->bytes[i] >> 4];
        *at++ = digits[id->bytes[i] & 0x0f];
    }
    *at = '\0';
}
