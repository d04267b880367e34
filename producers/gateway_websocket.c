/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A websocket, from its handshake to its end.
 *
 *   WAITING ──token──▶ WAITING, with a tunnel ──answer line──▶ OPENING ──101 has left──▶ OPEN
 *      │ ◀─────────────── the tunnel ends: the job is tried again                          │
 *      └ the job fails, its time is over, the client leaves: as a sync call                │
 *                                                       CLOSED ◀── both sides have ended ──┘
 *
 * Until the 101 it is a sync call: it fails with the statuses of one, and a lost worker is not
 * seen. Once it is OPEN nobody can take the host's place. Whoever breaks off is told to the other
 * side by a close frame, where one fits between two frames:
 *
 *   the host's connection ends without one   1011, or what the job's end says: it has FINAL_MS to
 * come canceled, time over, we drain, silence   1001 a message over its limit                 1009
 *
 * CLOSED waits for the job's end, and cancels a job that does not end: a model that goes on without
 * a client.
 */

#include "producers/gateway_websocket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uthash.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/metrics.h"
#include "brokers/relay.h"
#include "producers/gateway.h"
#include "producers/gateway_follow.h"
#include "schema/job.h"
#include "schema/websocket.h"

#define FINAL_MS 1000  /* from the end of a tunnel to the news of why */
#define ENDED_MS 10000 /* from the end of a websocket to that of its job */
#define TIMEOUT_GRACE_MS 250
#define CLIENT 0
#define MODEL 1

enum websocket_state { WAITING, OPENING, OPEN, CLOSED };

struct websocket {
    UT_hash_handle hh; /* by token */
    struct gateway *gateway;
    enum websocket_state state;
    struct websocket_offer offer;
    struct call *call; /* NULL: it was answered, or does not wait yet */
    struct wire_id id;
    char tenant[CONFIG_NAME_SIZE], job[JOB_ID_TEXT_SIZE];
    struct follow *follow;
    struct loop_timer *timer; /* what it is for follows from the state */

    int tunnel_fd; /* -1: no host has come */
    int late_fd;   /* of another attempt's host, which waits for the job's end; -1 */
    struct loop_watch *tunnel_watch;
    struct buf line; /* the host's answer, and what came behind it */
    size_t line_end;

    struct http_upgraded *upgraded;
    struct relay *relay;
    struct websocket_track tracks[2];
    uint64_t opened_ms;
    uint16_t sent_code; /* of our own close frame; 0: none */
    bool counted;       /* among those that are open */
    bool holding;       /* the tunnel has ended, why is about to be said */
    bool canceled;      /* by us */
    bool final;
    uint64_t final_state, final_class;
};

struct websockets {
    struct websocket *by_token;
    uint32_t open;
};

/* ---- the handshake ---- */

static const char *header_or_none(const struct call *call, const char *name)
{
    const char *value = http_request_header(call->request, name);

    return value == NULL ? "" : value;
}

bool websocket_is_asked(const struct call *call)
{
    return websocket_list_has(http_request_header(call->request, "Upgrade"), "websocket");
}

void websocket_begin(struct call *call)
{
    const struct websocket_ask ask = {
        .upgrade = http_request_header(call->request, "Upgrade"),
        .connection = http_request_header(call->request, "Connection"),
        .version = http_request_header(call->request, "Sec-WebSocket-Version"),
        .key = http_request_header(call->request, "Sec-WebSocket-Key"),
    };
    const char *text;
    int status = websocket_ask_check(&ask, &text);

    if (status == 0 && strcmp(http_request_method(call->request), "GET") != 0) {
        status = 400;
        text = "a websocket's handshake is a GET";
    }
    if (status == 0 && http_request_announced_size(call->request) > 0) {
        status = 400;
        text = "a websocket's handshake has no body";
    }
    if (status == 0 && http_request_header(call->request, "Idempotency-Key") != NULL) {
        status = 400;
        text = "a websocket takes no Idempotency-Key: it cannot be asked for twice";
    }
    if (status != 0)
        call_fail_as(&call, status, "client_error", text);
    else
        submit_begin(call);
}

