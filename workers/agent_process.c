/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A worker's standard error is a file that it appends to, so that lines are not lost with us; its
 * standard output is a pipe on which it says one JSON object a line: loading, ready, exit.
 *
 * Its environment is ours without what is ours alone: it has no address of Postgres or Redis and
 * no secret. Those that its model may have are in a memfd, its descriptor 3 (agent_secrets.c).
 *
 * A log past its limit is copied to <name>.1 and cut: a writer that appends goes on at the new end.
 * Lines written between the copy and the cut are lost.
 */

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "workers/agent_int.h"
#include "workers/worker_core.h"

#define BINARY "/proc/self/exe"
#define ARGS_MAX 64
#define ENV_MAX 512
#define CMDLINE_SIZE 16384

/* ---- what it says ---- */

/* What it noticed of its device; says nothing of one that has none. */
static void process_on_fault(struct agent_process *process, const char *kind, const char *reason)
{
    struct agent *agent = process->agent;

    for (size_t i = 0; i < DEVICE_FAULT_COUNT; i++) {
        if (i == DEVICE_FAULT_XID || kind == NULL ||
            strcmp(kind, device_fault_name((enum device_fault)i)) != 0)
            continue;
        agent_tick(agent);
        agent_core_on_worker_fault(agent->core, process->worker, (enum device_fault)i,
                                   reason == NULL ? "" : reason);
        agent_act(agent);
    }
}

static void process_on_loaded(struct agent_process *process, uint64_t boot, bool warm)
{
    struct agent *agent = process->agent;

    agent_tick(agent);
    if (warm)
        agent_core_on_warm(agent->core, process->worker, boot);
    else
        agent_core_on_ready(agent->core, process->worker, boot);
    agent_act(agent);
}

static void process_on_line(struct agent_process *process)
{
    json_t *line = json_loads(process->line, 0, NULL);
    const char *event = json_string_value(json_object_get(line, "event"));
    const char *reason = json_string_value(json_object_get(line, "reason"));
    uint64_t boot = (uint64_t)json_integer_value(json_object_get(line, "boot"));

    if (event != NULL && (strcmp(event, "ready") == 0 || strcmp(event, "warm") == 0)) {
        process_on_loaded(process, boot, strcmp(event, "warm") == 0);
    } else if (event != NULL && strcmp(event, "exit") == 0 && reason != NULL) {
        mem_copy_text(process->reason, reason);
    } else if (event != NULL && strcmp(event, "fault") == 0) {
        process_on_fault(process, json_string_value(json_object_get(line, "kind")), reason);
    }
    json_decref(line);
}

static void process_take(struct agent_process *process, const char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] != '\n' && process->line_size < sizeof(process->line) - 1) {
            process->line[process->line_size++] = bytes[i];
            continue;
        }
        process->line[process->line_size] = '\0';
        process->line_size = 0;
        process_on_line(process);
    }
}

/* Reads what is in the pipe; a line that is too long is cut, and what is left of it means
 * nothing. */
static void process_read(struct agent_process *process)
{
    char bytes[1024];
    ssize_t n = 1;

    while (process->pipe_fd >= 0 && n > 0) {
        n = read(process->pipe_fd, bytes, sizeof(bytes));
        if (n > 0)
            process_take(process, bytes, (size_t)n);
        if (n == 0)
            loop_watch_free(&process->watch);
        if (n < 0 && errno == EINTR)
            n = 1;
    }
}

static void process_on_readable(void *opaque, unsigned events)
{
    (void)events;
    process_read(opaque);
}

