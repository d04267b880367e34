/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Carries bytes between two stream sockets, both ways, until both have ended.
 *
 *     side 0 ──bytes──▶ room for RELAY_SIZE ──▶ side 1       and the same the other way
 *
 * A side that does not read stops the other one's sender: nothing is read that there is no room
 * for. The end of one side is passed on behind its last byte (half a close); once one side has
 * ended, or is to end, RELAY_LINGER_MS are left for the rest.
 *
 * Failures: a side that breaks has ended, and what was to be sent to it is dropped.
 * Thread: the loop's.   Tests: tests/unit/test_relay.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct loop;
struct relay;

#define RELAY_SIZE (64u << 10)
#define RELAY_LINGER_MS 5000

struct relay_calls { /* each may be NULL; relay_free() is allowed in on_end alone */
    /* Bytes of a side, before they are passed on. False: they are not, and nothing after them of
     * either side; the linger begins. */
    bool (*on_bytes)(void *opaque, int side, const void *bytes, size_t size);
    /* A side has ended. True: that is passed on. False: relay_finish() will do it, later or now. */
    bool (*on_eof)(void *opaque, int side);
    /* Both have, or the linger is over. */
    void (*on_end)(void *opaque);
};

/* Sockets that are connected and non-blocking; they stay the caller's, who closes them after the
 * relay was freed. Begins to read with the next turn. */
int relay_new(struct loop *loop, const int fds[2], const struct relay_calls *calls, void *opaque,
              struct relay **ret_relay, struct err *err) MUST_CHECK;
void relay_free(struct relay **relay_p);

/* Bytes for a side behind all that were read for it, past any limit; of a side that has broken they
 * are dropped. */
void relay_put(struct relay *relay, int side, const void *bytes, size_t size);

/* The other side sends no more: a close for reading, behind what is to be sent to this one. Nothing
 * more of the other one is passed on. */
void relay_finish(struct relay *relay, int side);

bool relay_has_ended(const struct relay *relay, int side);  /* it sends no more */
bool relay_was_broken(const struct relay *relay, int side); /* … because of an error */
uint64_t relay_size_from(const struct relay *relay, int side);
uint64_t relay_last_ms(const struct relay *relay); /* loop_now_ms() when bytes came, from either */
