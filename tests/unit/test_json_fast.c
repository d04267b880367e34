/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: fields come typed and verbatim, and nothing that two parsers could read differently gets
 * through. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/json_fast.h"

static int parse(struct json_fast *parser, const char *text, struct err *err)
{
    return json_fast_parse(parser, text, strlen(text), false, err);
}

static void test_fields_in_order_and_verbatim(void **state)
{
    static const char text[] =
        " {\"a\" : {\"x\": [1, 2.50 ,\"]}\"]} , \"b\":-7 ,\"c\":\"t\\u00fc\\n\","
        "\"d\":[ ],\"e\": true\n,\"f\":null}";
    static const struct {
        const char *key, *raw;
        enum json_type type;
    } want[] = {
        {"a", "{\"x\": [1, 2.50 ,\"]}\"]}", JSON_TYPE_OBJECT},
        {"b", "-7", JSON_TYPE_NUMBER},
        {"c", "\"t\\u00fc\\n\"", JSON_TYPE_STRING},
        {"d", "[ ]", JSON_TYPE_ARRAY},
        {"e", "true", JSON_TYPE_BOOL},
        {"f", "null", JSON_TYPE_NULL},
    };
    OWNED(json_fast_free) struct json_fast *parser = json_fast_new();
    struct json_field field;
    const char *string;
    int64_t number;
    size_t size;
    bool yes;
    struct err err;

    (void)state;
    assert_int_equal(parse(parser, text, &err), 0);
    for (size_t i = 0; i < COUNT_OF(want); i++) {
        assert_true(json_fast_next(parser, &field));
        assert_string_equal(field.key, want[i].key);
        assert_int_equal(field.type, want[i].type);
        assert_int_equal(field.raw_size, strlen(want[i].raw));
        assert_memory_equal(field.raw, want[i].raw, field.raw_size);
        assert_memory_equal(text + field.raw_start, want[i].raw, field.raw_size);
    }
    assert_false(json_fast_next(parser, &field));
    assert_true(json_fast_find(parser, "b", &field));
    assert_int_equal(json_fast_int64(parser, &field, &number, &err), 0);
    assert_int_equal(number, -7);
    assert_int_equal(json_fast_bool(parser, &field, &yes, &err), ERR_MALFORMED);
    assert_string_equal(err.text, "b must be true or false, not number");
    assert_true(json_fast_find(parser, "c", &field));
    assert_int_equal(json_fast_string(parser, &field, &string, &size, &err), 0);
    assert_string_equal(string, "tü\n");
    assert_int_equal(size, 4);
}

static void test_refusals(void **state)
{
    static const struct {
        const char *text;
        int code;
    } rows[] = {
        {"", ERR_MALFORMED},
        {"   ", ERR_MALFORMED},
        {"[]", ERR_MALFORMED},
        {"\"text\"", ERR_MALFORMED},
        {"{", ERR_MALFORMED},
        {"{}x", ERR_MALFORMED},
        {"{} {}", ERR_MALFORMED},
        {"{\"a\":1,}", ERR_MALFORMED},
        {"{\"a\":01}", ERR_MALFORMED},
        {"{\"a\":NaN}", ERR_MALFORMED},
        {"{\"a\":-}", ERR_MALFORMED},
        {"{\"a\":12345678901234567890123.}", ERR_MALFORMED},
        {"{\"a\":012345678901234567890123}", ERR_MALFORMED},
        {"{\"a\":12345678901234567890123x}", ERR_MALFORMED},
        {"{\"a\":1e}", ERR_MALFORMED},
        {"{\"a\":1e400,\"b\":1e4+0}", ERR_MALFORMED},
        {"{\"a\":1e400,\"b\":tru}", ERR_MALFORMED},
        {"{\"a\":[1e400,}", ERR_MALFORMED},
        {"{\"a\":1e400", ERR_MALFORMED},
        {"{\"a\":1e400,\"a\":2}", ERR_MALFORMED},
        {"{\"a\":1,\"a\":2}", ERR_MALFORMED},
        {"{\"a\":1,\"\\u0061\":2}", ERR_MALFORMED},
        {"{\"a\\u0000b\":1}", ERR_MALFORMED},
        {"{\"a\":\"\xff\"}", ERR_MALFORMED},
        {"{\"a\":\"\x01\"}", ERR_MALFORMED},
        {"{\"a\":\"\\ud800\"}", ERR_MALFORMED},
        {"\xef\xbb\xbf{}", ERR_MALFORMED},
        {"{'a':1}", ERR_MALFORMED},
        {"{\"a\":tru}", ERR_MALFORMED},
    };
    OWNED(json_fast_free) struct json_fast *parser = json_fast_new();
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        int r = parse(parser, rows[i].text, &err);

        if (r != rows[i].code)
            fail_msg("'%s': %d, want %d", rows[i].text, r, rows[i].code);
        assert_int_equal(json_fast_field_count(parser), 0);
    }
    assert_int_equal(parse(parser, "{\"a\":{}}", &err), 0);
}

