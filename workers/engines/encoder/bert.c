/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/bert.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "workers/engines/encoder/bert_int.h"

/* One run, as its turns see it. A turn that fails leaves its text here; the first one wins. */
struct run {
    struct bert *bert;
    const struct bert_batch *batch;
    float *rows;
    uint32_t tile_count;
    uint32_t layer;
    _Atomic int failed;
    struct err err;
};

int bert_alloc(struct bert *bert, size_t count, size_t size, void *ret_p, struct err *err)
{
    void *bytes;
    size_t total;

    if (__builtin_mul_overflow(count, size, &total) ||
        __builtin_add_overflow(total, BERT_SCRATCH_ALIGN, &total) ||
        posix_memalign(&bytes, BERT_SCRATCH_ALIGN, total) != 0)
        return err_set(err, ERR_MEMORY, "%zu times %zu bytes for the model", count, size);
    memset(bytes, 0, total);
    bert->memory_size += total;
    memcpy(ret_p, &bytes, sizeof(bytes));
    return 0;
}

static int open_plans(struct bert *bert, const struct bert_options *options, struct err *err)
{
    const uint32_t hidden = bert->config.hidden, intermediate = bert->config.intermediate;
    const struct gemm_shape shapes[BERT_PRODUCT_COUNT] = {
        [BERT_QKV] = {hidden, 3 * hidden, GEMM_STORE, ENCODER_GELU, bert->bf16, false},
        [BERT_OUT] = {hidden, hidden, GEMM_ADD, ENCODER_GELU, bert->bf16, false},
        [BERT_UP] = {hidden, intermediate, GEMM_ACTIVATION, bert->config.activation, bert->bf16,
                     bert->bf16},
        [BERT_DOWN] = {intermediate, hidden, GEMM_ADD, ENCODER_GELU, bert->bf16, false},
        [BERT_GATE] = {hidden, intermediate, GEMM_MULTIPLY, ENCODER_GELU, bert->bf16, bert->bf16},
    };
    const int count = bert->config.gated ? BERT_PRODUCT_COUNT : BERT_GATE;
    int r;

    r = team_new(options->thread_count, gemm_thread_start, &bert->team, err);
    if (r == 0)
        r = gemm_new(options->thread_count, &bert->gemm, err);
    for (int i = 0; r == 0 && i < count; i++)
        r = gemm_plan_new(bert->gemm, &shapes[i], &bert->plans[i], err);
    return r;
}

/* What a member needs for the tile that it works at. */
static int alloc_tile(struct bert *bert, uint32_t member, size_t cell, struct err *err)
{
    const size_t rows = GEMM_TILE_ROWS[0], intermediate = bert->config.intermediate;
    int r;

    r = bert_alloc(bert, rows * intermediate, cell, &bert->up[member], err);
    if (r == 0 && bert->config.gated)
        r = bert_alloc(bert, rows * intermediate, cell, &bert->gated[member], err);
    if (r == 0 && bert->config.norm_first)
        r = bert_alloc(bert, rows * bert->config.hidden, sizeof(float), &bert->normed[member], err);
    return r;
}

static int alloc_activations(struct bert *bert, struct err *err)
{
    const struct encoder_config *config = &bert->config;
    const uint32_t member_count = team_member_count(bert->team);
    const size_t rows = bert->row_max, hidden = config->hidden;
    const size_t cell = bert->bf16 ? sizeof(uint16_t) : sizeof(float);
    const size_t scratch_size = bert_attention_scratch_size(config->token_count_max,
                                                            config->hidden / config->head_count);
    const uint32_t last = GEMM_TILE_COUNT - 1;
    int r;

    bert->up = xcalloc(member_count, sizeof(*bert->up));
    bert->gated = xcalloc(member_count, sizeof(*bert->gated));
    bert->normed = xcalloc(member_count, sizeof(*bert->normed));
    bert->scratch = xcalloc(member_count, sizeof(*bert->scratch));
    bert->tiles = xcalloc(rows / GEMM_TILE_ROWS[last], sizeof(*bert->tiles));
    bert->row_positions = xcalloc(rows, sizeof(*bert->row_positions));
    bert->row_seconds = xcalloc(rows, sizeof(*bert->row_seconds));
    r = bert_alloc(bert, rows * hidden, sizeof(float), &bert->x, err);
    if (r == 0 && bert->bf16)
        r = bert_alloc(bert, rows * hidden, sizeof(uint16_t), &bert->x_bf16, err);
    if (r == 0)
        r = bert_alloc(bert, 3 * rows * hidden, sizeof(float), &bert->qkv, err);
    if (r == 0)
        r = bert_alloc(bert, rows * hidden, cell, &bert->context, err);
    for (uint32_t i = 0; r == 0 && i < member_count; i++) {
        r = alloc_tile(bert, i, cell, err);
        if (r == 0)
            r = bert_alloc(bert, scratch_size, 1, &bert->scratch[i], err);
    }
    return r;
}

