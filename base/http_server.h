/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * HTTP/1.1 server (libmicrohttpd inside the loop): one server a loop; several loops may share a
 * port (reuse_port). Routing is the caller's.
 *
 *   headers complete -> handler(request)                    may refuse before the body is read
 *        |- http_request_answer…()                          done
 *        |- http_request_collect_body(limit, on_body)  -> on_body(request), http_request_body()
 *        |- http_request_stream_body(on_chunk)         -> on_chunk(request, bytes)… last one empty
 *        '- neither: the request waits, the body is not read
 *
 * Each request that the handler sees is ended exactly once by its holder, at once or later, from
 * the loop's thread: by http_request_answer, _answer_file, _answer_stream, _upgrade or _drop. Until
 * then the pointer stays good, also after the client has gone: an answer to nobody is dropped in
 * silence. on_gone (http_request_on_gone) tells of a client that left, so that work for it can
 * stop. A client that leaves while its body is read is told through on_gone only, never through
 * on_body; a holder that asked for no on_gone then has nothing to end: the server drops the request
 * itself.
 *
 * What the server does by itself, with answers of its own (render_error gives them the program's
 * shape): 400 for requests that two programs could read in two ways (Content-Length twice, or with
 * Transfer-Encoding; NUL, folded lines, bare line feeds; a bad or repeated Host), 501 for other
 * transfer codings, 413 past the body's limit, 408 for headers or bodies that trickle in. What is
 * no HTTP at all, and headers past their limit (431), libmicrohttpd answers with a page of its own.
 *
 * Drain: http_server_lame() adds `Connection: close` to answers, and everything else goes on, so
 * that clients move elsewhere by themselves. http_server_drain() takes the connections that wait in
 * the backlog, closes the listener, lets connections that are idle go a moment later (a client that
 * is about to use one still gets its answer), and calls back when the last connection is gone. Then
 * http_server_close().
 *
 * Thread: the loop's.   Tests: tests/unit/test_http_server.c, test_http_target.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/err.h"

struct loop;
struct http_server;
struct http_request;
struct http_stream;

/* This many bytes behind the end of a collected body may be read (they are 0): simdjson wants it.
 */
#define HTTP_BODY_PADDING 64

struct http_header {
    const char *name, *value;
};

typedef void http_call(struct http_request *request, void *opaque);

/* bytes is NULL and size 0 at the end of the body. All bytes are consumed by the call. */
typedef void http_chunk_call(struct http_request *request, const void *bytes, size_t size,
                             void *opaque);

/* Writes the body of an answer that the server makes itself (400, 408, 413, 431, 501). */
typedef void http_render_error_call(int status, const char *text, struct buf *to, void *opaque);

/* One request is over: status 0 when the client left without an answer. For access metrics. */
struct http_done {
    const char *method, *target;
    int status;
    uint64_t took_us;   /* from complete headers to the last byte handed to the kernel */
    uint64_t body_size; /* of the request, as far as it was read */
};
typedef void http_done_call(const struct http_done *done, void *opaque);

struct http_server_options { /* 0 or NULL: the value in brackets */
    const char *address;     /* numeric, IPv4 or IPv6 ["127.0.0.1"] */
    uint16_t port;           /* [0: any free one, see http_server_port()] */
    bool reuse_port;         /* several servers on one port, the kernel spreads connections */
    const char *tls_cert_path, *tls_key_path;  /* PEM; both or none [none: plain HTTP] */
    size_t header_size_max;                    /* request line and headers together [16 KiB] */
    uint32_t connection_count_max;             /* later ones wait in the backlog [10,000] */
    uint32_t connection_count_max_per_address; /* [no limit] */
    uint32_t idle_timeout_ms;   /* a kept-alive connection without a request [60 s] */
    uint32_t header_timeout_ms; /* from the first byte's connection or request line to the end of
                                   the headers, however they trickle [10 s] */
    uint32_t
        body_timeout_ms; /* each MiB of a body, or what is left of it, while it is read [30 s] */
    const char *server_name;              /* value of the Server header [none] */
    http_render_error_call *render_error; /* [{"error": text}] */
    http_done_call *on_done;              /* [none] */
};

