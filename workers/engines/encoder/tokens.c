/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/tokens.h"

#include <stdlib.h>

#define ROOM_LEAST 64u

void token_list_grow(struct token_list *list)
{
    list->room = list->room < ROOM_LEAST ? ROOM_LEAST : 2 * list->room;
    list->ids = xrealloc(list->ids, list->room, sizeof(*list->ids));
    if (list->with_spans)
        list->spans = xrealloc(list->spans, list->room, sizeof(*list->spans));
}

void token_list_begin(struct token_list *list, uint32_t count_max, bool with_spans)
{
    if (with_spans && list->room > 0)
        list->spans = xrealloc(list->spans, list->room, sizeof(*list->spans));
    list->count = 0;
    list->count_max = count_max;
    list->with_spans = with_spans;
    list->truncated = false;
}

void token_list_done(struct token_list *list)
{
    free(list->spans);
    free(list->ids);
    *list = (struct token_list){0};
}