static int list_copy(const struct call *call, const char *name, char *to, size_t to_size,
                     struct err *err)
{
    const char *value = header_or_none(call, name);
    size_t size = strlen(value);

    if (size >= to_size)
        return err_set(err, ERR_RANGE, "%s has %zu bytes; at most %zu are allowed", name, size,
                       to_size - 1);
    for (size_t i = 0; i < size; i++) {
        if (value[i] < 0x20 || value[i] >= 0x7f)
            return err_set(err, ERR_RANGE, "%s has a character that is no printable ASCII", name);
    }
    memcpy(to, value, size + 1);
    return 0;
}

static void token_make(char to[WEBSOCKET_TOKEN_SIZE])
{
    uint8_t bytes[(WEBSOCKET_TOKEN_SIZE - 1) / 2];

    rng_secret_bytes(bytes, sizeof(bytes));
    for (size_t i = 0; i < sizeof(bytes); i++)
        (void)snprintf(to + 2 * i, 3, "%02x", bytes[i]);
}

int websocket_new(const struct call *call, struct websocket **ret_websocket, struct err *err)
{
    struct gateway *gateway = call->gateway;
    uint64_t most = (uint64_t)gateway->settings.websockets_max;
    struct websocket *websocket;
    struct websocket_offer offer = {0};
    int r = list_copy(call, "Sec-WebSocket-Protocol", offer.protocols, sizeof(offer.protocols),
                      err);

    if (r == 0)
        r = list_copy(call, "Sec-WebSocket-Extensions", offer.extensions, sizeof(offer.extensions),
                      err);
    if (r == 0 && HASH_COUNT(gateway->websockets->by_token) >= most)
        r = err_set(err, ERR_FULL,
                    "this gateway has %llu websockets, as many as it takes (websockets-max)",
                    (unsigned long long)most);
    if (r < 0)
        return r;
    websocket = xcalloc(1, sizeof(*websocket));
    websocket->gateway = gateway;
    websocket->offer = offer;
    mem_copy_text(websocket->offer.key, header_or_none(call, "Sec-WebSocket-Key"));
    gateway_tunnels_address(gateway->tunnels, websocket->offer.gateway);
    token_make(websocket->offer.token);
    websocket->tunnel_fd = websocket->late_fd = -1;
    websocket->line = BUF_WITH_LIMIT(2u * WEBSOCKET_LINE_SIZE_MAX);
    for (int i = 0; i < 2; i++)
        websocket->tracks[i].message_size_max = gateway->settings.websocket_message_max_size;
    HASH_ADD_STR(gateway->websockets->by_token, offer.token, websocket);
    *ret_websocket = websocket;
    return 0;
}

void websocket_write_input(const struct websocket *websocket, struct buf *to)
{
    websocket_offer_write(&websocket->offer, to);
}

/* ---- ends ---- */

static void tunnel_close(struct websocket *websocket)
{
    loop_watch_free(&websocket->tunnel_watch);
    if (websocket->tunnel_fd >= 0)
        (void)close(websocket->tunnel_fd);
    websocket->tunnel_fd = -1;
    buf_clear(&websocket->line);
}

static void count_open(struct websocket *websocket, int by)
{
    struct websockets *websockets = websocket->gateway->websockets;

    if (websocket->counted == (by > 0))
        return;
    websocket->counted = by > 0;
    websockets->open += (uint32_t)by;
    metric_set(
        metrics_of(websocket->gateway->metrics, GATEWAY_METRIC_ongoing_websocket_connections),
        websockets->open);
}

void websocket_free(struct websocket **websocket_p)
{
    struct websocket *websocket = TAKE(*websocket_p);

    if (websocket == NULL)
        return;
    HASH_DEL(websocket->gateway->websockets->by_token, websocket);
    count_open(websocket, -1);
    relay_free(&websocket->relay);
    http_upgraded_close(&websocket->upgraded);
    tunnel_close(websocket);
    if (websocket->late_fd >= 0)
        (void)close(websocket->late_fd);
    follow_free(&websocket->follow);
    loop_timer_free(&websocket->timer);
    buf_done(&websocket->line);
    free(websocket);
}

