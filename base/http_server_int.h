/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of the HTTP server share.
 *
 *   http_server.c          listener, connections, deadlines, drain, the daemon inside the loop
 *   http_server_request.c  a request from its headers to its final answer
 *   http_server_guard.c    which headers are refused before anybody reads them
 *   http_server_answer.c   answers, files, streams
 *   http_server_upgrade.c  connections that leave HTTP
 *   http_server_pump.c     and what carries their bytes through TLS
 *   http_server_tls.c      certificate and key, before the TLS library has them
 *   http_server_target.c   paths and queries (pure)
 *   http_server_form.c     forms
 *
 * libmicrohttpd calls request_step() again and again; what it does is decided by the request's
 * phase alone:
 *
 *   HEAD --body wanted--> BODY --last byte--> END --answer there--> REPLY --sent--> over
 *     |  '--no body------------------------> END                      ^
 *     '----answered, body unread-------------------------------------'
 *
 * Whoever waits (for the holder, for room, for bytes of a stream) is suspended, because the library
 * would spin otherwise; request_wake() ends that, and the wakes of one turn of the loop are carried
 * out by a single run of the daemon. A suspended connection hears of nothing, so a watch on a dup
 * of its descriptor tells when the client goes.
 *
 * A request has two references: the connection's, until the library says that it is completed, and
 * the holder's, until the request is ended.
 */

#include <microhttpd.h>
#include <netinet/in.h>

#include "base/http_server.h"
#include "base/loop.h"

#define HTTP_METHOD_SIZE 16
#define HTTP_DISCARD_SIZE_MAX (1u << 20) /* of a body that nobody wants, to keep the connection */
#define HTTP_SWALLOW_SIZE_MAX                                                                      \
    (64u << 10) /* announced sizes up to this are read rather than cut                             \
                 */
#define HTTP_LINGER_COUNT_MAX 256
#define HTTP_LINGER_MS 2000

enum connection_state {
    CONNECTION_FRESH, /* accepted; no request line yet */
    CONNECTION_IDLE,  /* kept alive between two requests */
    CONNECTION_HEAD,  /* has a request line, headers are coming */
    CONNECTION_BODY,  /* bytes of a body are expected */
    CONNECTION_BUSY,  /* it is our turn: handler, waiting, reply */
};

struct http_pump;

struct http_connection {
    struct http_server *server;
    struct http_connection *next, *prev;
    struct MHD_Connection *mhd;
    struct http_request *request; /* NULL between requests */
    struct http_pump *pump;       /* of an upgraded TLS connection */
    int fd;                       /* the library's */
    int watch_fd;                 /* our dup of it, or -1 */
    struct loop_watch *watch;
    enum connection_state state;
    uint64_t since_ms;   /* when the state began, or the last MiB of the body was done */
    uint64_t since_size; /* body bytes read by then */
    bool gone;           /* the client has closed, or we have cut */
};

/* A socket that the library has closed, kept open until the client has sent what it was sending:
 * closing with unread bytes would reset the connection and the client would lose our answer. */
struct http_linger {
    struct http_server *server;
    struct http_linger *next, *prev;
    struct loop_watch *watch;
    int fd;
    size_t size; /* swallowed so far */
    uint64_t end_ms;
};

struct http_server {
    struct loop *loop;
    struct MHD_Daemon *daemon;
    struct http_server_options options; /* with defaults filled in; its texts are gone */
    char *server_name;
    http_call *handler;
    void *opaque;
    uint16_t port;
    bool is_tls;
    int listen_fd;            /* the daemon's; -1 once it is closed */
    struct loop_watch *watch; /* the daemon's epoll descriptor */
    struct loop_turn *turn;
    struct loop_timer *sweep, *again;
    struct http_connection *connections;
    struct http_linger *lingers;
    uint32_t linger_count;
    struct http_server_counts counts;
    bool dirty;   /* somebody was woken: run the daemon before the loop waits */
    bool owed;    /* and once more in the next turn */
    bool running; /* inside the daemon */
    bool closing;
    bool lame; /* answers say that the connection ends with them */
    bool draining, drained;
    void (*on_drained)(void *opaque);
    void *drained_opaque;
};

enum request_phase { REQUEST_HEAD, REQUEST_BODY, REQUEST_END, REQUEST_REPLY };
enum request_plan { PLAN_NONE, PLAN_COLLECT, PLAN_STREAM };

