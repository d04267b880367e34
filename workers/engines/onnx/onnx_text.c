/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/onnx/onnx_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "workers/engines/encoder/encoder_config.h"
#include "workers/engines/encoder/encoder_json.h"

#define POSITIONS_DEFAULT 512u
#define SLACK_TOKENS 16u /* that a text may be shorter than its group's longest, in any case */

enum feed {
    FEED_IDS,
    FEED_MASK,
    FEED_TYPES,
    FEED_COUNT,
};

static const char *const feed_names[] = {"input_ids", "attention_mask", "token_type_ids"};

struct onnx_text {
    struct onnx_session *session;
    const struct onnx_model *model;
    struct encoder_config config; /* pooling and normalize */
    enum feed feeds[ONNX_INPUT_COUNT_MAX];
    bool wanted[ONNX_OUTPUT_COUNT_MAX];
    uint32_t output; /* its index */
    uint32_t width;
    int64_t *cells[FEED_COUNT]; /* rows of a group; int32 where the model wants that */
    char pooling[40];
};

static uint32_t pick_output(const struct onnx_model *model)
{
    static const char *const names[] = {"sentence_embedding", "last_hidden_state",
                                        "token_embeddings"};

    for (size_t n = 0; n < COUNT_OF(names); n++) {
        for (uint32_t i = 0; i < model->output_count; i++) {
            if (strcmp(model->outputs[i].name, names[n]) == 0)
                return i;
        }
    }
    return 0;
}

static bool find_feed(const char *name, enum feed *ret_feed)
{
    for (int i = 0; i < FEED_COUNT; i++) {
        if (strcmp(name, feed_names[i]) == 0) {
            *ret_feed = (enum feed)i;
            return true;
        }
    }
    return false;
}

int onnx_text_check(const struct onnx_model *model, struct err *err)
{
    const struct onnx_spec *output = &model->outputs[pick_output(model)];
    bool has_ids = false;

    for (uint32_t i = 0; i < model->input_count; i++) {
        const struct onnx_spec *spec = &model->inputs[i];
        enum feed feed;

        if (!find_feed(spec->name, &feed))
            return err_set(err, ERR_UNSUPPORTED,
                           "the text task gives input_ids, attention_mask and token_type_ids; the "
                           "model wants '%.80s'",
                           spec->name);
        if ((spec->type != ONNX_INT64 && spec->type != ONNX_INT32) ||
            (spec->has_shape && spec->rank != 2))
            return err_set(err, ERR_UNSUPPORTED,
                           "input '%s' is %s of %u axes; the text task gives int64 or int32 of 2",
                           spec->name, onnx_type_name(spec->type), spec->rank);
        has_ids = has_ids || feed == FEED_IDS;
    }
    if (!has_ids)
        return err_set(err, ERR_UNSUPPORTED, "the text task needs an input 'input_ids'");
    if (output->type != ONNX_FLOAT32 ||
        (output->has_shape && output->rank != 2 && output->rank != 3))
        return err_set(err, ERR_UNSUPPORTED,
                       "output '%.80s' is %s of %u axes; the text task takes float32 of 2 or 3",
                       output->name, onnx_type_name(output->type), output->rank);
    return 0;
}

/* Where positions count from behind the padding's, as in RoBERTa, the first are no token's. */
static int leave_out_padding(const json_t *json, uint32_t *count, struct err *err)
{
    static const char *const types[] = {"roberta", "xlm-roberta", "camembert", "mpnet"};
    const char *type = "";
    uint32_t pad_id = 1;
    int r;

    r = encoder_json_get_text(json, "model_type", &type, err);
    if (r == 0)
        r = encoder_json_get_u32(json, "pad_token_id", 0, ENCODER_VOCAB_MAX, &pad_id, err);
    for (size_t i = 0; r == 0 && i < COUNT_OF(types); i++) {
        if (strcmp(type, types[i]) != 0)
            continue;
        if (*count < pad_id + 3)
            return err_set(err, ERR_RANGE, "max_position_embeddings is %u, %u are the least",
                           *count, pad_id + 3);
        *count -= pad_id + 1;
        return 0;
    }
    return r;
}

static int read_positions(const char *dir, uint32_t *ret_count, struct err *err)
{
    OWNED(encoder_json_free) json_t *json = NULL;
    int r = encoder_json_read(dir, "config.json", ENCODER_FILE_SIZE_MAX, &json, err);

    *ret_count = POSITIONS_DEFAULT;
    if (r == ERR_NOT_FOUND)
        return 0;
    if (r == 0)
        r = encoder_json_get_u32(json, "max_position_embeddings", 2, ENCODER_TOKEN_COUNT_MAX,
                                 ret_count, err);
    if (r == 0)
        r = leave_out_padding(json, ret_count, err);
    return r < 0 ? err_wrap(err, "config.json") : 0;
}

