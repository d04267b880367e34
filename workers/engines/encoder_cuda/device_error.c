/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder_cuda/device_error.h"

int device_error_cuda(int status)
{
    switch ((enum cudaError)status) {
    case cudaSuccess:
        return ERR_OK;
    case cudaErrorMemoryAllocation:
        return ERR_MEMORY;

    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary:
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidKernelImage:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorCallRequiresNewerDriver:
    case cudaErrorNotSupported:
        return ERR_UNSUPPORTED;

    case cudaErrorInvalidValue:
    case cudaErrorInvalidPitchValue:
    case cudaErrorInvalidDevicePointer:
    case cudaErrorInvalidMemcpyDirection:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorInvalidSymbol:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorIllegalState:
    case cudaErrorNotReady:
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureMerge:
    case cudaErrorStreamCaptureUnmatched:
    case cudaErrorStreamCaptureUnjoined:
    case cudaErrorStreamCaptureIsolation:
    case cudaErrorStreamCaptureImplicit:
    case cudaErrorStreamCaptureWrongThread:
    case cudaErrorCapturedEvent:
    case cudaErrorGraphExecUpdateFailure:
        return ERR_INTERNAL;

    default:
        return ERR_DEVICE;
    }
}

int device_error_cublas(int status)
{
    switch ((cublasStatus_t)status) {
    case CUBLAS_STATUS_SUCCESS:
        return ERR_OK;
    case CUBLAS_STATUS_ALLOC_FAILED:
        return ERR_MEMORY;
    case CUBLAS_STATUS_ARCH_MISMATCH:
    case CUBLAS_STATUS_NOT_SUPPORTED:
    case CUBLAS_STATUS_LICENSE_ERROR:
        return ERR_UNSUPPORTED;
    case CUBLAS_STATUS_INVALID_VALUE:
        return ERR_INTERNAL;
    default: /* not initialised, mapping, execution, internal */
        return ERR_DEVICE;
    }
}
