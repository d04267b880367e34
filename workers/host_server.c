/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/host_server.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "workers/host_server_int.h"
#include "workers/secret_files.h"

#define HOST_SOCKET_FD 3
#define STATS_MS 1000
#define SLOTS_DEFAULT 1u

/* ---- frames out ---- */

/* The worker is gone or does not take what we say: there is nobody to work for. */
static void server_lost(struct host_server *server, const struct err *err)
{
    if (server->state == HOST_SERVER_OVER)
        return;
    log_info("host_alone", LOG_ERR(err));
    server->state = HOST_SERVER_OVER;
    host_server_killed(server);
    loop_stop(server->loop);
}

void host_server_send(struct host_server *server, enum frame_type type, const void *fields)
{
    struct err err;

    if (frame_link_send(server->link, type, fields, &err) < 0)
        server_lost(server, &err);
}

static void server_send_evt_fd(struct host_server *server, const struct frame_evt *evt, int fd)
{
    struct err err;

    if (frame_link_send_evt_fd(server->link, evt, fd, &err) < 0)
        server_lost(server, &err);
}

static void server_flush(struct host_server *server)
{
    struct err err;
    bool more = false;

    if (frame_link_flush(server->link, &more, &err) < 0) {
        server_lost(server, &err);
        return;
    }
    if (more != server->blocked)
        loop_watch_set(server->watch, more ? LOOP_READABLE | LOOP_WRITABLE : LOOP_READABLE);
    server->blocked = more;
    if (!more && server->unsent_size > 0) {
        server->unsent_size = 0;
        host_server_resume_all(server);
    }
}

static void server_on_turn(void *opaque)
{
    struct host_server *server = opaque;

    if (!server->blocked && server->state != HOST_SERVER_OVER)
        server_flush(server);
}

static void server_on_stats(void *opaque)
{
    struct host_server *server = opaque;

    server->stats.running_req_count = server->received - server->finished;
    if (server->stats_changed)
        host_server_send(server, FRAME_STATS, &server->stats);
    server->stats_changed = server->stats.running_req_count > 0;
}

/* ---- ends ---- */

void host_server_end(struct host_server *server, int exit_code, enum error_class class, bool final,
                     const char *why)
{
    struct frame_bye bye = {.error_class = class, .final = final};
    char last[HOST_SERVER_REASON_SIZE];
    size_t room;

    if (server->state == HOST_SERVER_OVER)
        return;
    mem_copy_text(server->reason, why);
    room = sizeof(server->reason) - strlen(server->reason);
    if (server->log != NULL && class != ERROR_CLASS_NONE && room > 40) {
        server_log_finish(server->log);
        server_log_last(server->log, last, room - 20);
        if (last[0] != '\0')
            (void)snprintf(server->reason + strlen(server->reason), room, "; its last lines: %s",
                           last);
    }
    bye.reason = WIRE_TEXT_OF(server->reason);
    if (class == ERROR_CLASS_NONE)
        log_info("host_ends", LOG_STR("reason", server->reason));
    else
        log_error("host_ends", LOG_STR("class", error_class_name(class)),
                  LOG_STR("error", server->reason));
    host_server_send(server, FRAME_BYE, &bye);
    server->exit_code = exit_code;
    server->state = HOST_SERVER_OVER;
    host_server_killed(server);
    loop_stop(server->loop);
}

static void server_refuse_worker(struct host_server *server, const char *why)
{
    host_server_end(server, 3, ERROR_CLASS_LOST_WORKER, false, why);
}

void host_server_finish(struct host_server *server, struct frame_evt *evt, int fd,
                        uint64_t begun_ms)
{
    bool good = evt->kind == FRAME_EVT_OUTPUT;

    evt->granted = ++server->granted;
    evt->batch_count = 1;
    server->stats.step_count++;
    server->stats.step_req_count++;
    server->stats.step_busy_us += (loop_now_ms(server->loop) - begun_ms) * 1000;
    server->stats.output_count += good;
    server->stats.error_count += !good;
    server->stats_changed = true;
    if (fd >= 0)
        server_send_evt_fd(server, evt, fd);
    else
        host_server_send(server, FRAME_EVT, evt);
    server->finished++;
    if (server->draining && server->finished == server->received)
        host_server_stop(server);
}

