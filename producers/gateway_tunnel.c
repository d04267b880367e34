/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Where the hosts of models dial to for a websocket: a port of this gateway's own, since the one
 * for clients may be shared by several gateways and may speak TLS. Whoever connects says a token as
 * one line, within DIAL_MS; its websocket takes the connection from there (gateway_websocket.c).
 * Any other line, and any other length, ends it.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/loop.h"
#include "producers/gateway.h"
#include "producers/gateway_websocket.h"
#include "schema/websocket.h"

#define DIAL_MS 5000
#define DIALS_MAX 1024
#define LISTEN_BACKLOG 1024
#define SWEEP_MS 1000

struct dial { /* has connected, and has not said its token */
    TAILQ_ENTRY(dial) link;
    struct tunnels *tunnels;
    int fd;
    struct loop_watch *watch;
    char line[WEBSOCKET_TOKEN_SIZE]; /* with its line feed */
    size_t size;
    uint64_t end_ms;
};

struct tunnels {
    struct gateway *gateway;
    int fd;
    struct loop_watch *watch;
    TAILQ_HEAD(, dial) dials; /* oldest first */
    size_t count;
    struct loop_timer *sweep; /* runs while there are some */
    char address[WEBSOCKET_ADDRESS_SIZE];
};

static int dial_free(struct dial *dial)
{
    struct tunnels *tunnels = dial->tunnels;
    int fd = dial->fd;

    TAILQ_REMOVE(&tunnels->dials, dial, link);
    tunnels->count--;
    if (tunnels->watch != NULL)
        loop_watch_set(tunnels->watch, LOOP_READABLE); /* there is room again */
    loop_watch_free(&dial->watch);
    free(dial);
    return fd;
}

/* Reads no byte behind the line: those are the websocket's. */
static void on_dial(void *opaque, unsigned events)
{
    struct dial *dial = opaque;
    struct gateway *gateway = dial->tunnels->gateway;
    char token[WEBSOCKET_TOKEN_SIZE];
    ssize_t n = recv(dial->fd, dial->line + dial->size, sizeof(dial->line) - dial->size,
                     MSG_DONTWAIT);
    int fd;

    (void)events;
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0)
        dial->size += (size_t)n;
    if (n > 0 && dial->size < sizeof(dial->line))
        return;
    memcpy(token, dial->line, sizeof(token));
    fd = dial_free(dial);
    if (n <= 0 || token[sizeof(token) - 1] != '\n') {
        (void)close(fd);
        return;
    }
    token[sizeof(token) - 1] = '\0';
    websocket_take_tunnel(gateway, token, fd);
}

static void on_connection(void *opaque, unsigned events)
{
    struct tunnels *tunnels = opaque;
    struct dial *dial;
    struct err err;
    int on = 1, fd;

    (void)events;
    if (tunnels->count >= DIALS_MAX) { /* the rest waits in the backlog */
        loop_watch_set(tunnels->watch, 0);
        return;
    }
    fd = accept4(tunnels->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    dial = xcalloc(1, sizeof(*dial));
    dial->tunnels = tunnels;
    dial->fd = fd;
    dial->end_ms = loop_now_ms(tunnels->gateway->loop) + DIAL_MS;
    TAILQ_INSERT_TAIL(&tunnels->dials, dial, link);
    tunnels->count++;
    if (loop_watch_new(tunnels->gateway->loop, fd, on_dial, dial, &dial->watch, &err) < 0) {
        (void)close(dial_free(dial));
        return;
    }
    loop_watch_set(dial->watch, LOOP_READABLE);
    if (!loop_timer_is_running(tunnels->sweep))
        loop_timer_start(tunnels->sweep, SWEEP_MS, SWEEP_MS);
}

static void on_sweep(void *opaque)
{
    struct tunnels *tunnels = opaque;
    uint64_t now_ms = loop_now_ms(tunnels->gateway->loop);
    struct dial *dial;

    while ((dial = TAILQ_FIRST(&tunnels->dials)) != NULL && dial->end_ms <= now_ms)
        (void)close(dial_free(dial));
    if (TAILQ_EMPTY(&tunnels->dials))
        loop_timer_stop(tunnels->sweep);
}

/* ---- opening ---- */

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

static int address_parse(const char *setting, const char *text, uint16_t port,
                         union address *ret_address, socklen_t *ret_size, struct err *err)
{
    memset(ret_address, 0, sizeof(*ret_address));
    ret_address->v4.sin_port = htons(port);
    ret_address->v4.sin_family = AF_INET;
    *ret_size = sizeof(ret_address->v4);
    if (inet_pton(AF_INET, text, &ret_address->v4.sin_addr) == 1)
        return 0;
    ret_address->v6.sin6_family = AF_INET6;
    *ret_size = sizeof(ret_address->v6);
    if (inet_pton(AF_INET6, text, &ret_address->v6.sin6_addr) == 1)
        return 0;
    return err_set(err, ERR_USAGE, "%s is '%.60s', which is neither IPv4 nor IPv6", setting, text);
}

static bool is_every_address(const union address *address)
{
    return address->any.sa_family == AF_INET ? address->v4.sin_addr.s_addr == htonl(INADDR_ANY)
                                             : IN6_IS_ADDR_UNSPECIFIED(&address->v6.sin6_addr);
}

/* A name, looked up once: it is our own, as the network has it. */
static int name_resolve(const char *name, char to[INET6_ADDRSTRLEN], struct err *err)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    int code = getaddrinfo(name, NULL, &hints, &found);

    if (code == 0)
        code = getnameinfo(found->ai_addr, found->ai_addrlen, to, INET6_ADDRSTRLEN, NULL, 0,
                           NI_NUMERICHOST);
    if (found != NULL)
        freeaddrinfo(found);
    if (code != 0)
        return err_set(err, ERR_USAGE, "tunnel-address '%.60s' cannot be looked up: %s", name,
                       gai_strerror(code));
    return 0;
}