static void process_on_end(void *opaque, const struct child_end *end)
{
    struct agent_process *process = opaque;
    struct agent *agent = process->agent;
    char worker[AGENT_NAME_SIZE], why[AGENT_REASON_SIZE];
    struct device_view view;
    int exit_code = end->known ? end->exit_code : AGENT_EXIT_UNKNOWN, signal = end->signal;

    process_read(process);
    mem_copy_text(worker, process->worker);
    mem_copy_text(why, process->reason[0] != '\0' ? process->reason : end->text);
    log_info("worker_ended", LOG_STR("worker", worker), LOG_I64("pid", child_pid(process->child)),
             LOG_STR("how", end->text), LOG_STR("reason", process->reason));
    agent_process_free(&process);
    agent_tick(agent);
    agent_core_on_ended(agent->core, worker, exit_code, signal, why);
    agent_act(agent);
    if (devices_view(agent_core_devices(agent->core), 0, &view))
        agent_devices_look(agent); /* somebody may wait for what it had in use */
}

/* ---- command line and environment ---- */

struct command {
    char *args[ARGS_MAX];
    char *env[ENV_MAX];
    size_t arg_count, env_count;
    char *ours[8]; /* in the environment, which others do not see: addresses may hold a password */
    size_t ours_count;
};

static void command_done(struct command *command)
{
    for (size_t i = 0; i < command->arg_count; i++)
        free(command->args[i]);
    for (size_t i = 0; i < command->ours_count; i++)
        free(command->ours[i]);
}

static void command_add(struct command *command, char *arg)
{
    if (command->arg_count < ARGS_MAX - 1)
        command->args[command->arg_count++] = arg;
}

static void command_add_ours(struct command *command, char *variable)
{
    command->ours[command->ours_count++] = variable;
    if (command->env_count < ENV_MAX - 1)
        command->env[command->env_count++] = variable;
}

/* The coordinator of a chain asks the ledger and submits jobs; no other engine may. */
static void command_add_chain(struct command *command, const struct agent_settings *settings)
{
    command_add_ours(command, xasprintf("HEADRACE_POSTGRES=%s", settings->postgres));
    command_add_ours(command, xasprintf("HEADRACE_KAFKA=%s", settings->kafka));
    command_add_ours(command, xasprintf("HEADRACE_BLOBS=%s", settings->blobs));
    command_add_ours(command, xasprintf("HEADRACE_HTTP_ALLOW=%s", settings->http_allow));
}

/* The engine's own settings, without what is ours. */
static char *engine_settings(const struct agent_deployment *deployment)
{
    json_t *config = json_loads(deployment->config, 0, NULL);
    char *text;

    if (json_object_get(config, "resources") == NULL) {
        json_decref(config);
        return xstrdup(deployment->config);
    }
    (void)json_object_del(config, "resources");
    text = json_dumps(config, JSON_COMPACT);
    json_decref(config);
    return text != NULL ? text : xstrdup("{}");
}

/* What it is placed on is all that it sees: there its device is the first, whichever it is here. */
static void command_add_device(const struct agent *agent, const struct agent_todo *todo,
                               struct command *command)
{
    OWNED(mem_free) char *visible = agent_devices_visible(agent, todo);
    const char *device = todo->deployment->device;

    command_add(command, xasprintf("--device=%s", gpu_is_wanted(device) ? "cuda" : device));
    if (visible == NULL)
        return;
    if (visible[0] != '\0')
        command_add(command, xasprintf("--device-name=cuda:%s", visible));
    command_add_ours(command, xasprintf("CUDA_VISIBLE_DEVICES=%s", visible));
}

/* Ours, without what is ours alone. */
static void command_add_environment(const struct agent *agent, const struct agent_todo *todo,
                                    struct command *command)
{
    OWNED(mem_free) char *visible = agent_devices_visible(agent, todo);

    for (char **variable = environ; *variable != NULL; variable++) {
        bool ours = strncmp(*variable, "HEADRACE_", 9) == 0 &&
                    strncmp(*variable, "HEADRACE_FAULT_DIR=", 19) != 0 &&
                    strncmp(*variable, "HEADRACE_ONNXRUNTIME=", 21) != 0 &&
                    strncmp(*variable, "HEADRACE_SIM_JOURNAL=", 21) != 0;

        ours = ours || (visible != NULL && strncmp(*variable, "CUDA_VISIBLE_DEVICES=", 21) == 0);

        if (!ours && strncmp(*variable, "PG", 2) != 0 && command->env_count < ENV_MAX - 1)
            command->env[command->env_count++] = *variable;
    }
}

