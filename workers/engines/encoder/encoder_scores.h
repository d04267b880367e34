/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A request's output where the model has a head: the answers of three routes.
 *
 *     /rerank          [{"index":1,"score":0.98,"text":"…"}, …]     best first
 *     /predict         [[{"label":"joy","score":0.93}, …], …]       per input all labels, best
 * first /predict_tokens  [[{"token":"##rd","token_id":2098,"start":4,"end":6,
 *                         "results":{"B-PER":0.99}}, …], …]
 *
 * Scores are probabilities, or the model's own numbers with raw_scores. Of a text: a softmax over
 * its labels; of one label, and of labels that stand each for itself, a sigmoid. Of a token: a
 * softmax; its results are then the best label alone, else all. start and end count characters
 * (code points) of the input; what the model has around a text is at 0 and 0.
 *
 * With an aggregation tokens become entities, as the reference's pipeline makes them
 * (encoder_entities.h): "token" is then their part of the input, and token_id 0.
 *
 * Thread: any.   Tests: tests/unit/test_encoder_kinds.c
 */

#include "base/buf.h"
#include "workers/engines/encoder/encoder_config.h"
#include "workers/engines/encoder/encoder_input.h"
#include "workers/engines/encoder/tokenizer.h"

struct encoder_scores {
    const struct encoder_input *input;
    const struct encoder_labels *labels;
    bool multi_label;
    const float *rows; /* of labels->count numbers: one a text, or one a token */

    /* For /predict_tokens. */
    const struct tokenizer *tokenizer;
    const struct token_list *tokens;
    const uint32_t *offsets;
};

/* Appends; ERR_INTERNAL when a number is not finite, ERR_TOO_BIG past the limit of to. */
int encoder_scores_write(const struct encoder_scores *scores, struct buf *to,
                         struct err *err) MUST_CHECK;

/* An upper bound of what encoder_scores_write() makes, of an input of so many bytes. */
uint64_t encoder_scores_size_max(const struct encoder_input *input, size_t input_size,
                                 const struct encoder_labels *labels, uint64_t token_count);

/* In place, as the reference does it. */
void encoder_softmax(float *row, uint32_t count);
void encoder_sigmoid(float *row, uint32_t count);
