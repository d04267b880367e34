/* SPDX-License-Identifier: Apache-2.0 */

/* A libnvidia-ml.so.1 of four GPUs, for tests on machines that have none: GPU i is busy to 10 i + 7
 * percent and has i + 1 GiB of its memory used. */

#include <stddef.h>

#define GPUS 4
#define NOT_FOUND 6

struct utilization {
    unsigned gpu, memory;
};
struct memory {
    unsigned long long total, free, used;
};

int nvmlInit_v2(void);
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **ret_device);
int nvmlDeviceGetUtilizationRates(void *device, struct utilization *ret);
int nvmlDeviceGetMemoryInfo(void *device, struct memory *ret);

static unsigned gpus[GPUS] = {0, 1, 2, 3};
static int is_ready;

int nvmlInit_v2(void)
{
    is_ready = 1;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **ret_device)
{
    if (!is_ready || index >= GPUS)
        return NOT_FOUND;
    *ret_device = &gpus[index];
    return 0;
}

int nvmlDeviceGetUtilizationRates(void *device, struct utilization *ret)
{
    ret->gpu = 10 * *(unsigned *)device + 7;
    ret->memory = 0;
    return 0;
}

int nvmlDeviceGetMemoryInfo(void *device, struct memory *ret)
{
    ret->total = 80ull << 30;
    ret->used = (*(unsigned *)device + 1ull) << 30;
    ret->free = ret->total - ret->used;
    return 0;
}
