/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: the estimate of a waiting time is right where it can be, and says nothing where it cannot.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "base/mem.h"
#include "producers/gateway_late.h"

static void test_estimates(void **state)
{
    static const struct {
        struct late_figures figures;
        double seconds;
    } rows[] = {
        /* waiting, own, tenants, running, slots, service_us */
        {{0, 0, 1, 0, 4, 0}, -1},         /* no job has ended yet */
        {{9, 9, 1, 0, 0, 1000000}, -1},   /* no worker */
        {{0, 0, 1, 3, 4, 1000000}, 0},    /* a slot is free */
        {{0, 0, 1, 4, 4, 1000000}, 0.25}, /* the next one that ends */
        {{100, 100, 1, 4, 4, 1000000}, 25.25},
        {{1000000, 0, 2, 4, 4, 1000000}, 0.5}, /* another tenant's million: one of it goes first */
        {{1000000, 10, 3, 4, 4, 2000000}, 16.5},
        {{12, 10, 2, 4, 4, 1000000}, 3.25}, /* never more than there are */
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        double seconds = late_estimate_s(&rows[i].figures);

        if (fabs(seconds - rows[i].seconds) > 1e-9)
            fail_msg("row %zu: %f s, not %f", i, seconds, rows[i].seconds);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_estimates),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
