/* SPDX-License-Identifier: Apache-2.0 */
#include "workers/engines/encoder_cuda/attention_kernel.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "workers/engines/encoder_cuda/attention_rows.inc"

extern "C" int attention_kernel_run(const struct attention_kernel_call *call,
                                    struct CUstream_st *stream, struct err *err)
{
    const struct attention_shape *shape = &call->shape;
    const struct attention_index at = attention_index_of(call->bucket.texts);
    const char *index = static_cast<const char *>(call->index);
    const dim3 block(WARP, WARPS);
    const dim3 grid((call->bucket.length + WARPS - 1) / WARPS, shape->head_count,
                    call->bucket.texts);
    struct layout layout = {};
    cudaError_t status;

    layout.lengths = reinterpret_cast<const int *>(index + at.lengths);
    layout.offsets = reinterpret_cast<const int *>(index + at.out_offsets);
    layout.distances = call->distances;
    layout.head_count = shape->head_count;
    layout.head_dim = shape->head_dim;
    layout.distance_zero = shape->length_max - 1;
    layout.scale = 1.0f / sqrtf(static_cast<float>(shape->head_dim));
    if (shape->dtype == ATTENTION_F32)
        attention_rows<<<grid, block, 0, stream>>>(static_cast<const float *>(call->qkv),
                                                   static_cast<float *>(call->out), layout);
    else
        attention_rows<<<grid, block, 0, stream>>>(static_cast<const __nv_bfloat16 *>(call->qkv),
                                                   static_cast<__nv_bfloat16 *>(call->out), layout);
    status = cudaGetLastError();
    if (status == cudaSuccess)
        return 0;
    return err_set_at(err, status == cudaErrorMemoryAllocation ? ERR_MEMORY : ERR_DEVICE, __FILE__,
                      __LINE__, "attention: launch: %s", cudaGetErrorString(status));
}
