/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a place reads as it was written, and nothing else reads as one. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "brokers/cache_place.h"

static void test_places(void **state)
{
    static const char *const good[] = {"0-0", "1-2", "18446744073709551615-18446744073709551615"};
    static const char *const bad[] = {"",    "-",    "1",    "1-",
                                      "-1",  "1-2-", "1-2 ", " 1-2",
                                      "a-1", "+1-2", "1-0x", "18446744073709551616-0"};
    char text[CACHE_PLACE_TEXT_SIZE];
    struct cache_place place;

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_true(cache_place_parse(good[i], strlen(good[i]), &place));
        assert_int_equal(cache_place_format(place, text), strlen(good[i]));
        assert_string_equal(text, good[i]);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (cache_place_parse(bad[i], strlen(bad[i]), &place))
            fail_msg("'%s'", bad[i]);
    }
    assert_false(cache_place_parse("1-2", 2, &place));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_places)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