static int read_config(const char *dir, const struct onnx_model *model,
                       struct encoder_config *config, struct err *err)
{
    int r = read_positions(dir, &config->position_count, err);

    if (r == 0)
        r = encoder_config_read_texts(dir, config, err);
    for (uint32_t i = 0; r == 0 && i < model->input_count; i++) {
        const struct onnx_spec *spec = &model->inputs[i];

        if (spec->has_shape && spec->dims[1] > 0)
            r = err_set(err, ERR_UNSUPPORTED,
                        "input '%s' has a fixed length of %lld; the text task pads to any length",
                        spec->name, (long long)spec->dims[1]);
    }
    return r;
}

int onnx_text_token_max(const char *dir, const struct onnx_model *model, uint32_t *ret_count,
                        struct err *err)
{
    struct encoder_config config = {.layer_count = 0};
    int r = read_config(dir, model, &config, err);

    *ret_count = config.token_count_max;
    return r;
}

/* ---- a group of texts ---- */

static void put_cell(struct onnx_text *text, enum feed feed, bool wide, uint64_t at, uint32_t value)
{
    if (wide)
        text->cells[feed][at] = value;
    else
        ((int32_t *)text->cells[feed])[at] = (int32_t)value;
}

/* Texts first … first + count - 1 as rows of `length` cells. */
static void fill_cells(struct onnx_text *text, const struct bert_batch *batch, uint32_t first,
                       uint32_t count, uint32_t length, struct onnx_tensor *inputs)
{
    for (uint32_t i = 0; i < text->model->input_count; i++) {
        const bool wide = text->model->inputs[i].type == ONNX_INT64;
        const enum feed feed = text->feeds[i];

        for (uint32_t row = 0; row < count; row++) {
            const uint32_t *ids = batch->ids + batch->offsets[first + row];
            const uint32_t size = batch->offsets[first + row + 1] - batch->offsets[first + row];

            for (uint32_t t = 0; t < length; t++) {
                uint32_t value = feed == FEED_IDS ? (t < size ? ids[t] : 0)
                                                  : feed == FEED_MASK && t < size;

                put_cell(text, feed, wide, (uint64_t)row * length + t, value);
            }
        }
        inputs[i] = (struct onnx_tensor){.type = text->model->inputs[i].type,
                                         .rank = 2,
                                         .dims = {count, length},
                                         .size = (uint64_t)count * length * (wide ? 8 : 4),
                                         .data = text->cells[feed]};
    }
}

static void pool_row(const struct onnx_text *text, const float *states, uint32_t size, float *to)
{
    const uint32_t width = text->width, count = text->config.pooling == ENCODER_POOL_CLS ? 1 : size;

    memset(to, 0, width * sizeof(*to));
    for (uint32_t t = 0; t < count; t++) {
        for (uint32_t i = 0; i < width; i++)
            to[i] += states[(uint64_t)t * width + i];
    }
    for (uint32_t i = 0; i < width; i++)
        to[i] /= (float)count;
}

static void scale_row(uint32_t width, float *vector)
{
    double square = 0;
    float length;

    for (uint32_t i = 0; i < width; i++)
        square += (double)vector[i] * vector[i];
    length = (float)sqrt(square);
    for (uint32_t i = 0; i < width && length > 0; i++)
        vector[i] /= length;
}

static int take_rows(const struct onnx_text *text, const struct onnx_tensor *output,
                     const struct bert_batch *batch, uint32_t first, uint32_t count,
                     uint32_t length, float *vectors, struct err *err)
{
    const bool pooled = output->rank == 2;
    const uint32_t width = text->width;
    const float *data = output->data;

    if (output->type != ONNX_FLOAT32 || (output->rank != 2 && output->rank != 3) ||
        output->dims[0] != count || (!pooled && output->dims[1] != length) ||
        output->dims[output->rank - 1] != width) {
        char shape[ONNX_SHAPE_TEXT_SIZE];

        onnx_shape_text(output->dims, output->rank, shape);
        return err_set(err, ERR_MISMATCH,
                       "output '%.80s' is %s for %u texts of %u tokens and vectors of %u",
                       text->model->outputs[text->output].name, shape, count, length, width);
    }
    for (uint32_t row = 0; row < count; row++) {
        float *to = vectors + (uint64_t)(first + row) * width;

        if (pooled)
            memcpy(to, data + (uint64_t)row * width, width * sizeof(*to));
        else
            pool_row(text, data + (uint64_t)row * length * width,
                     batch->offsets[first + row + 1] - batch->offsets[first + row], to);
        if (text->config.normalize)
            scale_row(width, to);
    }
    return 0;
}

