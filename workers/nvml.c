/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/nvml.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

/* As nvml.h declares them. */
typedef void *nvml_device;
typedef void *nvml_set;
#define NVML_OK 0
#define NVML_TIMEOUT 10
#define NVML_UNCORRECTED 1
#define NVML_VOLATILE 0
#define NVML_EVENT_XID 8ull
#define NVML_NO_INSTANCE 0xFFFFFFFFu

struct nvml_utilization {
    unsigned gpu, memory;
};
struct nvml_memory {
    unsigned long long total, free, used;
};
struct nvml_event {
    nvml_device device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
};

static struct {
    bool tried, loaded, works;
    char why[DEVICE_TEXT_SIZE];
    /* without these nothing works */
    int (*init)(void);
    int (*count)(unsigned *ret);
    int (*handle)(unsigned index, nvml_device *ret);
    int (*uuid)(nvml_device device, char *to, unsigned size);
    int (*memory)(nvml_device device, struct nvml_memory *ret);
    /* any of these may be NULL */
    const char *(*error)(int code);
    int (*driver)(char *to, unsigned size);
    int (*cuda)(int *ret);
    int (*name)(nvml_device device, char *to, unsigned size);
    int (*capability)(nvml_device device, int *ret_major, int *ret_minor);
    int (*utilization)(nvml_device device, struct nvml_utilization *ret);
    int (*ecc)(nvml_device device, int type, int counter, unsigned long long *ret);
    int (*rows)(nvml_device device, unsigned *ret_corrected, unsigned *ret_uncorrected,
                unsigned *ret_pending, unsigned *ret_failed);
    int (*mig_mode)(nvml_device device, unsigned *ret_now, unsigned *ret_pending);
    int (*mig_count)(nvml_device device, unsigned *ret);
    int (*mig_handle)(nvml_device device, unsigned index, nvml_device *ret);
    int (*gpu_instance)(nvml_device device, unsigned *ret);
    int (*compute_instance)(nvml_device device, unsigned *ret);
    int (*set_create)(nvml_set *ret);
    int (*set_free)(nvml_set set);
    int (*set_wait)(nvml_set set, struct nvml_event *ret, unsigned timeout_ms);
    int (*watch)(nvml_device device, unsigned long long types, nvml_set set);
} nvml;

static const struct {
    const char *name;
    void **to;
    bool must;
} symbols[] = {
    {"nvmlInit_v2", (void **)&nvml.init, true},
    {"nvmlDeviceGetCount_v2", (void **)&nvml.count, true},
    {"nvmlDeviceGetHandleByIndex_v2", (void **)&nvml.handle, true},
    {"nvmlDeviceGetUUID", (void **)&nvml.uuid, true},
    {"nvmlDeviceGetMemoryInfo", (void **)&nvml.memory, true},
    {"nvmlErrorString", (void **)&nvml.error, false},
    {"nvmlSystemGetDriverVersion", (void **)&nvml.driver, false},
    {"nvmlSystemGetCudaDriverVersion_v2", (void **)&nvml.cuda, false},
    {"nvmlDeviceGetName", (void **)&nvml.name, false},
    {"nvmlDeviceGetCudaComputeCapability", (void **)&nvml.capability, false},
    {"nvmlDeviceGetUtilizationRates", (void **)&nvml.utilization, false},
    {"nvmlDeviceGetTotalEccErrors", (void **)&nvml.ecc, false},
    {"nvmlDeviceGetRemappedRows", (void **)&nvml.rows, false},
    {"nvmlDeviceGetMigMode", (void **)&nvml.mig_mode, false},
    {"nvmlDeviceGetMaxMigDeviceCount", (void **)&nvml.mig_count, false},
    {"nvmlDeviceGetMigDeviceHandleByIndex", (void **)&nvml.mig_handle, false},
    {"nvmlDeviceGetGpuInstanceId", (void **)&nvml.gpu_instance, false},
    {"nvmlDeviceGetComputeInstanceId", (void **)&nvml.compute_instance, false},
    {"nvmlEventSetCreate", (void **)&nvml.set_create, false},
    {"nvmlEventSetFree", (void **)&nvml.set_free, false},
    {"nvmlEventSetWait_v2", (void **)&nvml.set_wait, false},
    {"nvmlDeviceRegisterEvents", (void **)&nvml.watch, false},
};

/* ---- loading ---- */

static const char *why_not(const char *what, int code)
{
    (void)snprintf(nvml.why, sizeof(nvml.why), "%s: %.200s", what,
                   nvml.error != NULL ? nvml.error(code) : "it failed");
    return nvml.why;
}

