/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A websocket between a client, who waits at a gateway, and the user's server.
 *
 *   DIALING ──token──▶ DIALED ──go──▶ CONNECTING ──handshake──▶ ASKING ──101──▶ RELAYING
 *   (gateway)                         (server)                  │               until both have
 * ended └ any other status is the answer
 *
 * The client's own key and offers go to the server, so that what follows the 101 can be passed on
 * byte by byte. Until the 101 the request fails like any other, and its caller gets an HTTP answer;
 * after it the request succeeds when either side has said how it closes, and when the client just
 * leaves.
 *
 * Memory: two lines of a relay, and the head of an answer before that.
 */

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "brokers/relay.h"
#include "schema/job_id.h"
#include "schema/websocket.h"
#include "workers/host_server_int.h"

#define HANDSHAKE_MS 60000
#define BODY_SIZE_MAX (64u << 10) /* of an answer that is no 101 */
#define CLIENT 0
#define MODEL 1

enum passage_state { DIALING, DIALED, CONNECTING, ASKING, RELAYING };

struct passage {
    struct host_server *server;
    struct passage *next, **at;
    uint64_t id, begun_ms;
    enum passage_state state;
    struct websocket_offer offer;
    char *path, *trace, job[JOB_ID_TEXT_SIZE];
    int fds[2];
    bool tried_v6;
    struct loop_watch *watches[2];
    struct loop_timer *timer; /* the handshake's end; then an end that comes from inside a call */
    struct buf in;            /* of the server's answer */
    struct relay *relay;
    struct websocket_track tracks[2];
    int ended_first; /* CLIENT or MODEL; -1: none */
};

/* ---- its end ---- */

static void passage_free(struct passage *passage)
{
    *passage->at = passage->next;
    if (passage->next != NULL)
        passage->next->at = passage->at;
    relay_free(&passage->relay);
    for (int i = 0; i < 2; i++) {
        loop_watch_free(&passage->watches[i]);
        if (passage->fds[i] >= 0)
            (void)close(passage->fds[i]);
    }
    loop_timer_free(&passage->timer);
    buf_done(&passage->in);
    free(passage->path);
    free(passage->trace);
    free(passage);
}

void host_server_passages_free(struct host_server *server)
{
    while (server->passages != NULL)
        passage_free(server->passages);
}

static void passage_end(struct passage *passage, struct frame_evt *evt)
{
    struct host_server *server = passage->server;
    uint64_t begun_ms = passage->begun_ms;

    evt->id = passage->id;
    passage_free(passage);
    host_server_finish(server, evt, -1, begun_ms);
}

static void passage_fail(struct passage *passage, enum error_class class, const char *text)
{
    struct frame_evt evt = {
        .kind = FRAME_EVT_ERROR, .error_class = class, .text = WIRE_TEXT_OF(text)};

    passage_end(passage, &evt);
}

/* What is left of a websocket: how it was closed, and what went through. */
static void passage_succeed(struct passage *passage)
{
    uint16_t by_model = passage->tracks[MODEL].close_code;
    uint16_t by_client = passage->tracks[CLIENT].close_code;
    unsigned code = by_model != 0 ? by_model : by_client != 0 ? by_client : WEBSOCKET_CLOSE_BROKEN;
    OWNED(mem_free)
    char *text = xasprintf(
        "{\"close_code\":%u,\"closed_by\":\"%s\",\"client_bytes\":%llu,\"model_bytes\":%llu,"
        "\"client_messages\":%llu,\"model_messages\":%llu}",
        code, by_model != 0 && by_client == 0 ? "model" : "client",
        (unsigned long long)relay_size_from(passage->relay, CLIENT),
        (unsigned long long)relay_size_from(passage->relay, MODEL),
        (unsigned long long)passage->tracks[CLIENT].message_count,
        (unsigned long long)passage->tracks[MODEL].message_count);
    struct frame_evt evt = {.kind = FRAME_EVT_OUTPUT,
                            .data = {(const uint8_t *)text, strlen(text)},
                            .output_type = WIRE_TEXT_OF("application/json")};

    passage_end(passage, &evt);
}

static void passage_over(void *opaque)
{
    struct passage *passage = opaque;
    bool closed = passage->tracks[0].close_code != 0 || passage->tracks[1].close_code != 0;

    if (passage->ended_first == MODEL && !closed)
        passage_fail(passage, ERROR_CLASS_MODEL_ERROR,
                     "the server broke the websocket off without a close frame");
    else
        passage_succeed(passage);
}