/* ---- frames in ---- */

/* Its files, where the sandbox has a place for them or, without one, in a folder of ours. What has
 * no value is told in the log: the server may do without. */
static int server_place_secrets(struct host_server *server, const struct frame_load *load,
                                struct err *err)
{
    OWNED(mem_free) char *missing = NULL;
    const char *folder = getenv(SECRET_FILES_VARIABLE);
    int r = 0;

    if (server->config.secrets == NULL)
        return 0;
    if (server->isolation == CONFINE_OFF) {
        r = secret_files_folder_make(&server->secrets_folder, err);
        folder = server->secrets_folder;
    } else if (folder == NULL) {
        r = err_set(err, ERR_USAGE, "host-server runs without the variable " SECRET_FILES_VARIABLE);
    }
    if (r == 0)
        r = secret_files_write(folder, server->config.secrets, load->secrets, &missing, err);
    if (missing != NULL)
        log_warn("secrets_without_value", LOG_STR("names", missing),
                 LOG_STR("hint", "headrace secrets set NAME, then push again"));
    return r;
}

static int server_prepare(struct host_server *server, const struct frame_load *load,
                          struct err *err)
{
    OWNED(mem_free) char *settings = wire_text_dup(load->settings);
    struct http_client_options options = {0};
    int r = server_config_parse(load->settings.size > 0 ? settings : "{}", &server->config, err);

    if (r < 0)
        return r;
    r = server_place_secrets(server, load, err);
    if (r < 0)
        return r;
    server->model = wire_text_dup(load->model);
    server->dir = wire_text_dup(load->dir);
    server->slot_count = load->req_count_max > 0 ? (uint32_t)load->req_count_max : SLOTS_DEFAULT;
    options.connection_count_max = options.connection_count_max_per_host = server->slot_count;
    r = http_client_open(server->loop, &options, &server->client, err);
    if (r < 0)
        return r;
    options.connection_count_max = options.connection_count_max_per_host = 1;
    return http_client_open(server->loop, &options, &server->probes, err);
}

static void server_on_load(struct host_server *server, const struct frame_load *load)
{
    struct err err;
    int r;

    if (server->state != HOST_SERVER_IDLE) {
        server_refuse_worker(server, "LOAD came a second time");
        return;
    }
    r = server_prepare(server, load, &err);
    if (r < 0) {
        host_server_end(server, 2, ERROR_CLASS_MODEL_UNAVAILABLE, err_class(r) == ERR_CLASS_REJECT,
                        err.text);
        return;
    }
    host_server_start(server);
}

static void server_on_drain(struct host_server *server, const struct frame_drain *drain)
{
    server->draining = true;
    if (drain->haste)
        host_server_cancel_all(server);
    if (server->finished == server->received)
        host_server_stop(server);
}

static void server_on_frame(struct host_server *server, const struct frame *frame)
{
    switch (frame->type) {
    case FRAME_LOAD:
        server_on_load(server, &frame->load);
        return;
    case FRAME_REQ:
        if (server->client == NULL || server->received == server->granted)
            server_refuse_worker(server, "REQ came without credit");
        else
            host_server_on_req(server, &frame->req);
        return;
    case FRAME_CANCEL:
        host_server_on_cancel(server, frame->cancel.id);
        return;
    case FRAME_DRAIN:
        server_on_drain(server, &frame->drain);
        return;
    case FRAME_BYE:
    case FRAME_HELLO:
    case FRAME_READY:
    case FRAME_EVT:
    case FRAME_STATS:
        break;
    }
    server_refuse_worker(server, "a frame came that only a host sends");
}

static void server_read(struct host_server *server)
{
    struct frame frame;
    struct err err;
    int r = frame_link_receive(server->link, &err);

    while (r > 0 && server->state != HOST_SERVER_OVER) {
        r = frame_link_next(server->link, &frame, &err);
        if (r > 0)
            server_on_frame(server, &frame);
    }
    if (r < 0)
        server_lost(server, &err);
}

