/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What bert_cuda.c (batches), bert_cuda_open.c (models) and bert_cuda_pass.c (launches) share. */

#include <cuda_runtime_api.h>

#include "workers/engines/encoder_cuda/attention.h"
#include "workers/engines/encoder_cuda/bert_cuda.h"
#include "workers/engines/encoder_cuda/kernels.h"
#include "workers/engines/encoder_cuda/products.h"
#include "workers/engines/encoder_cuda/run_plan.h"

enum cuda_product {
    CUDA_PRODUCT_QKV,
    CUDA_PRODUCT_OUT,
    CUDA_PRODUCT_UP,
    CUDA_PRODUCT_DOWN,
    CUDA_PRODUCT_DENSE,
    CUDA_PRODUCT_LABELS,
    CUDA_PRODUCT_COUNT,
};

/* What decides which launches a batch is made of. */
struct pass {
    uint32_t row_count; /* of the bucket */
    uint32_t text_slots;
    struct attention_turn turn;
};

struct pass_graph {
    uint32_t row_count, text_slots, plan;
    cudaGraphExec_t exec; /* NULL: met once */
    uint64_t met;         /* when last; 0: no such pass yet */
};

struct cuda_slot {
    const struct run_slot *at;
    cudaStream_t stream;
    cudaEvent_t done;
    uint8_t *pinned; /* all of the next five */
    uint32_t *offsets, *ids, *places;
    void *index;
    float *rows;
    bool out;
    uint32_t token_count, text_count, row_count; /* of the batch that is out */
    struct pass_graph graphs[BERT_CUDA_GRAPH_COUNT_MAX];
    uint64_t met;
};

struct bert_cuda {
    struct encoder_config config;
    bool bf16;
    uint32_t ordinal;
    struct run_plan plan;
    uint8_t *dev_weights, *dev_slots;
    struct products *products;
    struct product *kinds[CUDA_PRODUCT_COUNT]; /* those of a head: NULL without one */
    struct attention *attention;
    struct cuda_slot slots[ENCODER_FLIGHT_MAX];
    size_t pinned_size;
    bool no_graphs; /* a capture was refused */
};

/* cuBLASLt's epilogue has the GELU by tanh only, and does not say how near its tanh is: good for
 * bf16, not for f32, which is the reference. */
static inline bool bert_cuda_has_gelu_kernel(const struct bert_cuda *bert)
{
    return bert->config.activation == ENCODER_GELU ||
           (bert->config.activation == ENCODER_GELU_TANH && !bert->bf16);
}

/* Puts a whole pass on the slot's stream, by a graph or by its launches. */
int bert_cuda_pass(struct bert_cuda *bert, struct cuda_slot *slot, const struct pass *pass,
                   struct err *err) MUST_CHECK;
void bert_cuda_forget_graphs(struct cuda_slot *slot);
