/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/worker_host.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/loop.h"
#include "workers/child.h"
#include "workers/engine_host.h"
#include "workers/frame_link.h"
#include "workers/host_tail.h"

#define HOST_WHY_SIZE 600
#define HOST_SAID_SIZE 360 /* of the lines in it */
#define KEEPER_MS 10000    /* what a keeper may take to end everything */

struct worker_host {
    struct loop *loop;
    struct worker_host_calls calls;
    void *opaque;
    char *engines_folder, *engine, *dir, *model, *device, *settings_json, *isolation_read;
    char *group; /* cgroup of a host of user code */
    enum confine_level isolation;
    uint64_t memory_size, process_count;
    unsigned nice;
    bool confined;
    char *cache_dir, *environment, *deployment, *gateway;
    struct wire_bytes secrets;
    uint32_t thread_count, batch_token_max, slot_count;

    struct child *child;
    struct frame_link *link;
    struct loop_watch *watch;
    struct loop_turn *turn;
    struct loop_timer *failed_start; /* reports from the loop, not from inside a call */
    struct loop_timer *disobeyed;    /* a keeper was told to end, and should have */
    bool said_bye, final, blocked;
    enum error_class class;
    char why[HOST_WHY_SIZE];
    uint64_t log_begin; /* of its lines in our standard error */
};

/* ---- the end of a host ---- */

static void host_close_link(struct worker_host *host)
{
    loop_watch_free(&host->watch);
    frame_link_free(&host->link);
}

/* The first reason counts: what follows from it is no news. */
static void host_note(struct worker_host *host, enum error_class class, const char *why)
{
    if (host->class != ERROR_CLASS_NONE || host->said_bye)
        return;
    host->class = class;
    mem_copy_text(host->why, why);
}

/* The other side cannot be believed any more; the process end tells the rest. */
static void host_break(struct worker_host *host, const struct err *err)
{
    host_note(host, ERROR_CLASS_LOST_WORKER, err->text);
    host_close_link(host);
    worker_host_kill(host);
}

static void host_read_all(struct worker_host *host);

/* A shell, a keeper and bubblewrap tell of a signal by a number. */
static void host_tell_end(const struct worker_host *host, const struct child_end *end,
                          char why[HOST_WHY_SIZE])
{
    int number = host->confined && end->known ? end->exit_code - 128 : 0;
    char said[HOST_SAID_SIZE], signal[64] = "";

    host_tail_read(STDERR_FILENO, host->log_begin, said, sizeof(said));
    if (number > 0 && number < NSIG)
        (void)snprintf(signal, sizeof(signal), " (signal %d, %.40s)", number, strsignal(number));
    (void)snprintf(why, HOST_WHY_SIZE, "the engine host %s%s%s%s", end->text, signal,
                   said[0] == '\0' ? "" : "; its last lines: ", said);
}

static void host_on_end(void *opaque, const struct child_end *end)
{
    struct worker_host *host = opaque;
    char why[HOST_WHY_SIZE];

    host_read_all(host); /* what it said before it died */
    host_close_link(host);
    child_free(&host->child);
    loop_timer_stop(host->disobeyed);
    if (!host->said_bye) {
        host_tell_end(host, end, why);
        host_note(host, ERROR_CLASS_LOST_WORKER, why);
    }
    if (host->confined && confine_group_end(host->group) && host->class != ERROR_CLASS_NONE) {
        (void)snprintf(why, sizeof(why), "over its memory limit: %.560s", host->why);
        mem_copy_text(host->why, why);
    }
    host->calls.on_gone(host->opaque, host->class, host->final, host->why);
}

static void host_on_failed_start(void *opaque)
{
    struct worker_host *host = opaque;

    host->calls.on_gone(host->opaque, host->class, host->final, host->why);
}

/* ---- frames in ---- */

