/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * From labels of tokens to entities, as transformers' token-classification pipeline does it:
 *
 *     simple   neighbours of one kind are one entity; "B-" begins a new one
 *     first    the same over words: a word has the label of its first token,
 *     average  … the best label of its tokens' average,
 *     max      … the label of its surest token
 *
 * "B-PER" and "I-PER" are of the kind PER; a label without either is one that goes on. An entity's
 * score is the average of its parts', and those of the kind "O" are left out.
 *
 * Pure. Thread: any.   Tests: tests/unit/test_encoder_kinds.c
 */

#include "workers/engines/encoder/encoder_config.h"
#include "workers/engines/encoder/encoder_input.h"
#include "workers/engines/encoder/tokens.h"

struct encoder_entity {
    const char *kind; /* inside of a label's name */
    float score;
    struct token_span span;
};

/* One text: token_count rows of labels->count scores, its tokens' spans, and which of them go on
 * with the word before. Writes at most token_count entities and returns their number. */
uint32_t encoder_entities(const struct encoder_labels *labels, enum encoder_aggregation aggregation,
                          const float *rows, const struct token_span *spans, const bool *continues,
                          uint32_t token_count, struct encoder_entity *entities);
