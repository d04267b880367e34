/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * SentencePiece's unigram model, as XLM-RoBERTa has it: text to ids, equal to the reference id for
 * id.
 *
 *     text -> characters normalized (charsmap.h), by grapheme and, where a grapheme is not in the
 * map, by character; runs of spaces joined, ends cut, as the file says
 *          -> words: each begins with U+2581, which is what a space becomes and what is put before
 *             the first
 *          -> the pieces of a word whose scores' sum is the highest; a character that is in no
 * piece costs ten more than the worst of them, and neighbours of that kind are one unknown
 *
 * A word of any length costs its length times that of the longest piece.
 *
 * Thread: any, once made.   Tests: tests/unit/test_tokenizer.c, tests/fuzz/fuzz_encoder_unigram.c
 */

#include <jansson.h>

#include "base/err.h"
#include "workers/engines/encoder/charsmap.h"
#include "workers/engines/encoder/tokens.h"
#include "workers/engines/encoder/vocab.h"

struct unigram;

struct unigram_options {
    struct charsmap *map; /* taken by unigram_new(); NULL: characters stay as they are */
    bool join_spaces;     /* of several one is left */
    bool strip_left, strip_right;
    bool split_white; /* words are what white space separates, and white space is gone */
};

/* model is tokenizer.json's, of type Unigram; vocab has its pieces by id and is borrowed. */
int unigram_new(const json_t *model, const struct vocab *vocab, struct unigram_options *options,
                struct unigram **ret_unigram, struct err *err) MUST_CHECK;
void unigram_free(struct unigram **unigram_p);

uint32_t unigram_unk(const struct unigram *unigram);

/* Appends the tokens of a part of a text that begins at character `first` of it. */
void unigram_cut(const struct unigram *unigram, const char *text, size_t size, uint32_t first,
                 struct token_list *tokens);
