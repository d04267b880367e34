/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A request's input: the body of OpenAI's POST /v1/embeddings, checked.
 *
 *     input            a text, or an array of 1 to ENCODER_TEXT_COUNT_MAX texts
 *     encoding_format  "float" (default) or "base64" (f32, little-endian)
 *     dimensions       only the model's own
 *     truncate         true (default): texts are cut at the model's length, and the answer says
 *                      which; false: a longer text is an error
 *     model, user      accepted, not looked at
 *
 * Other fields are named in the answer's "warnings". What is wrong is ERR_MALFORMED, ERR_RANGE,
 * ERR_TOO_BIG or ERR_UNSUPPORTED: the user's fault, and the text names field, value and limit.
 *
 * Thread: any.   Tests: tests/unit/test_encoder_input.c
 */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define ENCODER_TEXT_COUNT_MAX 2048u
#define ENCODER_WARNING_COUNT_MAX 8u
#define ENCODER_WARNING_NAME_MAX 64

struct encoder_input {
    json_t *json; /* owns the texts */
    uint32_t text_count;
    bool base64;
    bool truncate;
    json_t *warnings; /* array of texts; NULL: none */
};

int encoder_input_parse(const void *bytes, size_t size, uint32_t dimension_count,
                        struct encoder_input *ret_input, struct err *err) MUST_CHECK;
void encoder_input_done(struct encoder_input *input);

/* Borrowed from the input; not terminated where it holds a NUL. */
const char *encoder_input_text(const struct encoder_input *input, uint32_t index, size_t *ret_size);
