/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder_cuda/run_plan.h"

#include <stdlib.h>

#include "base/assert.h"
#include "workers/engines/encoder_cuda/attention_shape.h"
#include "workers/engines/encoder_cuda/kernels.h"

#define EVEN_ROWS 256u /* up to here buckets are RUN_ROWS_MIN apart */
#define EVEN_COUNT (EVEN_ROWS / RUN_ROWS_MIN)
#define PARTS 8u /* of each power of two above */

static uint32_t log2_floor(uint32_t n)
{
    return 31u - (uint32_t)__builtin_clz(n);
}

uint32_t run_bucket_of(uint32_t row_count)
{
    uint32_t octave, part;

    assert(row_count > 0 && row_count <= ENCODER_BATCH_TOKEN_MAX);
    if (row_count <= EVEN_ROWS)
        return (row_count - 1) / RUN_ROWS_MIN;
    octave = log2_floor(row_count - 1);
    part = (row_count - 1 - (1u << octave)) / ((1u << octave) / PARTS);
    return EVEN_COUNT + (octave - log2_floor(EVEN_ROWS)) * PARTS + part;
}

uint32_t run_bucket_rows(uint32_t bucket)
{
    uint32_t octave, part;

    if (bucket < EVEN_COUNT)
        return (bucket + 1) * RUN_ROWS_MIN;
    octave = log2_floor(EVEN_ROWS) + (bucket - EVEN_COUNT) / PARTS;
    part = (bucket - EVEN_COUNT) % PARTS;
    return (1u << octave) + (part + 1) * ((1u << octave) / PARTS);
}

uint32_t run_text_slots(uint32_t text_count, uint32_t max)
{
    uint32_t slots = 1;

    assert(text_count > 0 && text_count <= max);
    while (slots < text_count)
        slots *= 2;
    return slots < max ? slots : max;
}

/* Gives out one range after another. */
static size_t take(size_t *end, uint64_t count, size_t cell)
{
    const size_t at = *end;

    *end += (count * cell + RUN_ALIGN - 1) / RUN_ALIGN * RUN_ALIGN;
    return at;
}

static void place(struct run_plan *plan, const struct run_sizes *sizes, enum bert_role role,
                  uint32_t layer, uint64_t count, bool wide)
{
    const size_t cell = sizes->bf16 && !wide ? sizeof(uint16_t) : sizeof(float);

    plan->weights[(size_t)layer * BERT_ROLE_COUNT + role] = (struct run_weight){
        .at = take(&plan->weights_size, count, cell), .count = count, .wide = wide};
}

/* Q, K and V without a gap, whatever the alignment says. */
static void place_three(struct run_plan *plan, const struct run_sizes *sizes, enum bert_role first,
                        uint32_t layer, uint64_t count)
{
    const size_t cell = sizes->bf16 ? sizeof(uint16_t) : sizeof(float);
    const size_t at = take(&plan->weights_size, 3 * count, cell);

    for (uint32_t i = 0; i < 3; i++)
        plan->weights[(size_t)layer * BERT_ROLE_COUNT + first + 2 * i] = (struct run_weight){
            .at = at + i * count * cell, .count = count};
}

static void place_layer(struct run_plan *plan, const struct run_sizes *sizes, uint32_t layer)
{
    const uint64_t hidden = sizes->config->hidden, intermediate = sizes->config->intermediate;

    place_three(plan, sizes, BERT_ROLE_Q, layer, hidden * hidden);
    place_three(plan, sizes, BERT_ROLE_Q_BIAS, layer, hidden);
    place(plan, sizes, BERT_ROLE_OUT, layer, hidden * hidden, false);
    place(plan, sizes, BERT_ROLE_OUT_BIAS, layer, hidden, false);
    place(plan, sizes, BERT_ROLE_OUT_NORM_GAIN, layer, hidden, true);
    place(plan, sizes, BERT_ROLE_OUT_NORM_BIAS, layer, hidden, true);
    place(plan, sizes, BERT_ROLE_UP, layer, hidden * intermediate, false);
    place(plan, sizes, BERT_ROLE_UP_BIAS, layer, intermediate, false);
    place(plan, sizes, BERT_ROLE_DOWN, layer, hidden * intermediate, false);
    place(plan, sizes, BERT_ROLE_DOWN_BIAS, layer, hidden, false);
    place(plan, sizes, BERT_ROLE_DOWN_NORM_GAIN, layer, hidden, true);
    place(plan, sizes, BERT_ROLE_DOWN_NORM_BIAS, layer, hidden, true);
}

