/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: every attention graph that the engine asks for has an engine of cuDNN on Hopper and
 * compiles for it; a graph that is not what was meant does not pass for one; plans come back from
 * disk, damaged or refused ones are made anew. Method: no device: its properties come from
 * tests/data/gpu, code is compiled by NVRTC and loaded into the driver of driver_stub.c. The graphs
 * are attention_plans.c's own, altered for the cases. What plans compute:
 * tests/gpu/test_attention.c.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <cuda_runtime_api.h>
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "workers/engines/encoder_cuda/attention_plans.h"

#define H100 "tests/data/gpu/h100.json"
#define H200 "tests/data/gpu/h200.json"

/* bge-base, and MiniLM whose heads are half as wide. */
static const struct attention_shape base = {12, 64, ATTENTION_BF16, 16384, 1024, 512};
static const struct attention_shape minilm = {12, 32, ATTENTION_BF16, 16384, 1024, 512};

static struct cudnn_device *device_of(const char *path)
{
    struct cudnn_device *device = NULL;
    char json[4096] = "";
    int fd = open(path, O_RDONLY);
    struct err err;

    assert_true(fd >= 0 && read(fd, json, sizeof(json) - 1) > 0);
    (void)close(fd);
    if (cudnn_device_new_json(json, &device, &err))
        fail_msg("%s: %s", path, err.text);
    return device;
}

/* NVRTC finds its builtins where nothing says in which directory they are: they are loaded. */
static void test_compiler(void **state)
{
    char name[64];

    (void)state;
    (void)snprintf(name, sizeof(name), "libnvrtc-builtins.so.%d.%d", CUDART_VERSION / 1000,
                   CUDART_VERSION / 10 % 100);
    assert_null(dlopen(name, RTLD_LAZY | RTLD_NOLOAD));
    cudnn_load_compiler();
    assert_non_null(dlopen(name, RTLD_LAZY | RTLD_NOLOAD));
}

/* How many engine configurations the graph has; 0: none, err says why. */
static uint32_t configs_of(const struct cudnn_tensor *tensors, const struct cudnn_device *device,
                           struct err *err)
{
    OWNED(cudnn_graph_free) struct cudnn_graph *graph = NULL;
    uint32_t count = 0;

    if (attention_graph_new(tensors, &graph, err) ||
        cudnn_graph_count_configs(graph, device, &count, err))
        return 0;
    return count;
}

static void check_shape(const struct attention_shape *shape, const struct cudnn_device *device)
{
    struct attention_buckets buckets;

    attention_buckets_make(shape, &buckets);
    for (uint32_t i = 0; i < buckets.count; i++) {
        struct cudnn_tensor tensors[ATTENTION_TENSOR_COUNT];
        struct err err = {0};

        attention_tensors_make(shape, &buckets.list[i], tensors);
        if (configs_of(tensors, device, &err) == 0)
            fail_msg("%u heads of %u, %u texts of %u: %s", shape->head_count, shape->head_dim,
                     buckets.list[i].texts, buckets.list[i].length, err.text);
    }
}

/* The shapes of the models that the encoder serves: every bucket of each has an engine. */
static void test_engines(void **state)
{
    static const struct attention_shape shapes[] = {
        {12, 32, ATTENTION_BF16, 16384, 1024, 512},   /* MiniLM */
        {12, 64, ATTENTION_BF16, 16384, 1024, 512},   /* BERT base */
        {16, 64, ATTENTION_BF16, 16384, 1024, 512},   /* BERT large */
        {16, 64, ATTENTION_BF16, 65536, 4096, 8192},  /* bge-m3, a large batch */
        {12, 64, ATTENTION_BF16, 512, 1, 512},        /* one text */
        {1, 8, ATTENTION_BF16, 64, 4, 33},            /* the least */
        {8, 128, ATTENTION_BF16, 16384, 16384, 4096}, /* the widest */
    };
    static const char *const paths[] = {H100, H200};

    (void)state;
    for (size_t p = 0; p < COUNT_OF(paths); p++) {
        OWNED(cudnn_device_free) struct cudnn_device *device = device_of(paths[p]);

        for (size_t i = 0; i < COUNT_OF(shapes); i++)
            check_shape(&shapes[i], device);
    }
}

/* --- graphs that are not what was meant --- */

static void head_dim_33(struct cudnn_tensor *t)
{
    for (uint32_t i = ATTENTION_Q; i <= ATTENTION_OUT; i++)
        t[i].dims[3] = 33;
}

static void head_dim_33_packed(struct cudnn_tensor *t)
{
    struct attention_shape shape = base;
    struct attention_bucket bucket = {16, 128};

    shape.head_dim = 33;
    attention_tensors_make(&shape, &bucket, t);
}

