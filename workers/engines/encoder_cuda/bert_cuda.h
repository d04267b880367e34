/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The forward pass of bert.h on a CUDA device: the same batches in, the same rows out, within 1e-4
 * of its numbers in f32, and 1e-2 in bf16 of weights that were trained.
 *
 * Two batches may be out, each in a slot: a stream, pinned memory for what goes in and out, and
 * device memory of its own (run_plan.h). What a batch launches depends on its bucket of rows, its
 * text slots and attention's plan; the second time that such a pass is met it is captured as a CUDA
 * graph, and BERT_CUDA_GRAPH_COUNT_MAX of them a slot are kept, those met last.
 *
 * Memory is taken when the model is opened; a batch takes none.
 *
 * Failures: device_error.h. Behind ERR_DEVICE nothing works any more but bert_cuda_close().
 *
 * Thread: one, the engine's; it owns the device's context.
 * Tests: tests/gpu/test_model.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "workers/engines/encoder/bert.h"
#include "workers/engines/encoder_cuda/device_need.h"

#define BERT_CUDA_GRAPH_COUNT_MAX 64u

struct bert_cuda;

struct bert_cuda_options {
    const struct device_facts *facts;
    uint32_t ordinal;
    bool bf16;                                /* cells of weights and activations; sums are f32 */
    uint32_t token_count_max, text_count_max; /* of one batch */
    const char *plan_dir;                     /* where attention's plans are kept; NULL: nowhere */
    bool (*progress)(void *opaque, uint64_t done_size, uint64_t total_size);
    void *opaque;
};

/* ERR_UNSUPPORTED names the family or the shape that is not computed here. */
int bert_cuda_check(const struct encoder_config *config, bool bf16, struct err *err) MUST_CHECK;

/* Takes *weights_p on success, and closes it: nothing of it is read any more. Fails as
 * bert_cuda_check() and device_need_memory() do; ERR_CANCELED when progress said stop. */
int bert_cuda_open(const struct encoder_config *config, struct safetensors **weights_p,
                   const struct bert_cuda_options *options, struct bert_cuda **ret_bert,
                   struct err *err) MUST_CHECK;
void bert_cuda_close(struct bert_cuda **bert_p);

/* As encoder_runner's start and finish. The batch is copied. */
int bert_cuda_start(struct bert_cuda *bert, uint32_t slot, const struct bert_batch *batch,
                    struct err *err) MUST_CHECK;
int bert_cuda_finish(struct bert_cuda *bert, uint32_t slot, float *rows, uint32_t *ret_pad_count,
                     struct err *err) MUST_CHECK;

/* A slot that is free; there must be one. */
uint32_t bert_cuda_free_slot(const struct bert_cuda *bert);

uint64_t bert_cuda_host_size(const struct bert_cuda *bert); /* pinned */
uint64_t bert_cuda_dev_size(const struct bert_cuda *bert);
