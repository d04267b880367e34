/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A websocket's connection to the gateway that its client waits at: dialed here, where there is a
 * network, and handed to the engine host, which may have none. The host says the token once the
 * connection stands, and learns where it does not.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "schema/websocket.h"
#include "workers/worker_int.h"

bool worker_tunnel_is_wanted(const struct worker *worker, const struct frame_req *req)
{
    return websocket_is_route(req->route) && worker_host_takes_tunnels(worker->host);
}

/* "10.0.0.1:8090" or "[::1]:8090"; the gateway has checked what it says of itself. */
static int address_read(const char *text, struct sockaddr_storage *ret_address, socklen_t *ret_size,
                        struct err *err)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)ret_address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret_address;
    const char *colon = strrchr(text, ':');
    bool bracket = text[0] == '[';
    char host[INET6_ADDRSTRLEN];
    unsigned port = 0;
    size_t size = colon == NULL ? 0 : (size_t)(colon - text);

    for (const char *c = colon == NULL ? "" : colon + 1; *c >= '0' && *c <= '9' && port < 65536;
         c++)
        port = 10 * port + (unsigned)(*c - '0');
    if (bracket && size >= 2 && text[size - 1] == ']')
        text++, size -= 2;
    memset(ret_address, 0, sizeof(*ret_address));
    if (size > 0 && size < sizeof(host) && port > 0 && port < 65536) {
        memcpy(host, text, size);
        host[size] = '\0';
        v4->sin_port = htons((uint16_t)port);
        v4->sin_family = bracket ? AF_INET6 : AF_INET;
        *ret_size = bracket ? sizeof(*v6) : sizeof(*v4);
        if (inet_pton(v4->sin_family, host,
                      bracket ? (void *)&v6->sin6_addr : (void *)&v4->sin_addr) == 1)
            return 0;
    }
    return err_set(err, ERR_RANGE, "a gateway's address is '%.60s'", text);
}

static int tunnel_dial(const struct frame_req *req, int *ret_fd, struct err *err)
{
    struct websocket_offer offer;
    struct sockaddr_storage address;
    socklen_t size = 0;
    int on = 1, fd, r = websocket_offer_read(req->input, &offer, err);

    if (r == 0)
        r = address_read(offer.gateway, &address, &size, err);
    if (r < 0)
        return r;
    fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set_errno(err, ERR_IO, "make a socket");
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    if (connect(fd, (struct sockaddr *)&address, size) < 0 && errno != EINPROGRESS) {
        r = err_set_errno(err, ERR_UNAVAILABLE, "connect to gateway %s", offer.gateway);
        (void)close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

void worker_tunnel_run(struct worker *worker, struct frame_req *req)
{
    struct err err;
    int fd;

    if (tunnel_dial(req, &fd, &err) < 0) {
        log_warn("tunnel_not_dialed", LOG_U64("token", req->id), LOG_ERR(&err));
        worker_host_run(worker->host, req); /* says what is missing, in its turn */
        return;
    }
    req->tunnel = true;
    worker_host_run_tunnel(worker->host, req, fd);
}
