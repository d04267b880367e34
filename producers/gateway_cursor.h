/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Where a reader of a job's stream stands, and what an entry means to it: the next piece, one of a
 * new attempt that voids what came before, one behind a gap, or one that it has.
 *
 * Pure.   Thread: any.   Tests: tests/unit/test_gateway_cursor.c
 */

#include <stdbool.h>

#include "brokers/cache_place.h"
#include "schema/message.h"

struct cursor {
    struct cache_place place; /* of the entry that was taken last; token 0: none */
    uint64_t offset;          /* bytes of the answer up to there */
    bool knows_offset;        /* false: it was handed a place from outside */
    bool complete;            /* the last entry of the attempt was taken */
};

struct cursor_step {
    bool old;   /* nothing new */
    bool begin; /* the first of an attempt that is seen here */
    bool reset; /* … and another attempt's pieces were taken before */
    bool gap;   /* entries are missing before this one */
    bool knows_lost;
    uint64_t lost_size; /* bytes that are missing, if known */
};

void cursor_init(struct cursor *cursor);                              /* at the beginning */
void cursor_init_at(struct cursor *cursor, struct cache_place place); /* behind an entry */

struct cursor_step cursor_look(const struct cursor *cursor, struct cache_place place,
                               const struct message_piece *piece);
void cursor_take(struct cursor *cursor, struct cache_place place,
                 const struct message_piece *piece);
