/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: of wrong tokens so many pass a minute from an address, and of a prefix from all of them;
 * right ones cost nothing, whoever is refused costs nobody else, and many addresses need no more
 * memory. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>
#include <math.h>

#include "producers/gateway_guess.h"

#define NOW_US 1.8e12
#define PER_MINUTE 10

static const uint8_t key[GUESS_KEY_SIZE] = "sixteen bytes of";

static int guess_until_refused(struct guesses *guesses, const char *address, const char *prefix,
                               double now_us)
{
    double wait_us;
    int passed = 0;

    while (passed < 1000 && guesses_take(guesses, address, prefix, now_us, &wait_us))
        passed++;
    return passed;
}

static void test_an_address(void **state)
{
    struct guesses *guesses = guesses_new(PER_MINUTE, key);
    double wait_us;

    (void)state;
    assert_int_equal(guess_until_refused(guesses, "192.0.2.1", "", NOW_US), PER_MINUTE);
    assert_false(guesses_take(guesses, "192.0.2.1", "other", NOW_US, &wait_us));
    assert_true(fabs(wait_us - 6e6) < 10);
    assert_false(guesses_take(guesses, "::ffff:192.0.2.1", "", NOW_US + 5.9e6, &wait_us));
    assert_true(guesses_take(guesses, "192.0.2.1", "", NOW_US + 6e6 + 1, &wait_us));
    assert_false(guesses_take(guesses, "192.0.2.1", "", NOW_US + 6e6 + 1, &wait_us));
    assert_true(guesses_take(guesses, "192.0.2.2", "", NOW_US, &wait_us));
    assert_int_equal(guess_until_refused(guesses, "192.0.2.1", "", NOW_US + 1e9), PER_MINUTE);
    guesses_free(&guesses);
}

static void test_a_network_of_ipv6(void **state)
{
    struct guesses *guesses = guesses_new(PER_MINUTE, key);
    char address[64];
    double wait_us;
    int passed = 0;

    (void)state;
    for (int i = 0; i < 100; i++) {
        (void)snprintf(address, sizeof(address), "2001:db8:0:1::%x", i);
        passed += guesses_take(guesses, address, "", NOW_US, &wait_us);
    }
    assert_int_equal(passed, PER_MINUTE);
    assert_true(guesses_take(guesses, "2001:db8:0:2::1", "", NOW_US, &wait_us));
    guesses_free(&guesses);
}

/* Whose prefix is being guessed at is refused from everywhere; it costs the others' addresses
 * nothing. */
static void test_a_prefix_from_many_addresses(void **state)
{
    struct guesses *guesses = guesses_new(PER_MINUTE, key);
    char address[64];
    double wait_us;
    int passed = 0;

    (void)state;
    for (int i = 0; i < 100; i++) {
        (void)snprintf(address, sizeof(address), "198.51.100.%d", i);
        passed += guesses_take(guesses, address, "abcdefgh", NOW_US, &wait_us);
    }
    assert_int_equal(passed, PER_MINUTE);
    assert_true(wait_us > 0);
    assert_int_equal(guess_until_refused(guesses, "198.51.100.99", "", NOW_US), PER_MINUTE);
    guesses_free(&guesses);
}

static void test_who_is_right_costs_nothing(void **state)
{
    struct guesses *guesses = guesses_new(PER_MINUTE, key);
    double wait_us;

    (void)state;
    for (int i = 0; i < 1000; i++) {
        assert_true(guesses_take(guesses, "192.0.2.1", "abcdefgh", NOW_US, &wait_us));
        guesses_give_back(guesses, "192.0.2.1", "abcdefgh");
    }
    assert_int_equal(guess_until_refused(guesses, "192.0.2.1", "abcdefgh", NOW_US), PER_MINUTE);
    guesses_free(&guesses);
}

/* What is given back late, after the guesses have come back by themselves, makes no more of them.
 */
static void test_no_more_than_a_burst(void **state)
{
    struct guesses *guesses = guesses_new(PER_MINUTE, key);

    (void)state;
    assert_int_equal(guess_until_refused(guesses, "192.0.2.1", "", NOW_US), PER_MINUTE);
    for (int i = 0; i < 2 * PER_MINUTE; i++)
        guesses_give_back(guesses, "192.0.2.1", "");
    assert_int_equal(guess_until_refused(guesses, "192.0.2.1", "", NOW_US + 1e9), PER_MINUTE);
    guesses_free(&guesses);
}

/* A million addresses share the places: an attacker who has them all guesses no more than those
 * allow. */
static void test_many_addresses(void **state)
{
    struct guesses *guesses = guesses_new(PER_MINUTE, key);
    char address[64];
    double wait_us;
    int passed = 0;

    (void)state;
    for (int i = 0; i < 1000000; i++) {
        (void)snprintf(address, sizeof(address), "10.%d.%d.%d", i >> 16, i >> 8 & 255, i & 255);
        passed += guesses_take(guesses, address, "", NOW_US, &wait_us);
    }
    assert_true(passed > 100000 && passed <= 16384 * PER_MINUTE);
    guesses_free(&guesses);
}

static void test_no_limit(void **state)
{
    struct guesses *guesses = guesses_new(0, key);

    (void)state;
    assert_int_equal(guess_until_refused(guesses, "192.0.2.1", "abcdefgh", NOW_US), 1000);
    guesses_free(&guesses);
    guesses_free(&guesses);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_address),
        cmocka_unit_test(test_a_network_of_ipv6),
        cmocka_unit_test(test_a_prefix_from_many_addresses),
        cmocka_unit_test(test_who_is_right_costs_nothing),
        cmocka_unit_test(test_no_more_than_a_burst),
        cmocka_unit_test(test_many_addresses),
        cmocka_unit_test(test_no_limit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