/* handler and the two calls in options get `opaque`. options are copied, as are the files. */
int http_server_open(struct loop *loop, const struct http_server_options *options,
                     http_call *handler, void *opaque, struct http_server **ret_server,
                     struct err *err) MUST_CHECK;

/* Cuts what is still open (on_gone is called), then frees. Requests still held stay valid and must
 * still be ended by their holders. */
void http_server_close(struct http_server **server_p);

uint16_t http_server_port(const struct http_server *server);

void http_server_lame(struct http_server *server);

/* on_drained is called once, from the loop, also when there was nothing to wait for. Not from a
 * handler. */
void http_server_drain(struct http_server *server, void (*on_drained)(void *opaque), void *opaque);

struct http_server_counts {
    uint32_t connections; /* open now */
    uint32_t requests;    /* seen by the handler and not yet over */
    uint64_t connections_total, requests_total, refused_total; /* refused: by the server itself */
};
struct http_server_counts http_server_counts(const struct http_server *server);

/* ---- A request. Texts live until it is ended; header values only until the client goes: copy
 * what must outlive the callback. */

const char *http_request_method(const struct http_request *request);
const char *http_request_target(const struct http_request *request); /* "/path?query" as sent */
const char *http_request_header(const struct http_request *request, const char *name); /* or NULL */
uint64_t http_request_arrived_us(const struct http_request *request); /* wall clock */
bool http_request_is_gone(const struct http_request *request);

/* Content-Length as announced; 0 for none, UINT64_MAX when chunked. */
uint64_t http_request_announced_size(const struct http_request *request);

/* Numeric address of the peer, for logs and limits; static storage inside the request. */
const char *http_request_peer(const struct http_request *request);

/* A pointer of the caller's that rides along. */
void http_request_set_user(struct http_request *request, void *user);
void *http_request_user(const struct http_request *request);

/* Reads the whole body, then calls on_body (at once for an empty one). A larger body ends the
 * request with 413: on_gone is called, the holder then drops the request as after any other
 * departure. */
void http_request_collect_body(struct http_request *request, size_t limit, http_call *on_body,
                               void *opaque);
struct buf *http_request_body(struct http_request *request); /* may be moved out with buf_move() */

/* Hands out the body as it comes, however large. */
void http_request_stream_body(struct http_request *request, http_chunk_call *on_chunk,
                              void *opaque);
void http_request_pause_body(struct http_request *request);  /* the peer stops sending soon */
void http_request_resume_body(struct http_request *request); /* from any callback of the loop */

/* Called once when the client leaves (or is cut off) before the request was ended. */
void http_request_on_gone(struct http_request *request, http_call *on_gone, void *opaque);

/* ---- The ends of a request: each takes it (*request_p becomes NULL).
 *
 * Headers: Content-Type is yours, Content-Length and Date are made. Body bytes are copied by
 * _answer and moved by _answer_buf. An answer before the body was read closes the connection,
 * after a moment in which the client may finish sending, so that it can read the answer. */
void http_request_answer(struct http_request **request_p, int status,
                         const struct http_header *headers, size_t header_count, const void *body,
                         size_t body_size);
void http_request_answer_buf(struct http_request **request_p, int status,
                             const struct http_header *headers, size_t header_count,
                             struct buf *body);

/* Sends size bytes of a file from offset on; takes the descriptor. */
void http_request_answer_file(struct http_request **request_p, int status,
                              const struct http_header *headers, size_t header_count, int fd,
                              uint64_t offset, uint64_t size);

/* Ends without an answer: closes the connection if it is still there. */
void http_request_drop(struct http_request **request_p);

/* Answers piece by piece (chunked), for instance text/event-stream. */
struct http_stream_calls {
    void (*on_room)(struct http_stream *stream, void *opaque); /* less than half is waiting again */
    void (*on_gone)(struct http_stream *stream, void *opaque); /* the client left; still free it */
};
struct http_stream *http_request_answer_stream(struct http_request **request_p, int status,
                                               const struct http_header *headers,
                                               size_t header_count, size_t waiting_size_max,
                                               const struct http_stream_calls *calls, void *opaque);

