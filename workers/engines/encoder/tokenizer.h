/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A model directory's tokenizer, of whatever kind, and what its model wants around a text:
 *
 *     one text     begin  a…  end                   [CLS] a [SEP]
 *     two texts    begin  a…  middle…  b…  end      [CLS] a [SEP] b [SEP],  <s> a </s></s> b </s>
 *
 *     WordPiece        tokenizer.json or vocab.txt, tokenizer_config.json    wordpiece.h
 *     byte-level BPE   tokenizer.json                                        bpe.h
 *     Unigram          tokenizer.json                                        unigram.h
 *
 * Of the latter two special tokens are cut out of a text first, with the white space at their sides
 * where the file says so, and what is between them is cut up part by part.
 *
 * Thread: any, once opened.   Tests: tests/unit/test_tokenizer.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "workers/engines/encoder/tokens.h"

#define TOKENIZER_MIDDLE_MAX 2u

struct tokenizer;

struct tokenizer_frame {
    uint32_t begin, end;
    uint32_t middle[TOKENIZER_MIDDLE_MAX];
    uint32_t middle_count;
};

/* A tokenizer of another kind is ERR_UNSUPPORTED, and named. */
int tokenizer_open(const char *dir, struct tokenizer **ret_tokenizer, struct err *err) MUST_CHECK;
void tokenizer_free(struct tokenizer **tokenizer_p);

/* Highest id plus one: the rows that the embedding matrix must have. */
uint32_t tokenizer_id_count(const struct tokenizer *tokenizer);
const struct tokenizer_frame *tokenizer_frame(const struct tokenizer *tokenizer);

/* Appends the tokens of the text alone, and stops when the list is full. */
void tokenizer_cut(const struct tokenizer *tokenizer, const char *text, size_t text_size,
                   struct token_list *tokens);

/* A token as its vocabulary spells it ("##ing"): not terminated. Returns its size, 0 for an id that
 * is none; *ret_prefix stands before it. */
size_t tokenizer_text(const struct tokenizer *tokenizer, uint32_t id, const char **ret_prefix,
                      const char **ret_text);

/* Whether the token goes on with the word of the one before it, as the reference's pipelines see
 * it. `text` is what was cut. */
bool tokenizer_continues(const struct tokenizer *tokenizer, uint32_t id, struct token_span span,
                         const char *text, size_t text_size);
