/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a buffer never passes the limit that it was made with, and says so once. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/buf.h"

static void test_append_and_consume(void **state)
{
    OWNED(buf_done) struct buf buf = BUF_WITH_LIMIT(100);
    struct err err;

    (void)state;
    buf_append_text(&buf, "hello");
    buf_printf(&buf, " %d", 42);
    assert_string_equal(buf_text(&buf), "hello 42");
    buf_consume(&buf, 6);
    assert_string_equal(buf_text(&buf), "42");
    assert_int_equal(buf_check(&buf, "text", &err), 0);
}

static void test_limit_is_refused_once_and_for_all(void **state)
{
    OWNED(buf_done) struct buf buf = BUF_WITH_LIMIT(8);
    struct err err;

    (void)state;
    buf_append_text(&buf, "12345678");
    assert_int_equal(buf_check(&buf, "body", &err), 0);
    buf_append_byte(&buf, '9');
    buf_clear(&buf);
    buf_append(&buf, "123456789", 9);
    assert_int_equal(buf.size, 0);
    assert_int_equal(buf_check(&buf, "body", &err), ERR_TOO_BIG);
    assert_string_equal(err.text, "body is over its limit of 8 bytes");
    assert_null(buf_reserve(&buf, 1));
}

static void test_move_leaves_an_empty_buffer(void **state)
{
    OWNED(buf_done) struct buf from = BUF_WITH_LIMIT(8);
    OWNED(buf_done) struct buf to = BUF_WITH_LIMIT(0);

    (void)state;
    buf_append_text(&from, "abc");
    buf_move(&to, &from);
    assert_int_equal(from.size, 0);
    assert_null(from.bytes);
    assert_string_equal(buf_text(&to), "abc");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_append_and_consume),
        cmocka_unit_test(test_limit_is_refused_once_and_for_all),
        cmocka_unit_test(test_move_leaves_an_empty_buffer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
