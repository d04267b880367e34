/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/encoder_scores.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "workers/engines/encoder/encoder_entities.h"
#include "workers/engines/encoder/encoder_output.h"

/* Bytes around a score, and of a JSON text made from one of so many bytes. */
#define AROUND 96u
#define QUOTED(size) (6ull * (size) + 2)

struct scored {
    uint32_t index;
    float score;
};

void encoder_softmax(float *row, uint32_t count)
{
    float high = row[0];
    double sum = 0;

    for (uint32_t i = 1; i < count; i++)
        high = row[i] > high ? row[i] : high;
    for (uint32_t i = 0; i < count; i++) {
        row[i] = expf(row[i] - high);
        sum += (double)row[i];
    }
    for (uint32_t i = 0; i < count; i++)
        row[i] = (float)((double)row[i] / sum);
}

void encoder_sigmoid(float *row, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        row[i] = 1.0f / (1.0f + expf(-row[i]));
}

static void write_text(const char *text, size_t size, struct buf *to)
{
    json_t *value = json_stringn(text, size);
    size_t quoted;
    uint8_t *room;

    if (value == NULL) /* a vocabulary may hold bytes that are no UTF-8 */
        value = json_string("\xef\xbf\xbd");
    quoted = json_dumpb(value, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY);
    room = buf_reserve(to, quoted);
    if (room != NULL &&
        json_dumpb(value, (char *)room, quoted, JSON_COMPACT | JSON_ENCODE_ANY) == quoted)
        buf_commit(to, quoted);
    json_decref(value);
}

static void write_score(float score, struct buf *to)
{
    uint8_t *room = buf_reserve(to, ENCODER_FLOAT_SIZE_MAX);

    if (room != NULL)
        buf_commit(to, encoder_float_write(score, (char *)room));
}

static int best_first(const void *a_p, const void *b_p)
{
    const struct scored *a = a_p, *b = b_p;

    if (a->score != b->score)
        return a->score > b->score ? -1 : 1;
    return a->index < b->index ? -1 : 1;
}

/* ---- /rerank and /predict ---- */

/* One text's row as it is answered. */
static void read_row(const struct encoder_scores *scores, uint32_t text, float *row)
{
    const uint32_t width = scores->labels->count;

    memcpy(row, scores->rows + (size_t)text * width, width * sizeof(*row));
    if (scores->input->raw_scores)
        return;
    if (width == 1 || scores->multi_label)
        encoder_sigmoid(row, width);
    else
        encoder_softmax(row, width);
}

static void write_ranks(const struct encoder_scores *scores, struct buf *to)
{
    const uint32_t count = scores->input->text_count;
    OWNED(mem_free) struct scored *ranks = xcalloc(count, sizeof(*ranks));

    assert(scores->labels->count == 1);
    for (uint32_t i = 0; i < count; i++) {
        ranks[i].index = i;
        read_row(scores, i, &ranks[i].score);
    }
    qsort(ranks, count, sizeof(*ranks), best_first);
    buf_append_byte(to, '[');
    for (uint32_t i = 0; i < count; i++) {
        buf_printf(to, "%s{\"index\":%u,\"score\":", i > 0 ? "," : "", ranks[i].index);
        write_score(ranks[i].score, to);
        if (scores->input->return_text) {
            size_t size;
            const char *text = encoder_input_second(scores->input, ranks[i].index, &size);

            buf_append_text(to, ",\"text\":");
            write_text(text, size, to);
        }
        buf_append_byte(to, '}');
    }
    buf_append_byte(to, ']');
}

static void write_predictions(const struct encoder_scores *scores, struct buf *to)
{
    const uint32_t width = scores->labels->count;
    OWNED(mem_free) struct scored *order = xcalloc(width, sizeof(*order));
    OWNED(mem_free) float *row = xcalloc(width, sizeof(*row));

    buf_append_byte(to, '[');
    for (uint32_t i = 0; i < scores->input->text_count; i++) {
        read_row(scores, i, row);
        for (uint32_t j = 0; j < width; j++)
            order[j] = (struct scored){j, row[j]};
        qsort(order, width, sizeof(*order), best_first);
        for (uint32_t j = 0; j < width; j++) {
            const char *name = scores->labels->names[order[j].index];

            buf_append_text(to, j > 0 ? "," : i > 0 ? ",[" : "[");
            buf_append_text(to, "{\"label\":");
            write_text(name, strlen(name), to);
            buf_append_text(to, ",\"score\":");
            write_score(order[j].score, to);
            buf_append_byte(to, '}');
        }
        buf_append_byte(to, ']');
    }
    buf_append_byte(to, ']');
}

