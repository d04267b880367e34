/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a failure keeps its code, class and status, and gains context on the way up. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/err.h"

static void test_every_code_has_a_class_and_a_status(void **state)
{
    static const int codes[] = {
#define ERROR(name, value, class, http, text) name,
#include "base/errors.def"
#undef ERROR
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(codes); i++) {
        assert_int_equal(codes[i], -(int)i - 1);
        assert_int_not_equal(err_class(codes[i]), ERR_CLASS_OK);
        assert_in_range((unsigned)err_http_status(codes[i]), 400, 504);
        assert_int_equal(strncmp(err_name(codes[i]), "ERR_", 4), 0);
    }
    assert_int_equal(err_http_status(ERR_OK), 200);
}

static void test_wrap_puts_context_in_front(void **state)
{
    struct err err;

    (void)state;
    assert_int_equal(err_set(&err, ERR_RANGE, "priority is %d, must be 0 to 2", 7), ERR_RANGE);
    assert_int_equal(err_wrap(&err, "job '%s'", "a"), ERR_RANGE);
    assert_string_equal(err.text, "job 'a': priority is 7, must be 0 to 2");
}

static void test_wrap_says_that_it_was_cut(void **state)
{
    struct err err;
    char longer[ERR_TEXT_SIZE * 2];

    (void)state;
    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    (void)err_set(&err, ERR_IO, "end");
    (void)err_wrap(&err, "%s", longer);
    assert_int_equal(strlen(err.text), ERR_TEXT_SIZE - 1);
    assert_string_equal(err.text + ERR_TEXT_SIZE - 4, "...");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code_has_a_class_and_a_status),
        cmocka_unit_test(test_wrap_puts_context_in_front),
        cmocka_unit_test(test_wrap_says_that_it_was_cut),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
