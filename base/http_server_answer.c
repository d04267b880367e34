/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The ends of a request: answers, files, streams, and no answer at all.
 *
 * Each takes the holder's reference. The answer itself is only noted here; request_step() queues
 * it when the library will have it. If the client is gone it is dropped.
 */

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/http_server_int.h"

struct http_stream {
    struct http_request *request; /* NULL once the client is gone or everything was sent */
    struct buf waiting;           /* bytes from `start` on are still to be sent */
    size_t start, waiting_size_max;
    struct http_stream_calls calls;
    void *opaque;
    int ref_count; /* the holder's, the response's */
    bool ended, aborted;
    bool refused; /* a write was: on_room is owed */
};

void answer_finish(struct http_request *request, struct MHD_Response *response)
{
    const char *server_name = request->server->server_name;

    assert(request->response == NULL);
    if (server_name != NULL)
        (void)MHD_add_response_header(response, "Server", server_name);
    request->response = response;
    if (!request->stepping)
        request_wake(request);
}

void request_render_raw(struct http_server *server, int status, const struct http_header *headers,
                        size_t header_count, const void *body, size_t body_size, struct buf *to)
{
    buf_clear(to);
    buf_printf(to, "HTTP/1.1 %d %s\r\n", status, MHD_get_reason_phrase_for((unsigned)status));
    if (server->server_name != NULL)
        buf_printf(to, "Server: %s\r\n", server->server_name);
    for (size_t i = 0; i < header_count; i++) {
        if (strpbrk(headers[i].value, "\r\n") == NULL)
            buf_printf(to, "%s: %s\r\n", headers[i].name, headers[i].value);
    }
    buf_printf(to, "Content-Length: %zu\r\nConnection: close\r\n\r\n", body_size);
    buf_append(to, body, body_size);
}

void answer_add_headers(struct MHD_Response *response, const struct http_header *headers,
                        size_t header_count)
{
    /* The library refuses a value with a line break in it: better no header than a forged one. */
    for (size_t i = 0; i < header_count; i++)
        (void)MHD_add_response_header(response, headers[i].name, headers[i].value);
}

bool request_is_open(const struct http_request *request)
{
    return request->connection != NULL && !request->gone && request->response == NULL;
}

void request_end(struct http_request *request, int status, struct MHD_Response *response)
{
    assert(request->held);
    request->held = false;
    if (response == NULL) {
        request->dropped = request_is_open(request);
        request_wake(request);
    } else if (request_is_open(request)) {
        request->status = status;
        answer_finish(request, response);
    } else {
        MHD_destroy_response(response);
    }
    request_unref(request);
}

static void answer_bytes(struct http_request *request, int status,
                         const struct http_header *headers, size_t header_count, void *bytes,
                         size_t size, enum MHD_ResponseMemoryMode mode)
{
    struct MHD_Response *response;

    if (request_is_open(request) && request->has_body && request->phase != REQUEST_END)
        request_render_raw(request->server, status, headers, header_count, bytes, size,
                           &request->raw);
    response = MHD_create_response_from_buffer(size, bytes, mode);
    if (response == NULL)
        NEVER("memory is exhausted");
    answer_add_headers(response, headers, header_count);
    request_end(request, status, response);
}

void http_request_answer(struct http_request **request_p, int status,
                         const struct http_header *headers, size_t header_count, const void *body,
                         size_t body_size)
{
    answer_bytes(TAKE(*request_p), status, headers, header_count, (void *)(uintptr_t)body,
                 body_size, MHD_RESPMEM_MUST_COPY);
}

void http_request_answer_buf(struct http_request **request_p, int status,
                             const struct http_header *headers, size_t header_count,
                             struct buf *body)
{
    size_t size = body->size;

    answer_bytes(TAKE(*request_p), status, headers, header_count, TAKE(body->bytes), size,
                 MHD_RESPMEM_MUST_FREE);
    buf_done(body);
}

void http_request_answer_file(struct http_request **request_p, int status,
                              const struct http_header *headers, size_t header_count, int fd,
                              uint64_t offset, uint64_t size)
{
    struct MHD_Response *response = MHD_create_response_from_fd_at_offset64(size, fd, offset);

    if (response == NULL) { /* a size or an offset past what files have */
        (void)close(fd);
        http_request_drop(request_p);
        return;
    }
    answer_add_headers(response, headers, header_count);
    request_end(TAKE(*request_p), status, response);
}

void http_request_drop(struct http_request **request_p)
{
    request_end(TAKE(*request_p), 0, NULL);
}

