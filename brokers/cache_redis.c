/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The cache in Redis: commands on one connection, wake-ups on another.
 *
 * Happy path: a command goes into hiredis' buffer, all of a turn leave in one write, each reply
 * calls its caller back.
 *
 * Failures: the connection is lost: every pending call is answered ERR_UNAVAILABLE, later ones are
 * refused with it until the connection is back. No reply at all for reply_timeout_ms while some are
 * due: the connection is given up.
 *
 * At shutdown: pending calls are dropped.
 *
 * Thread: the loop's.   Tests: tests/unit/test_cache.c
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/loop.h"
#include "brokers/cache.h"
#include "brokers/cache_link.h"
#include "schema/job_id.h"

#define IN_FLIGHT_MAX_DEFAULT 50000
#define IN_FLIGHT_SIZE_MAX_DEFAULT (64u << 20)
#define REPLY_TIMEOUT_MS_DEFAULT 2000
#define KEY_FINAL "headrace:final:"
#define CHANNEL_WAKE "headrace:wake:"
#define KEY_SIZE 128
#define BOOT_SIZE_MAX 64
#define ARGUMENTS_MAX 32

struct cache {
    struct loop *loop;
    struct cache_options options;
    struct cache_address address;
    struct cache_link *link;
    struct loop_timer *timer;
    struct cache_counts counts;
    size_t in_flight_size;
    uint64_t last_reply_ms;
    bool silent;
    uint32_t listener_count;
};

struct call {
    struct cache *cache;
    cache_done_fn *done;
    void *opaque;
    size_t size;
};

struct cache_listener {
    struct cache *cache;
    struct cache_link *link;
    const struct cache_listener_calls *calls;
    void *opaque;
    char channel[KEY_SIZE];
};

/* ---- The connection for commands */

static void cache_up(void *opaque)
{
    struct cache *cache = opaque;

    cache->counts.connects++;
    cache->last_reply_ms = loop_now_ms(cache->loop);
    if (cache->options.on_state != NULL)
        cache->options.on_state(cache->options.opaque, true);
}

static void cache_down(void *opaque)
{
    struct cache *cache = opaque;

    if (cache->options.on_state != NULL)
        cache->options.on_state(cache->options.opaque, false);
}

static const struct cache_link_calls cache_calls = {cache_up, cache_down};

static void cache_check(void *opaque)
{
    struct cache *cache = opaque;

    if (cache->counts.in_flight > 0 &&
        loop_now_ms(cache->loop) - cache->last_reply_ms > cache->options.reply_timeout_ms)
        cache_link_drop(cache->link);
}

int cache_open(struct loop *loop, const struct cache_options *options, struct cache **ret_cache,
               struct err *err)
{
    struct cache_address address;
    struct cache *cache;
    int r = cache_address_parse(options->url != NULL ? options->url : "", &address, err);

    if (r < 0)
        return r;
    cache = xcalloc(1, sizeof(*cache));
    cache->loop = loop;
    cache->options = *options;
    cache->options.url = NULL; /* borrowed only for the call */
    if (cache->options.in_flight_max == 0)
        cache->options.in_flight_max = IN_FLIGHT_MAX_DEFAULT;
    if (cache->options.in_flight_size_max == 0)
        cache->options.in_flight_size_max = IN_FLIGHT_SIZE_MAX_DEFAULT;
    if (cache->options.reply_timeout_ms == 0)
        cache->options.reply_timeout_ms = REPLY_TIMEOUT_MS_DEFAULT;
    cache->address = address;
    cache->link = cache_link_new(loop, &cache->address, &cache_calls, cache);
    cache->timer = loop_timer_new(loop, cache_check, cache);
    loop_timer_start(cache->timer, cache->options.reply_timeout_ms / 4 + 1,
                     cache->options.reply_timeout_ms / 4 + 1);
    *ret_cache = cache;
    return 0;
}

