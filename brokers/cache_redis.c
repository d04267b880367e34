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

#define uthash_fatal(text) NEVER(text)
#define uthash_malloc(size) xmalloc(size)
#include <uthash.h>

#define IN_FLIGHT_MAX_DEFAULT 50000
#define IN_FLIGHT_SIZE_MAX_DEFAULT (64u << 20)
#define REPLY_TIMEOUT_MS_DEFAULT 2000
#define KEY_FINAL "headrace:final:"
#define KEY_STREAM "headrace:stream:"
#define CHANNEL_WAKE "headrace:wake:"
#define ENTRY_FIELD "m"
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
    cache_entries_fn *entries_done; /* of a stream's reading, instead of the other */
    void *opaque;
    size_t size;
};

/* A channel that a listener hears besides its own. */
struct joined {
    UT_hash_handle hh;
    uint32_t count;
    char channel[KEY_SIZE];
};

struct cache_listener {
    struct cache *cache;
    struct joined *joined;
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

/* [id, [field, value]]; what has no field of ours holds nothing. */
static bool entry_read(const redisReply *reply, struct cache_entry *ret_entry)
{
    const redisReply *fields;

    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
        reply->element[0]->type != REDIS_REPLY_STRING ||
        !cache_place_parse(reply->element[0]->str, reply->element[0]->len, &ret_entry->place))
        return false;
    fields = reply->element[1];
    ret_entry->bytes = NULL;
    ret_entry->size = 0;
    if (fields->type == REDIS_REPLY_ARRAY && fields->elements == 2 &&
        fields->element[1]->type == REDIS_REPLY_STRING) {
        ret_entry->bytes = fields->element[1]->str;
        ret_entry->size = fields->element[1]->len;
    }
    return true;
}

static void call_answer_entries(struct call *call, const redisReply *reply)
{
    struct cache_entry entries[CACHE_ENTRIES_MAX];
    size_t count = 0;
    int code = reply == NULL ? ERR_UNAVAILABLE : reply->type != REDIS_REPLY_ARRAY ? ERR_IO : ERR_OK;

    while (code == ERR_OK && count < reply->elements && count < CACHE_ENTRIES_MAX &&
           entry_read(reply->element[count], &entries[count]))
        count++;
    call->entries_done(call->opaque, code, entries, count);
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
    if (call->entries_done != NULL && !cache->silent)
        call_answer_entries(call, reply);
    else if (call->done != NULL && !cache->silent)
        call_answer(call, reply);
    free(call);
}

/* cache_command() with whom to call back. */
static int command_send(struct cache *cache, size_t argument_count, const char *const *arguments,
                        const size_t *argument_sizes, struct call back)
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
    *call = back;
    call->cache = cache;
    call->size = size;
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

