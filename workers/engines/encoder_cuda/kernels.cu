/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Kernels of one pass over memory each: what limits them is how fast rows come and go, so a thread
 * moves four cells at a time and everything between reading and writing stays on the chip.
 *
 * A norm gives a block to a row. The row waits in shared memory as f32 between the pass that sums,
 * the pass that sums squares of what is off the mean, and the one that writes.
 */

#include "workers/engines/encoder_cuda/kernels.h"

#include <cuda_bf16.h>

#define WARP 32u
#define ROW_THREADS_MAX 256u
#define FLAT_THREADS 256u
#define LANES 4u /* cells that a thread moves at once */

/* The reference divides by no less. */
#define LENGTH_MIN 1e-12f

static __device__ __forceinline__ float4 load4(const float *from)
{
    return *reinterpret_cast<const float4 *>(from);
}

static __device__ __forceinline__ void store4(float *to, float4 v)
{
    *reinterpret_cast<float4 *>(to) = v;
}

/* Four bf16 come and go in one piece of eight bytes. */
static __device__ __forceinline__ float4 load4(const __nv_bfloat16 *from)
{
    const uint2 raw = *reinterpret_cast<const uint2 *>(from);
    const float2 low = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162 *>(&raw.x));
    const float2 high = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162 *>(&raw.y));

    return make_float4(low.x, low.y, high.x, high.y);
}

static __device__ __forceinline__ void store4(__nv_bfloat16 *to, float4 v)
{
    const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y);
    const __nv_bfloat162 high = __floats2bfloat162_rn(v.z, v.w);

    *reinterpret_cast<uint2 *>(to) = make_uint2(*reinterpret_cast<const unsigned *>(&low),
                                                *reinterpret_cast<const unsigned *>(&high));
}

static __device__ __forceinline__ float4 add4(float4 a, float4 b)
{
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

static __device__ __forceinline__ float sum4(float4 v)
{
    return (v.x + v.y) + (v.z + v.w);
}

/* The sum over the block, known to each of its threads. All of them call it. */
static __device__ float block_sum(float value)
{
    __shared__ float parts[ROW_THREADS_MAX / WARP];
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float sum = 0;

    for (unsigned step = WARP / 2; step > 0; step /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, static_cast<int>(step));
    __syncthreads(); /* parts of an earlier sum are read */
    if (lane == 0)
        parts[warp] = value;
    __syncthreads();
    for (unsigned i = 0; i < blockDim.x / WARP; i++)
        sum += parts[i];
    return sum;
}

/* Writes norm(row) to x. Each thread has put its own columns into row, and `sum` is theirs. */
template <typename Cell>
static __device__ void write_norm(const float *row, float sum, const kernel_norm &norm, Cell *x)
{
    const float *gain = static_cast<const float *>(norm.gain);
    const float *bias = static_cast<const float *>(norm.bias);
    const float mean = block_sum(sum) / static_cast<float>(norm.hidden);
    float squares = 0, factor;

    for (unsigned i = threadIdx.x * LANES; i < norm.hidden; i += blockDim.x * LANES) {
        const float4 v = load4(row + i);
        const float4 off = make_float4(v.x - mean, v.y - mean, v.z - mean, v.w - mean);

        squares += (off.x * off.x + off.y * off.y) + (off.z * off.z + off.w * off.w);
    }
    factor = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(norm.hidden) + norm.eps);
    for (unsigned i = threadIdx.x * LANES; i < norm.hidden; i += blockDim.x * LANES) {
        const float4 v = load4(row + i), g = load4(gain + i), b = load4(bias + i);

        store4(x + i,
               make_float4((v.x - mean) * factor * g.x + b.x, (v.y - mean) * factor * g.y + b.y,
                           (v.z - mean) * factor * g.z + b.z, (v.w - mean) * factor * g.w + b.w));
    }
}

