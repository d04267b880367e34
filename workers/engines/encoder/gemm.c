/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/gemm.h"

#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/clock.h"

#define PAGE_SIZE 4096u

/* gemm_measure: samples, and multiplications of one at least: enough to be read off a clock of
 * microseconds. */
#define SAMPLE_COUNT 7u
#define SAMPLE_PRODUCTS 50000000u

/* libgomp's; <omp.h> belongs to gcc alone, and this is the only line of it that we need. */
void omp_set_num_threads(int count);

const uint32_t GEMM_TILE_ROWS[GEMM_TILE_COUNT] = {128, 64, 32, 16};

struct gemm {
    dnnl_engine_t engine;
    dnnl_stream_t *streams; /* one a member: oneDNN does not share them between threads */
    uint32_t member_count;
};

/* oneDNN's names for a call's buffers; the pointers in them change with each call, so each
 * member has a set of its own. */
struct tile_memory {
    dnnl_memory_t x, y, z, scratch;
    void *scratch_bytes;
};

struct tile {
    dnnl_primitive_t primitive;
    struct tile_memory *memories; /* one a member */
};

struct gemm_plan {
    struct gemm *gemm;
    struct gemm_shape shape;
    dnnl_memory_desc_t packed; /* the kernels' layout of W */
    struct tile tiles[GEMM_TILE_COUNT];
};

struct gemm_weights {
    dnnl_memory_t matrix, bias;
    void *matrix_bytes, *bias_bytes;
    uint64_t size;
};

static int dnnl_code(dnnl_status_t status)
{
    switch (status) {
    case dnnl_success:
        return ERR_OK;
    case dnnl_out_of_memory:
        return ERR_MEMORY;
    case dnnl_unimplemented:
        return ERR_UNSUPPORTED;
    case dnnl_invalid_arguments:
    case dnnl_iterator_ends:
    case dnnl_runtime_error:
    case dnnl_not_required:
        break;
    }
    return ERR_INTERNAL;
}

#define DNNL_TRY(call, err)                                                                        \
    do {                                                                                           \
        dnnl_status_t status_ = (call);                                                            \
        if (status_ != dnnl_success)                                                               \
            return err_set((err), dnnl_code(status_), "oneDNN: %s: status %d", #call,              \
                           (int)status_);                                                          \
    } while (0)

static int alloc_bytes(size_t size, void **ret_bytes, struct err *err)
{
    if (posix_memalign(ret_bytes, PAGE_SIZE, size > 0 ? size : 1) != 0)
        return err_set(err, ERR_MEMORY, "%zu bytes for weights or scratch", size);
    return 0;
}

int gemm_new(uint32_t member_count, struct gemm **ret_gemm, struct err *err)
{
    OWNED(gemm_free) struct gemm *gemm = xcalloc(1, sizeof(*gemm));

    gemm->member_count = member_count;
    DNNL_TRY(dnnl_engine_create(&gemm->engine, dnnl_cpu, 0), err);
    gemm->streams = xcalloc(member_count, sizeof(dnnl_stream_t));
    for (uint32_t i = 0; i < member_count; i++)
        DNNL_TRY(dnnl_stream_create(&gemm->streams[i], gemm->engine, dnnl_stream_default_flags),
                 err);
    *ret_gemm = TAKE(gemm);
    return 0;
}

void gemm_free(struct gemm **gemm_p)
{
    struct gemm *gemm = TAKE(*gemm_p);

    if (gemm == NULL)
        return;
    for (uint32_t i = 0; gemm->streams != NULL && i < gemm->member_count; i++) {
        if (gemm->streams[i] != NULL)
            (void)dnnl_stream_destroy(gemm->streams[i]);
    }
    free(gemm->streams);
    if (gemm->engine != NULL)
        (void)dnnl_engine_destroy(gemm->engine);
    free(gemm);
}

void gemm_thread_start(void)
{
    omp_set_num_threads(1);
}

