/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: attention on a device is the CPU's: relative error of 1e-2 in bf16 and 1e-4 in f32, for
 * every width, length and number of texts; rows behind a batch stay as they were; a plan from disk
 * and a captured graph give the same bits. Method: random batches, fresh in each run (the seed is
 * printed; HEADRACE_SEED repeats one), against a loop in double; outputs poisoned with NaN before.
 * Skipped where there is no device.
 *
 * HEADRACE_PRINT_DEVICE=1 prints the device's properties, as tests/data/gpu has them, and no more.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <cuda_runtime_api.h>
#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "base/settings.h"
#include "workers/engines/encoder_cuda/attention.h"
#include "workers/engines/encoder_cuda/cudnn_graph.h"

#define TOLERANCE_BF16 1e-2
#define TOLERANCE_F32 1e-4
#define GUARD_ROWS ATTENTION_ROWS_BEHIND /* behind the batch, poisoned */
#define POISON 0xff                      /* every byte: a NaN in both types */
#define BEHIND 0x5c                      /* every byte: 2.5e17 in both types */

static struct rng rng;

static void must(cudaError_t status, const char *what)
{
    if (status != cudaSuccess)
        fail_msg("%s: %s", what, cudaGetErrorString(status));
}
#define MUST(call) must((call), #call)

/* --- numbers --- */

static uint16_t bf16_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float float_of(uint16_t value)
{
    uint32_t bits = (uint32_t)value << 16;
    float number;

    memcpy(&number, &bits, sizeof(number));
    return number;
}

static float number_at(const void *list, size_t i, enum attention_dtype dtype)
{
    return dtype == ATTENTION_F32 ? ((const float *)list)[i]
                                  : float_of(((const uint16_t *)list)[i]);
}

static size_t number_size(enum attention_dtype dtype)
{
    return dtype == ATTENTION_F32 ? sizeof(float) : sizeof(uint16_t);
}

/* --- a batch, on the host and on the device --- */

struct world {
    struct attention *attention;
    struct attention_shape shape;
    float *distances; /* host; NULL: none */
    void *dev_distances, *dev_qkv, *dev_out, *dev_index, *dev_workspace;
    void *qkv, *out, *index; /* host */
    uint32_t *offsets;
    struct attention_turn turn;
    cudaStream_t stream;
};

static size_t hidden_of(const struct world *world)
{
    return (size_t)world->shape.head_count * world->shape.head_dim;
}

static size_t rows_of(const struct world *world)
{
    return world->shape.token_count_max + GUARD_ROWS;
}

static void world_open(struct world *world, const struct attention_shape *shape, bool has_distances,
                       const char *plan_dir)
{
    struct attention_options options = {.shape = *shape, .plan_dir = plan_dir};
    size_t count = (size_t)shape->head_count * (2 * shape->length_max - 1), size;
    struct err err;

    *world = (struct world){.shape = *shape};
    size = number_size(shape->dtype) * hidden_of(world) * rows_of(world);
    if (has_distances) {
        world->distances = xcalloc(count, sizeof(float));
        for (size_t i = 0; i < count; i++)
            world->distances[i] = (float)(2 * rng_unit(&rng) - 1);
        MUST(cudaMalloc(&world->dev_distances, count * sizeof(float)));
        MUST(cudaMemcpy(world->dev_distances, world->distances, count * sizeof(float),
                        cudaMemcpyHostToDevice));
        options.distances = world->dev_distances;
    }
    if (attention_open(&options, &world->attention, &err))
        fail_msg("%s", err.text);
    MUST(cudaStreamCreateWithFlags(&world->stream, cudaStreamNonBlocking));
    MUST(cudaMalloc(&world->dev_qkv, 3 * size));
    MUST(cudaMalloc(&world->dev_out, size));
    MUST(cudaMalloc(&world->dev_index, attention_index_size(world->attention)));
    MUST(cudaMalloc(&world->dev_workspace, attention_workspace_size(world->attention) + 256));
    world->qkv = xmalloc(3 * size);
    world->out = xmalloc(size);
    world->index = xmalloc(attention_index_size(world->attention));
    world->offsets = xcalloc(shape->text_count_max + 1, sizeof(uint32_t));
}

static void world_close(struct world *world)
{
    attention_close(&world->attention);
    assert_null(world->attention);
    (void)cudaFree(world->dev_distances);
    (void)cudaFree(world->dev_qkv);
    (void)cudaFree(world->dev_out);
    (void)cudaFree(world->dev_index);
    (void)cudaFree(world->dev_workspace);
    (void)cudaStreamDestroy(world->stream);
    free(world->distances);
    free(world->qkv);
    free(world->out);
    free(world->index);
    free(world->offsets);
}

