/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a media type that comes from outside is taken as it is meant, or refused; what passes the
 * check can stand in a header. Method: tables. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/assert.h"
#include "schema/media_type.h"

static void test_check(void **state)
{
    static const struct {
        const char *type;
        int code;
    } rows[] = {
        {"", 0},
        {"application/json", 0},
        {"text/plain; charset=utf-8", 0},
        {"multipart/form-data;boundary=\"a b\"", 0},
        {"application/vnd.api+json", 0},
        {"json", ERR_RANGE},
        {"/json", ERR_RANGE},
        {"text/", ERR_RANGE},
        {"text/plain charset", ERR_RANGE},
        {"text/plain; a=\r\nX: y", ERR_RANGE},
        {"text/plain; a=\xc3\xa9", ERR_RANGE},
        {" text/plain", ERR_RANGE},
    };
    char large[MEDIA_TYPE_SIZE_MAX + 2];
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        int r = media_type_check(WIRE_TEXT_OF(rows[i].type), &err);

        if (r != rows[i].code)
            fail_msg("'%s': %d", rows[i].type, r);
    }
    memset(large, 'a', sizeof(large) - 1);
    large[sizeof(large) - 1] = '\0';
    large[3] = '/';
    assert_int_equal(media_type_check(WIRE_TEXT_OF(large), &err), ERR_RANGE);
    large[MEDIA_TYPE_SIZE_MAX] = '\0';
    assert_int_equal(media_type_check(WIRE_TEXT_OF(large), &err), 0);
}

static void test_is(void **state)
{
    (void)state;
    assert_true(media_type_is(WIRE_TEXT_OF(""), MEDIA_TYPE_JSON));
    assert_true(media_type_is(WIRE_TEXT_OF("Application/JSON ; charset=x"), MEDIA_TYPE_JSON));
    assert_false(media_type_is(WIRE_TEXT_OF("application/json5"), MEDIA_TYPE_JSON));
    assert_false(media_type_is(WIRE_TEXT_OF("application/jso"), MEDIA_TYPE_JSON));
    assert_false(media_type_is(WIRE_TEXT_OF(""), MEDIA_TYPE_BYTES));
    assert_true(media_type_is(WIRE_TEXT_OF("APPLICATION/octet-stream"), MEDIA_TYPE_BYTES));
}

static void test_listed(void **state)
{
    static const struct {
        const char *list;
        bool listed;
    } rows[] = {
        {"", false},
        {"*/*", false},
        {"application/json", true},
        {"text/html, application/json;q=0.5", true},
        {"text/html,application/json; q=0", false},
        {"application/json;a=b;q=0.000", false},
        {"application/json;q=0.001", true},
        {"application/jsonx", false},
        {",,application/JSON,", true},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (media_type_listed(rows[i].list, MEDIA_TYPE_JSON) != rows[i].listed)
            fail_msg("'%s'", rows[i].list);
    }
}

static void value_is(const char *type, const char *bytes, size_t size, const char *want)
{
    OWNED(buf_done) struct buf to = BUF_WITH_LIMIT(1000);

    media_append_value(&to, WIRE_TEXT_OF(type), (struct wire_bytes){(const uint8_t *)bytes, size});
    assert_string_equal(buf_text(&to), want);
}

static void test_values(void **state)
{
    OWNED(buf_done) struct buf to = BUF_WITH_LIMIT(1000);

    (void)state;
    value_is("", "[1]", 3, "[1]");
    value_is("application/json", "", 0, "null");
    value_is("text/plain", "a\"b", 3, "\"a\\\"b\"");
    value_is("text/plain", "", 0, "\"\"");
    value_is("image/png", "\xff\x00", 2, "{\"content_type\":\"image/png\",\"base64\":\"/wA=\"}");
    /* A model that calls it JSON must not write beside its own value. */
    value_is("", "1,\"errors\":[]", 13, "\"1,\\\"errors\\\":[]\"");
    value_is("application/json", "NaN", 3, "\"NaN\"");
    value_is("application/json; charset=utf-8", "{} {}", 5, "\"{} {}\"");
    value_is("", "\xff", 1, "{\"content_type\":\"application/json\",\"base64\":\"/w==\"}");
    value_is("", " 18446744073709551616 ", 22, " 18446744073709551616 ");
    media_append_member(&to, (struct wire_bytes){(const uint8_t *)"\xc3", 1});
    assert_string_equal(buf_text(&to), "\"base64\":\"ww==\"");
    buf_clear(&to);
    media_append_member(&to, (struct wire_bytes){(const uint8_t *)"\xc3\xa9", 2});
    assert_string_equal(buf_text(&to), "\"text\":\"\xc3\xa9\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_is),
        cmocka_unit_test(test_listed),
        cmocka_unit_test(test_values),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
