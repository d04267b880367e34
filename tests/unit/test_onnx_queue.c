/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: requests of one shape share a run, in order, within the rows allowed; nobody overtakes his
 * own kind, and who wants to be alone is. Method: requests written as id, rows and width.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "workers/engines/onnx/onnx_queue.h"

#define REQ_MAX 16u

static void push(struct onnx_queue *queue, uint64_t id, uint32_t rows, int64_t width, bool alone)
{
    struct onnx_req *req = xcalloc(1, sizeof(*req));

    req->id = id;
    req->row_count = rows;
    req->alone = alone;
    req->arrived_us = id * 10;
    req->input.tensors[0] = (struct onnx_tensor){.rank = 2, .dims = {rows, width}};
    onnx_queue_push(queue, &req);
}

static void expect_cut(struct onnx_queue *queue, const struct onnx_joining *joining,
                       const char *want)
{
    struct onnx_req *reqs[REQ_MAX];
    uint32_t count = onnx_queue_cut(queue, joining, reqs, REQ_MAX);
    char got[100] = "";
    size_t size = 0;

    for (uint32_t i = 0; i < count; i++) {
        size += (size_t)snprintf(got + size, sizeof(got) - size, "%s%d", i > 0 ? " " : "",
                                 (int)reqs[i]->id);
        onnx_req_free(&reqs[i]);
    }
    assert_string_equal(got, want);
}

static void test_cut(void **state)
{
    OWNED(onnx_queue_done) struct onnx_queue queue = {.count = 0};
    const struct onnx_joining joining = {true, 1, {.item_max = 5}};

    (void)state;
    onnx_queue_init(&queue);
    push(&queue, 1, 2, 8, false);
    push(&queue, 2, 1, 9, false);
    push(&queue, 3, 2, 8, false);
    push(&queue, 4, 2, 8, false); /* does not fit, so 5 stays behind it */
    push(&queue, 5, 1, 8, false);
    push(&queue, 6, 1, 9, false);
    push(&queue, 7, 9, 9, false); /* more than a run has: by itself */
    push(&queue, 8, 1, 9, true);
    push(&queue, 9, 1, 9, false);
    expect_cut(&queue, &joining, "1 3");
    expect_cut(&queue, &joining, "2 6");
    expect_cut(&queue, &joining, "4 5");
    expect_cut(&queue, &joining, "7");
    expect_cut(&queue, &joining, "8");
    expect_cut(&queue, &joining, "9");
    expect_cut(&queue, &joining, "");
    assert_int_equal(queue.count, 0);
}

static void test_not_joined(void **state)
{
    OWNED(onnx_queue_done) struct onnx_queue queue = {.count = 0};
    const struct onnx_joining joining = {false, 1, {.item_max = 5, .wait_us = 100}};

    (void)state;
    onnx_queue_init(&queue);
    push(&queue, 1, 1, 8, false);
    push(&queue, 2, 1, 8, false);
    assert_int_equal(onnx_queue_due_us(&queue, &joining, false), 0);
    expect_cut(&queue, &joining, "1");
    expect_cut(&queue, &joining, "2");
}

static void test_due(void **state)
{
    OWNED(onnx_queue_done) struct onnx_queue queue = {.count = 0};
    const struct onnx_joining joining = {true, 1, {.item_max = 3, .wait_us = 100}};

    (void)state;
    onnx_queue_init(&queue);
    assert_true(onnx_queue_due_us(&queue, &joining, false) == UINT64_MAX);
    push(&queue, 1, 1, 8, false);
    assert_int_equal(onnx_queue_due_us(&queue, &joining, false), 110);
    assert_int_equal(onnx_queue_due_us(&queue, &joining, true), 0);
    push(&queue, 2, 2, 9, false); /* another shape is no company */
    assert_int_equal(onnx_queue_due_us(&queue, &joining, false), 110);
    onnx_queue_find(&queue, 2)->deadline_us = 60;
    assert_int_equal(onnx_queue_due_us(&queue, &joining, false), 60);
    push(&queue, 3, 2, 8, false);
    assert_int_equal(onnx_queue_due_us(&queue, &joining, false), 0);
}

static void test_bookkeeping(void **state)
{
    OWNED(onnx_queue_done) struct onnx_queue queue = {.count = 0};
    struct onnx_req *req;

    (void)state;
    onnx_queue_init(&queue);
    for (uint64_t id = 1; id < 5; id++)
        push(&queue, id, 1, 8, false);
    onnx_queue_find(&queue, 2)->deadline_us = 5;
    assert_null(onnx_queue_expire(&queue, 5));
    req = onnx_queue_expire(&queue, 6);
    assert_int_equal(req->id, 2);
    onnx_req_free(&req);
    req = onnx_queue_remove(&queue, onnx_queue_find(&queue, 4));
    onnx_req_free(&req);
    assert_null(onnx_queue_find(&queue, 4));
    push(&queue, 6, 1, 8, false);
    assert_non_null(onnx_queue_find(&queue, 6));
    assert_int_equal(queue.count, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_not_joined),
        cmocka_unit_test(test_due),
        cmocka_unit_test(test_bookkeeping),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
