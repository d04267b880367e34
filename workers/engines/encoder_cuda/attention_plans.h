/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Attention as cuDNN is asked for it, and its plans: one per bucket of attention_shape.h.
 *
 * The graph is one operation with nine tensors: q, k and v are views of the same rows, packed by
 * offsets; lengths of texts mask what lies behind them. Nothing here needs a device: plans are
 * compiled for the properties of one (cudnn_graph.h).
 *
 * Thread: one; attention_plans_new() compiles on up to ATTENTION_COMPILE_THREAD_MAX of its own.
 * Tests: tests/cuda/test_attention_plans.c
 */

#include <stdbool.h>

#include "workers/engines/encoder_cuda/attention_shape.h"
#include "workers/engines/encoder_cuda/cudnn_graph.h"
#include "workers/engines/encoder_cuda/plan_cache.h"

#define ATTENTION_COMPILE_THREAD_MAX 8

/* Unique ids, and the order in the list of tensors. */
enum attention_tensor {
    ATTENTION_QKV_OFFSETS,
    ATTENTION_OUT_OFFSETS,
    ATTENTION_LENGTHS_Q,
    ATTENTION_LENGTHS_KV,
    ATTENTION_Q,
    ATTENTION_K,
    ATTENTION_V,
    ATTENTION_OUT,
    ATTENTION_SCALE,
    ATTENTION_TENSOR_COUNT,
};

/* What the engine asks for: in the order of attention_tensor, offsets not yet linked. */
void attention_tensors_make(const struct attention_shape *shape,
                            const struct attention_bucket *bucket,
                            struct cudnn_tensor ret_tensors[ATTENTION_TENSOR_COUNT]);

/* The closed graph of such a list. Refuses (ERR_UNSUPPORTED, naming tensor and attribute) types,
 * strides, heads and ids that its engines do not compute with but accept: cuDNN 9.19 compiles an
 * attention of f32, or of rows at odd addresses, without a word. */
int attention_graph_new(const struct cudnn_tensor tensors[ATTENTION_TENSOR_COUNT],
                        struct cudnn_graph **ret_graph, struct err *err) MUST_CHECK;

/* The list as text: equal for equal graphs, the key of a plan on disk. The caller frees it. */
char *attention_graph_text(const struct cudnn_tensor tensors[ATTENTION_TENSOR_COUNT]);

struct attention_plans_options {
    const struct attention_shape *shape;
    const struct cudnn_device *device;
    struct plan_cache *cache; /* NULL: none */
    /* Called on each thread that compiles, before it does; NULL: nothing. */
    int (*thread_start)(void *opaque, struct err *err);
    /* As in attention.h. */
    bool (*progress)(void *opaque, uint32_t done_count, uint32_t total_count);
    void *opaque; /* of both */
};

struct attention_plans {
    struct attention_buckets buckets;
    struct cudnn_plan *list[ATTENTION_PLAN_MAX]; /* one a bucket */
    uint32_t cached_count;                       /* that came from the cache */
    size_t workspace_size;                       /* of the largest */
};

/* All or none. Plans that were compiled are in the cache afterwards. */
int attention_plans_new(const struct attention_plans_options *options,
                        struct attention_plans **ret_plans, struct err *err) MUST_CHECK;
void attention_plans_free(struct attention_plans **plans_p);
