/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/cache_place.h"

#include <inttypes.h>
#include <stdio.h>

/* Digits at the front as a number; 0 bytes: there are none, or it takes more than 64 bits. */
static size_t number_read(const char *text, size_t size, uint64_t *ret_number)
{
    uint64_t number = 0;
    size_t n = 0;

    for (; n < size && text[n] >= '0' && text[n] <= '9'; n++) {
        uint64_t digit = (uint64_t)(text[n] - '0');

        if (number > (UINT64_MAX - digit) / 10)
            return 0;
        number = number * 10 + digit;
    }
    *ret_number = number;
    return n;
}

bool cache_place_parse(const char *text, size_t size, struct cache_place *ret_place)
{
    struct cache_place place;
    size_t token = number_read(text, size, &place.token), number;

    if (token == 0 || token == size || text[token] != '-')
        return false;
    number = number_read(text + token + 1, size - token - 1, &place.number);
    if (number == 0 || token + 1 + number != size)
        return false;
    *ret_place = place;
    return true;
}

size_t cache_place_format(struct cache_place place, char to[CACHE_PLACE_TEXT_SIZE])
{
    return (size_t)snprintf(to, CACHE_PLACE_TEXT_SIZE, "%" PRIu64 "-%" PRIu64, place.token,
                            place.number);
}
