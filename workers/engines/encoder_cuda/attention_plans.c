/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Happy path: threads take buckets one by one; each looks into the cache, else compiles and keeps
 * what came out. The calling thread waits, says how far it is, and stops them when it is told to.
 *
 * Failures: the first one ends the work after the buckets in hand. What was compiled until then is
 * in the cache, so that the next try goes on from there. A cache that fails costs a log line.
 */
#include "workers/engines/encoder_cuda/attention_plans.h"

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"

struct work {
    const struct attention_plans_options *options;
    struct attention_plans *plans;
    struct plan_cache_key key; /* but for the graph */
    pthread_mutex_t lock;      /* guards what follows */
    pthread_cond_t changed;
    uint32_t next;       /* bucket that is taken next */
    uint32_t done_count; /* buckets whose plan is there */
    uint32_t thread_count;
    bool stop;
    struct err err; /* the first failure */
};

/* --- the graph --- */

static struct cudnn_tensor rows_tensor(const char *name, int64_t uid,
                                       const struct attention_shape *shape,
                                       const struct attention_bucket *bucket, int64_t row)
{
    return (struct cudnn_tensor){
        .name = name,
        .uid = uid,
        .type = CUDNN_DATA_BFLOAT16,
        .dims = {bucket->texts, shape->head_count, bucket->length, shape->head_dim},
        .strides = {bucket->length * row, shape->head_dim, row, 1},
    };
}

static struct cudnn_tensor list_tensor(const char *name, int64_t uid, int64_t count)
{
    return (struct cudnn_tensor){.name = name,
                                 .uid = uid,
                                 .type = CUDNN_DATA_INT32,
                                 .dims = {count, 1, 1, 1},
                                 .strides = {1, 1, 1, 1}};
}

void attention_tensors_make(const struct attention_shape *shape,
                            const struct attention_bucket *bucket,
                            struct cudnn_tensor ret_tensors[ATTENTION_TENSOR_COUNT])
{
    int64_t hidden = (int64_t)shape->head_count * shape->head_dim;
    struct cudnn_tensor *to = ret_tensors;

    to[ATTENTION_QKV_OFFSETS] = list_tensor("offsets in qkv", ATTENTION_QKV_OFFSETS,
                                            bucket->texts + 1ll);
    to[ATTENTION_OUT_OFFSETS] = list_tensor("offsets in out", ATTENTION_OUT_OFFSETS,
                                            bucket->texts + 1ll);
    to[ATTENTION_LENGTHS_Q] = list_tensor("lengths of q", ATTENTION_LENGTHS_Q, bucket->texts);
    to[ATTENTION_LENGTHS_KV] = list_tensor("lengths of kv", ATTENTION_LENGTHS_KV, bucket->texts);
    to[ATTENTION_Q] = rows_tensor("q", ATTENTION_Q, shape, bucket, 3 * hidden);
    to[ATTENTION_K] = rows_tensor("k", ATTENTION_K, shape, bucket, 3 * hidden);
    to[ATTENTION_V] = rows_tensor("v", ATTENTION_V, shape, bucket, 3 * hidden);
    to[ATTENTION_OUT] = rows_tensor("out", ATTENTION_OUT, shape, bucket, hidden);
    to[ATTENTION_SCALE] = list_tensor("scale", ATTENTION_SCALE, 1);
    to[ATTENTION_SCALE].type = CUDNN_DATA_FLOAT;
    to[ATTENTION_SCALE].by_value = true;
}

/* Whose rows begin where the other tensor says. */
static uint32_t offsets_of(uint32_t tensor)
{
    if (tensor == ATTENTION_OUT)
        return ATTENTION_OUT_OFFSETS;
    return tensor == ATTENTION_Q || tensor == ATTENTION_K || tensor == ATTENTION_V
               ? ATTENTION_QKV_OFFSETS
               : ATTENTION_TENSOR_COUNT;
}

