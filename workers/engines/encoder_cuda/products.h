/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Matrix products on the device: y = act(x W' + b), cuBLASLt with the bias, and an activation that
 * it has, in its epilogue. Sums are f32; f32 cells are multiplied as f32, not as tf32.
 *
 * A kind of product is opened once, for all layers that have one of its shape. What cuBLASLt thinks
 * best for it is asked for once a bucket of rows (run_plan.h) and kept; its GELU is the one by
 * tanh, so a model with the exact one takes PRODUCT_BIAS and kernels.h's; so does f32 with either,
 * for how near that tanh is, cuBLASLt does not say.
 *
 *     products_open() -> product_open() … -> product_prepare(rows) -> product_run() on a stream
 *
 * Nothing behind opening takes memory, of the host or of the device. product_prepare() is apart
 * because a graph that is being captured should meet nothing but launches.
 *
 * Thread: the one that owns the context.   Tests: tests/gpu/test_products.c
 */

#include <cublasLt.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum product_epilogue { PRODUCT_BIAS, PRODUCT_BIAS_GELU_TANH, PRODUCT_BIAS_RELU };

struct product_shape {
    uint32_t input, output; /* columns of x, and of y */
    enum product_epilogue epilogue;
    bool bf16;    /* x and W; y and b unless f32_out */
    bool f32_out; /* y and b */
};

struct products;
struct product;

int products_open(struct products **ret_products, struct err *err) MUST_CHECK;
void products_close(struct products **products_p);

int product_open(struct products *products, const struct product_shape *shape,
                 struct product **ret_product, struct err *err) MUST_CHECK;
void product_close(struct product **product_p);

struct product_memory {
    const void *x;      /* row_count of input */
    const void *weight; /* output rows of input, as checkpoints have it */
    const void *bias;
    void *y;         /* row_count of output; not x */
    void *workspace; /* RUN_WORKSPACE_SIZE */
};

/* Finds the algorithm for so many rows; kept until another number of the same bucket is asked for.
 * Of the memory only how it is aligned matters. */
int product_prepare(struct product *product, uint32_t row_count,
                    const struct product_memory *memory, struct err *err) MUST_CHECK;

/* row_count as prepared. */
int product_run(struct product *product, uint32_t row_count, const struct product_memory *memory,
                cudaStream_t stream, struct err *err) MUST_CHECK;
