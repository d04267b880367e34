/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: every batch within a shape has a plan that holds it, and its index says where its rows are;
 * what is outside of the shape is refused by name.
 * Method: rows for the rules; then random batches of random shapes, whose index is read back.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/rng.h"
#include "workers/engines/encoder_cuda/attention_shape.h"

/* bge-base on a large device. */
static const struct attention_shape base = {12, 64, ATTENTION_BF16, 16384, 1024, 512};

static void test_check(void **state)
{
    static const struct {
        struct attention_shape shape;
        const char *want; /* NULL: it is good */
    } rows[] = {
        {{12, 64, ATTENTION_BF16, 16384, 1024, 512}, NULL},
        {{12, 32, ATTENTION_BF16, 16384, 1024, 512}, NULL},
        {{12, 33, ATTENTION_F32, 16384, 1024, 512}, NULL},
        {{12, 33, ATTENTION_BF16, 16384, 1024, 512}, "head_dim is 33; in bf16"},
        {{12, 136, ATTENTION_BF16, 16384, 1024, 512}, "head_dim is 136; it must be 1 to 128"},
        {{0, 64, ATTENTION_BF16, 16384, 1024, 512}, "head_count is 0"},
        {{257, 64, ATTENTION_BF16, 16384, 1024, 512}, "head_count is 257"},
        {{12, 64, ATTENTION_BF16, 0, 1024, 512}, "token_count_max is 0"},
        {{12, 64, ATTENTION_BF16, 932067, 1024, 512}, NULL},
        {{12, 64, ATTENTION_BF16, 932068, 1024, 512}, "token_count_max is 932068"},
        {{12, 64, ATTENTION_BF16, 16384, 0, 512}, "text_count_max is 0"},
        {{12, 64, ATTENTION_BF16, 16384, 16385, 512}, "text_count_max is 16385"},
        {{12, 64, ATTENTION_BF16, 16384, 1024, 8193}, "length_max is 8193"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct err err = {0};
        int r = attention_shape_check(&rows[i].shape, &err);

        if (r != (rows[i].want ? ERR_RANGE : 0) ||
            (rows[i].want && !strstr(err.text, rows[i].want)))
            fail_msg("row %zu: %s", i, err.text);
    }
}

static void test_buckets(void **state)
{
    static const struct attention_bucket want[] = {
        {16, 128},  {64, 128},   {256, 128}, {1024, 128}, {16, 256},  {64, 256},
        {256, 256}, {1024, 256}, {16, 512},  {64, 512},   {256, 512}, {1024, 512},
    };
    const struct attention_shape small = {12, 64, ATTENTION_BF16, 300, 1024, 512};
    const struct attention_shape tiny = {2, 8, ATTENTION_F32, 1, 1, 1};
    struct attention_buckets buckets;

    (void)state;
    attention_buckets_make(&base, &buckets);
    assert_int_equal(buckets.count, COUNT_OF(want));
    assert_memory_equal(buckets.list, want, sizeof(want));

    /* 256 texts and more than 300 - 257 tokens in one of them do not go together. */
    attention_buckets_make(&small, &buckets);
    assert_int_equal(buckets.count, 4 + 3 + 2);
    assert_int_equal(buckets.list[6].texts, 256);
    assert_int_equal(buckets.list[8].texts, 64);
    assert_int_equal(buckets.list[8].length, 512);

    attention_buckets_make(&tiny, &buckets);
    assert_int_equal(buckets.count, 1);
    assert_int_equal(buckets.list[0].texts, 1);
    assert_int_equal(buckets.list[0].length, 1);
}

static void test_turn_refused(void **state)
{
    static const struct {
        uint32_t offsets[4], text_count;
        const char *want;
    } rows[] = {
        {{0, 1, 2, 3}, 0, "0 texts"},
        {{0, 1, 2, 3}, 3, "3 texts; it may have 1 to 2"},
        {{1, 2, 3, 4}, 2, "begins at row 1"},
        {{0, 0, 2, 0}, 2, "text 0 has rows 0 to 0"},
        {{0, 5, 4, 0}, 2, "text 1 has rows 5 to 4"},
        {{0, 11, 12, 0}, 2, "text 0 has rows 0 to 11; it may have 1 to 10"},
        {{0, 10, 20, 0}, 2, "20 tokens; it may have 19"},
    };
    const struct attention_shape shape = {2, 8, ATTENTION_BF16, 19, 2, 10};
    struct attention_buckets buckets;
    char index[256];

    (void)state;
    attention_buckets_make(&shape, &buckets);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct attention_turn turn;
        struct err err = {0};

        if (attention_turn_make(&shape, &buckets, rows[i].offsets, rows[i].text_count, index, &turn,
                                &err) != ERR_RANGE ||
            !strstr(err.text, rows[i].want))
            fail_msg("row %zu: %s", i, err.text);
    }
}