/* Copies the bytes, sends them with the turn. ERR_FULL past waiting_size_max (nothing is taken;
 * wait for on_room), ERR_CANCELED when the client is gone. A write to an empty stream is always
 * taken. */
int http_stream_write(struct http_stream *stream, const void *bytes, size_t size,
                      struct err *err) MUST_CHECK;
size_t http_stream_waiting_size(const struct http_stream *stream);
void http_stream_end(struct http_stream **stream_p);   /* sends the rest, then a proper end */
void http_stream_abort(struct http_stream **stream_p); /* cuts: the client sees a broken answer */

/* ---- An upload's body, multipart/form-data (RFC 7578), read as it comes: each field is handed out
 * in pieces, in the order of the body, and none is held in memory.
 *
 *     http_form_new(request) -> http_form_feed(bytes)… -> http_form_end()
 *
 * Source: libmicrohttpd's post processor. ERR_MALFORMED when the Content-Type is another one or has
 * no boundary, and when the body is not what it announces or stops in the middle; what on_piece
 * returns ends the feeding. Tests: tests/unit/test_http_form.c */

struct http_form;

struct http_form_piece {
    const char *name;            /* of the field */
    const char *filename, *type; /* NULL: not said */
    uint64_t offset;             /* of these bytes in the field; the first piece may be empty */
    const char *bytes;
    size_t size;
};

/* Everything is borrowed for the call. */
typedef int http_form_call(void *opaque, const struct http_form_piece *piece, struct err *err);

/* The request must live as long as bytes are fed. */
int http_form_new(struct http_request *request, http_form_call *on_piece, void *opaque,
                  struct http_form **ret_form, struct err *err) MUST_CHECK;
void http_form_free(struct http_form **form_p);
int http_form_feed(struct http_form *form, const void *bytes, size_t size,
                   struct err *err) MUST_CHECK;
int http_form_end(struct http_form *form, struct err *err) MUST_CHECK; /* of the body */

/* ---- 101: the connection leaves HTTP.
 *
 * The headers say to what; `Connection: Upgrade` is made. NULL, and nothing is called: the client
 * has gone. Else on_open comes when the answer has left, with the descriptor to read and write from
 * then on (non-blocking, the server's; with TLS one end of a socket pair, whose bytes are those
 * inside the records), and with what the client had sent behind its request; or on_gone, when the
 * client left before. */
struct http_upgraded;
struct http_upgrade_calls {
    void (*on_open)(void *opaque, int fd, const void *bytes, size_t size);
    void (*on_gone)(void *opaque); /* the handle is freed already */
};
struct http_upgraded *http_request_upgrade(struct http_request **request_p,
                                           const struct http_header *headers, size_t header_count,
                                           const struct http_upgrade_calls *calls, void *opaque);
/* Gives the connection back, which is closed; before on_open or after it, but not inside of it.
 * Whoever watches the descriptor has ended that before. All must be closed before the server is. */
void http_upgraded_close(struct http_upgraded **upgraded_p);

/* ---- The target of a request: pure, bytes in, parts out. */

#define HTTP_TARGET_SIZE_MAX 8192
#define HTTP_PATH_SEGMENTS_MAX 16
#define HTTP_QUERY_FIELDS_MAX 32

struct http_target {
    size_t segment_count;
    const char *segments[HTTP_PATH_SEGMENTS_MAX]; /* percent-decoded, never empty */
    bool trailing_slash;
    size_t field_count;
    struct {
        const char *name, *value; /* decoded, '+' is a space; value "" when there is no '=' */
    } fields[HTTP_QUERY_FIELDS_MAX];
    char text[HTTP_TARGET_SIZE_MAX + 1]; /* what the pointers point into */
};

/* Splits "/a/b%20c?x=1&y" (also the absolute form). ERR_MALFORMED for a bad escape, a control
 * character, bytes that are not UTF-8, an empty segment, and segments that are or decode to `.` or
 * `..` or contain a slash; ERR_TOO_BIG past a limit above. */
int http_target_parse(const char *target, struct http_target *ret_target,
                      struct err *err) MUST_CHECK;

/* First value of a query field, or NULL. */
const char *http_target_query(const struct http_target *target, const char *name);