static void test_depth_and_count_are_bounded(void **state)
{
    OWNED(json_fast_free) struct json_fast *parser = json_fast_new();
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(1 << 20);
    struct err err;

    (void)state;
    buf_append_text(&text, "{\"a\":");
    for (int i = 0; i < 200; i++)
        buf_append_byte(&text, '[');
    for (int i = 0; i < 200; i++)
        buf_append_byte(&text, ']');
    buf_append_byte(&text, '}');
    assert_int_equal(parse(parser, buf_text(&text), &err), ERR_TOO_BIG);
    buf_clear(&text);
    for (int i = 0; i <= JSON_FAST_FIELDS_MAX; i++)
        buf_printf(&text, "%c\"k%d\":1", i == 0 ? '{' : ',', i);
    buf_append_byte(&text, '}');
    assert_int_equal(parse(parser, buf_text(&text), &err), ERR_TOO_BIG);
}

/* What no getter asks for is handed on as it is, however large. */
static void test_numbers_past_64_bits_are_handed_on(void **state)
{
    static const char text[] =
        "{\"a\":{\"n\":123456789012345678901234567890, \"e\":[1e400,-1E+999,0.1e-999]},"
        "\"b\":-98765432109876543210.5e+7 ,\"c\":\"1e400 \\\" -12345678901234567890123\","
        "\"d\":9,\"f\":98765432109876543210}";
    static const struct {
        const char *key, *raw;
        enum json_type type;
    } want[] = {
        {"a", "{\"n\":123456789012345678901234567890, \"e\":[1e400,-1E+999,0.1e-999]}",
         JSON_TYPE_OBJECT},
        {"b", "-98765432109876543210.5e+7", JSON_TYPE_NUMBER},
        {"c", "\"1e400 \\\" -12345678901234567890123\"", JSON_TYPE_STRING},
        {"d", "9", JSON_TYPE_NUMBER},
        {"f", "98765432109876543210", JSON_TYPE_NUMBER},
    };
    OWNED(json_fast_free) struct json_fast *parser = json_fast_new();
    struct json_field field;
    const char *string;
    int64_t number;
    double real;
    struct err err;

    (void)state;
    assert_int_equal(parse(parser, text, &err), 0);
    assert_int_equal(json_fast_field_count(parser), COUNT_OF(want));
    for (size_t i = 0; i < COUNT_OF(want); i++) {
        assert_true(json_fast_next(parser, &field));
        assert_string_equal(field.key, want[i].key);
        assert_int_equal(field.type, want[i].type);
        assert_int_equal(field.raw_size, strlen(want[i].raw));
        assert_memory_equal(field.raw, want[i].raw, field.raw_size);
        assert_memory_equal(text + field.raw_start, want[i].raw, field.raw_size);
    }
    assert_true(json_fast_find(parser, "b", &field));
    assert_int_equal(json_fast_double(parser, &field, &real, &err), 0);
    assert_true(real < -9.8e26 && real > -9.9e26);
    assert_true(json_fast_find(parser, "c", &field));
    assert_int_equal(json_fast_string(parser, &field, &string, NULL, &err), 0);
    assert_string_equal(string, "1e400 \" -12345678901234567890123");
    assert_true(json_fast_find(parser, "d", &field));
    assert_int_equal(json_fast_int64(parser, &field, &number, &err), 0);
    assert_int_equal(number, 9);
    assert_true(json_fast_find(parser, "f", &field));
    assert_int_equal(json_fast_int64(parser, &field, &number, &err), ERR_RANGE);
    assert_int_equal(parse(parser, "{\"n\":1e400}", &err), 0);
    assert_true(json_fast_find(parser, "n", &field));
    assert_int_equal(json_fast_double(parser, &field, &real, &err), ERR_RANGE);
}

