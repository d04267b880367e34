/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder_cuda/bert_cuda.h"

#include <string.h>

#include "base/assert.h"
#include "workers/engines/encoder_cuda/bert_cuda_int.h"
#include "workers/engines/encoder_cuda/device_error.h"

/* Where each token stands; rows behind the last text are words and places 0, and read by nobody. */
static void place_rows(const struct bert_cuda *bert, struct cuda_slot *slot,
                       const struct bert_batch *batch)
{
    const struct encoder_config *config = &bert->config;
    const bool two = bert->plan.step.count > 0 && batch->seconds != NULL;
    const uint32_t end = batch->offsets[batch->text_count];

    for (uint32_t i = 0; i < batch->text_count; i++) {
        const uint32_t *ids = batch->ids + batch->offsets[i];
        const uint32_t count = batch->offsets[i + 1] - batch->offsets[i];
        const uint32_t second = two && batch->seconds[i] > 0 ? batch->seconds[i] : UINT32_MAX;
        uint32_t position = config->position_first;

        for (uint32_t t = 0; t < count; t++) {
            uint32_t *place = &slot->places[batch->offsets[i] + t];

            if (config->position_first > 0 && ids[t] == config->pad_id)
                *place = config->pad_id;
            else
                *place = position++;
            if (t >= second)
                *place |= KERNEL_PLACE_SECOND;
        }
    }
    memset(slot->places + end, 0, (slot->row_count - end) * sizeof(*slot->places));
}

/* All of the batch into pinned memory, as its pass wants it. */
static int fill(const struct bert_cuda *bert, struct cuda_slot *slot,
                const struct bert_batch *batch, struct pass *ret_pass, struct err *err)
{
    const uint32_t token_count = batch->offsets[batch->text_count];
    struct pass pass;
    int r;

    r = attention_prepare(bert->attention, batch->offsets, batch->text_count, slot->index,
                          &pass.turn, err);
    if (r < 0)
        return r;
    pass.row_count = run_bucket_rows(run_bucket_of(token_count));
    pass.text_slots = run_text_slots(batch->text_count, bert->plan.text_max);
    slot->token_count = token_count;
    slot->text_count = batch->text_count;
    slot->row_count = pass.row_count;
    memcpy(slot->ids, batch->ids, token_count * sizeof(*slot->ids));
    memset(slot->ids + token_count, 0, (pass.row_count - token_count) * sizeof(*slot->ids));
    place_rows(bert, slot, batch);
    memcpy(slot->offsets, batch->offsets, (batch->text_count + 1) * sizeof(*slot->offsets));
    for (uint32_t i = batch->text_count; i < pass.text_slots; i++)
        slot->offsets[i + 1] = token_count;
    *ret_pass = pass;
    return 0;
}

static int send(const struct bert_cuda *bert, const struct cuda_slot *slot, size_t at,
                const void *from, size_t size, struct err *err)
{
    if (size > 0)
        CUDA_TRY(
            cudaMemcpyAsync(bert->dev_slots + at, from, size, cudaMemcpyHostToDevice, slot->stream),
            err);
    return 0;
}

static int send_all(const struct bert_cuda *bert, const struct cuda_slot *slot,
                    const struct pass *pass, struct err *err)
{
    const size_t rows = pass->row_count * sizeof(uint32_t);
    int r;

    r = send(bert, slot, slot->at->offsets, slot->offsets,
             (pass->text_slots + 1u) * sizeof(*slot->offsets), err);
    if (r == 0)
        r = send(bert, slot, slot->at->index, slot->index, pass->turn.index_size, err);
    if (r == 0)
        r = send(bert, slot, slot->at->ids, slot->ids, rows, err);
    return r == 0 ? send(bert, slot, slot->at->places, slot->places, rows, err) : r;
}

static size_t output_size(const struct bert_cuda *bert, const struct cuda_slot *slot)
{
    const uint32_t rows = bert->config.head == ENCODER_HEAD_TOKENS ? slot->token_count
                                                                   : slot->text_count;

    return (size_t)rows * encoder_config_width(&bert->config) * sizeof(float);
}

static int start(struct bert_cuda *bert, struct cuda_slot *slot, const struct bert_batch *batch,
                 struct err *err)
{
    struct pass pass;
    int r;

    r = fill(bert, slot, batch, &pass, err);
    if (r == 0)
        r = send_all(bert, slot, &pass, err);
    if (r == 0)
        r = bert_cuda_pass(bert, slot, &pass, err);
    if (r < 0)
        return r;
    CUDA_TRY(cudaMemcpyAsync(slot->rows, bert->dev_slots + slot->at->rows, output_size(bert, slot),
                             cudaMemcpyDeviceToHost, slot->stream),
             err);
    CUDA_TRY(cudaEventRecord(slot->done, slot->stream), err);
    return 0;
}

int bert_cuda_start(struct bert_cuda *bert, uint32_t slot_number, const struct bert_batch *batch,
                    struct err *err)
{
    struct cuda_slot *slot = &bert->slots[slot_number];
    int r;

    assert(slot_number < ENCODER_FLIGHT_MAX && !slot->out && batch->text_count > 0);
    r = start(bert, slot, batch, err);
    if (r < 0) {
        (void)cudaStreamSynchronize(slot->stream); /* what did begin reads pinned memory */
        (void)cudaGetLastError(); /* or the next batch's launch would seem to fail */
    }
    slot->out = r == 0;
    return r;
}

int bert_cuda_finish(struct bert_cuda *bert, uint32_t slot_number, float *rows,
                     uint32_t *ret_pad_count, struct err *err)
{
    struct cuda_slot *slot = &bert->slots[slot_number];

    assert(slot->out);
    slot->out = false;
    *ret_pad_count = slot->row_count - slot->token_count;
    CUDA_TRY(cudaEventSynchronize(slot->done), err);
    memcpy(rows, slot->rows, output_size(bert, slot));
    return 0;
}

uint32_t bert_cuda_free_slot(const struct bert_cuda *bert)
{
    uint32_t slot = 0;

    while (slot < ENCODER_FLIGHT_MAX && bert->slots[slot].out)
        slot++;
    assert(slot < ENCODER_FLIGHT_MAX);
    return slot;
}

uint64_t bert_cuda_host_size(const struct bert_cuda *bert)
{
    return bert->pinned_size;
}

uint64_t bert_cuda_dev_size(const struct bert_cuda *bert)
{
    return bert->plan.weights_size + bert->plan.slots_size;
}
