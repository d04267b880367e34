/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/ingest_headers.h"

#include <string.h>

#define NO_VALUE UINT32_MAX

static void pack_part(struct buf *to, const void *bytes, size_t size)
{
    uint32_t number = bytes == NULL ? NO_VALUE : (uint32_t)size;

    for (int i = 0; i < 4; i++)
        buf_append_byte(to, (uint8_t)(number >> (8 * i)));
    if (bytes != NULL)
        buf_append(to, bytes, size);
}

void ingest_headers_pack(const struct queue_header *headers, size_t count, struct buf *to)
{
    for (size_t i = 0; i < count; i++) {
        size_t name_size = strlen(headers[i].name) + 1;

        if (to->size + 8 + name_size + headers[i].size > INGEST_HEADERS_SIZE_MAX)
            continue;
        pack_part(to, headers[i].name, name_size);
        pack_part(to, headers[i].value, headers[i].size);
    }
}

/* False: there is no whole part. */
static bool unpack_part(struct wire_bytes *rest, const uint8_t **ret_bytes, size_t *ret_size)
{
    uint32_t number = 0;

    if (rest->size < 4)
        return false;
    for (int i = 0; i < 4; i++)
        number |= (uint32_t)rest->bytes[i] << (8 * i);
    rest->bytes += 4;
    rest->size -= 4;
    *ret_bytes = number == NO_VALUE ? NULL : rest->bytes;
    *ret_size = number == NO_VALUE ? 0 : number;
    if (*ret_size > rest->size)
        return false;
    rest->bytes += *ret_size;
    rest->size -= *ret_size;
    return true;
}

size_t ingest_headers_unpack(struct wire_bytes bytes, struct queue_header *headers, size_t room)
{
    const uint8_t *name, *value;
    size_t count = 0, name_size, size;

    while (count < room && unpack_part(&bytes, &name, &name_size) &&
           unpack_part(&bytes, &value, &size)) {
        if (name_size == 0 || name[name_size - 1] != 0)
            break;
        headers[count++] = (struct queue_header){(const char *)name, value, size};
    }
    return count;
}
