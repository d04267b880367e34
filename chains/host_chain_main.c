/* SPDX-License-Identifier: Apache-2.0 */

/*
 * `headrace host-chain`: the engine host of chains. A run of a chain is a job like others, so a
 * worker takes it, keeps its lease and reports its end; this host runs it, by the coordinator.
 * Started by a worker, never by a person; its socket is descriptor 3 (workers/frame.h).
 *
 * Happy path: HELLO, LOAD with the chain as settings, READY; a REQ is a run, its EVT the output.
 * Failures: a chain that cannot be read is a BYE that says why, for good. The worker is gone: this
 * process ends; the next attempt of each run goes on with it.
 * Shutdown: DRAIN waits for the runs that are here, then BYE.
 */

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "base/loop.h"
#include "base/settings.h"
#include "chains/coordinator.h"
#include "workers/frame_link.h"

#define HOST_SOCKET_FD 3

struct host_chain_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
#include "chains/host_chain_settings.def"
#include "base/settings_end.def"
};

static const struct setting host_chain_rows[] = {
#define SETTINGS_ROWS struct host_chain_settings
#include "base/settings_rows.def"
#include "chains/host_chain_settings.def"
#include "base/settings_end.def"
};

static const struct settings_program host_chain_program = {
    .command = "host-chain",
    .purpose = "Runs a chain for a worker, which starts it.",
    .rows = host_chain_rows,
    .row_count = COUNT_OF(host_chain_rows),
};

struct host {
    struct host_chain_settings settings;
    struct loop *loop;
    struct frame_link *link;
    struct loop_watch *watch;
    struct loop_turn *turn;
    struct chain *chain;
    struct coordinator *coordinator; /* NULL: no LOAD yet */
    uint64_t granted, received, finished;
    bool blocked, draining, over;
    int exit_code;
};

int host_chain_main(int argc, char **argv);

/* ---- frames out ---- */

static void host_lost(struct host *host, const struct err *err)
{
    if (host->over)
        return;
    log_info("host_alone", LOG_ERR(err));
    host->over = true;
    loop_stop(host->loop);
}

static void host_send(struct host *host, enum frame_type type, const void *fields)
{
    struct err err;

    if (!host->over && frame_link_send(host->link, type, fields, &err) < 0)
        host_lost(host, &err);
}

static void host_flush(struct host *host)
{
    bool more = false;
    struct err err;

    if (frame_link_flush(host->link, &more, &err) < 0) {
        host_lost(host, &err);
        return;
    }
    if (more != host->blocked)
        loop_watch_set(host->watch, more ? LOOP_READABLE | LOOP_WRITABLE : LOOP_READABLE);
    host->blocked = more;
}

static void host_end(struct host *host, int exit_code, enum error_class class, const char *why)
{
    const struct frame_bye bye = {.error_class = class,
                                  .final = class != ERROR_CLASS_NONE && exit_code == 2,
                                  .reason = WIRE_TEXT_OF(why)};

    if (host->over)
        return;
    log_info("host_ends", LOG_STR("reason", why));
    host_send(host, FRAME_BYE, &bye);
    host->over = true;
    host->exit_code = exit_code;
    loop_stop(host->loop);
}

/* A run is over for this attempt: its credit comes back. */
static void host_final(struct host *host, struct frame_evt *evt)
{
    host->finished++;
    evt->granted = ++host->granted;
    host_send(host, FRAME_EVT, evt);
    if (host->draining && host->finished == host->received)
        host_end(host, 0, ERROR_CLASS_NONE, "drained");
}

static void on_output(void *opaque, uint64_t id, const char *json, size_t size)
{
    struct frame_evt evt = {
        .kind = FRAME_EVT_OUTPUT, .id = id, .data = {(const uint8_t *)json, size}};

    host_final(opaque, &evt);
}

static void on_error(void *opaque, uint64_t id, enum error_class class, const char *text)
{
    struct frame_evt evt = {
        .kind = FRAME_EVT_ERROR, .id = id, .error_class = class, .text = WIRE_TEXT_OF(text)};

    host_final(opaque, &evt);
}

/* ---- frames in ---- */

static int host_load(struct host *host, const struct frame_load *load, struct err *err)
{
    static const struct coordinator_calls calls = {.on_output = on_output, .on_error = on_error};
    OWNED(mem_free) char *deployment = wire_text_dup(load->deployment);
    const struct coordinator_options options = {.postgres = host->settings.postgres,
                                                .kafka = host->settings.kafka,
                                                .kafka_properties = host->settings.kafka_properties,
                                                .redis = host->settings.redis,
                                                .blobs = host->settings.blobs,
                                                .deployment = deployment};
    json_error_t where;
    json_t *json = json_loadb(load->settings.text, load->settings.size, 0, &where);
    int r;

    if (json == NULL)
        return err_set(err, ERR_MALFORMED, "the chain is no JSON: %.200s", where.text);
    r = chain_parse(json, &host->chain, err);
    json_decref(json);
    return r < 0 ? r
                 : coordinator_open(host->loop, &options, host->chain, &calls, host,
                                    &host->coordinator, err);
}