static void passage_on_timer(void *opaque)
{
    struct passage *passage = opaque;
    static const char *const texts[] = {
        [DIALING] = "the gateway did not take the connection in time",
        [DIALED] = "the gateway did not answer in time",
        [CONNECTING] = "the server did not take the connection in time",
        [ASKING] = "the server did not answer the websocket's handshake in time",
    };

    if (passage->state == RELAYING)
        passage_over(passage);
    else
        passage_fail(passage, ERROR_CLASS_MODEL_UNAVAILABLE, texts[passage->state]);
}

/* ---- bytes ---- */

static bool on_bytes(void *opaque, int side, const void *bytes, size_t size)
{
    struct passage *passage = opaque;
    struct err err;

    return websocket_track_bytes(&passage->tracks[side], bytes, size, &err) == 0;
}

static bool on_eof(void *opaque, int side)
{
    struct passage *passage = opaque;

    if (passage->ended_first < 0)
        passage->ended_first = side;
    /* A server that breaks off: nobody waits for the client to hear of it. */
    if (side == MODEL && passage->tracks[0].close_code == 0 && passage->tracks[1].close_code == 0)
        loop_timer_start(passage->timer, 0, 0);
    return true;
}

static void passage_relay(struct passage *passage, const struct websocket_response *response)
{
    static const struct relay_calls calls = {
        .on_bytes = on_bytes, .on_eof = on_eof, .on_end = passage_over};
    OWNED(buf_done) struct buf line = BUF_WITH_LIMIT(WEBSOCKET_LINE_SIZE_MAX);
    size_t early = passage->in.size - response->head_size;
    struct err err;

    loop_timer_stop(passage->timer);
    for (int i = 0; i < 2; i++)
        loop_watch_free(&passage->watches[i]);
    websocket_answer_write(&response->answer, &line);
    passage->state = RELAYING;
    if (relay_new(passage->server->loop, passage->fds, &calls, passage, &passage->relay, &err) <
        0) {
        passage_fail(passage, ERROR_CLASS_HANDED_BACK, err.text);
        return;
    }
    relay_put(passage->relay, CLIENT, line.bytes, line.size);
    if (early > 0 && on_bytes(passage, MODEL, passage->in.bytes + response->head_size, early))
        relay_put(passage->relay, CLIENT, passage->in.bytes + response->head_size, early);
    buf_done(&passage->in);
}

/* ---- the server's answer ---- */

static void passage_refused(struct passage *passage, const struct websocket_response *response)
{
    struct host_server *server = passage->server;
    bool unready = host_server_is_unready(server);
    enum error_class class = host_server_status_class(response->status, unready);
    OWNED(buf_done) struct buf body = BUF_WITH_LIMIT(WEBSOCKET_HEAD_SIZE_MAX + BODY_SIZE_MAX);
    char text[160];
    struct frame_evt evt = {.kind = FRAME_EVT_ERROR,
                            .http_status = (uint64_t)response->status,
                            .output_type = WIRE_TEXT_OF(response->type)};

    buf_move(&body, &passage->in);
    buf_consume(&body, response->head_size);
    if (response->has_length && response->length < body.size)
        body.size = (size_t)response->length;
    (void)snprintf(text, sizeof(text), "the server answered %d to a websocket's handshake",
                   response->status);
    evt.error_class = class == ERROR_CLASS_NONE ? ERROR_CLASS_BAD_INPUT : class;
    if (response->status / 100 < 4) { /* an answer that makes no sense here is no answer */
        evt.http_status = 0;
        evt.output_type = (struct wire_text){0};
        buf_clear(&body);
    }
    evt.text = WIRE_TEXT_OF(text);
    evt.data = (struct wire_bytes){body.bytes, body.size};
    passage_end(passage, &evt);
}

/* What has come of it; over: no more will. */
static void passage_answer(struct passage *passage, bool over)
{
    struct websocket_response response;
    struct err err;
    int r = websocket_response_read((struct wire_bytes){passage->in.bytes, passage->in.size},
                                    &response, &err);
    size_t body;

    if (r == 0 && over)
        r = err_set(&err, ERR_MALFORMED, "the server closed before it answered the handshake");
    if (r < 0) {
        passage_fail(passage, ERROR_CLASS_MODEL_UNAVAILABLE, err.text);
        return;
    }
    if (r == 0)
        return;
    if (response.status == 101) {
        if (websocket_response_check(&response, passage->offer.key, &err) < 0)
            passage_fail(passage, ERROR_CLASS_MODEL_ERROR, err.text);
        else
            passage_relay(passage, &response);
        return;
    }
    body = passage->in.size - response.head_size;
    if (over || !response.has_length || body >= response.length || body >= BODY_SIZE_MAX)
        passage_refused(passage, &response);
}

