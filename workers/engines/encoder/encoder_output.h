/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A request's output: the body of OpenAI's answer to POST /v1/embeddings.
 *
 *     {"object":"list",
 *      "data":[{"object":"embedding","index":0,"embedding":[0.0123, …]}, …],
 *      "model":"…","usage":{"prompt_tokens":7,"total_tokens":7},
 *      "truncated":[false, …],"warnings":["…"]}
 *
 * "truncated" is ours: one boolean a text. "warnings" is there when there are some.
 *
 * Numbers have nine significant digits, enough for every f32 to come back bit for bit.
 *
 * Thread: any.   Tests: tests/unit/test_encoder_output.c
 */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"

/* The longest text of an f32: sign, nine digits, point, exponent; rounded up. */
#define ENCODER_FLOAT_SIZE_MAX 24u

struct encoder_output {
    const char *model_json; /* the model's name as a JSON text, quotes included */
    const float *vectors;   /* text_count rows */
    const bool *truncated;  /* text_count */
    uint32_t text_count;
    uint32_t dimension_count;
    uint64_t token_count;
    bool base64;
    const json_t *warnings; /* NULL: none */
};

/* Appends; ERR_INTERNAL when a vector holds a number that is not finite (JSON has none),
 * ERR_TOO_BIG past the limit of to. */
int encoder_output_write(const struct encoder_output *output, struct buf *to,
                         struct err *err) MUST_CHECK;

/* Writes the value without a terminator and returns its size, ENCODER_FLOAT_SIZE_MAX at most. */
size_t encoder_float_write(float value, char *to);

/* The bytes as a JSON text in base64, quotes included. */
void encoder_base64_write(const void *data, size_t size, struct buf *to);

/* An upper bound of what encoder_output_write() makes, without model name and warnings. */
uint64_t encoder_output_size_max(uint32_t text_count, uint32_t dimension_count);
