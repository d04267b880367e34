/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Connections that leave HTTP: a 101, and then bytes that the library does not look at.
 *
 * The library keeps the connection suspended and its descriptor open until
 * MHD_UPGRADE_ACTION_CLOSE, and reports the request as completed after that. Of TLS the holder gets
 * one end of a socket pair; what it has written when it closes is still sent (http_server_pump.c).
 *
 * The handle is the holder's and the library's: it is freed when both are done with it.
 */

#include <stdlib.h>

#include "base/assert.h"
#include "base/http_server_int.h"

struct http_upgraded {
    struct http_request *request;             /* NULL once the library is done with it */
    struct MHD_UpgradeResponseHandle *handle; /* NULL before the 101 has left, and after the end */
    struct http_upgrade_calls calls;
    void *opaque;
    bool opened, closed; /* on_open was called; the holder has closed */
};

static void on_upgrade(void *cls, struct MHD_Connection *mhd, void *con_cls, const char *extra,
                       size_t extra_size, MHD_socket fd, struct MHD_UpgradeResponseHandle *handle)
{
    struct http_upgraded *upgraded = cls;
    struct http_connection *connection = upgraded->request->connection;
    struct err err;

    (void)mhd, (void)con_cls;
    connection_unwatch_peer(connection);
    if (upgraded->closed ||
        (connection->server->is_tls && pump_new(connection, &connection->pump, &fd, &err) < 0)) {
        (void)MHD_upgrade_action(handle, MHD_UPGRADE_ACTION_CLOSE); /* upgraded_over() tells */
        return;
    }
    upgraded->opened = true;
    upgraded->handle = handle;
    upgraded->calls.on_open(upgraded->opaque, fd, extra, extra_size);
}

struct http_upgraded *http_request_upgrade(struct http_request **request_p,
                                           const struct http_header *headers, size_t header_count,
                                           const struct http_upgrade_calls *calls, void *opaque)
{
    struct http_request *request = TAKE(*request_p);
    struct http_upgraded *upgraded;
    struct MHD_Response *response;

    if (!request_is_open(request)) {
        request_end(request, 0, NULL);
        return NULL;
    }
    upgraded = xcalloc(1, sizeof(*upgraded));
    *upgraded = (struct http_upgraded){.request = request, .calls = *calls, .opaque = opaque};
    response = MHD_create_response_for_upgrade(on_upgrade, upgraded);
    if (response == NULL)
        NEVER("memory is exhausted");
    request->upgraded = upgraded;
    answer_add_headers(response, headers, header_count);
    request_end(request, 101, response);
    return upgraded;
}

void upgraded_over(struct http_upgraded *upgraded)
{
    struct http_pump *pump = upgraded->request->connection->pump;
    bool tell = !upgraded->opened && !upgraded->closed;
    const struct http_upgrade_calls calls = upgraded->calls;
    void *opaque = upgraded->opaque;

    if (pump != NULL)
        pump_stop(pump);
    upgraded->request = NULL;
    upgraded->handle = NULL;
    if (tell || upgraded->closed)
        free(upgraded);
    if (tell)
        calls.on_gone(opaque);
}

static void on_sent(void *opaque)
{
    struct http_upgraded *upgraded = opaque;
    struct http_server *server = upgraded->request->server;

    server->dirty = true;
    server->owed = server->is_tls; /* it lets go of its own pair first, then of the connection */
    (void)MHD_upgrade_action(upgraded->handle, MHD_UPGRADE_ACTION_CLOSE);
}

void upgraded_cut(struct http_upgraded *upgraded)
{
    if (upgraded->handle != NULL)
        (void)MHD_upgrade_action(upgraded->handle, MHD_UPGRADE_ACTION_CLOSE);
}

void http_upgraded_close(struct http_upgraded **upgraded_p)
{
    struct http_upgraded *upgraded = TAKE(*upgraded_p);
    struct http_request *request;

    if (upgraded == NULL)
        return;
    upgraded->closed = true;
    request = upgraded->request;
    if (request == NULL) {
        free(upgraded);
    } else if (upgraded->handle != NULL && request->connection->pump != NULL) {
        pump_finish(request->connection->pump, on_sent, upgraded);
    } else if (upgraded->handle != NULL) {
        on_sent(upgraded);
    }
}
