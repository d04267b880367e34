/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/onnx/onnx.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "workers/engines/onnx/onnx_int.h"
#include "workers/engines/onnx/onnx_output.h"

static void emit_error(struct engine *engine, uint64_t req_id, enum engine_error class,
                       const char *text, uint32_t batch_req_count)
{
    encoder_emit_error(&engine->sink, &engine->stats, req_id, class, text, batch_req_count);
}

/* ---- in ---- */

/* Along the first axis, which all inputs have in common. */
static int count_rows(const struct engine *engine, struct onnx_req *req, struct err *err)
{
    const struct onnx_tensor *tensors = req->input.tensors;

    req->row_count = 1;
    if (!engine->joining.on)
        return 0;
    for (uint32_t i = 0; i < engine->model->input_count; i++) {
        if (tensors[i].rank == 0 || tensors[i].dims[0] != tensors[0].dims[0])
            return err_set(err, ERR_MISMATCH,
                           "inputs.%.80s has %lld rows, inputs.%.80s has %lld: the first axis is "
                           "the batch",
                           engine->model->inputs[i].name,
                           tensors[i].rank == 0 ? 0 : (long long)tensors[i].dims[0],
                           engine->model->inputs[0].name, (long long)tensors[0].dims[0]);
    }
    if (tensors[0].dims[0] > MODEL_BATCH_ITEMS_MAX)
        return err_set(err, ERR_RANGE, "inputs have %lld rows, limit %u",
                       (long long)tensors[0].dims[0], MODEL_BATCH_ITEMS_MAX);
    req->row_count = (uint32_t)tensors[0].dims[0];
    return 0;
}

static int accept(struct engine *engine, const struct engine_req *from, uint64_t now_us,
                  struct onnx_req **ret_req, struct err *err)
{
    OWNED(onnx_req_free) struct onnx_req *req = NULL;
    int r;

    if (from->route != NULL)
        return err_set(err, ERR_NOT_FOUND, "there is no such route; the onnx engine has predict");
    if (from->input_size > engine->input_size_max)
        return err_set(err, ERR_TOO_BIG, "model_input has %zu bytes, limit %u", from->input_size,
                       engine->input_size_max);
    req = xcalloc(1, sizeof(*req));
    r = onnx_input_parse(engine->model, engine->offered, from->input, from->input_size, &req->input,
                         err);
    if (r == 0)
        r = count_rows(engine, req, err);
    if (r < 0)
        return r;
    req->id = from->id;
    req->arrived_us = now_us;
    req->deadline_us = from->deadline_us;
    req->alone = from->alone;
    *ret_req = TAKE(req);
    return 0;
}

static int submit(struct engine *engine, const struct engine_req *from, uint64_t now_us,
                  struct err *err)
{
    const struct engine_event accepted = {.type = ENGINE_EVENT_ACCEPTED, .req_id = from->id};
    struct onnx_req *req = NULL;
    struct err fault;

    if (engine->texts != NULL)
        return encoder_texts_submit(engine->texts, from, now_us, err);
    if (engine->queue.count == engine->req_count_max)
        return err_set(err, ERR_FULL, "engine holds %u requests, its limit", engine->queue.count);
    if (onnx_queue_find(&engine->queue, from->id) != NULL)
        return err_set(err, ERR_CONFLICT, "request %llu is held already",
                       (unsigned long long)from->id);
    if (accept(engine, from, now_us, &req, &fault) < 0) {
        emit_error(engine, from->id,
                   fault.code == ERR_MEMORY ? ENGINE_ERROR_OOM : ENGINE_ERROR_BAD_INPUT, fault.text,
                   0);
        return 0;
    }
    onnx_queue_push(&engine->queue, &req);
    engine->sink.emit(engine->sink.opaque, &accepted);
    return 0;
}

