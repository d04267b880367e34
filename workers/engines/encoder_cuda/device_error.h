/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a status of CUDA or cuBLAS means to us: every call goes through CUDA_TRY or CUBLAS_TRY, and
 * each failure becomes one of four codes.
 *
 *     ERR_MEMORY       memory was short, of the device or for pinned pages: a smaller batch may do
 *     ERR_DEVICE       the context is gone with everything in it, and only a new process gets
 *                      another one: an illegal access, an uncorrectable memory error, a launch
 *                      that was ended from outside. Also what we do not know: taken for the worst
 *     ERR_UNSUPPORTED  this machine cannot: no driver, an old one, a device without our code
 *     ERR_INTERNAL     the call was wrong, and the next one may be right: a run's model_error
 *
 * cuDNN's are cudnn_graph.h's, to the same codes.
 *
 * The two functions are pure. Thread: any.   Tests: tests/cuda/test_device_error.c
 */

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "base/err.h"

int device_error_cuda(int status);
int device_error_cublas(int status);

#define CUDA_TRY(call, err)                                                                        \
    do {                                                                                           \
        const cudaError_t cuda_ = (call);                                                          \
        if (cuda_ != cudaSuccess)                                                                  \
            return err_set((err), device_error_cuda(cuda_), "%.80s: %s (CUDA %d)", #call,          \
                           cudaGetErrorString(cuda_), (int)cuda_);                                 \
    } while (0)

#define CUBLAS_TRY(call, err)                                                                      \
    do {                                                                                           \
        const cublasStatus_t cublas_ = (call);                                                     \
        if (cublas_ != CUBLAS_STATUS_SUCCESS)                                                      \
            return err_set((err), device_error_cublas(cublas_), "%.80s: %s (cuBLAS %d)", #call,    \
                           cublasLtGetStatusString(cublas_), (int)cublas_);                        \
    } while (0)