const char *http_request_peer(const struct http_request *request)
{
    struct http_request *cache = (struct http_request *)(uintptr_t)request;
    const union MHD_ConnectionInfo *info;
    const struct sockaddr *address;

    if (request->peer[0] != '\0' || request->connection == NULL)
        return request->peer;
    info = MHD_get_connection_info(request->connection->mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    address = info == NULL ? NULL : info->client_addr;
    if (address != NULL && address->sa_family == AF_INET)
        (void)inet_ntop(AF_INET, &((const struct sockaddr_in *)(const void *)address)->sin_addr,
                        cache->peer, sizeof(cache->peer));
    else if (address != NULL && address->sa_family == AF_INET6)
        (void)inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr,
                        cache->peer, sizeof(cache->peer));
    return request->peer;
}

/* ---- Streams */

static void stream_unref(struct http_stream *stream)
{
    if (--stream->ref_count > 0)
        return;
    buf_done(&stream->waiting);
    free(stream);
}

static void stream_response_freed(void *cls)
{
    struct http_stream *stream = cls;

    stream->request = NULL;
    stream_unref(stream);
}

static size_t stream_size(const struct http_stream *stream)
{
    return stream->waiting.size - stream->start;
}

/* The library wants up to `size` bytes: gives them, or suspends until there are some. */
static ssize_t stream_read(void *cls, uint64_t position, char *to, size_t size)
{
    struct http_stream *stream = cls;
    size_t n = stream_size(stream);

    (void)position;
    if (stream->aborted || stream->request == NULL || stream->request->connection->gone)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    if (n == 0) {
        if (stream->ended)
            return MHD_CONTENT_READER_END_OF_STREAM;
        request_suspend(stream->request);
        return 0;
    }
    n = n < size ? n : size;
    memcpy(to, stream->waiting.bytes + stream->start, n);
    stream->start += n;
    if (stream->start == stream->waiting.size) {
        buf_clear(&stream->waiting);
        stream->start = 0;
    }
    if (stream->refused && !stream->ended && stream_size(stream) <= stream->waiting_size_max / 2) {
        stream->refused = false;
        if (stream->calls.on_room != NULL)
            stream->calls.on_room(stream, stream->opaque);
    }
    return (ssize_t)n;
}

void stream_client_gone(struct http_stream *stream)
{
    stream->request = NULL;
    if (stream->ended || stream->aborted) /* the holder has left before the client did */
        return;
    if (stream->calls.on_gone != NULL)
        stream->calls.on_gone(stream, stream->opaque);
}

struct http_stream *http_request_answer_stream(struct http_request **request_p, int status,
                                               const struct http_header *headers,
                                               size_t header_count, size_t waiting_size_max,
                                               const struct http_stream_calls *calls, void *opaque)
{
    struct http_request *request = *request_p;
    struct http_stream *stream = xcalloc(1, sizeof(*stream));
    struct MHD_Response *response;

    *request_p = NULL;
    stream->waiting = BUF_WITH_LIMIT(SIZE_MAX / 4);
    stream->waiting_size_max = waiting_size_max;
    stream->calls = *calls;
    stream->opaque = opaque;
    stream->ref_count = 2;
    response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096, stream_read, stream,
                                                 stream_response_freed);
    if (response == NULL)
        NEVER("memory is exhausted");
    if (request_is_open(request)) {
        stream->request = request;
        request->stream = stream;
    }
    answer_add_headers(response, headers, header_count);
    request_end(request, status, response);
    return stream;
}

int http_stream_write(struct http_stream *stream, const void *bytes, size_t size, struct err *err)
{
    size_t waiting = stream_size(stream);

    assert(!stream->ended && !stream->aborted);
    if (stream->request == NULL)
        return err_set(err, ERR_CANCELED, "client has closed the connection");
    if (waiting > 0 &&
        (size > stream->waiting_size_max || waiting > stream->waiting_size_max - size)) {
        stream->refused = true;
        return err_set(err, ERR_FULL, "client reads too slowly: %zu bytes are waiting", waiting);
    }
    if (stream->start > 0 && stream->start >= waiting) {
        buf_consume(&stream->waiting, stream->start);
        stream->start = 0;
    }
    buf_append(&stream->waiting, bytes, size);
    request_wake(stream->request);
    return 0;
}

size_t http_stream_waiting_size(const struct http_stream *stream)
{
    return stream_size(stream);
}

void http_stream_end(struct http_stream **stream_p)
{
    struct http_stream *stream = TAKE(*stream_p);

    if (stream == NULL)
        return;
    stream->ended = true;
    if (stream->request != NULL)
        request_wake(stream->request);
    stream_unref(stream);
}

void http_stream_abort(struct http_stream **stream_p)
{
    if (*stream_p == NULL)
        return;
    (*stream_p)->aborted = true;
    http_stream_end(stream_p);
}
