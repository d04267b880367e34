/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder_cuda/encoder_cuda.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "workers/engines/encoder/encoder_int.h"
#include "workers/engines/encoder_cuda/bert_cuda.h"
#include "workers/engines/encoder_cuda/device_error.h"

#define BATCH_TOKENS_DEFAULT 16384u
#define PLAN_DIR_SIZE 1024

struct cuda {
    struct bert_cuda *bert;
    struct device_facts facts;
    uint32_t ordinal;
    bool bf16;
    float *rows[ENCODER_FLIGHT_MAX]; /* of the batches that are out */
};

/* Devices that are there and cannot be had (the fabric is not up, the sanitizer has their
 * addresses) are no missing ones, and CUDA's own words say more. */
static int count_devices(uint32_t *ret_count, struct err *err)
{
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);

    (void)cudaGetLastError(); /* or the next call would seem to fail */
    *ret_count = 0;
    if (status == cudaErrorNoDevice || status == cudaErrorInvalidDevice ||
        status == cudaErrorInsufficientDriver || status == cudaErrorStubLibrary)
        return 0;
    if (status != cudaSuccess)
        return err_set(err, device_error_cuda(status),
                       "the devices cannot be counted: %s (CUDA %d)", cudaGetErrorString(status),
                       (int)status);
    *ret_count = (uint32_t)count;
    return 0;
}

/* What is missing stays 0: a driver that cannot be asked has no devices. */
static int gather_facts(uint32_t ordinal, struct device_facts *ret_facts, struct err *err)
{
    struct device_facts facts = {.visible = getenv("CUDA_VISIBLE_DEVICES")};
    struct cudaDeviceProp properties;
    size_t free_size, memory_size;
    int r;

    CUDA_TRY(cudaRuntimeGetVersion(&facts.runtime_version), err);
    if (cudaDriverGetVersion(&facts.driver_version) != cudaSuccess)
        facts.driver_version = 0;
    r = count_devices(&facts.device_count, err);
    if (r < 0)
        return r;
    if (ordinal < facts.device_count) {
        CUDA_TRY(cudaGetDeviceProperties(&properties, (int)ordinal), err);
        facts.capability = (uint32_t)(10 * properties.major + properties.minor);
        mem_copy_text(facts.name, properties.name);
        CUDA_TRY(cudaSetDevice((int)ordinal), err);
        CUDA_TRY(cudaMemGetInfo(&free_size, &memory_size), err);
        facts.free_size = free_size;
        facts.memory_size = memory_size;
    }
    *ret_facts = facts;
    return 0;
}

static int find_device(const char *device, uint32_t *ret_ordinal, struct device_facts *ret_facts,
                       struct err *err)
{
    int r;

    r = device_need_parse(device, ret_ordinal, err);
    if (r == 0)
        r = gather_facts(*ret_ordinal, ret_facts, err);
    return r == 0 ? device_need_check(ret_facts, *ret_ordinal, err) : r;
}

static int check(const struct engine_load *load, struct err *err)
{
    struct device_facts facts;
    uint32_t ordinal;

    return find_device(load->device, &ordinal, &facts, err);
}

static int default_tokens(const struct encoder_ask *ask, uint32_t *ret_count, struct err *err)
{
    (void)err;
    *ret_count = ask->config->token_count_max > BATCH_TOKENS_DEFAULT ? ask->config->token_count_max
                                                                     : BATCH_TOKENS_DEFAULT;
    return 0;
}

/* ---- running ---- */

static int run_start(void *self, uint32_t slot, const struct bert_batch *batch, float *rows,
                     struct err *err)
{
    struct cuda *cuda = self;

    cuda->rows[slot] = rows;
    return bert_cuda_start(cuda->bert, slot, batch, err);
}

static int run_finish(void *self, uint32_t slot, uint32_t *ret_pad_count, struct err *err)
{
    struct cuda *cuda = self;

    return bert_cuda_finish(cuda->bert, slot, cuda->rows[slot], ret_pad_count, err);
}

static int run(void *self, const struct bert_batch *batch, float *rows, uint32_t *ret_pad_count,
               struct err *err)
{
    struct cuda *cuda = self;
    const uint32_t slot = bert_cuda_free_slot(cuda->bert);
    int r;

