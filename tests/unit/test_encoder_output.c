/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: an answer is valid JSON in OpenAI's shape, and its numbers are the vector's, bit for bit.
 * Method: edge values and a million random floats written and read again; an answer parsed.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "workers/engines/encoder/encoder_json.h"
#include "workers/engines/encoder/encoder_output.h"

static void check_round_trip(float value)
{
    char text[ENCODER_FLOAT_SIZE_MAX + 1];
    size_t size = encoder_float_write(value, text);
    float back;
    char *end;

    assert_true(size <= ENCODER_FLOAT_SIZE_MAX);
    text[size] = '\0';
    back = strtof(text, &end);
    if (end != text + size || memcmp(&back, &value, sizeof(value)) != 0)
        fail_msg("%.9g is written '%s'", (double)value, text);
}

static void test_floats_come_back(void **state)
{
    static const float edges[] = {
        0.0f,        -0.0f,      1.0f,          -1.0f,       0.1f,          0.5f,
        0.99999994f, 1.0000001f, 9.9999990f,    10.0f,       100.0f,        123456.789f,
        99999992.0f, 1e8f,       1e9f,          1e-5f,       9.9999990e-6f, 1.0000001e-5f,
        1e-38f,      1e-45f,     3.4028235e38f, 16777216.0f, 0.099999994f,  0.001f,
    };
    struct rng rng;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(edges); i++)
        check_round_trip(edges[i]);
    rng_seed(&rng, 20261123);
    for (int i = 0; i < 1000000; i++) {
        uint32_t bits = (uint32_t)rng_next(&rng);
        float value;

        /* Half of them of the size that vectors have. */
        if (i % 2 == 0)
            bits = (bits & 0x807fffffu) | (110u + bits % 18u) << 23;
        memcpy(&value, &bits, sizeof(value));
        if (isfinite(value))
            check_round_trip(value);
    }
}

static void test_short_numbers_stay_short(void **state)
{
    static const struct {
        float value;
        const char *text;
    } rows[] = {
        {0, "0"},
        {1, "1"},
        {-1, "-1"},
        {0.5f, "0.5"},
        {-0.25f, "-0.25"},
        {1.5f, "1.5"},
        {100, "100"},
        {1234567, "1234567"},
        {0.0625f, "0.0625"},
        {0.1f, "0.100000001"},
        {1e-10f, "1.00000001e-10"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char text[ENCODER_FLOAT_SIZE_MAX + 1];

        text[encoder_float_write(rows[i].value, text)] = '\0';
        assert_string_equal(text, rows[i].text);
    }
}

static const float vectors[] = {0.5f, -0.25f, 1, 2, 0.1f, 0};
static const bool truncated[] = {false, true};

static void test_answer(void **state)
{
    OWNED(encoder_json_free) json_t *warnings = json_pack("[s]", "quoted \"name\"");
    OWNED(buf_done) struct buf out = BUF_WITH_LIMIT(65536);
    const struct encoder_output output = {
        .model_json = "\"m\\\"1\"",
        .vectors = vectors,
        .truncated = truncated,
        .text_count = 2,
        .dimension_count = 3,
        .token_count = 9,
        .warnings = warnings,
    };
    struct err err;

    (void)state;
    assert_int_equal(encoder_output_write(&output, &out, &err), 0);
    assert_string_equal(buf_text(&out),
                        "{\"object\":\"list\",\"data\":["
                        "{\"object\":\"embedding\",\"index\":0,\"embedding\":[0.5,-0.25,1]},"
                        "{\"object\":\"embedding\",\"index\":1,\"embedding\":[2,0.100000001,0]}],"
                        "\"model\":\"m\\\"1\",\"usage\":{\"prompt_tokens\":9,\"total_tokens\":9},"
                        "\"truncated\":[false,true],\"warnings\":[\"quoted \\\"name\\\"\"]}");
}

static void test_base64(void **state)
{
    OWNED(buf_done) struct buf out = BUF_WITH_LIMIT(65536);
    struct encoder_output output = {
        .model_json = "\"m\"",
        .vectors = vectors,
        .truncated = truncated,
        .text_count = 2,
        .dimension_count = 1,
        .base64 = true,
    };
    struct err err;

    (void)state;
    assert_int_equal(encoder_output_write(&output, &out, &err), 0);
    /* 0.5 and -0.25 are 00 00 00 3f and 00 00 80 be */
    assert_non_null(strstr(buf_text(&out), "\"embedding\":\"AAAAPw==\""));
    assert_non_null(strstr(buf_text(&out), "\"embedding\":\"AACAvg==\""));
    buf_clear(&out);
    output.dimension_count = 3;
    assert_int_equal(encoder_output_write(&output, &out, &err), 0);
    assert_non_null(strstr(buf_text(&out), "\"embedding\":\"AAAAPwAAgL4AAIA/\""));
}

static void test_what_cannot_be_written(void **state)
{
    OWNED(buf_done) struct buf out = BUF_WITH_LIMIT(65536);
    OWNED(buf_done) struct buf small = BUF_WITH_LIMIT(40);
    float broken[] = {1, 2, 3, NAN, 5, 6};
    struct encoder_output output = {
        .model_json = "\"m\"",
        .vectors = broken,
        .truncated = truncated,
        .text_count = 2,
        .dimension_count = 3,
    };
    struct err err;

    (void)state;
    assert_int_equal(encoder_output_write(&output, &out, &err), ERR_INTERNAL);
    assert_non_null(strstr(err.text, "the vector of input[1]"));
    output.vectors = vectors;
    assert_int_equal(encoder_output_write(&output, &small, &err), ERR_TOO_BIG);
}

static void test_the_bound_holds(void **state)
{
    float widest[64];
    bool flags[1] = {false};
    OWNED(buf_done) struct buf out = BUF_WITH_LIMIT(65536);
    const struct encoder_output output = {
        .model_json = "\"m\"",
        .vectors = widest,
        .truncated = flags,
        .text_count = 1,
        .dimension_count = COUNT_OF(widest),
        .token_count = UINT32_MAX,
    };
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(widest); i++)
        widest[i] = -1.17549435e-38f;
    assert_int_equal(encoder_output_write(&output, &out, &err), 0);
    assert_true(out.size <= encoder_output_size_max(1, COUNT_OF(widest)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_floats_come_back),
        cmocka_unit_test(test_short_numbers_stay_short),
        cmocka_unit_test(test_answer),
        cmocka_unit_test(test_base64),
        cmocka_unit_test(test_what_cannot_be_written),
        cmocka_unit_test(test_the_bound_holds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
