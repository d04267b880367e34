/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: batches keep the order of arrival, the token budget and the wish to be alone.
 * Method: requests written as the lengths of their texts, the cut as request:text pairs.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "workers/engines/encoder/encoder_queue.h"

#define PICK_MAX 16u

static void push(struct encoder_queue *queue, uint64_t id, const char *lengths, bool alone)
{
    uint32_t count = (uint32_t)strlen(lengths), at = 0;
    struct encoder_req *req = encoder_req_new(count);

    req->id = id;
    req->alone = alone;
    for (uint32_t i = 0; i < count; i++) {
        at += (uint32_t)(lengths[i] - '0');
        req->offsets[i + 1] = at;
    }
    encoder_queue_push(queue, &req);
}

/* Cuts once and writes "id:text id:text …". */
static void cut(struct encoder_queue *queue, uint32_t token_max, char *to, size_t to_size)
{
    struct encoder_pick picks[PICK_MAX];
    uint32_t count = encoder_queue_cut(queue, token_max, picks, PICK_MAX);
    size_t size = 0;

    to[0] = '\0';
    for (uint32_t i = 0; i < count; i++)
        size += (size_t)snprintf(to + size, to_size - size, "%s%d:%u", i > 0 ? " " : "",
                                 (int)picks[i].req->id, picks[i].index);
}

static void expect_cut(struct encoder_queue *queue, uint32_t token_max, const char *want)
{
    char got[256];

    cut(queue, token_max, got, sizeof(got));
    assert_string_equal(got, want);
}

static void test_budget_and_order(void **state)
{
    OWNED(encoder_queue_done) struct encoder_queue queue = {0};

    (void)state;
    push(&queue, 1, "3", false);
    push(&queue, 2, "5", false);
    push(&queue, 3, "4", false);
    push(&queue, 4, "2", false);
    expect_cut(&queue, 10, "2:0 1:0"); /* 4 does not overtake 3; the longest first */
    expect_cut(&queue, 10, "3:0 4:0");
    expect_cut(&queue, 10, "");
}

static void test_a_request_may_span_batches(void **state)
{
    OWNED(encoder_queue_done) struct encoder_queue queue = {0};

    (void)state;
    push(&queue, 1, "4444", false);
    push(&queue, 2, "2", false);
    expect_cut(&queue, 9, "1:0 1:1");
    expect_cut(&queue, 9, "1:2 1:3");
    expect_cut(&queue, 9, "2:0");
}

static void test_alone_is_alone(void **state)
{
    OWNED(encoder_queue_done) struct encoder_queue queue = {0};

    (void)state;
    push(&queue, 1, "2", false);
    push(&queue, 2, "22", true);
    push(&queue, 3, "2", false);
    expect_cut(&queue, 100, "1:0");
    expect_cut(&queue, 100, "2:0 2:1");
    expect_cut(&queue, 100, "3:0");
}

static void test_an_old_loner_does_not_bar_the_way(void **state)
{
    OWNED(encoder_queue_done) struct encoder_queue queue = {0};

    (void)state;
    push(&queue, 1, "6", true);
    push(&queue, 2, "3", false);
    expect_cut(&queue, 8, "1:0");
    expect_cut(&queue, 8, "2:0"); /* 1 is still held, all its texts taken */
}

static void test_expiry_spares_what_runs(void **state)
{
    OWNED(encoder_queue_done) struct encoder_queue queue = {0};
    struct encoder_req *req;

    (void)state;
    push(&queue, 1, "44", false);
    push(&queue, 2, "4", false);
    push(&queue, 3, "4", false);
    queue.first->deadline_us = 10;
    queue.last->deadline_us = 10;
    expect_cut(&queue, 4, "1:0");
    assert_null(encoder_queue_expire(&queue, 10));
    req = encoder_queue_expire(&queue, 11);
    assert_int_equal(req->id, 3);
    encoder_req_free(&req);
    assert_null(encoder_queue_expire(&queue, 11));
    assert_int_equal(queue.count, 2);
}

static void test_removal_keeps_the_chain(void **state)
{
    OWNED(encoder_queue_done) struct encoder_queue queue = {0};

    (void)state;
    for (uint64_t id = 1; id <= 3; id++)
        push(&queue, id, "2", false);
    for (uint64_t id = 3; id >= 1; id--) {
        struct encoder_req *req = encoder_queue_find(&queue, id);

        req = encoder_queue_remove(&queue, req);
        encoder_req_free(&req);
        assert_null(encoder_queue_find(&queue, id));
        if (id == 3)
            push(&queue, 4, "2", false);
    }
    expect_cut(&queue, 100, "4:0");
    assert_int_equal(queue.count, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_budget_and_order),
        cmocka_unit_test(test_a_request_may_span_batches),
        cmocka_unit_test(test_alone_is_alone),
        cmocka_unit_test(test_an_old_loner_does_not_bar_the_way),
        cmocka_unit_test(test_expiry_spares_what_runs),
        cmocka_unit_test(test_removal_keeps_the_chain),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