static void place_weights(struct run_plan *plan, const struct run_sizes *sizes)
{
    const struct encoder_config *config = sizes->config;
    const uint64_t hidden = config->hidden;

    place(plan, sizes, BERT_ROLE_WORDS, 0, config->vocab_count * hidden, false);
    place(plan, sizes, BERT_ROLE_POSITIONS, 0, config->position_count * hidden, false);
    place(plan, sizes, BERT_ROLE_GAIN, 0, hidden, true);
    place(plan, sizes, BERT_ROLE_BIAS, 0, hidden, true);
    if (config->type_count >= 2)
        plan->step = (struct run_weight){
            .at = take(&plan->weights_size, hidden, sizeof(float)), .count = hidden, .wide = true};
    for (uint32_t i = 0; i < config->layer_count; i++)
        place_layer(plan, sizes, i);
    if (config->distance_count > 0) {
        plan->distances.count = (2 * (uint64_t)config->token_count_max - 1) * config->head_count;
        plan->distances.wide = true;
        plan->distances.at = take(&plan->weights_size, plan->distances.count, sizeof(float));
    }
    if (config->head == ENCODER_HEAD_CLASSIFY) {
        place(plan, sizes, BERT_ROLE_DENSE, 0, hidden * hidden, false);
        place(plan, sizes, BERT_ROLE_DENSE_BIAS, 0, hidden, false);
    }
    if (config->head != ENCODER_HEAD_EMBED) {
        place(plan, sizes, BERT_ROLE_LABELS, 0, config->label_count * hidden, false);
        place(plan, sizes, BERT_ROLE_LABELS_BIAS, 0, config->label_count, true);
    }
}

static void place_slot(struct run_plan *plan, const struct run_sizes *sizes, struct run_slot *slot,
                       size_t *end)
{
    const struct encoder_config *config = sizes->config;
    const size_t cell = sizes->bf16 ? sizeof(uint16_t) : sizeof(float);
    const uint64_t rows = plan->row_max, hidden = config->hidden;
    const uint64_t wide = config->intermediate > 3 * hidden ? config->intermediate : 3 * hidden;

    slot->offsets = take(end, plan->text_max + 1u, sizeof(uint32_t));
    slot->index = take(end, sizes->index_size, 1);
    slot->ids = take(end, rows, sizeof(uint32_t));
    slot->places = take(end, rows, sizeof(uint32_t));
    slot->workspace = take(end, RUN_WORKSPACE_SIZE, 1);
    slot->attention = take(end, sizes->attention_size, 1);
    slot->x = take(end, rows * hidden, cell);
    slot->qkv = take(end, rows * wide + ATTENTION_ROWS_BEHIND * 3 * hidden, cell);
    slot->up = slot->qkv;
    slot->context = take(end, rows * hidden, cell);
    slot->rows = take(end, (uint64_t)plan->output_max * encoder_config_width(config),
                      sizeof(float));
}

void run_plan_make(const struct run_sizes *sizes, struct run_plan *ret_plan)
{
    const struct encoder_config *config = sizes->config;
    struct run_plan plan = {.text_max = sizes->text_count_max};

    plan.weights = xcalloc((size_t)config->layer_count * BERT_ROLE_COUNT, sizeof(*plan.weights));
    plan.row_max = run_bucket_rows(run_bucket_of(sizes->token_count_max));
    plan.output_max = config->head == ENCODER_HEAD_TOKENS ? plan.row_max : plan.text_max;
    place_weights(&plan, sizes);
    for (uint32_t i = 0; i < ENCODER_FLIGHT_MAX; i++)
        place_slot(&plan, sizes, &plan.slots[i], &plan.slots_size);
    *ret_plan = plan;
}

void run_plan_done(struct run_plan *plan)
{
    free(plan->weights);
    *plan = (struct run_plan){0};
}