static void head_dim_136(struct cudnn_tensor *t)
{
    for (uint32_t i = ATTENTION_Q; i <= ATTENTION_OUT; i++)
        t[i].dims[3] = 136;
}

static void numbers_apart(struct cudnn_tensor *t)
{
    t[ATTENTION_K].strides[3] = 2;
}

static void rows_odd(struct cudnn_tensor *t)
{
    t[ATTENTION_Q].strides[2] += 1;
}

static void rows_negative(struct cudnn_tensor *t)
{
    t[ATTENTION_V].strides[2] = -t[ATTENTION_V].strides[2];
}

static void f32(struct cudnn_tensor *t)
{
    for (uint32_t i = ATTENTION_Q; i <= ATTENTION_OUT; i++)
        t[i].type = CUDNN_DATA_FLOAT;
}

static void keys_in_half(struct cudnn_tensor *t)
{
    t[ATTENTION_K].type = CUDNN_DATA_HALF;
}

static void out_in_f32(struct cudnn_tensor *t)
{
    t[ATTENTION_OUT].type = CUDNN_DATA_FLOAT;
}

static void lengths_in_half(struct cudnn_tensor *t)
{
    t[ATTENTION_LENGTHS_KV].type = CUDNN_DATA_HALF;
}

static void scale_in_int(struct cudnn_tensor *t)
{
    t[ATTENTION_SCALE].type = CUDNN_DATA_INT32;
}

static void scale_on_device(struct cudnn_tensor *t)
{
    t[ATTENTION_SCALE].by_value = false;
}

static void no_texts(struct cudnn_tensor *t)
{
    t[ATTENTION_LENGTHS_KV].dims[0] = 0;
}

static void fewer_keys_heads(struct cudnn_tensor *t)
{
    t[ATTENTION_K].dims[1] = 5;
}

static void out_longer(struct cudnn_tensor *t)
{
    t[ATTENTION_OUT].dims[2] *= 2;
}

static void lengths_of_fewer_texts(struct cudnn_tensor *t)
{
    t[ATTENTION_LENGTHS_Q].dims[0] -= 1;
}

static void same_id(struct cudnn_tensor *t)
{
    t[ATTENTION_V].uid = t[ATTENTION_K].uid;
}

static void test_altered(void **state)
{
    static const struct {
        void (*alter)(struct cudnn_tensor *tensors);
        const char *want; /* of the sentence */
    } rows[] = {
        {head_dim_33, "q has heads of 33; it must be a multiple of 8, 8 to 128"},
        {head_dim_33_packed, "q has heads of 33"},
        {head_dim_136, "q has heads of 136"},
        {numbers_apart, "k has stride 2 in dimension 3; it must be 1"},
        {rows_odd, "q has stride 2305 in dimension 2; it must be a multiple of 8"},
        {rows_negative, "v has stride -2304 in dimension 2"},
        {f32, "q is of type 0 on the device"},
        {keys_in_half, "k is of type 2 on the device"},
        {out_in_f32, "out is of type 0"},
        {lengths_in_half, "lengths of kv is of type 2"},
        {scale_in_int, "scale is of type 4 on the host"},
        {scale_on_device, "scale is of type 0 on the device"},
        {same_id, "k and v have one id, 5"},
        {fewer_keys_heads, "attention: finalize: CUDNN_STATUS_BAD_PARAM"},
        {out_longer, "attention: finalize: CUDNN_STATUS_BAD_PARAM"},
        {lengths_of_fewer_texts, "attention: finalize: CUDNN_STATUS_BAD_PARAM"},
        {no_texts, "CUDNN_STATUS_BAD_PARAM"},
    };
    OWNED(cudnn_device_free) struct cudnn_device *device = device_of(H200);
    const struct attention_bucket bucket = {16, 128};
    struct cudnn_tensor tensors[ATTENTION_TENSOR_COUNT];
    OWNED(mem_free) char *plain = NULL;
    struct err err = {0};

    (void)state;
    attention_tensors_make(&base, &bucket, tensors);
    plain = attention_graph_text(tensors);
    if (configs_of(tensors, device, &err) == 0)
        fail_msg("%s", err.text);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(mem_free) char *altered = NULL;

        attention_tensors_make(&base, &bucket, tensors);
        rows[i].alter(tensors);
        altered = attention_graph_text(tensors);
        assert_string_not_equal(plain, altered); /* nor does a plan on disk pass for it */
        err = (struct err){0};
        if (configs_of(tensors, device, &err) > 0)
            fail_msg("row %zu, '%s': has an engine", i, rows[i].want);
        if (err.code != ERR_UNSUPPORTED || !strstr(err.text, rows[i].want))
            fail_msg("row %zu, '%s': %s", i, rows[i].want, err.text);
    }
}

