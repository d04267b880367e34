/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The server around its requests: listener, connections, deadlines, drain.
 *
 * libmicrohttpd runs without threads of its own, on an epoll descriptor that the loop watches. Each
 * turn of the loop ends in server_turn(), which runs the daemon once more if somebody was woken in
 * the turn: resuming costs the library a walk over all suspended connections, so it is done once a
 * turn and not once a wake.
 *
 * The library's own timer sees only silence, and a client may send one byte a second for ever; so
 * server_sweep() looks at each connection a few times a second and holds it to the deadline of its
 * state. The library cannot be asked to close a connection: shutdown() on its socket makes it.
 *
 * Shutdown: http_server_drain() then http_server_close(); or close alone, which cuts.
 */

#include "base/http_server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/http_server_int.h"

#define TLS_FILE_SIZE_MAX (1u << 20)
#define LISTEN_BACKLOG 1024
#define BODY_STRIDE_SIZE (1u << 20)
#define RUNS_PER_TURN_MAX 8
#define DRAIN_IDLE_MS 500 /* a connection that was silent for so long is closed by a drain */
#define DRAIN_SWEEP_MS 50
#define DRAIN_BACKLOG_RUNS 200

/* ---- Connections */

void connection_enter(struct http_connection *connection, enum connection_state state)
{
    /* The first request's headers are due from the moment of the connection. */
    if (!(connection->state == CONNECTION_FRESH && state == CONNECTION_HEAD))
        connection->since_ms = loop_now_ms(connection->server->loop);
    connection->state = state;
    connection->since_size = connection->request == NULL ? 0 : connection->request->body_size;
}

/* The client has gone, or was cut: whoever is suspended on it has to hear that. */
static void connection_is_gone(struct http_connection *connection)
{
    connection->gone = true;
    if (connection->watch != NULL)
        loop_watch_set(connection->watch, 0);
    if (connection->request != NULL)
        request_wake(connection->request);
}

static void connection_cut(struct http_connection *connection)
{
    if (connection->gone)
        return;
    (void)shutdown(connection->fd, SHUT_RDWR);
    connection_is_gone(connection);
}

/*
 * The library takes a short read for an empty socket and waits for the next edge. The end of the
 * stream that came before that read has no edge of its own, so it would wait for ever.
 */
