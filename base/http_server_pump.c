/* SPDX-License-Identifier: Apache-2.0 */

/*
 * TLS of a connection that has left HTTP: a socket pair for the holder, and what is carried between
 * it and the client.
 *
 *     client ──records──▶ in ──▶ our end ═ the holder's end        and the same the other way,
 * `out`
 *
 * The library would carry by itself, but its 0.9.75 takes a socket for full whenever a record that
 * had to wait was followed by more, waits for an edge that cannot come, and stands still. So the
 * session is ours from the 101 on: it reads through pump_pull(), which has nothing for the library,
 * and the library's own pair stays empty. It hears of the end by MHD_UPGRADE_ACTION_CLOSE as ever.
 *
 * A lane holds at least one record of room before more is read for it, so GnuTLS never keeps
 * decrypted bytes back, and the descriptor tells all there is to know. Each event reads once and
 * writes once a lane.
 *
 * End: a side that has ended is passed on behind its last byte, to the client by close_notify. Once
 * the holder has closed, what it wrote is sent, for at most PUMP_LINGER_MS. A client that breaks
 * off ends both ways.
 */

#include <errno.h>
#include <gnutls/gnutls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/http_server_int.h"

#define RECORD_SIZE_MAX (16u << 10)
#define LANE_SIZE (2 * RECORD_SIZE_MAX)
#define PUMP_LINGER_MS 5000
#define QUIET_RECORDS_MAX 16 /* records without bytes, one after the other, in one go */

struct lane {
    size_t start, end; /* of the bytes that wait */
    bool over;         /* its source has ended */
    bool done;         /* and that was passed on, or its sink has broken */
    uint8_t bytes[LANE_SIZE];
};

struct http_pump {
    gnutls_session_t session;
    int fd;           /* of the client, the library's */
    int near, far;    /* our end of the pair, the holder's */
    bool ours;        /* inside a call of ours: only then there is something to be read */
    size_t held_size; /* bytes of `out` that GnuTLS has taken and not sent; 0: none */
    struct lane in, out;
    struct loop_watch *client, *holder;
    unsigned client_events, holder_events;
    struct loop_timer *linger; /* runs once the holder has closed */
    void (*on_end)(void *opaque);
    void *opaque;
};

/* ---- GnuTLS' way to the socket */

static ssize_t pump_pull(gnutls_transport_ptr_t opaque, void *to, size_t size)
{
    struct http_pump *pump = opaque;
    ssize_t n = pump->ours ? recv(pump->fd, to, size, MSG_DONTWAIT) : -1;

    if (n < 0)
        gnutls_transport_set_errno(pump->session, pump->ours ? errno : EAGAIN);
    return n;
}

