/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/host_c.h"

#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "schema/job.h"
#include "schema/media_type.h"
#include "schema/websocket.h"
#include "workers/engine.h"
#include "workers/frame_link.h"
#include "workers/host_plugin.h"

#define HOST_STATS_US 1000000u
#define HOST_PROGRESS_US 100000u
#define HOST_REQS_DEFAULT 64u

struct host {
    struct frame_link *link;
    const char *engines_folder;
    const struct engine_api *api;
    struct engine *engine;
    struct engine_info info;
    uint64_t granted, received, finished; /* cumulative credit, and what was made of it */
    uint64_t now_us, wake_us, stats_us, progress_us;
    struct engine_stats stats; /* as last told */
    bool draining, over;
    int exit_code;
};

/* ---- what the engine says ---- */

static enum error_class class_of(enum engine_error error)
{
    static const enum error_class classes[] = {
        [ENGINE_ERROR_BAD_INPUT] = ERROR_CLASS_BAD_INPUT,
        [ENGINE_ERROR_MODEL_ERROR] = ERROR_CLASS_MODEL_ERROR,
        [ENGINE_ERROR_MODEL_UNAVAILABLE] = ERROR_CLASS_MODEL_UNAVAILABLE,
        [ENGINE_ERROR_OOM] = ERROR_CLASS_OOM,
        [ENGINE_ERROR_DEVICE_FAULT] = ERROR_CLASS_DEVICE_FAULT,
        [ENGINE_ERROR_EXPIRED] = ERROR_CLASS_EXPIRED,
        [ENGINE_ERROR_CANCELED] = ERROR_CLASS_CANCELED,
    };

    return (size_t)error < COUNT_OF(classes) ? classes[error] : ERROR_CLASS_MODEL_ERROR;
}

/* The worker is gone or does not take what we say: there is nobody to work for. */
static void host_lost(struct host *host, const struct err *err)
{
    if (!host->over)
        log_info("host_alone", LOG_ERR(err));
    host->over = true;
}

static void host_send(struct host *host, enum frame_type type, const void *fields)
{
    struct err err;

    if (frame_link_send(host->link, type, fields, &err) < 0)
        host_lost(host, &err);
}

static void host_send_error(struct host *host, uint64_t id, enum error_class class,
                            const char *text)
{
    struct frame_evt evt = {.kind = FRAME_EVT_ERROR,
                            .id = id,
                            .error_class = class,
                            .text = WIRE_TEXT_OF(text),
                            .granted = ++host->granted};

    host->finished++;
    host_send(host, FRAME_EVT, &evt);
}

/* Cuts a text at a limit without leaving half a character. */
static struct wire_text text_cut(const char *text, size_t limit)
{
    size_t size = text == NULL ? 0 : strlen(text);

    if (size > limit) {
        size = limit;
        while (size > 0 && ((uint8_t)text[size] & 0xc0) == 0x80)
            size--;
    }
    return (struct wire_text){text, size};
}

static void host_on_event(void *opaque, const struct engine_event *event)
{
    static const enum frame_evt_kind kinds[] = {
        [ENGINE_EVENT_ACCEPTED] = FRAME_EVT_ACCEPTED,
        [ENGINE_EVENT_TOKENS] = FRAME_EVT_TOKENS,
        [ENGINE_EVENT_OUTPUT] = FRAME_EVT_OUTPUT,
        [ENGINE_EVENT_ERROR] = FRAME_EVT_ERROR,
    };
    bool final = event->type == ENGINE_EVENT_OUTPUT || event->type == ENGINE_EVENT_ERROR;
    struct host *host = opaque;
    struct frame_evt evt = {.kind = kinds[event->type],
                            .id = event->req_id,
                            .token_count = event->token_count,
                            .batch_count = event->batch_req_count};

    if (event->type == ENGINE_EVENT_ACCEPTED)
        return; /* the worker counts what it sent; one frame less a request */
    if (event->type == ENGINE_EVENT_ERROR) {
        evt.error_class = class_of(event->error);
        evt.text = text_cut(event->text, ENGINE_TEXT_SIZE);
        evt.retry_after_ms = event->retry_after_ms;
    }
    evt.data = (struct wire_bytes){event->data, event->data_size};
    evt.output_type = text_cut(event->output_type, MEDIA_TYPE_SIZE_MAX);
    evt.http_status = event->http_status;
    if (event->data_size > FRAME_FD_SIZE_MAX) {
        host_send_error(host, event->req_id, ERROR_CLASS_MODEL_ERROR,
                        "the output is over its limit of 256 MiB");
        return;
    }
    if (final) {
        host->finished++;
        evt.granted = ++host->granted;
    }
    host_send(host, FRAME_EVT, &evt);
}

