/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a rate lets a burst pass at once and one more each interval, never more over any time; what
 * it lets pass does not depend on how the questions are grouped. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "base/rng.h"
#include "producers/gateway_rate_core.h"

#define NOW_US 1.8e15 /* a time of this century in microseconds: what doubles must carry */

static struct limits limits_with(double per_second, double burst)
{
    struct limits limits = {0};

    limits_set(&limits, LIMIT_rate_per_second, per_second);
    if (burst > 0)
        limits_set(&limits, LIMIT_rate_burst, burst);
    return limits;
}

static void test_what_is_not_set_is_no_limit(void **state)
{
    const struct limits none = {0}, three = limits_with(3, 0), slow = limits_with(0.1, 0);
    struct rate rate = rate_of(&none);
    double tat = 0, wait;

    (void)state;
    assert_int_equal(rate_take(&rate, &tat, NOW_US, 1000, &wait), 1000);
    rate = rate_of(&three);
    assert_true(rate.burst == 3);
    rate = rate_of(&slow);
    assert_true(rate.burst == 1 && rate.interval_us == 1e7);
}

static void test_burst_then_interval(void **state)
{
    const struct limits limits = limits_with(10, 5);
    const struct rate rate = rate_of(&limits);
    double tat = 0, wait;

    (void)state;
    assert_int_equal(rate_take(&rate, &tat, NOW_US, 7, &wait), 5);
    assert_true(fabs(wait - 100000) < 2);
    assert_int_equal(rate_take(&rate, &tat, NOW_US + 99000, 1, &wait), 0);
    assert_true(fabs(wait - 1000) < 2);
    assert_int_equal(rate_take(&rate, &tat, NOW_US + 100000, 1, &wait), 1);
    assert_true(wait == 0);
    assert_int_equal(rate_take(&rate, &tat, NOW_US + 100000, 1, &wait), 0);
    assert_int_equal(rate_take(&rate, &tat, NOW_US + 1e9, 100, &wait), 5);
}

/* A limit that was lowered holds at once, and does not hold what was taken before against anybody
 * for longer than its own burst. */
static void test_a_limit_that_was_lowered(void **state)
{
    const struct limits before = limits_with(1, 1000), after = limits_with(1, 2);
    struct rate rate = rate_of(&before);
    double tat = 0, wait;

    (void)state;
    assert_int_equal(rate_take(&rate, &tat, NOW_US, 1000, &wait), 1000);
    rate = rate_of(&after);
    assert_int_equal(rate_take(&rate, &tat, NOW_US, 1, &wait), 0);
    assert_int_equal(rate_take(&rate, &tat, NOW_US + 1e6, 5, &wait), 1);
}

static void test_never_more_than_burst_and_rate(void **state)
{
    struct rng rng;

    (void)state;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        double per_second = 0.5 + (double)seed, burst = 1 + (double)(seed % 7);
        const struct limits limits = limits_with(per_second, burst);
        const struct rate rate = rate_of(&limits);
        double tat = 0, now = NOW_US, wait, passed = 0;

        rng_seed(&rng, seed);
        for (int i = 0; i < 1000; i++) {
            passed += rate_take(&rate, &tat, now, (uint32_t)rng_below(&rng, 20), &wait);
            assert_true(passed <= burst + (now - NOW_US) * per_second / 1e6 + 1e-3);
            now += (double)rng_below(&rng, 200000);
        }
        /* Enough was asked for, and the burst carries over each gap: nothing was lost either. */
        if (burst > 1 + per_second * 0.2 && per_second < 50)
            assert_true(passed >= (now - NOW_US) * per_second / 1e6 * 0.8);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_not_set_is_no_limit),
        cmocka_unit_test(test_burst_then_interval),
        cmocka_unit_test(test_a_limit_that_was_lowered),
        cmocka_unit_test(test_never_more_than_burst_and_rate),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
