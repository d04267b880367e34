/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: the kernels' arithmetic and their places in memory, without a device. Method: the device
 * code is compiled for the host, a block's threads are threads, and rows are compared with loops in
 * double. What is not shown: that nvcc's code for a device does the same (tests/gpu).
 */

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <vector_functions.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <thread>
#include <vector>

#include "workers/engines/encoder_cuda/kernels.h"

/* ---- a block on the host ---- */

static thread_local uint3 threadIdx, blockIdx;
static dim3 blockDim;
static pthread_barrier_t barrier;
static float shuffled[256];
static float shared_row[KERNEL_WIDTH_MAX];

static void __syncthreads()
{
    (void)pthread_barrier_wait(&barrier);
}

static float __shfl_xor_sync(unsigned, float value, int step)
{
    float got;

    shuffled[threadIdx.x] = value;
    __syncthreads();
    got = shuffled[threadIdx.x ^ static_cast<unsigned>(step)];
    __syncthreads();
    return got;
}

#undef __shared__
#define __shared__ static
#define KERNEL_SHARED_ROW(name) float *name = shared_row
#include "workers/engines/encoder_cuda/kernels.inc"

static void run(unsigned blocks, unsigned threads, const std::function<void()> &kernel)
{
    std::vector<std::thread> all;

    blockDim.x = threads;
    (void)pthread_barrier_init(&barrier, nullptr, threads);
    for (unsigned t = 0; t < threads; t++) {
        all.emplace_back([=, &kernel] {
            threadIdx.x = t;
            for (unsigned b = 0; b < blocks; b++) {
                blockIdx.x = b;
                kernel();
                __syncthreads();
            }
        });
    }
    for (std::thread &thread : all)
        thread.join();
    (void)pthread_barrier_destroy(&barrier);
}

/* ---- numbers ---- */

static unsigned long state = 88172645463325252ul;
static unsigned failures;

static float number()
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<float>(static_cast<double>(state >> 11) * 0x1p-52 - 1);
}

template <typename Cell> static Cell cell_of(float value)
{
    return static_cast<Cell>(value);
}

template <typename Cell> static std::vector<Cell> cells(size_t count)
{
    std::vector<Cell> list;

    for (size_t i = 0; i < count; i++)
        list.push_back(cell_of<Cell>(number()));
    return list;
}

template <typename Cell>
static void close_to(const char *what, const std::vector<Cell> &got,
                     const std::vector<double> &want)
{
    const double limit = sizeof(Cell) == 2 ? 1e-2 : 1e-4;
    double off = 0, all = 0;

    for (size_t i = 0; i < want.size(); i++) {
        const double d = static_cast<double>(static_cast<float>(got[i])) - want[i];

        off += d * d;
        all += want[i] * want[i];
    }
    if (!(std::sqrt(off / all) <= limit)) {
        std::printf("%s: relative error %g, limit %g\n", what, std::sqrt(off / all), limit);
        failures++;
    }
}

static void normed(std::vector<double> *rows, const kernel_norm &norm)
{
    const float *gain = static_cast<const float *>(norm.gain);
    const float *bias = static_cast<const float *>(norm.bias);

    for (size_t row = 0; row < rows->size(); row += norm.hidden) {
        double *x = rows->data() + row, mean = 0, square = 0;

        for (unsigned i = 0; i < norm.hidden; i++)
            mean += x[i] / norm.hidden;
        for (unsigned i = 0; i < norm.hidden; i++)
            square += (x[i] - mean) * (x[i] - mean) / norm.hidden;
        for (unsigned i = 0; i < norm.hidden; i++)
            x[i] = (x[i] - mean) / std::sqrt(square + norm.eps) * gain[i] + bias[i];
    }
}

/* ---- tests ---- */

static const unsigned widths[] = {8, 24, 136, 384, 1032, 8192};

static unsigned threads_of(unsigned width)
{
    const unsigned wanted = (width / LANES + WARP - 1) / WARP * WARP;

    return wanted < ROW_THREADS_MAX ? wanted : ROW_THREADS_MAX;
}

