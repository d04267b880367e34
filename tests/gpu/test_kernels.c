/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: each kernel computes what its header says, within 1e-4 in f32 and 1e-2 in bf16. Method:
 * fresh random inputs of many widths against loops in double; outputs are NaN before. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/gpu/device.h"
#include "workers/engines/encoder_cuda/kernels.h"

#define EPS 1e-5f

static const uint32_t widths[] = {8, 24, 128, 136, 384, 768, 1024, 1032, 4096, 8192};

static void norm_rows(float *rows, uint32_t row_count, uint32_t width, const float *gain,
                      const float *bias)
{
    for (uint32_t r = 0; r < row_count; r++) {
        float *row = rows + (size_t)r * width;
        double mean = 0, square = 0;

        for (uint32_t i = 0; i < width; i++)
            mean += (double)row[i] / width;
        for (uint32_t i = 0; i < width; i++)
            square += ((double)row[i] - mean) * ((double)row[i] - mean) / width;
        for (uint32_t i = 0; i < width; i++)
            row[i] = (float)(((double)row[i] - mean) / sqrt(square + (double)EPS) *
                                 (double)gain[i] +
                             (double)bias[i]);
    }
}

static void check_norms(uint32_t width, bool bf16)
{
    const uint32_t rows = 1 + device_random_below(70), words = 40, places = 30;
    OWNED(device_list_done) struct device_list gain = device_filled(width, false, 1);
    OWNED(device_list_done) struct device_list bias = device_filled(width, false, 1);
    OWNED(device_list_done) struct device_list step = device_filled(width, false, 1);
    OWNED(device_list_done) struct device_list table = device_filled(words * width, bf16, 1);
    OWNED(device_list_done) struct device_list positions = device_filled(places * width, bf16, 1);
    OWNED(device_list_done) struct device_list y = device_filled((size_t)rows * width, bf16, 3);
    OWNED(device_list_done) struct device_list x = device_poisoned((size_t)rows * width, bf16);
    OWNED(mem_free) uint32_t *index = xcalloc(2 * rows, sizeof(*index));
    OWNED(mem_free) float *want = xcalloc(x.count, sizeof(*want));
    const struct kernel_norm norm = {gain.dev, bias.dev, width, EPS};
    const enum kernel_cell cell = bf16 ? KERNEL_BF16 : KERNEL_F32;
    OWNED(mem_free) float *got = NULL, *sum = NULL;
    struct kernel_embed embed = {table.dev, positions.dev, step.dev, NULL, NULL, x.dev, rows, cell};
    void *dev_index;

    for (uint32_t r = 0; r < rows; r++) {
        const bool second = device_random_below(2) == 1;
        const uint32_t id = device_random_below(words), place = device_random_below(places);

        index[r] = id;
        index[rows + r] = place | (second ? KERNEL_PLACE_SECOND : 0);
        for (uint32_t i = 0; i < width; i++)
            want[(size_t)r * width + i] = table.host[id * width + i] +
                                          positions.host[place * width + i] +
                                          (second ? step.host[i] : 0);
    }
    MUST(cudaMalloc(&dev_index, 2 * rows * sizeof(*index)));
    MUST(cudaMemcpy(dev_index, index, 2 * rows * sizeof(*index), cudaMemcpyHostToDevice));
    embed.ids = dev_index;
    embed.places = embed.ids + rows;
    norm_rows(want, rows, width, gain.host, bias.host);
    MUST(kernel_embed_norm(&embed, &norm, NULL));
    got = device_get(&x);
    DEVICE_CLOSE(got, want, x.count, bf16);

    for (size_t i = 0; i < x.count; i++) /* on with what the device has */
        want[i] = got[i] + y.host[i];
    norm_rows(want, rows, width, gain.host, bias.host);
    MUST(kernel_add_norm(x.dev, y.dev, rows, cell, &norm, NULL));
    sum = device_get(&x);
    DEVICE_CLOSE(sum, want, x.count, bf16);
    MUST(cudaFree(dev_index));
}

static void test_norms(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2 * COUNT_OF(widths); i++)
        check_norms(widths[i / 2], i % 2 == 1);
}

