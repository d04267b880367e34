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

static const struct {
    enum encoder_route route;
    const char *json;
    int code;
    const char *text;
} refused_of_routes[] = {
    {ENCODER_ROUTE_RERANK, "7", ERR_MALFORMED, "not an object with 'query'"},
    {ENCODER_ROUTE_RERANK, "{\"texts\":[\"a\"]}", ERR_MALFORMED, "query is missing"},
    {ENCODER_ROUTE_RERANK, "{\"query\":[\"a\"],\"texts\":[\"a\"]}", ERR_MALFORMED,
     "query is an array, not a text"},
    {ENCODER_ROUTE_RERANK, "{\"query\":\"a\"}", ERR_MALFORMED,
     "texts is missing: an array of texts"},
    {ENCODER_ROUTE_RERANK, "{\"query\":\"a\",\"texts\":\"b\"}", ERR_MALFORMED,
     "texts is a text, not an array of texts"},
    {ENCODER_ROUTE_RERANK, "{\"query\":\"a\",\"texts\":[]}", ERR_RANGE, "texts has 0 texts"},
    {ENCODER_ROUTE_RERANK, "{\"query\":\"a\",\"texts\":[1]}", ERR_UNSUPPORTED,
     "texts[0] is a number"},
    {ENCODER_ROUTE_RERANK, "{\"query\":\"a\",\"texts\":[\"b\"],\"return_text\":1}", ERR_MALFORMED,
     "'return_text'"},
    {ENCODER_ROUTE_PREDICT, "{}", ERR_MALFORMED, "inputs is missing"},
    {ENCODER_ROUTE_PREDICT, "{\"inputs\":[]}", ERR_RANGE, "inputs has 0 texts"},
    {ENCODER_ROUTE_PREDICT, "{\"inputs\":[\"a\"]}", ERR_MALFORMED,
     "inputs[0] is a text, not an array of one text or two"},
    {ENCODER_ROUTE_PREDICT, "{\"inputs\":[[\"a\"],[]]}", ERR_RANGE,
     "inputs[1] has 0 texts, allowed are 1 to 2"},
    {ENCODER_ROUTE_PREDICT, "{\"inputs\":[[\"a\",\"b\",\"c\"]]}", ERR_RANGE,
     "inputs[0] has 3 texts, allowed are 1 to 2"},
    {ENCODER_ROUTE_PREDICT, "{\"inputs\":[[\"a\",null]]}", ERR_UNSUPPORTED, "inputs[0][1] is null"},
    {ENCODER_ROUTE_PREDICT, "{\"inputs\":\"a\",\"raw_scores\":\"yes\"}", ERR_MALFORMED,
     "'raw_scores' is neither"},
    {ENCODER_ROUTE_PREDICT, "{\"inputs\":\"a\",\"truncation_direction\":\"left\"}", ERR_UNSUPPORTED,
     "truncation_direction is 'left', allowed are Right and Left"},
    {ENCODER_ROUTE_PREDICT_TOKENS, "{\"inputs\":[[\"a\",\"b\"]]}", ERR_RANGE,
     "inputs[0] has 2 texts, allowed is 1"},
    {ENCODER_ROUTE_PREDICT_TOKENS, "{\"inputs\":\"a\",\"aggregation_strategy\":\"best\"}",
     ERR_UNSUPPORTED,
     "aggregation_strategy is 'best', allowed are none, simple, first, average and max"},
};

static void check_refusal(enum encoder_route route, const char *json, int code, const char *text)
{
    OWNED(encoder_input_done) struct encoder_input input = {0};
    struct err err = {0};
    int r = encoder_input_parse(json, strlen(json), route, DIMENSIONS, &input, &err);

    if (r != code || strstr(err.text, text) == NULL)
        fail_msg("%s: %s (%s)", json, err_name(r), err.text);
}

static void test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(refused); i++)
        check_refusal(ENCODER_ROUTE_EMBEDDINGS, refused[i].json, refused[i].code, refused[i].text);
    for (size_t i = 0; i < COUNT_OF(refused_of_routes); i++)
        check_refusal(refused_of_routes[i].route, refused_of_routes[i].json,
                      refused_of_routes[i].code, refused_of_routes[i].text);
}

static void parse(const char *json, struct encoder_input *ret_input)
{
    struct err err = {0};

    if (encoder_input_parse(json, strlen(json), ENCODER_ROUTE_EMBEDDINGS, DIMENSIONS, ret_input,
                            &err) < 0)
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
    assert_int_equal(encoder_input_parse(json.bytes, json.size, ENCODER_ROUTE_EMBEDDINGS,
                                         DIMENSIONS, &input, &err),
                     ERR_RANGE);
    assert_string_equal(err.text, "input has 2049 texts, allowed are 1 to 2048");
}

static void parse_route(const char *json, enum encoder_route route, struct encoder_input *ret_input)
{
    struct err err = {0};

    if (encoder_input_parse(json, strlen(json), route, DIMENSIONS, ret_input, &err) < 0)
        fail_msg("%s: %s", json, err.text);
}

static void test_pairs(void **state)
{
    OWNED(encoder_input_done) struct encoder_input ranks = {0};
    OWNED(encoder_input_done) struct encoder_input labels = {0};
    size_t size;

    (void)state;
    parse_route("{\"query\":\"q\",\"texts\":[\"a\",\"\"],\"return_text\":true}",
                ENCODER_ROUTE_RERANK, &ranks);
    assert_int_equal(ranks.text_count, 2);
    assert_true(ranks.return_text && !ranks.raw_scores && !ranks.truncate && !ranks.truncate_left);
    assert_string_equal(encoder_input_text(&ranks, 1, &size), "q");
    assert_string_equal(encoder_input_second(&ranks, 0, &size), "a");
    assert_string_equal(encoder_input_second(&ranks, 1, &size), "");
    parse_route("{\"inputs\":[[\"a\"],[\"b\",\"c\"]],\"raw_scores\":true,\"truncate\":true,"
                "\"truncation_direction\":\"Left\"}",
                ENCODER_ROUTE_PREDICT, &labels);
    assert_int_equal(labels.text_count, 2);
    assert_true(labels.raw_scores && labels.truncate && labels.truncate_left);
    assert_null(encoder_input_second(&labels, 0, &size));
    assert_string_equal(encoder_input_text(&labels, 1, &size), "b");
    assert_string_equal(encoder_input_second(&labels, 1, &size), "c");
}

static void test_routes_are_found(void **state)
{
    enum encoder_route route = ENCODER_ROUTE_COUNT;

    (void)state;
    assert_true(encoder_route_find("POST /rerank?a=b", &route));
    assert_int_equal(route, ENCODER_ROUTE_RERANK);
    assert_true(encoder_route_find("POST /predict", &route));
    assert_int_equal(route, ENCODER_ROUTE_PREDICT);
    assert_true(encoder_route_find("POST /predict_tokens", &route));
    assert_int_equal(route, ENCODER_ROUTE_PREDICT_TOKENS);
    assert_false(encoder_route_find("GET /predict", &route));
    assert_false(encoder_route_find("POST /pre", &route));
    assert_false(encoder_route_find("", &route));
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
        cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_routes_are_found),
        cmocka_unit_test(test_unknown_fields_are_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
