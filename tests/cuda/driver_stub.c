/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A libcuda.so.1 without a device, for the one test that compiles plans where there is no driver.
 *
 * cuDNN opens the driver by name and wants these names in it. Of what they do it asks but one thing
 * while it compiles: that code can be loaded. So loading says yes and loads nothing; every other
 * call says CUDA_ERROR_NO_DEVICE.
 */

#define SUCCESS 0
#define NO_DEVICE 100

#define REFUSED(name)                                                                              \
    int name(void);                                                                                \
    int name(void)                                                                                 \
    {                                                                                              \
        return NO_DEVICE;                                                                          \
    }
#define ACCEPTED(name)                                                                             \
    int name(void);                                                                                \
    int name(void)                                                                                 \
    {                                                                                              \
        return SUCCESS;                                                                            \
    }

/* The first argument is where a handle or a number goes. */
#define GIVES(name, type, value)                                                                   \
    int name(type *ret_value);                                                                     \
    int name(type *ret_value)                                                                      \
    {                                                                                              \
        *ret_value = (value);                                                                      \
        return SUCCESS;                                                                            \
    }

static char library, kernel;

GIVES(cuLibraryLoadData, void *, &library)
GIVES(cuLibraryGetKernel, void *, &kernel)
GIVES(cuKernelGetAttribute, int, 0)
ACCEPTED(cuKernelSetAttribute)
ACCEPTED(cuLibraryUnload)

REFUSED(cuCtxGetCurrent)
REFUSED(cuCtxGetDevice)
REFUSED(cuCtxGetLimit)
REFUSED(cuCtxPopCurrent)
REFUSED(cuCtxPushCurrent)
REFUSED(cuDeviceGet)
REFUSED(cuDeviceGetAttribute)
REFUSED(cuDeviceGetCount)
REFUSED(cuDevicePrimaryCtxRelease)
REFUSED(cuDevicePrimaryCtxReset)
REFUSED(cuDevicePrimaryCtxRetain)
REFUSED(cuDriverGetVersion)
REFUSED(cuFuncGetAttribute)
REFUSED(cuFuncSetAttribute)
REFUSED(cuGetErrorName)
REFUSED(cuGetErrorString)
REFUSED(cuInit)
REFUSED(cuLaunchCooperativeKernel)
REFUSED(cuLaunchKernel)
REFUSED(cuLaunchKernelEx)
REFUSED(cuLibraryLoadFromFile)
REFUSED(cuLinkAddData)
REFUSED(cuLinkAddData_v2)
REFUSED(cuLinkAddFile_v2)
REFUSED(cuLinkComplete)
REFUSED(cuLinkCreate)
REFUSED(cuLinkCreate_v2)
REFUSED(cuLinkDestroy)
REFUSED(cuMemcpyDtoH_v2)
REFUSED(cuModuleGetFunction)
REFUSED(cuModuleGetGlobal_v2)
REFUSED(cuModuleLoadData)
REFUSED(cuModuleLoadDataEx)
REFUSED(cuModuleLoadFatBinary)
REFUSED(cuModuleUnload)
REFUSED(cuOccupancyMaxActiveBlocksPerMultiprocessor)
REFUSED(cuOccupancyMaxPotentialClusterSize)
REFUSED(cuStreamGetCtx)
REFUSED(cuStreamSynchronize)
REFUSED(cuTensorMapEncodeIm2col)
REFUSED(cuTensorMapEncodeTiled)
