/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder_cuda/device_need.h"

#include <string.h>

#include "base/settings.h"

#define GIB (1024.0 * 1024 * 1024)

int device_need_parse(const char *device, uint32_t *ret_ordinal, struct err *err)
{
    const char *number;
    size_t digits;
    int64_t ordinal;

    *ret_ordinal = 0;
    if (strcmp(device, "cuda") == 0)
        return 0;
    if (strncmp(device, "cuda:", strlen("cuda:")) != 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "device is '%.40s'; this plugin has 'cuda' and 'cuda:N' only", device);
    number = device + strlen("cuda:");
    digits = strspn(number, "0123456789");
    if (digits == 0)
        return err_set(err, ERR_RANGE, "device is '%.40s'; what follows 'cuda:' is no number",
                       device);
    if (number[digits] != '\0' || digits > 4 ||
        settings_parse_int("device", number, &ordinal, err) < 0 || ordinal > DEVICE_ORDINAL_MAX)
        return err_set(err, ERR_RANGE, "device is '%.40s'; N of 'cuda:N' is 0 to %u", device,
                       DEVICE_ORDINAL_MAX);
    *ret_ordinal = (uint32_t)ordinal;
    return 0;
}

static int no_device(const struct device_facts *facts, uint32_t ordinal, struct err *err)
{
    if (facts->device_count > 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "device is 'cuda:%u', the driver sees %u device%s, the last is 'cuda:%u'",
                       ordinal, facts->device_count, facts->device_count == 1 ? "" : "s",
                       facts->device_count - 1);
    if (facts->visible != NULL)
        return err_set(err, ERR_UNSUPPORTED,
                       "device is 'cuda:%u', the driver sees none; CUDA_VISIBLE_DEVICES is '%.80s'",
                       ordinal, facts->visible);
    return err_set(err, ERR_UNSUPPORTED,
                   "device is 'cuda:%u', the NVIDIA driver of this machine sees none", ordinal);
}

int device_need_check(const struct device_facts *facts, uint32_t ordinal, struct err *err)
{
    const int runtime = facts->runtime_version, driver = facts->driver_version;

    if (driver == 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "device is 'cuda:%u', this machine has no NVIDIA driver (libcuda.so.1)",
                       ordinal);
    /* A driver runs each runtime of its own major version and of older ones. */
    if (driver / 1000 < runtime / 1000)
        return err_set(
            err, ERR_UNSUPPORTED,
            "device is 'cuda:%u', the NVIDIA driver is too old: it is for CUDA %d.%d, the "
            "runtime is %d.%d and needs a driver for CUDA %d.0 at least",
            ordinal, driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10,
            runtime / 1000);
    if (ordinal >= facts->device_count)
        return no_device(facts, ordinal, err);
    if (facts->capability < DEVICE_CAPABILITY_MIN)
        return err_set(err, ERR_UNSUPPORTED,
                       "device 'cuda:%u' is too old: %s has compute capability %u.%u, %u.%u is "
                       "needed at least",
                       ordinal, facts->name, facts->capability / 10, facts->capability % 10,
                       DEVICE_CAPABILITY_MIN / 10, DEVICE_CAPABILITY_MIN % 10);
    return 0;
}

int device_need_memory(const struct device_facts *facts, uint64_t need_size, struct err *err)
{
    const double need = (double)need_size / GIB;

    if (need_size > facts->memory_size)
        return err_set(err, ERR_UNSUPPORTED,
                       "the model needs %.2f GiB of device memory, %s has %.2f GiB in all; a "
                       "smaller batch (max_tokens of 'batching') needs less",
                       need, facts->name, (double)facts->memory_size / GIB);
    if (need_size > facts->free_size)
        return err_set(
            err, ERR_MEMORY,
            "the model needs %.2f GiB of device memory, %s has %.2f GiB free of %.2f GiB", need,
            facts->name, (double)facts->free_size / GIB, (double)facts->memory_size / GIB);
    return 0;
}