struct http_request {
    struct http_server *server;         /* valid while connection is */
    struct http_connection *connection; /* NULL once the library is done with the request */
    int ref_count;
    bool held;      /* somebody must still end it */
    bool shown;     /* the guard has passed, the handler has seen it */
    bool gone;      /* the holder was told, or never will be */
    bool dropped;   /* close without an answer */
    bool suspended; /* in the library */
    bool stepping;  /* inside request_step() */
    bool paused;    /* by the holder: no body bytes now */
    bool delivered; /* the end of the body was told */
    bool must_close;
    bool early; /* answered with the body unread: linger */
    enum request_phase phase;

    char method[HTTP_METHOD_SIZE];
    char *target;
    size_t target_size;
    const char *target_at; /* in the library's buffer, for the guard */
    char peer[INET6_ADDRSTRLEN];
    uint64_t arrived_us, started_us; /* wall and monotonic */

    bool has_body, expects_continue;
    uint64_t announced_size, body_size;
    enum request_plan plan;
    size_t limit;
    http_call *on_body;
    http_chunk_call *on_chunk;
    void *plan_opaque;
    struct buf body;

    http_call *on_gone;
    void *gone_opaque;
    void *user;

    int status;
    struct MHD_Response *response;
    struct buf raw; /* the answer as bytes, for when the library can no longer send it */
    size_t discarded_size;
    struct http_stream *stream;
    struct http_upgraded *upgraded;
};

/* http_server.c */
void connection_enter(struct http_connection *connection, enum connection_state state);
void connection_watch_peer(struct http_connection *connection);
void connection_unwatch_peer(struct http_connection *connection);

/* While a head or body is read: the peer has closed, and all that it sent is read. */
bool connection_is_cut_off(const struct http_connection *connection);
void server_linger(struct http_server *server, int fd);

/* Writes bytes to the client past the library, while that has sent nothing for this request. */
void connection_send_raw(struct http_connection *connection, const struct buf *bytes);

/* http_server_request.c */
void *request_begin(void *cls, const char *uri, struct MHD_Connection *mhd);
enum MHD_Result request_step(void *cls, struct MHD_Connection *mhd, const char *url,
                             const char *method, const char *version, const char *bytes,
                             size_t *size, void **con_cls);
void request_completed(void *cls, struct MHD_Connection *mhd, void **con_cls,
                       enum MHD_RequestTerminationCode code);
void request_suspend(struct http_request *request);
void request_wake(struct http_request *request);
void request_ref(struct http_request *request);
void request_unref(struct http_request *request);

/* The server's own refusal: status, and the text in the shape that render_error gives it. */
void request_refuse(struct http_request *request, int status, const char *text);
void request_render_raw(struct http_server *server, int status, const struct http_header *headers,
                        size_t header_count, const void *body, size_t body_size, struct buf *to);

/* http_server_tls.c: ERR_USAGE that names the file and what is wrong with it. */
int tls_check(const struct http_server_options *options, const struct buf *cert,
              const struct buf *key, struct err *err) MUST_CHECK;

/* http_server_guard.c: status 0 and NULL, or what to refuse with. */
int guard_check(struct http_request *request, const char *version, const char **ret_text);

/* http_server_answer.c */
bool request_is_open(const struct http_request *request); /* there is still somebody to answer */
/* Ends the holder's part with this answer (taken), or without one. */
void request_end(struct http_request *request, int status, struct MHD_Response *response);
void answer_add_headers(struct MHD_Response *response, const struct http_header *headers,
                        size_t header_count);
void answer_finish(struct http_request *request, struct MHD_Response *response);
void stream_client_gone(struct http_stream *stream);

/* http_server_upgrade.c: the library is done with the connection. */
void upgraded_over(struct http_upgraded *upgraded);
void upgraded_cut(struct http_upgraded *upgraded); /* the server closes: nothing is waited for */

/* http_server_pump.c: a descriptor for the holder, and what GnuTLS has decrypted so far in it. The
 * session points into the pump, which is to be freed when the library has freed the session. */
int pump_new(struct http_connection *connection, struct http_pump **ret_pump, int *ret_fd,
             struct err *err) MUST_CHECK;
/* The holder has done: closes its descriptor, sends what is left, then calls, from the loop. */
void pump_finish(struct http_pump *pump, void (*on_end)(void *opaque), void *opaque);
void pump_stop(struct http_pump *pump); /* before the library closes the socket */
void pump_free(struct http_pump **pump_p);
