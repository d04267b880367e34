/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: the kernel that is attention's reference on a device reads and writes the right numbers.
 * Method: its source, compiled for the host: 32 threads are the lanes of a warp, barriers its
 * shuffles. Some rows of texts of several lengths, against a loop in double. What the device makes
 * of the source: tests/gpu/test_attention.c.
 */

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <thread>
#include <vector>

extern "C" {
#include <cmocka.h>

#include "base/rng.h"
}

#include "workers/engines/encoder_cuda/attention_shape.h"

/* --- what CUDA gives, for a host --- */

#define __device__
#define __global__
#define __shared__ static /* one warp at a time */

struct three {
    unsigned x, y, z;
};
static thread_local three threadIdx, blockIdx;

struct __nv_bfloat16 {
    uint16_t bits;
};

static float __bfloat162float(__nv_bfloat16 number)
{
    const uint32_t bits = static_cast<uint32_t>(number.bits) << 16;
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static __nv_bfloat16 __float2bfloat16_rn(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

static pthread_barrier_t warp;
static float said[32];

static void __syncwarp()
{
    (void)pthread_barrier_wait(&warp);
}

static float __shfl_sync(unsigned, float value, unsigned lane)
{
    float got;

    said[threadIdx.x] = value;
    __syncwarp();
    got = said[lane];
    __syncwarp();
    return got;
}

static float __shfl_xor_sync(unsigned lanes, float value, int step)
{
    return __shfl_sync(lanes, value, threadIdx.x ^ static_cast<unsigned>(step));
}

#include "workers/engines/encoder_cuda/attention_rows.inc"

/* --- batches --- */

static const uint32_t offsets[] = {0, 1, 34, 66, 136};
#define TEXTS 4
#define ROWS 136
#define GUARD_ROWS 4

static const struct attention_shape base = {2, 0, ATTENTION_F32, ROWS, 8, 100};

struct batch {
    struct attention_shape shape;
    size_t hidden;
    std::vector<float> qkv, distances; /* distances empty: none */
    std::vector<three> rows;           /* query, head, text */
};

static void batch_make(struct batch *batch, uint32_t head_dim, bool has_distances)
{
    struct rng rng;

    rng_seed(&rng, head_dim);
    batch->shape = base;
    batch->shape.head_dim = head_dim;
    batch->hidden = batch->shape.head_count * head_dim;
    batch->qkv.assign(3 * batch->hidden * (ROWS + GUARD_ROWS), NAN);
    for (size_t i = 0; i < 3 * batch->hidden * ROWS; i++)
        /* few bits, so that bf16 holds each */
        batch->qkv[i] = static_cast<float>(static_cast<int>(rng_below(&rng, 129)) - 64) / 32;
    if (has_distances)
        for (uint32_t i = 0; i < base.head_count * (2 * base.length_max - 1); i++)
            batch->distances.push_back(static_cast<float>(rng_unit(&rng)));
    for (unsigned text = 0; text < TEXTS; text++) {
        const unsigned length = offsets[text + 1] - offsets[text];

        for (unsigned query = 0; query<length; query += length> 3 ? length / 3 : 1)
            batch->rows.push_back({query, query % base.head_count, text});
        batch->rows.push_back({length - 1, 1, text});
    }
}

/* One lane: the batch's rows one by one, then what lies behind a text and an empty slot. */
template <typename number>
static void run_lane(const struct batch *batch, const struct layout *layout, const number *qkv,
                     number *out, unsigned lane)
{
    for (const three &row : batch->rows) {
        threadIdx = {lane, row.x % WARPS, 0};
        blockIdx = {row.x / WARPS, row.y, row.z};
        attention_rows<number>(qkv, out, *layout);
        __syncwarp();
    }
    threadIdx = {lane, 0, 0};
    blockIdx = {0, 0, TEXTS};
    attention_rows<number>(qkv, out, *layout);
    threadIdx.y = offsets[1];
    blockIdx = {0, 0, 0};
    attention_rows<number>(qkv, out, *layout);
}

static void reference(const struct batch *batch, const three &row, std::vector<double> *to)
{
    const uint32_t dim = batch->shape.head_dim, first = offsets[row.z];
    const uint32_t length = offsets[row.z + 1] - first;
    const float *at = batch->qkv.data() + row.y * dim;
    const size_t pitch = 3 * batch->hidden;
    double sum = 0;

    to->assign(dim, 0);
    for (uint32_t key = 0; key < length; key++) {
        double score = 0, weight;

        for (uint32_t d = 0; d < dim; d++)
            score += static_cast<double>(at[(first + row.x) * pitch + d]) *
                     static_cast<double>(at[(first + key) * pitch + batch->hidden + d]);
        score /= sqrt(dim);
        if (!batch->distances.empty())
            score += static_cast<double>(batch->distances[row.y * (2 * base.length_max - 1) +
                                                          base.length_max - 1 + key - row.x]);
        weight = exp(score);
        sum += weight;
        for (uint32_t d = 0; d < dim; d++)
            (*to)[d] += weight *
                        static_cast<double>(at[(first + key) * pitch + 2 * batch->hidden + d]);
    }
    for (double &number : *to)
        number /= sum;
}

/* Numbers of the rows that were asked for are right, all others untouched (NaN). */
template <typename number>
static void check_out(const struct batch *batch, std::vector<number> *out, double tolerance)
{
    std::vector<double> want;
    size_t written = 0, expected = 0;
    std::vector<bool> asked(out->size(), false);

    for (const three &row : batch->rows) {
        const size_t at = (offsets[row.z] + row.x) * batch->hidden + row.y * batch->shape.head_dim;

        reference(batch, row, &want);
        for (uint32_t d = 0; d < batch->shape.head_dim; d++) {
            const double got = static_cast<double>(load(out->data() + at + d));

            if (!(fabs(got - want[d]) <= tolerance))
                fail_msg("dim %u, text %u, row %u, head %u, number %u: %g, not %g",
                         batch->shape.head_dim, row.z, row.x, row.y, d, got, want[d]);
            asked[at + d] = true;
        }
    }
    for (size_t i = 0; i < out->size(); i++) {
        written += !isnan(load(out->data() + i));
        expected += asked[i];
    }
    assert_int_equal(written, expected);
}

template <typename number>
static void check_kernel(uint32_t head_dim, bool has_distances, double tolerance)
{
    struct batch batch;
    struct attention_buckets buckets;
    struct attention_turn turn;
    struct layout layout = {};
    std::vector<int32_t> index(1024);
    std::vector<number> qkv, out;
    std::vector<std::thread> lanes;
    struct err err;

    batch_make(&batch, head_dim, has_distances);
    attention_buckets_make(&batch.shape, &buckets);
    assert_int_equal(
        attention_turn_make(&batch.shape, &buckets, offsets, TEXTS, index.data(), &turn, &err), 0);
    const struct attention_index at = attention_index_of(buckets.list[turn.plan].texts);
    layout.lengths = index.data() + at.lengths / sizeof(int32_t);
    layout.offsets = index.data() + at.out_offsets / sizeof(int32_t);
    layout.distances = has_distances ? batch.distances.data() : nullptr;
    layout.head_count = base.head_count;
    layout.head_dim = head_dim;
    layout.distance_zero = base.length_max - 1;
    layout.scale = 1.0f / sqrtf(static_cast<float>(head_dim));
    qkv.resize(batch.qkv.size());
    for (size_t i = 0; i < qkv.size(); i++)
        store(&qkv[i], batch.qkv[i]);
    out.resize(batch.hidden * (ROWS + GUARD_ROWS));
    for (number &to : out)
        store(&to, NAN);
    for (unsigned lane = 0; lane < WARP; lane++)
        lanes.emplace_back(run_lane<number>, &batch, &layout, qkv.data(), out.data(), lane);
    for (std::thread &lane : lanes)
        lane.join();
    check_out(&batch, &out, tolerance);
}

static void test_f32(void **)
{
    check_kernel<float>(32, false, 1e-5);
    check_kernel<float>(33, true, 1e-5);
    check_kernel<float>(128, false, 1e-5);
}

static void test_bf16(void **)
{
    check_kernel<__nv_bfloat16>(64, false, 1e-2);
    check_kernel<__nv_bfloat16>(8, true, 1e-2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_bf16),
    };
    int r;

    if (pthread_barrier_init(&warp, nullptr, WARP))
        return 1;
    r = cmocka_run_group_tests(tests, nullptr, nullptr);
    (void)pthread_barrier_destroy(&warp);
    return r;
}