/* ---- ends ---- */

static void host_bye(struct host *host, int exit_code, enum error_class class, bool final,
                     const char *reason)
{
    struct frame_bye bye = {
        .error_class = class, .reason = text_cut(reason, ENGINE_TEXT_SIZE), .final = final};

    host_send(host, FRAME_BYE, &bye);
    host->exit_code = exit_code;
    host->over = true;
}

static void host_refuse_worker(struct host *host, const char *reason)
{
    log_error("worker_refused", LOG_STR("error", reason));
    host_bye(host, 3, ERROR_CLASS_LOST_WORKER, false, reason);
}

/* ---- loading ---- */

/* Writes what is gathered, waiting for the worker to take it. */
static void host_flush(struct host *host)
{
    struct err err;
    bool more = true;

    while (more) {
        struct pollfd ready = {.fd = frame_link_fd(host->link), .events = POLLOUT};

        if (frame_link_flush(host->link, &more, &err) < 0) {
            host_lost(host, &err);
            return;
        }
        if (more)
            (void)poll(&ready, 1, -1);
    }
}

/* From inside load: tells the worker, ten times a second; false once the worker is gone. */
static bool host_on_progress(void *opaque, uint64_t done_size, uint64_t total_size)
{
    struct host *host = opaque;
    struct pollfd ready = {.fd = frame_link_fd(host->link), .events = POLLRDHUP};
    struct frame_evt evt = {
        .kind = FRAME_EVT_LOADING, .done_size = done_size, .total_size = total_size};

    host->now_us = clock_mono_us();
    if (host->now_us < host->progress_us && done_size < total_size)
        return !host->over;
    host->progress_us = host->now_us + HOST_PROGRESS_US;
    host_send(host, FRAME_EVT, &evt);
    host_flush(host);
    if (poll(&ready, 1, 0) > 0 && (ready.revents & (POLLRDHUP | POLLHUP | POLLERR)))
        host->over = true;
    return !host->over;
}

static void host_ready(struct host *host)
{
    struct frame_ready ready = {.engine = WIRE_TEXT_OF(host->api->name),
                                .version = WIRE_TEXT_OF(host->api->version),
                                .task = WIRE_TEXT_OF(host->info.task),
                                .detail = WIRE_TEXT_OF(host->info.detail),
                                .granted = host->granted,
                                .token_count_max = host->info.token_count_max,
                                .host_size = host->info.host_size,
                                .dev_size = host->info.dev_size};

    host_send(host, FRAME_READY, &ready);
    log_info("engine_loaded", LOG_STR("engine", host->api->name),
             LOG_STR("version", host->api->version), LOG_STR("task", host->info.task),
             LOG_STR("detail", host->info.detail), LOG_U64("credit", host->granted));
}

