/* SPDX-License-Identifier: Apache-2.0 */
#include "workers/engines/encoder_cuda/attention_shape.h"

#include "base/assert.h"

#define LENGTH_MIN 128 /* rows that a block of cuDNN's kernels computes at once */
#define TEXTS_MIN 16

static int check_field(const char *name, uint32_t value, uint32_t max, struct err *err)
{
    if (value >= 1 && value <= max)
        return 0;
    return err_set(err, ERR_RANGE, "attention: %s is %u; it must be 1 to %u", name, value, max);
}

int attention_shape_check(const struct attention_shape *shape, struct err *err)
{
    uint64_t row;

    if (check_field("head_count", shape->head_count, ATTENTION_HEAD_COUNT_MAX, err) ||
        check_field("head_dim", shape->head_dim, ATTENTION_HEAD_DIM_MAX, err) ||
        check_field("length_max", shape->length_max, ATTENTION_LENGTH_MAX, err) ||
        check_field("text_count_max", shape->text_count_max, ATTENTION_TEXT_COUNT_MAX, err))
        return err->code;
    if (shape->dtype == ATTENTION_BF16 && shape->head_dim % 8 != 0)
        return err_set(err, ERR_RANGE,
                       "attention: head_dim is %u; in bf16 it must be a multiple of 8",
                       shape->head_dim);
    /* Offsets into qkv are int32. */
    row = 3ull * shape->head_count * shape->head_dim;
    return check_field("token_count_max", shape->token_count_max, (uint32_t)(INT32_MAX / row), err);
}

static uint32_t grow(uint32_t value, uint32_t factor, uint32_t max)
{
    return value > max / factor ? max : value * factor;
}

void attention_buckets_make(const struct attention_shape *shape,
                            struct attention_buckets *ret_buckets)
{
    uint32_t length = shape->length_max < LENGTH_MIN ? shape->length_max : LENGTH_MIN;
    uint32_t length_below = 0;

    ret_buckets->count = 0;
    for (;;) {
        uint32_t texts = shape->text_count_max < TEXTS_MIN ? shape->text_count_max : TEXTS_MIN;
        uint32_t texts_below = 0;

        /* The smallest batch that needs the pair: one text of length_below + 1 tokens and
         * texts_below of one. */
        while (length_below + 1 + texts_below <= shape->token_count_max) {
            assert(ret_buckets->count < ATTENTION_PLAN_MAX);
            ret_buckets->list[ret_buckets->count++] = (struct attention_bucket){texts, length};
            if (texts == shape->text_count_max)
                break;
            texts_below = texts;
            texts = grow(texts, 4, shape->text_count_max);
        }
        if (length == shape->length_max)
            return;
        length_below = length;
        length = grow(length, 2, shape->length_max);
    }
}

static size_t align16(size_t size)
{
    return (size + 15) & ~(size_t)15;
}

struct attention_index attention_index_of(uint32_t texts)
{
    struct attention_index index = {0};

    index.qkv_offsets = align16(texts * sizeof(int32_t));
    index.out_offsets = index.qkv_offsets + align16((texts + 1) * sizeof(int32_t));
    index.size = index.out_offsets + align16((texts + 1) * sizeof(int32_t));
    return index;
}

/* The longest text, or an error. */
static int measure(const struct attention_shape *shape, const uint32_t *offsets,
                   uint32_t text_count, uint32_t *ret_length, struct err *err)
{
    uint32_t longest = 0;

    if (text_count < 1 || text_count > shape->text_count_max)
        return err_set(err, ERR_RANGE, "attention: a batch of %u texts; it may have 1 to %u",
                       text_count, shape->text_count_max);
    if (offsets[0] != 0)
        return err_set(err, ERR_RANGE, "attention: the first text begins at row %u, not 0",
                       offsets[0]);
    for (uint32_t i = 0; i < text_count; i++) {
        uint32_t length = offsets[i + 1] > offsets[i] ? offsets[i + 1] - offsets[i] : 0;

        if (length < 1 || length > shape->length_max)
            return err_set(err, ERR_RANGE,
                           "attention: text %u has rows %u to %u; it may have 1 to %u rows", i,
                           offsets[i], offsets[i + 1], shape->length_max);
        if (length > longest)
            longest = length;
    }
    if (offsets[text_count] > shape->token_count_max)
        return err_set(err, ERR_RANGE, "attention: a batch of %u tokens; it may have %u",
                       offsets[text_count], shape->token_count_max);
    *ret_length = longest;
    return 0;
}

static uint32_t bucket_find(const struct attention_buckets *buckets, uint32_t text_count,
                            uint32_t length)
{
    for (uint32_t i = 0; i < buckets->count; i++) /* shortest first, then fewest texts */
        if (buckets->list[i].length >= length && buckets->list[i].texts >= text_count)
            return i;
    NEVER("attention: no plan for a batch within the shape");
}

int attention_turn_make(const struct attention_shape *shape,
                        const struct attention_buckets *buckets, const uint32_t *offsets,
                        uint32_t text_count, void *index, struct attention_turn *ret_turn,
                        struct err *err)
{
    uint32_t out_row = shape->head_count * shape->head_dim, length, plan, texts;
    struct attention_index at;
    int32_t *lengths, *qkv_offsets, *out_offsets;

    if (measure(shape, offsets, text_count, &length, err))
        return err->code;
    plan = bucket_find(buckets, text_count, length);
    texts = buckets->list[plan].texts;
    at = attention_index_of(texts);
    lengths = (int32_t *)((char *)index + at.lengths);
    qkv_offsets = (int32_t *)((char *)index + at.qkv_offsets);
    out_offsets = (int32_t *)((char *)index + at.out_offsets);
    for (uint32_t i = 0; i <= texts; i++) {
        uint32_t row = offsets[i < text_count ? i : text_count];

        qkv_offsets[i] = (int32_t)(3 * out_row * row);
        out_offsets[i] = (int32_t)(out_row * row);
        if (i < texts)
            lengths[i] = i < text_count ? (int32_t)(offsets[i + 1] - row) : 0;
    }
    *ret_turn = (struct attention_turn){.plan = plan,
                                        .text_count = text_count,
                                        .length = length,
                                        .token_count = offsets[text_count],
                                        .index_size = (uint32_t)at.size};
    return 0;
}
