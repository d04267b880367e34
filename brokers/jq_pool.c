/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/loop.h"
#include "brokers/jq.h"
#include "brokers/jq_child.h"
#include "brokers/jq_host.h"
#include "brokers/jq_program.h"

#define TRIES_MAX 3
#define ANSWER_TIMEOUT_MS 60000 /* of the clock, should the process not get its processor time */
#define READ_SIZE 65536

struct jq_call {
    STAILQ_ENTRY(jq_call) link;
    char *request;
    size_t size;
    unsigned tries;
    jq_done_fn *done;
    void *opaque;
};
STAILQ_HEAD(jq_calls, jq_call);

struct jq_host {
    struct jq_pool *pool;
    pid_t pid; /* 0: none is running */
    int fd;
    struct loop_watch *watch;
    struct loop_timer *late;
    struct buf out, in;
    bool compiled;
    struct jq_call *call; /* NULL: it is free */
};

struct jq_pool {
    struct loop *loop;
    const struct chain *chain;
    struct jq_host hosts[JQ_POOL_HOSTS];
    struct jq_calls waiting;
    struct loop_timer *soon; /* gives calls to hosts that are free */
    bool failed;             /* the program does not compile: why */
    char why[256];
};

static void call_end(struct jq_call **call_p, json_t *values, const char *error)
{
    struct jq_call *call = TAKE(*call_p);

    call->done(call->opaque, values, error);
    free(call->request);
    free(call);
}

static void pool_soon(struct jq_pool *pool)
{
    loop_timer_start(pool->soon, 0, 0);
}

/* ---- a host ---- */

/* True: it ended of what it was asked. */
static bool host_stop(struct jq_host *host, char *text, size_t text_size)
{
    bool own = false;

    loop_timer_stop(host->late);
    loop_watch_free(&host->watch);
    if (host->pid != 0) {
        (void)close(host->fd);
        own = jq_child_end(host->pid, text, text_size);
    }
    host->pid = 0;
    host->compiled = false;
    buf_done(&host->out);
    buf_done(&host->in);
    return own;
}

/* What it was asked is over, or is asked again. */
static void host_lost(struct jq_host *host, const char *why)
{
    struct jq_call *call = TAKE(host->call);
    char text[160];
    bool own = host_stop(host, text, sizeof(text));

    pool_soon(host->pool);
    if (call == NULL)
        return;
    if (why != NULL || own || ++call->tries == TRIES_MAX)
        call_end(&call, NULL, why != NULL ? why : text);
    else
        STAILQ_INSERT_HEAD(&host->pool->waiting, call, link);
}

static void host_on_late(void *opaque)
{
    host_lost(opaque, "the expression was not over after 60 s");
}