static void command_make(const struct agent *agent, const struct agent_todo *todo,
                         struct command *command)
{
    const struct agent_deployment *deployment = todo->deployment;
    const struct agent_settings *settings = &agent->settings;
    OWNED(mem_free) char *settings_text = engine_settings(deployment);

    command_add(command, xstrdup("headrace"));
    command_add(command, xstrdup("worker"));
    command_add(command, xasprintf("--worker=%s", todo->worker));
    command_add(command, xasprintf("--machine=%s", agent->host));
    command_add(command, xasprintf("--kafka=%s", settings->kafka));
    command_add(command, xasprintf("--blobs=%s", settings->blobs));
    command_add(command, xasprintf("--engines=%s", settings->engines));
    command_add(command, xasprintf("--cache-dir=%s", agent->made));
    command_add(command, xasprintf("--environment=%s", deployment->environment));
    command_add(command, xasprintf("--gateway=%s", settings->gateway));
    command_add(command, xasprintf("--agent-lock=%s", agent->lock_path));
    command_add(command, xasprintf("--orphan-timeout=%llums",
                                   (unsigned long long)settings->orphan_timeout_ms));
    command_add(command, xasprintf("--drain-timeout=%llums",
                                   (unsigned long long)settings->drain_timeout_ms));
    command_add(command,
                xasprintf("--cancel-grace=%llums", (unsigned long long)settings->cancel_grace_ms));
    command_add(command,
                xasprintf("--load-timeout=%llums", (unsigned long long)settings->load_timeout_ms));
    command_add(command,
                xasprintf("--heartbeat=%llums", (unsigned long long)settings->heartbeat_ms));
    command_add(command,
                xasprintf("--stream-ttl=%llums", (unsigned long long)settings->stream_ttl_ms));
    command_add(command,
                xasprintf("--stream-max=%lluB", (unsigned long long)settings->stream_max_size));
    command_add(command, xasprintf("--isolation=%s", agent->isolation_tried
                                                         ? confine_level_name(agent->isolation)
                                                         : settings->isolation));
    if (agent->isolation_tried)
        command_add(command, xstrdup("--isolation-tried"));
    command_add(command, xasprintf("--isolation-read=%s", settings->isolation_read));
    command_add(command,
                xasprintf("--host-memory=%llu", (unsigned long long)settings->host_memory_size));
    command_add(command, xasprintf("--host-processes=%lld", (long long)settings->host_processes));
    command_add(command, xasprintf("--host-nice=%lld", (long long)settings->host_nice));
    command_add(command, xasprintf("--log-level=%s", settings->log_level));
    command_add(command, xasprintf("--otlp-endpoint=%s", settings->otlp_endpoint));
    command_add(command, xasprintf("--metrics-prefix=%s", settings->metrics_prefix));
    command_add(command, xasprintf("--listen=%s", settings->listen));
    command_add(command, xstrdup("--port=0"));
    command_add(command, xasprintf("--pool=%s", deployment->pool));
    command_add(command, xasprintf("--shard=%u", deployment->shard));
    command_add(command, xasprintf("--deployment=%s", deployment->id));
    command_add(command, xasprintf("--model=%s", deployment->model));
    command_add(command, xasprintf("--model-dir=%s", todo->folder));
    command_add(command, xasprintf("--engine=%s", deployment->engine));
    command_add(command, xasprintf("--engine-settings=%s", settings_text));
    command_add(command, xasprintf("--slots=%u", deployment->slot_count));
    if (todo->warm)
        command_add(command, xstrdup("--standby"));
    command_add_environment(agent, todo, command);
    command_add_device(agent, todo, command);
    command_add_ours(command, xasprintf("HEADRACE_REDIS=%s", settings->redis));
    command_add_ours(command,
                     xasprintf("HEADRACE_KAFKA_PROPERTIES=%s", settings->kafka_properties));
    if (strcmp(deployment->engine, "chain") == 0)
        command_add_chain(command, settings);
}