static void websocket_cancel(struct websocket *websocket)
{
    if (websocket->canceled || websocket->final)
        return;
    websocket->canceled = true;
    metric_add(metrics_of(websocket->gateway->metrics, GATEWAY_METRIC_gateway_sync_canceled_total),
               1);
    gateway_cancel_silently(websocket->gateway, &websocket->id, websocket->tenant);
}

/* The client leaves before its 101. */
static void websocket_left(struct call *call)
{
    struct websocket *websocket = call->state;

    websocket_cancel(websocket);
    call_leave(&websocket->call);
    websocket_free(&websocket);
}

/* Waits for the job's end, which the end of the tunnel brings about. */
static void websocket_closed(struct websocket *websocket)
{
    count_open(websocket, -1);
    relay_free(&websocket->relay);
    http_upgraded_close(&websocket->upgraded);
    tunnel_close(websocket);
    websocket->state = CLOSED;
    if (websocket->final)
        websocket_free(&websocket);
    else
        loop_timer_start(websocket->timer, ENDED_MS, 0);
}

static unsigned close_code(const struct websocket *websocket)
{
    if (websocket->sent_code != 0)
        return websocket->sent_code;
    if (websocket->tracks[MODEL].close_code != 0)
        return websocket->tracks[MODEL].close_code;
    if (websocket->tracks[CLIENT].close_code != 0)
        return websocket->tracks[CLIENT].close_code;
    return WEBSOCKET_CLOSE_BROKEN;
}

/* As a metric has it: what clients may make up is one. */
static const char *code_label(unsigned code, char to[8])
{
    (void)snprintf(to, 8, "%s", "other");
    if (code >= 1000 && code <= 1014)
        (void)snprintf(to, 8, "%u", code);
    return to;
}

static void websocket_account(const struct websocket *websocket)
{
    struct metrics *metrics = websocket->gateway->metrics;
    uint64_t ms = loop_now_ms(websocket->gateway->loop) - websocket->opened_ms;
    uint64_t sizes[2];
    char label[8];
    const char *const codes[] = {code_label(close_code(websocket), label)};
    const char *const in[] = {"in"}, *const out[] = {"out"};

    for (int i = 0; i < 2; i++)
        sizes[i] = relay_size_from(websocket->relay, i);
    metric_add(metrics_series(metrics, GATEWAY_METRIC_gateway_websockets_total, codes), 1);
    metric_add(metrics_series(metrics, GATEWAY_METRIC_gateway_websocket_bytes_total, in),
               (double)sizes[CLIENT]);
    metric_add(metrics_series(metrics, GATEWAY_METRIC_gateway_websocket_bytes_total, out),
               (double)sizes[MODEL]);
    metric_observe(metrics_of(metrics, GATEWAY_METRIC_gateway_websocket_seconds),
                   (double)ms / 1000);
    if (websocket->gateway->settings.access_log)
        log_info("websocket_closed", LOG_STR("job", websocket->job),
                 LOG_STR("tenant", websocket->tenant), LOG_U64("code", close_code(websocket)),
                 LOG_DOUBLE("seconds", (double)ms / 1000), LOG_U64("bytes_in", sizes[CLIENT]),
                 LOG_U64("bytes_out", sizes[MODEL]));
}

static void on_relay_end(void *opaque)
{
    struct websocket *websocket = opaque;

    websocket_account(websocket);
    websocket_closed(websocket);
}

/* ---- a close of our own ---- */

static void websocket_say_close(struct websocket *websocket, uint16_t code, const char *reason)
{
    uint8_t frame[WEBSOCKET_CLOSE_SIZE_MAX];
    const struct websocket_track *track = &websocket->tracks[MODEL];

    websocket->holding = false;
    if (track->close_code == 0 && websocket_track_is_between(track)) {
        websocket->sent_code = code;
        relay_put(websocket->relay, CLIENT, frame, websocket_close_write(code, reason, frame));
    }
    relay_finish(websocket->relay, CLIENT);
    relay_finish(websocket->relay, MODEL);
}