static int cancel(struct engine *engine, uint64_t req_id, struct err *err)
{
    struct onnx_req *req;

    if (engine->texts != NULL)
        return encoder_texts_cancel(engine->texts, req_id, err);
    req = onnx_queue_find(&engine->queue, req_id);
    if (req == NULL)
        return 0;
    req = onnx_queue_remove(&engine->queue, req);
    emit_error(engine, req_id, ENGINE_ERROR_CANCELED, "canceled", 0);
    onnx_req_free(&req);
    return 0;
}

/* ---- a run ---- */

struct batch {
    uint32_t req_count;
    uint64_t row_count;
    struct onnx_tensor inputs[ONNX_INPUT_COUNT_MAX];
    bool joined; /* inputs are copies */
    bool wanted[ONNX_OUTPUT_COUNT_MAX];
};

static void batch_done(struct batch *batch)
{
    for (uint32_t i = 0; batch->joined && i < ONNX_INPUT_COUNT_MAX; i++)
        onnx_tensor_done(&batch->inputs[i]);
}

/* Rows of all requests, one behind the other. */
static int join_input(const struct engine *engine, const struct batch *batch, uint32_t index,
                      struct onnx_tensor *to, struct err *err)
{
    const struct onnx_tensor *first = &engine->run[0]->input.tensors[index];
    uint64_t at = 0;
    int r;

    *to = *first;
    to->data = NULL;
    to->dims[0] = (int64_t)batch->row_count;
    r = onnx_tensor_alloc(to, engine->model->inputs[index].name,
                          ONNX_TENSORS_SIZE_MAX * batch->req_count, err);
    for (uint32_t i = 0; r == 0 && i < batch->req_count; i++) {
        const struct onnx_tensor *from = &engine->run[i]->input.tensors[index];

        assert(at + from->size <= to->size);
        memcpy((uint8_t *)to->data + at, from->data, from->size);
        at += from->size;
    }
    return r;
}

static int join(const struct engine *engine, struct batch *batch, struct err *err)
{
    int r = 0;

    for (uint32_t i = 0; i < batch->req_count; i++) {
        const struct onnx_req *req = engine->run[i];

        batch->row_count += req->row_count;
        for (uint32_t o = 0; o < engine->model->output_count; o++)
            batch->wanted[o] = batch->wanted[o] || req->input.wanted[o];
    }
    if (batch->req_count == 1) {
        memcpy(batch->inputs, engine->run[0]->input.tensors, sizeof(batch->inputs));
        return 0;
    }
    batch->joined = true;
    for (uint32_t i = 0; r == 0 && i < engine->model->input_count; i++)
        r = join_input(engine, batch, i, &batch->inputs[i], err);
    return r;
}

/* What was put together has to come apart again. */
static int check_rows(const struct engine *engine, const struct batch *batch,
                      const struct onnx_results *results, struct err *err)
{
    for (uint32_t i = 0; batch->joined && i < engine->model->output_count; i++) {
        const struct onnx_tensor *tensor = &results->tensors[i];

        if (!batch->wanted[i] || (tensor->rank > 0 && tensor->dims[0] == (int64_t)batch->row_count))
            continue;
        return err_set(
            err, ERR_MISMATCH,
            "output '%.80s' has %lld rows for %llu of joined requests: this model has to "
            "be deployed with the setting \"join\": \"off\"",
            engine->model->outputs[i].name, tensor->rank > 0 ? (long long)tensor->dims[0] : 0,
            (unsigned long long)batch->row_count);
    }
    return 0;
}