bool connection_is_cut_off(const struct http_connection *connection)
{
    char byte;

    return (connection->state == CONNECTION_BODY || connection->state == CONNECTION_HEAD) &&
           recv(connection->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

static void connection_peer_event(void *opaque, unsigned events)
{
    struct http_connection *connection = opaque;

    (void)events;
    if (connection_is_cut_off(connection))
        connection_cut(connection);
    else
        connection_is_gone(connection);
}

void connection_watch_peer(struct http_connection *connection)
{
    struct err err;

    if (connection->watch != NULL || connection->gone)
        return;
    connection->watch_fd = fcntl(connection->fd, F_DUPFD_CLOEXEC, 0);
    if (connection->watch_fd < 0)
        return; /* out of descriptors: a departure is then noticed when we answer */
    if (loop_watch_new(connection->server->loop, connection->watch_fd, connection_peer_event,
                       connection, &connection->watch, &err) < 0) {
        (void)close(connection->watch_fd);
        connection->watch_fd = -1;
        return;
    }
    loop_watch_set(connection->watch, LOOP_GONE);
}

void connection_unwatch_peer(struct http_connection *connection)
{
    loop_watch_free(&connection->watch);
    if (connection->watch_fd >= 0)
        (void)close(connection->watch_fd);
    connection->watch_fd = -1;
}

static void connection_notify(void *cls, struct MHD_Connection *mhd, void **socket_context,
                              enum MHD_ConnectionNotificationCode code)
{
    struct http_server *server = cls;
    struct http_connection *connection = *socket_context;

    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        connection = xcalloc(1, sizeof(*connection));
        connection->server = server;
        connection->mhd = mhd;
        connection->fd =
            MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        connection->watch_fd = -1;
        connection->next = server->connections;
        if (connection->next != NULL)
            connection->next->prev = connection;
        server->connections = connection;
        server->counts.connections++;
        server->counts.connections_total++;
        connection_enter(connection, CONNECTION_FRESH);
        *socket_context = connection;
        return;
    }
    connection_unwatch_peer(connection);
    if (connection->next != NULL)
        connection->next->prev = connection->prev;
    if (connection->prev != NULL)
        connection->prev->next = connection->next;
    else
        server->connections = connection->next;
    server->counts.connections--;
    pump_free(&connection->pump);
    *socket_context = NULL;
    free(connection);
}

void connection_send_raw(struct http_connection *connection, const struct buf *bytes)
{
    /* The library has sent nothing in this state, so the bytes cannot land inside an answer. Under
     * TLS only the library could encrypt them: the client sees the connection close. */
    if (!connection->server->is_tls && bytes->size > 0)
        (void)send(connection->fd, bytes->bytes, bytes->size, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void connection_cut_late(struct http_connection *connection)
{
    struct http_server *server = connection->server;
    const struct http_header type = {"Content-Type", "application/json"};
    OWNED(buf_done) struct buf body = BUF_WITH_LIMIT(16u << 10);
    OWNED(buf_done) struct buf raw = BUF_WITH_LIMIT(32u << 10);
    struct http_request *request = connection->request;

    server->counts.refused_total++;
    if (request != NULL && request->raw.size > 0) {
        connection_send_raw(connection, &request->raw);
    } else {
        server->options.render_error(408, "request did not arrive in time", &body, server->opaque);
        request_render_raw(server, 408, &type, 1, body.bytes, body.size, &raw);
        connection_send_raw(connection, &raw);
    }
    connection_cut(connection);
}

/* ---- Lingering sockets */

static void linger_end(struct http_linger *linger)
{
    struct http_server *server = linger->server;

    loop_watch_free(&linger->watch);
    (void)close(linger->fd);
    if (linger->next != NULL)
        linger->next->prev = linger->prev;
    if (linger->prev != NULL)
        linger->prev->next = linger->next;
    else
        server->lingers = linger->next;
    server->linger_count--;
    free(linger);
}

static void linger_event(void *opaque, unsigned events)
{
    struct http_linger *linger = opaque;
    char bytes[16384];
    ssize_t n = recv(linger->fd, bytes, sizeof(bytes), MSG_DONTWAIT);

    (void)events;
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0)
        linger->size += (size_t)n;
    if (n <= 0 || linger->size > HTTP_DISCARD_SIZE_MAX)
        linger_end(linger);
}

void server_linger(struct http_server *server, int fd)
{
    struct http_linger *linger;
    struct err err;

    if (server->closing || server->linger_count >= HTTP_LINGER_COUNT_MAX)
        return;
    fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return;
    linger = xcalloc(1, sizeof(*linger));
    linger->server = server;
    linger->fd = fd;
    linger->end_ms = loop_now_ms(server->loop) + HTTP_LINGER_MS;
    linger->next = server->lingers;
    if (linger->next != NULL)
        linger->next->prev = linger;
    server->lingers = linger;
    server->linger_count++;
    if (loop_watch_new(server->loop, fd, linger_event, linger, &linger->watch, &err) < 0)
        linger_end(linger);
    else
        loop_watch_set(linger->watch, LOOP_READABLE);
}

/* ---- The daemon inside the loop */

static void server_run(struct http_server *server)
{
    assert(!server->running);
    server->running = true;
    server->dirty = false;
    (void)MHD_run(server->daemon);
    server->running = false;
}

static void server_ready(void *opaque, unsigned events)
{
    (void)events;
    server_run(opaque);
}

static void server_again(void *opaque)
{
    ((struct http_server *)opaque)->dirty = true; /* server_turn() follows in this turn */
}

static void server_turn(void *opaque)
{
    struct http_server *server = opaque;
    MHD_UNSIGNED_LONG_LONG wait_ms;

    for (int i = 0; i < RUNS_PER_TURN_MAX && server->dirty; i++)
        server_run(server);
    if (server->draining && !server->drained && server->counts.connections == 0) {
        server->drained = true;
        server->on_drained(server->drained_opaque);
        return; /* the server may be gone by now */
    }
    if (server->dirty || server->owed ||
        (MHD_get_timeout(server->daemon, &wait_ms) == MHD_YES && wait_ms == 0))
        loop_timer_start(server->again, 0, 0);
    server->owed = false;
}

/* While draining: silent for a while, and not about to say something. */
static bool connection_may_go(const struct http_connection *connection, uint64_t age_ms)
{
    int unread = 0;

    return connection->server->draining && age_ms >= DRAIN_IDLE_MS &&
           ioctl(connection->fd, FIONREAD, &unread) == 0 && unread == 0;
}

static void connection_sweep(struct http_connection *connection, uint64_t now_ms)
{
    const struct http_server_options *options = &connection->server->options;
    uint64_t age_ms = now_ms - connection->since_ms;
    const struct http_request *request = connection->request;

    switch (connection->state) {
    case CONNECTION_FRESH:
    case CONNECTION_HEAD:
        if (connection->state == CONNECTION_FRESH && connection_may_go(connection, age_ms))
            connection_cut(connection);
        else if (age_ms > options->header_timeout_ms)
            connection_cut_late(connection);
        break;
    case CONNECTION_IDLE:
        if (age_ms > options->idle_timeout_ms || connection_may_go(connection, age_ms))
            connection_cut(connection);
        break;
    case CONNECTION_BODY:
        if (request->body_size - connection->since_size >= BODY_STRIDE_SIZE)
            connection_enter(connection, CONNECTION_BODY);
        else if (age_ms > options->body_timeout_ms)
            connection_cut_late(connection);
        break;
    case CONNECTION_BUSY: /* the holder's deadline, or the library's for a reader that stalls */
        break;
    }
}

static void server_sweep(void *opaque)
{
    struct http_server *server = opaque;
    uint64_t now_ms = loop_now_ms(server->loop);

    for (struct http_connection *c = server->connections; c != NULL; c = c->next) {
        if (c->gone)
            continue;
        if (connection_is_cut_off(c))
            connection_cut(c);
        else
            connection_sweep(c, now_ms);
    }
    for (struct http_linger *l = server->lingers, *next; l != NULL; l = next) {
        next = l->next;
        if (now_ms >= l->end_ms)
            linger_end(l);
    }
    server->dirty = true; /* lets the library look at its own deadlines */
}

/* ---- Opening */

static void render_plain_error(int status, const char *text, struct buf *to, void *opaque)
{
    (void)status, (void)opaque;
    buf_printf(to, "{\"error\": \"%s\"}\n", text); /* texts are ours: nothing to escape */
}

static void options_fill(struct http_server_options *to, const struct http_server_options *from)
{
    *to = *from;
    if (to->address == NULL)
        to->address = "127.0.0.1";
    if (to->header_size_max == 0)
        to->header_size_max = 16u << 10;
    if (to->connection_count_max == 0)
        to->connection_count_max = 10000;
    if (to->idle_timeout_ms == 0)
        to->idle_timeout_ms = 60000;
    if (to->header_timeout_ms == 0)
        to->header_timeout_ms = 10000;
    if (to->body_timeout_ms == 0)
        to->body_timeout_ms = 30000;
    if (to->render_error == NULL)
        to->render_error = render_plain_error;
}

static int address_parse(const char *text, uint16_t port, struct sockaddr_storage *ret_address,
                         socklen_t *ret_size, struct err *err)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)ret_address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret_address;

    memset(ret_address, 0, sizeof(*ret_address));
    if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        *ret_size = sizeof(*v4);
        return 0;
    }
    if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(port);
        *ret_size = sizeof(*v6);
        return 0;
    }
    return err_set(err, ERR_USAGE, "listen address '%s' is neither IPv4 nor IPv6", text);
}

