/* SPDX-License-Identifier: Apache-2.0 */

/*
 * `headrace worker`: runs jobs of one pool on one engine host. Started by an agent, or by hand.
 *
 * Happy path: the host loads the model while Kafka is asked for the dispatch partition; both done:
 * Hello, a ready line on standard output, and work until SIGTERM.
 *
 * Failures: a model that cannot be loaded ends it with 2, a device fault or a lost dispatch
 * partition with 3; anything else it lives with. It talks to Kafka and the blob store only: it has
 * no connection to Postgres. Redis it tells the pieces of answers that somebody follows.
 *
 * Standby (--standby): it loads and connects, says so, and says no Hello, so that nobody knows of
 * it, before a SIGHUP. Nothing else is left to be done then.
 *
 * Shutdown: SIGTERM grants nothing more, hands back what waits, lets what runs finish for
 * drain_timeout, says Bye. A second SIGTERM hands back at once. Without its agent it works on for
 * orphan_timeout, so that an agent may be restarted under it, then drains the same way.
 */

#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/settings.h"
#include "schema/model_plan.h"
#include "workers/engine_host.h"
#include "workers/worker_int.h"

#define LOCK_CHECK_MS 1000
#define BOOT_MASK 0x3fffffffffffffffu /* fits a bigint and every JSON reader's integer */

int worker_main(int argc, char **argv);

static const struct setting worker_rows[] = {
#define SETTINGS_ROWS struct worker_settings
#include "base/settings_rows.def"
#include "workers/worker_settings.def"
#include "base/settings_end.def"
};

static const struct settings_program worker_program = {
    .command = "worker",
    .wire_version = MESSAGE_WIRE_VERSION,
    .purpose = "Runs the jobs of one pool on one engine. An agent starts workers as deployments "
               "ask for them.",
    .rows = worker_rows,
    .row_count = COUNT_OF(worker_rows),
};

/* ---- what the other files call ---- */

void worker_tick(struct worker *worker)
{
    worker_core_tick(worker->core, clock_mono_us(), clock_wall_us());
}

static void worker_on_spans_flushed(void *opaque)
{
    struct worker *worker = opaque;

    loop_stop(worker->loop);
}

void worker_leave(struct worker *worker, int exit_code)
{
    if (worker->exiting)
        return;
    worker->exiting = true;
    worker->exit_code = exit_code;
    worker_trace_flush(worker, worker_on_spans_flushed);
}

void worker_say(struct worker *worker, json_t *line)
{
    char *text = json_dumps(line, JSON_COMPACT);

    (void)worker;
    if (text != NULL && dprintf(STDOUT_FILENO, "%s\n", text) < 0)
        log_debug("nobody_listens");
    free(text);
    json_decref(line);
}

/* ---- the loop ---- */

static void worker_on_turn(void *opaque)
{
    struct worker *worker = opaque;
    uint64_t due_us, now_us;

    worker_tick(worker);
    worker_act(worker);
    worker_stream_flush(worker);
    due_us = worker_core_due_us(worker->core);
    if (due_us == worker->armed_us)
        return;
    worker->armed_us = due_us;
    now_us = clock_mono_us();
    if (due_us == UINT64_MAX)
        loop_timer_stop(worker->tick_timer);
    else
        loop_timer_start(worker->tick_timer, due_us <= now_us ? 0 : (due_us - now_us + 999) / 1000,
                         0);
}

static void worker_on_timer(void *opaque)
{
    struct worker *worker = opaque;

    worker->armed_us = 0; /* the turn that follows ticks, acts and arms again */
}

static void worker_on_serve(void *opaque)
{
    (void)prctl(PR_SET_NAME, "headrace");
    worker_queue_serve(opaque);
}

static void worker_on_drain(void *opaque)
{
    struct worker *worker = opaque;

    log_info("worker_drains");
    loop_end_within(worker->settings.drain_timeout_ms + LOOP_END_EXTRA_MS, 3);
    worker_tick(worker);
    worker_core_drain(worker->core);
    worker_act(worker);
}