static void host_on_bye(struct worker_host *host, const struct frame_bye *bye)
{
    enum error_class class = error_class_known(bye->error_class)
                                 ? (enum error_class)bye->error_class
                                 : ERROR_CLASS_LOST_WORKER;

    (void)snprintf(host->why, sizeof(host->why), "%.*s", (int)bye->reason.size,
                   bye->reason.size > 0 ? bye->reason.text : "");
    host->class = bye->error_class == 0 ? ERROR_CLASS_NONE : class;
    host->final = bye->final;
    host->said_bye = true;
}

static void host_on_hello(struct worker_host *host, const struct frame_hello *hello)
{
    const struct frame_load load = {
        .engine = WIRE_TEXT_OF(host->engine),
        .dir = WIRE_TEXT_OF(host->dir),
        .model = WIRE_TEXT_OF(host->model),
        .device = WIRE_TEXT_OF(host->device),
        .thread_count = host->thread_count,
        .batch_token_max = host->batch_token_max,
        .req_count_max = host->slot_count,
        .settings = WIRE_TEXT_OF(host->settings_json),
        .cache_dir = WIRE_TEXT_OF(host->cache_dir),
        .environment = WIRE_TEXT_OF(host->environment),
        .deployment = WIRE_TEXT_OF(host->deployment),
        .gateway = WIRE_TEXT_OF(host->gateway),
        .secrets = host->secrets,
    };
    struct err err;

    if (hello->protocol != FRAME_PROTOCOL) {
        (void)err_set(&err, ERR_UNSUPPORTED, "the host speaks frame protocol %llu, we speak %u",
                      (unsigned long long)hello->protocol, FRAME_PROTOCOL);
        host->final = true;
        host_break(host, &err);
        return;
    }
    if (frame_link_send(host->link, FRAME_LOAD, &load, &err) < 0) {
        host->final = true;
        host_break(host, &err);
    }
}

static void host_on_evt(struct worker_host *host, const struct frame_evt *evt)
{
    struct worker_result result = {.error_message = evt->text,
                                   .retry_after_ms = evt->retry_after_ms,
                                   .http_status = evt->http_status,
                                   .output = evt->data,
                                   .output_type = evt->output_type,
                                   .batch_count = evt->batch_count};

    switch (evt->kind) {
    case FRAME_EVT_LOADING:
        host->calls.on_loading(host->opaque, evt->done_size, evt->total_size);
        return;
    case FRAME_EVT_OUTPUT:
        break;
    case FRAME_EVT_ERROR:
        result.error_class = error_class_known(evt->error_class)
                                 ? (enum error_class)evt->error_class
                                 : ERROR_CLASS_MODEL_ERROR;
        break;
    case FRAME_EVT_TOKENS:
        host->calls.on_piece(host->opaque, evt->id, evt->data, evt->output_type);
        return;
    default: /* ACCEPTED, and what a newer host may say: nothing final */
        return;
    }
    host->calls.on_final(host->opaque, evt->id, evt->granted, &result);
}

static void host_on_frame(struct worker_host *host, const struct frame *frame)
{
    struct err err;

    switch (frame->type) {
    case FRAME_HELLO:
        host_on_hello(host, &frame->hello);
        return;
    case FRAME_READY:
        host->calls.on_ready(host->opaque, &frame->ready);
        return;
    case FRAME_EVT:
        host_on_evt(host, &frame->evt);
        return;
    case FRAME_STATS:
        host->calls.on_stats(host->opaque, &frame->stats);
        return;
    case FRAME_BYE:
        host_on_bye(host, &frame->bye);
        return;
    case FRAME_LOAD:
    case FRAME_REQ:
    case FRAME_CANCEL:
    case FRAME_DRAIN:
        break;
    }
    (void)err_set(&err, ERR_MALFORMED, "the host sent a %s, which only a worker sends",
                  frame_type_name(frame->type));
    host_break(host, &err);
}

