/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Connections that leave HTTP: a 101, and then bytes that the library does not look at.
 *
 * The library keeps the connection suspended and its descriptor open until
 * MHD_UPGRADE_ACTION_CLOSE, and reports the request as completed after that. Of TLS the holder gets
 * one end of a socket pair; the library carries between its other end and the client.
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

    (void)mhd, (void)con_cls;
    connection_unwatch_peer(upgraded->request->connection);
    upgraded->opened = true;
    if (upgraded->closed) {
        (void)MHD_upgrade_action(handle, MHD_UPGRADE_ACTION_CLOSE);
        return;
    }
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

    assert(!request->server->is_tls);
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
    bool tell = !upgraded->opened && !upgraded->closed;
    const struct http_upgrade_calls calls = upgraded->calls;
    void *opaque = upgraded->opaque;

    upgraded->request = NULL;
    upgraded->handle = NULL;
    if (tell || upgraded->closed)
        free(upgraded);
    if (tell)
        calls.on_gone(opaque);
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
    } else if (upgraded->handle != NULL) {
        request->server->dirty = true;
        (void)MHD_upgrade_action(upgraded->handle, MHD_UPGRADE_ACTION_CLOSE);
    }
}