/* The agent holds this lock as long as it lives; the kernel lets go of it for a dead one. */
static void worker_on_lock(void *opaque)
{
    struct worker *worker = opaque;
    uint64_t now_us = clock_mono_us();

    if (flock(worker->lock_fd, LOCK_SH | LOCK_NB) < 0) {
        worker->alone_since_us = 0;
        return;
    }
    (void)flock(worker->lock_fd, LOCK_UN);
    if (worker->alone_since_us == 0)
        worker->alone_since_us = now_us;
    if (worker->leaving ||
        now_us - worker->alone_since_us < worker->settings.orphan_timeout_ms * 1000)
        return;
    worker->leaving = true;
    log_warn("worker_orphaned", LOG_U64("after_ms", worker->settings.orphan_timeout_ms));
    worker_on_drain(worker);
}

/* ---- start and end ---- */

static int worker_check_settings(const struct worker_settings *settings, struct err *err)
{
    size_t size = strlen(settings->worker);

    if (size == 0 || size > 64 ||
        strspn(settings->worker, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                 "0123456789._-") != size)
        return err_set(err, ERR_USAGE,
                       "--worker is '%.80s', it must be 1 to 64 of "
                       "a-z A-Z 0-9 . _ -",
                       settings->worker);
    if (settings->pool[0] == '\0')
        return err_set(err, ERR_USAGE, "--pool is missing");
    return 0;
}

/* Hosts that are ours, hold jobs that others go on with, and talk to the stores themselves. */
static bool is_ours(const struct worker *worker)
{
    enum engine_host_kind kind = engine_host_kind(worker->settings.engine);

    return kind == ENGINE_HOST_CHAIN || kind == ENGINE_HOST_TRAINING;
}

static void worker_make_core(struct worker *worker)
{
    struct worker_options options = worker_options_default;

    if (worker->settings.machine[0] != '\0')
        mem_copy_text(worker->machine, worker->settings.machine);
    else
        (void)gethostname(worker->machine, sizeof(worker->machine) - 1);
    rng_secret_bytes(&options.boot, sizeof(options.boot));
    options.boot = (options.boot & BOOT_MASK) | 1;
    options.pid = (uint64_t)getpid();
    options.worker = worker->settings.worker;
    options.pool = worker->settings.pool;
    options.machine = worker->machine;
    options.device = worker->settings.device_name[0] != '\0' ? worker->settings.device_name
                                                             : worker->settings.device;
    options.shard = (uint32_t)worker->settings.shard;
    options.slot_count = (uint32_t)worker->settings.slots;
    if (model_engine_batches(worker->settings.engine))
        options.hold_us = worker->settings.hold_ms * 1000;
    options.heartbeat_us = worker->settings.heartbeat_ms * 1000;
    options.cancel_grace_us = worker->settings.cancel_grace_ms * 1000;
    options.drain_us = worker->settings.drain_timeout_ms * 1000;
    options.load_us = worker->settings.load_timeout_ms * 1000;
    options.resumes = is_ours(worker);
    worker->options = options;
    worker->core = worker_core_new(&worker->options, clock_mono_us());
}

/* Store and cache have their keys by now; they are no business of the engine, which may be a user's
 * code. */
static void keys_forget(const struct worker *worker)
{
    static const char *const names[] = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
                                        "AWS_SESSION_TOKEN", "HEADRACE_REDIS",
                                        "HEADRACE_KAFKA_PROPERTIES"};

    if (is_ours(worker))
        return;
    for (size_t i = 0; i < COUNT_OF(names); i++)
        (void)unsetenv(names[i]);
}

static int worker_watch_agent(struct worker *worker, struct err *err)
{
    worker->lock_fd = -1;
    if (worker->settings.agent_lock[0] == '\0')
        return 0;
    worker->lock_fd = open(worker->settings.agent_lock, O_RDONLY | O_CLOEXEC);
    if (worker->lock_fd < 0)
        return err_set_errno(err, ERR_USAGE, "--agent-lock %s", worker->settings.agent_lock);
    worker->lock_timer = loop_timer_new(worker->loop, worker_on_lock, worker);
    loop_timer_start(worker->lock_timer, LOCK_CHECK_MS, LOCK_CHECK_MS);
    return 0;
}

/* Where user code runs, what confines it on this machine. */
static int worker_find_isolation(struct worker *worker, struct err *err)
{
    enum engine_host_kind kind = engine_host_kind(worker->settings.engine);
    char text[CONFINE_TEXT_SIZE];
    int r = confine_level_parse(worker->settings.isolation, &worker->isolation, err);

    if (r < 0 || kind == ENGINE_HOST_C || is_ours(worker))
        return r;
    if (!worker->settings.isolation_tried || worker->isolation == CONFINE_AUTO)
        r = confine_level_find(worker->isolation, &worker->isolation, err);
    if (r < 0)
        return r;
    confine_describe(worker->isolation,
                     engine_host_network(kind, worker->isolation, worker->settings.engine_settings),
                     text, sizeof(text));
    log_info("isolation", LOG_STR("in_force", text));
    return 0;
}

