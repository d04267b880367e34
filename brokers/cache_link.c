/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/cache_link.h"

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "base/assert.h"
#include "base/loop.h"

#define BACKOFF_MS_MIN 100
#define BACKOFF_MS_MAX 2000
#define CONNECT_TIMEOUT_MS 2000
#define URL_SIZE_MAX 1024
#define PORT_DEFAULT 6379
#define DATABASE_MAX 1023

struct cache_link {
    struct loop *loop;
    const struct cache_address *address;
    const struct cache_link_calls *calls;
    void *opaque;
    redisAsyncContext *context; /* NULL between connections */
    struct loop_watch *watch;
    unsigned watched; /* what the watch is set to */
    bool unsent;      /* commands were added since the last write */
    bool writing;     /* inside redisAsyncHandleWrite() of ours */
    bool up, closed;
    struct loop_turn *turn;
    struct loop_timer *timer; /* backoff, the limit of connecting, then commands to be sent */
    struct resolution *resolution;
    uint32_t backoff_ms;
};

/* A lookup that libuv runs; outlives the link when that is freed meanwhile. */
struct resolution {
    uv_getaddrinfo_t request;
    struct cache_link *link; /* NULL: nobody waits any more */
};

/* ---- The address */

void cache_address_done(struct cache_address *address)
{
    free(address->host);
    free(address->path);
    free(address->user);
    free(address->password);
    *address = (struct cache_address){0};
}

static int number_parse(const char *what, const char *text, uint32_t highest, uint32_t *ret_number,
                        struct err *err)
{
    uint64_t number = 0;

    if (*text == 0)
        return err_set(err, ERR_USAGE, "Redis URL: %s is empty", what);
    for (; *text != 0; text++) {
        if (*text < '0' || *text > '9')
            return err_set(err, ERR_USAGE, "Redis URL: %s is not a number", what);
        number = number * 10 + (uint64_t)(*text - '0');
        if (number > highest)
            return err_set(err, ERR_USAGE, "Redis URL: %s is over %u", what, highest);
    }
    *ret_number = (uint32_t)number;
    return 0;
}

/* "[user]:password@" in front of the host; what follows it is left in *rest_p. */
static void credentials_parse(char **rest_p, struct cache_address *address)
{
    char *at = strrchr(*rest_p, '@'), *colon;

    if (at == NULL)
        return;
    *at = 0;
    colon = strchr(*rest_p, ':');
    if (colon != NULL) {
        *colon = 0;
        address->password = xstrdup(colon + 1);
    }
    if (**rest_p != 0)
        address->user = xstrdup(*rest_p);
    *rest_p = at + 1;
}

static int host_parse(char *rest, struct cache_address *address, struct err *err)
{
    char *slash = strchr(rest, '/'), *colon;
    uint32_t port = PORT_DEFAULT;
    int r = 0;

    if (slash != NULL) {
        *slash = 0;
        if (slash[1] != 0)
            r = number_parse("database", slash + 1, DATABASE_MAX, &address->database, err);
    }
    credentials_parse(&rest, address);
    colon = strrchr(rest, ':');
    if (r == 0 && colon != NULL && strchr(colon, ']') == NULL) {
        *colon = 0;
        r = number_parse("port", colon + 1, UINT16_MAX, &port, err);
    }
    if (r < 0)
        return r;
    if (*rest == '[') { /* IPv6 */
        rest++;
        rest[strcspn(rest, "]")] = 0;
    }
    if (*rest == 0)
        return err_set(err, ERR_USAGE, "Redis URL: host is empty");
    address->host = xstrdup(rest);
    address->port = (uint16_t)port;
    return 0;
}

int cache_address_parse(const char *url, struct cache_address *ret_address, struct err *err)
{
    static const char tcp[] = "redis://", local[] = "unix://", tls[] = "rediss://";
    struct cache_address address = {0};
    OWNED(mem_free) char *copy = NULL;
    int r;

    if (strlen(url) > URL_SIZE_MAX)
        return err_set(err, ERR_USAGE, "Redis URL: longer than %d bytes", URL_SIZE_MAX);
    if (strncmp(url, tls, strlen(tls)) == 0)
        return err_set(err, ERR_USAGE,
                       "Redis URL: rediss:// (TLS) is not supported by this "
                       "client; use redis:// or unix:// through a local tunnel");
    if (strncmp(url, local, strlen(local)) == 0 && url[strlen(local)] == '/') {
        address.path = xstrdup(url + strlen(local));
        *ret_address = address;
        return 0;
    }
    if (strncmp(url, tcp, strlen(tcp)) != 0)
        return err_set(err, ERR_USAGE,
                       "Redis URL: want redis://[[user]:password@]host[:port][/database] or "
                       "unix:///path");
    copy = xstrdup(url + strlen(tcp));
    r = host_parse(copy, &address, err);
    if (r < 0) {
        cache_address_done(&address);
        return r;
    }
    *ret_address = address;
    return 0;
}