/* text_count texts of 1 … length_max tokens, as far as they fit. */
static uint32_t world_texts(struct world *world, uint32_t text_count, uint32_t length_max)
{
    uint32_t count = 0;

    while (count < text_count) {
        uint32_t length = 1 + (uint32_t)rng_below(&rng, length_max);

        if (world->offsets[count] + length > world->shape.token_count_max)
            break;
        world->offsets[count + 1] = world->offsets[count] + length;
        count++;
    }
    assert_true(count > 0);
    return count;
}

/* Numbers, index and poison go to the device. */
static void world_fill(struct world *world, uint32_t text_count)
{
    size_t count = 3 * hidden_of(world) * world->offsets[text_count];
    size_t number = number_size(world->shape.dtype);
    struct err err;

    for (size_t i = 0; i < count; i++) {
        float value = (float)(4 * rng_unit(&rng) - 2);

        if (world->shape.dtype == ATTENTION_F32)
            ((float *)world->qkv)[i] = value;
        else
            ((uint16_t *)world->qkv)[i] = bf16_of(value);
    }
    if (attention_prepare(world->attention, world->offsets, text_count, world->index, &world->turn,
                          &err))
        fail_msg("%s", err.text);
    /* Behind the batch's rows there is nothing to read but numbers that would be noticed. */
    MUST(cudaMemset(world->dev_qkv, BEHIND, 3 * number * hidden_of(world) * rows_of(world)));
    MUST(cudaMemset(world->dev_out, POISON, number * hidden_of(world) * rows_of(world)));
    MUST(cudaMemset(world->dev_index, 0, attention_index_size(world->attention)));
    MUST(cudaMemcpy(world->dev_qkv, world->qkv, count * number, cudaMemcpyHostToDevice));
    MUST(
        cudaMemcpy(world->dev_index, world->index, world->turn.index_size, cudaMemcpyHostToDevice));
    MUST(cudaDeviceSynchronize());
}

static void world_launch(struct world *world)
{
    const struct attention_memory memory = {.qkv = world->dev_qkv,
                                            .out = world->dev_out,
                                            .index = world->dev_index,
                                            .workspace = world->dev_workspace};
    struct err err;

    if (attention_run(world->attention, &world->turn, &memory, world->stream, &err))
        fail_msg("%s", err.text);
}

static void world_fetch(struct world *world)
{
    MUST(cudaStreamSynchronize(world->stream));
    MUST(cudaMemcpy(world->out, world->dev_out,
                    number_size(world->shape.dtype) * hidden_of(world) * rows_of(world),
                    cudaMemcpyDeviceToHost));
}

/* --- the reference --- */

/* One row of one head, in double. */
static void reference(const struct world *world, uint32_t text, uint32_t query, uint32_t head,
                      double *row)
{
    const uint32_t dim = world->shape.head_dim, first = world->offsets[text];
    const uint32_t length = world->offsets[text + 1] - first;
    const size_t hidden = hidden_of(world), pitch = 3 * hidden;
    const enum attention_dtype dtype = world->shape.dtype;
    double scores[ATTENTION_LENGTH_MAX], most = -INFINITY, sum = 0;

    for (uint32_t key = 0; key < length; key++) {
        const size_t q = (first + query) * pitch + head * dim;
        const size_t k = (first + key) * pitch + hidden + head * dim;
        double score = 0;

        for (uint32_t d = 0; d < dim; d++)
            score += (double)number_at(world->qkv, q + d, dtype) *
                     (double)number_at(world->qkv, k + d, dtype);
        score /= sqrt(dim);
        if (world->distances)
            score += (double)world->distances[(size_t)head * (2 * world->shape.length_max - 1) +
                                              world->shape.length_max - 1 + key - query];
        scores[key] = score;
        most = fmax(most, score);
    }
    memset(row, 0, dim * sizeof(*row));
    for (uint32_t key = 0; key < length; key++) {
        const size_t v = (first + key) * pitch + 2 * hidden + head * dim;
        const double weight = exp(scores[key] - most);

        sum += weight;
        for (uint32_t d = 0; d < dim; d++)
            row[d] += weight * (double)number_at(world->qkv, v + d, dtype);
    }
    for (uint32_t d = 0; d < dim; d++)
        row[d] /= sum;
}