static cudnnDataType_t type_of(uint32_t tensor)
{
    if (tensor == ATTENTION_SCALE)
        return CUDNN_DATA_FLOAT;
    return tensor < ATTENTION_Q ? CUDNN_DATA_INT32 : CUDNN_DATA_BFLOAT16;
}

static int check_tensor(const struct cudnn_tensor *tensors, uint32_t i, struct err *err)
{
    const struct cudnn_tensor *t = &tensors[i];

    if (t->type != type_of(i) || t->by_value != (i == ATTENTION_SCALE))
        return err_set(err, ERR_UNSUPPORTED, "attention: %s is of type %d %s", t->name,
                       (int)t->type, t->by_value ? "on the host" : "on the device");
    for (uint32_t other = 0; other < i; other++)
        if (tensors[other].uid == t->uid)
            return err_set(err, ERR_UNSUPPORTED, "attention: %s and %s have one id, %lld",
                           tensors[other].name, t->name, (long long)t->uid);
    if (i < ATTENTION_Q || i > ATTENTION_OUT)
        return 0;
    if (t->dims[3] < 8 || t->dims[3] > ATTENTION_HEAD_DIM_MAX || t->dims[3] % 8 != 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "attention: %s has heads of %lld; it must be a multiple of 8, 8 to %d",
                       t->name, (long long)t->dims[3], ATTENTION_HEAD_DIM_MAX);
    for (uint32_t d = 0; d < 4; d++)
        if (d == 3 ? t->strides[d] != 1 : t->strides[d] < 8 || t->strides[d] % 8 != 0)
            return err_set(err, ERR_UNSUPPORTED,
                           "attention: %s has stride %lld in dimension %u; %s", t->name,
                           (long long)t->strides[d], d,
                           d == 3 ? "it must be 1" : "it must be a multiple of 8");
    return 0;
}

int attention_graph_new(const struct cudnn_tensor tensors[ATTENTION_TENSOR_COUNT],
                        struct cudnn_graph **ret_graph, struct err *err)
{
    OWNED(cudnn_graph_free) struct cudnn_graph *graph = cudnn_graph_new();
    cudnn_part parts[ATTENTION_TENSOR_COUNT];

    for (uint32_t i = 0; i < ATTENTION_TENSOR_COUNT; i++) {
        struct cudnn_tensor tensor = tensors[i];
        uint32_t offsets = offsets_of(i);

        tensor.offsets = offsets < i ? parts[offsets] : NULL;
        if (check_tensor(tensors, i, err) || cudnn_graph_tensor(graph, &tensor, &parts[i], err))
            return err->code;
    }
    const struct cudnn_link links[] = {
        CUDNN_LINK(CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, parts[ATTENTION_Q]),
        CUDNN_LINK(CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, parts[ATTENTION_K]),
        CUDNN_LINK(CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, parts[ATTENTION_V]),
        CUDNN_LINK(CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, parts[ATTENTION_OUT]),
        CUDNN_LINK(CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, parts[ATTENTION_SCALE]),
        CUDNN_LINK(CUDNN_ATTR_OPERATION_SDPA_FWD_SEQ_LEN_QDESC, parts[ATTENTION_LENGTHS_Q]),
        CUDNN_LINK(CUDNN_ATTR_OPERATION_SDPA_FWD_SEQ_LEN_KVDESC, parts[ATTENTION_LENGTHS_KV]),
    };
    if (cudnn_graph_operation(graph, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR, "attention",
                              links, COUNT_OF(links), err))
        return err->code;
    *ret_graph = TAKE(graph);
    return 0;
}

char *attention_graph_text(const struct cudnn_tensor tensors[ATTENTION_TENSOR_COUNT])
{
    char *text = xstrdup("sdpa_fwd");

    for (uint32_t i = 0; i < ATTENTION_TENSOR_COUNT; i++) {
        const struct cudnn_tensor *t = &tensors[i];
        OWNED(mem_free) char *before = text;

        text = xasprintf("%s; %s #%lld type %d%s [%lld,%lld,%lld,%lld] by [%lld,%lld,%lld,%lld]",
                         before, t->name, (long long)t->uid, (int)t->type,
                         t->by_value ? " host" : "", (long long)t->dims[0], (long long)t->dims[1],
                         (long long)t->dims[2], (long long)t->dims[3], (long long)t->strides[0],
                         (long long)t->strides[1], (long long)t->strides[2],
                         (long long)t->strides[3]);
    }
    return text;
}