static void host_read_all(struct worker_host *host)
{
    struct frame frame;
    struct err err;
    int r = 1;

    while (host->link != NULL && (r = frame_link_receive(host->link, &err)) > 0) {
        while (host->link != NULL && (r = frame_link_next(host->link, &frame, &err)) > 0)
            host_on_frame(host, &frame);
        if (r < 0)
            break;
    }
    if (host->link == NULL || r >= 0)
        return;
    if (r == ERR_UNAVAILABLE)
        host_close_link(host); /* the end of the process tells why */
    else
        host_break(host, &err);
}

/* ---- frames out ---- */

static void host_flush(struct worker_host *host)
{
    struct err err;
    bool more;

    if (host->link == NULL)
        return;
    if (frame_link_flush(host->link, &more, &err) < 0) {
        /* It is dying; what it said before still counts. */
        loop_watch_set(host->watch, LOOP_READABLE);
        return;
    }
    if (more != host->blocked)
        loop_watch_set(host->watch, more ? LOOP_READABLE | LOOP_WRITABLE : LOOP_READABLE);
    host->blocked = more;
}

static void host_on_watch(void *opaque, unsigned events)
{
    struct worker_host *host = opaque;

    if (events & LOOP_WRITABLE)
        host_flush(host);
    if (events & (LOOP_READABLE | LOOP_GONE))
        host_read_all(host);
}

static void host_on_turn(void *opaque)
{
    struct worker_host *host = opaque;

    if (!host->blocked)
        host_flush(host);
}

static void host_send(struct worker_host *host, enum frame_type type, const void *fields)
{
    struct err err;

    if (host->link != NULL && frame_link_send(host->link, type, fields, &err) < 0)
        host_break(host, &err);
}

void worker_host_run(struct worker_host *host, const struct frame_req *req)
{
    host_send(host, FRAME_REQ, req);
}

void worker_host_run_fd(struct worker_host *host, const struct frame_req *req, int fd)
{
    struct err err;

    if (host->link == NULL)
        (void)close(fd);
    else if (frame_link_send_fd(host->link, req, fd, &err) < 0)
        host_break(host, &err);
}

bool worker_host_takes_tunnels(const struct worker_host *host)
{
    enum engine_host_kind kind = engine_host_kind(host->engine);

    return kind == ENGINE_HOST_PY || kind == ENGINE_HOST_SERVER;
}

void worker_host_run_tunnel(struct worker_host *host, const struct frame_req *req, int fd)
{
    struct err err;

    if (host->link == NULL)
        (void)close(fd);
    else if (frame_link_send_tunnel(host->link, req, fd, &err) < 0)
        host_break(host, &err);
}

int worker_host_output_fd(const struct worker_host *host, const void *output)
{
    return host->link == NULL ? -1 : frame_link_fd_of(host->link, output);
}

void worker_host_cancel(struct worker_host *host, uint64_t token)
{
    const struct frame_cancel cancel = {.id = token};

    host_send(host, FRAME_CANCEL, &cancel);
}

void worker_host_drain(struct worker_host *host)
{
    const struct frame_drain drain = {.haste = false};

    host_send(host, FRAME_DRAIN, &drain);
}

void worker_host_kill(struct worker_host *host)
{
    if (host->child == NULL)
        return;
    if (!host->confined) {
        child_signal(host->child, SIGKILL);
        return;
    }
    confine_end(host->child);
    if (!loop_timer_is_running(host->disobeyed))
        loop_timer_start(host->disobeyed, KEEPER_MS, 0);
}

/* The keeper itself is held up, by whom it should keep: what it leaves is ended by the cgroup. */
static void host_on_disobeyed(void *opaque)
{
    struct worker_host *host = opaque;

    if (host->child != NULL)
        child_signal(host->child, SIGKILL);
}

/* ---- life ---- */

