/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * y = f(x W' + b), y += x W' + b, or y = z (x W' + b), for a fixed W: the one thing that we ask of
 * oneDNN.
 *
 * A *plan* is one shape and epilogue with its compiled kernels, shared by all layers; *weights*
 * are one layer's W and b in the layout that the plan's kernels want. Rows come in tiles of
 * GEMM_TILE_ROWS[i], so that any number of rows is covered by five kernels a plan and less than
 * 16 rows of padding, and a tile's activations stay in the second-level cache. Timings on two
 * cores: 128 rows run within 3 % of 512, 16 rows within 15 %.
 *
 * Each call runs on one thread; the caller splits the work (team.h). oneDNN's own threads are
 * switched off per calling thread by gemm_thread_start().
 *
 * Thread: gemm_run from any member, with its own member index.
 * Tests: tests/unit/test_encoder_math.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "workers/engines/encoder/encoder_config.h"

#define GEMM_TILE_COUNT 4
extern const uint32_t GEMM_TILE_ROWS[GEMM_TILE_COUNT]; /* descending: 128, 64, 32, 16 */

enum gemm_epilogue {
    GEMM_STORE,      /* y = x W' + b */
    GEMM_ADD,        /* y = x W' + b + y */
    GEMM_ACTIVATION, /* y = activation(x W' + b) */
    GEMM_MULTIPLY,   /* y = z (x W' + b), number by number; z is of y's type */
};

struct gemm_shape {
    uint32_t input, output; /* columns of x and of y */
    enum gemm_epilogue epilogue;
    enum encoder_activation activation;
    bool input_bf16; /* x and W; sums are f32 */
    bool output_bf16;
};

struct gemm; /* the CPU as oneDNN sees it */
struct gemm_plan;
struct gemm_weights;

int gemm_new(uint32_t member_count, struct gemm **ret_gemm, struct err *err) MUST_CHECK;
void gemm_free(struct gemm **gemm_p);

/* Makes oneDNN run on the calling thread alone. For team_new. */
void gemm_thread_start(void);

/* The instruction set that oneDNN uses, for the log. */
const char *gemm_isa_name(void);

/* Whether bf16 products run on this CPU. Faster than f32 they need not be: encoder_dtype.h. */
bool gemm_has_bf16(void);

/* Borrows gemm for its life. */
int gemm_plan_new(struct gemm *gemm, const struct gemm_shape *shape, struct gemm_plan **ret_plan,
                  struct err *err) MUST_CHECK;
void gemm_plan_free(struct gemm_plan **plan_p);

/* Packs W (output rows of input columns, as checkpoints have it) and b. Copies both. */
int gemm_weights_new(struct gemm_plan *plan, const float *matrix, const float *bias,
                     struct gemm_weights **ret_weights, struct err *err) MUST_CHECK;
void gemm_weights_free(struct gemm_weights **weights_p);
uint64_t gemm_weights_size(const struct gemm_weights *weights);

/* Nanoseconds that the largest tile of a shape takes on the calling thread: the fastest of several
 * runs, so that what else runs here does not count. A few milliseconds. */
int gemm_measure(const struct gemm_shape *shape, uint64_t *ret_ns, struct err *err) MUST_CHECK;

/* Runs GEMM_TILE_ROWS[tile] rows, dense in x and y. */
int gemm_run(struct gemm_plan *plan, const struct gemm_weights *weights, uint32_t member,
             uint32_t tile, const void *x, void *y, struct err *err) MUST_CHECK;

/* The same for GEMM_MULTIPLY; z is not y. */
int gemm_run_multiply(struct gemm_plan *plan, const struct gemm_weights *weights, uint32_t member,
                      uint32_t tile, const void *x, const void *z, void *y,
                      struct err *err) MUST_CHECK;
