/* SPDX-License-Identifier: Apache-2.0 */
#include "workers/engines/encoder_cuda/attention.h"

#include <cuda_runtime_api.h>
#include <math.h>

#include "base/assert.h"
#include "base/log.h"
#include "workers/engines/encoder_cuda/attention_kernel.h"
#include "workers/engines/encoder_cuda/attention_plans.h"

struct attention {
    struct attention_shape shape;
    struct attention_buckets buckets;
    const float *distances;
    float scale; /* cuDNN reads it from here */

    /* cuDNN's part: all NULL where our own kernel runs. */
    cudnnHandle_t handle;
    struct cudnn_device *device;
    struct attention_plans *plans;
    struct CUstream_st *stream; /* the handle's */
};

struct opening {
    const struct attention_options *options;
    int device; /* number of the current one */
};

static int set_device(void *opaque, struct err *err)
{
    const struct opening *opening = opaque;
    cudaError_t status = cudaSetDevice(opening->device);

    return status ? err_set(err, ERR_DEVICE, "device %d: %s", opening->device,
                            cudaGetErrorString(status))
                  : 0;
}

static bool say_progress(void *opaque, uint32_t done_count, uint32_t total_count)
{
    const struct attention_options *options = ((const struct opening *)opaque)->options;

    return !options->progress || options->progress(options->opaque, done_count, total_count);
}

/* A directory that cannot be used costs compiling, not the load. */
static void cache_open(const char *dir, struct plan_cache **ret_cache)
{
    struct err err;

    *ret_cache = NULL;
    if (dir && plan_cache_open(dir, NULL, ret_cache, &err)) {
        *ret_cache = NULL;
        log_warn("plans_not_kept", LOG_ERR(&err));
    }
}

static int open_cudnn(struct attention *attention, const struct attention_options *options,
                      struct err *err)
{
    OWNED(plan_cache_close) struct plan_cache *cache = NULL;
    struct opening opening = {.options = options};
    struct attention_plans_options plans = {.shape = &attention->shape,
                                            .thread_start = set_device,
                                            .progress = say_progress,
                                            .opaque = &opening};
    cudaError_t got = cudaGetDevice(&opening.device);
    cudnnStatus_t status;

    if (got != cudaSuccess)
        return err_set(err, ERR_DEVICE, "current device: %s", cudaGetErrorString(got));
    if (cudnn_check_version(err))
        return err->code;
    status = cudnnCreate(&attention->handle);
    if (status)
        return cudnn_fail(err, status, "create a handle");
    if (cudnn_device_new(attention->handle, &attention->device, err))
        return err->code;
    cache_open(options->plan_dir, &cache);
    plans.device = attention->device;
    plans.cache = cache;
    return attention_plans_new(&plans, &attention->plans, err);
}

int attention_open(const struct attention_options *options, struct attention **ret_attention,
                   struct err *err)
{
    OWNED(attention_close) struct attention *attention = NULL;

    if (attention_shape_check(&options->shape, err))
        return err->code;
    attention = xcalloc(1, sizeof(*attention));
    attention->shape = options->shape;
    attention->distances = options->distances;
    attention->scale = 1.0f / sqrtf((float)options->shape.head_dim);
    attention_buckets_make(&attention->shape, &attention->buckets);
    if (options->shape.dtype == ATTENTION_BF16 && !options->distances &&
        open_cudnn(attention, options, err))
        return err->code;
    *ret_attention = TAKE(attention);
    return 0;
}

void attention_close(struct attention **attention_p)
{
    struct attention *attention = *attention_p;

    if (!attention)
        return;
    attention_plans_free(&attention->plans);
    cudnn_device_free(&attention->device);
    if (attention->handle)
        (void)cudnnDestroy(attention->handle);
    mem_free(attention_p);
}

uint32_t attention_plan_count(const struct attention *attention)
{
    return attention->buckets.count;
}

uint32_t attention_plans_from_disk(const struct attention *attention)
{
    return attention->plans ? attention->plans->cached_count : 0;
}

size_t attention_workspace_size(const struct attention *attention)
{
    return attention->plans ? attention->plans->workspace_size : 0;
}

size_t attention_index_size(const struct attention *attention)
{
    return attention_index_of(attention->shape.text_count_max).size;
}

int attention_prepare(const struct attention *attention, const uint32_t *offsets,
                      uint32_t text_count, void *index, struct attention_turn *ret_turn,
                      struct err *err)
{
    return attention_turn_make(&attention->shape, &attention->buckets, offsets, text_count, index,
                               ret_turn, err);
}

static int run_cudnn(struct attention *attention, uint32_t plan,
                     const struct attention_memory *memory, struct CUstream_st *stream,
                     struct err *err)
{
    const struct attention_index at = attention_index_of(attention->buckets.list[plan].texts);
    const size_t part = (size_t)attention->shape.head_count * attention->shape.head_dim * 2;
    char *qkv = (char *)memory->qkv, *index = (char *)memory->index; /* cuDNN takes void * */
    struct cudnn_pointers pointers = {.count = ATTENTION_TENSOR_COUNT,
                                      .workspace = memory->workspace};

    for (uint32_t i = 0; i < ATTENTION_TENSOR_COUNT; i++)
        pointers.uids[i] = i;
    pointers.pointers[ATTENTION_QKV_OFFSETS] = index + at.qkv_offsets;
    pointers.pointers[ATTENTION_OUT_OFFSETS] = index + at.out_offsets;
    pointers.pointers[ATTENTION_LENGTHS_Q] = index + at.lengths;
    pointers.pointers[ATTENTION_LENGTHS_KV] = index + at.lengths;
    pointers.pointers[ATTENTION_Q] = qkv;
    pointers.pointers[ATTENTION_K] = qkv + part;
    pointers.pointers[ATTENTION_V] = qkv + 2 * part;
    pointers.pointers[ATTENTION_OUT] = memory->out;
    pointers.pointers[ATTENTION_SCALE] = &attention->scale;
    if (attention->stream != stream) {
        cudnnStatus_t status = cudnnSetStream(attention->handle, stream);

        if (status)
            return cudnn_fail(err, status, "set the stream");
        attention->stream = stream;
    }
    return cudnn_plan_run(attention->plans->list[plan], attention->handle, &pointers, err);
}

int attention_run(struct attention *attention, const struct attention_turn *turn,
                  const struct attention_memory *memory, struct CUstream_st *stream,
                  struct err *err)
{
    struct attention_kernel_call call = {.shape = attention->shape,
                                         .qkv = memory->qkv,
                                         .out = memory->out,
                                         .index = memory->index,
                                         .distances = attention->distances};

    assert(turn->plan < attention->buckets.count);
    if (attention->plans)
        return run_cudnn(attention, turn->plan, memory, stream, err);
    call.bucket = attention->buckets.list[turn->plan];
    return attention_kernel_run(&call, stream, err);
}
