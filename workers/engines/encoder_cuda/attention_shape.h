/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which plans attention needs for a shape, and what a batch tells the device: pure arithmetic.
 *
 * A plan is compiled for a largest number of texts and a largest length. Lengths double from 128 to
 * length_max, texts grow fourfold from 16 to text_count_max; pairs that no batch of token_count_max
 * tokens needs are left out. A batch runs in the plan that holds it with the fewest slots.
 *
 * The index of a batch is three arrays of int32, each beginning at a multiple of 16 bytes:
 *
 *     lengths[texts]            tokens of each text, 0 in slots without one
 *     qkv_offsets[texts + 1]    where its rows begin in qkv, in numbers (not bytes)
 *     out_offsets[texts + 1]    the same in out
 *
 * No CUDA, no I/O, no allocation.
 *
 * Thread: any.   Tests: tests/unit/test_attention_shape.c
 */

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Rows of qkv behind a batch's that a tile of cuDNN's may read and multiply by 0. */
#define ATTENTION_ROWS_BEHIND 256

enum attention_dtype { ATTENTION_BF16, ATTENTION_F32 };

#define ATTENTION_HEAD_DIM_MAX 128
#define ATTENTION_HEAD_COUNT_MAX 256
#define ATTENTION_TEXT_COUNT_MAX 16384
#define ATTENTION_LENGTH_MAX 8192

struct attention_shape {
    uint32_t head_count;
    uint32_t head_dim; /* bf16: a multiple of 8 */
    enum attention_dtype dtype;
    uint32_t token_count_max; /* of one batch */
    uint32_t text_count_max;  /* of one batch */
    uint32_t length_max;      /* tokens of one text */
};

struct attention_bucket {
    uint32_t texts, length; /* slots, and tokens of each at most */
};

#define ATTENTION_PLAN_MAX 64
struct attention_buckets {
    struct attention_bucket list[ATTENTION_PLAN_MAX]; /* by length, then by texts */
    uint32_t count;
};

/* One batch: from attention_prepare() to its last layer. A value, copied freely. */
struct attention_turn {
    uint32_t plan;        /* index into the list of buckets */
    uint32_t text_count;  /* of the batch */
    uint32_t length;      /* of its longest text */
    uint32_t token_count; /* rows of qkv and of out */
    uint32_t index_size;  /* bytes of the index to copy to the device */
};

/* ERR_RANGE names the field, its value and its limits. */
int attention_shape_check(const struct attention_shape *shape, struct err *err) MUST_CHECK;

/* Of a shape that was checked; never empty. */
void attention_buckets_make(const struct attention_shape *shape,
                            struct attention_buckets *ret_buckets);

/* Bytes from the start of the index to each array, and of all of it. */
struct attention_index {
    size_t lengths, qkv_offsets, out_offsets, size;
};
struct attention_index attention_index_of(uint32_t texts);

/* Picks the plan and writes ret_turn->index_size bytes to index, which has room for
 * attention_index_of(text_count_max of the shape) and is aligned to 4. Text i is rows offsets[i] …
 * offsets[i + 1] - 1. ERR_RANGE: no text, an empty or too long one, more texts or tokens than the
 * shape has, offsets[0] not 0. */
int attention_turn_make(const struct attention_shape *shape,
                        const struct attention_buckets *buckets, const uint32_t *offsets,
                        uint32_t text_count, void *index, struct attention_turn *ret_turn,
                        struct err *err) MUST_CHECK;

#ifdef __cplusplus
}
#endif
