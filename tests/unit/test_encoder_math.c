/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: attention, norm and products are right on every instruction set that this CPU has, for
 * every shape, and the team runs each turn once.
 * Method: the same sums in double, written down plainly; sizes around each block's edge.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "workers/engines/encoder/bert_kernels.h"
#include "workers/engines/encoder/gemm.h"
#include "workers/engines/encoder/team.h"

static struct rng rng;

static float *random_floats(size_t count, double size)
{
    float *values = aligned_alloc(BERT_SCRATCH_ALIGN, (count * sizeof(float) + 63) / 64 * 64);

    assert_non_null(values);
    for (size_t i = 0; i < count; i++)
        values[i] = (float)((rng_unit(&rng) * 2 - 1) * size);
    return values;
}

static float from_bf16(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* q or k of all tokens, turned by their rows of turns. */
static double *turn_plainly(const struct bert_attention *a, const float *from)
{
    const uint32_t size = a->head_size, half = size / 2;
    double *to = xcalloc((size_t)a->token_count * size, sizeof(*to));

    for (size_t t = 0; t < a->token_count; t++) {
        const float *row = from + t * a->row_stride;

        for (uint32_t d = 0; d < size; d++) {
            const double other = d < half ? -(double)row[half + d] : (double)row[d % half];
            const float *turns = a->turns + t * size + d % half;

            to[t * size + d] = a->turns == NULL ? (double)row[d]
                                                : (double)row[d] * (double)turns[0] +
                                                      other * (double)turns[half];
        }
    }
    return to;
}

/* One output row of softmax(q k' scale + bias) v, in double. */
static void attend_plainly(const struct bert_attention *a, const double *q, const double *k,
                           uint32_t t, double *to)
{
    OWNED(mem_free) double *scores = xcalloc(a->token_count, sizeof(double));
    double high = -INFINITY, sum = 0;

    for (uint32_t i = 0; i < a->token_count; i++) {
        for (uint32_t d = 0; d < a->head_size; d++)
            scores[i] += q[t * a->head_size + d] * k[i * a->head_size + d];
        scores[i] *= (double)a->scale;
        scores[i] += a->bias != NULL ? (double)a->bias[(int)i - (int)t] : 0;
        if (a->window > 0 && (i + a->window < t || t + a->window < i))
            scores[i] = -INFINITY;
        high = fmax(high, scores[i]);
    }
    for (uint32_t i = 0; i < a->token_count; i++)
        sum += exp(scores[i] - high);
    for (uint32_t d = 0; d < a->head_size; d++) {
        to[d] = 0;
        for (uint32_t i = 0; i < a->token_count; i++)
            to[d] += exp(scores[i] - high) / sum * (double)a->v[i * a->row_stride + d];
    }
}

static void check_attention(const struct bert_kernels *kernels, uint32_t tokens, uint32_t size,
                            double spread, bool biased, bool is_turned, uint32_t window)
{
    const size_t stride = 3 * size + 5;
    OWNED(mem_free) float *qkv = random_floats(tokens * stride, spread);
    OWNED(mem_free) float *context = random_floats(tokens * size, 1);
    OWNED(mem_free) float *bias = random_floats(2 * (size_t)tokens - 1, 3);
    OWNED(mem_free) float *turns = random_floats((size_t)tokens * size, 0.7);
    OWNED(mem_free) uint16_t *rounded = xcalloc(tokens * size, sizeof(uint16_t));
    OWNED(mem_free)
    float *scratch = random_floats(bert_attention_scratch_size(tokens, size) / sizeof(float), 1e30);
    OWNED(mem_free) double *want = xcalloc(size, sizeof(double));
    struct bert_attention attention = {
        .q = qkv,
        .k = qkv + size,
        .v = qkv + 2 * (size_t)size,
        .row_stride = stride,
        .token_count = tokens,
        .head_size = size,
        .scale = 1 / sqrtf((float)size),
        .bias = biased ? bias + tokens - 1 : NULL,
        .turns = is_turned ? turns : NULL,
        .window = window,
        .context = context,
        .context_stride = size,
        .scratch = scratch,
    };

    OWNED(mem_free) double *q = turn_plainly(&attention, attention.q);
    OWNED(mem_free) double *k = turn_plainly(&attention, attention.k);

    /* A score's rounding grows with q and k, and moves the weights of v by as much. */
    const double tolerance = 2e-6 * spread * spread * spread;

    kernels->attend(&attention);
    attention.context = NULL;
    attention.context_bf16 = rounded;
    kernels->attend(&attention);
    for (uint32_t t = 0; t < tokens; t++) {
        attend_plainly(&attention, q, k, t, want);
        for (uint32_t d = 0; d < size; d++) {
            const double got = (double)context[t * size + d];

            if (fabs(got - want[d]) > tolerance ||
                fabs((double)from_bf16(rounded[t * size + d]) - got) > fabs(got) / 250)
                fail_msg("%s, %u tokens of %u: [%u][%u] is %.9g and %.9g, want %.9g", kernels->name,
                         tokens, size, t, d, got, (double)from_bf16(rounded[t * size + d]),
                         want[d]);
        }
    }
}

static void test_attention(void **state)
{
    static const uint32_t token_counts[] = {1, 2, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100, 256};
    static const uint32_t sizes[] = {4, 8, 16, 24, 32, 64, 96};
    static const uint32_t windows[] = {0, 1, 5, 16, 64};

    (void)state;
    for (int k = 0; bert_kernels_at(k) != NULL; k++) {
        for (size_t i = 0; i < COUNT_OF(token_counts); i++) {
            for (size_t j = 0; j < COUNT_OF(sizes); j++) {
                check_attention(bert_kernels_at(k), token_counts[i], sizes[j], 1, false, false, 0);
                check_attention(bert_kernels_at(k), token_counts[i], sizes[j], 10, false, false, 0);
                check_attention(bert_kernels_at(k), token_counts[i], sizes[j], 1, true, false, 0);
                for (size_t w = 0; sizes[j] % 16 == 8 && w < COUNT_OF(windows); w++)
                    check_attention(bert_kernels_at(k), token_counts[i], sizes[j], 1, false, true,
                                    windows[w]);
            }
        }
        (void)printf("kernels %s: attention is right\n", bert_kernels_at(k)->name);
    }
}

static void check_norm(const struct bert_kernels *kernels, uint32_t size)
{
    OWNED(mem_free) float *row = random_floats(size, 3);
    OWNED(mem_free) float *gain = random_floats(size, 1);
    OWNED(mem_free) float *bias = random_floats(size, 1);
    OWNED(mem_free) float *got = xmemdup(row, size * sizeof(float));
    OWNED(mem_free) uint16_t *rounded = xcalloc(size, sizeof(uint16_t));
    double mean = 0, square = 0;

    kernels->norm(got, got, size, gain, bias, 1e-12f, rounded);
    for (uint32_t i = 0; i < size; i++)
        mean += (double)row[i] / size;
    for (uint32_t i = 0; i < size; i++)
        square += ((double)row[i] - mean) * ((double)row[i] - mean) / size;
    for (uint32_t i = 0; i < size; i++) {
        double want = ((double)row[i] - mean) / sqrt(square + 1e-12) * (double)gain[i] +
                      (double)bias[i];

        if (fabs((double)got[i] - want) > 1e-5 ||
            fabs((double)(from_bf16(rounded[i]) - got[i])) > fabs((double)got[i]) / 250)
            fail_msg("%s, %u wide: [%u] is %.9g, want %.9g", kernels->name, size, i, (double)got[i],
                     want);
    }
}

static void test_norm(void **state)
{
    static const uint32_t sizes[] = {2, 4, 15, 16, 17, 32, 100, 384, 768};

    (void)state;
    for (int k = 0; bert_kernels_at(k) != NULL; k++) {
        for (size_t i = 0; i < COUNT_OF(sizes); i++)
            check_norm(bert_kernels_at(k), sizes[i]);
    }
}

static double activate(const struct gemm_shape *shape, double x)
{
    if (shape->epilogue != GEMM_ACTIVATION)
        return x;
    switch (shape->activation) {
    case ENCODER_GELU:
        return x * 0.5 * (1 + erf(x / sqrt(2)));
    case ENCODER_GELU_TANH:
        return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case ENCODER_SILU:
        return x / (1 + exp(-x));
    case ENCODER_RELU:
        break;
    }
    return x > 0 ? x : 0;
}

static void check_product(const struct gemm_shape *shape, uint32_t tile)
{
    const uint32_t rows = GEMM_TILE_ROWS[tile], in = shape->input, out = shape->output;
    OWNED(gemm_free) struct gemm *gemm = NULL;
    OWNED(gemm_plan_free) struct gemm_plan *plan = NULL;
    OWNED(gemm_weights_free) struct gemm_weights *weights = NULL;
    OWNED(mem_free) float *matrix = random_floats((size_t)in * out, 0.2);
    OWNED(mem_free) float *bias = random_floats(out, 1);
    OWNED(mem_free) float *x = random_floats((size_t)rows * in, 1);
    OWNED(mem_free) float *y = random_floats((size_t)rows * out, 1);
    OWNED(mem_free) float *z = random_floats((size_t)rows * out, 1);
    OWNED(mem_free) float *old = xmemdup(y, (size_t)rows * out * sizeof(float));
    struct err err = {0};

    gemm_thread_start();
    if (gemm_new(1, &gemm, &err) < 0 || gemm_plan_new(gemm, shape, &plan, &err) < 0 ||
        gemm_weights_new(plan, matrix, bias, &weights, &err) < 0 ||
        (shape->epilogue == GEMM_MULTIPLY ? gemm_run_multiply(plan, weights, 0, tile, x, z, y, &err)
                                          : gemm_run(plan, weights, 0, tile, x, y, &err)) < 0)
        fail_msg("%s", err.text);
    for (uint32_t i = 0; i < rows; i++) {
        for (uint32_t j = 0; j < out; j++) {
            double want = (double)bias[j];

            for (uint32_t k = 0; k < in; k++)
                want += (double)x[i * in + k] * (double)matrix[j * in + k];
            want = activate(shape, want);
            if (shape->epilogue == GEMM_ADD)
                want += (double)old[i * out + j];
            if (shape->epilogue == GEMM_MULTIPLY)
                want *= (double)z[i * out + j];
            if (fabs((double)y[i * out + j] - want) > 2e-5)
                fail_msg("%u rows, %u to %u, epilogue %d: [%u][%u] is %.9g, want %.9g", rows, in,
                         out, (int)shape->epilogue, i, j, (double)y[i * out + j], want);
        }
    }
}

static void test_products(void **state)
{
    static const struct gemm_shape shapes[] = {
        {32, 96, GEMM_STORE, ENCODER_GELU, false, false},
        {24, 40, GEMM_ADD, ENCODER_GELU, false, false},
        {32, 64, GEMM_ACTIVATION, ENCODER_GELU, false, false},
        {32, 64, GEMM_ACTIVATION, ENCODER_GELU_TANH, false, false},
        {17, 33, GEMM_ACTIVATION, ENCODER_RELU, false, false},
        {32, 64, GEMM_ACTIVATION, ENCODER_SILU, false, false},
        {32, 64, GEMM_MULTIPLY, ENCODER_GELU, false, false},
        {17, 33, GEMM_MULTIPLY, ENCODER_GELU, false, false},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        for (uint32_t tile = 0; tile < GEMM_TILE_COUNT; tile++)
            check_product(&shapes[i], tile);
    }
}

#define TURN_MAX 1000u

struct count {
    _Atomic uint32_t turns[TURN_MAX];
    _Atomic bool bad_member;
    uint32_t member_count;
};

static void count_turn(void *context, uint32_t member, uint32_t index)
{
    struct count *count = context;

    atomic_fetch_add(&count->turns[index], 1);
    if (member >= count->member_count)
        atomic_store(&count->bad_member, true);
}

static void test_team_runs_each_turn_once(void **state)
{
    static const uint32_t member_counts[] = {1, 2, 3, 8};
    static const uint32_t turn_counts[] = {0, 1, 2, 3, 8, 1000};

    (void)state;
    for (size_t m = 0; m < COUNT_OF(member_counts); m++) {
        OWNED(team_free) struct team *team = NULL;
        struct err err;

        assert_int_equal(team_new(member_counts[m], NULL, &team, &err), 0);
        assert_int_equal(team_member_count(team), member_counts[m]);
        for (uint32_t round = 0; round < 300; round++) {
            const uint32_t turns = turn_counts[round % COUNT_OF(turn_counts)];
            struct count count = {.member_count = member_counts[m]};

            team_run(team, turns, count_turn, &count);
            for (uint32_t i = 0; i < TURN_MAX; i++)
                assert_int_equal(count.turns[i], i < turns);
            assert_false(count.bad_member);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_team_runs_each_turn_once),
    };

    rng_seed(&rng, 20261123);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