static void server_on_watch(void *opaque, unsigned events)
{
    struct host_server *server = opaque;

    if (events & LOOP_WRITABLE)
        server_flush(server);
    if (server->state != HOST_SERVER_OVER && (events & (LOOP_READABLE | LOOP_GONE)))
        server_read(server);
}

/* ---- life ---- */

/* The kernel's word that the worker has died, while this process is in no state to read it. */
static void server_on_signal(void *opaque)
{
    struct err err;

    (void)err_set(&err, ERR_UNAVAILABLE, "the worker has ended");
    server_lost(opaque, &err);
}

static int server_open(struct host_server *server, int fd, struct err *err)
{
    int r = loop_open(&server->loop, err);

    server->link = frame_link_new(fd);
    if (r < 0)
        return r;
    server->turn = loop_turn_new(server->loop, server_on_turn, server);
    server->stats_timer = loop_timer_new(server->loop, server_on_stats, server);
    r = loop_on_signals(server->loop, server_on_signal, NULL, server, err);
    if (r == 0)
        r = loop_watch_new(server->loop, fd, server_on_watch, server, &server->watch, err);
    if (r < 0)
        return r;
    loop_watch_set(server->watch, LOOP_READABLE);
    loop_timer_start(server->stats_timer, STATS_MS, STATS_MS);
    return 0;
}

static void server_done(struct host_server *server)
{
    host_server_requests_free(server);
    host_server_passages_free(server);
    http_client_close(&server->client);
    http_client_close(&server->probes);
    loop_timer_free(&server->probe_timer);
    loop_timer_free(&server->stop_timer);
    loop_timer_free(&server->broken_timer);
    loop_timer_free(&server->stats_timer);
    loop_turn_free(&server->turn);
    loop_watch_free(&server->watch);
    child_free(&server->child);
    server_log_close(&server->log);
    frame_link_free(&server->link);
    if (server->loop != NULL)
        loop_close(&server->loop);
    if (server->port_fd >= 0)
        (void)close(server->port_fd);
    server_config_done(&server->config);
    if (server->secrets_folder != NULL)
        secret_files_remove(server->secrets_folder);
    free(server->secrets_folder);
    free(server->model);
    free(server->dir);
}

/* The last words, as far as the worker takes them. */
static void server_flush_last(struct host_server *server)
{
    struct err err;
    bool more = true;

    while (more && frame_link_flush(server->link, &more, &err) == 0 && more) {
        struct pollfd ready = {.fd = frame_link_fd(server->link), .events = POLLOUT};

        (void)poll(&ready, 1, -1);
    }
}

int host_server_serve(int fd, enum confine_level isolation)
{
    OWNED(server_done) struct host_server server = {.isolation = isolation, .port_fd = -1};
    const struct frame_hello hello = {.protocol = FRAME_PROTOCOL,
                                      .host = WIRE_TEXT_OF("server"),
                                      .version = WIRE_TEXT_OF(HEADRACE_VERSION),
                                      .pid = (uint64_t)getpid()};
    struct err err;

    if (server_open(&server, fd, &err) < 0) {
        log_error("host_start_failed", LOG_ERR(&err));
        return 1;
    }
    host_server_send(&server, FRAME_HELLO, &hello);
    loop_run(server.loop);
    server_flush_last(&server);
    return server.exit_code;
}

int host_server_main(int argc, char **argv)
{
    const struct log_options options = {.program = "host-server", .level = LOG_LEVEL_INFO};
    const struct rlimit no_core = {0, 0};
    enum confine_level isolation = CONFINE_OFF;
    struct err err;

    (void)signal(SIGPIPE, SIG_IGN);
    (void)prctl(PR_SET_PDEATHSIG, SIGTERM); /* so that the server's group can still be killed */
    (void)setrlimit(RLIMIT_CORE, &no_core);
    if (log_open(&options, &err) < 0 || write(HOST_SOCKET_FD, "", 0) < 0) {
        log_error("host_start_failed", LOG_STR("error", "only a worker starts host-server"));
        return 1;
    }
    if (argc > 1 && confine_level_parse(argv[1], &isolation, &err) < 0) {
        log_error("host_start_failed", LOG_ERR(&err));
        return 1;
    }
    return host_server_serve(HOST_SOCKET_FD, isolation);
}
