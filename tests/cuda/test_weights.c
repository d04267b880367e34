/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: every tensor of a checkpoint is found under its role whatever the family calls it, and its
 * numbers become the cells that the device wants. Method: the small models of tests/data. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "workers/engines/encoder_cuda/weights.h"

static void test_rounding(void **state)
{
    static const struct {
        uint32_t bits, want;
    } rows[] = {
        {0x00000000, 0x0000}, {0x80000000, 0x8000}, {0x3f800000, 0x3f80}, {0x3f808000, 0x3f80},
        {0x3f808001, 0x3f81}, {0x3f818000, 0x3f82}, {0x3f817fff, 0x3f81}, {0x7f7fffff, 0x7f80},
        {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7f800001, 0x7fc0}, {0x7fffffff, 0x7fff},
    };
    float numbers[COUNT_OF(rows)];
    uint16_t cells[COUNT_OF(rows)];

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        memcpy(&numbers[i], &rows[i].bits, sizeof(numbers[i]));
    weights_round(numbers, COUNT_OF(rows));
    memcpy(cells, numbers, sizeof(cells));
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        assert_int_equal(cells[i], rows[i].want);
}

/* 3,000 numbers of each type, in chunks that fit nothing. */
static void test_cells(void **state)
{
    static float f32[3000], got[3000];
    static uint16_t bf16[3000], cells[3000];
    const struct safetensors_tensor from_f32 = {.name = (char[]){"a"},
                                                .dtype = SAFETENSORS_F32,
                                                .element_count = 3000,
                                                .bytes = (const uint8_t *)f32,
                                                .size = sizeof(f32)};
    struct safetensors_tensor from_bf16 = from_f32;
    struct err err;

    (void)state;
    for (uint32_t i = 0; i < 3000; i++) {
        const uint32_t bits = 0x3e000000u + i * 0x10000u / 8;

        memcpy(&f32[i], &bits, sizeof(bits));
    }
    memcpy(got, f32, sizeof(f32));
    weights_round(got, 3000);
    memcpy(bf16, got, sizeof(bf16));
    from_bf16.dtype = SAFETENSORS_BF16;
    from_bf16.bytes = (const uint8_t *)bf16;
    from_bf16.size = sizeof(bf16);
    for (uint32_t chunk = 1; chunk <= 3000; chunk = chunk * 3 + 1) {
        memset(cells, 0xff, sizeof(cells));
        for (uint32_t i = 0; i < 3000; i += chunk)
            assert_int_equal(weights_read(&from_f32, i, chunk < 3000 - i ? chunk : 3000 - i, true,
                                          cells + i, &err),
                             0);
        assert_memory_equal(cells, bf16, sizeof(bf16));
    }
    assert_int_equal(weights_read(&from_bf16, 5, 2000, true, cells, &err), 0);
    assert_memory_equal(cells, bf16 + 5, 2000 * sizeof(cells[0]));
    assert_int_equal(weights_read(&from_bf16, 5, 2000, false, got, &err), 0);
    for (uint32_t i = 0; i < 2000; i++) {
        uint32_t bits;

        memcpy(&bits, &got[i], sizeof(bits));
        assert_int_equal(bits, (uint32_t)bf16[5 + i] << 16);
    }
    assert_int_equal(weights_read(&from_f32, 0, 3000, false, got, &err), 0);
    assert_memory_equal(got, f32, sizeof(f32));
}

static const char *const models[] = {
    "bert-classify",     "bert-embed",  "bert-tokens",  "distilbert-classify", "distilbert-embed",
    "distilbert-tokens", "mpnet-embed", "mpnet-rerank", "roberta-classify",    "roberta-embed",
    "roberta-tokens",    "xlm-embed",   "xlm-rerank",
};

static void check_model(const char *name)
{
    OWNED(mem_free) char *dir = xasprintf("tests/data/encoder/kinds/%s", name);
    OWNED(mem_free) char *path = xasprintf("%s/model.safetensors", dir);
    OWNED(safetensors_close) struct safetensors *file = NULL;
    struct encoder_config config;
    struct run_sizes sizes = {.config = &config, .token_count_max = 64, .text_count_max = 8};
    struct run_plan plan;
    struct err err;
    uint32_t found = 0;

    assert_int_equal(encoder_config_read(dir, &config, &err), 0);
    assert_int_equal(safetensors_open(path, &file, &err), 0);
    assert_int_equal(bert_check(&config, file, &err), 0);
    run_plan_make(&sizes, &plan);
    for (uint32_t layer = 0; layer < config.layer_count; layer++) {
        for (uint32_t role = 0; role < BERT_ROLE_COUNT; role++) {
            const struct run_weight *weight = run_plan_weight(&plan, role, layer);
            const struct safetensors_tensor *tensor = bert_find(&config, file, role, layer);

            if (weight->count == 0)
                continue;
            assert_non_null(tensor);
            assert_int_equal(tensor->element_count, weight->count);
            found++;
        }
    }
    assert_int_equal(found, config.layer_count * 16 + 4 +
                                (config.head == ENCODER_HEAD_CLASSIFY ? 4 : 0) +
                                (config.head == ENCODER_HEAD_TOKENS ? 2 : 0));
    assert_true((bert_find(&config, file, BERT_ROLE_TYPES, 0) != NULL) == (config.type_count > 0));
    if (config.distance_count > 0) {
        OWNED(mem_free) float *distances = xcalloc(plan.distances.count, sizeof(float));

        for (uint64_t i = 0; i < plan.distances.count; i++)
            distances[i] = NAN;
        assert_int_equal(bert_read_distances(&config, file, distances, &err), 0);
        for (uint64_t i = 0; i < plan.distances.count; i++)
            assert_true(isfinite(distances[i]));
    }
    run_plan_done(&plan);
}

static void test_roles(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(models); i++)
        check_model(models[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_cells),
        cmocka_unit_test(test_roles),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
