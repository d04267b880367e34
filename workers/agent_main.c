/* SPDX-License-Identifier: Apache-2.0 */

/*
 * `headrace agent`: starts, watches and stops the workers of this machine, as the deployments in
 * SQL ask for.
 *
 * Happy path: lock our folder; read which workers of ours run already and adopt them; from then on
 * keep what runs equal to what should run.
 *
 * Failures: a worker that ends is told to its owner at once and started again, with back-off.
 * While Postgres is away nothing changes and what runs goes on. A second agent on the same folder
 * is exit code 2. Killed with -9, it leaves its workers running: they work on for orphan_timeout,
 * within which the next agent finds them by their rows, checks that they are what the rows say,
 * and adopts them; after it they drain by themselves.
 *
 * Shutdown: SIGTERM stops all workers (SIGTERM, after drain_timeout and some SIGKILL) and ends when
 * the last one has, with what it had to write written, or soon after drain_timeout.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/http_server.h"
#include "base/log.h"
#include "base/seal.h"
#include "base/settings.h"
#include "schema/message.h"
#include "schema/topics.h"
#include "workers/agent_int.h"

#define AGENT_POLL_MS 1000
#define AGENT_SEEN_SECONDS 5
#define AGENT_END_MS 20
#define AGENT_END_MS_MAX 5000
#define AGENT_STOP_EXTRA_MS 1250 /* a worker hands back, and has told, a second after its drain */
#define AGENT_DRAIN_EXTRA_MS 1500

int agent_main(int argc, char **argv);

static const struct setting agent_rows[] = {
#define SETTINGS_ROWS struct agent_settings
#include "base/settings_rows.def"
#include "workers/agent_settings.def"
#include "base/settings_end.def"
};

static const struct settings_program agent_program = {
    .command = "agent",
    .wire_version = MESSAGE_WIRE_VERSION,
    .purpose = "Runs the workers of this machine: starts, watches and stops them as the "
               "deployments ask for.",
    .rows = agent_rows,
    .row_count = COUNT_OF(agent_rows),
};

/* ---- the loop ---- */

void agent_tick(struct agent *agent)
{
    agent_core_tick(agent->core, loop_now_ms(agent->loop));
}

static void agent_on_tick(void *opaque)
{
    struct agent *agent = opaque;

    agent_tick(agent);
    agent_act(agent);
}

static void agent_on_second(void *opaque)
{
    struct agent *agent = opaque;

    agent_sql_read(agent);
    agent_pages_count(agent);
    if (++agent->seconds % AGENT_SEEN_SECONDS != 0)
        return;
    agent_sql_seen(agent);
    agent_devices_look(agent);
    agent_process_rotate_logs(agent);
}

/* ---- the end ---- */

/* What was to be written and told is out, or it has had its time. */
static void agent_on_end(void *opaque)
{
    struct agent *agent = opaque;
    bool quiet = pg_in_flight(agent->pg) == 0 && agent->gone_unreported == 0 &&
                 agent->fetching == 0;

    if (!quiet && loop_now_ms(agent->loop) < agent->end_by_ms)
        return;
    loop_stop(agent->loop);
}

void agent_end(struct agent *agent, int exit_code)
{
    uint64_t end_by_ms = loop_now_ms(agent->loop) + AGENT_END_MS_MAX;

    agent->exit_code = exit_code;
    if (agent->end_by_ms == 0 || end_by_ms < agent->end_by_ms)
        agent->end_by_ms = end_by_ms;
    loop_timer_stop(agent->second_timer);
    loop_timer_start(agent->end_timer, AGENT_END_MS, AGENT_END_MS);
}

