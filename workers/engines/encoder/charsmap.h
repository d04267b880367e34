/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * SentencePiece's precompiled normalization: which characters become which, as a trie.
 *
 *     u32 LE   trie_size, a multiple of 4
 *     u32[]    the trie, darts-clone's double array; a leaf's value is an offset into the texts
 *     u8[]     texts, each ended by a NUL
 *
 * The map comes from a user: an index that leaves the trie ends the walk, an offset that leaves the
 * texts is no match, and the last text need not be ended.
 *
 * Thread: any, once opened.   Tests: tests/unit/test_tokenizer.c, tests/fuzz/fuzz_encoder_unigram.c
 */

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define CHARSMAP_SIZE_MAX (16u << 20)

struct charsmap;

/* From the bytes themselves, which are copied. */
int charsmap_new(const uint8_t *bytes, size_t size, struct charsmap **ret_map,
                 struct err *err) MUST_CHECK;

/* From base64, as tokenizer.json has it. */
int charsmap_decode(const char *base64, struct charsmap **ret_map, struct err *err) MUST_CHECK;
void charsmap_free(struct charsmap **map_p);

/* What the shortest beginning of the text that is in the map becomes: a text of *ret_size bytes,
 * not terminated, perhaps empty; NULL: it stays as it is. That it is the shortest is the
 * reference's. */
const char *charsmap_find(const struct charsmap *map, const char *text, size_t size,
                          size_t *ret_size);
