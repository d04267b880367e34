/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: tensors come out of JSON as they were meant, and what does not fit the model is refused by
 * field, value and limit. Method: rows of inputs for a model written down here; no library.
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

#include "workers/engines/onnx/onnx_input.h"
#include "workers/engines/onnx/onnx_output.h"

static const struct onnx_model model = {
    .input_count = 2,
    .output_count = 2,
    .inputs = {{.name = "x", .type = ONNX_FLOAT32, .has_shape = true, .rank = 2, .dims = {-1, 2}},
               {.name = "n", .type = ONNX_UINT8, .has_shape = false}},
    .outputs = {{.name = "y", .type = ONNX_FLOAT32}, {.name = "z", .type = ONNX_INT64}},
};
static const bool offered[ONNX_OUTPUT_COUNT_MAX] = {true, true};

static int parse(const char *text, struct onnx_input *input, struct err *err)
{
    *input = (struct onnx_input){.base64 = false};
    return onnx_input_parse(&model, offered, text, strlen(text), input, err);
}

#define N "\"n\": 7}"

static void test_refused(void **state)
{
    static const struct {
        const char *text;
        int code;
        const char *want;
    } rows[] = {
        {"", ERR_MALFORMED, "model_input"},
        {"[1]", ERR_MALFORMED, "object expected"},
        {"{}", ERR_MALFORMED, "inputs is missing"},
        {"{\"inputs\":[1]}", ERR_MALFORMED, "inputs is a array"},
        {"{\"inputs\":{},\"x\":1}", ERR_MALFORMED, "'x'; there are inputs"},
        {"{\"inputs\":{" N "}", ERR_MALFORMED, "inputs.x is missing"},
        {"{\"inputs\":{\"q\":1}}", ERR_MALFORMED, "'q'; the model has x, n"},
        {"{\"inputs\":{\"x\":[[1]]," N "}", ERR_MISMATCH, "shape [1,1], the model wants [?,2]"},
        {"{\"inputs\":{\"x\":[1,2]," N "}", ERR_MISMATCH, "shape [2], the model wants [?,2]"},
        {"{\"inputs\":{\"x\":[]," N "}", ERR_MISMATCH, "shape [0]"},
        {"{\"inputs\":{\"x\":[[],[]]," N "}", ERR_MISMATCH, "shape [2,0]"},
        {"{\"inputs\":{\"x\":[[1,2],[3]]," N "}", ERR_MALFORMED, "no one shape"},
        {"{\"inputs\":{\"x\":[[1,2],3]," N "}", ERR_MALFORMED, "no one shape"},
        {"{\"inputs\":{\"x\":[[],1]," N "}", ERR_MALFORMED, "no one shape"},
        {"{\"inputs\":{\"x\":[1,[2]]," N "}", ERR_MALFORMED, "no one shape"},
        {"{\"inputs\":{\"x\":[[1,null]]," N "}", ERR_MALFORMED, "value 1 is a null"},
        {"{\"inputs\":{\"x\":[[1,\"2\"]]," N "}", ERR_MALFORMED, "element 1 is a text"},
        {"{\"inputs\":{\"x\":[[1,true]]," N "}", ERR_MALFORMED, "element 1 is a boolean"},
        {"{\"inputs\":{\"x\":[[1,1e39]]," N "}", ERR_RANGE, "does not fit into float32"},
        {"{\"inputs\":{\"x\":[[1,1e999]]," N "}", ERR_RANGE, "does not fit 64 bits"},
        {"{\"inputs\":{\"x\":[[1,2]],\"n\":256}}", ERR_RANGE, "does not fit into uint8"},
        {"{\"inputs\":{\"x\":[[1,2]],\"n\":-1}}", ERR_RANGE, "uint8"},
        {"{\"inputs\":{\"x\":[[1,2]],\"n\":1.5}}", ERR_MALFORMED, "no whole number"},
        {"{\"inputs\":{\"x\":[[1,2]],\"n\":18446744073709551615}}", ERR_RANGE, "uint8"},
        {"{\"inputs\":{\"x\":\"AAAA\"," N "}", ERR_MALFORMED, "inputs.x is a string"},
        {"{\"inputs\":{\"x\":[[[[[[[[[1]]]]]]]]]," N "}", ERR_TOO_BIG, "deeper than 8"},
        {"{\"inputs\":{\"x\":{\"data\":\"AAAA\"}," N "}", ERR_MALFORMED, "needs a shape"},
        {"{\"inputs\":{\"x\":{\"shape\":[1,2]}," N "}", ERR_MALFORMED, "has no data"},
        {"{\"inputs\":{\"x\":{\"shape\":[1,2],\"data\":\"AAAA\"}," N "}", ERR_MALFORMED,
         "not the base64 of the 8 bytes"},
        {"{\"inputs\":{\"x\":{\"shape\":[1,2],\"data\":\"!!!!!!!!!!!=\"}," N "}", ERR_MALFORMED,
         "not the base64"},
        {"{\"inputs\":{\"x\":{\"shape\":[1,2],\"data\":[1,2,3]}," N "}", ERR_MISMATCH,
         "has 3 elements, its shape says 2"},
        {"{\"inputs\":{\"x\":{\"shape\":[1000000000,2],\"data\":\"\"}," N "}", ERR_TOO_BIG,
         "over the limit"},
        {"{\"inputs\":{\"x\":{\"shape\":[9000000000000000000,2],\"data\":[]}," N "}", ERR_RANGE,
         "elements at most"},
        {"{\"inputs\":{\"x\":{\"shape\":[-1,2],\"data\":[1,2]}," N "}", ERR_MALFORMED, "'shape'"},
        {"{\"inputs\":{\"x\":{\"shape\":3,\"data\":[1,2]}," N "}", ERR_MALFORMED, "'shape'"},
        {"{\"inputs\":{\"x\":{\"shape\":[0,2],\"data\":[]}," N "}", ERR_RANGE, "1 at least"},
        {"{\"inputs\":{\"x\":{\"dtype\":\"int8\",\"data\":[[1,2]]}," N "}", ERR_MISMATCH,
         "dtype is 'int8', the model wants float32"},
        {"{\"inputs\":{\"x\":{\"dims\":[1],\"data\":[[1,2]]}," N "}", ERR_MALFORMED, "'dims'"},
        {"{\"inputs\":{\"x\":[[1,2]]," N ",\"outputs\":[\"w\"]}", ERR_MALFORMED,
         "'w'; the model has y, z"},
        {"{\"inputs\":{\"x\":[[1,2]]," N ",\"outputs\":[]}", ERR_MALFORMED, "one or more names"},
        {"{\"inputs\":{\"x\":[[1,2]]," N ",\"outputs\":\"y\"}", ERR_MALFORMED, "list of"},
        {"{\"inputs\":{\"x\":[[1,2]]," N ",\"outputs\":[1]}", ERR_MALFORMED, "list of names"},
        {"{\"inputs\":{\"x\":[[1,2]]," N ",\"encoding\":\"hex\"}", ERR_RANGE, "'hex'"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct onnx_input input;
        struct err err = {0};
        int r = parse(rows[i].text, &input, &err);

        if (r != rows[i].code || strstr(err.text, rows[i].want) == NULL)
            fail_msg("row %zu (%s): %s (%s)", i, rows[i].text, err_name(r), err.text);
    }
}

static void test_taken(void **state)
{
    static const char *const rows[] = {
        "{\"inputs\":{\"x\":[[1,2],[3,4]]," N "}",
        "{\"inputs\":{\"x\":{\"data\":[[1.0,2e0],[3,4]]}," N "}",
        "{\"inputs\":{\"x\":{\"shape\":[2,2],\"data\":[1,2,3,4]}," N "}",
        "{\"inputs\":{\"x\":{\"shape\":[2,2],\"dtype\":\"float32\",\"data\":"
        "\"AACAPwAAAEAAAEBAAACAQA==\"}," N "}",
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(onnx_input_done) struct onnx_input input;
        const float *data;
        struct err err = {0};

        if (parse(rows[i], &input, &err) < 0)
            fail_msg("row %zu: %s", i, err.text);
        data = input.tensors[0].data;
        assert_true(input.tensors[0].rank == 2 && input.tensors[0].dims[0] == 2);
        assert_int_equal(input.tensors[0].size, 16);
        assert_true(data[0] == 1 && data[1] == 2 && data[2] == 3 && data[3] == 4);
        assert_int_equal(input.tensors[1].rank, 0);
        assert_int_equal(*(uint8_t *)input.tensors[1].data, 7);
        assert_true(input.wanted[0] && input.wanted[1] && !input.base64);
    }
}

static void test_half(void **state)
{
    static const struct {
        float value;
        uint16_t half;
    } rows[] = {
        {0, 0},          {1, 0x3c00},       {-2, 0xc000},           {65504, 0x7bff},
        {65519, 0x7bff}, {65520, 0x7c00},   {5.9604645e-8f, 1},     {6.1035156e-5f, 0x0400},
        {0.1f, 0x2e66},  {2.9e-8f, 0x0000}, {6.0975552e-5f, 0x3ff}, {2049, 0x6800},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        uint16_t half = onnx_float_to_half(rows[i].value);

        if (half != rows[i].half)
            fail_msg("%g: 0x%04x, not 0x%04x", (double)rows[i].value, half, rows[i].half);
    }
    for (uint32_t half = 0; half < 0x7c00; half++)
        assert_int_equal(onnx_float_to_half(onnx_half_to_float((uint16_t)half)), half);
    assert_true(isinf(onnx_half_to_float(0x7c00)) && isnan(onnx_half_to_float(0x7e00)));
}

static void expect_output(const struct onnx_tensor *y, const char *want)
{
    static const bool wanted[ONNX_OUTPUT_COUNT_MAX] = {true};
    OWNED(buf_done) struct buf to = BUF_WITH_LIMIT(1000);
    OWNED(mem_free)
    char *whole = xasprintf("{\"outputs\":{\"y\":{\"dtype\":\"float32\",%s}}}", want);
    struct err err = {0};

    assert_int_equal(onnx_output_write(&model, y, wanted, false, &to, &err), 0);
    assert_string_equal(buf_text(&to), whole);
}

static void test_output_lists(void **state)
{
    float data[] = {1, 0.5f, -3, 4, 5, 6, 7, 8};
    static const bool wanted[ONNX_OUTPUT_COUNT_MAX] = {true};
    struct onnx_tensor y = {
        .type = ONNX_FLOAT32, .rank = 3, .dims = {2, 2, 2}, .size = sizeof(data), .data = data};
    OWNED(buf_done) struct buf small = BUF_WITH_LIMIT(40);
    struct err err;

    (void)state;
    expect_output(&y, "\"shape\":[2,2,2],\"data\":[[[1,0.5],[-3,4]],[[5,6],[7,8]]]");
    assert_int_equal(onnx_output_write(&model, &y, wanted, false, &small, &err), ERR_TOO_BIG);
    y = (struct onnx_tensor){.type = ONNX_FLOAT32, .size = 4, .data = data};
    expect_output(&y, "\"shape\":[],\"data\":1");
    y = (struct onnx_tensor){.type = ONNX_FLOAT32, .rank = 2, .dims = {0, 3}, .data = data};
    expect_output(&y, "\"shape\":[0,3],\"data\":[]");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_taken),
        cmocka_unit_test(test_half),
        cmocka_unit_test(test_output_lists),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