    r = bert_cuda_start(cuda->bert, slot, batch, err);
    return r == 0 ? bert_cuda_finish(cuda->bert, slot, rows, ret_pad_count, err) : r;
}

/* ---- models ---- */

static void cuda_close(void **self_p)
{
    struct cuda *cuda = TAKE(*self_p);

    if (cuda == NULL)
        return;
    bert_cuda_close(&cuda->bert);
    free(cuda);
}

/* Whether there is a place for plans; attention makes the last directory of it. */
static bool find_plan_dir(char to[PLAN_DIR_SIZE])
{
    const char *own = getenv("HEADRACE_CUDA_PLANS"), *cache = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    int size = 0;

    if (own != NULL && own[0] != '\0') {
        size = snprintf(to, PLAN_DIR_SIZE, "%s", own);
    } else if (cache != NULL && cache[0] == '/') {
        size = snprintf(to, PLAN_DIR_SIZE, "%s/headrace-cuda", cache);
    } else if (home != NULL && home[0] == '/') {
        size = snprintf(to, PLAN_DIR_SIZE, "%s/.cache", home);
        if (size < PLAN_DIR_SIZE)
            (void)mkdir(to, 0700); /* there mostly; else the next one fails too, and is logged */
        size = snprintf(to, PLAN_DIR_SIZE, "%s/.cache/headrace-cuda", home);
    }
    return size > 0 && size < PLAN_DIR_SIZE;
}

static int cuda_open(const struct encoder_ask *ask, struct safetensors **weights_p, void **ret_self,
                     struct encoder_runner *ret_runner, struct err *err)
{
    OWNED(cuda_close) void *self = xcalloc(1, sizeof(struct cuda));
    struct cuda *cuda = self;
    struct bert_cuda_options options = {
        .facts = &cuda->facts,
        .bf16 = ask->dtype != ENCODER_DTYPE_F32,
        .token_count_max = ask->token_count_max,
        .text_count_max = ask->text_count_max,
        .progress = ask->load->sink.progress,
        .opaque = ask->load->sink.opaque,
    };
    char plan_dir[PLAN_DIR_SIZE];
    int r;

    cuda->bf16 = options.bf16;
    r = find_device(ask->load->device, &cuda->ordinal, &cuda->facts, err);
    if (r < 0)
        return r;
    options.ordinal = cuda->ordinal;
    if (find_plan_dir(plan_dir))
        options.plan_dir = plan_dir;
    r = bert_cuda_open(ask->config, weights_p, &options, &cuda->bert, err);
    if (r < 0)
        return r;
    *ret_runner = (struct encoder_runner){
        .run = run, .self = cuda, .start = run_start, .finish = run_finish};
    *ret_self = TAKE(self);
    return 0;
}

static void describe(const void *self, char *to, size_t to_size)
{
    const struct cuda *cuda = self;

    (void)snprintf(to, to_size, "%s, cuda:%u, %s (%u.%u), CUDA %d.%d", cuda->bf16 ? "bf16" : "f32",
                   cuda->ordinal, cuda->facts.name, cuda->facts.capability / 10,
                   cuda->facts.capability % 10, cuda->facts.runtime_version / 1000,
                   cuda->facts.runtime_version % 1000 / 10);
}

static uint64_t host_size(const void *self)
{
    return bert_cuda_host_size(((const struct cuda *)self)->bert);
}

static uint64_t dev_size(const void *self)
{
    return bert_cuda_dev_size(((const struct cuda *)self)->bert);
}

static const struct encoder_backend backend = {
    .check = check,
    .default_tokens = default_tokens,
    .open = cuda_open,
    .close = cuda_close,
    .describe = describe,
    .host_size = host_size,
    .dev_size = dev_size,
};

static int load(const struct engine_load *wish, struct engine **ret_engine,
                struct engine_info *ret_info, struct err *err)
{
    return encoder_load_on(&backend, wish, ret_engine, ret_info, err);
}

const struct engine_api encoder_cuda_api = ENCODER_API(load);