/* ---- start ---- */

char *agent_process_log_path(const struct agent *agent, const char *worker)
{
    return xasprintf("%s/%s.log", agent->logs, worker);
}

static struct agent_process *process_new(struct agent *agent, const char *worker)
{
    struct agent_process *process = xcalloc(1, sizeof(*process));

    process->agent = agent;
    process->pipe_fd = -1;
    process->log_path = agent_process_log_path(agent, worker);
    mem_copy_text(process->worker, worker);
    LIST_INSERT_HEAD(&agent->processes, process, link);
    return process;
}

static int process_spawn(struct agent_process *process, const struct command *command, int log_fd,
                         int secrets_fd, struct err *err)
{
    struct child_spawn spawn = {.path = BINARY,
                                .argv = command->args,
                                .env = command->env,
                                .stderr_fd = log_fd,
                                .extra_fd = secrets_fd,
                                .new_group = true};
    int fds[2], r;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_set_errno(err, ERR_IO, "make a pipe");
    (void)fcntl(fds[0], F_SETFL, O_NONBLOCK);
    process->pipe_fd = fds[0];
    spawn.stdout_fd = fds[1];
    r = child_start(process->agent->loop, &spawn, process_on_end, process, &process->child, err);
    (void)close(fds[1]);
    if (r < 0)
        return r;
    r = loop_watch_new(process->agent->loop, fds[0], process_on_readable, process, &process->watch,
                       err);
    if (r == 0)
        loop_watch_set(process->watch, LOOP_READABLE);
    else
        child_signal(process->child, SIGKILL);
    return r;
}

int agent_process_start(struct agent *agent, const struct agent_todo *todo, int secrets_fd,
                        struct err *err)
{
    OWNED(agent_process_free) struct agent_process *process = process_new(agent, todo->worker);
    OWNED(command_done) struct command command = {0};
    int log_fd = open(process->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    int r;

    if (log_fd < 0)
        return err_set_errno(err, ERR_IO, "open %s", process->log_path);
    command_make(agent, todo, &command);
    if (secrets_fd >= 0)
        command_add(&command, xstrdup("--secrets=/dev/fd/3"));
    r = process_spawn(process, &command, log_fd, secrets_fd, err);
    (void)close(log_fd);
    if (r < 0)
        return r;
    log_info("worker_started", LOG_STR("worker", todo->worker),
             LOG_STR("deployment", todo->deployment->id), LOG_STR("model", todo->deployment->model),
             LOG_STR("engine", todo->deployment->engine), LOG_I64("pid", child_pid(process->child)),
             LOG_STR("log", process->log_path));
    (void)TAKE(process); /* it is in the list, until its end */
    return 0;
}

struct agent_process *agent_process_find(struct agent *agent, const char *worker)
{
    struct agent_process *process;