/* ---- /predict_tokens ---- */

static void write_results(const struct encoder_scores *scores, const float *row, struct buf *to)
{
    const uint32_t width = scores->labels->count;
    uint32_t best = 0;

    for (uint32_t i = 1; i < width; i++) {
        if (row[i] > row[best])
            best = i;
    }
    for (uint32_t i = 0; i < width; i++) {
        const char *name = scores->labels->names[i];

        if (!scores->input->raw_scores && i != best)
            continue;
        buf_append_text(to, scores->input->raw_scores && i > 0 ? "," : "");
        write_text(name, strlen(name), to);
        buf_append_byte(to, ':');
        write_score(row[i], to);
    }
}

static void write_token(const struct encoder_scores *scores, uint32_t token, const float *row,
                        struct buf *to)
{
    const uint32_t id = scores->tokens->ids[token];
    const struct token_span span = scores->tokens->spans[token];
    char whole[1024];
    const char *prefix, *text;
    size_t size = tokenizer_text(scores->tokenizer, id, &prefix, &text);
    size_t prefix_size = strlen(prefix);

    assert(prefix_size + size <= sizeof(whole));
    memcpy(whole, prefix, prefix_size);
    memcpy(whole + prefix_size, text, size);
    buf_append_text(to, "{\"token\":");
    write_text(whole, prefix_size + size, to);
    buf_printf(to, ",\"token_id\":%u,\"start\":%u,\"end\":%u,\"results\":{", id, span.first,
               span.last);
    write_results(scores, row, to);
    buf_append_text(to, "}}");
}

/* Where character number `to` begins, going on from character *at of byte *byte. */
static size_t seek(const char *text, size_t size, uint32_t to, uint32_t *at, size_t *byte)
{
    if (to < *at) { /* two tokens may share a character */
        *at = 0;
        *byte = 0;
    }
    while (*byte < size && *at < to) {
        do
            (*byte)++;
        while (*byte < size && ((uint8_t)text[*byte] & 0xc0u) == 0x80u);
        (*at)++;
    }
    return *byte;
}

/* The first and the last token are what the model wants around the text. */
static void write_entities(const struct encoder_scores *scores, uint32_t index, const float *rows,
                           struct buf *to)
{
    const uint32_t first = scores->offsets[index] + 1;
    const uint32_t count = scores->offsets[index + 1] - first - 1;
    OWNED(mem_free) struct encoder_entity *entities = xcalloc(count + 1, sizeof(*entities));
    OWNED(mem_free) bool *continues = xcalloc(count + 1, sizeof(*continues));
    size_t text_size, byte = 0;
    const char *text = encoder_input_text(scores->input, index, &text_size);
    uint32_t entity_count, at = 0;

    for (uint32_t i = 0; i < count; i++)
        continues[i] = tokenizer_continues(scores->tokenizer, scores->tokens->ids[first + i],
                                           scores->tokens->spans[first + i], text, text_size);
    entity_count = encoder_entities(scores->labels, scores->input->aggregation,
                                    rows + scores->labels->count, scores->tokens->spans + first,
                                    continues, count, entities);
    for (uint32_t i = 0; i < entity_count; i++) {
        const size_t begin = seek(text, text_size, entities[i].span.first, &at, &byte);
        const size_t end = seek(text, text_size, entities[i].span.last, &at, &byte);

        buf_append_text(to, i > 0 ? ",{\"token\":" : "{\"token\":");
        write_text(text + begin, end - begin, to);
        buf_printf(to, ",\"token_id\":0,\"start\":%u,\"end\":%u,\"results\":{",
                   entities[i].span.first, entities[i].span.last);
        write_text(entities[i].kind, strlen(entities[i].kind), to);
        buf_append_byte(to, ':');
        write_score(entities[i].score, to);
        buf_append_text(to, "}}");
    }
}