const char *gemm_isa_name(void)
{
    switch (dnnl_get_effective_cpu_isa()) {
    case dnnl_cpu_isa_sse41:
        return "sse41";
    case dnnl_cpu_isa_avx:
        return "avx";
    case dnnl_cpu_isa_avx2:
        return "avx2";
    case dnnl_cpu_isa_avx2_vnni:
        return "avx2_vnni";
    case dnnl_cpu_isa_avx512_core:
        return "avx512";
    case dnnl_cpu_isa_avx512_core_vnni:
        return "avx512_vnni";
    case dnnl_cpu_isa_avx512_core_bf16:
        return "avx512_bf16";
    case dnnl_cpu_isa_avx512_core_amx:
        return "amx";
    default:
        return "other";
    }
}

bool gemm_has_bf16(void)
{
    dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();

    return isa == dnnl_cpu_isa_avx512_core_bf16 || isa == dnnl_cpu_isa_avx512_core_amx;
}

static int add_epilogue(const struct gemm_shape *shape, const dnnl_memory_desc_t *z,
                        dnnl_post_ops_t ops, struct err *err)
{
    static const struct {
        dnnl_alg_kind_t kind;
        float alpha;
    } activations[] = {
        [ENCODER_GELU] = {dnnl_eltwise_gelu_erf, 0},
        [ENCODER_GELU_TANH] = {dnnl_eltwise_gelu_tanh, 0},
        [ENCODER_RELU] = {dnnl_eltwise_relu, 0},
        [ENCODER_SILU] = {dnnl_eltwise_swish, 1},
    };

    switch (shape->epilogue) {
    case GEMM_STORE:
        break;
    case GEMM_ADD:
        DNNL_TRY(dnnl_post_ops_append_sum(ops, 1.0f), err);
        break;
    case GEMM_ACTIVATION:
        DNNL_TRY(dnnl_post_ops_append_eltwise(ops, 1.0f, activations[shape->activation].kind,
                                              activations[shape->activation].alpha, 0.0f),
                 err);
        break;
    case GEMM_MULTIPLY:
        DNNL_TRY(dnnl_post_ops_append_binary(ops, dnnl_binary_mul, z), err);
        break;
    }
    return 0;
}

static int describe_z(const struct gemm_shape *shape, uint32_t rows, dnnl_memory_desc_t *ret_z,
                      struct err *err)
{
    const dnnl_dims_t dims = {rows, shape->output};

    DNNL_TRY(dnnl_memory_desc_init_by_tag(ret_z, 2, dims, shape->output_bf16 ? dnnl_bf16 : dnnl_f32,
                                          dnnl_ab),
             err);
    return 0;
}

static int describe(const struct gemm_shape *shape, uint32_t rows, dnnl_primitive_attr_t attr,
                    dnnl_engine_t engine, const dnnl_memory_desc_t *packed,
                    dnnl_primitive_desc_t *ret_desc, struct err *err)
{
    const dnnl_dims_t x_dims = {rows, shape->input}, y_dims = {rows, shape->output};
    const dnnl_dims_t w_dims = {shape->input, shape->output}, b_dims = {1, shape->output};
    const dnnl_data_type_t in = shape->input_bf16 ? dnnl_bf16 : dnnl_f32;
    const dnnl_data_type_t out = shape->output_bf16 ? dnnl_bf16 : dnnl_f32;
    dnnl_memory_desc_t x, w, b, y;
    dnnl_matmul_desc_t matmul;

    DNNL_TRY(dnnl_memory_desc_init_by_tag(&x, 2, x_dims, in, dnnl_ab), err);
    DNNL_TRY(dnnl_memory_desc_init_by_tag(&w, 2, w_dims, in, dnnl_format_tag_any), err);
    DNNL_TRY(dnnl_memory_desc_init_by_tag(&b, 2, b_dims, dnnl_f32, dnnl_ab), err);
    DNNL_TRY(dnnl_memory_desc_init_by_tag(&y, 2, y_dims, out, dnnl_ab), err);
    if (packed != NULL)
        w = *packed;
    DNNL_TRY(dnnl_matmul_desc_init(&matmul, &x, &w, &b, &y), err);
    DNNL_TRY(dnnl_primitive_desc_create(ret_desc, &matmul, attr, engine, NULL), err);
    return 0;
}

