/* SPDX-License-Identifier: Apache-2.0 */

/*
 * posix_spawn(3) rather than fork(2): it does not copy our page tables, and reports a failed exec.
 * The pidfd becomes readable when the process has ended, whoever its parent is.
 */

#include "workers/child.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/loop.h"

#define CHILD_EXTRA_FD 3
#define STAT_SIZE 1024
#define STAT_START_FIELD 20 /* of /proc/<pid>/stat, counted behind the command's name */

struct child {
    struct loop *loop;
    struct loop_watch *watch;
    pid_t pid;
    int pidfd;
    bool ours, ended;
    child_end_call *on_end;
    void *opaque;
};

static void child_describe(const siginfo_t *info, struct child_end *end)
{
    end->known = true;
    if (info->si_code == CLD_EXITED) {
        end->exit_code = info->si_status;
        (void)snprintf(end->text, sizeof(end->text), "exited with code %d", info->si_status);
        return;
    }
    end->signal = info->si_status;
    (void)snprintf(end->text, sizeof(end->text), "was killed by signal %d (%s)", info->si_status,
                   strsignal(info->si_status));
}

static void child_on_ready(void *opaque, unsigned events)
{
    struct child *child = opaque;
    struct child_end end = {.text = "has ended"};
    siginfo_t info = {0};

    (void)events;
    if (child->ours) {
        if (waitid(P_PIDFD, (id_t)child->pidfd, &info, WEXITED | WNOHANG) < 0 || info.si_pid == 0)
            return;
        child_describe(&info, &end);
    }
    loop_watch_free(&child->watch);
    child->ended = true;
    child->on_end(child->opaque, &end);
}

static int child_attach(struct child *child, struct err *err)
{
    int r;

    child->pidfd = (int)syscall(SYS_pidfd_open, child->pid, 0);
    if (child->pidfd < 0)
        return err_set_errno(err, errno == ESRCH ? ERR_NOT_FOUND : ERR_IO, "open process %d",
                             (int)child->pid);
    r = loop_watch_new(child->loop, child->pidfd, child_on_ready, child, &child->watch, err);
    if (r == 0)
        loop_watch_set(child->watch, LOOP_READABLE);
    return r;
}

static void spawn_files(posix_spawn_file_actions_t *files, const struct child_spawn *spawn)
{
    (void)posix_spawn_file_actions_init(files);
    (void)posix_spawn_file_actions_addopen(files, 0, "/dev/null", O_RDONLY, 0);
    if (spawn->stdout_fd >= 0)
        (void)posix_spawn_file_actions_adddup2(files, spawn->stdout_fd, 1);
    if (spawn->stderr_fd >= 0)
        (void)posix_spawn_file_actions_adddup2(files, spawn->stderr_fd, 2);
    if (spawn->extra_fd >= 0)
        (void)posix_spawn_file_actions_adddup2(files, spawn->extra_fd, CHILD_EXTRA_FD);
    (void)posix_spawn_file_actions_addclosefrom_np(files, spawn->extra_fd >= 0 ? CHILD_EXTRA_FD + 1
                                                                               : CHILD_EXTRA_FD);
}

static void spawn_attributes(posix_spawnattr_t *attributes, bool new_group)
{
    short flags = POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK;
    sigset_t none, all;

    (void)sigemptyset(&none);
    (void)sigfillset(&all);
    (void)posix_spawnattr_init(attributes);
    (void)posix_spawnattr_setsigmask(attributes, &none);
    (void)posix_spawnattr_setsigdefault(attributes, &all);
    if (new_group)
        flags |= POSIX_SPAWN_SETPGROUP;
    (void)posix_spawnattr_setflags(attributes, flags);
}

int child_start(struct loop *loop, const struct child_spawn *spawn, child_end_call *on_end,
                void *opaque, struct child **ret_child, struct err *err)
{
    OWNED(child_free) struct child *child = xcalloc(1, sizeof(*child));
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    int r;

    *child = (struct child){
        .loop = loop, .pidfd = -1, .ours = true, .on_end = on_end, .opaque = opaque};
    spawn_files(&files, spawn);
    spawn_attributes(&attributes, spawn->new_group);
    r = posix_spawn(&child->pid, spawn->path, &files, &attributes, spawn->argv,
                    spawn->env == NULL ? environ : spawn->env);
    (void)posix_spawn_file_actions_destroy(&files);
    (void)posix_spawnattr_destroy(&attributes);
    if (r != 0)
        return err_set(err, ERR_DEPENDENCY, "start %s: %s", spawn->path, strerror(r));
    r = child_attach(child, err);
    if (r < 0) {
        (void)kill(child->pid, SIGKILL);
        return r;
    }
    *ret_child = TAKE(child);
    return 0;
}

int child_watch(struct loop *loop, pid_t pid, uint64_t start_ticks, child_end_call *on_end,
                void *opaque, struct child **ret_child, struct err *err)
{
    OWNED(child_free) struct child *child = xcalloc(1, sizeof(*child));
    int r;

    *child = (struct child){
        .loop = loop, .pid = pid, .pidfd = -1, .on_end = on_end, .opaque = opaque};
    r = child_attach(child, err);
    if (r < 0)
        return r;
    /* Asked for once the pidfd holds on to it: now the pid cannot change its meaning. */
    if (child_start_ticks(pid) != start_ticks)
        return err_set(err, ERR_NOT_FOUND, "process %d is another one by now", (int)pid);
    *ret_child = TAKE(child);
    return 0;
}

void child_free(struct child **child_p)
{
    struct child *child = TAKE(*child_p);

    if (child == NULL)
        return;
    loop_watch_free(&child->watch);
    if (child->pidfd >= 0)
        (void)close(child->pidfd);
    free(child);
}

pid_t child_pid(const struct child *child)
{
    return child->pid;
}

void child_signal(struct child *child, int signal)
{
    if (!child->ended)
        (void)syscall(SYS_pidfd_send_signal, child->pidfd, signal, NULL, 0);
}

uint64_t child_start_ticks(pid_t pid)
{
    OWNED(mem_free) char *path = xasprintf("/proc/%d/stat", (int)pid);
    char text[STAT_SIZE];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    char *at;

    if (fd >= 0)
        (void)close(fd);
    if (size <= 0)
        return 0;
    text[size] = '\0';
    at = strrchr(text, ')'); /* the name may hold anything */
    for (int i = 0; at != NULL && i < STAT_START_FIELD; i++)
        at = strchr(at + 1, ' ');
    return at == NULL ? 0 : strtoull(at + 1, NULL, 10);
}