static void nvml_open(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

    nvml.tried = true;
    if (library == NULL) {
        (void)snprintf(nvml.why, sizeof(nvml.why),
                       "this machine has no NVIDIA driver (%.100s cannot be loaded)", path);
        return;
    }
    for (size_t i = 0; i < COUNT_OF(symbols); i++) {
        *symbols[i].to = dlsym(library, symbols[i].name);
        if (*symbols[i].to != NULL || !symbols[i].must)
            continue;
        (void)snprintf(nvml.why, sizeof(nvml.why), "%.100s has no %s: the NVIDIA driver is too old",
                       path, symbols[i].name);
        return;
    }
    nvml.loaded = true;
}

const char *nvml_load(const char *path)
{
    int code;

    if (!nvml.tried)
        nvml_open(path);
    if (nvml.loaded && !nvml.works) { /* a driver may be loaded later than we are */
        code = nvml.init();
        nvml.works = code == NVML_OK;
        if (!nvml.works)
            return why_not("the NVIDIA driver cannot be used", code);
    }
    return nvml.works ? NULL : nvml.why;
}

/* ---- inventory ---- */

static bool device_read(nvml_device device, struct device_info *info)
{
    struct nvml_utilization utilization;
    struct nvml_memory memory;
    unsigned corrected, uncorrected, pending, failed;
    unsigned long long ecc_count;
    int major, minor;

    if (nvml.uuid(device, info->uuid, sizeof(info->uuid)) != NVML_OK ||
        nvml.memory(device, &memory) != NVML_OK)
        return false;
    info->total_size = memory.total;
    info->used_size = memory.used;
    if (nvml.name == NULL || nvml.name(device, info->name, sizeof(info->name)) != NVML_OK)
        mem_copy_text(info->name, "NVIDIA GPU");
    if (nvml.capability != NULL && nvml.capability(device, &major, &minor) == NVML_OK) {
        info->major = (uint32_t)major;
        info->minor = (uint32_t)minor;
    }
    if (nvml.utilization != NULL && nvml.utilization(device, &utilization) == NVML_OK)
        info->utilization_percent = utilization.gpu;
    if (nvml.ecc != NULL &&
        nvml.ecc(device, NVML_UNCORRECTED, NVML_VOLATILE, &ecc_count) == NVML_OK)
        info->ecc_count = ecc_count;
    if (nvml.rows != NULL &&
        nvml.rows(device, &corrected, &uncorrected, &pending, &failed) == NVML_OK)
        info->repair = pending != 0 || failed != 0;
    return true;
}

/* The slices of a GPU, behind it. What only the GPU tells is the slice's too. */
static size_t slices_read(nvml_device gpu, struct device_info *info, struct device_info *to,
                          size_t max)
{
    unsigned now = 0, later, count = 0;
    size_t filled = 0;

    if (nvml.mig_mode == NULL || nvml.mig_count == NULL || nvml.mig_handle == NULL ||
        nvml.mig_mode(gpu, &now, &later) != NVML_OK || now == 0 ||
        nvml.mig_count(gpu, &count) != NVML_OK)
        return 0;
    info->sliced = true;
    for (unsigned i = 0; i < count && filled < max; i++) {
        struct device_info *slice = &to[filled];
        nvml_device device;

        if (nvml.mig_handle(gpu, i, &device) != NVML_OK)
            continue; /* there are fewer than there could be */
        *slice = (struct device_info){.index = info->index,
                                      .gpu_instance = DEVICE_NO_SLICE,
                                      .compute_instance = DEVICE_NO_SLICE};
        if (!device_read(device, slice))
            continue;
        mem_copy_text(slice->parent, info->uuid);
        slice->major = info->major;
        slice->minor = info->minor;
        slice->ecc_count = info->ecc_count;
        slice->repair = info->repair;
        if (nvml.gpu_instance != NULL)
            (void)nvml.gpu_instance(device, &slice->gpu_instance);
        if (nvml.compute_instance != NULL)
            (void)nvml.compute_instance(device, &slice->compute_instance);
        filled++;
    }
    return filled;
}

static void versions_read(struct nvml_versions *to)
{
    int cuda = 0;

    *to = (struct nvml_versions){.driver = ""};
    if (nvml.driver != NULL)
        (void)nvml.driver(to->driver, sizeof(to->driver));
    if (nvml.cuda != NULL && nvml.cuda(&cuda) == NVML_OK)
        (void)snprintf(to->cuda, sizeof(to->cuda), "%d.%d", cuda / 1000, cuda % 1000 / 10);
}

size_t nvml_inventory(struct device_info *to, struct nvml_versions *ret_versions,
                      char why[DEVICE_TEXT_SIZE])
{
    size_t filled = 0;
    unsigned count;
    int code;

    *ret_versions = (struct nvml_versions){.driver = ""};
    why[0] = '\0';
    if (!nvml.works) {
        mem_copy_text_at(why, DEVICE_TEXT_SIZE, nvml.why);
        return 0;
    }
    versions_read(ret_versions);
    code = nvml.count(&count);
    if (code != NVML_OK) {
        (void)snprintf(why, DEVICE_TEXT_SIZE, "the NVIDIA driver does not count its GPUs: %.200s",
                       nvml.error != NULL ? nvml.error(code) : "it failed");
        return 0;
    }
    for (unsigned i = 0; i < count && filled < DEVICES_MAX; i++) {
        struct device_info *info = &to[filled];
        nvml_device device;

        *info = (struct device_info){
            .index = i, .gpu_instance = DEVICE_NO_SLICE, .compute_instance = DEVICE_NO_SLICE};
        if (nvml.handle(i, &device) != NVML_OK || !device_read(device, info))
            continue;
        filled++;
        filled += slices_read(device, info, to + filled, DEVICES_MAX - filled);
    }
    if (filled == 0)
        mem_copy_text_at(why, DEVICE_TEXT_SIZE, "the NVIDIA driver lists no GPU");
    return filled;
}

