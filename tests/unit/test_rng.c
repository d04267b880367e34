/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a seed gives the same numbers for ever (simulations replay by it), and they are spread. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/rng.h"

/* From the authors' reference code, state filled by splitmix64 from seed 42. */
static void test_known_answers(void **state)
{
    static const uint64_t want[] = {0x15780b2e0c2ec716, 0x6104d9866d113a7e, 0xae17533239e499a1};
    struct rng rng;

    (void)state;
    rng_seed(&rng, 42);
    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++)
        assert_int_equal(rng_next(&rng), want[i]);
}

static void test_a_seed_replays(void **state)
{
    struct rng one, two, other;

    (void)state;
    rng_seed(&one, 7);
    rng_seed(&two, 7);
    rng_seed(&other, 8);
    for (int i = 0; i < 100; i++)
        assert_int_equal(rng_next(&one), rng_next(&two));
    assert_int_not_equal(rng_next(&one), rng_next(&other));
}

static void test_ranges(void **state)
{
    int counts[6] = {0};
    double sum = 0;
    struct rng rng;

    (void)state;
    rng_seed(&rng, 1);
    for (int i = 0; i < 60000; i++) {
        uint64_t n = rng_below(&rng, 6);
        double unit = rng_unit(&rng);

        assert_true(n < 6);
        assert_true(unit >= 0 && unit < 1);
        counts[n]++;
        sum += unit;
    }
    for (int i = 0; i < 6; i++)
        assert_in_range(counts[i], 9500, 10500); /* five standard deviations */
    assert_true(sum > 29500 && sum < 30500);
    assert_int_equal(rng_below(&rng, 1), 0);
}

static void test_secrets_differ(void **state)
{
    uint8_t one[32] = {0}, two[32] = {0}, zero[32] = {0};

    (void)state;
    rng_secret_bytes(one, sizeof(one));
    rng_secret_bytes(two, sizeof(two));
    assert_memory_not_equal(one, two, sizeof(one));
    assert_memory_not_equal(one, zero, sizeof(one));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),
        cmocka_unit_test(test_a_seed_replays),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_secrets_differ),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
