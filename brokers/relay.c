/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A line leads to each side: bytes that were read of the other one, or put there, and that are
 * still to be written. Each event of a descriptor reads once and writes once, so that one busy pair
 * does not hold up the loop.
 */

#include "brokers/relay.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "base/assert.h"
#include "base/buf.h"
#include "base/loop.h"

struct side {
    struct relay *relay;
    int fd;
    struct loop_watch *watch;
    unsigned watched;
    struct buf line; /* to be written to it, from `start` on */
    size_t start;
    uint64_t received; /* from it */
    bool ended;        /* it sends no more */
    bool broken;       /* it takes no more either */
    bool finishing;    /* its line is the last of it */
    bool finished;     /* and was written */
};

struct relay {
    struct loop *loop;
    struct relay_calls calls;
    void *opaque;
    struct side sides[2];
    struct loop_timer *linger, *over; /* over: tells from the loop, not from inside a call */
    uint64_t last_ms;
    bool stopped; /* on_bytes said so */
};

static int index_of(const struct side *side)
{
    return side == &side->relay->sides[0] ? 0 : 1;
}

static struct side *other_of(struct side *side)
{
    return &side->relay->sides[1 - index_of(side)];
}

static size_t line_size(const struct side *side)
{
    return side->line.size - side->start;
}

/* Its bytes are wanted and there is room for them; a side whose bytes go nowhere is read, too, to
 * see its end. */
static bool side_reads(const struct side *side)
{
    struct side *other = other_of((struct side *)(uintptr_t)side);

    if (side->ended)
        return false;
    return side->relay->stopped || other->broken || other->finishing ||
           line_size(other) < RELAY_SIZE;
}

static void side_watch(struct side *side)
{
    unsigned events = 0;

    if (side_reads(side))
        events |= LOOP_READABLE;
    if (!side->broken && line_size(side) > 0)
        events |= LOOP_WRITABLE;
    if (events != side->watched)
        loop_watch_set(side->watch, events);
    side->watched = events;
}

static void relay_check(struct relay *relay)
{
    bool over = true, ending = relay->stopped;

    for (int i = 0; i < 2; i++) {
        struct side *side = &relay->sides[i];

        side_watch(side);
        over = over && side->ended && (side->broken || line_size(side) == 0);
        ending = ending || side->ended || side->finishing;
    }
    if (over)
        loop_timer_start(relay->over, 0, 0);
    else if (ending && !loop_timer_is_running(relay->linger))
        loop_timer_start(relay->linger, RELAY_LINGER_MS, 0);
}

static void side_ends(struct side *side, bool broken)
{
    struct relay *relay = side->relay;

    side->broken = side->broken || broken;
    if (broken) {
        buf_clear(&side->line);
        side->start = 0;
    }
    if (side->ended)
        return;
    side->ended = true;
    if (relay->calls.on_eof == NULL || relay->calls.on_eof(relay->opaque, index_of(side)))
        relay_finish(relay, 1 - index_of(side));
}

static void side_write(struct side *side)
{
    ssize_t n;

    while (!side->broken && line_size(side) > 0) {
        n = send(side->fd, side->line.bytes + side->start, line_size(side),
                 MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (n < 0) {
            side_ends(side, true);
            return;
        }
        side->start += (size_t)n;
    }
    buf_clear(&side->line);
    side->start = 0;
    if (side->finishing && !side->finished && !side->broken) {
        side->finished = true;
        (void)shutdown(side->fd, SHUT_WR);
    }
}

static void side_take(struct side *side, const void *bytes, size_t size)
{
    struct relay *relay = side->relay;
    struct side *other = other_of(side);

    side->received += size;
    relay->last_ms = loop_now_ms(relay->loop);
    if (other->finishing || other->broken || relay->stopped)
        return;
    if (relay->calls.on_bytes != NULL &&
        !relay->calls.on_bytes(relay->opaque, index_of(side), bytes, size)) {
        relay->stopped = true;
        return;
    }
    relay_put(relay, index_of(other), bytes, size);
}

static void side_read(struct side *side)
{
    uint8_t bytes[RELAY_SIZE / 2];
    ssize_t n = recv(side->fd, bytes, sizeof(bytes), MSG_DONTWAIT);

    if (n > 0)
        side_take(side, bytes, (size_t)n);
    else if (n == 0)
        side_ends(side, false);
    else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
        side_ends(side, true);
}

static void side_event(void *opaque, unsigned events)
{
    struct side *side = opaque;

    if (events & LOOP_WRITABLE)
        side_write(side);
    if ((events & LOOP_READABLE) && side_reads(side))
        side_read(side);
    relay_check(side->relay);
}

static void on_over(void *opaque)
{
    struct relay *relay = opaque;

    for (int i = 0; i < 2; i++)
        loop_watch_set(relay->sides[i].watch, relay->sides[i].watched = 0);
    loop_timer_stop(relay->linger);
    loop_timer_stop(relay->over);
    if (relay->calls.on_end != NULL)
        relay->calls.on_end(relay->opaque);
}

int relay_new(struct loop *loop, const int fds[2], const struct relay_calls *calls, void *opaque,
              struct relay **ret_relay, struct err *err)
{
    OWNED(relay_free) struct relay *relay = xcalloc(1, sizeof(*relay));
    int r = 0;

    relay->loop = loop;
    relay->calls = *calls;
    relay->opaque = opaque;
    relay->last_ms = loop_now_ms(loop);
    for (int i = 0; i < 2; i++) {
        relay->sides[i] = (struct side){
            .relay = relay, .fd = fds[i], .line = BUF_WITH_LIMIT(SIZE_MAX / 4)};
    }
    for (int i = 0; r == 0 && i < 2; i++)
        r = loop_watch_new(loop, fds[i], side_event, &relay->sides[i], &relay->sides[i].watch, err);
    if (r < 0)
        return r;
    relay->linger = loop_timer_new(loop, on_over, relay);
    relay->over = loop_timer_new(loop, on_over, relay);
    relay_check(relay);
    *ret_relay = TAKE(relay);
    return 0;
}

void relay_free(struct relay **relay_p)
{
    struct relay *relay = TAKE(*relay_p);

    if (relay == NULL)
        return;
    for (int i = 0; i < 2; i++) {
        loop_watch_free(&relay->sides[i].watch);
        buf_done(&relay->sides[i].line);
    }
    loop_timer_free(&relay->linger);
    loop_timer_free(&relay->over);
    free(relay);
}

void relay_put(struct relay *relay, int side, const void *bytes, size_t size)
{
    struct side *to = &relay->sides[side];

    if (to->broken || to->finishing)
        return;
    if (to->start >= line_size(to)) {
        buf_consume(&to->line, to->start);
        to->start = 0;
    }
    buf_append(&to->line, bytes, size);
    side_write(to);
    relay_check(relay);
}

void relay_finish(struct relay *relay, int side)
{
    struct side *to = &relay->sides[side];

    to->finishing = true;
    side_write(to);
    relay_check(relay);
}

bool relay_has_ended(const struct relay *relay, int side)
{
    return relay->sides[side].ended;
}

bool relay_was_broken(const struct relay *relay, int side)
{
    return relay->sides[side].broken;
}

uint64_t relay_size_from(const struct relay *relay, int side)
{
    return relay->sides[side].received;
}

uint64_t relay_last_ms(const struct relay *relay)
{
    return relay->last_ms;
}