template <typename Cell>
static __global__ void embed_norm(const kernel_embed embed, const kernel_norm norm)
{
    extern __shared__ __align__(16) float row[];
    const uint32_t place = embed.places[blockIdx.x];
    const float *step = (place & KERNEL_PLACE_SECOND) != 0 ? static_cast<const float *>(embed.step)
                                                           : nullptr;
    const Cell *word = static_cast<const Cell *>(embed.words) +
                       static_cast<size_t>(embed.ids[blockIdx.x]) * norm.hidden;
    const Cell *position = static_cast<const Cell *>(embed.positions) +
                           static_cast<size_t>(place & ~KERNEL_PLACE_SECOND) * norm.hidden;
    float sum = 0;

    for (unsigned i = threadIdx.x * LANES; i < norm.hidden; i += blockDim.x * LANES) {
        float4 v = add4(load4(word + i), load4(position + i));

        if (step != nullptr)
            v = add4(v, load4(step + i));
        store4(row + i, v);
        sum += sum4(v);
    }
    write_norm(row, sum, norm,
               static_cast<Cell *>(embed.x) + static_cast<size_t>(blockIdx.x) * norm.hidden);
}

template <typename Cell>
static __global__ void add_norm(Cell *x, const Cell *y, const kernel_norm norm)
{
    extern __shared__ __align__(16) float row[];
    const size_t at = static_cast<size_t>(blockIdx.x) * norm.hidden;
    float sum = 0;

    for (unsigned i = threadIdx.x * LANES; i < norm.hidden; i += blockDim.x * LANES) {
        const float4 v = add4(load4(x + at + i), load4(y + at + i));

        store4(row + i, v);
        sum += sum4(v);
    }
    write_norm(row, sum, norm, x + at);
}

static __device__ __forceinline__ float act(float x, kernel_activation activation)
{
    switch (activation) {
    case KERNEL_GELU:
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case KERNEL_GELU_TANH:
        return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case KERNEL_RELU:
        return x > 0 ? x : 0;
    case KERNEL_TANH:
        break;
    }
    return tanhf(x);
}

template <typename Cell>
static __global__ void activate(Cell *y, uint64_t count, kernel_activation activation)
{
    const uint64_t i = (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * LANES;
    float4 v;

    if (i >= count)
        return;
    v = load4(y + i);
    store4(y + i, make_float4(act(v.x, activation), act(v.y, activation), act(v.z, activation),
                              act(v.w, activation)));
}

template <typename Cell> static __global__ void pool_rows(const kernel_pool pool)
{
    const uint32_t first = pool.offsets[blockIdx.x], end = pool.offsets[blockIdx.x + 1];
    const uint32_t last = pool.mean ? end : first + 1;
    const float share = pool.mean ? 1.0f / static_cast<float>(end - first) : 1.0f;
    const Cell *x = static_cast<const Cell *>(pool.x);
    float *to = pool.rows + static_cast<size_t>(blockIdx.x) * pool.hidden;
    float square = 0, factor;

    if (first == end) /* a slot without a text; nobody reads its row */
        return;
    for (unsigned i = threadIdx.x * LANES; i < pool.hidden; i += blockDim.x * LANES) {
        float4 sum = make_float4(0, 0, 0, 0);

        for (uint32_t t = first; t < last; t++)
            sum = add4(sum, load4(x + static_cast<size_t>(t) * pool.hidden + i));
        sum = make_float4(sum.x * share, sum.y * share, sum.z * share, sum.w * share);
        square += (sum.x * sum.x + sum.y * sum.y) + (sum.z * sum.z + sum.w * sum.w);
        store4(to + i, sum);
    }
    if (!pool.normalize)
        return;
    factor = 1.0f / fmaxf(sqrtf(block_sum(square)), LENGTH_MIN);
    for (unsigned i = threadIdx.x * LANES; i < pool.hidden; i += blockDim.x * LANES) {
        const float4 v = load4(to + i);

        store4(to + i, make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor));
    }
}

template <typename Cell> static __global__ void first_rows(const kernel_pool pool, Cell *y)
{
    const Cell *x = static_cast<const Cell *>(pool.x) +
                    static_cast<size_t>(pool.offsets[blockIdx.x]) * pool.hidden;
    Cell *to = y + static_cast<size_t>(blockIdx.x) * pool.hidden;

    if (pool.offsets[blockIdx.x] == pool.offsets[blockIdx.x + 1])
        return;
    for (unsigned i = threadIdx.x * LANES; i < pool.hidden; i += blockDim.x * LANES)
        store4(to + i, load4(x + i));
}

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
