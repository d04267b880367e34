/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What of the forward pass is neither a matrix product nor attention, as CUDA kernels behind a C
 * face. bert.h says what they must compute; sums are f32 whatever the cells are.
 *
 *     embed_norm     x = norm(word[id] + position[t] + step of the second text)
 *     add_norm       x = norm(x + y)
 *     activate       y = act(y)                      where no epilogue of cuBLASLt has it
 *     pool           row = mean or first of x, scaled to length 1 where it is asked for
 *     first_rows     y = x[first token of each text]
 *
 * All pointers are device memory, 16-byte aligned; `hidden` is a multiple of KERNEL_WIDTH_MULTIPLE
 * and at most KERNEL_WIDTH_MAX. Calls only queue work on the stream; what they return is whether
 * that was possible (device_error.h says what it means).
 *
 * Thread: the one that owns the context.   Tests: tests/cuda/test_kernels.c, test_kernels_host.cc,
 * tests/gpu/test_kernels.c
 */

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KERNEL_WIDTH_MULTIPLE 8u
#define KERNEL_WIDTH_MAX 8192u

enum kernel_cell { KERNEL_F32, KERNEL_BF16 };

enum kernel_activation { KERNEL_GELU, KERNEL_GELU_TANH, KERNEL_RELU, KERNEL_TANH };

struct kernel_norm {
    const void *gain, *bias; /* f32, hidden of them */
    uint32_t hidden;
    float eps;
};

struct kernel_embed {
    const void *words, *positions; /* tables of cells, hidden wide */
    const void *step;              /* f32: type 1 less type 0; NULL: no second text is marked */
    /* A row each. Bit 31 of a place: of the second text; the rest is its row of positions. */
    const uint32_t *ids, *places;
    void *x;
    uint32_t row_count;
    enum kernel_cell cell;
};

#define KERNEL_PLACE_SECOND 0x80000000u

struct kernel_pool {
    const void *x;
    const uint32_t *offsets; /* text_count + 1 rows of x; a text without rows gets none */
    float *rows;             /* text_count of hidden */
    uint32_t text_count, hidden;
    bool mean; /* else the first token's */
    bool normalize;
    enum kernel_cell cell;
};

cudaError_t kernel_embed_norm(const struct kernel_embed *embed, const struct kernel_norm *norm,
                              cudaStream_t stream);

/* x of row_count rows, in place. */
cudaError_t kernel_add_norm(void *x, const void *y, uint32_t row_count, enum kernel_cell cell,
                            const struct kernel_norm *norm, cudaStream_t stream);

/* `count` cells, a multiple of KERNEL_WIDTH_MULTIPLE. */
cudaError_t kernel_activate(void *y, uint64_t count, enum kernel_cell cell,
                            enum kernel_activation activation, cudaStream_t stream);

cudaError_t kernel_pool_rows(const struct kernel_pool *pool, cudaStream_t stream);

/* As pool with the first token, in cells. */
cudaError_t kernel_first_rows(const struct kernel_pool *pool, void *y, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
