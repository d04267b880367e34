/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The process of a node: under `headrace confine`, which ends all of it when its first process
 * ends, when we ask, and when we die.
 *
 *   start ─▶ … ─▶ SIGTERM (stop, preemption, drain, time limit) ─▶ grace ─▶ all of it is killed
 *              └▶ over its memory or disk: killed at once
 *
 * What an end means: what we ended it for, if we did; else memory (the cgroup says so), a signal,
 * or the exit code of the commands. A shell says 128 + n of a command that signal n has ended.
 */

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "workers/engine_host.h"
#include "workers/trainer_int.h"

#define WATCH_MS 1000
#define OUR_BINARY "/proc/self/exe"
#define ARGS_MAX 20
#define SHELL_SIGNAL 128
#define NOT_FOUND 127

static bool is_keeper(pid_t pid)
{
    char path[64], text[256] = "";
    ssize_t size;
    int fd;

    (void)snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    size = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    if (fd >= 0)
        (void)close(fd);
    return size > 0 && memmem(text, (size_t)size, "confine\0--inner", 15) != NULL;
}

/* In a sandbox the keeper, which passes SIGTERM on, is behind bubblewrap, which would not. */
static void term_in_sandbox(struct node *node)
{
    size_t count = 0;
    OWNED(mem_free) pid_t *pids = confine_below(child_pid(node->child), &count);

    for (size_t i = 0; i < count; i++) {
        if (!is_keeper(pids[i]))
            continue;
        (void)kill(pids[i], SIGTERM);
        return; /* the topmost: processes are in the order of their age */
    }
}

static void node_on_grace(void *opaque)
{
    node_kill(opaque);
}

void node_terminate(struct node *node)
{
    if (node->child == NULL || node->told_term)
        return;
    node->told_term = true;
    if (node->image != NULL)
        node_container_terminate(node);
    else if (node->trainer->isolation == CONFINE_STRICT)
        term_in_sandbox(node);
    else
        child_signal(node->child, SIGTERM);
    loop_timer_start(node->grace_timer, node->grace_ms, 0);
}

void node_kill(struct node *node)
{
    if (node->child == NULL)
        return;
    node->fast = true;
    confine_end(node->child);
}

static void node_cut(struct node *node, const char *cause, const char *why)
{
    if (node->stop_cause[0] != '\0')
        return;
    mem_copy_text(node->stop_cause, cause);
    mem_copy_text(node->why, why);
    log_info("node_cut", LOG_STR("job", node->job_text), LOG_STR("cause", cause),
             LOG_STR("why", why));
}

/* ---- limits ---- */

static void node_on_limit(void *opaque)
{
    struct node *node = opaque;

    node_cut(node, "time_limit", "its time limit is over");
    node_terminate(node);
}

struct measure {
    uv_work_t work; /* first, so that libuv's pointer is ours */
    struct node *node;
    struct trainer_disk disk;
    char *folder;
    uint64_t limit;
};

static void measure_free(struct measure **measure_p)
{
    struct measure *measure = TAKE(*measure_p);

    free(measure->folder);
    free(measure);
}

/* Else memory is the cgroup's business. */
static bool node_counts_memory(const struct node *node)
{
    return node->image == NULL && (!node->group_memory || node->trainer->isolation == CONFINE_OFF);
}

/* thread: libuv's pool   locks: none; the measure is this thread's until its done call */
static void measure_work(uv_work_t *work)
{
    struct measure *measure = (struct measure *)work;

    trainer_disk_look(&measure->disk, measure->folder, measure->limit, clock_mono_us());
}

static void on_measured(uv_work_t *work, int status)
{
    struct measure *measure = (struct measure *)work;
    struct node *node = measure->node;
    struct trainer_disk disk = measure->disk;
    char why[TRAINER_WHY_SIZE];
    uint64_t filled;

    (void)status;
    measure_free(&measure);
    node->measuring = false;
    if (node_unbusy(node) || node->phase != NODE_RUNNING)
        return;
    node->disk = disk;
    filled = disk.size + node->container_size;
    if (disk.walked)
        node_metric_add(node, "disk_bytes", (double)filled, -1);
    if (filled > node->disk_size) {
        (void)snprintf(why, sizeof(why), "it has filled %llu bytes of disk and may fill %llu",
                       (unsigned long long)filled, (unsigned long long)node->disk_size);
        node_cut(node, "disk_quota", why);
        node_kill(node);
    }
}

static void node_on_watch(void *opaque)
{
    struct node *node = opaque;
    struct measure *measure;

    if (node->phase != NODE_RUNNING)
        return;
    node_metric_sample(node);
    node_log_along(node);
    if (node_counts_memory(node) && node->memory_size > 0 &&
        node->memory_used > node->memory_size) {
        node_cut(node, "out_of_memory", "it has taken more memory than it asked for");
        node_kill(node);
        return;
    }
    if (node->image != NULL)
        node_container_watch(node);
    if (node->measuring)
        return;
    measure = xcalloc(1, sizeof(*measure));
    measure->node = node;
    measure->disk = node->disk;
    measure->folder = xstrdup(node->dir);
    measure->limit = node->disk_size > node->container_size ? node->disk_size - node->container_size
                                                            : 0;
    node->measuring = true;
    node->busy++;
    if (uv_queue_work(loop_uv(node->trainer->loop), &measure->work, measure_work, on_measured) == 0)
        return;
    node->measuring = false;
    measure_free(&measure);
    (void)node_unbusy(node);
}

/* ---- its end ---- */