void cache_close(struct cache **cache_p)
{
    struct cache *cache = TAKE(*cache_p);

    if (cache == NULL)
        return;
    assert(cache->listener_count == 0);
    cache->silent = true;
    cache_link_free(&cache->link);
    loop_timer_free(&cache->timer);
    cache_address_done(&cache->address);
    free(cache);
}

bool cache_connected(const struct cache *cache)
{
    return cache_link_context(cache->link) != NULL;
}

struct cache_counts cache_counts(const struct cache *cache)
{
    return cache->counts;
}

/* ---- Commands */

static void call_answer(struct call *call, const redisReply *reply)
{
    char number[24];

    if (reply == NULL) {
        call->done(call->opaque, ERR_UNAVAILABLE, NULL, 0);
        return;
    }
    switch (reply->type) {
    case REDIS_REPLY_NIL:
        call->done(call->opaque, ERR_NOT_FOUND, NULL, 0);
        break;
    case REDIS_REPLY_ERROR:
        call->done(call->opaque, ERR_IO, reply->str, reply->len);
        break;
    case REDIS_REPLY_INTEGER:
        call->done(call->opaque, ERR_OK, number,
                   (size_t)snprintf(number, sizeof(number), "%lld", reply->integer));
        break;
    case REDIS_REPLY_STRING:
    case REDIS_REPLY_STATUS:
        call->done(call->opaque, ERR_OK, reply->str, reply->len);
        break;
    default:
        call->done(call->opaque, ERR_OK, NULL, 0);
        break;
    }
}

static void on_reply(redisAsyncContext *context, void *reply_p, void *opaque)
{
    struct call *call = opaque;
    struct cache *cache = call->cache;
    const redisReply *reply = reply_p;

    (void)context;
    cache->counts.in_flight--;
    cache->in_flight_size -= call->size;
    if (reply == NULL || reply->type == REDIS_REPLY_ERROR)
        cache->counts.failed++;
    if (reply != NULL)
        cache->last_reply_ms = loop_now_ms(cache->loop);
    if (call->done != NULL && !cache->silent)
        call_answer(call, reply);
    free(call);
}

int cache_command(struct cache *cache, size_t argument_count, const char *const *arguments,
                  const size_t *argument_sizes, cache_done_fn *done, void *opaque)
{
    redisAsyncContext *context = cache_link_context(cache->link);
    const char *borrowed[ARGUMENTS_MAX];
    struct call *call;
    size_t size = 0;

    assert(argument_count > 0 && argument_count <= ARGUMENTS_MAX);
    for (size_t i = 0; i < argument_count; i++) {
        borrowed[i] = arguments[i];
        size += argument_sizes[i];
    }
    if (context == NULL) {
        cache->counts.failed++;
        return ERR_UNAVAILABLE;
    }
    if (cache->counts.in_flight >= cache->options.in_flight_max ||
        cache->in_flight_size + size > cache->options.in_flight_size_max) {
        cache->counts.failed++;
        return ERR_FULL;
    }
    call = xmalloc(sizeof(*call));
    *call = (struct call){.cache = cache, .done = done, .opaque = opaque, .size = size};
    if (redisAsyncCommandArgv(context, on_reply, call, (int)argument_count, borrowed,
                              argument_sizes) != REDIS_OK) {
        free(call);
        cache->counts.failed++;
        return ERR_UNAVAILABLE;
    }
    if (cache->counts.in_flight++ == 0)
        cache->last_reply_ms = loop_now_ms(cache->loop);
    cache->in_flight_size += size;
    cache->counts.sent++;
    return 0;
}

static size_t final_key(const struct wire_id *id, char to[KEY_SIZE])
{
    const size_t prefix_size = sizeof(KEY_FINAL) - 1;

    memcpy(to, KEY_FINAL, prefix_size);
    job_id_format(id, to + prefix_size);
    return prefix_size + JOB_ID_TEXT_SIZE - 1;
}

