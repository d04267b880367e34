/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: the table of topics says what the protocol needs, and a pool's name can never name another
 * topic. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "schema/topics.h"

static void test_table_keeps_what_the_protocol_needs(void **state)
{
    const uint64_t week_ms = 7ull * 24 * 3600 * 1000;

    (void)state;
    assert_string_equal(topic_name(TOPIC_INTAKE), "intake");
    assert_true(topic_append_time(TOPIC_INTAKE));
    assert_true(topic_retention_ms(TOPIC_INTAKE) >= week_ms);
    assert_true(topic_retention_ms(TOPIC_OUTCOME) >= week_ms);
    assert_int_equal(topic_partitions(TOPIC_INTAKE), topic_partitions(TOPIC_OUTCOME));
    assert_int_equal(topic_partitions(TOPIC_DISPATCH), TOPIC_PARTITIONS_POOL);
    for (enum topic topic = 0; topic < TOPIC_COUNT; topic++)
        assert_true(strlen(topic_meaning(topic)) > 0);
}

static void test_dispatch_name_refuses_what_is_no_pool(void **state)
{
    static const struct {
        const char *what, *pool;
        size_t size;
        const char *want; /* NULL: refused */
    } rows[] = {
        {"plain", "dep-1.a_B", 9, "dispatch.dep-1.a_B"},
        {"empty", "", 0, NULL},
        {"slash", "a/b", 3, NULL},
        {"space", "a b", 3, NULL},
        {"NUL inside", "a\0b", 3, NULL},
        {"not ASCII", "\xc3\xa4", 2, NULL},
        {"64 bytes", "0123456789012345678901234567890123456789012345678901234567890123", 64,
         "dispatch.0123456789012345678901234567890123456789012345678901234567890123"},
        {"65 bytes", "01234567890123456789012345678901234567890123456789012345678901234", 65, NULL},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char name[TOPIC_NAME_SIZE] = "untouched";
        struct err err;
        int r = topic_dispatch_name((struct wire_text){rows[i].pool, rows[i].size}, name, &err);

        print_message("%s\n", rows[i].what);
        assert_int_equal(r, rows[i].want != NULL ? 0 : ERR_RANGE);
        assert_string_equal(name, rows[i].want != NULL ? rows[i].want : "untouched");
    }
}

static void test_partition_is_stable_and_in_range(void **state)
{
    (void)state;
    assert_int_equal(topic_dispatch_partition("a", 1), 0);
    assert_int_equal(topic_dispatch_partition("worker-1", 16),
                     topic_dispatch_partition("worker-1", 16));
    /* FNV-1a of "a" is 0xe40c292c (draft-eastlake-fnv). */
    assert_int_equal(topic_dispatch_partition("a", UINT32_MAX), 0xe40c292cu);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table_keeps_what_the_protocol_needs),
        cmocka_unit_test(test_dispatch_name_refuses_what_is_no_pool),
        cmocka_unit_test(test_partition_is_stable_and_in_range),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