    LIST_FOREACH(process, &agent->processes, link)
    {
        if (strcmp(process->worker, worker) == 0)
            return process;
    }
    return NULL;
}

void agent_process_free(struct agent_process **process_p)
{
    struct agent_process *process = TAKE(*process_p);

    if (process == NULL)
        return;
    LIST_REMOVE(process, link);
    loop_watch_free(&process->watch);
    if (process->pipe_fd >= 0)
        (void)close(process->pipe_fd);
    child_free(&process->child);
    free(process->log_path);
    free(process);
}

/* ---- what runs already ---- */

/* True when the process is this worker, and, with `args`, was given all of them. */
static bool process_is(pid_t pid, const char *const *args, size_t arg_count)
{
    OWNED(mem_free) char *path = xasprintf("/proc/%d/cmdline", (int)pid);
    OWNED(mem_free) char *text = xcalloc(1, CMDLINE_SIZE);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? 0 : read(fd, text, CMDLINE_SIZE - 1);
    size_t found = 0;

    if (fd >= 0)
        (void)close(fd);
    for (const char *at = text; size > 0 && at < text + size; at += strlen(at) + 1) {
        for (size_t i = 0; i < arg_count; i++)
            found += strcmp(at, args[i]) == 0;
    }
    return found >= arg_count;
}

/* A worker goes by another name while it waits: what it was told last is known to it alone. */
static bool process_is_warm(pid_t pid)
{
    OWNED(mem_free) char *path = xasprintf("/proc/%d/comm", (int)pid);
    char name[sizeof(WORKER_STANDBY_NAME) + 1] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? 0 : read(fd, name, sizeof(name) - 1);

    if (fd >= 0)
        (void)close(fd);
    return size == sizeof(WORKER_STANDBY_NAME) && name[size - 1] == '\n' &&
           strncmp(name, WORKER_STANDBY_NAME, (size_t)size - 1) == 0;
}

bool agent_process_adopt(struct agent *agent, const char *worker, pid_t pid, bool *ret_warm)
{
    OWNED(mem_free) char *name = xasprintf("--worker=%s", worker);
    OWNED(mem_free) char *kafka = xasprintf("--kafka=%s", agent->settings.kafka);
    OWNED(mem_free) char *blobs = xasprintf("--blobs=%s", agent->settings.blobs);
    OWNED(mem_free) char *lock = xasprintf("--agent-lock=%s", agent->lock_path);
    const char *const args[] = {"worker", name, kafka, blobs, lock};
    struct agent_process *process = process_new(agent, worker);
    struct err err;

    if (child_watch(agent->loop, pid, child_start_ticks(pid), process_on_end, process,
                    &process->child, &err) == 0 &&
        process_is(pid, args, COUNT_OF(args))) {
        *ret_warm = process_is_warm(pid);
        log_info("worker_adopted", LOG_STR("worker", worker), LOG_I64("pid", pid),
                 LOG_BOOL("warm", *ret_warm));
        return true;
    }
    agent_process_free(&process);
    return false;
}

void agent_process_kill_stray(struct agent *agent, const char *worker, pid_t pid)
{
    OWNED(mem_free) char *name = xasprintf("--worker=%s", worker);
    OWNED(mem_free) char *lock = xasprintf("--agent-lock=%s", agent->lock_path);
    const char *const args[] = {"worker", name, lock};
    struct child *child = NULL;
    struct err err;

    if (child_watch(agent->loop, pid, child_start_ticks(pid), NULL, NULL, &child, &err) == 0 &&
        process_is(pid, args, COUNT_OF(args))) {
        log_warn("worker_killed", LOG_STR("worker", worker), LOG_I64("pid", pid),
                 LOG_STR("error", "it was started by an agent before, for other addresses"));
        child_signal(child, SIGKILL);
    }
    child_free(&child);
}

/* ---- logs ---- */

static void log_rotate(const char *path, uint64_t size_max)
{
    OWNED(mem_free) char *older = xasprintf("%s.1", path);
    struct stat about;
    int from, to;

    if (stat(path, &about) < 0 || (uint64_t)about.st_size <= size_max)
        return;
    from = open(path, O_RDWR | O_CLOEXEC);
    to = open(older, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    while (from >= 0 && to >= 0 && sendfile(to, from, NULL, (size_t)about.st_size) > 0)
        ;
    if (from >= 0 && ftruncate(from, 0) < 0)
        log_warn("log_not_cut", LOG_STR("path", path));
    if (from >= 0)
        (void)close(from);
    if (to >= 0)
        (void)close(to);
}

void agent_process_rotate_logs(struct agent *agent)
{
    struct agent_process *process;

    LIST_FOREACH(process, &agent->processes, link)
    log_rotate(process->log_path, agent->settings.log_size_size);
}
