/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A libnvidia-ml.so.1 for tests on machines that have no GPU.
 *
 * By itself it has four GPUs: GPU i is busy to 10 i + 7 percent and has i + 1 GiB of its 80 used.
 * With HEADRACE_NVML_FAKE_DIR set it has what the file `gpus` in that directory says, read again
 * for each count of the GPUs, one a line, sizes in MiB, slices behind their GPU:
 *
 *     gpu UUID MAJOR MINOR TOTAL USED PERCENT ECC REPAIR NAME_WITH_UNDERSCORES
 *     mig UUID GPU_INSTANCE COMPUTE_INSTANCE TOTAL USED NAME
 *     lost                        (a GPU that is counted and does not answer)
 *
 * and the lines "INDEX GPU_INSTANCE COMPUTE_INSTANCE XID" of the file `xids` happen, each once, as
 * they are appended after the set of events was made; an instance of -1 is none. While a file
 * `hang` is there no call that asks a GPU comes back; while a file `crash` is, such a call ends the
 * process.
 */

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GPUS_MAX 16
#define SLICES_MAX 8
#define OK 0
#define INVALID 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define TIMEOUT 10
#define LOST 15
#define POLL_MS 5
#define MIB 1048576ull

struct utilization {
    unsigned gpu, memory;
};
struct memory {
    unsigned long long total, free, used;
};
struct event {
    void *device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
};

struct gpu {
    char uuid[96], name[96];
    int major, minor;
    unsigned long long total, used, ecc;
    unsigned percent, repair, gpu_instance, compute_instance;
    int lost, is_slice;
    struct gpu *slices[SLICES_MAX];
    unsigned slice_count;
};

int nvmlInit_v2(void);
const char *nvmlErrorString(int code);
int nvmlSystemGetDriverVersion(char *to, unsigned size);
int nvmlSystemGetCudaDriverVersion_v2(int *ret);
int nvmlDeviceGetCount_v2(unsigned *ret);
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **ret_device);
int nvmlDeviceGetUUID(void *device, char *to, unsigned size);
int nvmlDeviceGetName(void *device, char *to, unsigned size);
int nvmlDeviceGetCudaComputeCapability(void *device, int *ret_major, int *ret_minor);
int nvmlDeviceGetUtilizationRates(void *device, struct utilization *ret);
int nvmlDeviceGetMemoryInfo(void *device, struct memory *ret);
int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *ret);
int nvmlDeviceGetRemappedRows(void *device, unsigned *a, unsigned *b, unsigned *ret_pending,
                              unsigned *ret_failed);
int nvmlDeviceGetMigMode(void *device, unsigned *ret_now, unsigned *ret_pending);
int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *ret);
int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **ret);
int nvmlDeviceGetGpuInstanceId(void *device, unsigned *ret);
int nvmlDeviceGetComputeInstanceId(void *device, unsigned *ret);
int nvmlEventSetCreate(void **ret);
int nvmlEventSetFree(void *set);
int nvmlEventSetWait_v2(void *set, struct event *ret, unsigned timeout_ms);
int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct gpu gpus[GPUS_MAX], slices[GPUS_MAX * SLICES_MAX];
static unsigned gpu_count, slice_count;
static long xids_read;
static int is_ready;

/* ---- what there is ---- */

static void make_four(void)
{
    for (gpu_count = 0; gpu_count < 4; gpu_count++) {
        struct gpu *gpu = &gpus[gpu_count];

        *gpu = (struct gpu){.name = "NVIDIA H100 80GB HBM3", .major = 9, .total = 81920 * MIB};
        (void)snprintf(gpu->uuid, sizeof(gpu->uuid), "GPU-%u", gpu_count);
        gpu->percent = 10 * gpu_count + 7;
        gpu->used = (gpu_count + 1) * 1024 * MIB;
    }
}

static void name_blanks(char *name)
{
    for (; *name != '\0'; name++) {
        if (*name == '_')
            *name = ' ';
    }
}

