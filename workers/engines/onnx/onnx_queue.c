/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/onnx/onnx_queue.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

void onnx_req_free(struct onnx_req **req_p)
{
    struct onnx_req *req = TAKE(*req_p);

    if (req == NULL)
        return;
    onnx_input_done(&req->input);
    free(req);
}

void onnx_queue_init(struct onnx_queue *queue)
{
    TAILQ_INIT(&queue->reqs);
    queue->count = 0;
}

void onnx_queue_push(struct onnx_queue *queue, struct onnx_req **req_p)
{
    struct onnx_req *req = TAKE(*req_p);

    assert(req->row_count > 0);
    TAILQ_INSERT_TAIL(&queue->reqs, req, link);
    queue->count++;
}

struct onnx_req *onnx_queue_find(const struct onnx_queue *queue, uint64_t id)
{
    struct onnx_req *req;

    TAILQ_FOREACH(req, &queue->reqs, link)
    {
        if (req->id == id)
            return req;
    }
    return NULL;
}

struct onnx_req *onnx_queue_remove(struct onnx_queue *queue, struct onnx_req *req)
{
    assert(queue->count > 0);
    TAILQ_REMOVE(&queue->reqs, req, link);
    queue->count--;
    return req;
}

struct onnx_req *onnx_queue_expire(struct onnx_queue *queue, uint64_t now_us)
{
    struct onnx_req *req;

    TAILQ_FOREACH(req, &queue->reqs, link)
    {
        if (req->deadline_us != 0 && now_us > req->deadline_us)
            return onnx_queue_remove(queue, req);
    }
    return NULL;
}

void onnx_queue_done(struct onnx_queue *queue)
{
    while (queue->count > 0) {
        struct onnx_req *req = onnx_queue_remove(queue, TAILQ_FIRST(&queue->reqs));

        onnx_req_free(&req);
    }
}

/* All axes but the first are equal. */
static bool fits_beside(const struct onnx_req *a, const struct onnx_req *b, uint32_t input_count)
{
    for (uint32_t i = 0; i < input_count; i++) {
        const struct onnx_tensor *x = &a->input.tensors[i], *y = &b->input.tensors[i];

        if (x->rank != y->rank ||
            memcmp(x->dims + 1, y->dims + 1, (x->rank - 1) * sizeof(x->dims[0])) != 0)
            return false;
    }
    return !b->alone;
}

/* Whether the request runs by itself, whatever else waits. */
static bool runs_alone(const struct onnx_req *req, const struct onnx_joining *joining)
{
    return !joining->on || req->alone || req->row_count >= joining->batching.item_max;
}

uint64_t onnx_queue_due_us(const struct onnx_queue *queue, const struct onnx_joining *joining,
                           bool full)
{
    const struct onnx_req *first = TAILQ_FIRST(&queue->reqs), *req;
    uint64_t row_count = 0, deadline_us = UINT64_MAX, due_us;

    if (first == NULL)
        return UINT64_MAX;
    if (full || runs_alone(first, joining))
        return 0;
    TAILQ_FOREACH(req, &queue->reqs, link)
    {
        if (req->deadline_us != 0 && req->deadline_us < deadline_us)
            deadline_us = req->deadline_us;
        if (req == first || fits_beside(first, req, joining->input_count))
            row_count += req->row_count;
    }
    due_us = encoder_batching_due_us(&joining->batching, row_count, 0, first->arrived_us);
    return due_us < deadline_us ? due_us : deadline_us;
}

uint32_t onnx_queue_cut(struct onnx_queue *queue, const struct onnx_joining *joining,
                        struct onnx_req **reqs, uint32_t req_max)
{
    struct onnx_req *next = TAILQ_FIRST(&queue->reqs);
    uint32_t count = 0, row_count = 0;

    while (next != NULL && count < req_max) {
        struct onnx_req *req = next;

        next = TAILQ_NEXT(req, link);
        if (count > 0 && !fits_beside(reqs[0], req, joining->input_count))
            continue;
        if (count > 0 && row_count + req->row_count > joining->batching.item_max)
            break;
        row_count += req->row_count;
        reqs[count++] = onnx_queue_remove(queue, req);
        if (runs_alone(req, joining))
            break;
    }
    return count;
}