/* Why the host's side is over, as far as the job's end is known. */
static void websocket_say_end(struct websocket *websocket)
{
    if (!websocket->final) {
        websocket_cancel(websocket);
        websocket_say_close(websocket, WEBSOCKET_CLOSE_FAILED, "the worker was lost");
    } else if (websocket->final_state == JOB_CANCELED) {
        websocket_say_close(websocket, WEBSOCKET_CLOSE_LEAVES, "the request was canceled");
    } else if (websocket->final_state == JOB_EXPIRED ||
               websocket->final_class == ERROR_CLASS_MODEL_TIMEOUT) {
        websocket_say_close(websocket, WEBSOCKET_CLOSE_LEAVES, "the request's time is over");
    } else {
        websocket_say_close(websocket, WEBSOCKET_CLOSE_FAILED,
                            "the model ended without a close frame");
    }
}

/* ---- bytes ---- */

static bool on_bytes(void *opaque, int side, const void *bytes, size_t size)
{
    struct websocket *websocket = opaque;
    struct err err;

    if (websocket_track_bytes(&websocket->tracks[side], bytes, size, &err) == 0)
        return true;
    websocket_cancel(websocket);
    websocket_say_close(websocket, WEBSOCKET_CLOSE_TOO_BIG, err.text);
    return false;
}

static bool on_eof(void *opaque, int side)
{
    struct websocket *websocket = opaque;

    if (side == CLIENT || websocket->tracks[MODEL].close_code != 0 ||
        relay_has_ended(websocket->relay, CLIENT))
        return true;
    if (websocket->final) {
        websocket_say_end(websocket);
        return false;
    }
    websocket->holding = true;
    loop_timer_start(websocket->timer, FINAL_MS, 0);
    return false;
}

static void on_open(void *opaque, int fd, const void *bytes, size_t size)
{
    static const struct relay_calls calls = {
        .on_bytes = on_bytes, .on_eof = on_eof, .on_end = on_relay_end};
    struct websocket *websocket = opaque;
    const int fds[] = {fd, websocket->tunnel_fd};
    size_t early = websocket->line.size - websocket->line_end;
    int on = 1;
    struct err err;

    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    websocket->state = OPEN;
    websocket->opened_ms = loop_now_ms(websocket->gateway->loop);
    count_open(websocket, 1);
    if (relay_new(websocket->gateway->loop, fds, &calls, websocket, &websocket->relay, &err) < 0)
        NEVER("both descriptors can be watched");
    if (size > 0 && on_bytes(websocket, CLIENT, bytes, size))
        relay_put(websocket->relay, MODEL, bytes, size);
    if (early > 0 && on_bytes(websocket, MODEL, websocket->line.bytes + websocket->line_end, early))
        relay_put(websocket->relay, CLIENT, websocket->line.bytes + websocket->line_end, early);
    buf_clear(&websocket->line);
}

static void on_gone(void *opaque)
{
    struct websocket *websocket = opaque;

    websocket->upgraded = NULL;
    websocket_cancel(websocket);
    websocket_closed(websocket);
}

/* The model has accepted: 101. */
static void websocket_open(struct websocket *websocket, const struct websocket_answer *answer)
{
    static const struct http_upgrade_calls calls = {.on_open = on_open, .on_gone = on_gone};
    char accept[WEBSOCKET_ACCEPT_SIZE];
    struct http_header headers[4];
    size_t count = 0;

    websocket_accept(websocket->offer.key, accept);
    headers[count++] = (struct http_header){"Upgrade", "websocket"};
    headers[count++] = (struct http_header){"Sec-WebSocket-Accept", accept};
    if (answer->protocol[0] != '\0')
        headers[count++] = (struct http_header){"Sec-WebSocket-Protocol", answer->protocol};
    if (answer->extensions[0] != '\0')
        headers[count++] = (struct http_header){"Sec-WebSocket-Extensions", answer->extensions};
    loop_timer_stop(websocket->timer);
    loop_watch_free(&websocket->tunnel_watch);
    websocket->state = OPENING;
    websocket->upgraded = call_upgrade(&websocket->call, headers, count, &calls, websocket);
    if (websocket->upgraded == NULL)
        on_gone(websocket);
}

