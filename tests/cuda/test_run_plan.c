/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: each batch has a bucket that holds it and wastes an eighth at most, and no two things that
 * are needed at once lie in one place of the device. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "workers/engines/encoder_cuda/attention_shape.h"
#include "workers/engines/encoder_cuda/run_plan.h"

static void test_buckets(void **state)
{
    uint32_t last = 0;

    (void)state;
    for (uint32_t rows = 1; rows <= ENCODER_BATCH_TOKEN_MAX; rows++) {
        const uint32_t bucket = run_bucket_of(rows), size = run_bucket_rows(bucket);

        assert_true(bucket < RUN_BUCKET_COUNT_MAX);
        assert_true(bucket == last || bucket == last + 1);
        assert_true(size >= rows && size % RUN_ROWS_MIN == 0);
        assert_true(size - rows < RUN_ROWS_MIN || (uint64_t)(size - rows) * 8 <= rows);
        assert_true(bucket == 0 ||
                    run_bucket_rows(bucket - 1) < rows); /* the smallest that holds */
        assert_int_equal(run_bucket_of(size), bucket);
        last = bucket;
    }
}

static void test_text_slots(void **state)
{
    static const struct {
        uint32_t count, max, want;
    } rows[] = {{1, 1, 1},    {1, 64, 1},   {2, 64, 2},      {3, 64, 4},
                {33, 48, 48}, {48, 48, 48}, {65, 2048, 128}, {2048, 2048, 2048}};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        assert_int_equal(run_text_slots(rows[i].count, rows[i].max), rows[i].want);
}

struct range {
    size_t at, size;
};

struct ranges {
    struct range all[8192];
    uint32_t count;
};

static void add(struct ranges *ranges, size_t at, uint64_t size)
{
    assert_true(ranges->count < COUNT_OF(ranges->all));
    ranges->all[ranges->count++] = (struct range){at, size};
}

static int by_place(const void *a_p, const void *b_p)
{
    const struct range *a = a_p, *b = b_p;

    return a->at < b->at ? -1 : a->at > b->at;
}

static void check_apart(struct ranges *ranges, size_t end)
{
    qsort(ranges->all, ranges->count, sizeof(ranges->all[0]), by_place);
    for (uint32_t i = 0; i < ranges->count; i++) {
        const struct range *range = &ranges->all[i];

        assert_true(range->size > 0);
        assert_true(range->at + range->size <=
                    (i + 1 < ranges->count ? ranges->all[i + 1].at : end));
    }
}

static void check_weights(const struct run_plan *plan, const struct encoder_config *config,
                          bool bf16)
{
    static struct ranges ranges;
    const size_t small = bf16 ? 2 : 4;
    uint64_t count = 0;

    ranges.count = 0;
    for (uint32_t i = 0; i < config->layer_count * BERT_ROLE_COUNT; i++) {
        const struct run_weight *weight = &plan->weights[i];

        count += weight->count;
        if (weight->count > 0)
            add(&ranges, weight->at, weight->count * (weight->wide ? 4 : small));
    }
    if (plan->step.count > 0)
        add(&ranges, plan->step.at, plan->step.count * 4);
    if (plan->distances.count > 0)
        add(&ranges, plan->distances.at, plan->distances.count * 4);
    check_apart(&ranges, plan->weights_size);
    /* All that the checkpoint has; types are in the positions and the step. */
    assert_true(count >= encoder_config_weight_count(config) - 2 * config->hidden -
                             (uint64_t)config->distance_count * config->head_count);
    for (uint32_t i = 0; i < config->layer_count; i++) {
        const struct run_weight *q = run_plan_weight(plan, BERT_ROLE_Q, i);
        const struct run_weight *bias = run_plan_weight(plan, BERT_ROLE_Q_BIAS, i);

        for (uint32_t k = 1; k < 3; k++) { /* one product of three, without a gap */
            assert_int_equal(q[2 * k].at, q->at + k * q->count * small);
            assert_int_equal(bias[2 * k].at, bias->at + k * bias->count * small);
        }
        assert_int_equal(q->at % RUN_ALIGN, 0);
        assert_int_equal(bias->at % RUN_ALIGN, 0);
    }
}