static void host_on_load(struct host *host, const struct frame_load *load)
{
    OWNED(mem_free) char *name = wire_text_dup(load->engine);
    OWNED(mem_free) char *dir = wire_text_dup(load->dir);
    OWNED(mem_free) char *model = wire_text_dup(load->model);
    OWNED(mem_free) char *device = wire_text_dup(load->device);
    OWNED(mem_free) char *settings = wire_text_dup(load->settings);
    struct engine_load ask = {
        .dir = dir,
        .model = model,
        .device = load->device.size > 0 ? device : "cpu",
        .thread_count = (uint32_t)load->thread_count,
        .batch_token_max = (uint32_t)load->batch_token_max,
        .req_count_max = (uint32_t)load->req_count_max,
        .input_size_max = (uint32_t)load->input_size_max,
        .settings_json = load->settings.size > 0 ? settings : NULL,
        .sink = {.emit = host_on_event, .progress = host_on_progress, .opaque = host},
    };
    struct err err;
    int r;

    if (host->engine != NULL) {
        host_refuse_worker(host, "LOAD came a second time");
        return;
    }
    r = host_plugin_open(host->engines_folder, name, ask.device, &host->api, &err);
    if (r == 0)
        r = host->api->load(&ask, &host->engine, &host->info, &err);
    if (r < 0) {
        log_error("load_failed", LOG_STR("engine", name), LOG_STR("dir", dir), LOG_ERR(&err));
        host_bye(host, 2, ERROR_CLASS_MODEL_UNAVAILABLE, err_class(r) == ERR_CLASS_REJECT,
                 err.text);
        return;
    }
    host->granted = host->info.req_count_max > 0 ? host->info.req_count_max : HOST_REQS_DEFAULT;
    host->wake_us = ENGINE_NEVER_US;
    host_ready(host);
}

/* ---- requests ---- */

static void host_on_req(struct host *host, const struct frame_req *req)
{
    OWNED(mem_free)
    char *input_type = req->input_type.size > 0 ? wire_text_dup(req->input_type) : NULL;
    OWNED(mem_free) char *route = req->route.size > 0 ? wire_text_dup(req->route) : NULL;
    struct engine_req ask = {
        .id = req->id,
        .input = req->input.size > 0 ? (const void *)req->input.bytes : "",
        .input_size = req->input.size,
        .input_type = input_type,
        .route = route,
        .stream = req->stream,
        .deadline_us = req->limit_ms == 0 ? 0 : host->now_us + req->limit_ms * 1000,
        .alone = req->alone,
        .number = (uint32_t)req->number,
    };
    struct err err;

    if (host->engine == NULL || host->received == host->granted) {
        host_refuse_worker(host, "REQ came without credit");
        return;
    }
    host->received++;
    if (host->draining) {
        host_send_error(host, req->id, ERROR_CLASS_MODEL_UNAVAILABLE, "the host is draining");
        return;
    }
    if (websocket_is_route(req->route)) {
        host_send_error(host, req->id, ERROR_CLASS_BAD_INPUT, "this engine has no websockets");
        return;
    }
    if (host->api->submit(host->engine, &ask, host->now_us, &err) < 0)
        host_send_error(host, req->id, ERROR_CLASS_MODEL_UNAVAILABLE, err.text);
    host->wake_us = 0;
}

static void host_on_cancel(struct host *host, const struct frame_cancel *cancel)
{
    struct err err;

    if (host->engine == NULL)
        return;
    if (host->api->cancel(host->engine, cancel->id, &err) < 0)
        log_warn("cancel_failed", LOG_U64("req", cancel->id), LOG_ERR(&err));
    host->wake_us = 0;
}

static void host_on_frame(struct host *host, const struct frame *frame)
{
    switch (frame->type) {
    case FRAME_LOAD:
        host_on_load(host, &frame->load);
        return;
    case FRAME_REQ:
        host_on_req(host, &frame->req);
        return;
    case FRAME_CANCEL:
        host_on_cancel(host, &frame->cancel);
        return;
    case FRAME_DRAIN:
        host->draining = true;
        return;
    case FRAME_BYE:
        host->over = true;
        return;
    case FRAME_HELLO:
    case FRAME_READY:
    case FRAME_EVT:
    case FRAME_STATS:
        break;
    }
    host_refuse_worker(host, "a frame came that only a host sends");
}

