/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A list of tokens that grows as a tokenizer puts them, up to a limit: what a text became, without
 * what a model wants around it. Spans are there when they are asked for: which characters (code
 * points) of the text a token stands for, from `first` up to, not including, `last`.
 *
 * A list whose ids are the caller's array has room == count_max and never grows.
 *
 * Thread: its owner's.   Tests: tests/unit/test_wordpiece.c, test_tokenizer.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/mem.h"

struct token_span {
    uint32_t first, last;
};

struct token_list {
    uint32_t *ids;
    struct token_span *spans; /* NULL unless with_spans */
    uint32_t count, room, count_max;
    bool with_spans;
    bool truncated; /* more came than count_max */
};

/* Makes room for one more; for token_list_put(). */
void token_list_grow(struct token_list *list);

static inline void token_list_put(struct token_list *list, uint32_t id, uint32_t first,
                                  uint32_t last)
{
    if (list->count == list->count_max) {
        list->truncated = true;
        return;
    }
    if (list->count == list->room)
        token_list_grow(list);
    list->ids[list->count] = id;
    if (list->with_spans)
        list->spans[list->count] = (struct token_span){first, last};
    list->count++;
}

/* Empties the list, which keeps its memory, and sets what it is filled with next. */
void token_list_begin(struct token_list *list, uint32_t count_max, bool with_spans);
void token_list_done(struct token_list *list);
