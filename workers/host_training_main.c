/* SPDX-License-Identifier: Apache-2.0 */

/*
 * `headrace host-training`: the engine host of a trainer. Its worker keeps the lease of each
 * training job that it holds; this process runs the nodes that are placed here (workers/trainer.h).
 * Started by a worker, never by a person; its socket is descriptor 3 (workers/frame.h).
 *
 * Failures: it dies with its worker, and what runs with it: the next trainer goes on.
 * Shutdown: DRAIN asks all nodes to end, sends what they saved, then BYE.
 */

#include <stdlib.h>

#include "base/log.h"
#include "base/loop.h"
#include "base/settings.h"
#include "workers/host_frames.h"
#include "workers/trainer.h"

struct host {
    struct trainer_settings settings;
    struct loop *loop;
    struct host_frames *frames;
    struct trainer *trainer; /* NULL: no LOAD yet */
};

int host_training_main(int argc, char **argv);

static int host_on_load(void *opaque, const struct frame_load *load, struct err *err)
{
    struct host *host = opaque;

    (void)load;
    return trainer_open(host->loop, &host->settings, host->frames, &host->trainer, err);
}

static void host_on_req(void *opaque, const struct frame_req *req)
{
    struct host *host = opaque;

    trainer_hold(host->trainer, req->id, &req->job, req->input);
}

static bool host_on_cancel(void *opaque, uint64_t id)
{
    struct host *host = opaque;

    return trainer_let_go(host->trainer, id);
}

static bool host_on_drain(void *opaque)
{
    struct host *host = opaque;

    if (host->trainer == NULL)
        return false;
    trainer_drain(host->trainer);
    return true;
}

static int host_run(struct host *host)
{
    static const struct host_frames_calls calls = {.host = "host-training",
                                                   .engine = "training",
                                                   .on_load = host_on_load,
                                                   .on_req = host_on_req,
                                                   .on_cancel = host_on_cancel,
                                                   .on_drain = host_on_drain};
    struct err err;
    int code, r = loop_open(&host->loop, &err);

    if (r == 0)
        r = host_frames_open(host->loop, &calls, host, &host->frames, &err);
    if (r < 0)
        log_error("host_start_failed", LOG_ERR(&err));
    else
        loop_run(host->loop);
    trainer_close(&host->trainer);
    code = host_frames_close(&host->frames);
    if (host->loop != NULL)
        loop_close(&host->loop);
    return code;
}

int host_training_main(int argc, char **argv)
{
    struct host host = {0};
    enum settings_outcome outcome;
    struct err err;
    int code = 1;

    if (!host_frames_begin("host-training"))
        return 1;
    if (settings_parse(&trainer_program, argc, argv, &host.settings, NULL, &outcome, &err) < 0 ||
        (outcome == SETTINGS_RUN && trainer_settings_check(&host.settings, &err) < 0)) {
        log_error("host_start_failed", LOG_ERR(&err));
        return 1;
    }
    if (outcome == SETTINGS_RUN)
        code = host_run(&host);
    settings_free(&trainer_program, &host.settings);
    return code;
}
