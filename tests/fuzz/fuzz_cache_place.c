/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what a client sends as Last-Event-ID is read within its bounds, and means one place. */

#include "base/assert.h"
#include "brokers/cache_place.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    char text[CACHE_PLACE_TEXT_SIZE];
    struct cache_place place, again;
    size_t length;

    if (!cache_place_parse((const char *)bytes, size, &place))
        return 0;
    length = cache_place_format(place, text);
    assert(length < sizeof(text) && cache_place_parse(text, length, &again));
    assert(again.token == place.token && again.number == place.number);
    return 0;
}