int bert_open(const struct encoder_config *config, struct safetensors **weights_p,
              const struct bert_options *options, struct bert **ret_bert, struct err *err)
{
    OWNED(bert_close) struct bert *bert = xcalloc(1, sizeof(*bert));
    const uint32_t least = GEMM_TILE_ROWS[GEMM_TILE_COUNT - 1];
    int r;

    assert(options->thread_count >= 1 && options->token_count_max >= config->token_count_max);
    bert->config = *config;
    bert->bf16 = options->bf16;
    bert->kernels = bert_kernels_at(0);
    bert->row_max = (options->token_count_max + least - 1) / least * least;
    bert->layers = xcalloc(config->layer_count, sizeof(*bert->layers));
    if (bert->bf16 && !gemm_has_bf16())
        return err_set(err, ERR_UNSUPPORTED, "dtype bf16 needs AVX512_BF16 or AMX, this CPU has %s",
                       gemm_isa_name());
    r = bert_check(config, *weights_p, err);
    if (r == 0)
        r = open_plans(bert, options, err);
    if (r == 0)
        r = alloc_activations(bert, err);
    bert->file = *weights_p;
    if (r == 0)
        r = bert_load_weights(bert, options, err);
    if (r < 0) {
        bert->file = NULL; /* the caller's still */
        return r;
    }
    *weights_p = NULL;
    *ret_bert = TAKE(bert);
    return 0;
}

static void layer_done(struct bert_layer *layer)
{
    for (int i = 0; i < BERT_PRODUCT_COUNT; i++)
        gemm_weights_free(&layer->products[i]);
    free(layer->out_gain);
    free(layer->out_bias);
    free(layer->down_gain);
    free(layer->down_bias);
}

void bert_close(struct bert **bert_p)
{
    struct bert *bert = TAKE(*bert_p);
    uint32_t member_count;

    if (bert == NULL)
        return;
    member_count = bert->team != NULL ? team_member_count(bert->team) : 0;
    team_free(&bert->team);
    for (uint32_t i = 0; i < bert->config.layer_count; i++)
        layer_done(&bert->layers[i]);
    for (int i = 0; i < BERT_PRODUCT_COUNT; i++)
        gemm_plan_free(&bert->plans[i]);
    gemm_free(&bert->gemm);
    for (uint32_t i = 0; i < member_count && bert->up != NULL; i++) {
        free(bert->up[i]);
        free(bert->gated[i]);
        free(bert->normed[i]);
        free(bert->scratch[i]);
    }
    free(bert->up);
    free(bert->gated);
    free(bert->normed);
    free(bert->scratch);
    free(bert->tiles);
    free(bert->row_seconds);
    free(bert->row_positions);
    free(bert->head.labels_bias);
    free(bert->head.labels);
    free(bert->head.dense_bias);
    free(bert->head.dense);
    free(bert->head.bias);
    free(bert->head.gain);
    free(bert->turns[1]);
    free(bert->turns[0]);
    free(bert->distances);
    free(bert->type_step);
    free(bert->context);
    free(bert->qkv);
    free(bert->x_bf16);
    free(bert->x);
    free(bert->gain);
    free(bert->bias);
    free(bert->positions);
    free(bert->words_copy);
    free(bert->layers);
    safetensors_close(&bert->file);
    free(bert);
}