static int init_memory(const struct gemm *gemm, const_dnnl_primitive_desc_t desc,
                       struct tile_memory *memory, struct err *err)
{
    const dnnl_memory_desc_t *x = dnnl_primitive_desc_query_md(desc, dnnl_query_src_md, 0);
    const dnnl_memory_desc_t *y = dnnl_primitive_desc_query_md(desc, dnnl_query_dst_md, 0);
    const dnnl_memory_desc_t *scratch = dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md,
                                                                     0);
    int r;

    r = alloc_bytes(dnnl_memory_desc_get_size(scratch), &memory->scratch_bytes, err);
    if (r < 0)
        return r;
    DNNL_TRY(dnnl_memory_create(&memory->x, x, gemm->engine, DNNL_MEMORY_NONE), err);
    DNNL_TRY(dnnl_memory_create(&memory->y, y, gemm->engine, DNNL_MEMORY_NONE), err);
    DNNL_TRY(dnnl_memory_create(&memory->z, y, gemm->engine, DNNL_MEMORY_NONE), err);
    DNNL_TRY(dnnl_memory_create(&memory->scratch, scratch, gemm->engine, memory->scratch_bytes),
             err);
    return 0;
}

static int init_tile(struct gemm_plan *plan, const_dnnl_primitive_desc_t desc, struct tile *tile,
                     struct err *err)
{
    tile->memories = xcalloc(plan->gemm->member_count, sizeof(*tile->memories));
    DNNL_TRY(dnnl_primitive_create(&tile->primitive, desc), err);
    for (uint32_t i = 0; i < plan->gemm->member_count; i++) {
        int r = init_memory(plan->gemm, desc, &tile->memories[i], err);

        if (r < 0)
            return r;
    }
    return 0;
}

/* What happens to a product before it is stored. */
static int make_attr(const struct gemm_shape *shape, uint32_t rows, dnnl_primitive_attr_t *ret_attr,
                     struct err *err)
{
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    dnnl_memory_desc_t z;
    int r;

    r = describe_z(shape, rows, &z, err);
    if (r == 0 && (dnnl_primitive_attr_create(&attr) != dnnl_success ||
                   dnnl_post_ops_create(&ops) != dnnl_success))
        r = err_set(err, ERR_MEMORY, "oneDNN: attributes of a kernel");
    if (r == 0)
        r = add_epilogue(shape, &z, ops, err);
    if (r == 0 &&
        (dnnl_primitive_attr_set_post_ops(attr, ops) != dnnl_success ||
         dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user) != dnnl_success))
        r = err_set(err, ERR_INTERNAL, "oneDNN: attributes of a kernel are refused");
    (void)dnnl_post_ops_destroy(ops);
    *ret_attr = attr;
    return r;
}

/* The largest tile chooses the layout of W; it depends on the columns only, so the others
 * take it as it is. */
static int init_tiles(struct gemm_plan *plan, struct err *err)
{
    for (uint32_t i = 0; i < GEMM_TILE_COUNT; i++) {
        dnnl_primitive_attr_t attr = NULL;
        dnnl_primitive_desc_t desc = NULL;
        int r;

        r = make_attr(&plan->shape, GEMM_TILE_ROWS[i], &attr, err);
        if (r == 0)
            r = describe(&plan->shape, GEMM_TILE_ROWS[i], attr, plan->gemm->engine,
                         i > 0 ? &plan->packed : NULL, &desc, err);
        (void)dnnl_primitive_attr_destroy(attr);
        if (r < 0)
            return r;
        if (i == 0)
            plan->packed = *dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0);
        r = init_tile(plan, desc, &plan->tiles[i], err);
        (void)dnnl_primitive_desc_destroy(desc);
        if (r < 0)
            return r;
    }
    return 0;
}

int gemm_plan_new(struct gemm *gemm, const struct gemm_shape *shape, struct gemm_plan **ret_plan,
                  struct err *err)
{
    OWNED(gemm_plan_free) struct gemm_plan *plan = xcalloc(1, sizeof(*plan));
    int r;

    plan->gemm = gemm;
    plan->shape = *shape;
    r = init_tiles(plan, err);
    if (r < 0)
        return err_wrap(err, "%u to %u columns", shape->input, shape->output);
    *ret_plan = TAKE(plan);
    return 0;
}

static void memory_done(dnnl_memory_t memory)
{
    if (memory != NULL)
        (void)dnnl_memory_destroy(memory);
}

