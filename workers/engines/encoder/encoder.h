/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The encoder engine: texts in, vectors or scores out, for Hugging Face directories of the BERT
 * family.
 * Requests are encoder_texts', the arithmetic is bert's.
 *
 * Settings (engine_load.settings_json): {"dtype": "f32" | "bf16" | "auto", "batching": {…}}. f32 is
 * the default and agrees with the reference to a cosine of 0.9999 and better; bf16 to 0.999;
 * auto measures which is faster here (encoder_dtype.h). batching: encoder_batching.h.
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
