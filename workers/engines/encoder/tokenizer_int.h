/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What tokenizer.c (cutting) and tokenizer_load.c (files) share. */

#include "workers/engines/encoder/bpe.h"
#include "workers/engines/encoder/tokenizer.h"
#include "workers/engines/encoder/unigram.h"
#include "workers/engines/encoder/vocab.h"
#include "workers/engines/encoder/wordpiece.h"

#define TOKENIZER_FILE_SIZE_MAX (64u << 20)
#define TOKENIZER_ADDED_COUNT_MAX 256u
#define TOKENIZER_ADDED_SIZE_MAX 64u

struct tokenizer_added {
    char text[TOKENIZER_ADDED_SIZE_MAX];
    uint32_t size, char_count, id;
    bool takes_left, takes_right; /* the white space beside it */
};

/* pieces alone, or vocab and one of bpe and unigram. */
struct tokenizer {
    struct tokenizer_frame frame;
    struct wordpiece *pieces;
    struct vocab *vocab;
    struct bpe *bpe;
    struct unigram *unigram;
    struct tokenizer_added added[TOKENIZER_ADDED_COUNT_MAX];
    uint32_t added_count;
    bool added_starts[256]; /* first bytes of added */
    uint32_t unk_id;        /* UINT32_MAX: there is none */
    uint32_t id_count;
};

/* Everything but pieces. */
int tokenizer_load(const char *dir, struct tokenizer *tokenizer, struct err *err) MUST_CHECK;

/* Whether tokenizer.json is of a kind that tokenizer_load() reads. */
int tokenizer_is_loaded(const char *dir, bool *ret_answer, struct err *err) MUST_CHECK;
