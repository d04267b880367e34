/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Byte-level BPE, as GPT-2 and RoBERTa have it: text to ids, equal to the reference id for id.
 *
 *     text -> words: 's 't 're 've 'm 'll 'd, or letters, digits or other marks with at most one
 *             space before them, or white space
 *          -> bytes, each a token of its own
 *          -> the neighbours that the earliest merge joins, again and again
 *
 * A word of any length costs its length times its logarithm. What is a letter, a digit or a space
 * is utf8proc's; the reference's tables may be of another year.
 *
 * Thread: any, once made.   Tests: tests/unit/test_tokenizer.c, tests/fuzz/fuzz_encoder_bpe.c
 */

#include <jansson.h>

#include "base/err.h"
#include "workers/engines/encoder/tokens.h"
#include "workers/engines/encoder/vocab.h"

struct bpe;

struct bpe_options {
    bool add_prefix_space; /* before a part that has none */
    bool trim_spans;       /* spaces at a token's ends do not count */
    bool compose;          /* a text is brought to Unicode's form NFC first */
};

/* model is tokenizer.json's, of type BPE. Takes nothing, borrows vocab for its life. ERR_MISMATCH
 * names a byte or a merge that the vocabulary has not. */
int bpe_new(const json_t *model, const struct vocab *vocab, const struct bpe_options *options,
            struct bpe **ret_bpe, struct err *err) MUST_CHECK;
void bpe_free(struct bpe **bpe_p);

/* Whether spaces at a token's ends count. */
bool bpe_trims_spans(const struct bpe *bpe);

/* Appends the tokens of a part of a text that begins at character `first` of it. */
void bpe_cut(const struct bpe *bpe, const char *text, size_t size, uint32_t first,
             struct token_list *tokens);