static void take_line(const char *line)
{
    struct gpu gpu = {.is_slice = 0};

    if (gpu_count < GPUS_MAX &&
        sscanf(line, "gpu %95s %d %d %llu %llu %u %llu %u %95s", gpu.uuid, &gpu.major, &gpu.minor,
               &gpu.total, &gpu.used, &gpu.percent, &gpu.ecc, &gpu.repair, gpu.name) == 9) {
        gpus[gpu_count++] = gpu;
    } else if (gpu_count > 0 && gpus[gpu_count - 1].slice_count < SLICES_MAX &&
               sscanf(line, "mig %95s %u %u %llu %llu %95s", gpu.uuid, &gpu.gpu_instance,
                      &gpu.compute_instance, &gpu.total, &gpu.used, gpu.name) == 6) {
        struct gpu *of = &gpus[gpu_count - 1];

        gpu.is_slice = 1;
        of->slices[of->slice_count++] = &slices[slice_count];
        slices[slice_count++] = gpu;
    } else if (gpu_count < GPUS_MAX && strncmp(line, "lost", 4) == 0) {
        gpus[gpu_count++] = (struct gpu){.lost = 1};
    }
}

static FILE *open_file(const char *name)
{
    const char *dir = getenv("HEADRACE_NVML_FAKE_DIR");
    char path[512];

    if (dir == NULL)
        return NULL;
    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    return fopen(path, "re");
}

static void read_gpus(void)
{
    FILE *file = open_file("gpus");
    char line[512];

    if (getenv("HEADRACE_NVML_FAKE_DIR") == NULL) {
        make_four();
        return;
    }
    gpu_count = slice_count = 0;
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        take_line(line);
    if (file != NULL)
        (void)fclose(file);
    for (unsigned i = 0; i < gpu_count; i++) {
        name_blanks(gpus[i].name);
        gpus[i].total *= MIB;
        gpus[i].used *= MIB;
    }
    for (unsigned i = 0; i < slice_count; i++) {
        name_blanks(slices[i].name);
        slices[i].total *= MIB;
        slices[i].used *= MIB;
    }
}

/* ---- a GPU that is ill ---- */

static int is_there(const char *name)
{
    FILE *file = open_file(name);

    return file != NULL && fclose(file) == 0;
}

/* Before each question to a GPU, without the lock. */
static void ask(void)
{
    while (is_there("hang"))
        (void)poll(NULL, 0, POLL_MS);
    if (is_there("crash"))
        (void)kill(getpid(), SIGABRT);
}

/* ---- NVML ---- */

int nvmlInit_v2(void)
{
    ask();
    is_ready = 1;
    read_gpus();
    return OK;
}

const char *nvmlErrorString(int code)
{
    return code == LOST ? "GPU is lost" : code == NOT_FOUND ? "Not Found" : "Unknown Error";
}

int nvmlSystemGetDriverVersion(char *to, unsigned size)
{
    (void)snprintf(to, size, "550.54.15");
    return OK;
}

int nvmlSystemGetCudaDriverVersion_v2(int *ret)
{
    *ret = 12040;
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *ret)
{
    ask();
    (void)pthread_mutex_lock(&lock);
    read_gpus();
    *ret = gpu_count;
    (void)pthread_mutex_unlock(&lock);
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **ret_device)
{
    if (!is_ready || index >= gpu_count)
        return NOT_FOUND;
    *ret_device = &gpus[index];
    return gpus[index].lost ? LOST : OK;
}

int nvmlDeviceGetUUID(void *device, char *to, unsigned size)
{
    const struct gpu *gpu = device;

    if (gpu->lost)
        return LOST;
    (void)snprintf(to, size, "%s", gpu->uuid);
    return OK;
}

int nvmlDeviceGetName(void *device, char *to, unsigned size)
{
    (void)snprintf(to, size, "%s", ((struct gpu *)device)->name);
    return OK;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *ret_major, int *ret_minor)
{
    const struct gpu *gpu = device;

    if (gpu->is_slice)
        return INVALID;
    *ret_major = gpu->major;
    *ret_minor = gpu->minor;
    return OK;
}

