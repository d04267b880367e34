/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: every form of RFC 3339 means what it says, and nothing else means anything. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "producers/gateway_time.h"

static void test_good(void **state)
{
    static const struct {
        const char *text;
        uint64_t want_us;
    } rows[] = {
        {"1970-01-01", 0},
        {"2026-01-31", 1769817600000000},
        {"2024-02-29T00:00:00Z", 1709164800000000},
        {"2026-01-31T12:34:56Z", 1769862896000000},
        {"2026-01-31t12:34:56z", 1769862896000000},
        {"2026-01-31T12:34:56.5Z", 1769862896500000},
        {"2026-01-31T12:34:56.123456789+00:00", 1769862896123456},
        {"2026-01-31T14:34:56+02:00", 1769862896000000},
        {"2026-01-31T14:34:56 02:00", 1769862896000000},
        {"2026-01-31T07:04:56-05:30", 1769862896000000},
        {"9999-12-31T23:59:59Z", 253402300799000000},
        {"1969-12-31", 0},
        {"0001-01-01T00:00:00+01:00", 0},
    };
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        uint64_t us = 0;

        if (gateway_time_parse(rows[i].text, &us, &err) < 0 || us != rows[i].want_us)
            fail_msg("%s: %llu", rows[i].text, (unsigned long long)us);
    }
}

static void test_bad(void **state)
{
    static const char *const rows[] = {
        "",
        "yesterday",
        "2026",
        "2026-13-01",
        "2026-02-29",
        "2026-1-1",
        "10000-01-01",
        "2026-01-31T12:34:56",
        "2026-01-31T24:00:00Z",
        "0000-01-01",
        "2026-01-31T12:34:56.Z",
        "2026-01-31 x",
        "2026-01-31T12:34Z",
        "2026-01-31T12:34:56Zx",
    };
    struct err err;
    uint64_t us;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (gateway_time_parse(rows[i], &us, &err) != ERR_MALFORMED)
            fail_msg("%s", rows[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_bad),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