/* ---- The adapter between hiredis and the loop */

static void link_watch(struct cache_link *link, unsigned events)
{
    if (link->watch == NULL || link->watched == events)
        return;
    link->watched = events;
    loop_watch_set(link->watch, events);
}

static void adapter_add_read(void *opaque)
{
    struct cache_link *link = opaque;

    link_watch(link, link->watched | LOOP_READABLE);
}

static void adapter_del_read(void *opaque)
{
    struct cache_link *link = opaque;

    link_watch(link, link->watched & ~LOOP_READABLE);
}

/* Once it is up, the end of the turn writes; only what the kernel did not take waits for it. That
 * end may have passed for us already, so the timer keeps the loop from going to sleep. */
static void adapter_add_write(void *opaque)
{
    struct cache_link *link = opaque;

    if (link->writing || !link->up) {
        link_watch(link, link->watched | LOOP_WRITABLE);
    } else if (!link->unsent) {
        link->unsent = true;
        loop_timer_start(link->timer, 0, 0);
    }
}

static void adapter_del_write(void *opaque)
{
    struct cache_link *link = opaque;

    link_watch(link, link->watched & ~LOOP_WRITABLE);
}

static void link_retry(struct cache_link *link);

/* The last word of a connection, however it ended: hiredis frees the context after it. */
static void adapter_cleanup(void *opaque)
{
    struct cache_link *link = opaque;
    bool was_up = link->up;

    loop_watch_free(&link->watch);
    link->watched = 0;
    link->context = NULL;
    link->unsent = link->up = false;
    if (link->closed)
        return;
    link_retry(link);
    if (was_up)
        link->calls->on_down(link->opaque);
}

static void link_write(struct cache_link *link)
{
    link->writing = true;
    redisAsyncHandleWrite(link->context);
    link->writing = false;
}

static void link_ready(void *opaque, unsigned events)
{
    struct cache_link *link = opaque;

    if (events & (LOOP_READABLE | LOOP_GONE))
        redisAsyncHandleRead(link->context);
    if (link->context != NULL && (events & LOOP_WRITABLE))
        link_write(link);
}

static void link_turn(void *opaque)
{
    struct cache_link *link = opaque;

    if (!link->unsent || link->context == NULL)
        return;
    link->unsent = false;
    loop_timer_stop(link->timer);
    link_write(link);
}

/* ---- Connecting */

static void link_failed(struct cache_link *link)
{
    if (link->context != NULL)
        redisAsyncFree(link->context); /* ends in adapter_cleanup(), perhaps later */
    else
        link_retry(link);
}

static void on_greeted(redisAsyncContext *context, void *reply_p, void *opaque)
{
    struct cache_link *link = opaque;
    const redisReply *reply = reply_p;

    (void)context;
    if (reply == NULL || link->closed)
        return;
    if (reply->type == REDIS_REPLY_ERROR) { /* a wrong password, or -LOADING after a restart */
        link_failed(link);
        return;
    }
    if (reply->type != REDIS_REPLY_STATUS || strcmp(reply->str, "PONG") != 0)
        return; /* OK of AUTH or SELECT */
    link->up = true;
    link->backoff_ms = 0;
    loop_timer_stop(link->timer);
    link->calls->on_up(link->opaque);
}

static void link_greet(struct cache_link *link)
{
    const struct cache_address *address = link->address;
    redisAsyncContext *context = link->context;

    if (address->password != NULL && address->user != NULL)
        (void)redisAsyncCommand(context, on_greeted, link, "AUTH %s %s", address->user,
                                address->password);
    else if (address->password != NULL)
        (void)redisAsyncCommand(context, on_greeted, link, "AUTH %s", address->password);
    if (address->database != 0)
        (void)redisAsyncCommand(context, on_greeted, link, "SELECT %u", address->database);
    (void)redisAsyncCommand(context, on_greeted, link, "PING");
}

