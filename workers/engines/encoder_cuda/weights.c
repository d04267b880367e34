/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder_cuda/weights.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "workers/engines/encoder_cuda/device_error.h"

/* Numbers that are turned into bf16 at a time, on the stack. */
#define TURN_COUNT 1024u

struct ring {
    const struct weights_from *from;
    uint8_t *dev_memory;
    cudaStream_t stream;
    uint8_t *pinned[WEIGHTS_CHUNK_COUNT];
    cudaEvent_t gone[WEIGHTS_CHUNK_COUNT]; /* the chunk is on the device */
    uint32_t next;
    uint64_t done_size;
};

static uint16_t round_bf16(float number)
{
    uint32_t bits;

    memcpy(&bits, &number, sizeof(bits));
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u); /* stays no number */
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

void weights_round(float *numbers, uint64_t count)
{
    uint8_t *to = (uint8_t *)numbers;

    for (uint64_t i = 0; i < count; i++) {
        const uint16_t cell = round_bf16(numbers[i]);

        memcpy(to + i * sizeof(cell), &cell, sizeof(cell));
    }
}

int weights_read(const struct safetensors_tensor *tensor, uint64_t first, uint64_t count, bool bf16,
                 void *to, struct err *err)
{
    uint8_t *bytes = to;

    assert(first + count <= tensor->element_count);
    if (!bf16)
        return safetensors_read_f32(tensor, first, count, to, err);
    if (tensor->dtype == SAFETENSORS_BF16) {
        memcpy(to, tensor->bytes + first * sizeof(uint16_t), count * sizeof(uint16_t));
        return 0;
    }
    for (uint64_t i = 0; i < count; i += TURN_COUNT) {
        const uint64_t part = count - i < TURN_COUNT ? count - i : TURN_COUNT;
        float numbers[TURN_COUNT];
        int r = safetensors_read_f32(tensor, first + i, part, numbers, err);

        if (r < 0)
            return r;
        weights_round(numbers, part);
        memcpy(bytes + i * sizeof(uint16_t), numbers, part * sizeof(uint16_t));
    }
    return 0;
}

static int ring_open(struct ring *ring, struct err *err)
{
    CUDA_TRY(cudaStreamCreateWithFlags(&ring->stream, cudaStreamNonBlocking), err);
    for (uint32_t i = 0; i < WEIGHTS_CHUNK_COUNT; i++) {
        CUDA_TRY(cudaMallocHost((void **)&ring->pinned[i], WEIGHTS_CHUNK_SIZE), err);
        CUDA_TRY(cudaEventCreateWithFlags(&ring->gone[i], cudaEventDisableTiming), err);
    }
    return 0;
}

static void ring_done(struct ring *ring)
{
    if (ring->stream != NULL)
        (void)cudaStreamSynchronize(ring->stream);
    for (uint32_t i = 0; i < WEIGHTS_CHUNK_COUNT; i++) {
        if (ring->gone[i] != NULL)
            (void)cudaEventDestroy(ring->gone[i]);
        if (ring->pinned[i] != NULL)
            (void)cudaFreeHost(ring->pinned[i]);
    }
    if (ring->stream != NULL)
        (void)cudaStreamDestroy(ring->stream);
}

/* A buffer whose last chunk is on the device: an event that was never recorded is over. */
static int ring_wait(struct ring *ring, uint8_t **ret_pinned, struct err *err)
{
    CUDA_TRY(cudaEventSynchronize(ring->gone[ring->next]), err);
    *ret_pinned = ring->pinned[ring->next];
    return 0;
}

static int ring_send(struct ring *ring, size_t at, size_t size, struct err *err)
{
    const struct weights_from *from = ring->from;

    CUDA_TRY(cudaMemcpyAsync(ring->dev_memory + at, ring->pinned[ring->next], size,
                             cudaMemcpyHostToDevice, ring->stream),
             err);
    CUDA_TRY(cudaEventRecord(ring->gone[ring->next], ring->stream), err);
    ring->next = (ring->next + 1) % WEIGHTS_CHUNK_COUNT;
    ring->done_size += size;
    if (from->progress != NULL &&
        !from->progress(from->opaque, ring->done_size, from->plan->weights_size))
        return err_set(err, ERR_CANCELED, "loading was stopped");
    return 0;
}

