/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/encoder.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "workers/engines/encoder/bert.h"
#include "workers/engines/encoder/encoder_int.h"
#include "workers/engines/encoder/encoder_output.h"

static void emit_error(struct engine *engine, uint64_t req_id, enum engine_error class,
                       const char *text, uint32_t batch_req_count)
{
    const struct engine_event event = {
        .type = ENGINE_EVENT_ERROR,
        .req_id = req_id,
        .error = class,
        .text = text,
        .batch_req_count = batch_req_count,
    };

    engine->stats.error_count++;
    engine->stats.oom_count += class == ENGINE_ERROR_OOM;
    engine->sink.emit(engine->sink.opaque, &event);
}

/* A byte makes one id at most, and a text is cut at the model's length. */
static uint32_t id_room(size_t text_size, uint32_t limit)
{
    return text_size + 2 < limit ? (uint32_t)text_size + 2 : limit;
}

/* The user's texts as ids. What is wrong with them is the user's fault. */
static int tokenize(struct engine *engine, const struct encoder_input *input,
                    struct encoder_req **ret_req, struct err *err)
{
    const uint32_t limit = engine->config.token_count_max;
    OWNED(encoder_req_free) struct encoder_req *req = NULL;
    size_t room = 0, text_size = 0;

    for (uint32_t i = 0; i < input->text_count; i++) {
        (void)encoder_input_text(input, i, &text_size);
        room += id_room(text_size, limit);
    }
    req = encoder_req_new(input->text_count, room);
    for (uint32_t i = 0; i < input->text_count; i++) {
        const char *text = encoder_input_text(input, i, &text_size);
        const uint32_t first = req->offsets[i];

        req->offsets[i + 1] = first + wordpiece_encode(engine->pieces, text, text_size,
                                                       req->ids + first, id_room(text_size, limit),
                                                       &req->truncated[i]);
        if (req->truncated[i] && !input->truncate)
            return err_set(err, ERR_TOO_BIG,
                           "input[%u] has more tokens than the model's limit of "
                           "%u, and truncate is false",
                           i, limit);
    }
    *ret_req = TAKE(req);
    return 0;
}

static int accept(struct engine *engine, const struct engine_req *from,
                  struct encoder_req **ret_req, struct err *err)
{
    OWNED(encoder_input_done) struct encoder_input input = {0};
    uint64_t out_size;
    int r;

    if (from->input_size > engine->input_size_max)
        return err_set(err, ERR_TOO_BIG, "model_input has %zu bytes, limit %u", from->input_size,
                       engine->input_size_max);
    r = encoder_input_parse(from->input, from->input_size, engine->config.hidden, &input, err);
    if (r < 0)
        return r;
    out_size = encoder_output_size_max(input.text_count, engine->config.hidden);
    if (out_size > ENCODER_OUTPUT_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG,
                       "input has %u texts, whose answer may have %llu bytes, "
                       "limit %u",
                       input.text_count, (unsigned long long)out_size, ENCODER_OUTPUT_SIZE_MAX);
    r = tokenize(engine, &input, ret_req, err);
    if (r < 0)
        return r;
    (*ret_req)->id = from->id;
    (*ret_req)->deadline_us = from->deadline_us;
    (*ret_req)->alone = from->alone;
    (*ret_req)->base64 = input.base64;
    (*ret_req)->warnings = TAKE(input.warnings);
    return 0;
}

/* It answers predict, and the one route that means the same. */
static bool is_known_route(const struct engine_req *req)
{
    return req->route == NULL || strcmp(req->route, "POST /v1/embeddings") == 0;
}

int encoder_submit(struct engine *engine, const struct engine_req *from, uint64_t now_us,
                   struct err *err)
{
    const struct engine_event accepted = {.type = ENGINE_EVENT_ACCEPTED, .req_id = from->id};
    struct encoder_req *req = NULL;
    struct err fault;

    (void)now_us;
    if (engine->queue.count == engine->req_count_max)
        return err_set(err, ERR_FULL, "engine holds %u requests, its limit", engine->queue.count);
    if (encoder_queue_find(&engine->queue, from->id) != NULL)
        return err_set(err, ERR_CONFLICT, "request %llu is held already",
                       (unsigned long long)from->id);
    if (!is_known_route(from)) {
        emit_error(engine, from->id, ENGINE_ERROR_BAD_INPUT,
                   "there is no such route; there is POST /v1/embeddings", 0);
        return 0;
    }
    if (accept(engine, from, &req, &fault) < 0) {
        emit_error(engine, from->id, ENGINE_ERROR_BAD_INPUT, fault.text, 0);
        return 0;
    }
    encoder_queue_push(&engine->queue, &req);
    engine->sink.emit(engine->sink.opaque, &accepted);
    return 0;
}

int encoder_cancel(struct engine *engine, uint64_t req_id, struct err *err)
{
    struct encoder_req *req = encoder_queue_find(&engine->queue, req_id);

    (void)err;
    if (req == NULL)
        return 0;
    req = encoder_queue_remove(&engine->queue, req);
    emit_error(engine, req_id, ENGINE_ERROR_CANCELED, "canceled", 0);
    encoder_req_free(&req);
    return 0;
}

/* Copies the picks' ids into the batch, in the picks' order. Returns the number of tokens. */
static uint32_t gather(struct engine *engine, uint32_t pick_count)
{
    uint32_t at = 0;

    engine->offsets[0] = 0;
    for (uint32_t i = 0; i < pick_count; i++) {
        const struct encoder_pick *pick = &engine->picks[i];

        memcpy(engine->ids + at, pick->req->ids + pick->req->offsets[pick->index],
               pick->token_count * sizeof(*engine->ids));
        at += pick->token_count;
        engine->offsets[i + 1] = at;
    }
    return at;
}