uint32_t bert_pad_count(uint32_t token_count)
{
    const uint32_t least = GEMM_TILE_ROWS[GEMM_TILE_COUNT - 1];

    return (least - token_count % least) % least;
}

uint64_t bert_memory_size(const struct bert *bert)
{
    return bert->memory_size;
}

const char *bert_kernel_name(const struct bert *bert)
{
    return bert->kernels->name;
}

/* Full tiles first; with fewer rows than would keep all members busy, smaller ones. */
static uint32_t cut_tiles(struct bert *bert, uint32_t row_count)
{
    const uint32_t least = GEMM_TILE_ROWS[GEMM_TILE_COUNT - 1];
    const uint32_t share = row_count / team_member_count(bert->team);
    uint32_t kind = 0, count = 0, at = 0;

    while (kind + 1 < GEMM_TILE_COUNT && GEMM_TILE_ROWS[kind] > share)
        kind++;
    while (at < row_count) {
        while (kind + 1 < GEMM_TILE_COUNT && GEMM_TILE_ROWS[kind] > row_count - at)
            kind++;
        assert(at + least <= bert->row_max);
        bert->tiles[count++] = (struct bert_tile){.first = at, .kind = kind};
        at += GEMM_TILE_ROWS[kind];
    }
    return count;
}

static void fail(struct run *run, const struct err *err)
{
    int none = 0;

    if (atomic_compare_exchange_strong(&run->failed, &none, err->code))
        run->err = *err;
}

/* In place, or into the member's normed rows where `to` has them. */
static void norm_rows(const struct bert *bert, const struct bert_tile *tile, const float *gain,
                      const float *bias, float *to)
{
    const size_t hidden = bert->config.hidden;

    for (uint32_t i = 0; i < GEMM_TILE_ROWS[tile->kind]; i++) {
        const size_t at = (tile->first + i) * hidden;

        bert->kernels->norm(bert->x + at, to != NULL ? to + i * hidden : bert->x + at,
                            bert->config.hidden, gain, bias, bert->config.norm_eps,
                            bert->bf16 ? bert->x_bf16 + at : NULL);
    }
}

/* The tile's rows as the last norm_rows() with this `to` has left them. */
static const void *input_rows(const struct bert *bert, const struct bert_tile *tile,
                              const float *to)
{
    const size_t at = (size_t)tile->first * bert->config.hidden;

    if (bert->bf16)
        return bert->x_bf16 + at;
    return to != NULL ? to : bert->x + at;
}

static int project_qkv(struct run *run, const struct bert_tile *tile, uint32_t layer,
                       uint32_t member, const void *input, struct err *err)
{
    struct bert *bert = run->bert;

    return gemm_run(bert->plans[BERT_QKV], bert->layers[layer].products[BERT_QKV], member,
                    tile->kind, input, bert->qkv + 3 * (size_t)tile->first * bert->config.hidden,
                    err);
}

/* Where each token stands in its text, and in which of two texts. */
static void place_rows(struct bert *bert, const struct bert_batch *batch)
{
    const struct encoder_config *config = &bert->config;

    const bool has_positions = encoder_config_has_positions(config);

    for (uint32_t i = 0; i < batch->text_count; i++) {
        const uint32_t first = batch->offsets[i], count = batch->offsets[i + 1] - first;
        const uint32_t second = batch->seconds != NULL ? batch->seconds[i] : 0;
        uint32_t position = config->position_first;

        for (uint32_t t = 0; t < count; t++) {
            const bool nowhere = config->position_first > 0 &&
                                 batch->ids[first + t] == config->pad_id;

            bert->row_positions[first + t] = nowhere ? config->pad_id : position;
            position += !nowhere && has_positions;
            bert->row_seconds[first + t] = second > 0 && t >= second && bert->type_step != NULL;
        }
    }
}