/* ---- the tunnel before that ---- */

static void tunnel_read(struct websocket *websocket)
{
    uint8_t bytes[WEBSOCKET_LINE_SIZE_MAX];
    ssize_t n = recv(websocket->tunnel_fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    const uint8_t *end;
    struct websocket_answer answer;
    struct err err;

    if (n < 0)
        return;
    if (n > 0)
        buf_append(&websocket->line, bytes, (size_t)n);
    end = websocket->line.size == 0 ? NULL
                                    : memchr(websocket->line.bytes, '\n', websocket->line.size);
    if (end == NULL) {
        if (n == 0 || websocket->line.size >= WEBSOCKET_LINE_SIZE_MAX)
            tunnel_close(websocket); /* the job's next attempt dials again, or its end tells */
        return;
    }
    websocket->line_end = (size_t)(end - websocket->line.bytes) + 1;
    if (websocket_answer_read((struct wire_bytes){websocket->line.bytes, websocket->line_end - 1},
                              &answer, &err) < 0) { /* user code may have written it */
        log_warn("tunnel_malformed", LOG_STR("job", websocket->job), LOG_ERR(&err));
        tunnel_close(websocket);
        return;
    }
    websocket_open(websocket, &answer);
}

static void on_tunnel(void *opaque, unsigned events)
{
    (void)events;
    tunnel_read(opaque);
}

/* Begins to read once there is a caller to be answered. */
static void tunnel_watch(struct websocket *websocket)
{
    struct err err;

    if (websocket->call == NULL || websocket->tunnel_fd < 0)
        return;
    if (loop_watch_new(websocket->gateway->loop, websocket->tunnel_fd, on_tunnel, websocket,
                       &websocket->tunnel_watch, &err) < 0)
        tunnel_close(websocket);
    else
        loop_watch_set(websocket->tunnel_watch, LOOP_READABLE);
}

/* Another attempt: so the one that was, is over. Nobody can take its place, and the new one's host
 * is kept waiting until its job is canceled. */
static void take_late(struct websocket *websocket, int fd)
{
    websocket_cancel(websocket);
    if (websocket->late_fd >= 0)
        (void)close(websocket->late_fd);
    websocket->late_fd = fd;
    if (websocket->state == OPEN && websocket->sent_code == 0)
        websocket_say_close(websocket, WEBSOCKET_CLOSE_FAILED, "the worker was lost");
}

void websocket_take_tunnel(struct gateway *gateway, const char *token, int fd)
{
    struct websocket *websocket;

    HASH_FIND(hh, gateway->websockets->by_token, token, strlen(token), websocket);
    if (websocket == NULL) {
        (void)close(fd); /* of a job that is over: its host is told by that */
        return;
    }
    if (websocket->state != WAITING) {
        take_late(websocket, fd);
        return;
    }
    tunnel_close(websocket); /* of an attempt before this one */
    websocket->tunnel_fd = fd;
    if (send(fd, &(char){WEBSOCKET_GO}, 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1)
        tunnel_watch(websocket);
    else
        tunnel_close(websocket);
}

/* ---- the job ---- */

static void websocket_fail(struct websocket *websocket, const struct message_completed *completed)
{
    struct call *call = TAKE(websocket->call);

    call->on_left = NULL;
    websocket_free(&websocket);
    if (completed->state != JOB_SUCCEEDED)
        sync_answer_failure(call, completed);
    else
        call_fail_as(&call, 502, "internal_baseten_error",
                     "the model ended without accepting the websocket");
}

static void on_final(void *opaque, const struct message_completed *completed)
{
    struct websocket *websocket = opaque;

    /* Its answer may be here and not read yet. */
    if (websocket->state == WAITING && websocket->tunnel_watch != NULL)
        tunnel_read(websocket);
    websocket->final = true;
    websocket->final_state = completed->state;
    websocket->final_class = completed->error_class;
    if (websocket->state == WAITING)
        websocket_fail(websocket, completed);
    else if (websocket->state == CLOSED)
        websocket_free(&websocket);
    else if (websocket->holding)
        websocket_say_end(websocket);
    else
        loop_timer_start(websocket->timer, FINAL_MS, 0);
}

static void on_timer(void *opaque)
{
    struct websocket *websocket = opaque;
    struct call *call;

    if (websocket->state == OPENING) { /* its client does not take the 101 */
        websocket_cancel(websocket);
        websocket_closed(websocket);
    } else if (websocket->state == OPEN) {
        websocket_say_end(websocket);
    } else if (websocket->state == CLOSED) {
        websocket_cancel(websocket);
        websocket_free(&websocket);
    } else {
        call = TAKE(websocket->call);
        call->on_left = NULL;
        websocket_cancel(websocket);
        websocket_free(&websocket);
        call_fail_as(&call, 504, "timeout",
                     "no replica took the websocket within the request's limit");
    }
}

void websocket_wait(struct call **call_p, struct websocket **websocket_p, uint64_t timeout_ms,
                    const struct sync_job *job)
{
    static const struct follow_calls calls = {.on_final = on_final};
    struct websocket *websocket = TAKE(*websocket_p);
    struct call *call = TAKE(*call_p);
    uint64_t spent_ms = (clock_wall_us() - call->begun_us) / 1000;
    struct cursor cursor;

    websocket->call = call;
    websocket->id = job->id;
    mem_copy_text(websocket->tenant, call->tenant);
    mem_copy_text(websocket->job, call->job);
    websocket->timer = loop_timer_new(websocket->gateway->loop, on_timer, websocket);
    call->state = websocket;
    call->public.accepted = true;
    if (http_request_is_gone(call->request)) {
        websocket_left(call);
        return;
    }
    call->on_left = websocket_left;
    loop_timer_start(websocket->timer,
                     TIMEOUT_GRACE_MS + (timeout_ms > spent_ms ? timeout_ms - spent_ms : 0), 0);
    cursor_init(&cursor);
    websocket->follow = follow_new(websocket->gateway, &websocket->id, true, &cursor, &calls,
                                   websocket);
    tunnel_watch(websocket);
    follow_catch_up(websocket->follow);
}

/* ---- all of them ---- */

void gateway_websockets_tick(struct websockets *websockets, uint64_t now_ms)
{
    struct websocket *websocket, *next;

    HASH_ITER(hh, websockets->by_token, websocket, next)
    {
        if (websocket->state != OPEN || websocket->sent_code != 0 ||
            now_ms - relay_last_ms(websocket->relay) <
                websocket->gateway->settings.websocket_idle_ms)
            continue;
        websocket_cancel(websocket);
        websocket_say_close(websocket, WEBSOCKET_CLOSE_LEAVES,
                            "nothing was said for too long (websocket-idle)");
    }
}

void gateway_websockets_end(struct websockets *websockets)
{
    struct websocket *websocket, *next;

    HASH_ITER(hh, websockets->by_token, websocket, next)
    {
        if (websocket->state == OPEN)
            websocket_say_close(websocket, WEBSOCKET_CLOSE_LEAVES, "the gateway is going away");
    }
}

int gateway_websockets_open(struct gateway *gateway, struct err *err)
{
    (void)err;
    gateway->websockets = xcalloc(1, sizeof(*gateway->websockets));
    return 0;
}

/* Calls that still wait are ended by calls_close(), hosts see their connections end. */
void gateway_websockets_close(struct gateway *gateway)
{
    struct websocket *websocket, *next;

    if (gateway->websockets == NULL)
        return;
    HASH_ITER(hh, gateway->websockets->by_token, websocket, next)
    {
        if (websocket->call != NULL)
            websocket->call->on_left = NULL;
        websocket_free(&websocket);
    }
    mem_free(&gateway->websockets);
}