/* What cuDNN is asked for, word for word: whoever changes it sees here that plans change. */
static void test_asked_for(void **state)
{
    static const char want[] = "sdpa_fwd; offsets in qkv #0 type 4 [17,1,1,1] by [1,1,1,1]"
                               "; offsets in out #1 type 4 [17,1,1,1] by [1,1,1,1]"
                               "; lengths of q #2 type 4 [16,1,1,1] by [1,1,1,1]"
                               "; lengths of kv #3 type 4 [16,1,1,1] by [1,1,1,1]"
                               "; q #4 type 9 [16,12,128,32] by [147456,32,1152,1]"
                               "; k #5 type 9 [16,12,128,32] by [147456,32,1152,1]"
                               "; v #6 type 9 [16,12,128,32] by [147456,32,1152,1]"
                               "; out #7 type 9 [16,12,128,32] by [49152,32,384,1]"
                               "; scale #8 type 0 host [1,1,1,1] by [1,1,1,1]";
    const struct attention_bucket bucket = {16, 128};
    struct cudnn_tensor tensors[ATTENTION_TENSOR_COUNT];
    OWNED(mem_free) char *text = NULL;

    (void)state;
    attention_tensors_make(&minilm, &bucket, tensors);
    text = attention_graph_text(tensors);
    assert_string_equal(text, want);
}

static void test_no_device(void **state)
{
    struct cudnn_device *device = NULL;
    struct err err;

    (void)state;
    assert_int_equal(cudnn_device_new_json("{}", &device, &err), ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "device properties: finalize"));
    assert_non_null(strstr(err.text, "maxGridSize"));
    assert_null(device);
}

/* --- plans, and the disk --- */

struct counted {
    uint32_t calls, stop_at; /* 0: never */
};

static bool count_progress(void *opaque, uint32_t done_count, uint32_t total_count)
{
    struct counted *counted = opaque;

    assert_true(done_count >= 1 && done_count <= total_count);
    counted->calls++;
    return counted->stop_at == 0 || counted->calls < counted->stop_at;
}

struct dir {
    char path[64];
    struct plan_cache *cache;
};

static void dir_open(struct dir *dir)
{
    struct err err;

    (void)snprintf(dir->path, sizeof(dir->path), "/tmp/attention_plans.XXXXXX");
    assert_non_null(mkdtemp(dir->path));
    if (plan_cache_open(dir->path, NULL, &dir->cache, &err))
        fail_msg("%s", err.text);
}

/* Applies to each file; NULL: deletes it. Returns how many there were. */
static uint32_t dir_each(const struct dir *dir, void (*then)(int fd))
{
    DIR *list = opendir(dir->path);
    uint32_t count = 0;

    assert_non_null(list);
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        count++;
        if (then) {
            int fd = openat(dirfd(list), entry->d_name, O_RDWR);

            assert_true(fd >= 0);
            then(fd);
            (void)close(fd);
        } else {
            (void)unlinkat(dirfd(list), entry->d_name, 0);
        }
    }
    (void)closedir(list);
    return count;
}

static void dir_close(struct dir *dir)
{
    plan_cache_close(&dir->cache);
    (void)dir_each(dir, NULL);
    (void)rmdir(dir->path);
}

static void spoil(int fd)
{
    assert_true(lseek(fd, -3, SEEK_END) > 0);
    assert_int_equal(write(fd, "#", 1), 1);
}

static uint32_t plans_make(struct attention_plans_options *options, uint32_t *ret_cached)
{
    OWNED(attention_plans_free) struct attention_plans *plans = NULL;
    struct err err;

    if (attention_plans_new(options, &plans, &err))
        fail_msg("%s", err.text);
    for (uint32_t i = 0; i < plans->buckets.count; i++) {
        assert_non_null(plans->list[i]);
        assert_true(cudnn_plan_workspace_size(plans->list[i]) <= plans->workspace_size);
    }
    assert_true(plans->workspace_size < 64u << 20);
    *ret_cached = plans->cached_count;
    return plans->buckets.count;
}