static void answer(struct engine *engine, const struct onnx_req *req, const struct batch *batch,
                   const struct onnx_results *results, uint64_t first_row)
{
    struct engine_event event = {
        .type = ENGINE_EVENT_OUTPUT, .req_id = req->id, .batch_req_count = batch->req_count};
    struct onnx_tensor own[ONNX_OUTPUT_COUNT_MAX];
    struct err err;

    memcpy(own, results->tensors, sizeof(own));
    for (uint32_t i = 0; batch->joined && i < engine->model->output_count; i++) {
        if (!batch->wanted[i])
            continue;
        own[i].size = own[i].size / batch->row_count * req->row_count;
        own[i].data = (uint8_t *)own[i].data + own[i].size / req->row_count * first_row;
        own[i].dims[0] = req->row_count;
    }
    buf_clear(&engine->out);
    if (onnx_output_write(engine->model, own, req->input.wanted, req->input.base64, &engine->out,
                          &err) < 0) {
        emit_error(engine, req->id,
                   err.code == ERR_TOO_BIG ? ENGINE_ERROR_BAD_INPUT : ENGINE_ERROR_MODEL_ERROR,
                   err.text, batch->req_count);
        return;
    }
    event.data = engine->out.bytes;
    event.data_size = engine->out.size;
    engine->stats.output_count++;
    engine->sink.emit(engine->sink.opaque, &event);
}

static void count_run(struct engine *engine, const struct batch *batch, uint64_t start_us)
{
    engine->stats.step_count++;
    engine->stats.step_req_count += batch->req_count;
    engine->stats.step_token_count += batch->row_count;
    engine->stats.step_busy_us += clock_mono_us() - start_us;
}

static void run_requests(struct engine *engine, uint32_t req_count)
{
    OWNED(batch_done) struct batch batch = {.req_count = req_count};
    OWNED(onnx_results_done) struct onnx_results results = {.count = 0};
    const uint64_t start_us = clock_mono_us();
    uint64_t row = 0;
    struct err err;
    int r;

    r = join(engine, &batch, &err);
    if (r == 0)
        r = onnx_session_run(engine->session, engine->model, batch.inputs, batch.wanted, &results,
                             &err);
    if (r == 0)
        r = check_rows(engine, &batch, &results, &err);
    count_run(engine, &batch, start_us);
    for (uint32_t i = 0; i < req_count; i++) {
        struct onnx_req *req = engine->run[i];

        if (r == 0)
            answer(engine, req, &batch, &results, row);
        else
            emit_error(engine, req->id,
                       r == ERR_MEMORY ? ENGINE_ERROR_OOM : ENGINE_ERROR_MODEL_ERROR, err.text,
                       req_count);
        row += req->row_count;
        onnx_req_free(&engine->run[i]);
    }
}

static uint64_t due_us(const struct engine *engine)
{
    return onnx_queue_due_us(&engine->queue, &engine->joining,
                             engine->queue.count == engine->req_count_max);
}

static int step(struct engine *engine, uint64_t now_us, uint64_t *ret_wake_us, struct err *err)
{
    struct onnx_req *late;
    uint32_t count = 0;

    if (engine->texts != NULL)
        return encoder_texts_step(engine->texts, now_us, ret_wake_us, err);
    while ((late = onnx_queue_expire(&engine->queue, now_us)) != NULL) {
        emit_error(engine, late->id, ENGINE_ERROR_EXPIRED,
                   "the deadline passed while the request waited in the engine", 0);
        onnx_req_free(&late);
    }
    if (due_us(engine) <= now_us)
        count = onnx_queue_cut(&engine->queue, &engine->joining, engine->run,
                               engine->req_count_max);
    if (count > 0)
        run_requests(engine, count);
    *ret_wake_us = encoder_batching_wake_us(due_us(engine), now_us);
    return 0;
}

static void stats(const struct engine *engine, struct engine_stats *ret_stats)
{
    if (engine->texts != NULL) {
        encoder_texts_stats(engine->texts, ret_stats);
    } else {
        *ret_stats = engine->stats;
        ret_stats->queue_req_count = engine->queue.count;
    }
    ret_stats->host_size = engine->model->weight_size;
}

const struct engine_api onnx_api = {
    .abi = ENGINE_ABI,
    .name = "onnx",
    .version = HEADRACE_VERSION,
    .probe = onnx_probe,
    .load = onnx_load,
    .submit = submit,
    .step = step,
    .cancel = cancel,
    .stats = stats,
    .unload = onnx_unload,
};