static void host_flush(struct jq_host *host)
{
    size_t sent = 0;

    while (sent < host->out.size) {
        ssize_t n = send(host->fd, host->out.bytes + sent, host->out.size - sent,
                         MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break; /* room will come, or its end will be read */
        sent += (size_t)n;
    }
    buf_consume(&host->out, sent);
    loop_watch_set(host->watch, host->out.size > 0 ? LOOP_READABLE | LOOP_WRITABLE : LOOP_READABLE);
}

static void host_send_call(struct jq_host *host)
{
    uint8_t head[4];

    jq_child_head(head, host->call->size);
    buf_append(&host->out, head, sizeof(head));
    buf_append(&host->out, host->call->request, host->call->size);
    host_flush(host);
}

static void host_on_program(struct jq_host *host, const uint8_t *bytes, size_t size)
{
    struct jq_pool *pool = host->pool;
    struct err err;

    host->compiled = true;
    if (bytes[0] == '+') {
        if (host->call != NULL)
            host_send_call(host);
        return;
    }
    (void)jq_child_refusal(pool->chain, bytes, size, &err);
    mem_copy_text(pool->why, err.text);
    pool->failed = true;
    host_lost(host, pool->why);
}

static void host_on_values(struct jq_host *host, const uint8_t *bytes, size_t size)
{
    struct jq_call *call = TAKE(host->call);
    json_t *values = NULL;
    char text[256];

    loop_timer_stop(host->late);
    pool_soon(host->pool);
    if (call == NULL)
        return;
    mem_copy_text(text, "its value cannot be read as JSON");
    if (bytes[0] == '+')
        values = json_loadb((const char *)bytes + 1, size - 1, 0, NULL);
    else if (size > 5)
        (void)snprintf(text, sizeof(text), "%.*s", (int)(size - 5), (const char *)bytes + 5);
    call_end(&call, values, values == NULL ? text : NULL);
}

/* 1: there was a whole message. */
static int host_read_message(struct jq_host *host)
{
    const uint8_t *head = host->in.bytes;
    struct buf message = BUF_WITH_LIMIT(host->in.limit);
    size_t size = 0;

    if (host->in.size < 4)
        return 0;
    for (unsigned i = 0; i < 4; i++)
        size |= (size_t)head[i] << 8 * i;
    if (host->in.size < size + 4)
        return 0;
    buf_move(&message, &host->in); /* what it is told next may end the host */
    if (host->compiled)
        host_on_values(host, message.bytes + 4, size);
    else
        host_on_program(host, message.bytes + 4, size);
    buf_done(&message);
    return 1;
}

static void host_on_watch(void *opaque, unsigned events)
{
    struct jq_host *host = opaque;
    char bytes[READ_SIZE];
    ssize_t n;

    if (events & LOOP_WRITABLE)
        host_flush(host);
    do {
        n = recv(host->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
        if (n > 0)
            buf_append(&host->in, bytes, (size_t)n);
    } while ((n > 0 && !host->in.failed) || (n < 0 && errno == EINTR));
    if (host->in.failed)
        host_lost(host, "its answer is too large");
    else if (host_read_message(host) == 0 && (n == 0 || (n < 0 && errno != EAGAIN)))
        host_lost(host, NULL);
}

static int host_start(struct jq_host *host, struct err *err)
{
    int r = jq_child_start(&host->pid, &host->fd, err);

    if (r < 0) {
        host->pid = 0;
        return r;
    }
    host->in = BUF_WITH_LIMIT(JQ_ANSWER_MAX + 16);
    host->out = BUF_WITH_LIMIT((size_t)JQ_HOST_REQUEST_MAX + JQ_BINDING_MAX);
    r = loop_watch_new(host->pool->loop, host->fd, host_on_watch, host, &host->watch, err);
    if (r < 0)
        return r;
    jq_child_program(host->pool->chain, &host->out);
    host_flush(host);
    return 0;
}

static void host_take(struct jq_host *host, struct jq_call *call)
{
    struct err err;

    host->call = call;
    loop_timer_start(host->late, ANSWER_TIMEOUT_MS, 0);
    if (host->pid == 0 && host_start(host, &err) < 0)
        host_lost(host, err.text);
    else if (host->compiled)
        host_send_call(host);
}

/* ---- the pool ---- */

static void pool_give(void *opaque)
{
    struct jq_pool *pool = opaque;
    struct jq_call *call;

    for (size_t i = 0; i < JQ_POOL_HOSTS; i++) {
        call = STAILQ_FIRST(&pool->waiting);
        if (call == NULL || pool->hosts[i].call != NULL)
            continue;
        STAILQ_REMOVE_HEAD(&pool->waiting, link);
        if (pool->failed)
            call_end(&call, NULL, pool->why);
        else
            host_take(&pool->hosts[i], call);
    }
    if (pool->failed && !STAILQ_EMPTY(&pool->waiting))
        pool_soon(pool);
}

struct jq_pool *jq_pool_new(struct loop *loop, const struct chain *chain)
{
    struct jq_pool *pool = xcalloc(1, sizeof(*pool));

    pool->loop = loop;
    pool->chain = chain;
    pool->soon = loop_timer_new(loop, pool_give, pool);
    STAILQ_INIT(&pool->waiting);
    for (size_t i = 0; i < JQ_POOL_HOSTS; i++) {
        pool->hosts[i].pool = pool;
        pool->hosts[i].late = loop_timer_new(loop, host_on_late, &pool->hosts[i]);
    }
    return pool;
}

static void call_free(struct jq_call *call)
{
    if (call == NULL)
        return;
    free(call->request);
    free(call);
}

void jq_pool_close(struct jq_pool **pool_p)
{
    struct jq_pool *pool = TAKE(*pool_p);
    struct jq_call *call;
    char text[160];

    if (pool == NULL)
        return;
    for (size_t i = 0; i < JQ_POOL_HOSTS; i++) {
        (void)host_stop(&pool->hosts[i], text, sizeof(text));
        loop_timer_free(&pool->hosts[i].late);
        call_free(pool->hosts[i].call);
    }
    while ((call = STAILQ_FIRST(&pool->waiting)) != NULL) {
        STAILQ_REMOVE_HEAD(&pool->waiting, link);
        call_free(call);
    }
    loop_timer_free(&pool->soon);
    free(pool);
}

void jq_pool_ask(struct jq_pool *pool, char **request_p, size_t size, jq_done_fn *done,
                 void *opaque)
{
    struct jq_call *call = xcalloc(1, sizeof(*call));

    call->request = TAKE(*request_p);
    call->size = size;
    call->done = done;
    call->opaque = opaque;
    STAILQ_INSERT_TAIL(&pool->waiting, call, link);
    pool_soon(pool);
}