static void node_judge(struct node *node, const struct child_end *end, bool was_short)
{
    int code = end->exit_code, signal = end->signal;
    char last[TRAINER_WHY_SIZE], why[TRAINER_WHY_SIZE];

    if (signal == 0 && code > SHELL_SIGNAL && code < SHELL_SIGNAL + 65) {
        signal = code - SHELL_SIGNAL;
        code = -1;
    } else if (signal != 0) {
        code = -1;
    }
    if (node->fast && signal == CONFINE_END_SIGNAL)
        signal = SIGKILL; /* what it was told ended the sandbox, which killed all in it */
    node_log_last(node, last, sizeof(last));
    mem_copy_text(why, node->why);
    if (node->stop_cause[0] != '\0')
        node_end(node, node->stop_cause, code, signal, why);
    else if (was_short)
        node_end(node, "out_of_memory", code, signal, "it has taken more memory than it asked for");
    else if (node_container_never_ran(node))
        node_end(node, "image", code, signal, last);
    else if (signal != 0)
        node_end(node, "signal", code, signal, last);
    else if (code == NOT_FOUND)
        node_end(node, "command_not_found", code, 0, last);
    else if (code == CONFINE_EXIT)
        node_end(node, "lost", code, 0, "its confinement cannot be had on this machine");
    else
        node_end(node, "exit", code, 0, code == 0 ? "" : last);
}

static void node_on_child_end(void *opaque, const struct child_end *end)
{
    struct node *node = opaque;
    bool was_short = node->image != NULL ? node_container_was_short(node)
                                         : confine_group_end(node->group);

    child_free(&node->child);
    if (node->phase == NODE_GONE) {
        node->busy++;
        (void)node_unbusy(node);
        return;
    }
    if (end->signal != 0 || end->exit_code > SHELL_SIGNAL)
        node->fast = node->fast || !node->told_term;
    node_log_finish(node);
    node_metric_flush(node);
    node_judge(node, end, was_short);
}

/* ---- its start ---- */

static size_t words(const struct node *node, const char *script, char **to)
{
    const struct trainer *trainer = node->trainer;
    const char *cache = trainer->cache_dir;
    size_t at = 0;

    to[at++] = xstrdup("headrace");
    to[at++] = xstrdup("confine");
    to[at++] = xasprintf("--level=%s", confine_level_name(trainer->isolation));
    to[at++] = xstrdup("--network=host");
    to[at++] = xasprintf("--read=%s", trainer->settings->isolation_read);
    to[at++] = xasprintf("--write=%s:%s/projects/%s:%s/teams/%s", node->dir, cache, node->project,
                         cache, node->tenant);
    to[at++] = xasprintf("--group=%s", node->group);
    to[at++] = xasprintf("--memory=%llu",
                         node->group_memory ? (unsigned long long)node->memory_size : 0);
    to[at++] = xasprintf("--processes=%lld", (long long)trainer->settings->host_processes);
    to[at++] = xstrdup("--filter=false");
    to[at++] = xstrdup("--");
    to[at++] = xstrdup("/bin/sh");
    to[at++] = xstrdup(script);
    return at;
}

static int node_spawn(struct node *node, int out_fd, struct err *err)
{
    OWNED(mem_free) char *script = NULL;
    OWNED(container_words_done) struct container_words container = {0};
    char *argv[ARGS_MAX] = {NULL};
    struct child_spawn spawn = {.path = OUR_BINARY,
                                .argv = argv,
                                .stdout_fd = out_fd,
                                .stderr_fd = out_fd,
                                .extra_fd = -1,
                                .new_group = true};
    size_t count = 0;
    int r = node_script(node, &script, err);

    if (r == 0 && node->image != NULL)
        r = node_container_words(node, &container, err);
    if (r < 0)
        return r;
    (void)snprintf(node->group, sizeof(node->group), "train-%s-%u-%d",
                   node->trainer->settings->trainer, node->slot, (int)getpid());
    node->group_memory = node->image == NULL && confine_group_has_memory();
    if (node->image != NULL)
        spawn.argv = container.words;
    else
        count = words(node, script, argv);
    r = child_start(node->trainer->loop, &spawn, node_on_child_end, node, &node->child, err);
    for (size_t i = 0; i < count; i++)
        free(argv[i]);
    return r;
}

static int node_start(struct node *node, struct err *err)
{
    int fds[2], r;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_set_errno(err, ERR_IO, "make a pipe");
    r = node_log_open(node, fds[0], err); /* takes the reading end */
    if (r == 0)
        node_container_say(node);
    if (r == 0)
        r = node_spawn(node, fds[1], err);
    (void)close(fds[1]);
    if (r == 0 && node->checkpoints)
        r = node_sync_open(node, err);
    return r;
}

void node_run_open(struct node *node)
{
    struct loop *loop = node->trainer->loop;

    node->watch_timer = loop_timer_new(loop, node_on_watch, node);
    node->grace_timer = loop_timer_new(loop, node_on_grace, node);
    node->limit_timer = loop_timer_new(loop, node_on_limit, node);
}

void node_run(struct node *node)
{
    struct err err;

    node->phase = NODE_RUNNING;
    if (node_start(node, &err) < 0) {
        if (node->child != NULL)
            node_kill(node);
        node_end(node, err_class(err.code) == ERR_CLASS_REJECT ? "secret" : "lost", -1, 0,
                 err.text);
        return;
    }
    log_info("node_runs", LOG_STR("job", node->job_text), LOG_U64("placement", node->placement),
             LOG_U64("rank", node->rank), LOG_I64("pid", child_pid(node->child)),
             LOG_U64("retry", node->retry_count));
    loop_timer_start(node->watch_timer, WATCH_MS, WATCH_MS);
    if (node->limit_ms > 0)
        loop_timer_start(node->limit_timer,
                         node->ran_ms < node->limit_ms ? node->limit_ms - node->ran_ms : 1, 0);
    if (node->stop_cause[0] != '\0')
        node_terminate(node);
}