static int host_spawn(struct worker_host *host, struct err *err)
{
    OWNED(engine_host_done) struct engine_host program = {0};
    struct child_spawn spawn = {.stdout_fd = 2, .stderr_fd = -1, .new_group = true};
    int fds[2], r;

    r = engine_host_find(host->engine, host->engines_folder, &program, err);
    if (r < 0)
        return r;
    host->confined = program.kind != ENGINE_HOST_C;
    engine_host_confine(&program, &(struct engine_confine){.level = host->isolation,
                                                           .dir = host->dir,
                                                           .read = host->isolation_read,
                                                           .group = host->group,
                                                           .settings_json = host->settings_json,
                                                           .gateway = host->gateway,
                                                           .memory_size = host->memory_size,
                                                           .process_count = host->process_count,
                                                           .nice = host->nice});
    spawn.path = program.path;
    spawn.argv = program.argv;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return err_set_errno(err, ERR_IO, "make a socket for the engine host");
    host->link = frame_link_new(fds[0]);
    spawn.extra_fd = fds[1];
    r = child_start(host->loop, &spawn, host_on_end, host, &host->child, err);
    (void)close(fds[1]);
    if (r == 0)
        r = loop_watch_new(host->loop, fds[0], host_on_watch, host, &host->watch, err);
    if (r < 0)
        return r;
    loop_watch_set(host->watch, LOOP_READABLE);
    return 0;
}

void worker_host_start(struct worker_host *host)
{
    struct err err;

    assert(host->child == NULL && host->link == NULL);
    host->said_bye = host->final = host->blocked = false;
    host->class = ERROR_CLASS_NONE;
    host->why[0] = '\0';
    host->log_begin = host_tail_begin(STDERR_FILENO);
    if (host_spawn(host, &err) == 0)
        return;
    host_note(host, ERROR_CLASS_LOST_WORKER, err.text);
    host_close_link(host);
    if (host->child != NULL)
        worker_host_kill(host); /* its end is reported as always */
    else
        loop_timer_start(host->failed_start, 0, 0);
}

struct worker_host *worker_host_new(struct loop *loop, const struct worker_host_options *options,
                                    const struct worker_host_calls *calls, void *opaque)
{
    struct worker_host *host = xcalloc(1, sizeof(*host));

    host->loop = loop;
    host->calls = *calls;
    host->opaque = opaque;
    host->engines_folder = xstrdup(options->engines_folder);
    host->engine = xstrdup(options->engine);
    host->dir = xstrdup(options->dir);
    host->model = xstrdup(options->model);
    host->device = xstrdup(options->device);
    host->settings_json = xstrdup(options->settings_json);
    host->isolation_read = xstrdup(options->isolation_read);
    host->group = xasprintf("%s-%d", options->worker, (int)getpid());
    host->isolation = options->isolation;
    host->memory_size = options->host_memory_size;
    host->process_count = options->host_process_count;
    host->nice = options->host_nice;
    host->cache_dir = xstrdup(options->cache_dir);
    host->environment = xstrdup(options->environment);
    host->deployment = xstrdup(options->deployment);
    host->gateway = xstrdup(options->gateway);
    host->secrets = options->secrets;
    host->thread_count = options->thread_count;
    host->batch_token_max = options->batch_token_max;
    host->slot_count = options->slot_count;
    host->turn = loop_turn_new(loop, host_on_turn, host);
    host->failed_start = loop_timer_new(loop, host_on_failed_start, host);
    host->disobeyed = loop_timer_new(loop, host_on_disobeyed, host);
    confine_group_sweep(options->worker); /* what an earlier boot left that had no end of its own */
    return host;
}

void worker_host_free(struct worker_host **host_p)
{
    struct worker_host *host = TAKE(*host_p);

    if (host == NULL)
        return;
    worker_host_kill(host);
    child_free(&host->child);
    host_close_link(host);
    loop_turn_free(&host->turn);
    loop_timer_free(&host->failed_start);
    loop_timer_free(&host->disobeyed);
    free(host->engines_folder);
    free(host->engine);
    free(host->dir);
    free(host->model);
    free(host->device);
    free(host->settings_json);
    free(host->isolation_read);
    free(host->group);
    free(host->cache_dir);
    free(host->environment);
    free(host->deployment);
    free(host->gateway);
    free(host);
}
