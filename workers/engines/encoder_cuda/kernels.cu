/* SPDX-License-Identifier: Apache-2.0 */

/* Launches of the kernels, which are in kernels.inc. */

#include "workers/engines/encoder_cuda/kernels.h"

#include <cuda_bf16.h>

#define KERNEL_SHARED_ROW(name) extern __shared__ __align__(16) float name[]
#include "workers/engines/encoder_cuda/kernels.inc"

/* Threads for a row: whole warps, and none without columns. */
static unsigned row_threads(uint32_t hidden)
{
    const unsigned wanted = (hidden / LANES + WARP - 1) / WARP * WARP;

    return wanted < ROW_THREADS_MAX ? wanted : ROW_THREADS_MAX;
}

static bool width_ok(uint32_t hidden)
{
    return hidden > 0 && hidden <= KERNEL_WIDTH_MAX && hidden % KERNEL_WIDTH_MULTIPLE == 0;
}

cudaError_t kernel_embed_norm(const kernel_embed *embed, const kernel_norm *norm,
                              cudaStream_t stream)
{
    const unsigned threads = row_threads(norm->hidden);
    const size_t shared = norm->hidden * sizeof(float);

    if (!width_ok(norm->hidden) || embed->row_count == 0)
        return cudaErrorInvalidValue;
    if (embed->cell == KERNEL_BF16)
        embed_norm<__nv_bfloat16><<<embed->row_count, threads, shared, stream>>>(*embed, *norm);
    else
        embed_norm<float><<<embed->row_count, threads, shared, stream>>>(*embed, *norm);
    return cudaGetLastError();
}

cudaError_t kernel_add_norm(void *x, const void *y, uint32_t row_count, kernel_cell cell,
                            const kernel_norm *norm, cudaStream_t stream)
{
    const unsigned threads = row_threads(norm->hidden);
    const size_t shared = norm->hidden * sizeof(float);

    if (!width_ok(norm->hidden) || row_count == 0)
        return cudaErrorInvalidValue;
    if (cell == KERNEL_BF16)
        add_norm<<<row_count, threads, shared, stream>>>(
            static_cast<__nv_bfloat16 *>(x), static_cast<const __nv_bfloat16 *>(y), *norm);
    else
        add_norm<<<row_count, threads, shared, stream>>>(static_cast<float *>(x),
                                                         static_cast<const float *>(y), *norm);
    return cudaGetLastError();
}

cudaError_t kernel_activate(void *y, uint64_t count, kernel_cell cell, kernel_activation activation,
                            cudaStream_t stream)
{
    const uint64_t blocks = (count / LANES + FLAT_THREADS - 1) / FLAT_THREADS;

    if (count == 0 || count % KERNEL_WIDTH_MULTIPLE != 0 || blocks > INT32_MAX)
        return cudaErrorInvalidValue;
    if (cell == KERNEL_BF16)
        activate<<<static_cast<unsigned>(blocks), FLAT_THREADS, 0, stream>>>(
            static_cast<__nv_bfloat16 *>(y), count, activation);
    else
        activate<<<static_cast<unsigned>(blocks), FLAT_THREADS, 0, stream>>>(
            static_cast<float *>(y), count, activation);
    return cudaGetLastError();
}

cudaError_t kernel_pool_rows(const struct kernel_pool *pool, cudaStream_t stream)
{
    const unsigned threads = row_threads(pool->hidden);

    if (!width_ok(pool->hidden) || pool->text_count == 0)
        return cudaErrorInvalidValue;
    if (pool->cell == KERNEL_BF16)
        pool_rows<__nv_bfloat16><<<pool->text_count, threads, 0, stream>>>(*pool);
    else
        pool_rows<float><<<pool->text_count, threads, 0, stream>>>(*pool);
    return cudaGetLastError();
}

cudaError_t kernel_first_rows(const struct kernel_pool *pool, void *y, cudaStream_t stream)
{
    const unsigned threads = row_threads(pool->hidden);

    if (!width_ok(pool->hidden) || pool->text_count == 0)
        return cudaErrorInvalidValue;
    if (pool->cell == KERNEL_BF16)
        first_rows<<<pool->text_count, threads, 0, stream>>>(*pool,
                                                             static_cast<__nv_bfloat16 *>(y));
    else
        first_rows<<<pool->text_count, threads, 0, stream>>>(*pool, static_cast<float *>(y));
    return cudaGetLastError();
}
