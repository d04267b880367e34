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

void bert_head_classify(const struct bert *bert, const float *x, float *row)
{
    const uint32_t hidden = bert->config.hidden;
    float dense[ENCODER_HIDDEN_MAX];

    for (uint32_t i = 0; i < hidden; i++) {
        const float sum = dot(bert->head.dense + (size_t)i * hidden, x, hidden) +
                          bert->head.dense_bias[i];

        if (bert->config.family == ENCODER_FAMILY_DISTILBERT)
            dense[i] = sum > 0 ? sum : 0;
        else
            dense[i] = tanhf(sum);
    }
    put_labels(bert, dense, row);
}

void bert_head_tokens(const struct bert *bert, const float *x, uint32_t token_count, float *rows)
{
    for (uint32_t t = 0; t < token_count; t++)
        put_labels(bert, x + (size_t)t * bert->config.hidden,
                   rows + (size_t)t * bert->config.label_count);
}
