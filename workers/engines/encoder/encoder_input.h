/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A request's input: the body of one of the four routes, checked.
 *
 *     POST /v1/embeddings   as OpenAI's
 *       input            a text, or an array of 1 to ENCODER_TEXT_COUNT_MAX texts
 *       encoding_format  "float" (default) or "base64" (f32, little-endian)
 *       dimensions       only the model's own
 *       truncate         true (default): texts are cut at the model's length, and the answer says
 *                        which; false: a longer text is an error
 *       model, user      accepted, not looked at
 *
 *     POST /rerank          query and texts: each pair of the query and a text is one input
 *       return_text      false (default)
 *     POST /predict         inputs: a text, or an array of arrays of one text or of two
 *     POST /predict_tokens  inputs: a text, or an array of arrays of one text
 *       aggregation_strategy  "none" (default), "simple", "first", "average" or "max"
 *     the three of them
 *       raw_scores            false (default): probabilities
 *       truncate              false (default): a longer text is an error
 *       truncation_direction  "Right" (default): the end is cut off; or "Left"
 *
 * Other fields are named in the "warnings" of an answer to /v1/embeddings; the answers of the other
 * routes are arrays without room for them. What is wrong is ERR_MALFORMED, ERR_RANGE, ERR_TOO_BIG
 * or ERR_UNSUPPORTED: the user's fault, and the text names field, value and limit.
 *
 * Thread: any.   Tests: tests/unit/test_encoder_input.c, tests/fuzz/fuzz_encoder_input.c
 */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define ENCODER_TEXT_COUNT_MAX 2048u
#define ENCODER_WARNING_COUNT_MAX 8u
#define ENCODER_WARNING_NAME_MAX 64

enum encoder_route {
    ENCODER_ROUTE_EMBEDDINGS,
    ENCODER_ROUTE_RERANK,
    ENCODER_ROUTE_PREDICT,
    ENCODER_ROUTE_PREDICT_TOKENS,
    ENCODER_ROUTE_COUNT,
};

/* "POST /v1/embeddings" … */
const char *encoder_route_name(enum encoder_route route);

/* By method and path as they came; what is behind a '?' does not count. */
bool encoder_route_find(const char *text, enum encoder_route *ret_route);

enum encoder_aggregation {
    ENCODER_AGGREGATE_NONE,
    ENCODER_AGGREGATE_SIMPLE,
    ENCODER_AGGREGATE_FIRST,
    ENCODER_AGGREGATE_AVERAGE,
    ENCODER_AGGREGATE_MAX,
};

struct encoder_input {
    json_t *json; /* owns the texts */
    enum encoder_route route;
    uint32_t text_count;
    bool base64;
    bool truncate;
    bool truncate_left;
    bool raw_scores;
    bool return_text;
    enum encoder_aggregation aggregation;
    json_t *warnings; /* array of texts; NULL: none */
};

int encoder_input_parse(const void *bytes, size_t size, enum encoder_route route,
                        uint32_t dimension_count, struct encoder_input *ret_input,
                        struct err *err) MUST_CHECK;
void encoder_input_done(struct encoder_input *input);

/* Borrowed from the input; not terminated where it holds a NUL. */
const char *encoder_input_text(const struct encoder_input *input, uint32_t index, size_t *ret_size);

/* The second text of a pair; NULL where there is none. */
const char *encoder_input_second(const struct encoder_input *input, uint32_t index,
                                 size_t *ret_size);
