/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a limit has a name, a range and a place; what is wrong about one is said with all three. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "schema/limits.h"

static void test_names(void **state)
{
    enum limit limit = LIMIT_COUNT;
    struct err err;

    (void)state;
    assert_int_equal(limit_find("running_jobs", LIMIT_ON_KEY, &limit, &err), 0);
    assert_int_equal(limit, LIMIT_running_jobs);
    assert_int_equal(limit_find("weight", LIMIT_ON_KEY, &limit, &err), ERR_RANGE);
    assert_non_null(strstr(err.text, "'weight'"));
    assert_non_null(strstr(err.text, "running_jobs, rate_per_second, rate_burst"));
    assert_int_equal(limit_find("wieght", LIMIT_ON_TENANT, &limit, &err), ERR_RANGE);
    assert_non_null(strstr(err.text, "waiting_jobs"));
    assert_int_equal(limit, LIMIT_running_jobs);
}

static void test_ranges(void **state)
{
    static const struct {
        enum limit limit;
        double value;
        bool good;
        const char *words;
    } rows[] = {
        {LIMIT_running_jobs, 0, true, ""},
        {LIMIT_running_jobs, -1, false, "running_jobs is -1; it must be a whole number of 0 to"},
        {LIMIT_running_jobs, 1.5, false, "running_jobs is 1.5"},
        {LIMIT_running_jobs, 1e300, false, "1e+300"},
        {LIMIT_running_jobs, (double)NAN, false, "nan"},
        {LIMIT_rate_per_second, 0.5, true, ""},
        {LIMIT_rate_per_second, 0, false, "rate_per_second is 0; it must be a number of 0.001 to"},
        {LIMIT_payload_bytes, 1e15, true, ""},
        {LIMIT_weight, 1001, false, "weight is 1001; it must be a whole number of 1 to 1000"},
    };
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct limits limits = {0};
        int r = limit_check(rows[i].limit, rows[i].value, &err);

        assert_int_equal(r, rows[i].good ? 0 : ERR_RANGE);
        if (!rows[i].good)
            assert_non_null(strstr(err.text, rows[i].words));
        limits_set(&limits, rows[i].limit, rows[i].value);
        assert_int_equal(limits_has(&limits, rows[i].limit), rows[i].good);
        assert_true(limits_get(&limits, rows[i].limit, 7) == (rows[i].good ? rows[i].value : 7));
    }
}

/* docs/limits.md has a line for each. */
static void test_docs(void **state)
{
    FILE *file = fopen("docs/limits.md", "r");
    char text[32768] = "";

    (void)state;
    assert_non_null(file);
    assert_true(fread(text, 1, sizeof(text) - 1, file) > 0);
    (void)fclose(file);
    for (enum limit limit = 0; limit < LIMIT_COUNT; limit++) {
        char line[64];

        (void)snprintf(line, sizeof(line), "| `%s` |", limit_name(limit));
        if (strstr(text, line) == NULL)
            fail_msg("docs/limits.md has no line for %s", limit_name(limit));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_docs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
