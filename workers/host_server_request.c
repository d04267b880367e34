/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One request of a worker as one HTTP exchange with the user's server.
 *
 * An answer up to FRAME_INLINE_MAX is gathered in memory, a longer one goes on in a memfd that is
 * handed to the worker as it is. Pieces of a stream leave as they come, and the whole follows in
 * the final event, so that it can be stored.
 *
 * An answer that breaks off may be the first sign of the server's end: it waits BROKEN_MS for that
 * news, which then speaks for all that was in the server.
 */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "schema/job_id.h"
#include "schema/websocket.h"
#include "workers/host_server_int.h"

_Static_assert(SERVER_ANSWER_SIZE_MAX == FRAME_FD_SIZE_MAX, "an answer fits into a frame");

#define BROKEN_MS 250
#define METHOD_SIZE_MAX 15
#define RETRY_AFTER_MS_MAX (24u * 3600 * 1000)
#define TYPE_SIZE_MAX 255
#define TEXT_SIZE_MAX 1000
#define BODY_IN_TEXT 300

struct server_request {
    struct host_server *server;
    uint64_t id;
    struct http_transfer *transfer;
    uint8_t *input; /* NULL: in input_fd */
    int input_fd;
    bool stream, told_type, paused, resumes, canceled, broken;
    struct buf head; /* of the answer, up to FRAME_INLINE_MAX */
    int fd;          /* all of it, once it is longer; -1 */
    uint64_t size, begun_ms;
    char *broken_text;
    UT_hash_handle hh;
};

/* ---- life ---- */

static struct server_request *request_find(struct host_server *server, uint64_t id)
{
    struct server_request *request;

    HASH_FIND(hh, server->requests, &id, sizeof(id), request);
    return request;
}

static struct server_request *request_new(struct host_server *server, const struct frame_req *req)
{
    struct server_request *request = xcalloc(1, sizeof(*request));
    int fd = frame_link_fd_of(server->link, req->input.bytes);

    request->server = server;
    request->id = req->id;
    request->stream = req->stream;
    request->fd = -1;
    request->input_fd = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        request->input = xmemdup(req->input.size > 0 ? (const void *)req->input.bytes : "",
                                 req->input.size > 0 ? req->input.size : 1);
    request->head = BUF_WITH_LIMIT(FRAME_INLINE_MAX);
    request->begun_ms = loop_now_ms(server->loop);
    HASH_ADD(hh, server->requests, id, sizeof(request->id), request);
    server->received++;
    server->stats_changed = true;
    return request;
}

static void request_free(struct server_request *request)
{
    HASH_DEL(request->server->requests, request);
    if (request->fd >= 0)
        (void)close(request->fd);
    if (request->input_fd >= 0)
        (void)close(request->input_fd);
    buf_done(&request->head);
    free(request->input);
    free(request->broken_text);
    free(request);
}

void host_server_requests_free(struct host_server *server)
{
    struct server_request *request, *next;

    HASH_ITER(hh, server->requests, request, next)
    {
        if (request->transfer != NULL)
            http_transfer_cancel(request->transfer);
        else
            request_free(request);
    }
}

/* ---- final events ---- */

/* Sends the event with the whole answer, and ends the request. */
static void request_end(struct server_request *request, struct frame_evt *evt)
{
    struct host_server *server = request->server;
    uint64_t begun_ms = request->begun_ms;
    int fd = -1;

    evt->id = request->id;
    if (evt->data_fd_size > 0)
        fd = request->fd;
    request->fd = fd >= 0 ? -1 : request->fd; /* taken */
    host_server_finish(server, evt, fd, begun_ms);
    request_free(request);
}

static void request_fail(struct server_request *request, enum error_class class, const char *text)
{
    struct frame_evt evt = {
        .kind = FRAME_EVT_ERROR, .error_class = class, .text = WIRE_TEXT_OF(text)};

    request_end(request, &evt);
}

static void request_give_body(struct server_request *request, struct frame_evt *evt)
{
    if (request->fd >= 0)
        evt->data_fd_size = request->size;
    else
        evt->data = (struct wire_bytes){request->head.bytes, request->head.size};
}

