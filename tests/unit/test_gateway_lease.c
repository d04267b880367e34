/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: a gateway is lost exactly when its beat stood still for a whole lease of a watcher that
 * looked all the time. Method: looks at given times.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "producers/gateway_lease.h"

#define LEASE_MS 6000

/* One look: our own, and another at this beat; a beat below 0: it is not there. */
static bool look(struct leases *leases, uint64_t now_ms, int64_t beat)
{
    bool lost = false;

    leases_begin(leases, now_ms);
    assert_false(leases_see(leases, "gw-own", 1));
    if (beat >= 0)
        lost = leases_see(leases, "gw-other", beat);
    leases_end(leases);
    return lost;
}

/* Looks each second up to a time at one beat; the time at which it was lost first, 0: never. */
static uint64_t watch(struct leases *leases, uint64_t from_ms, uint64_t to_ms, int64_t beat)
{
    uint64_t lost_ms = 0;

    for (uint64_t now_ms = from_ms; now_ms <= to_ms; now_ms += 1000) {
        if (look(leases, now_ms, beat) && lost_ms == 0)
            lost_ms = now_ms;
    }
    return lost_ms;
}

static int leases_open(void **state)
{
    *state = leases_new("gw-own", LEASE_MS);
    return 0;
}

static int leases_close(void **state)
{
    struct leases *leases = *state;

    leases_free(&leases);
    return 0;
}

static void test_a_beat_that_stands_still_for_a_lease(void **state)
{
    assert_int_equal(watch(*state, 1000, 6000, 7), 0);
    assert_int_equal(watch(*state, 7000, 20000, 7), 7000);
}

static void test_it_is_told_again_after_another_lease(void **state)
{
    assert_int_equal(watch(*state, 1000, 7000, 7), 7000);
    assert_int_equal(watch(*state, 8000, 20000, 7), 13000);
}

static void test_a_beat_that_changes_begins_anew(void **state)
{
    assert_int_equal(watch(*state, 1000, 6000, 7), 0);
    assert_int_equal(watch(*state, 7000, 12000, 8), 0);
    assert_int_equal(watch(*state, 13000, 13000, 8), 13000);
}

static void test_callers_without_a_row_have_a_lease_too(void **state)
{
    assert_int_equal(watch(*state, 1000, 6000, 0), 0);
    assert_true(look(*state, 7000, 0));
    assert_false(look(*state, 8000, 1)); /* it was only cut off */
}

static void test_what_is_gone_is_forgotten(void **state)
{
    assert_int_equal(watch(*state, 1000, 6000, 7), 0);
    assert_false(look(*state, 7000, -1));
    assert_int_equal(watch(*state, 8000, 13000, 7), 0);
    assert_true(look(*state, 14000, 7));
}

static void test_who_did_not_look_loses_nobody(void **state)
{
    assert_int_equal(watch(*state, 1000, 6000, 7), 0);
    assert_int_equal(watch(*state, 10000, 15000, 7), 0); /* 4 s without a look */
    assert_true(look(*state, 16000, 7));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_beat_that_stands_still_for_a_lease, leases_open,
                                        leases_close),
        cmocka_unit_test_setup_teardown(test_it_is_told_again_after_another_lease, leases_open,
                                        leases_close),
        cmocka_unit_test_setup_teardown(test_a_beat_that_changes_begins_anew, leases_open,
                                        leases_close),
        cmocka_unit_test_setup_teardown(test_callers_without_a_row_have_a_lease_too, leases_open,
                                        leases_close),
        cmocka_unit_test_setup_teardown(test_what_is_gone_is_forgotten, leases_open, leases_close),
        cmocka_unit_test_setup_teardown(test_who_did_not_look_loses_nobody, leases_open,
                                        leases_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
