/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Following jobs: until each is final, and its answer piece by piece.
 *
 *     follow_new() ─▶ on_news … follow_read() ─▶ on_piece … on_read     pieces, as there is room
 *                  └▶ on_final                                         the job is over
 *
 * News come as wake-ups on Redis' channels, which are hints: what is final is read from its key in
 * Redis, else from Postgres, and Postgres is asked for all that nobody was heard of, first after
 * 250 ms (DESIGN 3.4). Pieces are read from the job's stream in Redis, only when there is room for
 * them: what a slow reader has not taken stays there.
 *
 * Any of the calls may free its follow. Thread: the gateway's loop.
 */

#include <stdbool.h>

#include "producers/gateway_cursor.h"

struct follow;
struct gateway;

struct follow_calls {
    /* The job is final; borrowed. Comes again for each follow_ask_final(). */
    void (*on_final)(void *opaque, const struct message_completed *completed);

    /* NULL, as the next two: no pieces are wanted. follow_read() may find some. */
    void (*on_news)(void *opaque);

    /* The next entry. False: there is no room, it comes again with the next reading. */
    bool (*on_piece)(void *opaque, const struct cursor_step *step, struct cache_place place,
                     const struct message_piece *piece);

    /* The reading is over. caught_up: there is nothing more now, or Redis cannot be read. */
    void (*on_read)(void *opaque, bool caught_up);
};

/* alone: nobody but this gateway is woken for the job. cursor: where to begin. Calls are borrowed.
 */
struct follow *follow_new(struct gateway *gateway, const struct wire_id *id, bool alone,
                          const struct cursor *cursor, const struct follow_calls *calls,
                          void *opaque);
void follow_free(struct follow **follow_p);

/* Tells what was said of the job before anybody followed it: a worker may be quicker than Kafka's
 * report to us. */
void follow_catch_up(struct follow *follow);

void follow_read(struct follow *follow);      /* one reading; on_read ends it */
void follow_ask_final(struct follow *follow); /* at once, wherever it stands */
const struct cursor *follow_cursor(const struct follow *follow);