/* Reads the index as a kernel does, and compares with the offsets. */
static void check_index(const struct attention_shape *shape, const struct attention_bucket *bucket,
                        const void *index, const uint32_t *offsets, uint32_t text_count)
{
    const struct attention_index at = attention_index_of(bucket->texts);
    const int32_t *lengths = (const int32_t *)((const char *)index + at.lengths);
    const int32_t *qkv = (const int32_t *)((const char *)index + at.qkv_offsets);
    const int32_t *out = (const int32_t *)((const char *)index + at.out_offsets);
    const uint32_t hidden = shape->head_count * shape->head_dim;

    assert_true(at.qkv_offsets % 16 == 0 && at.out_offsets % 16 == 0 && at.size % 16 == 0);
    for (uint32_t i = 0; i <= bucket->texts; i++) {
        const uint32_t row = offsets[i < text_count ? i : text_count];

        assert_int_equal(qkv[i], 3 * hidden * row);
        assert_int_equal(out[i], hidden * row);
        if (i < bucket->texts)
            assert_int_equal(lengths[i], i < text_count ? offsets[i + 1] - row : 0);
    }
}

static uint32_t random_to(struct rng *rng, uint32_t max) /* 1 … max */
{
    return 1 + (uint32_t)rng_below(rng, max);
}

/* A batch within the shape: texts of random lengths until tokens or texts are used up. */
static uint32_t random_batch(struct rng *rng, const struct attention_shape *shape,
                             uint32_t *offsets)
{
    uint32_t count = 0, texts = random_to(rng, shape->text_count_max);

    offsets[0] = 0;
    while (count < texts) {
        uint32_t most = random_to(rng, shape->length_max);
        uint32_t length = random_to(rng, most);

        if (offsets[count] + length > shape->token_count_max)
            break;
        offsets[count + 1] = offsets[count] + length;
        count++;
    }
    return count;
}

static void test_turns(void **state)
{
    uint32_t offsets[4097];
    struct rng rng;
    struct err err;

    (void)state;
    rng_seed(&rng, 7);
    for (int i = 0; i < 2000; i++) {
        struct attention_shape shape = {random_to(&rng, 16),   8,
                                        ATTENTION_BF16,        0,
                                        random_to(&rng, 4096), random_to(&rng, 8192)};
        struct attention_buckets buckets;
        struct attention_turn turn;
        OWNED(mem_free) char *index = NULL;
        uint32_t count;

        shape.token_count_max = shape.length_max + random_to(&rng, 20000);
        attention_buckets_make(&shape, &buckets);
        index = xmalloc(attention_index_of(shape.text_count_max).size);
        count = random_batch(&rng, &shape, offsets);
        assert_true(count > 0);
        if (attention_turn_make(&shape, &buckets, offsets, count, index, &turn, &err))
            fail_msg("round %d: %s", i, err.text);
        assert_true(buckets.list[turn.plan].texts >= count);
        assert_true(buckets.list[turn.plan].length >= turn.length);
        assert_int_equal(turn.text_count, count);
        assert_int_equal(turn.token_count, offsets[count]);
        assert_int_equal(turn.index_size, attention_index_of(buckets.list[turn.plan].texts).size);
        check_index(&shape, &buckets.list[turn.plan], index, offsets, count);
        /* No smaller plan would have done. */
        for (uint32_t plan = 0; plan < turn.plan; plan++)
            assert_true(buckets.list[plan].texts < count ||
                        buckets.list[plan].length < turn.length);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_buckets),
        cmocka_unit_test(test_turn_refused),
        cmocka_unit_test(test_turns),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