/* Rows of padding behind the last text are words of id 0: finite, and read by nobody. */
static void embed(const struct run *run, const struct bert_tile *tile)
{
    const struct bert *bert = run->bert;
    const struct bert_batch *batch = run->batch;
    const uint32_t hidden = bert->config.hidden;

    for (uint32_t i = 0; i < GEMM_TILE_ROWS[tile->kind]; i++) {
        const uint32_t row = tile->first + i;
        const bool is_text = row < batch->offsets[batch->text_count];
        const float *word = bert->words, *position = bert->positions;
        float *x = bert->x + (size_t)row * hidden;

        if (is_text) {
            word += (size_t)batch->ids[row] * hidden;
            position += (size_t)bert->row_positions[row] * hidden;
        }
        for (uint32_t j = 0; j < hidden; j++)
            x[j] = word[j] + position[j];
        if (is_text && bert->row_seconds[row]) {
            for (uint32_t j = 0; j < hidden; j++)
                x[j] += bert->type_step[j];
        }
    }
    norm_rows(bert, tile, bert->gain, bert->bias, NULL);
}

static void turn_embed(void *context, uint32_t member, uint32_t index)
{
    struct run *run = context;
    const struct bert_tile *tile = &run->bert->tiles[index];
    struct err err;

    embed(run, tile);
    if (project_qkv(run, tile, 0, member, input_rows(run->bert, tile, NULL), &err) < 0)
        fail(run, &err);
}

static void turn_attend(void *context, uint32_t member, uint32_t index)
{
    struct run *run = context;
    struct bert *bert = run->bert;
    const uint32_t hidden = bert->config.hidden;
    const uint32_t head = index % bert->config.head_count;
    const uint32_t text = index / bert->config.head_count;
    const uint32_t head_size = hidden / bert->config.head_count;
    const uint32_t first = run->batch->offsets[text];
    const float *q = bert->qkv + 3 * (size_t)first * hidden + (size_t)head * head_size;
    const size_t out = (size_t)first * hidden + (size_t)head * head_size;
    const size_t distance_count = 2 * (size_t)bert->config.token_count_max - 1;
    const bool is_local = bert->config.layer_is_local[run->layer] != 0;
    const struct bert_attention attention = {
        .q = q,
        .k = q + hidden,
        .v = q + 2 * (size_t)hidden,
        .row_stride = 3 * (size_t)hidden,
        .token_count = run->batch->offsets[text + 1] - first,
        .head_size = head_size,
        .scale = 1.0f / sqrtf((float)head_size),
        .bias = bert->distances != NULL
                    ? bert->distances + head * distance_count + distance_count / 2
                    : NULL,
        .turns = bert->turns[is_local],
        .window = is_local ? bert->config.window : 0,
        .context = bert->bf16 ? NULL : (float *)bert->context + out,
        .context_bf16 = bert->bf16 ? (uint16_t *)bert->context + out : NULL,
        .context_stride = hidden,
        .scratch = bert->scratch[member],
    };

    bert->kernels->attend(&attention);
}

static int run_up(struct run *run, const struct bert_tile *tile, uint32_t member, const void *input,
                  const void **ret_up, struct err *err)
{
    struct bert *bert = run->bert;
    const struct bert_layer *layer = &bert->layers[run->layer];
    int r;

    *ret_up = bert->up[member];
    r = gemm_run(bert->plans[BERT_UP], layer->products[BERT_UP], member, tile->kind, input,
                 bert->up[member], err);
    if (r < 0 || !bert->config.gated)
        return r;
    *ret_up = bert->gated[member];
    return gemm_run_multiply(bert->plans[BERT_GATE], layer->products[BERT_GATE], member, tile->kind,
                             input, bert->up[member], bert->gated[member], err);
}

static int feed_forward(struct run *run, const struct bert_tile *tile, uint32_t member,
                        struct err *err)
{
    struct bert *bert = run->bert;
    const struct bert_layer *layer = &bert->layers[run->layer];
    const bool is_last = run->layer + 1 == bert->config.layer_count;
    const size_t at = (size_t)tile->first * bert->config.hidden;
    const void *context = bert->bf16 ? (const void *)((uint16_t *)bert->context + at)
                                     : (const void *)((float *)bert->context + at);
    float *normed = bert->config.norm_first ? bert->normed[member] : NULL;
    const void *up;
    int r;

