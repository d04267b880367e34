/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what is wrong with an input is said with field, value and limit; what is right is taken. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "workers/engines/encoder/encoder_input.h"

#define DIMENSIONS 32u

static const struct {
    const char *json;
    int code;
    const char *text;
} refused[] = {
    {"", ERR_MALFORMED, "model_input is not JSON"},
    {"{\"input\":\"a\"", ERR_MALFORMED, "model_input is not JSON at byte"},
    {"{\"input\":\"\xff\"}", ERR_MALFORMED, "unable to decode byte 0xff"},
    {"\"text\"", ERR_MALFORMED, "model_input is a text, not an object with 'input'"},
    {"[\"text\"]", ERR_MALFORMED, "model_input is an array"},
    {"{}", ERR_MALFORMED, "input is missing"},
    {"{\"input\":7}", ERR_MALFORMED, "input is a number"},
    {"{\"input\":null}", ERR_MALFORMED, "input is null"},
    {"{\"input\":[]}", ERR_RANGE, "input has 0 texts, allowed are 1 to 2048"},
    {"{\"input\":[\"a\",[1,2]]}", ERR_UNSUPPORTED, "input[1] is an array"},
    {"{\"input\":[1,2]}", ERR_UNSUPPORTED, "input[0] is a number, only texts"},
    {"{\"input\":\"a\",\"encoding_format\":\"int8\"}", ERR_UNSUPPORTED,
     "encoding_format is 'int8'"},
    {"{\"input\":\"a\",\"encoding_format\":1}", ERR_MALFORMED, "'encoding_format' is no text"},
    {"{\"input\":\"a\",\"dimensions\":16}", ERR_UNSUPPORTED, "dimensions is 16, this model has 32"},
    {"{\"input\":\"a\",\"dimensions\":\"32\"}", ERR_MALFORMED, "dimensions is a text"},
    {"{\"input\":\"a\",\"truncate\":\"no\"}", ERR_MALFORMED, "'truncate' is neither"},
    {"{\"input\":\"a\",\"input\":\"b\"}", ERR_MALFORMED, "duplicate"},
};

static void test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(refused); i++) {
        OWNED(encoder_input_done) struct encoder_input input = {0};
        struct err err = {0};
        int r = encoder_input_parse(refused[i].json, strlen(refused[i].json), DIMENSIONS, &input,
                                    &err);

        if (r != refused[i].code || strstr(err.text, refused[i].text) == NULL)
            fail_msg("%s: %s (%s)", refused[i].json, err_name(r), err.text);
    }
}

static void parse(const char *json, struct encoder_input *ret_input)
{
    struct err err = {0};

    if (encoder_input_parse(json, strlen(json), DIMENSIONS, ret_input, &err) < 0)
        fail_msg("%s: %s", json, err.text);
}

static void test_one_text(void **state)
{
    OWNED(encoder_input_done) struct encoder_input input = {0};
    size_t size;

    (void)state;
    parse("{\"input\":\"a\\u0000b\",\"model\":\"m\",\"user\":\"u\",\"dimensions\":32}", &input);
    assert_int_equal(input.text_count, 1);
    assert_false(input.base64);
    assert_true(input.truncate);
    assert_null(input.warnings);
    assert_memory_equal(encoder_input_text(&input, 0, &size), "a\0b", 3);
    assert_int_equal(size, 3);
}

static void test_many_texts_and_options(void **state)
{
    OWNED(encoder_input_done) struct encoder_input input = {0};
    size_t size;

    (void)state;
    parse("{\"input\":[\"a\",\"\",\"ccc\"],\"encoding_format\":\"base64\",\"truncate\":false,"
          "\"dimensions\":null}",
          &input);
    assert_int_equal(input.text_count, 3);
    assert_true(input.base64);
    assert_false(input.truncate);
    assert_string_equal(encoder_input_text(&input, 2, &size), "ccc");
    (void)encoder_input_text(&input, 1, &size);
    assert_int_equal(size, 0);
}

static void test_the_most_texts(void **state)
{
    OWNED(buf_done) struct buf json = BUF_WITH_LIMIT(1u << 20);
    OWNED(encoder_input_done) struct encoder_input input = {0};
    struct err err;

    (void)state;
    buf_append_text(&json, "{\"input\":[\"\"");
    for (uint32_t i = 1; i < ENCODER_TEXT_COUNT_MAX; i++)
        buf_append_text(&json, ",\"\"");
    buf_append_text(&json, "]}");
    parse(buf_text(&json), &input);
    assert_int_equal(input.text_count, ENCODER_TEXT_COUNT_MAX);
    encoder_input_done(&input);
    json.size -= 2;
    buf_append_text(&json, ",\"\"]}");
    assert_int_equal(encoder_input_parse(json.bytes, json.size, DIMENSIONS, &input, &err),
                     ERR_RANGE);
    assert_string_equal(err.text, "input has 2049 texts, allowed are 1 to 2048");
}

static void test_unknown_fields_are_named(void **state)
{
    OWNED(encoder_input_done) struct encoder_input input = {0};
    OWNED(encoder_input_done) struct encoder_input many = {0};

    (void)state;
    parse("{\"input\":\"a\",\"inptu\":1}", &input);
    assert_int_equal(json_array_size(input.warnings), 1);
    assert_string_equal(json_string_value(json_array_get(input.warnings, 0)),
                        "unknown field 'inptu' is ignored");
    parse(
        "{\"input\":\"a\",\"1\":1,\"2\":1,\"3\":1,\"4\":1,\"5\":1,\"6\":1,\"7\":1,\"8\":1,\"9\":1,"
        "\"10\":1,\"11\":1}",
        &many);
    assert_int_equal(json_array_size(many.warnings), ENCODER_WARNING_COUNT_MAX + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_one_text),
        cmocka_unit_test(test_many_texts_and_options),
        cmocka_unit_test(test_the_most_texts),
        cmocka_unit_test(test_unknown_fields_are_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
