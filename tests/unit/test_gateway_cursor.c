/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a reader of a stream is told of every loss and every new attempt, and of nothing twice. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "producers/gateway_cursor.h"

static struct cursor_step see(struct cursor *cursor, uint64_t token, uint64_t number,
                              uint64_t offset, size_t size, bool last)
{
    const struct message_piece piece = {
        .offset = offset, .data = {(const uint8_t *)"xxxxxxxx", size}, .last = last};
    const struct cache_place place = {token, number};
    struct cursor_step step = cursor_look(cursor, place, &piece);

    if (!step.old)
        cursor_take(cursor, place, &piece);
    return step;
}

static void test_pieces_in_order(void **state)
{
    struct cursor_step step;
    struct cursor cursor;

    (void)state;
    cursor_init(&cursor);
    step = see(&cursor, 7, 1, 0, 4, false);
    assert_true(step.begin && !step.reset && !step.gap && !step.old);
    step = see(&cursor, 7, 2, 4, 4, false);
    assert_true(!step.begin && !step.reset && !step.gap && !step.old);
    assert_true(see(&cursor, 7, 2, 4, 4, false).old);
    assert_true(see(&cursor, 6, 9, 0, 4, false).old);
    assert_false(cursor.complete);
    step = see(&cursor, 7, 3, 8, 0, true);
    assert_true(cursor.complete && cursor.offset == 8 && !step.gap);
}

static void test_gaps(void **state)
{
    struct cursor_step step;
    struct cursor cursor;

    (void)state;
    cursor_init(&cursor);
    step = see(&cursor, 7, 3, 10, 4, false); /* its front was cut off */
    assert_true(step.begin && step.gap && step.knows_lost && step.lost_size == 10);
    step = see(&cursor, 7, 9, 50, 4, false);
    assert_true(!step.begin && step.gap && step.knows_lost && step.lost_size == 36);
    cursor_init_at(&cursor, (struct cache_place){7, 9});
    step = see(&cursor, 7, 10, 54, 4, false);
    assert_true(!step.gap && !step.begin);
    cursor_init_at(&cursor, (struct cache_place){7, 2});
    step = see(&cursor, 7, 10, 54, 4, false);
    assert_true(step.gap && !step.knows_lost);
}

static void test_a_new_attempt(void **state)
{
    struct cursor_step step;
    struct cursor cursor;

    (void)state;
    cursor_init(&cursor);
    (void)see(&cursor, 7, 1, 0, 4, true);
    step = see(&cursor, 8, 1, 0, 2, false);
    assert_true(step.begin && step.reset && !step.gap);
    assert_true(cursor.offset == 2 && !cursor.complete);
    step = see(&cursor, 9, 4, 6, 2, false);
    assert_true(step.reset && step.gap && step.lost_size == 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces_in_order),
        cmocka_unit_test(test_gaps),
        cmocka_unit_test(test_a_new_attempt),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