int nvmlDeviceGetUtilizationRates(void *device, struct utilization *ret)
{
    const struct gpu *gpu = device;

    if (gpu->is_slice)
        return NOT_SUPPORTED;
    ret->gpu = gpu->percent;
    ret->memory = 0;
    return OK;
}

int nvmlDeviceGetMemoryInfo(void *device, struct memory *ret)
{
    const struct gpu *gpu = device;

    ask();
    ret->total = gpu->total;
    ret->used = gpu->used;
    ret->free = ret->total - ret->used;
    return OK;
}

int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *ret)
{
    if (type != 1 || counter != 0)
        return INVALID;
    *ret = ((struct gpu *)device)->ecc;
    return OK;
}

int nvmlDeviceGetRemappedRows(void *device, unsigned *a, unsigned *b, unsigned *ret_pending,
                              unsigned *ret_failed)
{
    *a = *b = *ret_failed = 0;
    *ret_pending = ((struct gpu *)device)->repair;
    return OK;
}

int nvmlDeviceGetMigMode(void *device, unsigned *ret_now, unsigned *ret_pending)
{
    *ret_now = *ret_pending = ((struct gpu *)device)->slice_count > 0;
    return OK;
}

/* As many as there could be, and not as there are. */
int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *ret)
{
    *ret = ((struct gpu *)device)->slice_count > 0 ? SLICES_MAX : 0;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **ret)
{
    const struct gpu *gpu = device;

    if (index >= gpu->slice_count)
        return NOT_FOUND;
    *ret = gpu->slices[index];
    return OK;
}

int nvmlDeviceGetGpuInstanceId(void *device, unsigned *ret)
{
    *ret = ((struct gpu *)device)->gpu_instance;
    return OK;
}

int nvmlDeviceGetComputeInstanceId(void *device, unsigned *ret)
{
    *ret = ((struct gpu *)device)->compute_instance;
    return OK;
}

/* ---- events ---- */

/* What has been before is not told, as a driver does not. */
int nvmlEventSetCreate(void **ret)
{
    FILE *file = open_file("xids");

    if (file != NULL && fseek(file, 0, SEEK_END) == 0)
        xids_read = ftell(file);
    if (file != NULL)
        (void)fclose(file);
    *ret = &xids_read;
    return OK;
}

int nvmlEventSetFree(void *set)
{
    return set == &xids_read ? OK : INVALID;
}

int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set)
{
    return device != NULL && types == 8 && set == &xids_read ? OK : INVALID;
}

static int next_xid(struct event *ret)
{
    FILE *file = open_file("xids");
    int gpu_instance, compute_instance;
    unsigned index;
    char line[128];
    int found = 0;

    if (file == NULL)
        return 0;
    if (fseek(file, xids_read, SEEK_SET) == 0 && fgets(line, sizeof(line), file) != NULL &&
        strchr(line, '\n') != NULL) {
        xids_read = ftell(file);
        found = sscanf(line, "%u %d %d %llu", &index, &gpu_instance, &compute_instance,
                       &ret->data) == 4 &&
                index < gpu_count;
    }
    (void)fclose(file);
    if (!found)
        return 0;
    ret->device = &gpus[index];
    ret->type = 8;
    ret->gpu_instance = (unsigned)gpu_instance;
    ret->compute_instance = (unsigned)compute_instance;
    return 1;
}

int nvmlEventSetWait_v2(void *set, struct event *ret, unsigned timeout_ms)
{
    unsigned waited_ms = 0;

    if (set != &xids_read)
        return INVALID;
    for (;; waited_ms += POLL_MS) {
        int found;

        ask();
        (void)pthread_mutex_lock(&lock);
        found = next_xid(ret);
        (void)pthread_mutex_unlock(&lock);
        if (found)
            return OK;
        if (waited_ms >= timeout_ms)
            return TIMEOUT;
        (void)poll(NULL, 0, POLL_MS);
    }
}