static void host_on_load(struct host *host, const struct frame_load *load)
{
    struct frame_ready ready = {.engine = WIRE_TEXT_OF("chain"), .task = WIRE_TEXT_OF("chain")};
    struct err err;

    if (host->coordinator != NULL) {
        host_end(host, 3, ERROR_CLASS_LOST_WORKER, "LOAD came a second time");
        return;
    }
    if (host_load(host, load, &err) < 0) {
        host_end(host, 2, ERROR_CLASS_MODEL_UNAVAILABLE, err.text);
        return;
    }
    host->granted = load->req_count_max > 0 ? load->req_count_max : 1;
    ready.granted = host->granted;
    host_send(host, FRAME_READY, &ready);
}

static void host_on_req(struct host *host, const struct frame_req *req)
{
    const struct coordinator_run run = {.id = req->id,
                                        .job = req->job,
                                        .number = req->number,
                                        .limit_ms = req->limit_ms,
                                        .input = req->input,
                                        .trace = req->trace};

    if (host->coordinator == NULL || host->received == host->granted) {
        host_end(host, 3, ERROR_CLASS_LOST_WORKER, "REQ came without credit");
        return;
    }
    host->received++;
    if (req->route.size > 0) {
        on_error(host, req->id, ERROR_CLASS_BAD_INPUT,
                 "a chain is run by run_remote; it has neither websockets nor other routes");
        return;
    }
    coordinator_run(host->coordinator, &run);
}

static void host_on_cancel(struct host *host, uint64_t id)
{
    if (host->coordinator != NULL && coordinator_cancel(host->coordinator, id))
        on_error(host, id, ERROR_CLASS_CANCELED, "canceled");
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
        host_on_cancel(host, frame->cancel.id);
        return;
    case FRAME_DRAIN:
        host->draining = true;
        if (host->finished == host->received)
            host_end(host, 0, ERROR_CLASS_NONE, "drained");
        return;
    case FRAME_BYE:
    case FRAME_HELLO:
    case FRAME_READY:
    case FRAME_EVT:
    case FRAME_STATS:
        break;
    }
    host_end(host, 3, ERROR_CLASS_LOST_WORKER, "a frame came that only a host sends");
}

static void host_on_watch(void *opaque, unsigned events)
{
    struct host *host = opaque;
    struct frame frame;
    struct err err;
    int r;

    if (events & LOOP_WRITABLE)
        host_flush(host);
    if (host->over || !(events & (LOOP_READABLE | LOOP_GONE)))
        return;
    r = frame_link_receive(host->link, &err);
    while (r > 0 && !host->over) {
        r = frame_link_next(host->link, &frame, &err);
        if (r > 0)
            host_on_frame(host, &frame);
    }
    if (r < 0)
        host_lost(host, &err);
}

static void host_on_turn(void *opaque)
{
    struct host *host = opaque;

    if (!host->blocked && !host->over)
        host_flush(host);
}

/* ---- life ---- */

static int host_open(struct host *host, struct err *err)
{
    const struct frame_hello hello = {.protocol = FRAME_PROTOCOL,
                                      .host = WIRE_TEXT_OF("host-chain"),
                                      .version = WIRE_TEXT_OF(HEADRACE_VERSION),
                                      .pid = (uint64_t)getpid()};
    int r = loop_open(&host->loop, err);

    host->link = frame_link_new(HOST_SOCKET_FD);
    if (r == 0)
        r = loop_watch_new(host->loop, HOST_SOCKET_FD, host_on_watch, host, &host->watch, err);
    if (r < 0)
        return r;
    host->turn = loop_turn_new(host->loop, host_on_turn, host);
    loop_watch_set(host->watch, LOOP_READABLE);
    host_send(host, FRAME_HELLO, &hello);
    return 0;
}

static void host_done(struct host *host)
{
    bool more = true;
    struct err err;

    while (host->exit_code != 1 && more && frame_link_flush(host->link, &more, &err) == 0 && more) {
        struct pollfd ready = {.fd = frame_link_fd(host->link), .events = POLLOUT};

        (void)poll(&ready, 1, -1); /* the last words */
    }
    coordinator_close(&host->coordinator);
    chain_free(&host->chain);
    loop_turn_free(&host->turn);
    loop_watch_free(&host->watch);
    frame_link_free(&host->link);
    if (host->loop != NULL)
        loop_close(&host->loop);
}

static int host_run(struct host *host)
{
    struct err err;

    if (host_open(host, &err) < 0) {
        log_error("host_start_failed", LOG_ERR(&err));
        host->exit_code = 1;
    } else {
        loop_run(host->loop);
    }
    host_done(host);
    return host->exit_code;
}

int host_chain_main(int argc, char **argv)
{
    const struct log_options options = {.program = "host-chain", .level = LOG_LEVEL_INFO};
    const struct rlimit no_core = {0, 0};
    struct host host = {.exit_code = 0};
    enum settings_outcome outcome;
    struct err err;
    int code = 1;

    /* The worker drains us by frames; a Ctrl-C meant for the whole terminal must not reach us. */
    (void)signal(SIGINT, SIG_IGN);
    (void)signal(SIGTERM, SIG_IGN);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)setrlimit(RLIMIT_CORE, &no_core);
    if (log_open(&options, &err) < 0 || write(HOST_SOCKET_FD, "", 0) < 0) {
        log_error("host_start_failed", LOG_STR("error", "only a worker starts host-chain"));
        return 1;
    }
    if (settings_parse(&host_chain_program, argc, argv, &host.settings, NULL, &outcome, &err) < 0) {
        log_error("host_start_failed", LOG_ERR(&err));
        return 1;
    }
    if (outcome == SETTINGS_RUN)
        code = host_run(&host);
    settings_free(&host_chain_program, &host.settings);
    return code;
}
