/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The tensor requests that an engine holds, and which of them share a run.
 *
 * The oldest request leads. Where the model joins along the first axis, requests behind it whose
 * other axes are equal to its own go with it, in order of arrival, while the rows fit; what does
 * not fit is not overtaken by its own kind. A request marked `alone` shares no run.
 *
 * Pure bookkeeping: no model, no events, no clock.
 * Thread: its engine's.   Tests: tests/unit/test_onnx_queue.c
 */

#include <sys/queue.h>

#include "workers/engines/encoder/encoder_batching.h"
#include "workers/engines/onnx/onnx_input.h"

struct onnx_req {
    uint64_t id;
    uint64_t arrived_us, deadline_us; /* deadline 0: none */
    bool alone;
    uint32_t row_count; /* along the first axis; 1 where nothing is joined */
    struct onnx_input input;
    TAILQ_ENTRY(onnx_req) link;
};

struct onnx_queue {
    TAILQ_HEAD(, onnx_req) reqs; /* the oldest first */
    uint32_t count;
};

void onnx_req_free(struct onnx_req **req_p);

void onnx_queue_init(struct onnx_queue *queue);

void onnx_queue_push(struct onnx_queue *queue, struct onnx_req **req_p); /* takes it */
struct onnx_req *onnx_queue_find(const struct onnx_queue *queue, uint64_t id);
struct onnx_req *onnx_queue_remove(struct onnx_queue *queue, struct onnx_req *req); /* gives it */
/* One whose deadline has passed; NULL: none. The caller owns it. */
struct onnx_req *onnx_queue_expire(struct onnx_queue *queue, uint64_t now_us);
void onnx_queue_done(struct onnx_queue *queue);

/* How requests are joined. */
struct onnx_joining {
    bool on;
    uint32_t input_count; /* of the model */
    struct encoder_batching batching;
};

/* When the next run should start: 0 at once, UINT64_MAX when nothing waits. full: no more requests
 * can come. */
uint64_t onnx_queue_due_us(const struct onnx_queue *queue, const struct onnx_joining *joining,
                           bool full);

/* Takes the requests of the next run out of the queue, first to last; at most req_max. The caller
 * owns them. Returns their number, 0 when the queue is empty. */
uint32_t onnx_queue_cut(struct onnx_queue *queue, const struct onnx_joining *joining,
                        struct onnx_req **reqs, uint32_t req_max);
