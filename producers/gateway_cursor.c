/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_cursor.h"

void cursor_init(struct cursor *cursor)
{
    *cursor = (struct cursor){.knows_offset = true};
}

void cursor_init_at(struct cursor *cursor, struct cache_place place)
{
    *cursor = (struct cursor){.place = place};
}

static bool is_old(const struct cursor *cursor, struct cache_place place)
{
    return place.token < cursor->place.token ||
           (place.token == cursor->place.token && place.number <= cursor->place.number);
}

struct cursor_step cursor_look(const struct cursor *cursor, struct cache_place place,
                               const struct message_piece *piece)
{
    bool begin = place.token != cursor->place.token;
    struct cursor_step step = {.begin = begin,
                               .reset = begin && cursor->place.token != 0,
                               .gap = place.number != (begin ? 0 : cursor->place.number) + 1};

    if (is_old(cursor, place))
        return (struct cursor_step){.old = true};
    if (!step.gap)
        return step;
    step.knows_lost = begin || (cursor->knows_offset && piece->offset >= cursor->offset);
    if (step.knows_lost)
        step.lost_size = piece->offset - (begin ? 0 : cursor->offset);
    return step;
}

void cursor_take(struct cursor *cursor, struct cache_place place, const struct message_piece *piece)
{
    cursor->place = place;
    cursor->offset = piece->offset + piece->data.size;
    cursor->knows_offset = true;
    cursor->complete = piece->last;
}