static double activation_of(double x, enum kernel_activation activation)
{
    switch (activation) {
    case KERNEL_GELU:
        return 0.5 * x * (1 + erf(x * M_SQRT1_2));
    case KERNEL_GELU_TANH:
        return 0.5 * x * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
    case KERNEL_RELU:
        return x > 0 ? x : 0;
    case KERNEL_TANH:
        break;
    }
    return tanh(x);
}

static void test_activations(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 8; i++) {
        const enum kernel_activation activation = (enum kernel_activation)(i / 2);
        const bool bf16 = i % 2 == 1;
        OWNED(device_list_done)
        struct device_list y = device_filled(8 * (1 + device_random_below(5000)), bf16, 3);
        OWNED(mem_free) float *got = NULL;

        for (size_t k = 0; k < y.count; k++)
            y.host[k] = (float)activation_of((double)y.host[k], activation);
        MUST(kernel_activate(y.dev, y.count, bf16 ? KERNEL_BF16 : KERNEL_F32, activation, NULL));
        got = device_get(&y);
        DEVICE_CLOSE(got, y.host, y.count, bf16);
    }
}

struct texts {
    uint32_t offsets[34];
    uint32_t *dev;
};

/* 33 texts, the last of no rows. */
static void make_texts(struct texts *texts)
{
    texts->offsets[0] = 0;
    for (uint32_t i = 0; i < 32; i++)
        texts->offsets[i + 1] = texts->offsets[i] + 1 + device_random_below(40);
    texts->offsets[33] = texts->offsets[32];
    MUST(cudaMalloc((void **)&texts->dev, sizeof(texts->offsets)));
    MUST(cudaMemcpy(texts->dev, texts->offsets, sizeof(texts->offsets), cudaMemcpyHostToDevice));
}

static void pool_text(const float *x, uint32_t width, uint32_t first, uint32_t end,
                      const struct kernel_pool *pool, float *to)
{
    const uint32_t last = pool->mean ? end : first + 1;
    double length = 0;

    for (uint32_t i = 0; i < width; i++) {
        double sum = 0;

        for (uint32_t t = first; t < last; t++)
            sum += (double)x[(size_t)t * width + i];
        to[i] = (float)(sum / (last - first));
        length += (double)to[i] * (double)to[i];
    }
    for (uint32_t i = 0; pool->normalize && i < width; i++)
        to[i] = (float)((double)to[i] / sqrt(length));
}

static void check_pool(uint32_t width, bool bf16, bool mean, bool normalize)
{
    struct texts texts;
    struct kernel_pool pool;

    make_texts(&texts);
    {
        OWNED(device_list_done)
        struct device_list x = device_filled((size_t)texts.offsets[33] * width, bf16, 1);
        OWNED(device_list_done) struct device_list rows = device_poisoned(33ul * width, false);
        OWNED(device_list_done) struct device_list first = device_poisoned(33ul * width, bf16);
        OWNED(mem_free) float *want = xcalloc(32ul * width, sizeof(*want));
        OWNED(mem_free) float *got = NULL, *heads = NULL;

        pool = (struct kernel_pool){x.dev, texts.dev, rows.dev,  33,
                                    width, mean,      normalize, bf16 ? KERNEL_BF16 : KERNEL_F32};
        for (uint32_t i = 0; i < 32; i++)
            pool_text(x.host, width, texts.offsets[i], texts.offsets[i + 1], &pool,
                      want + (size_t)i * width);
        MUST(kernel_pool_rows(&pool, NULL));
        got = device_get(&rows);
        DEVICE_CLOSE(got, want, 32ul * width, bf16);
        MUST(kernel_first_rows(&pool, first.dev, NULL));
        heads = device_get(&first);
        for (uint32_t i = 0; i < 32; i++)
            assert_memory_equal(heads + (size_t)i * width,
                                x.host + (size_t)texts.offsets[i] * width, width * sizeof(float));
        for (uint32_t i = 0; i < width; i++) { /* who has no rows has no output */
            assert_true(isnan(got[32ul * width + i]));
            assert_true(isnan(heads[32ul * width + i]));
        }
    }
    MUST(cudaFree(texts.dev));
}

static void test_pools(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 8 * COUNT_OF(widths); i++)
        check_pool(widths[i / 8], i & 1, i & 2, i & 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norms),
        cmocka_unit_test(test_activations),
        cmocka_unit_test(test_pools),
    };

    device_begin();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
