/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/host_frames.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "base/loop.h"
#include "workers/frame_link.h"

struct host_frames {
    struct loop *loop;
    const struct host_frames_calls *calls;
    void *opaque;
    struct frame_link *link;
    struct loop_watch *watch;
    struct loop_turn *turn;
    uint64_t granted, received, finished;
    bool loaded, blocked, draining, waits, over;
    int exit_code;
};

/* ---- frames out ---- */

static void frames_lost(struct host_frames *frames, const struct err *err)
{
    if (frames->over)
        return;
    log_info("host_alone", LOG_ERR(err));
    frames->over = true;
    loop_stop(frames->loop);
}

static void frames_send(struct host_frames *frames, enum frame_type type, const void *fields)
{
    struct err err;

    if (!frames->over && frame_link_send(frames->link, type, fields, &err) < 0)
        frames_lost(frames, &err);
}

static void frames_flush(struct host_frames *frames)
{
    bool more = false;
    struct err err;

    if (frame_link_flush(frames->link, &more, &err) < 0) {
        frames_lost(frames, &err);
        return;
    }
    if (more != frames->blocked)
        loop_watch_set(frames->watch, more ? LOOP_READABLE | LOOP_WRITABLE : LOOP_READABLE);
    frames->blocked = more;
}

void host_frames_end(struct host_frames *frames, int exit_code, enum error_class class,
                     const char *why)
{
    const struct frame_bye bye = {.error_class = class,
                                  .final = class != ERROR_CLASS_NONE && exit_code == 2,
                                  .reason = WIRE_TEXT_OF(why)};

    if (frames->over)
        return;
    log_info("host_ends", LOG_STR("reason", why));
    frames_send(frames, FRAME_BYE, &bye);
    frames->over = true;
    frames->exit_code = exit_code;
    loop_stop(frames->loop);
}

static void frames_end_if_drained(struct host_frames *frames)
{
    if (frames->draining && !frames->waits && frames->finished == frames->received)
        host_frames_end(frames, 0, ERROR_CLASS_NONE, "drained");
}

static void frames_final(struct host_frames *frames, struct frame_evt *evt)
{
    frames->finished++;
    evt->granted = ++frames->granted;
    frames_send(frames, FRAME_EVT, evt);
    frames_end_if_drained(frames);
}

void host_frames_output(struct host_frames *frames, uint64_t id, const char *json, size_t size)
{
    struct frame_evt evt = {
        .kind = FRAME_EVT_OUTPUT, .id = id, .data = {(const uint8_t *)json, size}};

    frames_final(frames, &evt);
}

void host_frames_error(struct host_frames *frames, uint64_t id, enum error_class class,
                       const char *text)
{
    struct frame_evt evt = {
        .kind = FRAME_EVT_ERROR, .id = id, .error_class = class, .text = WIRE_TEXT_OF(text)};

    frames_final(frames, &evt);
}

void host_frames_put_off(struct host_frames *frames, uint64_t id, uint64_t delay_ms,
                         const char *text)
{
    struct frame_evt evt = {.kind = FRAME_EVT_ERROR,
                            .id = id,
                            .error_class = ERROR_CLASS_HANDED_BACK,
                            .retry_after_ms = delay_ms,
                            .text = WIRE_TEXT_OF(text)};

    frames_final(frames, &evt);
}

void host_frames_drained(struct host_frames *frames)
{
    frames->waits = false;
    frames_end_if_drained(frames);
}

/* ---- frames in ---- */

static void on_load(struct host_frames *frames, const struct frame_load *load)
{
    struct frame_ready ready = {.engine = WIRE_TEXT_OF(frames->calls->engine),
                                .task = WIRE_TEXT_OF(frames->calls->engine)};
    struct err err;

    if (frames->loaded) {
        host_frames_end(frames, 3, ERROR_CLASS_LOST_WORKER, "LOAD came a second time");
        return;
    }
    frames->loaded = true;
    if (frames->calls->on_load(frames->opaque, load, &err) < 0) {
        host_frames_end(frames, 2, ERROR_CLASS_MODEL_UNAVAILABLE, err.text);
        return;
    }
    frames->granted = load->req_count_max > 0 ? load->req_count_max : 1;
    ready.granted = frames->granted;
    frames_send(frames, FRAME_READY, &ready);
}

static void on_req(struct host_frames *frames, const struct frame_req *req)
{
    if (!frames->loaded || frames->received == frames->granted) {
        host_frames_end(frames, 3, ERROR_CLASS_LOST_WORKER, "REQ came without credit");
        return;
    }
    frames->received++;
    frames->calls->on_req(frames->opaque, req);
}