static void fd_close(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

static int listener_open(const struct http_server_options *options, int *ret_fd, uint16_t *ret_port,
                         struct err *err)
{
    struct sockaddr_storage address;
    socklen_t size;
    int on = 1, r;
    OWNED(fd_close) int fd = -1;

    r = address_parse(options->address, options->port, &address, &size, err);
    if (r < 0)
        return r;
    fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set_errno(err, ERR_IO, "make a socket");
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (options->reuse_port && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) < 0)
        return err_set_errno(err, ERR_IO, "share port %u", options->port);
    if (bind(fd, (const struct sockaddr *)&address, size) < 0 || listen(fd, LISTEN_BACKLOG) < 0)
        return err_set_errno(err, ERR_DEPENDENCY, "listen on %s port %u", options->address,
                             options->port);
    if (getsockname(fd, (struct sockaddr *)&address, &size) < 0)
        return err_set_errno(err, ERR_IO, "read the port listened on");
    *ret_port = ntohs(address.ss_family == AF_INET6
                          ? ((const struct sockaddr_in6 *)&address)->sin6_port
                          : ((const struct sockaddr_in *)&address)->sin_port);
    *ret_fd = fd;
    fd = -1;
    return 0;
}

static int file_read(const char *path, struct buf *to, struct err *err)
{
    FILE *file = fopen(path, "re");
    char part[4096];
    size_t n;
    int failed;

    if (file == NULL)
        return err_set_errno(err, ERR_USAGE, "open '%s'", path);
    while ((n = fread(part, 1, sizeof(part), file)) > 0)
        buf_append(to, part, n);
    failed = ferror(file);
    (void)fclose(file);
    if (failed)
        return err_set(err, ERR_IO, "read '%s'", path);
    return buf_check(to, path, err);
}

