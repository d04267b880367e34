/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/encoder_queue.h"

#include <stdlib.h>

#include "base/assert.h"

struct encoder_req *encoder_req_new(uint32_t text_count)
{
    struct encoder_req *req = xcalloc(1, sizeof(*req));

    req->text_count = text_count;
    req->offsets = xcalloc((size_t)text_count + 1, sizeof(*req->offsets));
    req->seconds = xcalloc(text_count, sizeof(*req->seconds));
    req->truncated = xcalloc(text_count, sizeof(*req->truncated));
    return req;
}

void encoder_req_free(struct encoder_req **req_p)
{
    struct encoder_req *req = TAKE(*req_p);

    if (req == NULL)
        return;
    encoder_input_done(&req->input);
    free(req->rows);
    free(req->truncated);
    free(req->seconds);
    free(req->offsets);
    token_list_done(&req->tokens);
    free(req);
}

void encoder_queue_push(struct encoder_queue *queue, struct encoder_req **req_p)
{
    struct encoder_req *req = TAKE(*req_p);

    assert(req->next == NULL);
    if (queue->last != NULL)
        queue->last->next = req;
    else
        queue->first = req;
    queue->last = req;
    queue->count++;
}

struct encoder_req *encoder_queue_find(const struct encoder_queue *queue, uint64_t id)
{
    struct encoder_req *req = queue->first;

    while (req != NULL && req->id != id)
        req = req->next;
    return req;
}

struct encoder_req *encoder_queue_remove(struct encoder_queue *queue, struct encoder_req *req)
{
    struct encoder_req *before = NULL, *at = queue->first;

    while (at != req) {
        assert(at != NULL);
        before = at;
        at = at->next;
    }
    if (before != NULL)
        before->next = req->next;
    else
        queue->first = req->next;
    if (queue->last == req)
        queue->last = before;
    req->next = NULL;
    queue->count--;
    return req;
}

struct encoder_req *encoder_queue_expire(struct encoder_queue *queue, uint64_t now_us)
{
    for (struct encoder_req *req = queue->first; req != NULL; req = req->next) {
        if (req->deadline_us != 0 && now_us > req->deadline_us && req->taken_count == 0)
            return encoder_queue_remove(queue, req);
    }
    return NULL;
}

void encoder_queue_done(struct encoder_queue *queue)
{
    while (queue->first != NULL) {
        struct encoder_req *req = encoder_queue_remove(queue, queue->first);

        encoder_req_free(&req);
    }
}

static int longest_first(const void *a_p, const void *b_p)
{
    const struct encoder_pick *a = a_p, *b = b_p;

    return a->token_count > b->token_count ? -1 : a->token_count < b->token_count;
}

uint32_t encoder_queue_cut(struct encoder_queue *queue, uint32_t token_max,
                           struct encoder_pick *picks, uint32_t pick_max)
{
    uint32_t count = 0, token_count = 0;

    for (struct encoder_req *req = queue->first; req != NULL; req = req->next) {
        if (count > 0 && req->alone && picks[0].req != req)
            break;
        while (req->taken_count < req->text_count && count < pick_max) {
            const uint32_t index = req->taken_count;
            const uint32_t size = req->offsets[index + 1] - req->offsets[index];

            assert(size <= token_max);
            if (token_count + size > token_max)
                break;
            picks[count++] = (struct encoder_pick){.req = req, .index = index, .token_count = size};
            token_count += size;
            req->taken_count++;
        }
        /* No later text overtakes one that did not fit. */
        if (req->taken_count < req->text_count || (req->alone && count > 0))
            break;
    }
    qsort(picks, count, sizeof(*picks), longest_first);
    return count;
}
