/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * BERT's tokenizer: text to the ids of word pieces, equal to the reference id for id.
 *
 *     bytes -> code points -> special tokens cut out ("[MASK]")
 *           -> control characters dropped, white space made a space, ideographs spaced apart
 *           -> canonical decomposition, accents dropped (or neither) -> lower case
 *           -> words and single punctuation marks
 *           -> per word the longest known piece first; one unknown piece makes it [UNK]
 *           -> [CLS] … [SEP], cut at the model's length
 *
 * All steps work on one character at a time, so a text of any size is read in one pass with a
 * word's worth of memory, and reading stops once the ids are full.
 *
 * Character classes come from the reference itself (wordpiece_chars.def), for its Unicode tables
 * are older than ours; decomposition and lower case from utf8proc. Bytes that are no UTF-8 are
 * dropped like U+FFFD, which is what they would have become on their way to the reference.
 *
 * Thread: any, once opened.   Tests: tests/unit/test_wordpiece.c, tests/fuzz/fuzz_wordpiece.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "workers/engines/encoder/tokens.h"

#define WORDPIECE_FILE_SIZE_MAX (64u << 20)
#define WORDPIECE_TOKEN_COUNT_MAX (1u << 20)
#define WORDPIECE_TOKEN_SIZE_MAX 512u
#define WORDPIECE_WORD_CHARS_MAX 100u /* what BERT's files say; longer words are [UNK] */
#define WORDPIECE_SPECIAL_COUNT_MAX 64u
#define WORDPIECE_SPECIAL_SIZE_MAX 64u

struct wordpiece;

struct wordpiece_special {
    char text[WORDPIECE_SPECIAL_SIZE_MAX];
    uint32_t size; /* bytes of text */
    uint32_t char_count;
    uint32_t id;
    bool any_case; /* matched behind the step that lowers the case */
};

struct wordpiece_options {
    bool lower_case;
    bool strip_accents;
    bool split_ideographs;
    uint32_t sep_count; /* [SEP]s between two texts: 1, or 2 */
    uint32_t word_chars_max;
    uint32_t special_count;
    struct wordpiece_special specials[WORDPIECE_SPECIAL_COUNT_MAX]; /* matched in raw text */
    char unk[WORDPIECE_SPECIAL_SIZE_MAX];
    char cls[WORDPIECE_SPECIAL_SIZE_MAX];
    char sep[WORDPIECE_SPECIAL_SIZE_MAX];
};

/* What bert-base-uncased has. */
void wordpiece_options_init(struct wordpiece_options *options);

/* Reads tokenizer.json, or vocab.txt where there is none, and tokenizer_config.json over it. A
 * tokenizer of another kind is ERR_UNSUPPORTED and named. */
int wordpiece_open(const char *dir, struct wordpiece **ret_pieces, struct err *err) MUST_CHECK;

/* From the text of a vocab.txt: one token a line, its id the line's number from 0. */
int wordpiece_new(const struct wordpiece_options *options, const char *vocab, size_t vocab_size,
                  struct wordpiece **ret_pieces, struct err *err) MUST_CHECK;

void wordpiece_free(struct wordpiece **pieces_p);

/* Highest id plus one: the rows that the embedding matrix must have. */
uint32_t wordpiece_id_count(const struct wordpiece *pieces);

/* The ids of the three that every text of a model has around it, or for what it lacks. */
uint32_t wordpiece_cls(const struct wordpiece *pieces);
uint32_t wordpiece_sep(const struct wordpiece *pieces);
uint32_t wordpiece_unk(const struct wordpiece *pieces);
uint32_t wordpiece_sep_count(const struct wordpiece *pieces);

/* The text of a token, not terminated, without the "##" of one that continues a word; returns its
 * size, 0 for an id that is no token. */
size_t wordpiece_text(const struct wordpiece *pieces, uint32_t id, const char **ret_text,
                      bool *ret_continues);

/* Appends the pieces of the text alone, and stops when the list is full. */
void wordpiece_cut(const struct wordpiece *pieces, const char *text, size_t text_size,
                   struct token_list *tokens);

/* Writes [CLS], at most id_count_max - 2 pieces, [SEP], and returns how many ids that is.
 * *ret_truncated: some of the text did not fit. id_count_max is 2 at least. */
uint32_t wordpiece_encode(const struct wordpiece *pieces, const char *text, size_t text_size,
                          uint32_t *ids, uint32_t id_count_max, bool *ret_truncated);
