/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * For tests that need a device: whether there is one, memory on it that begins as NaN, fresh random
 * numbers (HEADRACE_SEED repeats a run), and how far two lists of numbers are apart.
 */

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "base/settings.h"

#define DEVICE_POISON 0xff /* every byte: a NaN as f32 and as bf16 */
#define DEVICE_SKIPPED 77

static struct rng device_rng;

/* Counts as passed: the status that CTest calls skipped ends the program. */
static inline void device_begin(void)
{
    const char *given = getenv("HEADRACE_SEED");
    struct err err;
    int64_t seed;
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);

    rng_secret_bytes(&seed, sizeof(seed));
    seed &= INT64_MAX;
    if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver) {
        (void)printf("skipped: no CUDA device: %s\n", cudaGetErrorString(status));
        exit(DEVICE_SKIPPED);
    }
    if (status != cudaSuccess) { /* there is one, and it cannot be had */
        (void)printf("%s\n", cudaGetErrorString(status));
        exit(1);
    }
    if (given != NULL && settings_parse_int("HEADRACE_SEED", given, &seed, &err) < 0) {
        (void)printf("%s\n", err.text);
        exit(1);
    }
    (void)printf("HEADRACE_SEED=%lld\n", (long long)seed);
    rng_seed(&device_rng, (uint64_t)seed);
}

#define MUST(call)                                                                                 \
    do {                                                                                           \
        const cudaError_t must_ = (call);                                                          \
        if (must_ != cudaSuccess)                                                                  \
            fail_msg("%s: %s", #call, cudaGetErrorString(must_));                                  \
    } while (0)

/* About normal, mean 0 and deviation 1. */
static inline float device_random(void)
{
    double sum = 0;

    for (int i = 0; i < 12; i++)
        sum += (double)(rng_next(&device_rng) >> 11) * 0x1p-53;
    return (float)(sum - 6);
}

static inline uint32_t device_random_below(uint32_t count)
{
    return (uint32_t)(rng_next(&device_rng) % count);
}

static inline uint16_t device_bf16_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float device_float_of(uint16_t cell)
{
    const uint32_t bits = (uint32_t)cell << 16;
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* Numbers on the host, and cells of them on the device. */
struct device_list {
    float *host;
    void *dev;
    size_t count;
    bool bf16;
};

static inline size_t device_size(const struct device_list *list)
{
    return list->count * (list->bf16 ? sizeof(uint16_t) : sizeof(float));
}

static inline struct device_list device_poisoned(size_t count, bool bf16)
{
    struct device_list list = {.host = xcalloc(count, sizeof(float)), .count = count, .bf16 = bf16};

    MUST(cudaMalloc(&list.dev, device_size(&list)));
    MUST(cudaMemset(list.dev, DEVICE_POISON, device_size(&list)));
    return list;
}

static inline void device_put(struct device_list *list)
{
    OWNED(mem_free) uint16_t *cells = xcalloc(list->count, sizeof(*cells));

    for (size_t i = 0; list->bf16 && i < list->count; i++) {
        cells[i] = device_bf16_of(list->host[i]);
        list->host[i] = device_float_of(cells[i]); /* what the device has of it */
    }
    MUST(cudaMemcpy(list->dev, list->bf16 ? (const void *)cells : list->host, device_size(list),
                    cudaMemcpyHostToDevice));
}

static inline struct device_list device_filled(size_t count, bool bf16, float scale)
{
    struct device_list list = device_poisoned(count, bf16);

    for (size_t i = 0; i < count; i++)
        list.host[i] = scale * device_random();
    device_put(&list);
    return list;
}

/* What is on the device, as numbers; the caller frees it. */
static inline float *device_get(const struct device_list *list)
{
    OWNED(mem_free) uint16_t *cells = xcalloc(list->count, sizeof(*cells));
    float *numbers = xcalloc(list->count, sizeof(*numbers));

    MUST(cudaDeviceSynchronize());
    MUST(cudaMemcpy(list->bf16 ? (void *)cells : numbers, list->dev, device_size(list),
                    cudaMemcpyDeviceToHost));
    for (size_t i = 0; list->bf16 && i < list->count; i++)
        numbers[i] = device_float_of(cells[i]);
    return numbers;
}

static inline void device_list_done(struct device_list *list)
{
    (void)cudaFree(list->dev);
    free(list->host);
}

/* The length of the difference over that of what is wanted; infinite where a number is none. */
static inline double device_apart(const float *got, const float *want, size_t count)
{
    double off = 0, all = 0;

    for (size_t i = 0; i < count; i++) {
        const double d = (double)got[i] - (double)want[i];

        if (!isfinite(got[i]))
            return INFINITY;
        off += d * d;
        all += (double)want[i] * (double)want[i];
    }
    return sqrt(off / (all > 0 ? all : 1));
}

#define DEVICE_CLOSE(got, want, count, bf16)                                                       \
    do {                                                                                           \
        const double apart_ = device_apart((got), (want), (count));                                \
        if (!(apart_ <= ((bf16) ? 1e-2 : 1e-4)))                                                   \
            fail_msg("relative error %g in %s", apart_, (bf16) ? "bf16" : "f32");                  \
    } while (0)
