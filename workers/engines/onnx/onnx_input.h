/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A request's tensors, from JSON:
 *
 *     {"inputs": {"x": [[0.5, 1], [2, 3]],
 *                 "y": {"shape": [1, 3], "dtype": "float32", "data": [1, 2, 3]},
 *                 "z": {"shape": [1, 3], "dtype": "float32", "data": "<base64>"}},
 *      "outputs": ["probabilities"],          those that are wanted; default: all
 *      "encoding": "list" | "base64"}         of the answer; default: list
 *
 * A tensor is nested lists, or an object: "data" is lists (flat, or nested as the shape), or a text
 * with the elements' bytes, little-endian, in base64; "dtype" has to be the model's and may be left
 * out; "shape" may be left out where nested lists tell it. Every declared axis has to fit. Numbers
 * are converted only where nothing but precision is lost: 1.5 is no int64, 300 no uint8.
 *
 * What is wrong is the user's fault, and the text names the field, the value and the limit.
 *
 * Thread: any.   Tests: tests/unit/test_onnx_input.c, tests/fuzz/fuzz_onnx_input.c
 */

#include "workers/engines/onnx/onnx_file.h"

#define ONNX_TENSORS_SIZE_MAX (256ull << 20) /* bytes of all tensors of a request */

struct onnx_input {
    struct onnx_tensor tensors[ONNX_INPUT_COUNT_MAX]; /* in the model's order */
    bool wanted[ONNX_OUTPUT_COUNT_MAX];
    bool base64;
};

/* offered: the outputs that may be asked for. */
int onnx_input_parse(const struct onnx_model *model, const bool *offered, const void *bytes,
                     size_t size, struct onnx_input *ret_input, struct err *err) MUST_CHECK;
void onnx_input_done(struct onnx_input *input);