static void log_nothing(void *cls, const char *fmt, va_list args)
{
    (void)cls, (void)fmt, (void)args; /* what the library says about connections is no news */
}

static size_t unescape_nothing(void *cls, struct MHD_Connection *mhd, char *text)
{
    (void)cls, (void)mhd;
    return strlen(text); /* http_target_parse() does it, segment by segment */
}

static int daemon_start(struct http_server *server, int fd, struct err *err)
{
    const struct http_server_options *options = &server->options;
    OWNED(buf_done) struct buf cert = BUF_WITH_LIMIT(TLS_FILE_SIZE_MAX);
    OWNED(buf_done) struct buf key = BUF_WITH_LIMIT(TLS_FILE_SIZE_MAX);
    uint32_t longest_ms = options->idle_timeout_ms;
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_ALLOW_UPGRADE |
                     MHD_USE_ERROR_LOG;
    struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_MEM_CERT, 0, NULL},
        {MHD_OPTION_HTTPS_MEM_KEY, 0, NULL},
        {MHD_OPTION_HTTPS_PRIORITIES, 0,
         (void *)(uintptr_t) "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"},
        {MHD_OPTION_END, 0, NULL},
    };
    int r;

    if (server->is_tls) {
        if ((r = file_read(options->tls_cert_path, &cert, err)) < 0 ||
            (r = file_read(options->tls_key_path, &key, err)) < 0 ||
            (r = tls_check(options, &cert, &key, err)) < 0)
            return err_wrap(err, "TLS certificate and key");
        tls[0].ptr_value = (void *)(uintptr_t)buf_text(&cert);
        tls[1].ptr_value = (void *)(uintptr_t)buf_text(&key);
        flags |= MHD_USE_TLS;
    }
    if (longest_ms < options->body_timeout_ms)
        longest_ms = options->body_timeout_ms;
    server->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, request_step, server, MHD_OPTION_EXTERNAL_LOGGER, log_nothing, NULL,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_NOTIFY_CONNECTION, connection_notify, server,
        MHD_OPTION_NOTIFY_COMPLETED, request_completed, server, MHD_OPTION_URI_LOG_CALLBACK,
        request_begin, server, MHD_OPTION_UNESCAPE_CALLBACK, unescape_nothing, NULL,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        options->header_size_max, MHD_OPTION_CONNECTION_LIMIT, options->connection_count_max,
        MHD_OPTION_PER_IP_CONNECTION_LIMIT, options->connection_count_max_per_address,
        MHD_OPTION_CONNECTION_TIMEOUT, longest_ms / 1000 + 2, MHD_OPTION_ARRAY,
        server->is_tls ? tls : tls + 3, MHD_OPTION_END);
    if (server->daemon == NULL)
        return err_set(err, ERR_DEPENDENCY, "start the HTTP server");
    return 0;
}

