/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The place of an entry in the stream of a job's answer: the token of its attempt and its number in
 * it, from 1. As text "<token>-<number>": the entry's id in Redis, and of an event on the wire.
 * Places only rise.
 *
 * Pure.   Thread: any.   Tests: tests/unit/test_cache_place.c, tests/fuzz/fuzz_cache_place.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cache_place {
    uint64_t token, number;
};

#define CACHE_PLACE_TEXT_SIZE 42

/* False: the text is no place. */
bool cache_place_parse(const char *text, size_t size, struct cache_place *ret_place);
size_t cache_place_format(struct cache_place place, char to[CACHE_PLACE_TEXT_SIZE]);