int cache_command(struct cache *cache, size_t argument_count, const char *const *arguments,
                  const size_t *argument_sizes, cache_done_fn *done, void *opaque)
{
    return command_send(cache, argument_count, arguments, argument_sizes,
                        (struct call){.done = done, .opaque = opaque});
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

/* ---- Streams */

static size_t stream_key(const struct wire_id *id, char to[KEY_SIZE])
{
    const size_t prefix_size = sizeof(KEY_STREAM) - 1;

    memcpy(to, KEY_STREAM, prefix_size);
    job_id_format(id, to + prefix_size);
    return prefix_size + JOB_ID_TEXT_SIZE - 1;
}

int cache_stream_add(struct cache *cache, const struct wire_id *id, struct cache_place place,
                     struct cache_place oldest, const void *bytes, size_t size, cache_done_fn *done,
                     void *opaque)
{
    char key[KEY_SIZE], least[CACHE_PLACE_TEXT_SIZE], at[CACHE_PLACE_TEXT_SIZE];
    const char *arguments[] = {"XADD", key, "MINID", "~", least, at, ENTRY_FIELD, bytes};
    size_t sizes[] = {4,
                      stream_key(id, key),
                      5,
                      1,
                      cache_place_format(oldest, least),
                      cache_place_format(place, at),
                      sizeof(ENTRY_FIELD) - 1,
                      size};

    return cache_command(cache, COUNT_OF(arguments), arguments, sizes, done, opaque);
}

int cache_stream_read(struct cache *cache, const struct wire_id *id, struct cache_place after,
                      uint32_t limit, cache_entries_fn *done, void *opaque)
{
    char key[KEY_SIZE], from[1 + CACHE_PLACE_TEXT_SIZE] = "(", count[16];
    const char *arguments[] = {"XRANGE", key, from, "+", "COUNT", count};
    const size_t sizes[] = {
        6,
        stream_key(id, key),
        1 + cache_place_format(after, from + 1),
        1,
        5,
        (size_t)snprintf(count, sizeof(count), "%" PRIu32,
                         limit < CACHE_ENTRIES_MAX ? limit : CACHE_ENTRIES_MAX)};

    return command_send(cache, COUNT_OF(arguments), arguments, sizes,
                        (struct call){.entries_done = done, .opaque = opaque});
}

int cache_stream_expire(struct cache *cache, const struct wire_id *id, uint32_t ttl_s)
{
    char key[KEY_SIZE], ttl[16];
    const char *arguments[] = {"EXPIRE", key, ttl};
    const size_t sizes[] = {6, stream_key(id, key),
                            (size_t)snprintf(ttl, sizeof(ttl), "%" PRIu32, ttl_s)};

    return cache_command(cache, COUNT_OF(arguments), arguments, sizes, NULL, NULL);
}

/* ---- Listening */

static void listener_subscribed(struct cache_listener *listener, const redisReply *channel)
{
    const size_t prefix_size = sizeof(CHANNEL_WAKE) - 1;

    if (channel->type != REDIS_REPLY_STRING || strcmp(channel->str, listener->channel) == 0)
        listener->calls->on_subscribed(listener->opaque);
    else if (listener->calls->on_joined != NULL && strlen(channel->str) > prefix_size)
        listener->calls->on_joined(listener->opaque, channel->str + prefix_size);
}

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
        listener_subscribed(listener, reply->element[1]);
    else if (strcmp(reply->element[0]->str, "message") == 0 &&
             reply->element[2]->type == REDIS_REPLY_STRING)
        listener->calls->on_message(listener->opaque, reply->element[2]->str,
                                    reply->element[2]->len);
}

static void listener_send(struct cache_listener *listener, const char *command, const char *channel)
{
    redisAsyncContext *context = cache_link_context(listener->link);

    if (context != NULL)
        (void)redisAsyncCommand(context, on_subscription, listener, "%s %s", command, channel);
}

static void listener_up(void *opaque)
{
    struct cache_listener *listener = opaque;
    struct joined *joined, *next;

    listener_send(listener, "SUBSCRIBE", listener->channel);
    HASH_ITER(hh, listener->joined, joined, next)
    {
        listener_send(listener, "SUBSCRIBE", joined->channel);
    }
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

static struct joined *joined_find(struct cache_listener *listener, const char *name,
                                  char channel[KEY_SIZE])
{
    struct joined *joined;

    (void)snprintf(channel, KEY_SIZE, CHANNEL_WAKE "%.*s", BOOT_SIZE_MAX, name);
    HASH_FIND_STR(listener->joined, channel, joined);
    return joined;
}

void cache_listener_join(struct cache_listener *listener, const char *name)
{
    char channel[KEY_SIZE];
    struct joined *joined = joined_find(listener, name, channel);

    if (joined == NULL) {
        joined = xcalloc(1, sizeof(*joined));
        mem_copy_text(joined->channel, channel);
        HASH_ADD_STR(listener->joined, channel, joined);
        listener_send(listener, "SUBSCRIBE", joined->channel);
    }
    joined->count++;
}

void cache_listener_leave(struct cache_listener *listener, const char *name)
{
    char channel[KEY_SIZE];
    struct joined *joined = joined_find(listener, name, channel);

    if (joined == NULL || --joined->count > 0)
        return;
    HASH_DEL(listener->joined, joined);
    listener_send(listener, "UNSUBSCRIBE", joined->channel);
    free(joined);
}

void cache_listener_close(struct cache_listener **listener_p)
{
    struct cache_listener *listener = TAKE(*listener_p);
    struct joined *joined, *next;

    if (listener == NULL)
        return;
    HASH_ITER(hh, listener->joined, joined, next)
    {
        HASH_DEL(listener->joined, joined);
        free(joined);
    }
    listener->cache->listener_count--;
    cache_link_free(&listener->link);
    free(listener);
}
