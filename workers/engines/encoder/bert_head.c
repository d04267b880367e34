/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What stands on top of the encoder where it does not make vectors: labels of a text, or of each
 * token. A few products of one row each, in f32 and beside a forward pass nothing, so that they
 * need no packed layout and no instruction set of their own.
 */

#include <math.h>

#include "workers/engines/encoder/bert_int.h"

#define PARTS 16

/* Sixteen sums that the compiler may keep in registers side by side. */
static float dot(const float *a, const float *b, uint32_t size)
{
    float parts[PARTS] = {0}, sum = 0;
    uint32_t i = 0;

    for (; i + PARTS <= size; i += PARTS) {
        for (uint32_t j = 0; j < PARTS; j++)
            parts[j] += a[i + j] * b[i + j];
    }
    for (; i < size; i++)
        parts[i % PARTS] += a[i] * b[i];
    for (uint32_t j = 0; j < PARTS; j++)
        sum += parts[j];
    return sum;
}

static void put_labels(const struct bert *bert, const float *x, float *row)
{
    const uint32_t hidden = bert->config.hidden;

    for (uint32_t i = 0; i < bert->config.label_count; i++)
        row[i] = dot(bert->head.labels + (size_t)i * hidden, x, hidden) + bert->head.labels_bias[i];
}

static float activate(enum encoder_activation activation, float x)
{
    switch (activation) {
    case ENCODER_GELU:
        return 0.5f * x * (1 + erff(x * 0.70710678118654752f));
    case ENCODER_GELU_TANH:
        return 0.5f * x * (1 + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case ENCODER_RELU:
        return x > 0 ? x : 0;
    case ENCODER_SILU:
        break;
    }
    return x / (1 + expf(-x));
}

/* What comes before the labels: each family has its own. */
static void run_dense(const struct bert *bert, const float *x, float *dense)
{
    const uint32_t hidden = bert->config.hidden;

    for (uint32_t i = 0; i < hidden; i++) {
        const float sum = dot(bert->head.dense + (size_t)i * hidden, x, hidden) +
                          bert->head.dense_bias[i];

        if (bert->config.family == ENCODER_FAMILY_MODERNBERT)
            dense[i] = activate(bert->config.head_activation, sum);
        else if (bert->config.family == ENCODER_FAMILY_DISTILBERT)
            dense[i] = sum > 0 ? sum : 0;
        else
            dense[i] = tanhf(sum);
    }
    if (bert->head.gain != NULL)
        bert->kernels->norm(dense, dense, hidden, bert->head.gain, bert->head.bias,
                            bert->config.norm_eps, NULL);
}

void bert_head_classify(const struct bert *bert, const float *x, uint32_t token_count, float *row)
{
    float pooled[ENCODER_HIDDEN_MAX], dense[ENCODER_HIDDEN_MAX];

    bert_pool(bert, bert->config.head_pooling, x, token_count, pooled);
    run_dense(bert, pooled, dense);
    put_labels(bert, dense, row);
}

void bert_head_tokens(const struct bert *bert, const float *x, uint32_t token_count, float *rows)
{
    float dense[ENCODER_HIDDEN_MAX];

    for (uint32_t t = 0; t < token_count; t++) {
        const float *token = x + (size_t)t * bert->config.hidden;

        if (bert->head.dense != NULL) {
            run_dense(bert, token, dense);
            token = dense;
        }
        put_labels(bert, token, rows + (size_t)t * bert->config.label_count);
    }
}
