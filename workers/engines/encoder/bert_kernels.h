/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a BERT forward pass needs besides matrix products: attention of one head, layer norm.
 *
 * bert_kernels.inc is compiled once an instruction set (baseline, AVX2 + FMA, AVX-512), with the
 * compiler's portable vectors; bert_kernels_at(0) is the best that this CPU runs. All variants
 * compute the same sums in another order.
 *
 * Thread: any; scratch belongs to the caller's.   Tests: tests/unit/test_encoder_math.c
 */

#include <stddef.h>
#include <stdint.h>

#define BERT_SCRATCH_ALIGN 64u

/* One head of one text: context = softmax(q k' scale + bias) v. Rows are row_stride floats apart.
 */
struct bert_attention {
    const float *q, *k, *v;
    size_t row_stride;
    uint32_t token_count;
    uint32_t head_size;
    float scale;
    const float *bias; /* at distance 0 of one number a distance, how far a key is behind its query,
                        * from 1 - token_count to token_count - 1; NULL: none */
    const float *turns; /* a row a token: head_size / 2 cosines and as many sines, by which each
                         * of the first half of q and k is turned with its like of the second;
                         * NULL: neither is turned. head_size is even then */
    uint32_t window;    /* keys further than this from their query do not count; 0: all count.
                         * Not with bias */
    float *context;     /* or, where it is NULL, context_bf16 */
    uint16_t *context_bf16;
    size_t context_stride;
    float *scratch; /* bert_attention_scratch_size() bytes, aligned to BERT_SCRATCH_ALIGN */
};

struct bert_kernels {
    const char *name;
    void (*attend)(const struct bert_attention *attention);
    /* `to` may be row itself; bf16 gets a rounded copy unless it is NULL. */
    void (*norm)(const float *row, float *to, uint32_t size, const float *gain, const float *bias,
                 float eps, uint16_t *bf16);
};

size_t bert_attention_scratch_size(uint32_t token_count_max, uint32_t head_size);

/* The variants that this CPU runs, the best at 0; NULL past the last. */
const struct bert_kernels *bert_kernels_at(int index);

extern const struct bert_kernels bert_kernels_base;
#if defined(__x86_64__)
extern const struct bert_kernels bert_kernels_avx2;
extern const struct bert_kernels bert_kernels_avx512;
#endif