static void on_drain(struct host_frames *frames)
{
    if (frames->draining)
        return;
    frames->draining = true;
    frames->waits = frames->calls->on_drain != NULL && frames->calls->on_drain(frames->opaque);
    frames_end_if_drained(frames);
}

static void on_frame(struct host_frames *frames, const struct frame *frame)
{
    switch (frame->type) {
    case FRAME_LOAD:
        on_load(frames, &frame->load);
        return;
    case FRAME_REQ:
        on_req(frames, &frame->req);
        return;
    case FRAME_CANCEL:
        if (frames->loaded && frames->calls->on_cancel(frames->opaque, frame->cancel.id))
            host_frames_error(frames, frame->cancel.id, ERROR_CLASS_CANCELED, "canceled");
        return;
    case FRAME_DRAIN:
        on_drain(frames);
        return;
    case FRAME_BYE:
    case FRAME_HELLO:
    case FRAME_READY:
    case FRAME_EVT:
    case FRAME_STATS:
        break;
    }
    host_frames_end(frames, 3, ERROR_CLASS_LOST_WORKER, "a frame came that only a host sends");
}

static void on_watch(void *opaque, unsigned events)
{
    struct host_frames *frames = opaque;
    struct frame frame;
    struct err err;
    int r;

    if (events & LOOP_WRITABLE)
        frames_flush(frames);
    if (frames->over || !(events & (LOOP_READABLE | LOOP_GONE)))
        return;
    r = frame_link_receive(frames->link, &err);
    while (r > 0 && !frames->over) {
        r = frame_link_next(frames->link, &frame, &err);
        if (r > 0)
            on_frame(frames, &frame);
    }
    if (r < 0)
        frames_lost(frames, &err);
}

static void on_turn(void *opaque)
{
    struct host_frames *frames = opaque;

    if (!frames->blocked && !frames->over)
        frames_flush(frames);
}

/* ---- life ---- */

int host_frames_open(struct loop *loop, const struct host_frames_calls *calls, void *opaque,
                     struct host_frames **ret_frames, struct err *err)
{
    const struct frame_hello hello = {.protocol = FRAME_PROTOCOL,
                                      .host = WIRE_TEXT_OF(calls->host),
                                      .version = WIRE_TEXT_OF(HEADRACE_VERSION),
                                      .pid = (uint64_t)getpid()};
    struct host_frames *frames = xcalloc(1, sizeof(*frames));
    int r;

    frames->loop = loop;
    frames->calls = calls;
    frames->opaque = opaque;
    frames->link = frame_link_new(HOST_FRAMES_FD);
    r = loop_watch_new(loop, HOST_FRAMES_FD, on_watch, frames, &frames->watch, err);
    if (r < 0) {
        (void)host_frames_close(&frames);
        return r;
    }
    frames->turn = loop_turn_new(loop, on_turn, frames);
    loop_watch_set(frames->watch, LOOP_READABLE);
    frames_send(frames, FRAME_HELLO, &hello);
    *ret_frames = frames;
    return 0;
}

int host_frames_close(struct host_frames **frames_p)
{
    struct host_frames *frames = TAKE(*frames_p);
    bool more = true;
    struct err err;
    int exit_code;

    if (frames == NULL)
        return 1;
    while (more && frame_link_flush(frames->link, &more, &err) == 0 && more) {
        struct pollfd ready = {.fd = frame_link_fd(frames->link), .events = POLLOUT};

        (void)poll(&ready, 1, -1); /* the last words */
    }
    exit_code = frames->exit_code;
    loop_turn_free(&frames->turn);
    loop_watch_free(&frames->watch);
    frame_link_free(&frames->link);
    free(frames);
    return exit_code;
}

bool host_frames_begin(const char *host)
{
    const struct log_options options = {.program = host, .level = LOG_LEVEL_INFO};
    const struct rlimit no_core = {0, 0};
    OWNED(mem_free) char *why = NULL;
    struct err err;

    /* The worker drains us by frames; a Ctrl-C meant for the whole terminal must not reach us. */
    (void)signal(SIGINT, SIG_IGN);
    (void)signal(SIGTERM, SIG_IGN);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)setrlimit(RLIMIT_CORE, &no_core);
    if (log_open(&options, &err) == 0 && write(HOST_FRAMES_FD, "", 0) == 0)
        return true;
    why = xasprintf("only a worker starts %s", host);
    log_error("host_start_failed", LOG_STR("error", why));
    return false;
}
