/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a text is new once, among many. Method: a hundred thousand of them, twice. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "producers/bulk_seen.h"

static void test_seen(void **state)
{
    struct bulk_seen *seen = bulk_seen_new();
    char text[16];

    (void)state;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 100000; i++) {
            int size = snprintf(text, sizeof(text), "%d", i);

            assert_int_equal(bulk_seen_add(seen, text, (size_t)size), round == 0);
        }
    }
    bulk_seen_free(&seen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_seen)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