void gemm_plan_free(struct gemm_plan **plan_p)
{
    struct gemm_plan *plan = TAKE(*plan_p);

    if (plan == NULL)
        return;
    for (uint32_t i = 0; i < GEMM_TILE_COUNT; i++) {
        struct tile *tile = &plan->tiles[i];

        for (uint32_t j = 0; tile->memories != NULL && j < plan->gemm->member_count; j++) {
            memory_done(tile->memories[j].x);
            memory_done(tile->memories[j].y);
            memory_done(tile->memories[j].z);
            memory_done(tile->memories[j].scratch);
            free(tile->memories[j].scratch_bytes);
        }
        free(tile->memories);
        if (tile->primitive != NULL)
            (void)dnnl_primitive_destroy(tile->primitive);
    }
    free(plan);
}

void gemm_weights_free(struct gemm_weights **weights_p)
{
    struct gemm_weights *weights = TAKE(*weights_p);

    if (weights == NULL)
        return;
    memory_done(weights->matrix);
    memory_done(weights->bias);
    free(weights->matrix_bytes);
    free(weights->bias_bytes);
    free(weights);
}

static int reorder(const struct gemm *gemm, dnnl_memory_t from, dnnl_memory_t to, struct err *err)
{
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
    const dnnl_memory_desc_t *from_desc, *to_desc;
    dnnl_primitive_desc_t desc = NULL;
    dnnl_primitive_t primitive = NULL;
    dnnl_status_t status;

    DNNL_TRY(dnnl_memory_get_memory_desc(from, &from_desc), err);
    DNNL_TRY(dnnl_memory_get_memory_desc(to, &to_desc), err);
    DNNL_TRY(dnnl_reorder_primitive_desc_create(&desc, from_desc, gemm->engine, to_desc,
                                                gemm->engine, NULL),
             err);
    status = dnnl_primitive_create(&primitive, desc);
    (void)dnnl_primitive_desc_destroy(desc);
    if (status == dnnl_success)
        status = dnnl_primitive_execute(primitive, gemm->streams[0], COUNT_OF(args), args);
    if (primitive != NULL)
        (void)dnnl_primitive_destroy(primitive);
    DNNL_TRY(status, err);
    return 0;
}

static int pack_matrix(struct gemm_plan *plan, const float *matrix, struct gemm_weights *weights,
                       struct err *err)
{
    const dnnl_dims_t dims = {plan->shape.input, plan->shape.output};
    const size_t size = dnnl_memory_desc_get_size(&plan->packed);
    dnnl_memory_desc_t plain;
    dnnl_memory_t from = NULL;
    int r;

    r = alloc_bytes(size, &weights->matrix_bytes, err);
    if (r < 0)
        return r;
    weights->size += size;
    DNNL_TRY(dnnl_memory_create(&weights->matrix, &plan->packed, plan->gemm->engine,
                                weights->matrix_bytes),
             err);
    /* Checkpoints hold the transpose: one row for each column of y. */
    DNNL_TRY(dnnl_memory_desc_init_by_tag(&plain, 2, dims, dnnl_f32, dnnl_ba), err);
    DNNL_TRY(dnnl_memory_create(&from, &plain, plan->gemm->engine, (void *)(uintptr_t)matrix), err);
    r = reorder(plan->gemm, from, weights->matrix, err);
    memory_done(from);
    return r;
}

int gemm_weights_new(struct gemm_plan *plan, const float *matrix, const float *bias,
                     struct gemm_weights **ret_weights, struct err *err)
{
    OWNED(gemm_weights_free) struct gemm_weights *weights = xcalloc(1, sizeof(*weights));
    const dnnl_dims_t dims = {1, plan->shape.output};
    const size_t bias_size = plan->shape.output * sizeof(float);
    dnnl_memory_desc_t desc;
    int r;

    r = pack_matrix(plan, matrix, weights, err);
    if (r < 0)
        return r;
    weights->bias_bytes = xmemdup(bias, bias_size);
    weights->size += bias_size;
    DNNL_TRY(dnnl_memory_desc_init_by_tag(&desc, 2, dims, dnnl_f32, dnnl_ab), err);
    DNNL_TRY(dnnl_memory_create(&weights->bias, &desc, plan->gemm->engine, weights->bias_bytes),
             err);
    *ret_weights = TAKE(weights);
    return 0;
}