enum error_class host_server_status_class(int status, bool unready)
{
    switch (status) {
    case 400:
        return unready ? ERROR_CLASS_MODEL_NOT_READY : ERROR_CLASS_BAD_INPUT;
    case 408:
        return ERROR_CLASS_MODEL_TIMEOUT;
    case 425:
    case 429:
    case 502:
    case 503:
    case 504:
        return ERROR_CLASS_MODEL_UNAVAILABLE;
    default:
        break;
    }
    if (status / 100 == 2)
        return ERROR_CLASS_NONE;
    return status / 100 == 4 ? ERROR_CLASS_BAD_INPUT : ERROR_CLASS_MODEL_ERROR;
}

/* Milliseconds from now; 0: the server says nothing that makes sense. */
static uint64_t retry_after_ms(const struct http_transfer *transfer)
{
    const char *text = http_transfer_header(transfer, "Retry-After");
    char *end;
    double seconds = text == NULL ? 0 : strtod(text, &end);

    if (text == NULL || end == text || !(seconds > 0))
        return 0;
    return seconds * 1000 > RETRY_AFTER_MS_MAX ? RETRY_AFTER_MS_MAX : (uint64_t)(seconds * 1000);
}

static struct wire_text answer_type(const struct http_transfer *transfer)
{
    const char *type = http_transfer_header(transfer, "Content-Type");

    return type == NULL || strlen(type) > TYPE_SIZE_MAX ? (struct wire_text){0}
                                                        : WIRE_TEXT_OF(type);
}

/* "the server answered 422: …": the body's first bytes, where they are text. */
static void describe(const struct server_request *request, int status, char *to, size_t to_size)
{
    size_t size = request->head.size < BODY_IN_TEXT ? request->head.size : BODY_IN_TEXT;
    int n = snprintf(to, to_size, "the server answered %d%s", status, size > 0 ? ": " : "");
    size_t at = n > 0 ? (size_t)n : 0;

    for (size_t i = 0; i < size && at + 1 < to_size; i++) {
        uint8_t byte = request->head.bytes[i];

        to[at++] = byte < 0x20 || byte >= 0x7f ? ' ' : (char)byte;
    }
    to[at] = '\0';
}

static void request_answered(struct server_request *request, const struct http_result *result)
{
    struct host_server *server = request->server;
    enum error_class class = host_server_status_class(result->status,
                                                      host_server_is_unready(server));
    struct frame_evt evt = {.kind = FRAME_EVT_OUTPUT,
                            .http_status = (uint64_t)result->status,
                            .output_type = answer_type(result->transfer)};
    char text[TEXT_SIZE_MAX];

    request_give_body(request, &evt);
    if (class != ERROR_CLASS_NONE) {
        describe(request, result->status, text, sizeof(text));
        evt.kind = FRAME_EVT_ERROR;
        evt.error_class = class;
        evt.text = WIRE_TEXT_OF(text);
        evt.retry_after_ms = retry_after_ms(result->transfer);
    }
    request_end(request, &evt);
}

/* ---- broken answers ---- */

static void server_on_broken_time(void *opaque)
{
    struct host_server *server = opaque;
    struct server_request *request, *next;

    HASH_ITER(hh, server->requests, request, next)
    {
        if (request->broken)
            request_fail(request, ERROR_CLASS_MODEL_UNAVAILABLE, request->broken_text);
    }
}

static void request_broke(struct server_request *request, const char *why)
{
    struct host_server *server = request->server;

    request->broken = true;
    request->broken_text = xasprintf("the server broke off: %s", why);
    if (server->broken_timer == NULL)
        server->broken_timer = loop_timer_new(server->loop, server_on_broken_time, server);
    if (!loop_timer_is_running(server->broken_timer))
        loop_timer_start(server->broken_timer, BROKEN_MS, 0);
}

static void request_too_big(struct server_request *request)
{
    OWNED(mem_free)
    char *text = xasprintf("the server's answer is over the limit of %llu bytes (answer_size_max)",
                           (unsigned long long)request->server->config.answer_size_max);

    request_fail(request, ERROR_CLASS_MODEL_ERROR, text);
}