static void passage_read_answer(struct passage *passage)
{
    size_t room = WEBSOCKET_HEAD_SIZE_MAX + BODY_SIZE_MAX - passage->in.size;
    uint8_t bytes[16384];
    ssize_t n = recv(passage->fds[MODEL], bytes, room < sizeof(bytes) ? room : sizeof(bytes),
                     MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0)
        buf_append(&passage->in, bytes, (size_t)n);
    passage_answer(passage, n <= 0);
}

/* ---- the handshake ---- */

static void request_write(const struct passage *passage, struct buf *to)
{
    const struct websocket_offer *offer = &passage->offer;

    buf_printf(to,
               "GET %s HTTP/1.1\r\nHost: localhost:%u\r\nConnection: Upgrade\r\n"
               "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n"
               "x-baseten-request-id: %s\r\n",
               passage->path, passage->server->port, offer->key, passage->job);
    if (offer->protocols[0] != '\0')
        buf_printf(to, "Sec-WebSocket-Protocol: %s\r\n", offer->protocols);
    if (offer->extensions[0] != '\0')
        buf_printf(to, "Sec-WebSocket-Extensions: %s\r\n", offer->extensions);
    if (passage->trace[0] != '\0')
        buf_printf(to, "traceparent: %s\r\n", passage->trace);
    buf_append_text(to, "\r\n");
}

static void on_event(struct passage *passage, int side, unsigned events);

static void on_client_event(void *opaque, unsigned events)
{
    on_event(opaque, CLIENT, events);
}

static void on_model_event(void *opaque, unsigned events)
{
    on_event(opaque, MODEL, events);
}

static int passage_watch(struct passage *passage, int side, struct err *err)
{
    int r = loop_watch_new(passage->server->loop, passage->fds[side],
                           side == CLIENT ? on_client_event : on_model_event, passage,
                           &passage->watches[side], err);

    if (r == 0)
        loop_watch_set(passage->watches[side], LOOP_WRITABLE);
    return r;
}