    r = gemm_run(bert->plans[BERT_OUT], layer->products[BERT_OUT], member, tile->kind, context,
                 bert->x + at, err);
    if (r < 0)
        return r;
    norm_rows(bert, tile, layer->out_gain, layer->out_bias, normed);
    r = run_up(run, tile, member, input_rows(bert, tile, normed), &up, err);
    if (r == 0)
        r = gemm_run(bert->plans[BERT_DOWN], layer->products[BERT_DOWN], member, tile->kind, up,
                     bert->x + at, err);
    if (r < 0)
        return r;
    norm_rows(bert, tile, layer->down_gain, layer->down_bias, is_last ? NULL : normed);
    if (is_last)
        return 0;
    return project_qkv(run, tile, run->layer + 1, member, input_rows(bert, tile, normed), err);
}

static void turn_feed_forward(void *context, uint32_t member, uint32_t index)
{
    struct run *run = context;
    struct err err;

    if (feed_forward(run, &run->bert->tiles[index], member, &err) < 0)
        fail(run, &err);
}

static void pool_mean(const float *x, uint32_t token_count, uint32_t hidden, float *vector)
{
    const float share = 1.0f / (float)token_count;

    memset(vector, 0, hidden * sizeof(float));
    for (uint32_t t = 0; t < token_count; t++) {
        for (uint32_t i = 0; i < hidden; i++)
            vector[i] += x[(size_t)t * hidden + i];
    }
    for (uint32_t i = 0; i < hidden; i++)
        vector[i] *= share;
}

void bert_pool(const struct bert *bert, enum encoder_pooling pooling, const float *x,
               uint32_t token_count, float *vector)
{
    if (pooling == ENCODER_POOL_CLS)
        memcpy(vector, x, bert->config.hidden * sizeof(float));
    else
        pool_mean(x, token_count, bert->config.hidden, vector);
}

static void make_vector(const struct bert *bert, const float *x, uint32_t token_count,
                        float *vector)
{
    const uint32_t hidden = bert->config.hidden;
    double square = 0;
    float length;

    bert_pool(bert, bert->config.pooling, x, token_count, vector);
    if (!bert->config.normalize)
        return;
    for (uint32_t i = 0; i < hidden; i++)
        square += (double)vector[i] * (double)vector[i];
    length = (float)sqrt(square);
    if (length < 1e-12f) /* the reference divides by no less than this */
        length = 1e-12f;
    for (uint32_t i = 0; i < hidden; i++)
        vector[i] /= length;
}

static void turn_end(void *context, uint32_t member, uint32_t index)
{
    struct run *run = context;
    const struct bert *bert = run->bert;
    const uint32_t first = run->batch->offsets[index];
    const uint32_t token_count = run->batch->offsets[index + 1] - first;
    const size_t width = encoder_config_width(&bert->config);
    const float *x = bert->x + (size_t)first * bert->config.hidden;

    (void)member;
    switch (bert->config.head) {
    case ENCODER_HEAD_EMBED:
        make_vector(bert, x, token_count, run->rows + index * width);
        return;
    case ENCODER_HEAD_CLASSIFY:
        bert_head_classify(bert, x, token_count, run->rows + index * width);
        return;
    case ENCODER_HEAD_TOKENS:
        bert_head_tokens(bert, x, token_count, run->rows + first * width);
        return;
    case ENCODER_HEAD_MASKED:
        break; /* encoder_config_read() gives none */
    }
}

int bert_run(struct bert *bert, const struct bert_batch *batch, float *rows, struct err *err)
{
    const uint32_t row_count = batch->offsets[batch->text_count];
    struct run run = {.bert = bert, .batch = batch, .rows = rows};

    assert(batch->text_count > 0 && row_count > 0 && row_count <= bert->row_max);
    place_rows(bert, batch);
    run.tile_count = cut_tiles(bert, row_count);
    team_run(bert->team, run.tile_count, turn_embed, &run);
    for (run.layer = 0; run.layer < bert->config.layer_count; run.layer++) {
        team_run(bert->team, batch->text_count * bert->config.head_count, turn_attend, &run);
        team_run(bert->team, run.tile_count, turn_feed_forward, &run);
        if (atomic_load(&run.failed) != 0) {
            *err = run.err;
            return run.err.code;
        }
    }
    team_run(bert->team, batch->text_count, turn_end, &run);
    return 0;
}
