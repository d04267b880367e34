/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: `dtype: auto` is bf16 only where that is enough faster on this CPU, and says why.
 * Method: rows of injected times; then the real measurement, by itself and through a load.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "tests/unit/encoder_drive.h"
#include "workers/engines/encoder/encoder.h"
#include "workers/engines/encoder/encoder_dtype.h"

#define TINY "tests/data/encoder/tiny"

static const struct encoder_config config = {
    .hidden = 384, .intermediate = 1536, .activation = ENCODER_GELU_TANH};

static uint64_t f32_ns, bf16_ns;
static uint32_t measured_count;

static int measure(const struct gemm_shape *shape, uint64_t *ret_ns, struct err *err)
{
    (void)err;
    assert_int_equal(shape->input, 384);
    assert_int_equal(shape->output, 1536);
    assert_int_equal(shape->epilogue, GEMM_ACTIVATION);
    assert_int_equal(shape->activation, ENCODER_GELU_TANH);
    assert_int_equal(shape->input_bf16, shape->output_bf16);
    *ret_ns = shape->input_bf16 ? bf16_ns : f32_ns;
    measured_count++;
    return 0;
}

static int measure_fails(const struct gemm_shape *shape, uint64_t *ret_ns, struct err *err)
{
    (void)ret_ns;
    if (!shape->input_bf16)
        return 0;
    return err_set(err, ERR_MEMORY, "no bytes for weights");
}

static void test_bf16_must_be_enough_faster(void **state)
{
    static const struct {
        uint64_t f32_ns, bf16_ns;
        bool want_bf16;
        const char *want_text;
    } rows[] = {
        {1830000, 1000000, true, "bf16 (auto: bf16 is 1.83 times as fast)"},
        {1200000, 1000000, true, "bf16 (auto: bf16 is 1.20 times as fast)"},
        {1190000, 1000000, false, "f32 (auto: bf16 is 1.19 times as fast)"},
        {890000, 1680000, false, "f32 (auto: bf16 is 0.53 times as fast)"},
        {4000000, 0, true, "bf16 (auto: bf16 is 4000000.00 times as fast)"},
        {0, 0, false, "f32 (auto: bf16 is 0.00 times as fast)"},
    };
    struct encoder_dtype_choice choice;
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        f32_ns = rows[i].f32_ns;
        bf16_ns = rows[i].bf16_ns;
        measured_count = 0;
        assert_int_equal(encoder_dtype_choose(&config, true, measure, &choice, &err), 0);
        assert_int_equal(measured_count, 2);
        assert_int_equal(choice.bf16, rows[i].want_bf16);
        assert_string_equal(choice.text, rows[i].want_text);
    }
}

static void test_nothing_is_measured_without_bf16(void **state)
{
    struct encoder_dtype_choice choice;
    struct err err;

    (void)state;
    measured_count = 0;
    assert_int_equal(encoder_dtype_choose(&config, false, measure, &choice, &err), 0);
    assert_int_equal(measured_count, 0);
    assert_false(choice.bf16);
    assert_string_equal(choice.text, "f32 (auto: this CPU has no bf16)");
}

static void test_a_failed_measurement_fails(void **state)
{
    struct encoder_dtype_choice choice;
    struct err err;

    (void)state;
    assert_int_equal(encoder_dtype_choose(&config, true, measure_fails, &choice, &err), ERR_MEMORY);
    assert_string_equal(err.text, "dtype auto: no bytes for weights");
}

/* Four times the products take longer, and none takes nothing: it is a time of the shape. */
static void test_the_real_measure_grows_with_the_shape(void **state)
{
    const struct gemm_shape small = {256, 512, GEMM_ACTIVATION, ENCODER_GELU, false, false};
    const struct gemm_shape large = {512, 1024, GEMM_ACTIVATION, ENCODER_GELU, false, false};
    uint64_t small_ns = 0, large_ns = 0;
    struct err err;

    (void)state;
    assert_int_equal(gemm_measure(&small, &small_ns, &err), 0);
    assert_int_equal(gemm_measure(&large, &large_ns, &err), 0);
    assert_true(small_ns > 0);
    assert_true(large_ns > small_ns * 3 / 2);
}

/* The load's line says what was taken and why; a dtype that somebody named is not measured. */
static void test_a_load_says_what_was_chosen(void **state)
{
    static const struct {
        const char *settings, *want;
    } rows[] = {
        {"{\"dtype\":\"auto\"}", " (auto: "},
        {"{\"dtype\":\"f32\"}", "; f32, oneDNN "},
        {"{}", "; f32, oneDNN "},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(drive_done) struct drive drive = {0};
        const struct engine_load load = {
            .dir = TINY, .thread_count = 1, .settings_json = rows[i].settings};
        struct err err = {0};

        if (drive_load(&drive, &encoder_api, &load, &err) < 0)
            fail_msg("%s", err.text);
        if (strstr(drive.info.detail, rows[i].want) == NULL)
            fail_msg("'%s' does not say '%s'", drive.info.detail, rows[i].want);
        if (i == 0)
            assert_true((strstr(drive.info.detail, "; bf16 (auto") != NULL) <= gemm_has_bf16());
        (void)printf("%s\n", drive.info.detail);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16_must_be_enough_faster),
        cmocka_unit_test(test_nothing_is_measured_without_bf16),
        cmocka_unit_test(test_a_failed_measurement_fails),
        cmocka_unit_test(test_the_real_measure_grows_with_the_shape),
        cmocka_unit_test(test_a_load_says_what_was_chosen),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
