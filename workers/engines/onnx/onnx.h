/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The onnx engine: ONNX files through ONNX Runtime, on the CPU.
 *
 *     load     settings -> file walked (onnx_file) -> library opened, session made (onnx_ort)
 *     submit   tensor task: JSON -> tensors (onnx_input), queued (onnx_queue)
 *              text task:   encoder_texts
 *     step     one run of joined requests, when it is due -> answers (onnx_output)
 *
 * The text task is for directories with a tokenizer (tokenizer.h) whose graph is a text encoder:
 * same input, same answer as the encoder engine's. Everything else is tensors in, tensors out.
 *
 * Failures of a load name the file, key, tensor or provider; settings: onnx_settings.h. Failures of
 * a request: bad_input for what the user sent, model_error with the library's text, oom when memory
 * was short, expired, canceled.
 *
 * Tests: tests/unit/test_onnx.c, tests/stack/test_onnx.py
 */

#include "workers/engine.h"

#define ONNX_BATCH_ITEM_DEFAULT 32u
#define ONNX_BATCH_TOKEN_DEFAULT 2048u

extern const struct engine_api onnx_api;
