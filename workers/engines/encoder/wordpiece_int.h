/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What wordpiece.c (encoding) and wordpiece_load.c (files) share. */

#include "workers/engines/encoder/wordpiece.h"

#define WORDPIECE_CODE_POINT_COUNT 0x110000u

struct wordpiece_slot {
    uint32_t hash; /* 0: free */
    uint32_t id;
    uint32_t text_offset;
    uint16_t size;
    bool continues; /* "##x" in the file; the text here is "x" */
};

struct wordpiece {
    struct wordpiece_options options;
    uint32_t unk_id, cls_id, sep_id;
    uint32_t id_count;
    struct wordpiece_slot *slots; /* open addressing, at most half full */
    uint32_t slot_mask;
    uint32_t *slot_of_id; /* index plus one; 0: no slot has that id */
    uint32_t piece_size_max;
    char *texts; /* all pieces, back to back */
    size_t texts_size, texts_room;
    bool special_starts[256]; /* first bytes of options.specials */
};

/* Makes an empty table for token_count tokens of texts_size bytes together. */
struct wordpiece *wordpiece_alloc(const struct wordpiece_options *options, uint32_t token_count,
                                  size_t texts_size);

/* Adds one token of the vocabulary as its file spells it. */
int wordpiece_add(struct wordpiece *pieces, const char *token, size_t token_size, uint32_t id,
                  struct err *err) MUST_CHECK;

/* Whether the vocabulary has this whole token, and its id. */
bool wordpiece_find(const struct wordpiece *pieces, const char *token, uint32_t *ret_id);

/* Looks up unk, cls, sep and the specials; to be called when all tokens are in. */
int wordpiece_finish(struct wordpiece *pieces, struct err *err) MUST_CHECK;