static void host_read(struct host *host)
{
    struct frame frame;
    struct err err;
    int r = frame_link_receive(host->link, &err);

    while (r > 0 && !host->over) {
        r = frame_link_next(host->link, &frame, &err);
        if (r > 0)
            host_on_frame(host, &frame);
    }
    if (r < 0)
        host_lost(host, &err);
}

/* ---- the loop ---- */

static void host_tell_stats(struct host *host)
{
    struct engine_stats now = {0};
    struct frame_stats frame;

    if (host->now_us < host->stats_us)
        return;
    host->stats_us = host->now_us + HOST_STATS_US;
    host->api->stats(host->engine, &now);
    if (memcmp(&now, &host->stats, sizeof(now)) == 0)
        return;
    host->stats = now;
    frame = (struct frame_stats){
        now.queue_req_count,  now.running_req_count, now.step_count,   now.step_req_count,
        now.step_token_count, now.step_pad_count,    now.step_busy_us, now.output_count,
        now.error_count,      now.oom_count,         now.host_size,    now.dev_size,
        now.cache_used_size,  now.cache_size,
    };
    host_send(host, FRAME_STATS, &frame);
}

/* Runs one piece of work when it is time for it. */
static void host_step(struct host *host)
{
    struct err err;

    if (host->engine == NULL)
        return;
    if (host->wake_us <= host->now_us &&
        host->api->step(host->engine, host->now_us, &host->wake_us, &err) < 0) {
        log_error("engine_lost", LOG_ERR(&err));
        host_bye(host, 3, ERROR_CLASS_DEVICE_FAULT, false, err.text);
        return;
    }
    host_tell_stats(host);
    if (host->draining && host->finished == host->received)
        host_bye(host, 0, ERROR_CLASS_NONE, false, "drained");
}

/* Milliseconds until the engine wants to run; -1: not before something arrives. */
static int host_wait_ms(const struct host *host)
{
    uint64_t wake_us = host->engine == NULL ? ENGINE_NEVER_US : host->wake_us;

    if (host->engine != NULL && wake_us > host->stats_us && host->received > host->finished)
        wake_us = host->stats_us;
    if (wake_us == ENGINE_NEVER_US)
        return -1;
    if (wake_us <= host->now_us)
        return 0;
    wake_us = (wake_us - host->now_us + 999) / 1000;
    return wake_us > 1000 ? 1000 : (int)wake_us;
}

static void host_turn(struct host *host)
{
    struct pollfd ready = {.fd = frame_link_fd(host->link), .events = POLLIN};
    struct err err;
    bool more = false;

    if (frame_link_flush(host->link, &more, &err) < 0) {
        host_lost(host, &err);
        return;
    }
    if (more)
        ready.events |= POLLOUT;
    (void)poll(&ready, 1, host_wait_ms(host));
    host->now_us = clock_mono_us();
    if (ready.revents & (POLLIN | POLLHUP | POLLERR))
        host_read(host);
    if (!host->over)
        host_step(host);
}

int host_c_serve(int fd, const char *engines_folder)
{
    struct host host = {.link = frame_link_new(fd), .engines_folder = engines_folder};
    struct frame_hello hello = {.protocol = FRAME_PROTOCOL,
                                .host = WIRE_TEXT_OF("host-c"),
                                .version = WIRE_TEXT_OF(HEADRACE_VERSION),
                                .pid = (uint64_t)getpid()};

    host.now_us = clock_mono_us();
    host_send(&host, FRAME_HELLO, &hello);
    while (!host.over)
        host_turn(&host);
    host_flush(&host);
    if (host.engine != NULL)
        host.api->unload(&host.engine);
    frame_link_free(&host.link);
    return host.exit_code;
}
