/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/encoder_entities.h"

#include <string.h>

#include "base/assert.h"

/* A word, or a token where words do not matter. */
struct part {
    uint32_t label;
    float score;
    struct token_span span;
};

static uint32_t best(const float *row, uint32_t count)
{
    uint32_t at = 0;

    for (uint32_t i = 1; i < count; i++) {
        if (row[i] > row[at])
            at = i;
    }
    return at;
}

static float average_of(const float *rows, uint32_t width, uint32_t count, uint32_t label)
{
    float sum = 0;

    for (uint32_t i = 0; i < count; i++)
        sum += rows[(size_t)i * width + label];
    return sum / (float)count;
}

/* The label and score of a word of `count` tokens. */
static struct part judge(enum encoder_aggregation aggregation, const float *rows, uint32_t width,
                         uint32_t count)
{
    struct part part = {.label = 0};
    uint32_t surest = 0;

    if (aggregation == ENCODER_AGGREGATE_AVERAGE) {
        part.score = average_of(rows, width, count, 0);
        for (uint32_t label = 1; label < width; label++) {
            const float score = average_of(rows, width, count, label);

            if (score > part.score)
                part = (struct part){.label = label, .score = score};
        }
        return part;
    }
    for (uint32_t i = 1; aggregation == ENCODER_AGGREGATE_MAX && i < count; i++) {
        const float *row = rows + (size_t)i * width, *top = rows + (size_t)surest * width;

        if (row[best(row, width)] > top[best(top, width)])
            surest = i;
    }
    rows += (size_t)surest * width;
    part.label = best(rows, width);
    part.score = rows[part.label];
    return part;
}

static const char *kind_of(const char *label, bool *ret_begins)
{
    *ret_begins = strncmp(label, "B-", 2) == 0;
    return *ret_begins || strncmp(label, "I-", 2) == 0 ? label + 2 : label;
}

/* What the reference calls an entity: the label behind its first dash. */
static const char *name_of(const char *label)
{
    const char *dash = strchr(label, '-');

    return dash != NULL ? dash + 1 : label;
}

/* The entity that is being collected; done when another begins. */
struct group {
    uint32_t label, count;
    float sum;
    struct token_span span;
};

static uint32_t close_group(const struct encoder_labels *labels, const struct group *group,
                            struct encoder_entity *entities, uint32_t count)
{
    const char *name = name_of(labels->names[group->label]);

    if (group->count == 0 || strcmp(name, "O") == 0)
        return count;
    entities[count] = (struct encoder_entity){
        .kind = name, .score = group->sum / (float)group->count, .span = group->span};
    return count + 1;
}

uint32_t encoder_entities(const struct encoder_labels *labels, enum encoder_aggregation aggregation,
                          const float *rows, const struct token_span *spans, const bool *continues,
                          uint32_t token_count, struct encoder_entity *entities)
{
    const uint32_t width = labels->count;
    const bool words = aggregation != ENCODER_AGGREGATE_SIMPLE;
    struct group group = {.count = 0};
    uint32_t entity_count = 0;

    assert(aggregation != ENCODER_AGGREGATE_NONE);
    for (uint32_t at = 0, size; at < token_count; at += size) {
        bool begins, last_begins;
        struct part part;
        const char *kind;

        for (size = 1; words && at + size < token_count && continues[at + size];)
            size++;
        part = judge(aggregation, rows + (size_t)at * width, width, size);
        kind = kind_of(labels->names[part.label], &begins);
        if (group.count == 0 || begins ||
            strcmp(kind, kind_of(labels->names[group.label], &last_begins)) != 0) {
            entity_count = close_group(labels, &group, entities, entity_count);
            group = (struct group){.label = part.label, .span = spans[at]};
        }
        group.span.last = spans[at + size - 1].last;
        group.sum += part.score;
        group.count++;
    }
    return close_group(labels, &group, entities, entity_count);
}