static int run_group(struct onnx_text *text, const struct bert_batch *batch, uint32_t first,
                     uint32_t count, float *vectors, struct err *err)
{
    const uint32_t length = batch->offsets[first + 1] - batch->offsets[first];
    struct onnx_tensor inputs[ONNX_INPUT_COUNT_MAX];
    OWNED(onnx_results_done) struct onnx_results results = {.count = 0};
    const struct onnx_tensor *output = &results.tensors[text->output];
    int r;

    fill_cells(text, batch, first, count, length, inputs);
    r = onnx_session_run(text->session, text->model, inputs, text->wanted, &results, err);
    if (r < 0)
        return r;
    if (text->width == 0 && output->rank > 0 && output->dims[output->rank - 1] > 0 &&
        output->dims[output->rank - 1] <= ENCODER_HIDDEN_MAX) {
        text->width = (uint32_t)output->dims[output->rank - 1];
        return 0; /* the run that asks for the width */
    }
    return take_rows(text, output, batch, first, count, length, vectors, err);
}

/* Texts from `first` on that are at least four fifths as long, or nearly as long. */
static uint32_t group_size(const struct bert_batch *batch, uint32_t first)
{
    const uint32_t longest = batch->offsets[first + 1] - batch->offsets[first];
    uint32_t count = 1;

    while (first + count < batch->text_count) {
        const uint32_t at = first + count, size = batch->offsets[at + 1] - batch->offsets[at];

        assert(size <= longest); /* the longest comes first */
        if (size * 5 < longest * 4 && size + SLACK_TOKENS < longest)
            break;
        count++;
    }
    return count;
}

int onnx_text_run(void *self, const struct bert_batch *batch, float *vectors,
                  uint32_t *ret_pad_count, struct err *err)
{
    struct onnx_text *text = self;
    uint32_t pad_count = 0;

    for (uint32_t first = 0; first < batch->text_count;) {
        const uint32_t count = group_size(batch, first);
        const uint32_t longest = batch->offsets[first + 1] - batch->offsets[first];
        int r = run_group(text, batch, first, count, vectors, err);

        if (r < 0)
            return r;
        pad_count += count * longest - (batch->offsets[first + count] - batch->offsets[first]);
        first += count;
    }
    *ret_pad_count = pad_count;
    return 0;
}

/* ---- the two ends ---- */

int onnx_text_open(const struct onnx_text_options *options, struct onnx_text **ret_text,
                   struct err *err)
{
    OWNED(onnx_text_close) struct onnx_text *text = xcalloc(1, sizeof(*text));
    const uint32_t ids[] = {0, 0}, offsets[] = {0, 2};
    const struct bert_batch one = {ids, offsets, 1, NULL};
    int r;

    text->session = options->session;
    text->model = options->model;
    r = read_config(options->dir, options->model, &text->config, err);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < text->model->input_count; i++)
        (void)find_feed(text->model->inputs[i].name, &text->feeds[i]);
    text->output = pick_output(text->model);
    text->wanted[text->output] = true;
    /* A group is padded by a quarter, or by SLACK_TOKENS for each text of 2 tokens at least. */
    for (int i = 0; i < FEED_COUNT; i++)
        text->cells[i] = xcalloc((uint64_t)options->token_max * (1 + SLACK_TOKENS / 2),
                                 sizeof(*text->cells[i]));
    r = run_group(text, &one, 0, 1, NULL, err);
    if (r == 0 && text->width == 0)
        r = err_set(err, ERR_UNSUPPORTED, "output '%.80s' has no width of 1 to %u",
                    text->model->outputs[text->output].name, ENCODER_HIDDEN_MAX);
    if (r < 0)
        return r;
    (void)snprintf(text->pooling, sizeof(text->pooling), "%s%s",
                   strcmp(text->model->outputs[text->output].name, "sentence_embedding") == 0
                       ? "its own pooling"
                       : encoder_pooling_name(text->config.pooling),
                   text->config.normalize ? ", normalized" : "");
    *ret_text = TAKE(text);
    return 0;
}

void onnx_text_close(struct onnx_text **text_p)
{
    struct onnx_text *text = TAKE(*text_p);

    if (text == NULL)
        return;
    for (int i = 0; i < FEED_COUNT; i++)
        free(text->cells[i]);
    free(text);
}

uint32_t onnx_text_width(const struct onnx_text *text)
{
    return text->width;
}

const char *onnx_text_pooling(const struct onnx_text *text)
{
    return text->pooling;
}

uint32_t onnx_text_length(const struct onnx_text *text)
{
    return text->config.token_count_max;
}
