/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: limits on a command line become the JSON that was meant, and what is no number is named. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/client.h"
#include "cli/limits.h"

static void test_numbers(void **state)
{
    char a[] = "running_jobs=10", b[] = "rate_per_second=2.5", c[] = "payload_bytes=4G",
         d[] = "weight=", e[] = "x=-1";
    char *operands[] = {a, b, c, d, e};
    OWNED(client_json_free) json_t *limits = NULL;
    OWNED(mem_free) char *text = NULL;
    struct err err;

    (void)state;
    assert_int_equal(limits_of_operands(operands, COUNT_OF(operands), &limits, &err), 0);
    text = json_dumps(limits, JSON_COMPACT | JSON_PRESERVE_ORDER);
    assert_string_equal(text, "{\"running_jobs\":10,\"rate_per_second\":2.5,"
                              "\"payload_bytes\":4000000000,\"weight\":null,\"x\":-1}");
}

static void test_what_is_no_number(void **state)
{
    static const char *const rows[][2] = {
        {"running_jobs", "'running_jobs' is no NAME=NUMBER"},
        {"=3", "'=3' is no"},
        {"a=ten", "a is 'ten'; it must be a number"},
        {"a=1 0", "'1 0'"},
        {"a=inf", "'inf'"},
        {"a=3X", "'3X'"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(mem_free) char *operand = xstrdup(rows[i][0]);
        json_t *limits = NULL;
        struct err err;

        assert_int_equal(limits_of_operands(&operand, 1, &limits, &err), ERR_USAGE);
        if (strstr(err.text, rows[i][1]) == NULL)
            fail_msg("%s: %s", rows[i][0], err.text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_what_is_no_number),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