/* --- one plan --- */

/* *ret_plan NULL: the cache has none that can be used. */
static void plan_recall(const struct attention_plans_options *options,
                        const struct plan_cache_key *key, struct cudnn_plan **ret_plan)
{
    OWNED(mem_free) char *text = NULL;
    struct err err;

    *ret_plan = NULL;
    if (!options->cache)
        return;
    if (plan_cache_get(options->cache, key, &text, &err) ||
        (text && cudnn_plan_new_text(text, options->device, ret_plan, &err))) {
        *ret_plan = NULL;
        log_warn("plan_refused", LOG_ERR(&err));
    }
}

static void plan_keep(const struct attention_plans_options *options,
                      const struct plan_cache_key *key, const struct cudnn_plan *plan)
{
    OWNED(mem_free) char *text = NULL;
    struct err err;

    if (!options->cache)
        return;
    if (cudnn_plan_text(plan, &text, &err) || plan_cache_put(options->cache, key, text, &err))
        log_warn("plan_not_kept", LOG_ERR(&err));
}

static int plan_make(struct work *work, uint32_t index, bool *ret_cached, struct err *err)
{
    const struct attention_plans_options *options = work->options;
    const struct attention_bucket *bucket = &work->plans->buckets.list[index];
    struct cudnn_tensor tensors[ATTENTION_TENSOR_COUNT];
    OWNED(cudnn_graph_free) struct cudnn_graph *graph = NULL;
    OWNED(mem_free) char *text = NULL;
    struct plan_cache_key key = work->key;
    struct cudnn_plan **to = &work->plans->list[index];

    attention_tensors_make(options->shape, bucket, tensors);
    text = attention_graph_text(tensors);
    key.graph = text;
    plan_recall(options, &key, to);
    *ret_cached = *to != NULL;
    if (*to)
        return 0;
    if (attention_graph_new(tensors, &graph, err) ||
        cudnn_graph_plan(graph, options->device, to, err))
        return err_wrap(err, "attention of %u heads of %u, %u texts of up to %u tokens",
                        options->shape->head_count, options->shape->head_dim, bucket->texts,
                        bucket->length);
    plan_keep(options, &key, *to);
    return 0;
}

/* --- all of them --- */

static void work_fail(struct work *work, const struct err *err)
{
    if (!work->stop)
        work->err = *err;
    work->stop = true;
}

static void *work_run(void *opaque)
{
    struct work *work = opaque;
    const struct attention_plans_options *options = work->options;
    struct err err = {0};
    bool started = true;

    if (options->thread_start && options->thread_start(options->opaque, &err))
        started = false;
    pthread_mutex_lock(&work->lock);
    if (!started)
        work_fail(work, &err);
    while (!work->stop && work->next < work->plans->buckets.count) {
        uint32_t index = work->next++;
        bool cached = false;
        int r;

        pthread_mutex_unlock(&work->lock);
        r = plan_make(work, index, &cached, &err);
        pthread_mutex_lock(&work->lock);
        if (r)
            work_fail(work, &err);
        else
            work->done_count++;
        work->plans->cached_count += cached;
        pthread_cond_signal(&work->changed);
    }
    work->thread_count--;
    pthread_cond_signal(&work->changed);
    pthread_mutex_unlock(&work->lock);
    return NULL;
}