int cache_set_final(struct cache *cache, const struct wire_id *id, const void *bytes, size_t size,
                    uint32_t ttl_s, cache_done_fn *done, void *opaque)
{
    char key[KEY_SIZE], ttl[16];
    const char *arguments[] = {"SET", key, bytes, "EX", ttl};
    const size_t sizes[] = {3, final_key(id, key), size, 2,
                            (size_t)snprintf(ttl, sizeof(ttl), "%" PRIu32, ttl_s)};

    return cache_command(cache, COUNT_OF(arguments), arguments, sizes, done, opaque);
}

int cache_get_final(struct cache *cache, const struct wire_id *id, cache_done_fn *done,
                    void *opaque)
{
    char key[KEY_SIZE];
    const char *arguments[] = {"GET", key};
    const size_t sizes[] = {3, final_key(id, key)};

    return cache_command(cache, COUNT_OF(arguments), arguments, sizes, done, opaque);
}

int cache_wake(struct cache *cache, struct wire_text boot, const void *bytes, size_t size)
{
    char channel[KEY_SIZE];
    const char *arguments[] = {"PUBLISH", channel, bytes};
    size_t sizes[] = {7, 0, size};

    if (boot.size > BOOT_SIZE_MAX)
        boot.size = BOOT_SIZE_MAX;
    sizes[1] = (size_t)snprintf(channel, sizeof(channel), CHANNEL_WAKE "%.*s", (int)boot.size,
                                boot.text);
    return cache_command(cache, COUNT_OF(arguments), arguments, sizes, NULL, NULL);
}

/* ---- Listening */

/* Replies of a subscription: [subscribe, channel, count], then [message, channel, bytes] each. */
static void on_subscription(redisAsyncContext *context, void *reply_p, void *opaque)
{
    struct cache_listener *listener = opaque;
    const redisReply *reply = reply_p;

    (void)context;
    if (reply == NULL)
        return; /* the connection is going away: listener_up() subscribes again */
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 3 ||
        reply->element[0]->type != REDIS_REPLY_STRING)
        return;
    if (strcmp(reply->element[0]->str, "subscribe") == 0)
        listener->calls->on_subscribed(listener->opaque);
    else if (strcmp(reply->element[0]->str, "message") == 0 &&
             reply->element[2]->type == REDIS_REPLY_STRING)
        listener->calls->on_message(listener->opaque, reply->element[2]->str,
                                    reply->element[2]->len);
}

static void listener_up(void *opaque)
{
    struct cache_listener *listener = opaque;
    redisAsyncContext *context = cache_link_context(listener->link);

    if (context != NULL)
        (void)redisAsyncCommand(context, on_subscription, listener, "SUBSCRIBE %s",
                                listener->channel);
}

static void listener_down(void *opaque)
{
    (void)opaque; /* the link comes back by itself */
}

static const struct cache_link_calls listener_calls = {listener_up, listener_down};

int cache_listen(struct cache *cache, const char *boot, const struct cache_listener_calls *calls,
                 void *opaque, struct cache_listener **ret_listener, struct err *err)
{
    struct cache_listener *listener;

    if (strlen(boot) == 0 || strlen(boot) > BOOT_SIZE_MAX)
        return err_set(err, ERR_RANGE, "a boot's name has 1 to %d bytes, not %zu", BOOT_SIZE_MAX,
                       strlen(boot));
    listener = xcalloc(1, sizeof(*listener));
    listener->cache = cache;
    listener->calls = calls;
    listener->opaque = opaque;
    (void)snprintf(listener->channel, sizeof(listener->channel), CHANNEL_WAKE "%s", boot);
    listener->link = cache_link_new(cache->loop, &cache->address, &listener_calls, listener);
    cache->listener_count++;
    *ret_listener = listener;
    return 0;
}

void cache_listener_close(struct cache_listener **listener_p)
{
    struct cache_listener *listener = TAKE(*listener_p);

    if (listener == NULL)
        return;
    listener->cache->listener_count--;
    cache_link_free(&listener->link);
    free(listener);
}