uint64_t gemm_weights_size(const struct gemm_weights *weights)
{
    return weights->size;
}

static int run(struct gemm_plan *plan, const struct gemm_weights *weights, uint32_t member,
               uint32_t tile, const void *x, const void *z, void *y, struct err *err)
{
    const struct tile_memory *memory = &plan->tiles[tile].memories[member];
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, memory->x},
        {DNNL_ARG_WEIGHTS, weights->matrix},
        {DNNL_ARG_BIAS, weights->bias},
        {DNNL_ARG_DST, memory->y},
        {DNNL_ARG_SCRATCHPAD, memory->scratch},
        {DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, memory->z},
    };

    assert(member < plan->gemm->member_count && tile < GEMM_TILE_COUNT);
    DNNL_TRY(dnnl_memory_set_data_handle(memory->x, (void *)(uintptr_t)x), err);
    DNNL_TRY(dnnl_memory_set_data_handle(memory->y, y), err);
    if (z != NULL)
        DNNL_TRY(dnnl_memory_set_data_handle(memory->z, (void *)(uintptr_t)z), err);
    DNNL_TRY(dnnl_primitive_execute(plan->tiles[tile].primitive, plan->gemm->streams[member],
                                    (int)COUNT_OF(args) - (z == NULL), args),
             err);
    return 0;
}

int gemm_run(struct gemm_plan *plan, const struct gemm_weights *weights, uint32_t member,
             uint32_t tile, const void *x, void *y, struct err *err)
{
    assert(plan->shape.epilogue != GEMM_MULTIPLY);
    return run(plan, weights, member, tile, x, NULL, y, err);
}

int gemm_run_multiply(struct gemm_plan *plan, const struct gemm_weights *weights, uint32_t member,
                      uint32_t tile, const void *x, const void *z, void *y, struct err *err)
{
    assert(plan->shape.epilogue == GEMM_MULTIPLY && z != y);
    return run(plan, weights, member, tile, x, z, y, err);
}

/* The fastest of SAMPLE_COUNT samples; x and y are f32's size, which is enough for either type. */
static int time_tile(struct gemm_plan *plan, const struct gemm_weights *weights, const float *x,
                     float *y, uint64_t *ret_ns, struct err *err)
{
    const uint64_t products = (uint64_t)GEMM_TILE_ROWS[0] * plan->shape.input * plan->shape.output;
    const uint64_t run_count = 1 + SAMPLE_PRODUCTS / products;
    uint64_t best_us = UINT64_MAX;
    int r = 0;

    for (uint32_t sample = 0; r == 0 && sample < SAMPLE_COUNT; sample++) {
        const uint64_t start_us = clock_mono_us();
        uint64_t us;

        for (uint64_t i = 0; r == 0 && i < run_count; i++)
            r = gemm_run(plan, weights, 0, 0, x, y, err);
        us = clock_mono_us() - start_us;
        best_us = us < best_us ? us : best_us;
    }
    *ret_ns = best_us * 1000 / run_count;
    return r;
}

int gemm_measure(const struct gemm_shape *shape, uint64_t *ret_ns, struct err *err)
{
    const size_t count = (size_t)shape->input * shape->output, rows = GEMM_TILE_ROWS[0];
    OWNED(gemm_free) struct gemm *gemm = NULL;
    OWNED(gemm_plan_free) struct gemm_plan *plan = NULL;
    OWNED(gemm_weights_free) struct gemm_weights *weights = NULL;
    OWNED(mem_free) float *matrix = xcalloc(count, sizeof(*matrix));
    OWNED(mem_free) float *bias = xcalloc(shape->output, sizeof(*bias));
    OWNED(mem_free) float *x = xcalloc(rows * shape->input, sizeof(*x));
    OWNED(mem_free) float *y = xcalloc(rows * shape->output, sizeof(*y));
    int r;

    gemm_thread_start();
    for (size_t i = 0; i < count; i++)
        matrix[i] = (float)(i % 61) / 61 - 0.5f;
    r = gemm_new(1, &gemm, err);
    if (r == 0)
        r = gemm_plan_new(gemm, shape, &plan, err);
    if (r == 0)
        r = gemm_weights_new(plan, matrix, bias, &weights, err);
    return r < 0 ? r : time_tile(plan, weights, x, y, ret_ns, err);
}