static void check_slots(const struct run_plan *plan, const struct run_sizes *sizes)
{
    static struct ranges ranges;
    const struct encoder_config *config = sizes->config;
    const uint64_t cell = sizes->bf16 ? 2 : 4, rows = plan->row_max;

    ranges.count = 0;
    for (uint32_t i = 0; i < ENCODER_FLIGHT_MAX; i++) {
        const struct run_slot *slot = &plan->slots[i];

        add(&ranges, slot->offsets, (plan->text_max + 1) * 4);
        add(&ranges, slot->ids, rows * 4);
        add(&ranges, slot->places, rows * 4);
        add(&ranges, slot->index, sizes->index_size);
        add(&ranges, slot->workspace, RUN_WORKSPACE_SIZE);
        add(&ranges, slot->attention, sizes->attention_size);
        add(&ranges, slot->x, rows * config->hidden * cell);
        add(&ranges, slot->qkv, (rows + ATTENTION_ROWS_BEHIND) * 3 * config->hidden * cell);
        add(&ranges, slot->context, rows * config->hidden * cell);
        add(&ranges, slot->rows, (uint64_t)plan->output_max * encoder_config_width(config) * 4);
        assert_int_equal(slot->x % RUN_ALIGN, 0);
        assert_int_equal(slot->rows % RUN_ALIGN, 0);
        assert_int_equal(slot->up, slot->qkv); /* never both at once */
        assert_true(slot->context >= slot->up + rows * config->intermediate * cell +
                                         ATTENTION_ROWS_BEHIND * 3 * config->hidden * cell);
    }
    check_apart(&ranges, plan->slots_size);
}

static const struct encoder_config configs[] = {
    {.family = ENCODER_FAMILY_BERT,
     .layer_count = 2,
     .head_count = 2,
     .hidden = 24,
     .intermediate = 40,
     .vocab_count = 77,
     .position_count = 48,
     .type_count = 2,
     .token_count_max = 48},
    {.family = ENCODER_FAMILY_ROBERTA,
     .head = ENCODER_HEAD_CLASSIFY,
     .label_count = 3,
     .layer_count = 12,
     .head_count = 12,
     .hidden = 768,
     .intermediate = 3072,
     .vocab_count = 50265,
     .position_count = 514,
     .type_count = 1,
     .token_count_max = 512},
    {.family = ENCODER_FAMILY_DISTILBERT,
     .head = ENCODER_HEAD_TOKENS,
     .label_count = 9,
     .layer_count = 6,
     .head_count = 12,
     .hidden = 768,
     .intermediate = 3072,
     .vocab_count = 30522,
     .position_count = 512,
     .token_count_max = 512},
    {.family = ENCODER_FAMILY_MPNET,
     .layer_count = 1,
     .head_count = 4,
     .hidden = 32,
     .intermediate = 64,
     .vocab_count = 30,
     .position_count = 50,
     .distance_count = 32,
     .token_count_max = 48},
};

static void test_places(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 2 * COUNT_OF(configs); i++) {
        const struct run_sizes sizes = {
            .config = &configs[i / 2],
            .bf16 = i % 2 == 1,
            .token_count_max = 1000 + i,
            .text_count_max = 64 + i,
            .index_size = 100 + i,
            .attention_size = 5000 + i,
        };
        struct run_sizes before = sizes;
        struct run_plan plan, other;

        run_plan_make(&sizes, &plan);
        assert_int_equal(plan.row_max, 1024);
        assert_int_equal(plan.output_max,
                         sizes.config->head == ENCODER_HEAD_TOKENS ? 1024 : 64 + i);
        check_weights(&plan, sizes.config, sizes.bf16);
        check_slots(&plan, &sizes);
        before.index_size = before.attention_size =
            0; /* weights are copied before these are known */
        run_plan_make(&before, &other);
        assert_int_equal(other.weights_size, plan.weights_size);
        assert_memory_equal(other.weights, plan.weights,
                            sizes.config->layer_count * BERT_ROLE_COUNT * sizeof(*plan.weights));
        assert_true(other.slots_size <= plan.slots_size);
        run_plan_done(&other);
        run_plan_done(&plan);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_buckets),
        cmocka_unit_test(test_text_slots),
        cmocka_unit_test(test_places),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
