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
 * commit that it tells of. Channels: headrace:wake:<boot> carries message_wake.
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

/* Any command, for what has no function of its own yet (token streams, rate limits). argv is
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
};

/* Listens to the wake-ups of one boot, on a connection of its own; boot is copied. */
int cache_listen(struct cache *cache, const char *boot, const struct cache_listener_calls *calls,
                 void *opaque, struct cache_listener **ret_listener, struct err *err) MUST_CHECK;
void cache_listener_close(struct cache_listener **listener_p); /* not from inside its callbacks */
