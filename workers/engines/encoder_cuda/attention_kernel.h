/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Attention as a kernel of ours: f32, and bf16 where numbers are added to the scores by distance.
 *
 * A warp computes one row of one head: scores against 32 keys at a time, one a lane; running
 * maximum and sum; the values weighed and added, a lane for every 32nd number. Sums are f32. It is
 * written to be right, and is the reference for cuDNN's on the device; its order of sums is fixed,
 * so that equal input gives equal output.
 *
 * Thread: any with a current device.   Tests: tests/gpu/test_attention.c
 */

#include "workers/engines/encoder_cuda/attention_shape.h"

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;

struct attention_kernel_call {
    struct attention_shape shape;
    struct attention_bucket bucket; /* the launch covers all of it */
    const void *qkv;
    void *out;
    const void *index;      /* attention_index_of(bucket.texts) */
    const float *distances; /* as in attention.h; NULL: none */
};

/* ERR_DEVICE, ERR_MEMORY: what the launch answered; nothing of how it runs. */
int attention_kernel_run(const struct attention_kernel_call *call, struct CUstream_st *stream,
                         struct err *err) MUST_CHECK;

#ifdef __cplusplus
}
#endif