static int worker_open(struct worker *worker, struct err *err)
{
    int r = loop_open(&worker->loop, err);

    if (r == 0)
        r = loop_on_signals(worker->loop, worker_on_drain, worker->standby ? worker_on_serve : NULL,
                            worker, err);
    if (r == 0)
        r = worker_secrets_open(worker, err);
    if (r == 0)
        r = worker_watch_agent(worker, err);
    if (r == 0 && worker->settings.blobs[0] != '\0')
        r = blob_store_open(worker->loop, worker->settings.blobs, &worker->blobs, err);
    if (r == 0)
        r = worker_stream_open(worker, err);
    keys_forget(worker);
    if (r == 0)
        r = worker_trace_open(worker, err);
    if (r == 0)
        r = worker_queue_open(worker, err);
    if (r == 0)
        r = worker_pages_open(worker, err);
    if (r == 0)
        r = worker_find_isolation(worker, err);
    if (r < 0)
        return r;
    worker->host = worker_host_open(worker);
    worker->tick_timer = loop_timer_new(worker->loop, worker_on_timer, worker);
    worker->turn = loop_turn_new(worker->loop, worker_on_turn, worker);
    loop_timer_start(worker->tick_timer, 0, 0);
    return 0;
}

static void worker_close(struct worker *worker)
{
    loop_turn_free(&worker->turn);
    loop_timer_free(&worker->tick_timer);
    loop_timer_free(&worker->lock_timer);
    worker_host_free(&worker->host);
    worker_secrets_close(worker);
    worker_stream_close(worker);
    worker_trace_close(worker);
    if (worker->loop != NULL)
        worker_pages_close(worker);
    if (worker->loop != NULL)
        worker_queue_close(worker);
    blob_store_close(&worker->blobs);
    worker_inputs_free(worker);
    worker_core_free(&worker->core);
    if (worker->lock_fd >= 0)
        (void)close(worker->lock_fd);
    if (worker->loop != NULL)
        loop_close(&worker->loop);
}

static int worker_run(struct worker *worker)
{
    struct log_options log = {.program = "worker"};
    struct err err;
    int r;

    r = log_level_parse(worker->settings.log_level, &log.level, &err);
    if (r == 0)
        r = log_open(&log, &err);
    if (r == 0)
        r = worker_check_settings(&worker->settings, &err);
    if (r < 0) {
        log_error("settings_refused", LOG_ERR(&err));
        return 1;
    }
    worker_make_core(worker);
    worker->standby = worker->settings.standby;
    if (worker->standby)
        (void)prctl(PR_SET_NAME, WORKER_STANDBY_NAME);
    r = worker_open(worker, &err);
    if (r < 0) {
        log_error("worker_not_started", LOG_ERR(&err));
        worker->exit_code = err.code == ERR_USAGE ? 1 : 2;
    } else {
        log_info("worker_started", LOG_U64("wire", MESSAGE_WIRE_VERSION),
                 LOG_STR("worker", worker->options.worker), LOG_U64("boot", worker->options.boot),
                 LOG_STR("deployment", worker->settings.deployment),
                 LOG_STR("pool", worker->options.pool), LOG_U64("shard", worker->options.shard),
                 LOG_STR("engine", worker->settings.engine),
                 LOG_U64("slots", worker->options.slot_count),
                 LOG_U64("port", worker_pages_port(worker)));
        loop_run(worker->loop);
    }
    worker_close(worker);
    return worker->exit_code;
}

int worker_main(int argc, char **argv)
{
    struct worker worker = {.lock_fd = -1};
    enum settings_outcome outcome;
    struct err err;
    int code = 0;

    if (settings_parse(&worker_program, argc, argv, &worker.settings, NULL, &outcome, &err) < 0) {
        (void)dprintf(STDERR_FILENO, "headrace worker: %s\n", err.text);
        return 1;
    }
    if (outcome == SETTINGS_RUN)
        code = worker_run(&worker);
    settings_free(&worker_program, &worker.settings);
    return code;
}