/* To the server on this machine, by either protocol. */
static int passage_connect(struct passage *passage, bool by_v6, struct err *err)
{
    const struct sockaddr_in v4 = {.sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)passage->server->port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const struct sockaddr_in6 v6 = {.sin6_family = AF_INET6,
                                    .sin6_port = htons((uint16_t)passage->server->port),
                                    .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int on = 1, r;

    loop_watch_free(&passage->watches[MODEL]);
    if (passage->fds[MODEL] >= 0)
        (void)close(passage->fds[MODEL]);
    passage->tried_v6 = by_v6;
    passage->state = CONNECTING;
    passage->fds[MODEL] = socket(by_v6 ? AF_INET6 : AF_INET,
                                 SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (passage->fds[MODEL] < 0)
        return err_set_errno(err, ERR_IO, "make a socket");
    (void)setsockopt(passage->fds[MODEL], IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    r = by_v6 ? connect(passage->fds[MODEL], (const struct sockaddr *)&v6, sizeof(v6))
              : connect(passage->fds[MODEL], (const struct sockaddr *)&v4, sizeof(v4));
    if (r < 0 && errno == ECONNREFUSED && !by_v6)
        return passage_connect(passage, true, err);
    if (r < 0 && errno != EINPROGRESS)
        return err_set_errno(err, ERR_UNAVAILABLE, "connect to the server");
    return passage_watch(passage, MODEL, err);
}

static int fd_error(int fd)
{
    int error = 0;
    socklen_t size = sizeof(error);

    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 ? errno : error;
}

/* Into a socket that has sent nothing yet: it has room. */
static int send_first(int fd, const void *bytes, size_t size, const char *what, struct err *err)
{
    int error = fd_error(fd);

    if (error == 0 && send(fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)size)
        return 0;
    return err_set(err, ERR_UNAVAILABLE, "%s: %s", what, strerror(error != 0 ? error : errno));
}

/* The gateway has taken the connection. */
static int passage_dialed(struct passage *passage, struct err *err)
{
    char line[WEBSOCKET_TOKEN_SIZE + 1];
    int n = snprintf(line, sizeof(line), "%s\n", passage->offer.token);
    int r = send_first(passage->fds[CLIENT], line, (size_t)n, "the gateway cannot be reached", err);

    if (r < 0)
        return r;
    passage->state = DIALED;
    loop_watch_set(passage->watches[CLIENT], LOOP_READABLE);
    return 0;
}

/* It has said go, or has nobody for us. */
static int passage_greeted(struct passage *passage, struct err *err)
{
    char go;
    ssize_t n = recv(passage->fds[CLIENT], &go, 1, MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n != 1 || go != WEBSOCKET_GO)
        return err_set(err, ERR_NOT_FOUND, "the client of this websocket has left");
    loop_watch_set(passage->watches[CLIENT], LOOP_GONE);
    return passage_connect(passage, false, err);
}

static int passage_connected(struct passage *passage, struct err *err)
{
    OWNED(buf_done) struct buf head = BUF_WITH_LIMIT(WEBSOCKET_HEAD_SIZE_MAX);
    int r;

    request_write(passage, &head);
    r = buf_check(&head, "a websocket's handshake", err);
    if (r == 0 && !passage->tried_v6 && fd_error(passage->fds[MODEL]) == ECONNREFUSED)
        return passage_connect(passage, true, err);
    if (r == 0)
        r = send_first(passage->fds[MODEL], head.bytes, head.size, "the server cannot be reached",
                       err);
    if (r < 0)
        return r;
    passage->state = ASKING;
    loop_watch_set(passage->watches[MODEL], LOOP_READABLE);
    return 0;
}

static void on_event(struct passage *passage, int side, unsigned events)
{
    struct err err;
    int r = 0;

    if (side == CLIENT && passage->state == DIALING)
        r = passage_dialed(passage, &err);
    else if (side == CLIENT && passage->state == DIALED)
        r = passage_greeted(passage, &err);
    else if (side == CLIENT && (events & (LOOP_GONE | LOOP_READABLE)))
        r = err_set(&err, ERR_NOT_FOUND, "the client of this websocket has left");
    else if (side == MODEL && passage->state == CONNECTING)
        r = passage_connected(passage, &err);
    else if (side == MODEL)
        passage_read_answer(passage);
    if (r < 0)
        passage_fail(passage,
                     r == ERR_NOT_FOUND ? ERROR_CLASS_BAD_INPUT : ERROR_CLASS_MODEL_UNAVAILABLE,
                     err.text);
}

/* ---- its beginning ---- */

static int path_write(const struct host_server *server, struct wire_text route, char **ret_path,
                      struct err *err)
{
    OWNED(mem_free) char *method = NULL;
    OWNED(mem_free) char *path = NULL;
    int r = host_server_route_split(route, &method, &path, err);
    size_t size = r < 0 ? 0 : strcspn(path, "?");

    if (r < 0)
        return r;
    if (size == strlen(WEBSOCKET_PATH) && strncmp(path, WEBSOCKET_PATH, size) == 0)
        *ret_path = xasprintf("%s%s", server->config.predict_endpoint, path + size);
    else
        *ret_path = TAKE(path);
    return 0;
}

void host_server_on_passage(struct host_server *server, const struct frame_req *req)
{
    struct passage *passage = xcalloc(1, sizeof(*passage));
    const char *refusal = host_server_refusal(server);
    struct err err;
    int r;

    *passage = (struct passage){.server = server,
                                .next = server->passages,
                                .at = &server->passages,
                                .id = req->id,
                                .begun_ms = loop_now_ms(server->loop),
                                .fds = {frame_link_take_tunnel(server->link), -1},
                                .in = BUF_WITH_LIMIT(WEBSOCKET_HEAD_SIZE_MAX + BODY_SIZE_MAX),
                                .ended_first = -1};
    if (server->passages != NULL)
        server->passages->at = &passage->next;
    server->passages = passage;
    server->received++;
    server->stats_changed = true;
    for (int i = 0; i < 2; i++)
        passage->tracks[i].message_size_max = UINT64_MAX;
    job_id_format(&req->job, passage->job);
    passage->trace = wire_text_dup(req->trace);
    passage->timer = loop_timer_new(server->loop, passage_on_timer, passage);
    loop_timer_start(passage->timer, HANDSHAKE_MS, 0);
    if (refusal != NULL) {
        passage_fail(passage, ERROR_CLASS_HANDED_BACK, refusal);
        return;
    }
    r = websocket_offer_read(req->input, &passage->offer, &err);
    if (r == 0)
        r = path_write(server, req->route, &passage->path, &err);
    if (r < 0) {
        passage_fail(passage, ERROR_CLASS_BAD_INPUT, err.text);
        return;
    }
    if (passage->fds[CLIENT] < 0)
        passage_fail(passage, ERROR_CLASS_MODEL_UNAVAILABLE, "the gateway cannot be reached");
    else if (passage_watch(passage, CLIENT, &err) < 0)
        passage_fail(passage, ERROR_CLASS_HANDED_BACK, err.text);
}

bool host_server_passage_cancel(struct host_server *server, uint64_t id)
{
    for (struct passage *passage = server->passages; passage != NULL; passage = passage->next) {
        if (passage->id == id) {
            passage_fail(passage, ERROR_CLASS_CANCELED, "canceled");
            return true;
        }
    }
    return false;
}

void host_server_passages_cancel(struct host_server *server)
{
    while (server->passages != NULL)
        passage_fail(server->passages, ERROR_CLASS_CANCELED, "canceled");
}
