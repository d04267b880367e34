/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A request from its headers to its final answer; the phases are drawn in http_server_int.h.
 *
 * Two habits of libmicrohttpd shape this file. An answer that is queued in the first call, before
 * the body, always closes the connection afterwards, so requests without a body are answered in
 * the second call, which follows at once. And no answer can be queued between two parts of a body:
 * one that comes then waits for the end of the body, which is read and thrown away up to
 * HTTP_DISCARD_SIZE_MAX; past that the answer is written to the socket by hand and the connection
 * is closed.
 */

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/http_server_int.h"

void request_ref(struct http_request *request)
{
    request->ref_count++;
}

void request_unref(struct http_request *request)
{
    assert(request->ref_count > 0);
    if (--request->ref_count > 0)
        return;
    assert(request->connection == NULL && !request->held);
    buf_done(&request->body);
    buf_done(&request->raw);
    free(request->target);
    free(request);
}

static void request_release(struct http_request *request)
{
    assert(request->held);
    request->held = false;
    request_unref(request);
}

void request_suspend(struct http_request *request)
{
    if (request->suspended)
        return;
    request->suspended = true;
    MHD_suspend_connection(request->connection->mhd);
    connection_watch_peer(request->connection);
    connection_enter(request->connection, CONNECTION_BUSY);
}

void request_wake(struct http_request *request)
{
    if (request->connection == NULL || !request->suspended)
        return;
    request->suspended = false;
    MHD_resume_connection(request->connection->mhd);
    request->server->dirty = true;
}

/* Tells the holder, once, that nobody waits for its answer any more. */
static void request_tell_gone(struct http_request *request)
{
    if (request->gone)
        return;
    request->gone = true;
    if (request->stream != NULL)
        stream_client_gone(request->stream);
    if (!request->held)
        return;
    if (request->on_gone != NULL)
        request->on_gone(request, request->gone_opaque);
    else if (request->plan != PLAN_NONE && !request->delivered)
        request_release(request);
}

void *request_begin(void *cls, const char *uri, struct MHD_Connection *mhd)
{
    struct http_connection *connection =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    struct http_request *request = xcalloc(1, sizeof(*request));

    request->server = cls;
    request->connection = connection;
    request->ref_count = 1;
    request->target = xstrdup(uri == NULL ? "" : uri);
    request->target_size = strlen(request->target);
    request->target_at = uri;
    request->raw = BUF_WITH_LIMIT(128u << 10);
    connection->request = request;
    connection_enter(connection, CONNECTION_HEAD);
    return request;
}

void request_refuse(struct http_request *request, int status, const char *text)
{
    struct http_server *server = request->server;
    const struct http_header type = {"Content-Type", "application/json"};
    OWNED(buf_done) struct buf body = BUF_WITH_LIMIT(16u << 10);
    struct MHD_Response *response;

    server->counts.refused_total++;
    request->status = status;
    server->options.render_error(status, text, &body, server->opaque);
    if (request->has_body)
        request_render_raw(server, status, &type, 1, body.bytes, body.size, &request->raw);
    response = MHD_create_response_from_buffer(body.size, body.bytes, MHD_RESPMEM_MUST_COPY);
    (void)MHD_add_response_header(response, type.name, type.value);
    answer_finish(request, response);
}

/* ---- Steps. Each says whether the library may go on: MHD_NO closes the connection. */

static enum MHD_Result request_queue(struct http_request *request)
{
    struct MHD_Response *response = TAKE(request->response);
    enum MHD_Result r;

    request->phase = REQUEST_REPLY;
    connection_enter(request->connection, CONNECTION_BUSY);
    if (request->server->lame && request->upgraded == NULL)
        (void)MHD_add_response_header(response, "Connection", "close");
    r = MHD_queue_response(request->connection->mhd, (unsigned)request->status, response);
    MHD_destroy_response(response);
    return r;
}

/* Nothing to do until the holder, or the client's departure, wakes us. */
static enum MHD_Result request_wait(struct http_request *request)
{
    if (request->connection->gone)
        return MHD_NO;
    request_suspend(request);
    return MHD_YES;
}

static enum MHD_Result step_end(struct http_request *request)
{
    if (!request->delivered && request->plan != PLAN_NONE && request->response == NULL) {
        request->delivered = true;
        if (request->plan == PLAN_COLLECT)
            request->on_body(request, request->plan_opaque);
        else
            request->on_chunk(request, NULL, 0, request->plan_opaque);
    }
    if (request->dropped)
        return MHD_NO;
    if (request->response != NULL)
        return request_queue(request);
    return request_wait(request);
}

