/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: the table of gateway_reserve.h, and fingerprints that differ where requests do. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "producers/gateway_reserve.h"

static void test_decide(void **state)
{
    static const struct {
        const char *what;
        uint8_t job, fingerprint;
        bool in_ledger;
        enum reserve_verdict want;
    } rows[] = {
        {"ours", 1, 1, false, RESERVE_NEW},
        {"first, in the ledger", 2, 1, true, RESERVE_ANSWER},
        {"first, not there yet", 2, 1, false, RESERVE_REPEAT},
        {"other body", 2, 2, true, RESERVE_MISMATCH},
        {"other body, not there yet", 2, 2, false, RESERVE_MISMATCH},
    };
    const struct wire_id ours = {{1}};
    const uint8_t fingerprint[RESERVE_DIGEST_SIZE] = {1};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct reserve_row row = {.job = {{rows[i].job}},
                                        .fingerprint = {rows[i].fingerprint},
                                        .in_ledger = rows[i].in_ledger};

        assert_int_equal(reserve_decide(&ours, fingerprint, &row), rows[i].want);
    }
}

static void test_keys(void **state)
{
    char longest[RESERVE_KEY_SIZE_MAX + 2];
    struct err err;

    (void)state;
    assert_int_equal(reserve_key_check("a", &err), 0);
    assert_int_equal(reserve_key_check("order 7/x", &err), 0);
    assert_int_equal(reserve_key_check("", &err), ERR_RANGE);
    assert_int_equal(reserve_key_check("a\tb", &err), ERR_RANGE);
    assert_int_equal(reserve_key_check("\xc3\xa4", &err), ERR_RANGE);
    memset(longest, 'a', sizeof(longest));
    longest[RESERVE_KEY_SIZE_MAX + 1] = '\0';
    assert_int_equal(reserve_key_check(longest, &err), ERR_RANGE);
    longest[RESERVE_KEY_SIZE_MAX] = '\0';
    assert_int_equal(reserve_key_check(longest, &err), 0);
}

static void test_fingerprints(void **state)
{
    const struct wire_bytes one = {(const uint8_t *)"one", 3}, two = {(const uint8_t *)"two", 3};
    uint8_t a[RESERVE_DIGEST_SIZE], b[RESERVE_DIGEST_SIZE];

    (void)state;
    reserve_fingerprint("m", "production", "d1", "", one, a);
    reserve_fingerprint("m", "production", "d2", "", one, b); /* the environment has moved on */
    assert_memory_equal(a, b, sizeof(a));
    reserve_fingerprint("m", "production", "d1", "", two, b);
    assert_memory_not_equal(a, b, sizeof(a));
    reserve_fingerprint("m", "", "d1", "", one, b);
    assert_memory_not_equal(a, b, sizeof(a));
    reserve_fingerprint("m", "", "d2", "", one, a);
    assert_memory_not_equal(a, b, sizeof(a));
    reserve_fingerprint("m", "", "d2", "sync", one, b);
    assert_memory_not_equal(a, b, sizeof(a));
    reserve_fingerprint("mp", "", "d2", "", one, b);
    assert_memory_not_equal(a, b, sizeof(a));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decide),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_fingerprints),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