/* Of some rows of each text, first and last among them: relative to the row's largest number. */
static void check_text(const struct world *world, uint32_t text, const char *what)
{
    const uint32_t length = world->offsets[text + 1] - world->offsets[text];
    const double tolerance = world->shape.dtype == ATTENTION_F32 ? TOLERANCE_F32 : TOLERANCE_BF16;
    double row[ATTENTION_HEAD_DIM_MAX];

    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t query = i == 0 ? 0 : i == 1 ? length - 1 : (uint32_t)rng_below(&rng, length);
        const uint32_t head = (uint32_t)rng_below(&rng, world->shape.head_count);
        const size_t at = (world->offsets[text] + query) * hidden_of(world) +
                          (size_t)head * world->shape.head_dim;
        double largest = 0;

        reference(world, text, query, head, row);
        for (uint32_t d = 0; d < world->shape.head_dim; d++)
            largest = fmax(largest, fabs(row[d]));
        for (uint32_t d = 0; d < world->shape.head_dim; d++) {
            double got = (double)number_at(world->out, at + d, world->shape.dtype);

            if (!(fabs(got - row[d]) <= tolerance * largest)) /* a NaN too */
                fail_msg("%s: text %u of %u tokens, row %u, head %u, number %u: %g, not %g", what,
                         text, length, query, head, d, got, row[d]);
        }
    }
}

/* Every number of the batch was written, and none behind it. */
static void check_written(const struct world *world, const char *what)
{
    const size_t count = hidden_of(world) * world->turn.token_count;
    const size_t number = number_size(world->shape.dtype);
    const unsigned char *bytes = world->out;

    for (size_t i = 0; i < count; i++)
        if (!isfinite(number_at(world->out, i, world->shape.dtype)))
            fail_msg("%s: row %zu, number %zu was not written", what, i / hidden_of(world),
                     i % hidden_of(world));
    for (size_t i = count * number; i < number * hidden_of(world) * rows_of(world); i++)
        if (bytes[i] != POISON)
            fail_msg("%s: row %zu of %u was written", what, i / number / hidden_of(world),
                     world->turn.token_count);
}

static void check_batch(struct world *world, uint32_t text_count, uint32_t length_max)
{
    const uint32_t count = world_texts(world, text_count, length_max);
    char what[128];

    (void)snprintf(what, sizeof(what), "%u heads of %u, %u texts of up to %u",
                   world->shape.head_count, world->shape.head_dim, count, length_max);
    world_fill(world, count);
    world_launch(world);
    world_fetch(world);
    check_written(world, what);
    for (uint32_t text = 0; text < count; text++)
        check_text(world, text, what);
}

/* --- the cases --- */

static void check_shapes(enum attention_dtype dtype, bool has_distances)
{
    static const uint32_t widths[][2] = {{12, 64}, {12, 32}, {16, 64}, {4, 128}, {3, 40}, {1, 8}};
    static const uint32_t batches[][2] = {{1, 1},    {1, 512},  {3, 17},   {16, 128},
                                          {17, 128}, {40, 512}, {500, 16}, {300, 129}};

    for (size_t w = 0; w < COUNT_OF(widths); w++) {
        const struct attention_shape shape = {widths[w][0], widths[w][1], dtype, 8192, 512, 512};
        struct world world;

        world_open(&world, &shape, has_distances, NULL);
        for (size_t b = 0; b < COUNT_OF(batches); b++)
            check_batch(&world, batches[b][0], batches[b][1]);
        world_close(&world);
    }
}

static void test_bf16(void **state)
{
    (void)state;
    check_shapes(ATTENTION_BF16, false);
}

static void test_f32(void **state)
{
    (void)state;
    check_shapes(ATTENTION_F32, false);
}

static void test_distances(void **state)
{
    (void)state;
    check_shapes(ATTENTION_F32, true);
    check_shapes(ATTENTION_BF16, true);
}

static void test_long(void **state)
{
    const struct attention_shape shape = {16, 64, ATTENTION_BF16, 16384, 64, 8192};
    struct world world;

    (void)state;
    world_open(&world, &shape, false, NULL);
    check_batch(&world, 1, 8192);
    check_batch(&world, 5, 4096);
    check_batch(&world, 60, 600);
    world_close(&world);
}

