/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What `dtype: auto` means on this CPU. The name of an instruction set does not tell: with
 * AVX512_BF16 and no AMX, bf16 products ran at half the rate of f32 on one CPU and at nearly twice
 * on another. So one tile of the model's widest product is measured in both at load, and bf16,
 * which is less exact, has to be faster by ENCODER_DTYPE_GAIN_LEAST.
 *
 * Thread: any.   Tests: tests/unit/test_encoder_dtype.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "workers/engines/encoder/gemm.h"

#define ENCODER_DTYPE_GAIN_LEAST 1.2
#define ENCODER_DTYPE_TEXT_SIZE 64

struct encoder_dtype_choice {
    bool bf16;
    char text[ENCODER_DTYPE_TEXT_SIZE]; /* "bf16 (auto: bf16 is 1.83 times as fast)" */
};

/* What is asked of the CPU; gemm_measure() is the real one. */
typedef int encoder_dtype_measure(const struct gemm_shape *shape, uint64_t *ret_ns,
                                  struct err *err);

/* Measures nothing where has_bf16 is false. Fails as `measure` does. */
int encoder_dtype_choose(const struct encoder_config *config, bool has_bf16,
                         encoder_dtype_measure *measure, struct encoder_dtype_choice *ret_choice,
                         struct err *err) MUST_CHECK;