static void test_numbers(void **state)
{
    static const struct {
        const char *text;
        int code;
        int64_t want;
    } rows[] = {
        {"{\"n\":9223372036854775807}", 0, INT64_MAX},
        {"{\"n\":-9223372036854775808}", 0, INT64_MIN},
        {"{\"n\":9223372036854775808}", ERR_RANGE, 0},
        {"{\"n\":1.0}", ERR_MALFORMED, 0},
        {"{\"n\":1e3}", ERR_MALFORMED, 0},
        {"{\"n\":\"1\"}", ERR_MALFORMED, 0},
    };
    OWNED(json_fast_free) struct json_fast *parser = json_fast_new();
    struct json_field field;
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        int64_t number = 0;

        assert_int_equal(parse(parser, rows[i].text, &err), 0);
        assert_true(json_fast_next(parser, &field));
        assert_int_equal(json_fast_int64(parser, &field, &number, &err), rows[i].code);
        assert_true(number == rows[i].want);
    }
}

struct taken {
    char text[200];
    size_t size;
};

static int take_leaf(void *opaque, const struct json_leaf *leaf, struct err *err)
{
    struct taken *taken = opaque;
    char *to = taken->text + taken->size;
    size_t room = sizeof(taken->text) - taken->size;

    if (leaf->kind == JSON_LEAF_TEXT && strcmp(leaf->text, "stop") == 0)
        return err_set(err, ERR_CANCELED, "told to stop");
    if (leaf->kind == JSON_LEAF_INT || leaf->kind == JSON_LEAF_BOOL)
        taken->size += (size_t)snprintf(to, room, "%lld ", (long long)leaf->integer);
    else if (leaf->kind == JSON_LEAF_LARGE)
        taken->size += (size_t)snprintf(to, room, "%llu ", (unsigned long long)leaf->large);
    else if (leaf->kind == JSON_LEAF_DOUBLE)
        taken->size += (size_t)snprintf(to, room, "%g ", leaf->number);
    else
        taken->size += (size_t)snprintf(to, room, "%s ", leaf->text);
    return 0;
}

static void test_lists(void **state)
{
    static const struct {
        const char *list;
        int code;
        const char *want; /* the shape and the values, or a word of the refusal */
    } rows[] = {
        {"7", 0, "0: 7 "},
        {"[1,-2.5,true,\"x\"]", 0, "1 4: 1 -2.5 1 x "},
        {"[[1,2,3],[4,5,18446744073709551615]]", 0, "2 2 3: 1 2 3 4 5 18446744073709551615 "},
        {"[]", 0, "1 0: "},
        {"[[],[]]", 0, "2 2 0: "},
        {"[[[1]]]", 0, "3 1 1 1: 1 "},
        {"[[1],[2,3]]", ERR_MALFORMED, "no one shape"},
        {"[[1],2]", ERR_MALFORMED, "no one shape"},
        {"[1,[2]]", ERR_MALFORMED, "no one shape"},
        {"[[],1]", ERR_MALFORMED, "no one shape"},
        {"[[],[1]]", ERR_MALFORMED, "no one shape"},
        {"[null]", ERR_MALFORMED, "null"},
        {"[{}]", ERR_MALFORMED, "object"},
        {"[[[[[[[[[1]]]]]]]]]", ERR_TOO_BIG, "deeper than 8"},
        {"[1,2,3,4,5,6,7,8,9]", ERR_TOO_BIG, "more than 8"},
        {"[1,\"stop\",3]", ERR_CANCELED, "told to stop"},
        {"[1e999]", ERR_RANGE, "64 bits"},
    };
    OWNED(json_fast_free) struct json_fast *parser = json_fast_new();

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(mem_free) char *text = xasprintf("{\"list\":%s}", rows[i].list);
        struct taken taken = {.size = 0};
        struct json_field field;
        struct json_list list;
        char got[400];
        size_t size;
        struct err err = {0};
        int r;

        assert_int_equal(parse(parser, text, &err), 0);
        assert_true(json_fast_find(parser, "list", &field));
        r = json_fast_list(parser, &field, 8, take_leaf, &taken, &list, &err);
        size = (size_t)snprintf(got, sizeof(got), "%u", list.rank);
        for (uint32_t d = 0; d < list.rank; d++)
            size += (size_t)snprintf(got + size, sizeof(got) - size, " %d", (int)list.dims[d]);
        (void)snprintf(got + size, sizeof(got) - size, ": %s", taken.text);
        if (r != rows[i].code ||
            (r == 0 ? strcmp(got, rows[i].want) != 0 : strstr(err.text, rows[i].want) == NULL))
            fail_msg("%s: %s (%s), %s", rows[i].list, err_name(r), err.text, got);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields_in_order_and_verbatim),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_depth_and_count_are_bounded),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_numbers_past_64_bits_are_handed_on),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
