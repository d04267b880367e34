/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A request's answer, as JSON:
 *
 *     {"outputs": {"probabilities": {"dtype": "float32", "shape": [1, 2], "data": [[0.25, 0.75]]}}}
 *
 * With "encoding": "base64", "data" is the elements' bytes, little-endian. Lists say every number
 * so that it comes back bit for bit; a number that is not finite has no form in JSON and is an
 * error there.
 *
 * Thread: any.   Tests: tests/unit/test_onnx_input.c
 */

#include "base/buf.h"
#include "workers/engines/onnx/onnx_file.h"

#define ONNX_OUTPUT_SIZE_MAX (64u << 20) /* bytes of an answer */

/* Tensors in the model's order, those that are wanted filled in. ERR_RANGE: a number that is not
 * finite; ERR_TOO_BIG: past the limit of to. */
int onnx_output_write(const struct onnx_model *model, const struct onnx_tensor *tensors,
                      const bool *wanted, bool base64, struct buf *to, struct err *err) MUST_CHECK;