static int send_tensor(struct ring *ring, const struct run_weight *weight,
                       const struct safetensors_tensor *tensor, struct err *err)
{
    const bool bf16 = ring->from->bf16 && !weight->wide;
    const size_t cell = bf16 ? sizeof(uint16_t) : sizeof(float);
    const uint64_t chunk = WEIGHTS_CHUNK_SIZE / cell;
    int r = 0;

    assert(tensor != NULL && tensor->element_count == weight->count);
    for (uint64_t i = 0; r == 0 && i < weight->count; i += chunk) {
        const uint64_t count = weight->count - i < chunk ? weight->count - i : chunk;
        uint8_t *pinned;

        r = ring_wait(ring, &pinned, err);
        if (r == 0)
            r = weights_read(tensor, i, count, bf16, pinned, err);
        if (r == 0)
            r = ring_send(ring, weight->at + i * cell, count * cell, err);
    }
    return r;
}

/* Numbers that were worked out. */
static int send_numbers(struct ring *ring, const struct run_weight *weight, float *numbers,
                        struct err *err)
{
    const bool bf16 = ring->from->bf16 && !weight->wide;
    const size_t size = weight->count * (bf16 ? sizeof(uint16_t) : sizeof(float));
    int r = 0;

    if (bf16)
        weights_round(numbers, weight->count);
    for (size_t i = 0; r == 0 && i < size; i += WEIGHTS_CHUNK_SIZE) {
        const size_t part = size - i < WEIGHTS_CHUNK_SIZE ? size - i : WEIGHTS_CHUNK_SIZE;
        uint8_t *pinned;

        r = ring_wait(ring, &pinned, err);
        if (r < 0)
            return r;
        memcpy(pinned, (const uint8_t *)numbers + i, part);
        r = ring_send(ring, weight->at + i, part, err);
    }
    return r;
}

static int send_positions(struct ring *ring, struct err *err)
{
    const struct weights_from *from = ring->from;
    const uint64_t hidden = from->config->hidden;
    const uint64_t count = from->config->position_count * hidden;
    const struct safetensors_tensor *types = bert_find(from->config, from->file, BERT_ROLE_TYPES,
                                                       0);
    OWNED(mem_free) float *positions = xcalloc(count, sizeof(float));
    OWNED(mem_free) float *type = xcalloc(2 * hidden, sizeof(float));
    const bool two = from->config->type_count >= 2;
    int r;

    r = safetensors_read_f32(bert_find(from->config, from->file, BERT_ROLE_POSITIONS, 0), 0, count,
                             positions, err);
    if (r == 0 && from->config->type_count > 0)
        r = safetensors_read_f32(types, 0, two ? 2 * hidden : hidden, type, err);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < count; i++)
        positions[i] += type[i % hidden];
    for (uint64_t i = 0; two && i < hidden; i++)
        type[hidden + i] -= type[i];
    r = send_numbers(ring, run_plan_weight(from->plan, BERT_ROLE_POSITIONS, 0), positions, err);
    if (r == 0 && two)
        r = send_numbers(ring, &from->plan->step, type + hidden, err);
    return r;
}

static int send_distances(struct ring *ring, struct err *err)
{
    const struct weights_from *from = ring->from;
    OWNED(mem_free) float *distances = NULL;
    int r;

    if (from->plan->distances.count == 0)
        return 0;
    distances = xcalloc(from->plan->distances.count, sizeof(float));
    r = bert_read_distances(from->config, from->file, distances, err);
    return r == 0 ? send_numbers(ring, &from->plan->distances, distances, err) : r;
}

static int send_all(struct ring *ring, struct err *err)
{
    const struct weights_from *from = ring->from;
    int r;

    r = send_positions(ring, err);
    if (r == 0)
        r = send_distances(ring, err);
    for (uint32_t layer = 0; r == 0 && layer < from->config->layer_count; layer++) {
        for (uint32_t role = 0; r == 0 && role < BERT_ROLE_COUNT; role++) {
            const struct run_weight *weight = run_plan_weight(from->plan, role, layer);

            if (weight->count > 0 && role != BERT_ROLE_POSITIONS)
                r = send_tensor(ring, weight, bert_find(from->config, from->file, role, layer),
                                err);
        }
    }
    if (r < 0)
        return r;
    CUDA_TRY(cudaStreamSynchronize(ring->stream), err);
    return 0;
}

int weights_copy(const struct weights_from *from, void *dev_memory, struct err *err)
{
    OWNED(ring_done) struct ring ring = {.from = from, .dev_memory = dev_memory};
    int r;

    r = ring_open(&ring, err);
    return r == 0 ? send_all(&ring, err) : r;
}