static void request_on_done(const struct http_result *result, void *opaque)
{
    struct server_request *request = opaque;

    request->transfer = NULL;
    if (request->server->state == HOST_SERVER_OVER) {
        request_free(request);
        return;
    }
    if (request->canceled) {
        request_fail(request, ERROR_CLASS_CANCELED, "canceled");
        return;
    }
    switch (result->outcome) {
    case HTTP_OUTCOME_ANSWERED:
        request_answered(request, result);
        return;
    case HTTP_OUTCOME_TIMEOUT:
        request_fail(request, ERROR_CLASS_MODEL_TIMEOUT, "the run limit has passed");
        return;
    case HTTP_OUTCOME_BODY_TOO_BIG:
        request_too_big(request);
        return;
    case HTTP_OUTCOME_CANCELED: /* what came could not be kept */
        request_fail(request, ERROR_CLASS_HANDED_BACK, "no memory for the server's answer");
        return;
    default:
        request_broke(request, result->error);
        return;
    }
}

/* ---- answers as they come ---- */

static bool request_keep(struct server_request *request, const uint8_t *bytes, size_t size)
{
    if (request->fd < 0 && request->head.size + size <= FRAME_INLINE_MAX) {
        buf_append(&request->head, bytes, size);
        return true;
    }
    if (request->fd < 0) {
        request->fd = memfd_create("headrace-answer", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (request->fd < 0 || write(request->fd, request->head.bytes, request->head.size) !=
                                   (ssize_t)request->head.size)
            return false;
    }
    return write(request->fd, bytes, size) == (ssize_t)size;
}

static void request_tell(struct server_request *request, const uint8_t *bytes, size_t size)
{
    struct host_server *server = request->server;
    struct frame_evt evt = {.kind = FRAME_EVT_TOKENS, .id = request->id, .data = {bytes, size}};

    if (!request->told_type) {
        evt.output_type = answer_type(request->transfer);
        evt.http_status = (uint64_t)http_transfer_status(request->transfer);
    }
    request->told_type = true;
    host_server_send(server, FRAME_EVT, &evt);
    server->unsent_size += size;
    if (server->unsent_size <= HOST_SERVER_UNSENT_MAX || request->paused)
        return;
    request->paused = true;
    http_transfer_pause(request->transfer);
}

static bool request_on_receive(const void *bytes, size_t size, void *opaque)
{
    struct server_request *request = opaque;

    if (!request_keep(request, bytes, size))
        return false;
    request->size += size;
    if (request->stream && http_transfer_status(request->transfer) / 100 == 2)
        request_tell(request, bytes, size);
    return true;
}

void host_server_resume_all(struct host_server *server)
{
    struct server_request *request, *next;

    HASH_ITER(hh, server->requests, request, next)
    {
        request->resumes = request->paused && request->transfer != NULL;
    }
    /* What one says, and its end, may change the table: it is looked at anew each time. */
    do {
        for (request = server->requests; request != NULL && !request->resumes;
             request = request->hh.next)
            ;
        if (request == NULL)
            return;
        request->resumes = request->paused = false;
        http_transfer_resume(request->transfer);
    } while (server->state != HOST_SERVER_OVER);
}

/* ---- requests ---- */

int host_server_route_split(struct wire_text route, char **ret_method, char **ret_path,
                            struct err *err)
{
    const char *space = memchr(route.text, ' ', route.size);
    size_t size = space == NULL ? 0 : (size_t)(space - route.text);
    struct wire_text path = {space == NULL ? "" : space + 1,
                             space == NULL ? 0 : route.size - size - 1};

    if (size == 0 || size > METHOD_SIZE_MAX || path.size == 0 || path.text[0] != '/' ||
        memchr(path.text, ' ', path.size) != NULL || memchr(path.text, '#', path.size) != NULL)
        return err_set(err, ERR_RANGE, "route '%.*s' is no method and path", (int)route.size,
                       route.text);
    for (size_t i = 0; i < path.size; i++) {
        if ((uint8_t)path.text[i] <= 0x20 || path.text[i] == 0x7f)
            return err_set(err, ERR_RANGE, "the route has a character that no path may have");
    }
    if (strspn(route.text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != size)
        return err_set(err, ERR_RANGE, "route '%.*s' has no method in capital letters",
                       (int)route.size, route.text);
    *ret_method = wire_text_dup((struct wire_text){route.text, size});
    *ret_path = wire_text_dup(path);
    return 0;
}

static int request_send(struct server_request *request, const struct frame_req *req,
                        struct err *err)
{
    struct host_server *server = request->server;
    OWNED(mem_free) char *method = NULL;
    OWNED(mem_free) char *path = NULL;
    OWNED(mem_free) char *url = NULL;
    OWNED(mem_free) char *type = wire_text_dup(req->input_type);
    OWNED(mem_free) char *trace = wire_text_dup(req->trace);
    char job[JOB_ID_TEXT_SIZE];
    struct http_header headers[3];
    struct http_send send = {.headers = headers};
    int r = 0;

    if (req->route.size > 0)
        r = host_server_route_split(req->route, &method, &path, err);
    if (r < 0)
        return r;
    send.method = method == NULL ? "POST" : method;
    url = xasprintf("http://localhost:%u%s", server->port,
                    path == NULL ? server->config.predict_endpoint : path);
    job_id_format(&req->job, job);
    headers[send.header_count++] = (struct http_header){"x-baseten-request-id", job};
    if (req->input.size > 0 || strcmp(send.method, "POST") == 0)
        headers[send.header_count++] = (struct http_header){
            "Content-Type", type[0] != '\0' ? type : "application/json"};
    if (trace[0] != '\0')
        headers[send.header_count++] = (struct http_header){"traceparent", trace};
    send.url = url;
    send.body = req->input.size > 0 ? request->input : NULL;
    send.body_size = req->input.size;
    send.body_fd = request->input_fd;
    send.timeout_ms = req->limit_ms == 0 || req->limit_ms >= UINT32_MAX ? UINT32_MAX
                                                                        : (uint32_t)req->limit_ms;
    send.answer_size_max = (size_t)server->config.answer_size_max;
    send.on_receive = request_on_receive;
    send.on_done = request_on_done;
    send.opaque = request;
    return http_client_send(server->client, &send, &request->transfer, err);
}

const char *host_server_refusal(const struct host_server *server)
{
    if (server->state != HOST_SERVER_SERVING || server->draining)
        return "the server is stopping";
    return host_server_wants_no_traffic(server) ? server->probe_error : NULL;
}

void host_server_on_req(struct host_server *server, const struct frame_req *req)
{
    const char *refusal = host_server_refusal(server);
    struct server_request *request;
    struct err err;

    if (websocket_is_route(req->route)) {
        host_server_on_passage(server, req);
        return;
    }
    request = request_new(server, req);
    if (refusal != NULL)
        request_fail(request, ERROR_CLASS_HANDED_BACK, refusal);
    else if (request->input == NULL && request->input_fd < 0)
        request_fail(request, ERROR_CLASS_HANDED_BACK, "no descriptor is left for its input");
    else if (request_send(request, req, &err) < 0)
        request_fail(request, ERROR_CLASS_BAD_INPUT, err.text);
}

static void request_cancel(struct server_request *request)
{
    request->canceled = true;
    if (request->transfer != NULL)
        http_transfer_cancel(request->transfer);
    else
        request_fail(request, ERROR_CLASS_CANCELED, "canceled");
}

void host_server_on_cancel(struct host_server *server, uint64_t id)
{
    struct server_request *request = request_find(server, id);

    if (request != NULL)
        request_cancel(request);
    else
        (void)host_server_passage_cancel(server, id); /* of neither: it has ended */
}

void host_server_cancel_all(struct host_server *server)
{
    struct server_request *request, *next;

    host_server_passages_cancel(server);
    HASH_ITER(hh, server->requests, request, next)
    {
        request_cancel(request);
    }
}
