/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Attention of one layer on a CUDA device: softmax(q k' / sqrt(dim)) v, per text and head.
 *
 * Texts lie back to back without padding. Row t of qkv has 3 * hidden numbers, q then k then v,
 * each head_count runs of head_dim; row t of out has hidden = head_count * head_dim. bf16 runs in
 * cuDNN (one SDPA operation, packed by offsets; sums in f32), f32 in a kernel of ours
 * (attention_kernel.h), which is the reference and is not fast; so does bf16 of a model whose
 * distances count. Each writes the rows of the batch's texts and no other.
 *
 *     attention_open()       at load: makes or reads from disk one plan per shape bucket
 *     attention_prepare()    once a batch, on the host: picks the plan, writes the index
 *     (the caller copies the index to the device, with its ids)
 *     attention_run()        once a layer, on the stream
 *
 * A batch runs in the smallest bucket that holds it (attention_shape.h); slots without a text cost
 * a block that ends at once. What is launched depends on turn.plan and on the pointers alone, so a
 * CUDA graph may be captured once a plan, as long as the pointers stay.
 *
 * Memory: everything is taken by attention_open(), but for a small descriptor that cuDNN keeps of
 * each set of pointers (the last 8 of a plan). Device memory is the caller's: workspace and index,
 * whose sizes hold for all plans.
 *
 * Needs at run time (cudnn_load_compiler()): libnvrtc.so.13 and its builtins, which compile the
 * plans.
 *
 * Thread: the one that owns the device's context; the device is current in every call. _open()
 * compiles on threads of its own, which are gone when it returns. Failures: ERR_DEVICE for a device
 * that is lost, ERR_MEMORY for one that is full, ERR_DEPENDENCY for a cuDNN that is too old or has
 * a part missing, ERR_UNSUPPORTED for a shape that no engine of cuDNN computes on this device.
 * Tests: tests/cuda/test_attention_plans.c (no device), tests/gpu/test_attention.c (device)
 */

#include <stdbool.h>

#include "workers/engines/encoder_cuda/attention_shape.h"

struct CUstream_st; /* cudaStream_t points to it */
struct attention;

struct attention_options {
    struct attention_shape shape;
    /* Where plans are kept between runs, borrowed for the call (plan_cache.h); NULL: nowhere. */
    const char *plan_dir;
    /* On the device, borrowed for life: per head 2 * length_max - 1 numbers that are added to the
     * scores, entry (key - query) + length_max - 1; NULL: none. */
    const float *distances;
    /* False stops the loading; NULL: nobody asks. Called by the thread that called _open(). */
    bool (*progress)(void *opaque, uint32_t done_count, uint32_t total_count);
    void *opaque;
};

/* The current device decides which engines there are. Fails as above; ERR_RANGE names the field of
 * the shape that is out of its limits; ERR_CANCELED when progress said stop. A plan on disk that
 * cannot be read, or is another's, is logged, made anew and replaced; so is a directory that cannot
 * be used, and then nothing is kept. */
int attention_open(const struct attention_options *options, struct attention **ret_attention,
                   struct err *err) MUST_CHECK;
void attention_close(struct attention **attention_p);

uint32_t attention_plan_count(const struct attention *attention);
uint32_t attention_plans_from_disk(const struct attention *attention); /* how many of them */

/* Bytes of device memory that the caller lends to attention_run(), aligned to 256; may be 0. */
size_t attention_workspace_size(const struct attention *attention);

/* Bytes of the largest index, on the host (pinned, or the copy is no overlap) and on the device,
 * aligned to 16. A batch on its way needs its own until its last layer has run. */
size_t attention_index_size(const struct attention *attention);

/* attention_turn_make() of this shape. No CUDA call. */
int attention_prepare(const struct attention *attention, const uint32_t *offsets,
                      uint32_t text_count, void *index, struct attention_turn *ret_turn,
                      struct err *err) MUST_CHECK;

struct attention_memory {
    /* Rows of 3 * hidden, of the shape's dtype, aligned to 16. The ATTENTION_ROWS_BEHIND rows
     * behind the batch's are memory of finite numbers: what a mask leaves out is weighed with 0 by
     * cuDNN, and 0 * NaN is NaN. */
    const void *qkv;
    void *out;         /* rows of hidden, aligned to 16 */
    const void *index; /* what attention_prepare() wrote */
    void *workspace;
};

/* Puts one layer's attention on the stream and returns before it has run; all of memory is on the
 * device and stays until then. */
int attention_run(struct attention *attention, const struct attention_turn *turn,
                  const struct attention_memory *memory, struct CUstream_st *stream,
                  struct err *err) MUST_CHECK;
