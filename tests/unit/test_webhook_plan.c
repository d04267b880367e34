/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: each answer of a receiver leads to the right next step, on the promised schedule. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "workers/webhook_plan.h"

static const struct {
    const char *what;
    uint32_t number;
    int http_status, blocked;
    enum webhook_outcome want;
} rows[] = {
    {"accepted", 1, 200, 0, WEBHOOK_DELIVERED},
    {"accepted without content", 9, 204, 0, WEBHOOK_DELIVERED},
    {"no answer", 1, 0, 0, WEBHOOK_AGAIN},
    {"server error", 9, 500, 0, WEBHOOK_AGAIN},
    {"server error, last try", 10, 503, 0, WEBHOOK_GIVEN_UP},
    {"too early", 5, 425, 0, WEBHOOK_AGAIN},
    {"too many", 5, 429, 0, WEBHOOK_AGAIN},
    {"gone", 1, 410, 0, WEBHOOK_GIVEN_UP_GONE},
    {"refused, may be a deploy", 2, 404, 0, WEBHOOK_AGAIN},
    {"refused for good", 3, 404, 0, WEBHOOK_GIVEN_UP},
    {"redirects are not followed", 3, 302, 0, WEBHOOK_GIVEN_UP},
    {"private address", 1, 0, 1, WEBHOOK_AGAIN},
    {"private address for good", 3, 0, 1, WEBHOOK_GIVEN_UP},
};

static struct webhook_next next_of(uint32_t number, int status, int blocked)
{
    const struct webhook_try try = {.number = number,
                                    .http_status = status,
                                    .blocked = blocked,
                                    .jitter = 0.5,
                                    .time_scale = 1.0};

    return webhook_plan_next(&try);
}

static void test_outcomes(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct webhook_next next = next_of(rows[i].number, rows[i].http_status, rows[i].blocked);

        if (next.outcome != rows[i].want)
            fail_msg("%s: outcome %d, want %d", rows[i].what, next.outcome, rows[i].want);
    }
}

static void test_schedule_spans_75_hours(void **state)
{
    uint64_t total_ms = 0;

    (void)state;
    for (uint32_t number = 1; number < WEBHOOK_TRIES_MAX; number++)
        total_ms += next_of(number, 500, 0).delay_ms;
    assert_in_range(total_ms, 75ull * 3600 * 1000, 76ull * 3600 * 1000);
}

static void test_jitter_and_retry_after(void **state)
{
    struct webhook_try try = {.number = 1, .http_status = 503, .time_scale = 1.0};

    (void)state;
    assert_int_equal(webhook_plan_next(&try).delay_ms, 4000);
    try.jitter = 0.999;
    assert_in_range(webhook_plan_next(&try).delay_ms, 5990, 6000);
    try.retry_after_ms = 60000;
    assert_int_equal(webhook_plan_next(&try).delay_ms, 60000);
    try.retry_after_ms = UINT64_MAX;
    assert_int_equal(webhook_plan_next(&try).delay_ms, WEBHOOK_RETRY_AFTER_MS_MAX);
}

static void test_retry_after_as_it_is_written(void **state)
{
    const uint64_t now_s = 1764000600; /* Mon, 24 Nov 2025 16:10:00 GMT */
    static const struct {
        const char *text;
        uint64_t want_ms;
    } forms[] = {
        {"120", 120000},
        {"0", 0},
        {"86400", WEBHOOK_RETRY_AFTER_MS_MAX},
        {"86401", WEBHOOK_RETRY_AFTER_MS_MAX},
        {"99999999999999999999999999", WEBHOOK_RETRY_AFTER_MS_MAX},
        {"Mon, 24 Nov 2025 16:11:30 GMT", 90000},
        {"Monday, 24-Nov-25 16:11:30 GMT", 90000},
        {"Mon Nov 24 16:11:30 2025", 90000},
        {"Mon, 24 Nov 2025 16:09:00 GMT", 0}, /* past */
        {"Mon, 24 Nov 2035 16:09:00 GMT", WEBHOOK_RETRY_AFTER_MS_MAX},
        {"soon", 0},
        {"-5", 0},
        {"1.5", 0},
        {"", 0},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(forms); i++) {
        uint64_t got_ms = webhook_plan_retry_after(forms[i].text, now_s);

        if (got_ms != forms[i].want_ms)
            fail_msg("'%s': %llu ms", forms[i].text, (unsigned long long)got_ms);
    }
}

static void test_what_was_never_tried_ends_too(void **state)
{
    const uint64_t hour_ms = 3600000;

    (void)state;
    assert_false(webhook_plan_is_over(80 * hour_ms, 1.0));
    assert_true(webhook_plan_is_over(91 * hour_ms, 1.0));
    assert_true(webhook_plan_is_over(hour_ms, 0.01));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outcomes),
        cmocka_unit_test(test_schedule_spans_75_hours),
        cmocka_unit_test(test_jitter_and_retry_after),
        cmocka_unit_test(test_retry_after_as_it_is_written),
        cmocka_unit_test(test_what_was_never_tried_ends_too),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
