/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Redis as our programs use it: final results for those who poll, wake-ups for those who wait.
 *
 * Nothing in it is the truth (DESIGN 5): every call may fail, and its caller goes on without. While
 * Redis is away calls answer ERR_UNAVAILABLE at once and the cache keeps connecting (100 ms … 2 s).
 * Past in_flight_max they answer ERR_FULL. No callback comes from inside the call that asked.
 *
 * Keys: headrace:final:<id> holds an encoded message_completed and is written only after the
 * commit that it tells of; headrace:stream:<id> is a stream whose entries, <token>-<number>, hold a
 * message_piece each. Channels: headrace:wake:<boot or id> carries message_wake.
 *
 * Adapter: brokers/cache_redis.c, hiredis on our own libuv adapter (the shipped one loses refused
 * connections). SUBSCRIBE has a connection of its own.
 * Thread: the loop's.   Tests: tests/unit/test_cache.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/wire.h"
#include "brokers/cache_place.h"

struct cache;
struct cache_listener;
struct loop;

struct cache_options {
    const char *url;        /* redis://[[user]:password@]host[:port][/database], or unix:///path */
    uint32_t in_flight_max; /* commands without a reply [50,000] */
    size_t in_flight_size_max; /* their bytes [64 MiB] */
    uint32_t reply_timeout_ms; /* none for so long: the connection is given up [2,000] */
    void (*on_state)(void *opaque, bool connected); /* NULL: nobody wants to know */
    void *opaque;
};

/* Returns before it is connected. ERR_USAGE for a bad URL; rediss:// is refused by name: hiredis
 * 0.14 has no TLS, use a tunnel or a Unix socket. */
int cache_open(struct loop *loop, const struct cache_options *options, struct cache **ret_cache,
               struct err *err) MUST_CHECK;

/* Unanswered calls are dropped, their callbacks are not called. Listeners are closed first. Not
 * from inside a callback of the cache or of a listener. */
void cache_close(struct cache **cache_p);
bool cache_connected(const struct cache *cache);

/* code: ERR_OK, ERR_NOT_FOUND (get), ERR_UNAVAILABLE, ERR_IO. bytes are borrowed for the call. */
typedef void cache_done_fn(void *opaque, int code, const void *bytes, size_t size);

/* done may be NULL in all of them. They return 0, ERR_UNAVAILABLE or ERR_FULL; only after 0 is
 * done called, once. Bytes are copied. */
int cache_set_final(struct cache *cache, const struct wire_id *id, const void *bytes, size_t size,
                    uint32_t ttl_s, cache_done_fn *done, void *opaque);
int cache_get_final(struct cache *cache, const struct wire_id *id, cache_done_fn *done,
                    void *opaque);

/* Wakes a gateway: an encoded message_wake to the channel of its boot. */
int cache_wake(struct cache *cache, struct wire_text boot, const void *bytes, size_t size);

/* ---- streams of answers, by job ---- */

struct cache_entry {
    struct cache_place place;
    const void *bytes; /* borrowed for the call */
    size_t size;
};

/* Adds an entry; those before `oldest` may go (token 0: none). ERR_IO: one with a higher place is
 * there, so this attempt is over, or Redis has failed otherwise. */
int cache_stream_add(struct cache *cache, const struct wire_id *id, struct cache_place place,
                     struct cache_place oldest, const void *bytes, size_t size, cache_done_fn *done,
                     void *opaque);

/* Up to `limit` entries behind a place, in order; none at all is ERR_OK and count 0. */
typedef void cache_entries_fn(void *opaque, int code, const struct cache_entry *entries,
                              size_t count);
#define CACHE_ENTRIES_MAX 64
int cache_stream_read(struct cache *cache, const struct wire_id *id, struct cache_place after,
                      uint32_t limit, cache_entries_fn *done, void *opaque);

/* ttl_s 0: at once. */
int cache_stream_expire(struct cache *cache, const struct wire_id *id, uint32_t ttl_s);

/* Any command, for what has no function of its own yet (rate limits). argv is
 * copied. A reply that is an integer arrives as its decimal text, an error as ERR_IO with its text,
 * nil as ERR_NOT_FOUND; arrays are not handed out. */
int cache_command(struct cache *cache, size_t argument_count, const char *const *arguments,
                  const size_t *argument_sizes, cache_done_fn *done, void *opaque);

struct cache_counts {
    uint32_t in_flight;
    uint64_t sent, failed; /* failed: answered with an error, lost or refused */
    uint64_t connects;
};
struct cache_counts cache_counts(const struct cache *cache);

/* ---- listening ---- */

struct cache_listener_calls {
    void (*on_message)(void *opaque, const void *bytes, size_t size);

    /* The subscription is in place (again): what was sent before is lost; look for yourself. */
    void (*on_subscribed)(void *opaque);

    /* The same of a channel that was joined; NULL: nobody wants to know. */
    void (*on_joined)(void *opaque, const char *name);
};

/* Listens to the wake-ups of one boot, on a connection of its own; boot is copied. */
int cache_listen(struct cache *cache, const char *boot, const struct cache_listener_calls *calls,
                 void *opaque, struct cache_listener **ret_listener, struct err *err) MUST_CHECK;

/* The same listener hears another channel too, until it is left: the name as of cache_listen().
 * What was asked for is subscribed again with each connection. Joined twice, it is to be left
 * twice. */
void cache_listener_join(struct cache_listener *listener, const char *name);
void cache_listener_leave(struct cache_listener *listener, const char *name);
void cache_listener_close(struct cache_listener **listener_p); /* not from inside its callbacks */