/* An answer is there and the body is not wanted: throws bytes away while that is cheap. */
static enum MHD_Result step_discard(struct http_request *request, size_t *size)
{
    request->discarded_size += *size;
    *size = 0;
    if (request->discarded_size <= HTTP_DISCARD_SIZE_MAX)
        return MHD_YES;
    connection_send_raw(request->connection, &request->raw);
    request->early = true;
    return MHD_NO;
}

static void request_collect(struct http_request *request, const char *bytes, size_t size)
{
    if (size > request->limit - request->body.size) {
        buf_done(&request->body);
        request_refuse(request, 413, "request body is over its limit");
        request_tell_gone(request);
        return;
    }
    buf_append(&request->body, bytes, size);
}

static enum MHD_Result step_body(struct http_request *request, const char *bytes, size_t *size)
{
    if (request->dropped)
        return MHD_NO;
    if (*size == 0) {
        request->phase = REQUEST_END;
        connection_enter(request->connection, CONNECTION_BUSY);
        return step_end(request);
    }
    if (request->response != NULL)
        return step_discard(request, size);
    if (request->paused)
        return request_wait(request);
    request->body_size += *size;
    if (request->plan == PLAN_COLLECT)
        request_collect(request, bytes, *size);
    else
        request->on_chunk(request, bytes, *size, request->plan_opaque);
    *size = 0;
    if (request->dropped)
        return MHD_NO;
    return request->paused && request->response == NULL ? request_wait(request) : MHD_YES;
}

static void request_show(struct http_request *request, const char *method, const char *version)
{
    struct http_server *server = request->server;
    const char *text;
    int status;

    request->shown = true;
    request->started_us = clock_mono_us();
    request->arrived_us = clock_wall_us();
    connection_enter(request->connection, CONNECTION_BUSY);
    server->counts.requests_total++;
    server->counts.requests++;
    if (strlen(method) >= sizeof(request->method)) {
        request->must_close = true;
        request_refuse(request, 501, "request method is not known");
        return;
    }
    mem_copy_text(request->method, method);
    status = guard_check(request, version, &text);
    if (status != 0) {
        request->must_close = true;
        request_refuse(request, status, text);
        return;
    }
    request->held = true;
    request_ref(request);
    server->handler(request, server->opaque);
}

/* True when it is cheaper to read the unwanted body than to lose the connection. */
static bool body_is_worth_swallowing(const struct http_request *request)
{
    return !request->must_close && !request->expects_continue &&
           request->announced_size <= HTTP_SWALLOW_SIZE_MAX;
}

static enum MHD_Result step_head(struct http_request *request, const char *method,
                                 const char *version)
{
    bool answered;

    if (!request->shown)
        request_show(request, method, version);
    answered = request->response != NULL;
    if (request->plan == PLAN_COLLECT && !answered && !request->dropped &&
        request->announced_size != UINT64_MAX && request->announced_size > request->limit) {
        request_refuse(request, 413, "request body is over its limit");
        request_tell_gone(request);
        answered = true;
    }
    if (request->dropped)
        return MHD_NO;
    if (answered &&
        (request->must_close || (request->has_body && !body_is_worth_swallowing(request)))) {
        request->early = true;
        return request_queue(request);
    }
    if (request->has_body && !answered && request->plan == PLAN_NONE)
        return request_wait(request);
    request->phase = request->has_body ? REQUEST_BODY : REQUEST_END;
    if (request->has_body)
        connection_enter(request->connection, CONNECTION_BODY);
    return MHD_YES; /* the next call comes at once */
}

/* These were the last bytes, and more were announced. */
static bool request_is_cut_off(const struct http_request *request)
{
    return request->phase == REQUEST_BODY && !request->suspended && request->connection->gone &&
           request->announced_size != UINT64_MAX && request->body_size < request->announced_size &&
           connection_is_cut_off(request->connection);
}

