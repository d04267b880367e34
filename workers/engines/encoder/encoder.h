/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The encoder engine: texts in, vectors out, for Hugging Face directories of the BERT family.
 *
 *     submit   JSON -> texts -> ids (encoder_input, wordpiece), queued (encoder_queue)
 *     step     one batch of at most a budget of tokens -> bert_run -> answers (encoder_output)
 *
 * Settings (engine_load.settings_json): {"dtype": "f32" | "bf16" | "auto"}. f32 is the default
 * and agrees with the reference to a cosine of 0.9999 and better; bf16 is for CPUs with AMX
 * (0.999); auto takes bf16 there and f32 elsewhere.
 *
 * Failures of a request: bad_input for what the user sent, model_error for a vector that is not
 * finite, oom with its batch when memory is short, expired, canceled.
 *
 * Tests: tests/unit/test_encoder.c
 */

#include "workers/engine.h"

#define ENCODER_REQ_COUNT_MAX 1024u
#define ENCODER_REQ_COUNT_DEFAULT 64u
#define ENCODER_INPUT_SIZE_MAX (64u << 20)
#define ENCODER_INPUT_SIZE_DEFAULT (4u << 20)
#define ENCODER_OUTPUT_SIZE_MAX (64u << 20)
#define ENCODER_BATCH_TOKEN_MAX 65536u

extern const struct engine_api encoder_api;