static void agent_on_drain(void *opaque)
{
    struct agent *agent = opaque;

    if (agent->exiting)
        return;
    agent->exiting = true;
    agent->end_by_ms = loop_now_ms(agent->loop) + agent->settings.drain_timeout_ms +
                       AGENT_DRAIN_EXTRA_MS;
    loop_end_within(agent->settings.drain_timeout_ms + LOOP_END_EXTRA_MS, 3);
    log_info("agent_drains");
    agent_tick(agent);
    agent_core_drain(agent->core);
    agent_act(agent);
}

/* ---- start ---- */

/* Makes a folder and those above it. */
static int folder_make(const char *path, struct err *err)
{
    OWNED(mem_free) char *part = xstrdup(path);

    for (char *slash = strchr(part + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(part, 0755) < 0 && errno != EEXIST)
            return err_set_errno(err, ERR_IO, "make folder %s", part);
        *slash = '/';
    }
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        return err_set_errno(err, ERR_IO, "make folder %s", path);
    return 0;
}

static int agent_make_folders(struct agent *agent, struct err *err)
{
    OWNED(mem_free) char *folder = NULL;
    int r = folder_make(agent->settings.agent_dir, err);

    if (r < 0)
        return r;
    folder = realpath(agent->settings.agent_dir, NULL); /* workers may have another folder */
    if (folder == NULL)
        return err_set_errno(err, ERR_IO, "%s", agent->settings.agent_dir);
    agent->cache = xasprintf("%s/models", folder);
    agent->made = xasprintf("%s/made", folder);
    agent->logs = xasprintf("%s/logs", folder);
    agent->lock_path = xasprintf("%s/lock", folder);
    r = folder_make(agent->cache, err);
    if (r == 0)
        r = folder_make(agent->logs, err);
    if (r == 0)
        r = folder_make(agent->made, err);
    return r;
}

