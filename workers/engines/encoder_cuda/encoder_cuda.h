/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The encoder engine with a CUDA device behind it: encoder.h says what it takes and answers.
 *
 * Settings: as encoder.h has them, but that bf16 is the default, and what auto means; f32 is the
 * reference. MPNet's attention is a kernel of ours in both. Where HEADRACE_CUDA_PLANS names a
 * directory, attention's plans are kept there from one start to the next; else in headrace-cuda of
 * XDG_CACHE_HOME, or of HOME's .cache.
 *
 * A device that is not there fails the load with the sentence of device_need.h.
 *
 * Tests: tests/cuda/test_encoder_cuda.c (no device), tests/gpu/test_model.c
 */

#include "workers/engine.h"

extern const struct engine_api encoder_cuda_api;