static ssize_t pump_push(gnutls_transport_ptr_t opaque, const void *bytes, size_t size)
{
    struct http_pump *pump = opaque;
    ssize_t n = send(pump->fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (n < 0)
        gnutls_transport_set_errno(pump->session, errno);
    return n;
}

static bool must_wait(ssize_t n)
{
    return n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED;
}

/* ---- Lanes */

static size_t lane_size(const struct lane *lane)
{
    return lane->end - lane->start;
}

static bool lane_has_room(const struct lane *lane)
{
    return !lane->over && LANE_SIZE - lane_size(lane) >= RECORD_SIZE_MAX;
}

static uint8_t *lane_room(struct lane *lane, size_t *ret_size)
{
    if (lane->start > 0)
        memmove(lane->bytes, lane->bytes + lane->start, lane_size(lane));
    lane->end -= lane->start;
    lane->start = 0;
    *ret_size = LANE_SIZE - lane->end;
    return lane->bytes + lane->end;
}

static void lane_break(struct lane *lane)
{
    lane->over = lane->done = true;
    lane->start = lane->end = 0;
}

static void pump_break(struct http_pump *pump)
{
    lane_break(&pump->in);
    lane_break(&pump->out);
    pump->held_size = 0;
    (void)shutdown(pump->near, SHUT_RDWR);
}

static void client_read(struct http_pump *pump)
{
    size_t size;
    uint8_t *to = lane_room(&pump->in, &size);
    ssize_t n;

    pump->ours = true;
    for (int i = 0; i < QUIET_RECORDS_MAX; i++) {
        n = gnutls_record_recv(pump->session, to, size);
        if (n >= 0 || must_wait(n) || gnutls_error_is_fatal((int)n))
            break;
    }
    pump->ours = false;
    if (n > 0)
        pump->in.end += (size_t)n;
    else if (n == 0)
        pump->in.over = true;
    else if (gnutls_error_is_fatal((int)n))
        pump_break(pump);
}

static void holder_write(struct http_pump *pump)
{
    struct lane *lane = &pump->in;
    ssize_t n = 0;

    if (lane_size(lane) > 0)
        n = send(pump->near, lane->bytes + lane->start, lane_size(lane),
                 MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0)
        lane->start += (size_t)n;
    else if (n < 0 && errno != EAGAIN && errno != EINTR)
        lane_break(lane); /* the holder reads no more */
    if (lane->over && !lane->done && lane_size(lane) == 0) {
        lane->done = true;
        (void)shutdown(pump->near, SHUT_WR);
    }
}

static void holder_read(struct http_pump *pump)
{
    size_t size;
    uint8_t *to = lane_room(&pump->out, &size);
    ssize_t n = recv(pump->near, to, size, MSG_DONTWAIT);

    if (n > 0)
        pump->out.end += (size_t)n;
    else if (n == 0 || (errno != EAGAIN && errno != EINTR))
        pump->out.over = true;
}

/* A record that had to wait is sent before anything else; GnuTLS has its bytes. */
static ssize_t record_send(struct http_pump *pump)
{
    struct lane *lane = &pump->out;
    size_t size = lane_size(lane) < RECORD_SIZE_MAX ? lane_size(lane) : RECORD_SIZE_MAX;
    ssize_t n;

    if (pump->held_size > 0)
        n = gnutls_record_send(pump->session, NULL, 0);
    else
        n = gnutls_record_send(pump->session, lane->bytes + lane->start, size);
    if (must_wait(n) && pump->held_size == 0)
        pump->held_size = size;
    if (n > 0)
        pump->held_size = 0;
    return n;
}

static void client_write(struct http_pump *pump)
{
    struct lane *lane = &pump->out;
    ssize_t n = 0;

    if (lane_size(lane) > 0)
        n = record_send(pump);
    if (n > 0)
        lane->start += (size_t)n;
    if (n < 0 && !must_wait(n)) {
        pump_break(pump);
        return;
    }
    if (!lane->over || lane->done || lane_size(lane) > 0)
        return;
    n = gnutls_bye(pump->session, GNUTLS_SHUT_WR);
    if (must_wait(n))
        return;
    lane->done = true;
    (void)shutdown(pump->fd, SHUT_WR);
}

/* ---- Events */

static void watch_set(struct loop_watch *watch, unsigned *was, unsigned events)
{
    if (*was != events)
        loop_watch_set(watch, events);
    *was = events;
}

static unsigned events_for(const struct lane *from, const struct lane *to)
{
    bool waits = lane_size(to) > 0 || (to->over && !to->done);

    return (lane_has_room(from) ? LOOP_READABLE : 0) | (waits ? LOOP_WRITABLE : 0);
}

static void pump_check(struct http_pump *pump)
{
    bool closing = loop_timer_is_running(pump->linger);

    watch_set(pump->client, &pump->client_events, events_for(&pump->in, &pump->out));
    watch_set(pump->holder, &pump->holder_events, events_for(&pump->out, &pump->in));
    if (closing && pump->out.done)
        loop_timer_start(pump->linger, 0, 0);
}

static void on_client(void *opaque, unsigned events)
{
    struct http_pump *pump = opaque;

    if (events & LOOP_WRITABLE)
        client_write(pump);
    if ((events & LOOP_READABLE) && lane_has_room(&pump->in)) {
        client_read(pump);
        holder_write(pump);
    }
    pump_check(pump);
}

static void on_holder(void *opaque, unsigned events)
{
    struct http_pump *pump = opaque;

    if (events & LOOP_WRITABLE)
        holder_write(pump);
    if ((events & LOOP_READABLE) && lane_has_room(&pump->out)) {
        holder_read(pump);
        client_write(pump);
    }
    pump_check(pump);
}

static void on_linger(void *opaque)
{
    struct http_pump *pump = opaque;

    pump_stop(pump);
    pump->on_end(pump->opaque);
}

/* ---- From outside */

static int pump_open(struct http_pump *pump, struct loop *loop, struct err *err)
{
    int pair[2], on = 1, r;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
        return err_set_errno(err, ERR_IO, "make a socket pair");
    pump->near = pair[0];
    pump->far = pair[1];
    (void)setsockopt(pump->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    r = loop_watch_new(loop, pump->fd, on_client, pump, &pump->client, err);
    if (r == 0)
        r = loop_watch_new(loop, pump->near, on_holder, pump, &pump->holder, err);
    return r;
}

int pump_new(struct http_connection *connection, struct http_pump **ret_pump, int *ret_fd,
             struct err *err)
{
    struct loop *loop = connection->server->loop;
    OWNED(pump_free) struct http_pump *pump = xcalloc(1, sizeof(*pump));
    int r;

    pump->session =
        MHD_get_connection_info(connection->mhd, MHD_CONNECTION_INFO_GNUTLS_SESSION)->tls_session;
    pump->fd = connection->fd;
    pump->near = pump->far = -1;
    pump->linger = loop_timer_new(loop, on_linger, pump);
    r = pump_open(pump, loop, err);
    if (r < 0)
        return r;
    gnutls_transport_set_ptr(pump->session, pump);
    gnutls_transport_set_pull_function(pump->session, pump_pull);
    gnutls_transport_set_push_function(pump->session, pump_push);
    client_read(pump); /* what GnuTLS has decrypted already is announced by nothing */
    holder_write(pump);
    pump_check(pump);
    *ret_fd = pump->far;
    *ret_pump = TAKE(pump);
    return 0;
}

void pump_finish(struct http_pump *pump, void (*on_end)(void *opaque), void *opaque)
{
    assert(pump->far >= 0);
    (void)close(pump->far);
    pump->far = -1;
    pump->on_end = on_end;
    pump->opaque = opaque;
    loop_timer_start(pump->linger, PUMP_LINGER_MS, 0);
    pump_check(pump);
}

void pump_stop(struct http_pump *pump)
{
    loop_timer_free(&pump->linger);
    loop_watch_free(&pump->client);
    loop_watch_free(&pump->holder);
    if (pump->near >= 0)
        (void)close(pump->near);
    if (pump->far >= 0)
        (void)close(pump->far);
    pump->near = pump->far = -1;
}

void pump_free(struct http_pump **pump_p)
{
    struct http_pump *pump = TAKE(*pump_p);

    if (pump == NULL)
        return;
    pump_stop(pump);
    free(pump);
}