/* What hosts are told to dial. */
static int address_tell(struct tunnels *tunnels, const union address *bound, struct err *err)
{
    const struct gateway_settings *settings = &tunnels->gateway->settings;
    const char *text = settings->tunnel_address;
    uint16_t port = ntohs(bound->v4.sin_port); /* of either kind: they lie at the same place */
    char numeric[INET6_ADDRSTRLEN];
    union address told;
    socklen_t size;
    int r;

    if (text[0] == '\0' && is_every_address(bound))
        return err_set(err, ERR_USAGE,
                       "tunnel-listen is every address: tunnel-address must say which of them "
                       "workers connect to");
    if (text[0] == '\0')
        text = settings->tunnel_listen;
    r = address_parse("tunnel-address", text, port, &told, &size, err);
    if (r < 0 && (r = name_resolve(text, numeric, err)) == 0) {
        text = numeric;
        r = address_parse("tunnel-address", text, port, &told, &size, err);
    }
    if (r == 0)
        (void)snprintf(tunnels->address, sizeof(tunnels->address),
                       told.any.sa_family == AF_INET ? "%s:%u" : "[%s]:%u", text, port);
    return r;
}

static int tunnels_listen(struct tunnels *tunnels, struct err *err)
{
    const struct gateway_settings *settings = &tunnels->gateway->settings;
    union address address;
    socklen_t size;
    int on = 1, r = address_parse("tunnel-listen", settings->tunnel_listen,
                                  (uint16_t)settings->tunnel_port, &address, &size, err);

    if (r < 0)
        return r;
    tunnels->fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (tunnels->fd < 0)
        return err_set_errno(err, ERR_IO, "make a socket");
    (void)setsockopt(tunnels->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(tunnels->fd, &address.any, size) < 0 || listen(tunnels->fd, LISTEN_BACKLOG) < 0)
        return err_set_errno(err, ERR_DEPENDENCY, "listen on %s port %u for websockets",
                             settings->tunnel_listen, (unsigned)settings->tunnel_port);
    if (getsockname(tunnels->fd, &address.any, &size) < 0)
        return err_set_errno(err, ERR_IO, "read the port listened on");
    return address_tell(tunnels, &address, err);
}

int gateway_tunnels_open(struct gateway *gateway, struct err *err)
{
    struct tunnels *tunnels = xcalloc(1, sizeof(*tunnels));
    int r;

    gateway->tunnels = tunnels;
    tunnels->gateway = gateway;
    tunnels->fd = -1;
    TAILQ_INIT(&tunnels->dials);
    tunnels->sweep = loop_timer_new(gateway->loop, on_sweep, tunnels);
    r = tunnels_listen(tunnels, err);
    if (r == 0)
        r = loop_watch_new(gateway->loop, tunnels->fd, on_connection, tunnels, &tunnels->watch,
                           err);
    if (r == 0)
        loop_watch_set(tunnels->watch, LOOP_READABLE);
    return r;
}

void gateway_tunnels_close(struct tunnels **tunnels_p)
{
    struct tunnels *tunnels = TAKE(*tunnels_p);
    struct dial *dial;

    if (tunnels == NULL)
        return;
    loop_watch_free(&tunnels->watch);
    while ((dial = TAILQ_FIRST(&tunnels->dials)) != NULL)
        (void)close(dial_free(dial));
    loop_timer_free(&tunnels->sweep);
    if (tunnels->fd >= 0)
        (void)close(tunnels->fd);
    free(tunnels);
}

void gateway_tunnels_address(const struct tunnels *tunnels, char to[WEBSOCKET_ADDRESS_SIZE])
{
    memcpy(to, tunnels->address, WEBSOCKET_ADDRESS_SIZE);
}