static void scatter(struct engine *engine, uint32_t pick_count)
{
    const size_t hidden = engine->config.hidden;

    for (uint32_t i = 0; i < pick_count; i++) {
        struct encoder_req *req = engine->picks[i].req;

        if (req->vectors == NULL)
            req->vectors = xcalloc(req->text_count * hidden, sizeof(float));
        memcpy(req->vectors + engine->picks[i].index * hidden, engine->vectors + i * hidden,
               hidden * sizeof(float));
        req->done_count++;
    }
}

static void answer(struct engine *engine, const struct encoder_req *req, uint32_t batch_req_count)
{
    const struct encoder_output output = {
        .model_json = engine->model_json,
        .vectors = req->vectors,
        .truncated = req->truncated,
        .text_count = req->text_count,
        .dimension_count = engine->config.hidden,
        .token_count = req->offsets[req->text_count],
        .base64 = req->base64,
        .warnings = req->warnings,
    };
    struct engine_event event = {
        .type = ENGINE_EVENT_OUTPUT,
        .req_id = req->id,
        .token_count = req->offsets[req->text_count],
        .batch_req_count = batch_req_count,
    };
    struct err err;

    buf_clear(&engine->out);
    if (encoder_output_write(&output, &engine->out, &err) < 0) {
        emit_error(engine, req->id, ENGINE_ERROR_MODEL_ERROR, err.text, batch_req_count);
        return;
    }
    event.data = engine->out.bytes;
    event.data_size = engine->out.size;
    engine->stats.output_count++;
    engine->sink.emit(engine->sink.opaque, &event);
}

/* Requests of the batch are marked by taken_count: what ran is behind them. */
static uint32_t count_reqs(const struct engine *engine, uint32_t pick_count)
{
    uint32_t count = 0;

    for (const struct encoder_req *req = engine->queue.first; req != NULL; req = req->next)
        count += req->taken_count > req->done_count;
    return pick_count > 0 ? count : 0;
}

static void fail_batch(struct engine *engine, uint32_t req_count, const struct err *err)
{
    const enum engine_error class = err->code == ERR_MEMORY ? ENGINE_ERROR_OOM
                                                            : ENGINE_ERROR_MODEL_ERROR;
    struct encoder_req *next;

    for (struct encoder_req *req = engine->queue.first; req != NULL; req = next) {
        next = req->next;
        if (req->taken_count == req->done_count)
            continue;
        req = encoder_queue_remove(&engine->queue, req);
        emit_error(engine, req->id, class, err->text, req_count);
        encoder_req_free(&req);
    }
}

static void finish_batch(struct engine *engine, uint32_t req_count)
{
    struct encoder_req *next;

    for (struct encoder_req *req = engine->queue.first; req != NULL; req = next) {
        next = req->next;
        if (req->done_count < req->text_count)
            continue;
        req = encoder_queue_remove(&engine->queue, req);
        answer(engine, req, req_count);
        encoder_req_free(&req);
    }
}

static void run_batch(struct engine *engine, uint32_t pick_count)
{
    const struct bert_batch batch = {engine->ids, engine->offsets, pick_count};
    const uint32_t req_count = count_reqs(engine, pick_count);
    const uint32_t token_count = gather(engine, pick_count);
    const uint64_t start_us = clock_mono_us();
    struct err err;
    int r;

    r = bert_run(engine->bert, &batch, engine->vectors, &err);
    engine->stats.step_count++;
    engine->stats.step_req_count += req_count;
    engine->stats.step_token_count += token_count;
    engine->stats.step_pad_count += bert_pad_count(token_count);
    engine->stats.step_busy_us += clock_mono_us() - start_us;
    if (r < 0) {
        fail_batch(engine, req_count, &err);
        return;
    }
    scatter(engine, pick_count);
    finish_batch(engine, req_count);
}

int encoder_step(struct engine *engine, uint64_t now_us, uint64_t *ret_wake_us, struct err *err)
{
    struct encoder_req *late;
    uint32_t pick_count;

    (void)err;
    while ((late = encoder_queue_expire(&engine->queue, now_us)) != NULL) {
        emit_error(engine, late->id, ENGINE_ERROR_EXPIRED,
                   "the deadline passed while the request waited in the engine", 0);
        encoder_req_free(&late);
    }
    pick_count = encoder_queue_cut(&engine->queue, engine->batch_token_max, engine->picks,
                                   engine->batch_token_max);
    if (pick_count > 0)
        run_batch(engine, pick_count);
    *ret_wake_us = engine->queue.count > 0 ? 0 : ENGINE_NEVER_US;
    return 0;
}

void encoder_stats(const struct engine *engine, struct engine_stats *ret_stats)
{
    *ret_stats = engine->stats;
    ret_stats->queue_req_count = engine->queue.count;
    ret_stats->host_size = bert_memory_size(engine->bert);
}

const struct engine_api encoder_api = {
    .abi = ENGINE_ABI,
    .name = "encoder",
    .version = HEADRACE_VERSION,
    .probe = encoder_probe,
    .load = encoder_load,
    .submit = encoder_submit,
    .step = encoder_step,
    .cancel = encoder_cancel,
    .stats = encoder_stats,
    .unload = encoder_unload,
};