static void test_plans_kept(void **state)
{
    OWNED(cudnn_device_free) struct cudnn_device *device = device_of(H200);
    OWNED(cudnn_device_free) struct cudnn_device *other = device_of(H100);
    const struct attention_shape shape = {12, 32, ATTENTION_BF16, 512, 16, 256};
    struct counted counted = {0};
    struct dir dir;
    uint32_t cached, count;

    (void)state;
    dir_open(&dir);
    struct attention_plans_options options = {.shape = &shape,
                                              .device = device,
                                              .cache = dir.cache,
                                              .progress = count_progress,
                                              .opaque = &counted};

    count = plans_make(&options, &cached);
    assert_int_equal(count, 2);
    assert_int_equal(cached, 0);
    assert_true(counted.calls >= 1 && counted.calls <= count);
    assert_int_equal(dir_each(&dir, NULL), count); /* and deletes them */
    (void)plans_make(&options, &cached);
    assert_int_equal(cached, 0);
    (void)plans_make(&options, &cached);
    assert_int_equal(cached, count);

    assert_int_equal(dir_each(&dir, spoil), count); /* logged, and made anew */
    (void)plans_make(&options, &cached);
    assert_int_equal(cached, 0);
    (void)plans_make(&options, &cached);
    assert_int_equal(cached, count);

    options.device = other; /* another device's are not these */
    (void)plans_make(&options, &cached);
    assert_int_equal(cached, 0);
    assert_int_equal(dir_each(&dir, spoil), 2 * count);
    dir_close(&dir);
}

/* A plan that the cache calls whole and cuDNN refuses: as after a change of its format. */
static void test_plan_refused(void **state)
{
    OWNED(cudnn_device_free) struct cudnn_device *device = device_of(H200);
    const struct attention_shape shape = {12, 64, ATTENTION_BF16, 64, 4, 64};
    const struct attention_bucket bucket = {4, 64};
    struct cudnn_tensor tensors[ATTENTION_TENSOR_COUNT];
    OWNED(mem_free) char *text = NULL;
    struct dir dir;
    struct err err;
    uint32_t cached;

    (void)state;
    dir_open(&dir);
    struct attention_plans_options options = {
        .shape = &shape, .device = device, .cache = dir.cache};
    attention_tensors_make(&shape, &bucket, tensors);
    text = attention_graph_text(tensors);
    const struct plan_cache_key key = {"NVIDIA H200", "9.0", cudnnGetVersion(), text};
    assert_int_equal(plan_cache_put(dir.cache, &key, "{\"schemaVersion\":1}", &err), 0);
    assert_int_equal(plans_make(&options, &cached), 1);
    assert_int_equal(cached, 0);
    assert_int_equal(plans_make(&options, &cached), 1);
    assert_int_equal(cached, 1);
    dir_close(&dir);
}

static void test_canceled(void **state)
{
    OWNED(cudnn_device_free) struct cudnn_device *device = device_of(H200);
    const struct attention_shape shape = {12, 32, ATTENTION_BF16, 512, 4, 512};
    struct counted counted = {.stop_at = 1};
    const struct attention_plans_options options = {
        .shape = &shape, .device = device, .progress = count_progress, .opaque = &counted};
    struct attention_plans *plans = NULL;
    struct err err;

    (void)state;
    assert_int_equal(attention_plans_new(&options, &plans, &err), ERR_CANCELED);
    assert_non_null(strstr(err.text, "of 3 plans"));
    assert_null(plans);
    assert_int_equal(counted.calls, 1);
}

static int start_fails(void *opaque, struct err *err)
{
    (void)opaque;
    return err_set(err, ERR_DEVICE, "device 3 is gone");
}

static void test_failures(void **state)
{
    OWNED(cudnn_device_free) struct cudnn_device *device = device_of(H200);
    struct attention_shape shape = minilm;
    struct attention_plans_options options = {.shape = &shape, .device = device};
    struct attention_plans *plans = NULL;
    struct err err;

    (void)state;
    shape.dtype = ATTENTION_F32;
    assert_int_equal(attention_plans_new(&options, &plans, &err), ERR_UNSUPPORTED);
    shape = minilm;
    shape.head_dim = 33; /* attention_shape_check() stands before this one */
    assert_int_equal(attention_plans_new(&options, &plans, &err), ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "12 heads of 33, "));
    shape = minilm;
    options.thread_start = start_fails;
    assert_int_equal(attention_plans_new(&options, &plans, &err), ERR_DEVICE);
    assert_string_equal(err.text, "device 3 is gone");
    assert_null(plans);
}

#ifdef HEADRACE_WITH_ASAN
/* cuDNN and NVRTC keep what they allocated until the process ends; ours is looked for all the same.
 */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libnvrtc\nleak:libcudnn\n";
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compiler), /* before anything compiles */
        cmocka_unit_test(test_engines),    cmocka_unit_test(test_altered),
        cmocka_unit_test(test_asked_for),  cmocka_unit_test(test_no_device),
        cmocka_unit_test(test_plans_kept), cmocka_unit_test(test_plan_refused),
        cmocka_unit_test(test_canceled),   cmocka_unit_test(test_failures),
    };

    /* Stays when cuDNN closes it, so that the leak checker still knows whose memory it was. */
    (void)dlopen("libnvrtc.so.13", RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
