/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/charsmap.h"

#include <sodium.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct charsmap {
    uint32_t *units;
    uint32_t unit_count;
    char *texts;
    size_t texts_size;
};

/* ---- a unit of the double array ---- */

static bool has_leaf(uint32_t unit)
{
    return (unit >> 8 & 1u) != 0;
}

static uint32_t value_of(uint32_t unit)
{
    return unit & 0x7fffffffu;
}

static uint32_t label_of(uint32_t unit)
{
    return unit & 0x800000ffu;
}

static uint32_t offset_of(uint32_t unit)
{
    return unit >> 10 << ((unit & 1u << 9) >> 6);
}

int charsmap_new(const uint8_t *bytes, size_t size, struct charsmap **ret_map, struct err *err)
{
    OWNED(charsmap_free) struct charsmap *map = xcalloc(1, sizeof(*map));
    uint32_t trie_size;

    if (size < 8 || size > CHARSMAP_SIZE_MAX)
        return err_set(err, ERR_RANGE, "precompiled_charsmap has %zu bytes, allowed are 8 to %u",
                       size, CHARSMAP_SIZE_MAX);
    _Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "units are read as they are");
    memcpy(&trie_size, bytes, sizeof(trie_size));
    if (trie_size % 4 != 0 || trie_size < 4 || trie_size > size - 4)
        return err_set(err, ERR_MALFORMED,
                       "precompiled_charsmap says %u bytes of trie, it has %zu bytes", trie_size,
                       size);
    map->unit_count = trie_size / 4;
    map->units = xmemdup(bytes + 4, trie_size);
    map->texts_size = size - 4 - trie_size;
    map->texts = xmalloc(map->texts_size + 1);
    memcpy(map->texts, bytes + 4 + trie_size, map->texts_size);
    *ret_map = TAKE(map);
    return 0;
}

int charsmap_decode(const char *base64, struct charsmap **ret_map, struct err *err)
{
    const size_t length = strlen(base64);
    OWNED(mem_free) uint8_t *bytes = NULL;
    size_t size = 0;

    if (length > CHARSMAP_SIZE_MAX / 3 * 4)
        return err_set(err, ERR_RANGE, "precompiled_charsmap has %zu letters, limit %u", length,
                       CHARSMAP_SIZE_MAX / 3 * 4);
    bytes = xmalloc(length + 1);
    if (sodium_base642bin(bytes, length, base64, length, NULL, &size, NULL,
                          sodium_base64_VARIANT_ORIGINAL) != 0)
        return err_set(err, ERR_MALFORMED, "precompiled_charsmap is not base64");
    return charsmap_new(bytes, size, ret_map, err);
}

void charsmap_free(struct charsmap **map_p)
{
    struct charsmap *map = TAKE(*map_p);

    if (map == NULL)
        return;
    free(map->texts);
    free(map->units);
    free(map);
}

const char *charsmap_find(const struct charsmap *map, const char *text, size_t size,
                          size_t *ret_size)
{
    uint32_t at = offset_of(map->units[0]), value;

    for (size_t i = 0; i < size && text[i] != '\0'; i++) {
        uint32_t unit;

        at ^= (uint8_t)text[i];
        if (at >= map->unit_count)
            return NULL;
        unit = map->units[at];
        if (label_of(unit) != (uint8_t)text[i])
            return NULL;
        at ^= offset_of(unit);
        if (!has_leaf(unit))
            continue;
        if (at >= map->unit_count)
            return NULL;
        value = value_of(map->units[at]);
        if (value > map->texts_size)
            return NULL;
        *ret_size = strnlen(map->texts + value, map->texts_size - value);
        return map->texts + value;
    }
    return NULL;
}
