/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Inside of host-server, for its files only: host_server.c (frames, life), host_server_run.c (the
 * server's process and its health), host_server_request.c (one request each), host_server_socket.c
 * (one websocket each).
 */

#include <uthash.h>

#include "base/http_client.h"
#include "base/loop.h"
#include "schema/job.h"
#include "workers/child.h"
#include "workers/confine.h"
#include "workers/frame_link.h"
#include "workers/host_server.h"
#include "schema/server_config.h"
#include "workers/server_log.h"

#define HOST_SERVER_REASON_SIZE 480 /* what a worker and its agent keep of a reason */

enum host_server_state {
    HOST_SERVER_IDLE,     /* no LOAD yet */
    HOST_SERVER_STARTING, /* the process runs, not ready */
    HOST_SERVER_SERVING,
    HOST_SERVER_STOPPING, /* told to end; its end is the end */
    HOST_SERVER_OVER,     /* BYE is said */
};

struct host_server {
    struct loop *loop;
    struct frame_link *link;
    struct loop_watch *watch;
    struct loop_turn *turn;
    bool blocked; /* the worker does not take what we say */
    size_t unsent_size;

    enum host_server_state state;
    enum confine_level isolation; /* that we run under */
    struct server_config config;
    char *secrets_folder; /* of ours, without confinement; NULL: none, or the sandbox has one */
    char *model, *dir;
    uint32_t slot_count;
    uint64_t granted, received, finished; /* cumulative credit, and what was made of it */
    bool draining;
    int exit_code;

    struct http_client *client, *probes;
    struct server_request *requests; /* by id */
    struct passage *passages;        /* of websockets */
    struct loop_timer *broken_timer; /* answers that broke off wait for the server's end */
    struct frame_stats stats;
    bool stats_changed;
    struct loop_timer *stats_timer;

    struct child *child;
    struct server_log *log;
    uint32_t port;
    int port_fd; /* holds it; -1 */
    struct loop_timer *probe_timer, *stop_timer;
    struct http_transfer *probe;
    bool probes_liveness;
    uint64_t started_ms, told_ms; /* told_ms: progress, last */
    uint64_t unready_ms, dead_ms; /* since when a probe fails; 0: it does not */
    char probe_error[160];        /* of the last probe that failed */

    struct frame_bye bye; /* said when the process has ended */
    char reason[HOST_SERVER_REASON_SIZE];
};

/* host_server.c */
void host_server_send(struct host_server *server, enum frame_type type, const void *fields);

/* Says BYE and ends; the server's process group is killed. `why` without its last lines. */
void host_server_end(struct host_server *server, int exit_code, enum error_class class, bool final,
                     const char *why);

/* One request less: sends its final event, with a memfd beside it where data_fd_size says so, which
 * is taken. */
void host_server_finish(struct host_server *server, struct frame_evt *evt, int fd,
                        uint64_t begun_ms);

/* host_server_run.c */
void host_server_start(struct host_server *server);
void host_server_stop(struct host_server *server);   /* SIGTERM, after stop_ms SIGKILL */
void host_server_killed(struct host_server *server); /* SIGKILL to all of its group, now */
bool host_server_is_unready(const struct host_server *server); /* by its last probe */
bool host_server_wants_no_traffic(const struct host_server *server);

/* host_server_request.c */
void host_server_on_req(struct host_server *server, const struct frame_req *req);
void host_server_on_cancel(struct host_server *server, uint64_t id);
void host_server_cancel_all(struct host_server *server);
void host_server_resume_all(struct host_server *server); /* everything was taken */
void host_server_requests_free(struct host_server *server);
const char *host_server_refusal(const struct host_server *server); /* of any; NULL: none */
/* "POST /v1/x?y" in its two parts, the caller's to free. ERR_RANGE: no such parts. */
int host_server_route_split(struct wire_text route, char **ret_method, char **ret_path,
                            struct err *err) MUST_CHECK;

/* host_server_socket.c */
void host_server_on_passage(struct host_server *server, const struct frame_req *req);
bool host_server_passage_cancel(struct host_server *server, uint64_t id); /* false: no such one */
void host_server_passages_cancel(struct host_server *server);
void host_server_passages_free(struct host_server *server);

/* What a status of the server means, and how long to wait by its Retry-After; pure. */
enum error_class host_server_status_class(int status, bool unready);