enum MHD_Result request_step(void *cls, struct MHD_Connection *mhd, const char *url,
                             const char *method, const char *version, const char *bytes,
                             size_t *size, void **con_cls)
{
    struct http_server *server = cls;
    struct http_request *request = *con_cls;
    enum MHD_Result r;

    (void)mhd, (void)url;
    if (server->closing)
        return MHD_NO;
    request->stepping = true;
    if (request->phase == REQUEST_HEAD)
        r = step_head(request, method, version);
    else if (request->phase == REQUEST_BODY)
        r = step_body(request, bytes, size);
    else
        r = step_end(request);
    request->stepping = false;
    if (r == MHD_YES && request_is_cut_off(request))
        return MHD_NO;
    /* After a pause or a wait the body's clock starts anew. */
    if (r == MHD_YES && request->phase == REQUEST_BODY && !request->suspended &&
        request->connection->state != CONNECTION_BODY)
        connection_enter(request->connection, CONNECTION_BODY);
    return r;
}

static void request_report(struct http_request *request, bool finished)
{
    struct http_server *server = request->server;
    const struct http_done done = {
        .method = request->method,
        .target = request->target,
        .status = finished ? request->status : 0,
        .took_us = clock_mono_us() - request->started_us,
        .body_size = request->body_size,
    };

    server->counts.requests--;
    if (server->options.on_done != NULL)
        server->options.on_done(&done, server->opaque);
}

void request_completed(void *cls, struct MHD_Connection *mhd, void **con_cls,
                       enum MHD_RequestTerminationCode code)
{
    struct http_request *request = *con_cls;
    struct http_connection *connection;

    (void)cls, (void)mhd;
    if (request == NULL)
        return;
    *con_cls = NULL;
    connection = request->connection;
    /* A refused body leaves a tail behind; who is cut off mid-answer has nothing to linger for. */
    if (request->early && !connection->gone)
        server_linger(request->server, connection->fd);
    request_tell_gone(request); /* no news to whoever has ended it */
    if (request->shown)
        request_report(request, code == MHD_REQUEST_TERMINATED_COMPLETED_OK || request->early);
    if (request->response != NULL)
        MHD_destroy_response(TAKE(request->response));
    request->stream = NULL;
    if (request->upgraded != NULL)
        upgraded_over(TAKE(request->upgraded));
    request->connection = NULL;
    connection->request = NULL;
    connection_enter(connection, CONNECTION_IDLE);
    request_unref(request);
}

/* ---- What a holder may ask and do */

const char *http_request_method(const struct http_request *request)
{
    return request->method;
}

const char *http_request_target(const struct http_request *request)
{
    return request->target;
}

const char *http_request_header(const struct http_request *request, const char *name)
{
    if (request->connection == NULL)
        return NULL;
    return MHD_lookup_connection_value(request->connection->mhd, MHD_HEADER_KIND, name);
}

uint64_t http_request_arrived_us(const struct http_request *request)
{
    return request->arrived_us;
}

bool http_request_is_gone(const struct http_request *request)
{
    return request->gone;
}

uint64_t http_request_announced_size(const struct http_request *request)
{
    return request->announced_size;
}

void http_request_set_user(struct http_request *request, void *user)
{
    request->user = user;
}

void *http_request_user(const struct http_request *request)
{
    return request->user;
}

void http_request_on_gone(struct http_request *request, http_call *on_gone, void *opaque)
{
    request->on_gone = on_gone;
    request->gone_opaque = opaque;
}

void http_request_collect_body(struct http_request *request, size_t limit, http_call *on_body,
                               void *opaque)
{
    assert(request->held && request->plan == PLAN_NONE);
    request->plan = PLAN_COLLECT;
    request->limit = limit;
    request->on_body = on_body;
    request->plan_opaque = opaque;
    request->body = BUF_WITH_LIMIT(limit + HTTP_BODY_PADDING);
    request_wake(request);
}

struct buf *http_request_body(struct http_request *request)
{
    uint8_t *padding = buf_reserve(&request->body, HTTP_BODY_PADDING);

    if (padding != NULL)
        memset(padding, 0, HTTP_BODY_PADDING);
    return &request->body;
}

void http_request_stream_body(struct http_request *request, http_chunk_call *on_chunk, void *opaque)
{
    assert(request->held && request->plan == PLAN_NONE);
    request->plan = PLAN_STREAM;
    request->on_chunk = on_chunk;
    request->plan_opaque = opaque;
    request_wake(request);
}

void http_request_pause_body(struct http_request *request)
{
    request->paused = true;
}

void http_request_resume_body(struct http_request *request)
{
    request->paused = false;
    if (request->phase == REQUEST_BODY)
        request_wake(request);
}