static void delete_files(const char *path)
{
    DIR *list = opendir(path);

    assert_non_null(list);
    for (struct dirent *entry; (entry = readdir(list)) != NULL;)
        (void)unlinkat(dirfd(list), entry->d_name, 0);
    (void)closedir(list);
    (void)rmdir(path);
}

/* The same numbers through a plan that was compiled and one that was read: the same bits. */
static void test_from_disk(void **state)
{
    const struct attention_shape shape = {12, 64, ATTENTION_BF16, 2048, 64, 256};
    char path[] = "/tmp/gpu_attention.XXXXXX";
    struct world made, read_back;
    uint32_t count;

    (void)state;
    assert_non_null(mkdtemp(path));
    world_open(&made, &shape, false, path);
    assert_int_equal(attention_plans_from_disk(made.attention), 0);
    world_open(&read_back, &shape, false, path);
    assert_int_equal(attention_plans_from_disk(read_back.attention),
                     attention_plan_count(read_back.attention));
    count = world_texts(&made, 30, 100);
    world_fill(&made, count);
    world_launch(&made);
    world_fetch(&made);
    check_written(&made, "compiled");
    memcpy(read_back.offsets, made.offsets, (count + 1) * sizeof(uint32_t));
    world_fill(&read_back, count);
    MUST(cudaMemcpy(read_back.dev_qkv, made.dev_qkv, 6 * hidden_of(&made) * rows_of(&made),
                    cudaMemcpyDeviceToDevice));
    world_launch(&read_back);
    world_fetch(&read_back);
    assert_memory_equal(made.out, read_back.out, 2 * hidden_of(&made) * made.turn.token_count);
    world_close(&made);
    world_close(&read_back);
    delete_files(path);
}

/* A graph captured with one batch computes another one of the same plan. */
static void check_graph(enum attention_dtype dtype)
{
    const struct attention_shape shape = {12, 32, dtype, 4096, 64, 128};
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    struct world world;
    uint32_t plan, count;

    world_open(&world, &shape, false, NULL);
    check_batch(&world, 40, 60); /* what a first launch loads is loaded */
    plan = world.turn.plan;
    MUST(cudaStreamBeginCapture(world.stream, cudaStreamCaptureModeThreadLocal));
    world_launch(&world);
    MUST(cudaStreamEndCapture(world.stream, &graph));
    MUST(cudaGraphInstantiate(&ready, graph, 0));
    for (int i = 0; i < 3; i++) {
        count = world_texts(&world, 20 + 10 * (uint32_t)i, 100);
        world_fill(&world, count);
        assert_int_equal(world.turn.plan, plan);
        MUST(cudaGraphLaunch(ready, world.stream));
        world_fetch(&world);
        check_written(&world, "graph");
        for (uint32_t text = 0; text < count; text++)
            check_text(&world, text, "graph");
    }
    MUST(cudaGraphExecDestroy(ready));
    MUST(cudaGraphDestroy(graph));
    world_close(&world);
}

static void test_graph(void **state)
{
    (void)state;
    check_graph(ATTENTION_BF16);
    check_graph(ATTENTION_F32);
}

static int print_device(void)
{
    OWNED(cudnn_device_free) struct cudnn_device *device = NULL;
    cudnnHandle_t handle = NULL;
    struct err err;

    if (cudnnCreate(&handle) || cudnn_device_new(handle, &device, &err))
        return 1;
    (void)puts(cudnn_device_text(device));
    return cudnnDestroy(handle) ? 1 : 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16),      cmocka_unit_test(test_f32),
        cmocka_unit_test(test_distances), cmocka_unit_test(test_long),
        cmocka_unit_test(test_from_disk), cmocka_unit_test(test_graph),
    };
    const char *said = getenv("HEADRACE_SEED");
    struct err err;
    int64_t seed = 0;
    int count = 0;
    cudaError_t status = cudaGetDeviceCount(&count);

    if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver) {
        (void)printf("skipped: no CUDA device: %s\n", cudaGetErrorString(status));
        return 77;
    }
    if (status != cudaSuccess) { /* there is one, and it cannot be had */
        (void)printf("%s\n", cudaGetErrorString(status));
        return 1;
    }
    if (getenv("HEADRACE_PRINT_DEVICE"))
        return print_device();
    if (!said)
        rng_secret_bytes(&seed, sizeof(seed));
    else if (settings_parse_int("HEADRACE_SEED", said, &seed, &err)) {
        (void)fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    (void)printf("HEADRACE_SEED=%lld\n", (long long)seed);
    rng_seed(&rng, (uint64_t)seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