bool nvml_use(unsigned index, double *ret_utilization, uint64_t *ret_used_size)
{
    struct nvml_utilization utilization;
    struct nvml_memory memory;
    nvml_device device;

    if (!nvml.works || nvml.utilization == NULL || nvml.handle(index, &device) != NVML_OK ||
        nvml.utilization(device, &utilization) != NVML_OK ||
        nvml.memory(device, &memory) != NVML_OK)
        return false;
    *ret_utilization = utilization.gpu / 100.0;
    *ret_used_size = memory.used;
    return true;
}

/* ---- Xids ---- */

static nvml_set xid_set; /* NULL: nvml_xids_open() has not been, or failed */

/* Who is watched: one that has fallen off the bus does not say its UUID any more. */
static struct {
    nvml_device device;
    char uuid[DEVICE_UUID_SIZE];
} watched[DEVICES_MAX];
static unsigned watched_count;

/* The slice of a GPU that an event names; else the GPU. */
static void event_uuid(const struct nvml_event *event, char to[DEVICE_UUID_SIZE])
{
    unsigned count = 0, gpu_instance, compute_instance;

    to[0] = '\0';
    for (unsigned i = 0; i < watched_count; i++) {
        if (watched[i].device == event->device)
            mem_copy_text_at(to, DEVICE_UUID_SIZE, watched[i].uuid);
    }
    if (event->gpu_instance == NVML_NO_INSTANCE || nvml.mig_count == NULL ||
        nvml.mig_handle == NULL || nvml.gpu_instance == NULL || nvml.compute_instance == NULL ||
        nvml.mig_count(event->device, &count) != NVML_OK)
        return;
    for (unsigned i = 0; i < count; i++) {
        nvml_device slice;

        if (nvml.mig_handle(event->device, i, &slice) == NVML_OK &&
            nvml.gpu_instance(slice, &gpu_instance) == NVML_OK &&
            nvml.compute_instance(slice, &compute_instance) == NVML_OK &&
            gpu_instance == event->gpu_instance &&
            (event->compute_instance == NVML_NO_INSTANCE ||
             compute_instance == event->compute_instance)) {
            (void)nvml.uuid(slice, to, DEVICE_UUID_SIZE);
            return;
        }
    }
}

static void xids_register(nvml_set set)
{
    unsigned count = 0;

    if (nvml.count(&count) != NVML_OK)
        return;
    for (unsigned i = 0; i < count && watched_count < DEVICES_MAX; i++) {
        nvml_device device;

        if (nvml.handle(i, &device) != NVML_OK ||
            nvml.uuid(device, watched[watched_count].uuid, DEVICE_UUID_SIZE) != NVML_OK ||
            nvml.watch(device, NVML_EVENT_XID, set) != NVML_OK)
            continue;
        watched[watched_count++].device = device;
    }
}

int nvml_xids_open(struct err *err)
{
    nvml_set set;

    assert(xid_set == NULL);
    if (!nvml.works || nvml.set_create == NULL || nvml.set_free == NULL || nvml.set_wait == NULL ||
        nvml.watch == NULL || nvml.set_create(&set) != NVML_OK)
        return err_set(err, ERR_UNSUPPORTED, "the NVIDIA driver tells of no Xids");
    xids_register(set);
    if (watched_count == 0) {
        (void)nvml.set_free(set);
        return err_set(err, ERR_UNSUPPORTED, "no GPU of this machine tells of Xids");
    }
    xid_set = set;
    return 0;
}

enum nvml_heard nvml_xid_wait(uint32_t timeout_ms, struct nvml_xid *ret_xid)
{
    struct nvml_event event = {.gpu_instance = NVML_NO_INSTANCE,
                               .compute_instance = NVML_NO_INSTANCE};
    int code;

    assert(xid_set != NULL);
    code = nvml.set_wait(xid_set, &event, timeout_ms);
    if (code != NVML_OK && code != NVML_TIMEOUT)
        return NVML_ILL;
    if (code == NVML_TIMEOUT || (event.type & NVML_EVENT_XID) == 0)
        return NVML_QUIET;
    *ret_xid = (struct nvml_xid){.number = event.data};
    event_uuid(&event, ret_xid->uuid);
    return NVML_XID;
}
