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

#include <stdlib.h>

#include "base/log.h"
#include "base/loop.h"
#include "base/settings.h"
#include "chains/coordinator.h"
#include "workers/host_frames.h"

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
    struct host_frames *frames;
    struct chain *chain;
    struct coordinator *coordinator; /* NULL: no LOAD yet */
};

int host_chain_main(int argc, char **argv);

static void on_output(void *opaque, uint64_t id, const char *json, size_t size)
{
    struct host *host = opaque;

    host_frames_output(host->frames, id, json, size);
}

static void on_error(void *opaque, uint64_t id, enum error_class class, const char *text)
{
    struct host *host = opaque;

    host_frames_error(host->frames, id, class, text);
}

static void on_put_off(void *opaque, uint64_t id, uint64_t delay_ms, const char *why)
{
    struct host *host = opaque;

    host_frames_put_off(host->frames, id, delay_ms, why);
}

static int host_on_load(void *opaque, const struct frame_load *load, struct err *err)
{
    static const struct coordinator_calls calls = {
        .on_output = on_output, .on_error = on_error, .on_put_off = on_put_off};
    struct host *host = opaque;
    OWNED(mem_free) char *deployment = wire_text_dup(load->deployment);
    const struct coordinator_options options = {.postgres = host->settings.postgres,
                                                .kafka = host->settings.kafka,
                                                .kafka_properties = host->settings.kafka_properties,
                                                .redis = host->settings.redis,
                                                .blobs = host->settings.blobs,
                                                .deployment = deployment,
                                                .http_allow = host->settings.http_allow,
                                                .secrets = load->secrets};
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

static void host_on_req(void *opaque, const struct frame_req *req)
{
    const struct coordinator_run run = {.id = req->id,
                                        .job = req->job,
                                        .number = req->number,
                                        .limit_ms = req->limit_ms,
                                        .input = req->input,
                                        .trace = req->trace};
    struct host *host = opaque;

    if (req->route.size > 0) {
        on_error(host, req->id, ERROR_CLASS_BAD_INPUT,
                 "a chain is run by run_remote; it has neither websockets nor other routes");
        return;
    }
    coordinator_run(host->coordinator, &run);
}

static bool host_on_cancel(void *opaque, uint64_t id)
{
    struct host *host = opaque;

    return coordinator_cancel(host->coordinator, id);
}

static int host_run(struct host *host)
{
    static const struct host_frames_calls calls = {.host = "host-chain",
                                                   .engine = "chain",
                                                   .on_load = host_on_load,
                                                   .on_req = host_on_req,
                                                   .on_cancel = host_on_cancel};
    struct err err;
    int code, r = loop_open(&host->loop, &err);

    if (r == 0)
        r = host_frames_open(host->loop, &calls, host, &host->frames, &err);
    if (r < 0)
        log_error("host_start_failed", LOG_ERR(&err));
    else
        loop_run(host->loop);
    code = host_frames_close(&host->frames);
    coordinator_close(&host->coordinator);
    chain_free(&host->chain);
    if (host->loop != NULL)
        loop_close(&host->loop);
    return code;
}

int host_chain_main(int argc, char **argv)
{
    struct host host = {0};
    enum settings_outcome outcome;
    struct err err;
    int code = 1;

    if (!host_frames_begin("host-chain"))
        return 1;
    if (settings_parse(&host_chain_program, argc, argv, &host.settings, NULL, &outcome, &err) < 0) {
        log_error("host_start_failed", LOG_ERR(&err));
        return 1;
    }
    if (outcome == SETTINGS_RUN)
        code = host_run(&host);
    settings_free(&host_chain_program, &host.settings);
    return code;
}
