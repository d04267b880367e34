/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Shapes and places, decided when a model loads, so that no request takes memory.
 *
 * Buckets. A batch of so many rows is computed as the next larger of a few sizes: algorithms and
 * CUDA graphs are made once a size. Up to 256 rows sizes are RUN_ROWS_MIN apart, above an eighth of
 * the power of two below them, so that at most an eighth of what is computed is for nothing.
 *
 * Memory. Two device allocations hold all: the weights; and for each slot (a batch that is out) its
 * input, activations and output. Places are byte offsets from the start of theirs, each a multiple
 * of RUN_ALIGN. Those of the weights do not depend on what attention wants, so they may be copied
 * while that is found out.
 *
 *     x        hidden                  where the residual is
 *     qkv      3 * hidden              dead once attention has run, so `up` may share it;
 *                                      ATTENTION_ROWS_BEHIND rows more that nobody writes
 *     context  hidden                  attention's output, then a product's on its way to a norm
 *     up       intermediate
 *     rows     f32, what the host gets
 *
 * Pure. Thread: any.   Tests: tests/cuda/test_run_plan.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "workers/engines/encoder/bert.h"
#include "workers/engines/encoder/encoder_texts.h"

#define RUN_ALIGN 256u
#define RUN_ROWS_MIN 32u
#define RUN_BUCKET_COUNT_MAX 80u /* of ENCODER_BATCH_TOKEN_MAX rows */
#define RUN_WORKSPACE_SIZE (32u << 20)

/* The bucket that holds so many rows, 1 at least; buckets are numbered from 0 by their size. */
uint32_t run_bucket_of(uint32_t row_count);
uint32_t run_bucket_rows(uint32_t bucket);

/* Texts that a pass is made for: the next power of two, and `max` at most. */
uint32_t run_text_slots(uint32_t text_count, uint32_t max);

/* One tensor on the device. */
struct run_weight {
    size_t at;
    uint64_t count;
    bool wide; /* f32 even where cells are bf16 */
};

struct run_slot {
    size_t offsets, ids, places, index, workspace, attention; /* attention: its workspace */
    size_t x, qkv, context, up, rows;
};

struct run_sizes {
    const struct encoder_config *config;
    bool bf16;
    uint32_t token_count_max; /* of a batch */
    uint32_t text_count_max;
    size_t index_size, attention_size; /* attention.h: workspace and index of a batch */
};

struct run_plan {
    /* Roles by layer: layer * BERT_ROLE_COUNT + role; those of no layer stand in layer 0. count 0:
     * the model has none. K and V lie behind Q, biases likewise, so that they are one product. */
    struct run_weight *weights;
    struct run_weight step, distances;
    struct run_slot slots[ENCODER_FLIGHT_MAX];
    uint32_t row_max, text_max, output_max; /* rows of activations, texts, rows of `rows` */
    size_t weights_size, slots_size;
};

void run_plan_make(const struct run_sizes *sizes, struct run_plan *ret_plan);
void run_plan_done(struct run_plan *plan);

static inline const struct run_weight *run_plan_weight(const struct run_plan *plan,
                                                       enum bert_role role, uint32_t layer)
{
    return &plan->weights[(size_t)layer * BERT_ROLE_COUNT + role];
}
