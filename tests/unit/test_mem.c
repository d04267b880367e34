/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: ownership moves where it is said to move, and small sizes of any kind are served. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static int freed;

struct thing {
    int value;
};

static void thing_free(struct thing **thing_p)
{
    struct thing *thing = TAKE(*thing_p);

    if (thing == NULL)
        return;
    freed++;
    free(thing);
}

static struct thing *thing_make(bool keep)
{
    OWNED(thing_free) struct thing *thing = xcalloc(1, sizeof(*thing));

    return keep ? TAKE(thing) : NULL;
}

static void test_owned_and_take(void **state)
{
    struct thing *thing;

    (void)state;
    freed = 0;
    assert_null(thing_make(false));
    assert_int_equal(freed, 1);
    thing = thing_make(true);
    assert_int_equal(freed, 1);
    assert_int_equal(thing->value, 0);
    thing_free(&thing);
    assert_null(thing);
    thing_free(&thing);
    assert_int_equal(freed, 2);
}

static void test_sizes_of_nothing(void **state)
{
    void *all[] = {xmalloc(0), xcalloc(0, 8), xcalloc(8, 0), xrealloc(NULL, 0, 0), xmemdup("", 0)};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        assert_non_null(all[i]);
        free(all[i]);
    }
}

static void test_copies(void **state)
{
    OWNED(mem_free) char *text = xstrdup("text");
    OWNED(mem_free) char *made = xasprintf("%s-%d", text, 7);
    char small[4];

    (void)state;
    text = xrealloc(text, 100, 1);
    assert_string_equal(text, "text");
    assert_string_equal(made, "text-7");
    mem_copy_text(small, "abc");
    assert_string_equal(small, "abc");
    mem_copy_text(small, "abcd");
    assert_string_equal(small, "abc");
    mem_copy_text(small, "");
    assert_string_equal(small, "");
    mem_free(&made);
    assert_null(made);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_owned_and_take),
        cmocka_unit_test(test_sizes_of_nothing),
        cmocka_unit_test(test_copies),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
