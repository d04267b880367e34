/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One connection to Redis that comes back: resolve, connect, AUTH and SELECT, PING, and after a
 * loss all of it again (100 ms, doubled up to 2 s). Only brokers/cache_*.c include it.
 *
 * It carries our libuv adapter for hiredis. The one that comes with hiredis 0.14 returns at once
 * when libuv reports a fault of the descriptor, and libuv has then stopped the handle: a refused
 * connection is lost without any callback. Ours lets hiredis read and write into the fault, where
 * it finds the error. Commands of one turn of the loop leave in one write, without waiting for
 * the descriptor to be called writable.
 *
 * Thread: the loop's.
 */

#include <hiredis/async.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct loop;

struct cache_address {
    char *host; /* NULL: path is set */
    char *path; /* of a Unix socket */
    uint16_t port;
    char *user, *password; /* NULL: none */
    uint32_t database;
};

int cache_address_parse(const char *url, struct cache_address *ret_address,
                        struct err *err) MUST_CHECK;
void cache_address_done(struct cache_address *address);

struct cache_link_calls {
    void (*on_up)(void *opaque);   /* commands may be sent */
    void (*on_down)(void *opaque); /* the connection is gone; pending replies came as NULL before */
};

struct cache_link;

/* Borrows address and calls. Starts connecting in the next turn. */
struct cache_link *cache_link_new(struct loop *loop, const struct cache_address *address,
                                  const struct cache_link_calls *calls, void *opaque);

/* No call comes after it; pending replies still come, as NULL, from inside. */
void cache_link_free(struct cache_link **link_p);

/* The context to send commands on; NULL while it is not up. */
redisAsyncContext *cache_link_context(const struct cache_link *link);

/* Gives the connection up and makes a new one: a reply is overdue, or makes no sense. */
void cache_link_drop(struct cache_link *link);
