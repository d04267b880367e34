/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The requests that an encoder holds, and how a batch is cut from them.
 *
 * A batch is a budget of tokens, not a count of requests: texts are taken in order of arrival
 * until the next one would pass the budget, so a request of many texts runs in several batches
 * and a batch may end in the middle of one. Within the batch the longest text comes first, so
 * that the last turns of attention are short ones. A request marked `alone` shares no batch.
 *
 * Pure bookkeeping: no model, no events, no clock.
 * Thread: its engine's.   Tests: tests/unit/test_encoder_queue.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "workers/engines/encoder/encoder_input.h"
#include "workers/engines/encoder/tokens.h"

struct encoder_req {
    uint64_t id;
    uint64_t arrived_us;
    uint64_t deadline_us; /* 0: none */
    bool alone;
    struct encoder_input input; /* its JSON is gone where the answer needs none of it */
    uint32_t text_count;
    uint32_t taken_count;     /* texts that were put into batches */
    uint32_t done_count;      /* texts whose rows are there, or that found no memory alone */
    bool starved;             /* one of its texts found no memory, even alone */
    bool gone;                /* out of the queue; batches in the air still have texts of it */
    bool counted;             /* scratch, for who counts a batch's requests */
    struct token_list tokens; /* of all texts, back to back */
    uint32_t *offsets;        /* text_count + 1 */
    uint32_t *seconds;        /* per text: where the second of a pair begins; 0: no pair */
    bool *truncated;          /* per text */
    float *rows;              /* of the model's output; made when the first text runs */
    struct encoder_req *next;
};

struct encoder_queue {
    struct encoder_req *first, *last;
    uint32_t count;
};

/* One text in a batch. */
struct encoder_pick {
    struct encoder_req *req;
    uint32_t index; /* text of the request */
    uint32_t token_count;
    bool landed; /* it has run, or never will */
};

/* Makes a request of text_count texts that have no tokens yet. */
struct encoder_req *encoder_req_new(uint32_t text_count);
void encoder_req_free(struct encoder_req **req_p);

/* Takes the request. */
void encoder_queue_push(struct encoder_queue *queue, struct encoder_req **req_p);

/* The request of that id, NULL when there is none. */
struct encoder_req *encoder_queue_find(const struct encoder_queue *queue, uint64_t id);

/* Gives the request, which must be in the queue, to the caller. */
struct encoder_req *encoder_queue_remove(struct encoder_queue *queue, struct encoder_req *req);

/* Gives one request whose deadline has passed and of which nothing has run; NULL: none. */
struct encoder_req *encoder_queue_expire(struct encoder_queue *queue, uint64_t now_us);

void encoder_queue_done(struct encoder_queue *queue);

/* Fills picks (at most pick_max) with texts of at most token_max tokens together; each text is
 * within that by itself. Returns their number, 0 when all texts are taken. */
uint32_t encoder_queue_cut(struct encoder_queue *queue, uint32_t token_max,
                           struct encoder_pick *picks, uint32_t pick_max);
