/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: clocks agree with each other and times are written as every other program reads them. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"

static void test_clocks_agree(void **state)
{
    uint64_t mono_us = clock_mono_us(), mono_ms = clock_mono_ms(), wall_ms = clock_wall_ms();

    (void)state;
    assert_in_range(mono_ms, mono_us / 1000, mono_us / 1000 + 5000);
    assert_true(clock_mono_us() >= mono_us);
    assert_in_range(clock_wall_us() / 1000, wall_ms, wall_ms + 5000);
    assert_true(wall_ms > 1700000000000); /* after 2023: it is not the monotonic one */
}

static void test_iso(void **state)
{
    static const struct {
        uint64_t wall_us;
        const char *text;
    } rows[] = {
        {0, "1970-01-01T00:00:00.000000+00:00"},
        {1, "1970-01-01T00:00:00.000001+00:00"},
        {951782400000000, "2000-02-29T00:00:00.000000+00:00"},
        {1769862896123456, "2026-01-31T12:34:56.123456+00:00"},
        {4102444799999999, "2099-12-31T23:59:59.999999+00:00"},
    };
    char text[CLOCK_TEXT_SIZE];

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        clock_format_iso(rows[i].wall_us, text);
        assert_string_equal(text, rows[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clocks_agree),
        cmocka_unit_test(test_iso),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
