/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Weights from the mapped file to their places on the device (run_plan.h), in chunks through a ring
 * of pinned buffers: while one chunk is on its way, the next is read from the file and turned into
 * cells. The file's own type is copied as it is where it is that of the cells.
 *
 * What is not in the file as it is wanted is made on the way: type 0 is added to the positions, and
 * the step to type 1 and MPNet's distances are worked out.
 *
 * Thread: the one that owns the context, and that progress is called on.
 * Tests: tests/cuda/test_weights.c (chunks), tests/gpu/test_model.c (whole)
 */

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#include "workers/engines/encoder/bert.h"
#include "workers/engines/encoder_cuda/run_plan.h"

#define WEIGHTS_CHUNK_COUNT 4u
#define WEIGHTS_CHUNK_SIZE (8u << 20)

struct weights_from {
    const struct encoder_config *config;
    const struct safetensors *file;
    const struct run_plan *plan;
    bool bf16;
    bool (*progress)(void *opaque, uint64_t done_size, uint64_t total_size); /* as bert_options */
    void *opaque;
};

/* Returns when all are there. ERR_CANCELED: progress said stop. */
int weights_copy(const struct weights_from *from, void *dev_memory, struct err *err) MUST_CHECK;

/* `count` elements from `first` on as cells, f32 or bf16 (rounded to nearest, ties to even). `to`
 * has room. Pure but for the file's pages. */
int weights_read(const struct safetensors_tensor *tensor, uint64_t first, uint64_t count, bool bf16,
                 void *to, struct err *err) MUST_CHECK;

/* The same of numbers that are there, in place: the bf16 cells are the first half. */
void weights_round(float *numbers, uint64_t count);