static void write_tokens(const struct encoder_scores *scores, struct buf *to)
{
    const size_t width = scores->labels->count;
    OWNED(mem_free) float *rows = NULL;
    uint32_t longest = 0;

    for (uint32_t i = 0; i < scores->input->text_count; i++) {
        const uint32_t count = scores->offsets[i + 1] - scores->offsets[i];

        longest = count > longest ? count : longest;
    }
    rows = xcalloc(longest * width, sizeof(*rows));
    buf_append_byte(to, '[');
    for (uint32_t i = 0; i < scores->input->text_count; i++) {
        const uint32_t first = scores->offsets[i], count = scores->offsets[i + 1] - first;

        memcpy(rows, scores->rows + first * width, count * width * sizeof(*rows));
        for (uint32_t t = 0; t < count && !scores->input->raw_scores; t++)
            encoder_softmax(rows + t * width, (uint32_t)width);
        buf_append_text(to, i > 0 ? ",[" : "[");
        if (scores->input->aggregation != ENCODER_AGGREGATE_NONE)
            write_entities(scores, i, rows, to);
        for (uint32_t t = 0; scores->input->aggregation == ENCODER_AGGREGATE_NONE && t < count;
             t++) {
            buf_append_text(to, t > 0 ? "," : "");
            write_token(scores, first + t, rows + t * width, to);
        }
        buf_append_byte(to, ']');
    }
    buf_append_byte(to, ']');
}

/* ---- all three ---- */

static int check_finite(const struct encoder_scores *scores, struct err *err)
{
    const bool tokens = scores->input->route == ENCODER_ROUTE_PREDICT_TOKENS;
    const uint32_t width = scores->labels->count;

    for (uint32_t i = 0; i < scores->input->text_count; i++) {
        const size_t first = tokens ? scores->offsets[i] : i;
        const size_t last = tokens ? scores->offsets[i + 1] : i + 1;

        for (size_t j = first * width; j < last * width; j++) {
            if (!isfinite(scores->rows[j]))
                return err_set(err, ERR_INTERNAL,
                               "a score of input %u is not finite: the weights are broken, or too "
                               "large for this dtype",
                               i);
        }
    }
    return 0;
}

int encoder_scores_write(const struct encoder_scores *scores, struct buf *to, struct err *err)
{
    int r = check_finite(scores, err);

    if (r < 0)
        return r;
    switch (scores->input->route) {
    case ENCODER_ROUTE_RERANK:
        write_ranks(scores, to);
        return buf_check(to, "the answer", err);
    case ENCODER_ROUTE_PREDICT:
        write_predictions(scores, to);
        return buf_check(to, "the answer", err);
    case ENCODER_ROUTE_PREDICT_TOKENS:
        write_tokens(scores, to);
        return buf_check(to, "the answer", err);
    case ENCODER_ROUTE_EMBEDDINGS:
    case ENCODER_ROUTE_COUNT:
        break;
    }
    NEVER("the route has no scores; encoder_texts answers it with vectors");
}

uint64_t encoder_scores_size_max(const struct encoder_input *input, size_t input_size,
                                 const struct encoder_labels *labels, uint64_t token_count)
{
    uint64_t all_labels = 0, longest = 0;

    for (uint32_t i = 0; i < labels->count; i++) {
        const uint64_t size = QUOTED(strlen(labels->names[i])) + AROUND;

        all_labels += size;
        longest = size > longest ? size : longest;
    }
    switch (input->route) {
    case ENCODER_ROUTE_RERANK:
        return AROUND * (uint64_t)input->text_count + (input->return_text ? input_size : 0);
    case ENCODER_ROUTE_PREDICT:
        return input->text_count * (all_labels + AROUND);
    case ENCODER_ROUTE_PREDICT_TOKENS:
        if (input->aggregation != ENCODER_AGGREGATE_NONE)
            return input_size + token_count * (longest + AROUND);
        return input_size +
               token_count * ((input->raw_scores ? all_labels : longest) + 2ull * AROUND);
    case ENCODER_ROUTE_EMBEDDINGS:
    case ENCODER_ROUTE_COUNT:
        break;
    }
    return 0;
}
