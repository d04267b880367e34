/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The tokens of a vocabulary: text to id, id to text. Ids have no holes to be asked for: what has
 * no token has the empty text.
 *
 * Thread: any, once filled.   Tests: tests/unit/test_tokenizer.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define VOCAB_TOKEN_COUNT_MAX (1u << 20)
#define VOCAB_TOKEN_SIZE_MAX 512u

struct vocab;

/* Room for tokens of texts_size bytes together. */
struct vocab *vocab_new(uint32_t token_count, size_t texts_size);
void vocab_free(struct vocab **vocab_p);

/* A text that is there already gets the later id. ERR_RANGE names the token and the limit. */
int vocab_add(struct vocab *vocab, const char *text, size_t size, uint32_t id,
              struct err *err) MUST_CHECK;

bool vocab_find(const struct vocab *vocab, const char *text, size_t size, uint32_t *ret_id);

/* Not terminated; size 0 for an id that is no token. */
const char *vocab_text(const struct vocab *vocab, uint32_t id, size_t *ret_size);

/* Highest id plus one. */
uint32_t vocab_id_count(const struct vocab *vocab);
