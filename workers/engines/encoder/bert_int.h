/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What bert.c (running) and bert_load.c (weights) share. */

#include "workers/engines/encoder/bert.h"
#include "workers/engines/encoder/bert_kernels.h"
#include "workers/engines/encoder/gemm.h"
#include "workers/engines/encoder/team.h"

/* GATE: only where config.gated. */
enum bert_product { BERT_QKV, BERT_OUT, BERT_UP, BERT_DOWN, BERT_GATE, BERT_PRODUCT_COUNT };

struct bert_layer {
    struct gemm_weights *products[BERT_PRODUCT_COUNT];
    float *out_gain, *out_bias;   /* norm behind attention */
    float *down_gain, *down_bias; /* norm behind the feed-forward step, before the next layer; where
                                   * the norm comes first, the last layer's is the one at the end */
};

/* dense NULL: the labels are read off the hidden state itself. */
struct bert_head {
    float *dense, *dense_bias;   /* hidden x hidden */
    float *gain, *bias;          /* norm behind it; NULL: there is none */
    float *labels, *labels_bias; /* label_count x hidden */
};

struct bert_tile {
    uint32_t first; /* row */
    uint32_t kind;  /* index into GEMM_TILE_ROWS */
};

struct bert {
    struct encoder_config config;
    struct safetensors *file;
    struct team *team;
    struct gemm *gemm;
    const struct bert_kernels *kernels;
    struct gemm_plan *plans[BERT_PRODUCT_COUNT];
    struct bert_layer *layers;
    const float *words; /* vocab_count rows: the file's own, or words_copy */
    float *words_copy;  /* where the file has another type or alignment */
    float *positions;   /* position_count rows, or one where there is no such table; type 0 added */
    float *type_step;   /* type 1 less type 0; NULL: the model has no type 1 */
    float *distances;   /* per head 2 * token_count_max - 1 numbers; NULL: distances do not count */
    float *turns[2];    /* of global and of local layers, see bert_attention; NULL: none */
    struct bert_head head;
    float *gain, *bias; /* norm of the sum */
    bool bf16;
    uint32_t row_max; /* token_count_max and padding */
    uint64_t memory_size;

    /* Activations of one run, row_max rows each. */
    float *x;                /* hidden */
    uint16_t *x_bf16;        /* the same, rounded; bf16 only */
    float *qkv;              /* 3 * hidden */
    void *context;           /* hidden, f32 or bf16 */
    uint32_t *row_positions; /* of the texts' tokens */
    bool *row_seconds;       /* whether a token is of type 1 */
    struct bert_tile *tiles;
    void **up;       /* per member: intermediate, one tile of rows */
    void **gated;    /* the same; only where config.gated */
    float **normed;  /* per member: hidden, one tile of rows; only where the norm comes first */
    float **scratch; /* per member: attention */
};

/* Fills layers, tables and norms from bert->file. */
int bert_load_weights(struct bert *bert, const struct bert_options *options,
                      struct err *err) MUST_CHECK;

/* The rows of one text: x is its first token's hidden state, the others' are behind it. */
void bert_head_classify(const struct bert *bert, const float *x, uint32_t token_count, float *row);
void bert_head_tokens(const struct bert *bert, const float *x, uint32_t token_count, float *rows);

/* The mean or the first of a text's tokens. */
void bert_pool(const struct bert *bert, enum encoder_pooling pooling, const float *x,
               uint32_t token_count, float *vector);

/* Aligned and zeroed; counted in memory_size. The size follows from the model's shape. */
int bert_alloc(struct bert *bert, size_t count, size_t size, void *ret_p,
               struct err *err) MUST_CHECK;
