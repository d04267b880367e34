/* SPDX-License-Identifier: Apache-2.0 */
#include "workers/engines/encoder_cuda/attention_kernel.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#define WARP 32
#define WARPS 4 /* rows of a block */
#define PIECES (ATTENTION_HEAD_DIM_MAX / WARP)
#define ALL_LANES 0xffffffffu

struct layout {
    const int *lengths, *offsets; /* of texts; offsets in out, in numbers */
    const float *distances;       /* NULL: none */
    unsigned head_count, head_dim;
    unsigned distance_zero; /* index of distance 0 */
    float scale;
};

static __device__ float load(const float *at)
{
    return *at;
}

static __device__ float load(const __nv_bfloat16 *at)
{
    return __bfloat162float(*at);
}

static __device__ void store(float *at, float value)
{
    *at = value;
}

static __device__ void store(__nv_bfloat16 *at, float value)
{
    *at = __float2bfloat16_rn(value);
}

static __device__ float warp_max(float value)
{
    for (int step = WARP / 2; step > 0; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, step));
    return value;
}

static __device__ float warp_sum(float value)
{
    for (int step = WARP / 2; step > 0; step /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

/* grid: rows of a text / WARPS, heads, texts. block: WARP x WARPS. */
template <typename number>
static __global__ void attention_rows(const number *qkv, number *out, struct layout layout)
{
    __shared__ float queries[WARPS][ATTENTION_HEAD_DIM_MAX];
    const unsigned lane = threadIdx.x, dim = layout.head_dim;
    const unsigned hidden = layout.head_count * dim, length = layout.lengths[blockIdx.z];
    const unsigned query = blockIdx.x * WARPS + threadIdx.y;
    const size_t first = layout.offsets[blockIdx.z] / hidden; /* row of the text */
    const number *keys = qkv + first * 3 * hidden + hidden + blockIdx.y * dim;
    const number *values = keys + hidden;
    float *q = queries[threadIdx.y];
    float most = -INFINITY, sum = 0, sums[PIECES] = {0};

    if (query >= length)
        return; /* all of the warp */
    for (unsigned d = lane; d < dim; d += WARP)
        q[d] = load(qkv + (first + query) * 3 * hidden + blockIdx.y * dim + d) * layout.scale;
    __syncwarp();

    for (unsigned start = 0; start < length; start += WARP) {
        const unsigned key = start + lane, count = min(WARP, length - start);
        float score = -INFINITY, most_before = most, weight;

        if (key < length) {
            const number *k = keys + (size_t)key * 3 * hidden;

            score = 0;
            for (unsigned d = 0; d < dim; d++)
                score += q[d] * load(k + d);
            if (layout.distances)
                score += layout.distances[(size_t)blockIdx.y * (2 * layout.distance_zero + 1) +
                                          layout.distance_zero + key - query];
        }
        most = fmaxf(most, warp_max(score));
        weight = expf(score - most);
        sum = sum * expf(most_before - most) + warp_sum(weight);
        for (unsigned piece = 0; piece < PIECES; piece++)
            sums[piece] *= expf(most_before - most);
        for (unsigned i = 0; i < count; i++) {
            const float w = __shfl_sync(ALL_LANES, weight, i);
            const number *v = values + (size_t)(start + i) * 3 * hidden;

#pragma unroll
            for (unsigned piece = 0; piece < PIECES; piece++)
                if (piece * WARP + lane < dim)
                    sums[piece] += w * load(v + piece * WARP + lane);
        }
    }
#pragma unroll
    for (unsigned piece = 0; piece < PIECES; piece++)
        if (piece * WARP + lane < dim)
            store(out + (first + query) * hidden + blockIdx.y * dim + piece * WARP + lane,
                  sums[piece] / sum);
}

extern "C" int attention_kernel_run(const struct attention_kernel_call *call,
                                    struct CUstream_st *stream, struct err *err)
{
    const struct attention_shape *shape = &call->shape;
    const struct attention_index at = attention_index_of(call->bucket.texts);
    const char *index = static_cast<const char *>(call->index);
    const dim3 block(WARP, WARPS);
    const dim3 grid((call->bucket.length + WARPS - 1) / WARPS, shape->head_count,
                    call->bucket.texts);
    struct layout layout = {};
    cudaError_t status;

    layout.lengths = reinterpret_cast<const int *>(index + at.lengths);
    layout.offsets = reinterpret_cast<const int *>(index + at.out_offsets);
    layout.distances = call->distances;
    layout.head_count = shape->head_count;
    layout.head_dim = shape->head_dim;
    layout.distance_zero = shape->length_max - 1;
    layout.scale = 1.0f / sqrtf(static_cast<float>(shape->head_dim));
    if (shape->dtype == ATTENTION_F32)
        attention_rows<<<grid, block, 0, stream>>>(static_cast<const float *>(call->qkv),
                                                   static_cast<float *>(call->out), layout);
    else
        attention_rows<<<grid, block, 0, stream>>>(static_cast<const __nv_bfloat16 *>(call->qkv),
                                                   static_cast<__nv_bfloat16 *>(call->out), layout);
    status = cudaGetLastError();
    if (status == cudaSuccess)
        return 0;
    return err_set_at(err, status == cudaErrorMemoryAllocation ? ERR_MEMORY : ERR_DEVICE, __FILE__,
                      __LINE__, "attention: launch: %s", cudaGetErrorString(status));
}