static int server_attach(struct http_server *server, struct err *err)
{
    const struct http_server_options *options = &server->options;
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(server->daemon,
                                                           MHD_DAEMON_INFO_EPOLL_FD);
    uint64_t period_ms = 1000;
    int r;

    if (info == NULL)
        return err_set(err, ERR_DEPENDENCY, "libmicrohttpd was built without epoll");
    r = loop_watch_new(server->loop, info->epoll_fd, server_ready, server, &server->watch, err);
    if (r < 0)
        return r;
    loop_watch_set(server->watch, LOOP_READABLE);
    server->turn = loop_turn_new(server->loop, server_turn, server);
    server->again = loop_timer_new(server->loop, server_again, server);
    server->sweep = loop_timer_new(server->loop, server_sweep, server);
    if (options->header_timeout_ms / 4 < period_ms)
        period_ms = options->header_timeout_ms / 4 + 1;
    if (options->body_timeout_ms / 4 < period_ms)
        period_ms = options->body_timeout_ms / 4 + 1;
    if (options->idle_timeout_ms / 4 < period_ms)
        period_ms = options->idle_timeout_ms / 4 + 1;
    loop_timer_start(server->sweep, period_ms, period_ms);
    return 0;
}

int http_server_open(struct loop *loop, const struct http_server_options *options,
                     http_call *handler, void *opaque, struct http_server **ret_server,
                     struct err *err)
{
    OWNED(http_server_close) struct http_server *server = xcalloc(1, sizeof(*server));
    OWNED(fd_close) int fd = -1;
    int r;

    server->loop = loop;
    server->listen_fd = -1;
    server->handler = handler;
    server->opaque = opaque;
    options_fill(&server->options, options);
    server->is_tls = options->tls_cert_path != NULL;
    if (server->is_tls != (options->tls_key_path != NULL))
        return err_set(err, ERR_USAGE, "TLS needs a certificate and its key; only '%s' is given",
                       server->is_tls ? options->tls_cert_path : options->tls_key_path);
    if (options->server_name != NULL)
        server->server_name = xstrdup(options->server_name);
    r = listener_open(&server->options, &fd, &server->port, err);
    if (r < 0)
        return r;
    r = daemon_start(server, fd, err);
    if (r < 0)
        return r;
    server->listen_fd = fd;
    fd = -1; /* the daemon's now */
    r = server_attach(server, err);
    if (r < 0)
        return r;
    *ret_server = TAKE(server);
    return 0;
}

/* ---- Drain and close */

static void server_stop_listening(struct http_server *server)
{
    int fd;

    if (server->listen_fd < 0)
        return;
    server->listen_fd = -1;
    fd = MHD_quiesce_daemon(server->daemon);
    if (fd >= 0)
        (void)close(fd);
}

/* The kernel has connected these clients already, and would reset them with the listener. */
static void server_take_backlog(struct http_server *server)
{
    struct pollfd listener = {.fd = server->listen_fd, .events = POLLIN};

    for (int i = 0; i < DRAIN_BACKLOG_RUNS && poll(&listener, 1, 0) == 1 &&
                    server->counts.connections < server->options.connection_count_max;
         i++)
        server_run(server);
}

void http_server_lame(struct http_server *server)
{
    server->lame = true;
}

void http_server_drain(struct http_server *server, void (*on_drained)(void *opaque), void *opaque)
{
    assert(!server->draining);
    server->lame = server->draining = true;
    server->on_drained = on_drained;
    server->drained_opaque = opaque;
    server_take_backlog(server);
    server_stop_listening(server);
    loop_timer_start(server->sweep, 0, DRAIN_SWEEP_MS);
    loop_timer_start(server->again, 0, 0);
}

void http_server_close(struct http_server **server_p)
{
    struct http_server *server = TAKE(*server_p);

    if (server == NULL)
        return;
    assert(!server->running);
    server->closing = true;
    if (server->daemon != NULL) {
        server_stop_listening(server);
        for (struct http_connection *c = server->connections; c != NULL; c = c->next) {
            if (c->request != NULL && c->request->upgraded != NULL)
                upgraded_cut(c->request->upgraded);
            connection_cut(c);
        }
        server_run(server); /* nobody may be suspended where the daemon stops */
        MHD_stop_daemon(server->daemon);
    }
    assert(server->connections == NULL);
    while (server->lingers != NULL)
        linger_end(server->lingers);
    loop_timer_free(&server->sweep);
    loop_timer_free(&server->again);
    loop_turn_free(&server->turn);
    loop_watch_free(&server->watch);
    free(server->server_name);
    free(server);
}

uint16_t http_server_port(const struct http_server *server)
{
    return server->port;
}

struct http_server_counts http_server_counts(const struct http_server *server)
{
    return server->counts;
}