/* Returns when no thread is left. */
static void work_wait(struct work *work)
{
    const struct attention_plans_options *options = work->options;
    uint32_t said = 0;

    pthread_mutex_lock(&work->lock);
    while (work->thread_count > 0) {
        uint32_t done_count = work->done_count;

        if (done_count == said || !options->progress || work->stop) {
            pthread_cond_wait(&work->changed, &work->lock);
            continue;
        }
        said = done_count;
        pthread_mutex_unlock(&work->lock);
        bool go_on = options->progress(options->opaque, said, work->plans->buckets.count);
        pthread_mutex_lock(&work->lock);
        if (!go_on) {
            struct err err;

            (void)err_set(&err, ERR_CANCELED, "attention: %u of %u plans, then canceled", said,
                          work->plans->buckets.count);
            work_fail(work, &err);
        }
    }
    pthread_mutex_unlock(&work->lock);
}

static int work_all(struct work *work, struct err *err)
{
    pthread_t threads[ATTENTION_COMPILE_THREAD_MAX];
    uint32_t count = work->plans->buckets.count, started = 0;

    if (count > ATTENTION_COMPILE_THREAD_MAX)
        count = ATTENTION_COMPILE_THREAD_MAX;
    work->thread_count = count;
    while (started < count && !pthread_create(&threads[started], NULL, work_run, work))
        (void)pthread_setname_np(threads[started++], "attention-plan");
    pthread_mutex_lock(&work->lock);
    work->thread_count -= count - started;
    if (started == 0) {
        (void)err_set(err, ERR_LIMIT, "attention: no thread to compile on");
        work_fail(work, err);
    }
    pthread_mutex_unlock(&work->lock);
    work_wait(work);
    for (uint32_t i = 0; i < started; i++)
        (void)pthread_join(threads[i], NULL);
    if (work->stop)
        *err = work->err;
    return work->stop ? err->code : 0;
}

/* Name and capability, as the device's properties have them. */
static int key_make(const char *text, char *name, size_t name_size, char *capability,
                    size_t capability_size, struct err *err)
{
    json_t *properties = json_loads(text, 0, NULL);
    const char *said = json_string_value(json_object_get(properties, "deviceName"));
    json_int_t version = json_integer_value(json_object_get(properties, "deviceVer"));

    if (said && version > 0) {
        (void)snprintf(name, name_size, "%s", said);
        (void)snprintf(capability, capability_size, "%lld.%lld", (long long)version / 100,
                       (long long)version / 10 % 10);
    }
    json_decref(properties);
    return said && version > 0 ? 0
                               : err_set(err, ERR_DEPENDENCY,
                                         "cuDNN: a device's properties without name and version");
}

int attention_plans_new(const struct attention_plans_options *options,
                        struct attention_plans **ret_plans, struct err *err)
{
    OWNED(attention_plans_free) struct attention_plans *plans = xcalloc(1, sizeof(*plans));
    struct work work = {.options = options, .plans = plans};
    char name[256], capability[32];
    int r;

    if (options->shape->dtype != ATTENTION_BF16)
        return err_set(err, ERR_UNSUPPORTED, "attention: cuDNN computes it in bf16, not in f32");
    if (key_make(cudnn_device_text(options->device), name, sizeof(name), capability,
                 sizeof(capability), err))
        return err->code;
    work.key = (struct plan_cache_key){
        .device = name, .capability = capability, .library = cudnnGetVersion()};
    attention_buckets_make(options->shape, &plans->buckets);
    cudnn_load_compiler();
    (void)pthread_mutex_init(&work.lock, NULL);
    (void)pthread_cond_init(&work.changed, NULL);
    r = work_all(&work, err);
    (void)pthread_cond_destroy(&work.changed);
    (void)pthread_mutex_destroy(&work.lock);
    if (r)
        return r;
    for (uint32_t i = 0; i < plans->buckets.count; i++)
        if (cudnn_plan_workspace_size(plans->list[i]) > plans->workspace_size)
            plans->workspace_size = cudnn_plan_workspace_size(plans->list[i]);
    *ret_plans = TAKE(plans);
    return 0;
}

void attention_plans_free(struct attention_plans **plans_p)
{
    struct attention_plans *plans = *plans_p;

    if (!plans)
        return;
    for (uint32_t i = 0; i < plans->buckets.count; i++)
        cudnn_plan_free(&plans->list[i]);
    mem_free(plans_p);
}