static int agent_lock(struct agent *agent, struct err *err)
{
    agent->lock_fd = open(agent->lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (agent->lock_fd < 0)
        return err_set_errno(err, ERR_IO, "open %s", agent->lock_path);
    /* Workers look at it with shared locks for a moment; a lock that we wait for is another's. */
    for (int i = 0; i < 50; i++) {
        if (flock(agent->lock_fd, LOCK_EX | LOCK_NB) == 0)
            return 0;
    }
    return err_set(err, ERR_DEPENDENCY, "another agent has the folder %s",
                   agent->settings.agent_dir);
}

static int agent_open_queue(struct agent *agent, struct err *err)
{
    const struct queue_producer_options options = {
        .queue = {.bootstrap = agent->settings.kafka,
                  .client_id = "agent",
                  .properties = agent->settings.kafka_properties}};
    int r = queue_producer_open(agent->loop, &options, &agent->producer, err);

    if (r == 0)
        agent->outcome = queue_producer_topic(agent->producer, topic_name(TOPIC_OUTCOME));
    return r;
}

/* Once for all workers: it takes as long as a sandbox does. Where the level cannot be had each
 * worker says so, as the reason of its deployment. */
static int agent_find_isolation(struct agent *agent, struct err *err)
{
    int r = confine_level_parse(agent->settings.isolation, &agent->isolation, err);
    struct err why;

    if (r < 0)
        return r;
    agent->isolation_tried = confine_level_find(agent->isolation, &agent->isolation, &why) == 0;
    return 0;
}

static int agent_open(struct agent *agent, struct err *err)
{
    int r = loop_open(&agent->loop, err);

    if (r == 0)
        r = agent_make_folders(agent, err);
    if (r == 0)
        r = agent_lock(agent, err);
    if (r == 0)
        r = agent_find_isolation(agent, err);
    if (r == 0)
        r = loop_on_signals(agent->loop, agent_on_drain, NULL, agent, err);
    if (r == 0 && agent->settings.seal_key_file[0] != '\0')
        r = seal_key_open(agent->settings.seal_key_file, &agent->seal_key, err);
    if (r == 0 && agent->settings.blobs[0] != '\0')
        r = blob_store_open(agent->loop, agent->settings.blobs, &agent->blobs, err);
    if (r == 0)
        r = agent_open_queue(agent, err);
    if (r == 0)
        r = agent_pages_open(agent, err);
    if (r == 0)
        r = agent_sql_open(agent, err);
    if (r < 0)
        return r;
    agent->tick_timer = loop_timer_new(agent->loop, agent_on_tick, agent);
    agent->end_timer = loop_timer_new(agent->loop, agent_on_end, agent);
    agent->second_timer = loop_timer_new(agent->loop, agent_on_second, agent);
    loop_timer_start(agent->second_timer, AGENT_POLL_MS, AGENT_POLL_MS);
    agent_devices_open(agent);
    return 0;
}

static void agent_close(struct agent *agent)
{
    struct agent_process *process;

    while ((process = LIST_FIRST(&agent->processes)) != NULL)
        agent_process_free(&process);
    loop_timer_free(&agent->tick_timer);
    loop_timer_free(&agent->second_timer);
    loop_timer_free(&agent->end_timer);
    agent_devices_close(agent);
    pg_close(&agent->pg);
    agent_pages_close(agent);
    queue_producer_close(&agent->producer);
    blob_store_close(&agent->blobs);
    if (agent->loop != NULL)
        loop_close(&agent->loop);
    agent_core_free(&agent->core);
    seal_key_close(&agent->seal_key);
    if (agent->lock_fd >= 0)
        (void)close(agent->lock_fd);
    free(agent->cache);
    free(agent->made);
    free(agent->logs);
    free(agent->lock_path);
}

static int agent_run(struct agent *agent)
{
    struct log_options log = {.program = "agent"};
    struct agent_options options = agent_options_default;
    struct err err;
    int r;

    r = log_level_parse(agent->settings.log_level, &log.level, &err);
    if (r == 0)
        r = log_open(&log, &err);
    if (r < 0) {
        log_error("settings_refused", LOG_ERR(&err));
        return 1;
    }
    options.restart_ms_min = agent->settings.restart_delay_ms;
    options.stop_ms = agent->settings.drain_timeout_ms + AGENT_STOP_EXTRA_MS;
    options.warm_max = (uint32_t)agent->settings.warm_max;
    options.devices.fault_max = (uint32_t)agent->settings.device_faults;
    options.devices.window_ms = agent->settings.device_window_ms;
    options.devices.quarantine_ms = agent->settings.device_quarantine_ms;
    if (options.devices.quarantine_ms_max < options.devices.quarantine_ms)
        options.devices.quarantine_ms_max = options.devices.quarantine_ms;
    agent->core = agent_core_new(&options);
    if (agent->settings.agent_host[0] != '\0')
        mem_copy_text(agent->host, agent->settings.agent_host);
    else
        (void)gethostname(agent->host, sizeof(agent->host) - 1);
    r = agent_open(agent, &err);
    if (r < 0) {
        log_error("agent_not_started", LOG_ERR(&err));
        agent->exit_code = err.code == ERR_USAGE ? 1 : 2;
    } else {
        log_info("agent_started", LOG_U64("wire", MESSAGE_WIRE_VERSION),
                 LOG_STR("host", agent->host), LOG_STR("folder", agent->settings.agent_dir),
                 LOG_U64("port", http_server_port(agent->server)));
        loop_run(agent->loop);
        log_info("agent_drained");
    }
    agent_close(agent);
    return agent->exit_code;
}

int agent_main(int argc, char **argv)
{
    struct agent agent = {.lock_fd = -1};
    enum settings_outcome outcome;
    struct err err;
    int code = 0;

    if (settings_parse(&agent_program, argc, argv, &agent.settings, NULL, &outcome, &err) < 0) {
        (void)dprintf(STDERR_FILENO, "headrace agent: %s\n", err.text);
        return 1;
    }
    if (outcome == SETTINGS_RUN)
        code = agent_run(&agent);
    settings_free(&agent_program, &agent.settings);
    return code;
}