template <typename Cell> static void test_norms(unsigned width)
{
    const std::vector<float> gain = cells<float>(width), bias = cells<float>(width);
    const std::vector<float> step = cells<float>(width);
    const std::vector<Cell> words = cells<Cell>(5 * width), places = cells<Cell>(7 * width);
    const std::vector<Cell> y = cells<Cell>(3 * width);
    const uint32_t ids[] = {4, 0, 2}, at[] = {6, 1 | KERNEL_PLACE_SECOND, 0};
    std::vector<Cell> x(3 * width, cell_of<Cell>(NAN));
    std::vector<double> want;
    const kernel_norm norm = {gain.data(), bias.data(), width, 1e-5f};
    kernel_embed embed = {};

    embed.words = words.data();
    embed.positions = places.data();
    embed.step = step.data();
    embed.ids = ids;
    embed.places = at;
    embed.x = x.data();
    run(3, threads_of(width), [&] { embed_norm<Cell>(embed, norm); });
    for (unsigned i = 0; i < 3 * width; i++)
        want.push_back(
            static_cast<double>(static_cast<float>(words[ids[i / width] * width + i % width])) +
            static_cast<float>(places[(at[i / width] & 7) * width + i % width]) +
            (i / width == 1 ? step[i % width] : 0));
    normed(&want, norm);
    close_to("embed_norm", x, want);
    for (unsigned i = 0; i < 3 * width; i++)
        want[i] = static_cast<double>(static_cast<float>(x[i])) + static_cast<float>(y[i]);
    normed(&want, norm);
    run(3, threads_of(width), [&] { add_norm<Cell>(x.data(), y.data(), norm); });
    close_to("add_norm", x, want);
}

template <typename Cell> static void test_pools(unsigned width, bool mean, bool normalize)
{
    const uint32_t offsets[] = {0, 3, 4, 4, 9};
    const std::vector<Cell> x = cells<Cell>(9 * width);
    std::vector<float> rows(4 * width, -7);
    std::vector<Cell> first(4 * width, cell_of<Cell>(-7));
    std::vector<double> want(4 * width, -7), heads(4 * width, -7);
    kernel_pool pool = {};

    pool.x = x.data();
    pool.offsets = offsets;
    pool.rows = rows.data();
    pool.hidden = width;
    pool.mean = mean;
    pool.normalize = normalize;
    for (unsigned text = 0; text < 4; text++) {
        const unsigned end = mean ? offsets[text + 1] : offsets[text] + 1;
        double length = 0;

        for (unsigned i = 0; offsets[text] < offsets[text + 1] && i < width; i++) {
            double sum = 0;

            for (unsigned t = offsets[text]; t < end; t++)
                sum += static_cast<float>(x[t * width + i]);
            want[text * width + i] = sum / (end - offsets[text]);
            length += want[text * width + i] * want[text * width + i];
            heads[text * width + i] = static_cast<float>(x[offsets[text] * width + i]);
        }
        for (unsigned i = 0; normalize && length > 0 && i < width; i++)
            want[text * width + i] /= std::sqrt(length);
    }
    run(4, threads_of(width), [&] { pool_rows<Cell>(pool); });
    close_to("pool_rows", rows, want);
    run(4, threads_of(width), [&] { first_rows<Cell>(pool, first.data()); });
    close_to("first_rows", first, heads);
}

template <typename Cell> static void test_activations()
{
    for (int kind = KERNEL_GELU; kind <= KERNEL_TANH; kind++) {
        std::vector<Cell> y = cells<Cell>(264);
        std::vector<double> want;

        for (Cell &cell : y) {
            const double x = 4 * static_cast<double>(static_cast<float>(cell));

            cell = cell_of<Cell>(static_cast<float>(x));
            want.push_back(
                kind == KERNEL_GELU ? x / 2 * std::erfc(-x / std::sqrt(2.0))
                : kind == KERNEL_GELU_TANH
                    ? x / (1 + std::exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
                : kind == KERNEL_RELU ? std::fmax(x, 0)
                                      : std::tanh(x));
        }
        run(3, 32, [&] { activate<Cell>(y.data(), 264, static_cast<kernel_activation>(kind)); });
        close_to("activate", y, want);
    }
}

template <typename Cell> static void test_all()
{
    for (unsigned width : widths) {
        test_norms<Cell>(width);
        for (unsigned i = 0; i < 4; i++)
            test_pools<Cell>(width, i & 1, i & 2);
    }
    test_activations<Cell>();
}

int main()
{
    test_all<float>();
    test_all<__nv_bfloat16>();
    std::printf("%u failures\n", failures);
    return failures > 0;
}