static void on_connected(const redisAsyncContext *context, int status)
{
    struct cache_link *link = context->data;

    if (status == REDIS_OK && !link->closed)
        link_greet(link);
    /* else hiredis frees the context: adapter_cleanup() */
}

/* Takes a context that is connecting, or has failed already. */
static void link_adopt(struct cache_link *link, redisAsyncContext *context)
{
    struct err err;

    if (context == NULL || context->err != 0 ||
        loop_watch_new(link->loop, context->c.fd, link_ready, link, &link->watch, &err) < 0) {
        if (context != NULL)
            redisAsyncFree(context);
        link_retry(link);
        return;
    }
    link->context = context;
    context->data = link;
    context->ev.data = link;
    context->ev.addRead = adapter_add_read;
    context->ev.delRead = adapter_del_read;
    context->ev.addWrite = adapter_add_write;
    context->ev.delWrite = adapter_del_write;
    context->ev.cleanup = adapter_cleanup;
    (void)redisEnableKeepAlive(&context->c);
    (void)redisAsyncSetConnectCallback(context, on_connected); /* asks for the write event */
    loop_timer_start(link->timer, CONNECT_TIMEOUT_MS, 0);
}

static void on_resolved(uv_getaddrinfo_t *request, int status, struct addrinfo *found)
{
    struct resolution *resolution = (struct resolution *)request;
    struct cache_link *link = resolution->link;
    char address[NI_MAXHOST] = "";

    if (status == 0)
        (void)getnameinfo(found->ai_addr, found->ai_addrlen, address, sizeof(address), NULL, 0,
                          NI_NUMERICHOST);
    if (found != NULL)
        uv_freeaddrinfo(found);
    free(resolution);
    if (link == NULL)
        return;
    link->resolution = NULL;
    if (status == 0)
        link_adopt(link, redisAsyncConnect(address, link->address->port));
    else
        link_retry(link);
}

static void link_connect(struct cache_link *link)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};

    if (link->address->path != NULL) {
        link_adopt(link, redisAsyncConnectUnix(link->address->path));
        return;
    }
    link->resolution = xcalloc(1, sizeof(*link->resolution));
    link->resolution->link = link;
    if (uv_getaddrinfo(loop_uv(link->loop), &link->resolution->request, on_resolved,
                       link->address->host, NULL, &hints) != 0) {
        mem_free(&link->resolution);
        link_retry(link);
    }
}

static void link_timer(void *opaque)
{
    struct cache_link *link = opaque;

    if (link->up)
        return; /* only kept the loop awake for link_turn() */
    if (link->context != NULL)
        link_failed(link); /* connecting took too long */
    else if (link->resolution == NULL)
        link_connect(link);
}

static void link_retry(struct cache_link *link)
{
    loop_timer_start(link->timer, link->backoff_ms, 0);
    link->backoff_ms = link->backoff_ms == 0 ? BACKOFF_MS_MIN : link->backoff_ms * 2;
    if (link->backoff_ms > BACKOFF_MS_MAX)
        link->backoff_ms = BACKOFF_MS_MAX;
}

/* ---- The contract */

struct cache_link *cache_link_new(struct loop *loop, const struct cache_address *address,
                                  const struct cache_link_calls *calls, void *opaque)
{
    struct cache_link *link = xcalloc(1, sizeof(*link));

    link->loop = loop;
    link->address = address;
    link->calls = calls;
    link->opaque = opaque;
    link->turn = loop_turn_new(loop, link_turn, link);
    link->timer = loop_timer_new(loop, link_timer, link);
    link_retry(link);
    return link;
}

void cache_link_free(struct cache_link **link_p)
{
    struct cache_link *link = TAKE(*link_p);

    if (link == NULL)
        return;
    link->closed = true;
    if (link->context != NULL)
        redisAsyncFree(link->context);
    assert(link->context == NULL); /* else we are inside a callback of hiredis: not allowed */
    if (link->resolution != NULL) {
        link->resolution->link = NULL;
        (void)uv_cancel((uv_req_t *)&link->resolution->request);
    }
    loop_turn_free(&link->turn);
    loop_timer_free(&link->timer);
    free(link);
}

redisAsyncContext *cache_link_context(const struct cache_link *link)
{
    if (!link->up || link->context == NULL ||
        (link->context->c.flags & (REDIS_DISCONNECTING | REDIS_FREEING)))
        return NULL;
    return link->context;
}

void cache_link_drop(struct cache_link *link)
{
    if (link->context != NULL)
        redisAsyncFree(link->context);
}
