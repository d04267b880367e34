/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The keeper: parent of a confined program where no pid namespace ends everything with it.
 *
 * As a subreaper it becomes the parent of whatever its descendants leave behind. When the program
 * ends, or when our own parent dies (the kernel sends CONFINE_END_SIGNAL), every descendant is
 * killed, again and again until none is left: one that forks faster than it is found still loses,
 * because its children are ours the moment it dies.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "workers/child.h"
#include "workers/confine_int.h"
#include "workers/container.h"

#define KEEPER_LIMIT_MS 5000
#define STAT_SIZE 512
#define FTW_FDS 16
#define PROCESSES_MAX 65536 /* looked at */
#define CONTAINER_LIMIT_MS 30000

/* The parent of a process; 0: there is none of that pid. */
static pid_t parent_of(pid_t pid)
{
    OWNED(mem_free) char *path = xasprintf("/proc/%d/stat", (int)pid);
    char text[STAT_SIZE];
    FILE *file = fopen(path, "re");
    size_t size = file == NULL ? 0 : fread(text, 1, sizeof(text) - 1, file);
    char *at;

    if (file != NULL)
        (void)fclose(file);
    text[size] = '\0';
    at = strrchr(text, ')'); /* the name may hold anything */
    return at == NULL || strlen(at) < 4 ? 0 : (pid_t)strtoull(at + 4, NULL, 10);
}

struct process {
    pid_t pid, parent;
    bool below;
};

/* The caller frees. */
static struct process *processes_read(size_t *ret_count)
{
    struct process *processes = NULL;
    size_t count = 0, room = 0;
    struct dirent *entry;
    DIR *proc = opendir("/proc");

    while (proc != NULL && (entry = readdir(proc)) != NULL && count < PROCESSES_MAX) {
        pid_t pid = (pid_t)strtoull(entry->d_name, NULL, 10);

        if (pid <= 0)
            continue;
        if (count == room) {
            room = room == 0 ? 256 : room * 2;
            processes = xrealloc(processes, room, sizeof(*processes));
        }
        processes[count++] = (struct process){.pid = pid, .parent = parent_of(pid)};
    }
    if (proc != NULL)
        (void)closedir(proc);
    *ret_count = count;
    return processes;
}

static bool is_below(const struct process *processes, size_t count, pid_t parent, pid_t root)
{
    if (parent == root)
        return true;
    for (size_t i = 0; i < count; i++) {
        if (processes[i].pid == parent)
            return processes[i].below;
    }
    return false;
}

pid_t *confine_below(pid_t root, size_t *ret_count)
{
    size_t count = 0, found = 0;
    OWNED(mem_free) struct process *processes = processes_read(&count);
    pid_t *pids = xcalloc(count + 1, sizeof(*pids));
    bool more = true;

    while (more) {
        more = false;
        for (size_t i = 0; i < count; i++) {
            if (processes[i].below || !is_below(processes, count, processes[i].parent, root))
                continue;
            processes[i].below = more = true;
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (processes[i].below)
            pids[found++] = processes[i].pid;
    }
    *ret_count = found;
    return pids;
}

/* Kills our children; true while there were any. Their children become ours. */
static bool kill_children(void)
{
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    bool found = false;

    while (proc != NULL && (entry = readdir(proc)) != NULL) {
        pid_t pid = (pid_t)strtoull(entry->d_name, NULL, 10);

        if (pid <= 0 || parent_of(pid) != getpid())
            continue;
        found = true;
        (void)kill(pid, SIGKILL);
    }
    if (proc != NULL)
        (void)closedir(proc);
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
    return found;
}

static void kill_all(void)
{
    uint64_t end_ms = clock_mono_ms() + KEEPER_LIMIT_MS;
    const struct timespec pause = {0, 2000000};

    while (kill_children() && clock_mono_ms() < end_ms)
        (void)sigtimedwait(&(sigset_t){0}, NULL, &pause);
}

static int remove_one(const char *path, const struct stat *about, int type, struct FTW *where)
{
    (void)about, (void)type, (void)where;
    (void)remove(path);
    return 0;
}

/* A client's end is not its container's: Docker's runs on, and of Podman's the record stays. */
static void container_remove(const struct confine_kept *kept)
{
    uint64_t end_ms = clock_mono_ms() + CONTAINER_LIMIT_MS;
    const struct timespec pause = {0, 5000000};
    OWNED(mem_free) char *name = container_name_of(kept->container, getpid());
    const struct sched_param param = {0};
    sigset_t none;
    pid_t pid = fork();
    int null;

    if (pid == 0) {
        (void)sched_setscheduler(0, SCHED_OTHER, &param); /* what it kept may have been idle */
        (void)setpriority(PRIO_PROCESS, 0, 0);
        (void)sigemptyset(&none);
        (void)sigprocmask(SIG_SETMASK, &none, NULL);
        null = open("/dev/null", O_RDWR | O_CLOEXEC);
        (void)dup2(null, STDOUT_FILENO);
        (void)dup2(null, STDERR_FILENO);
        (void)execl(kept->container_program, kept->container_program, "rm", "--force", name,
                    (char *)NULL);
        _exit(CONFINE_EXIT);
    }
    while (pid > 0 && waitpid(pid, NULL, WNOHANG) == 0 && clock_mono_ms() < end_ms)
        (void)sigtimedwait(&(sigset_t){0}, NULL, &pause);
    kill_all(); /* it itself, when it hangs, and what it has left */
}

static void keeper_end(const struct confine_kept *kept, int status) __attribute__((noreturn));

/* As the program ended: with its exit code, or by its signal. */
static void keeper_end(const struct confine_kept *kept, int status)
{
    sigset_t none;

    kill_all();
    if (kept->container[0] != '\0')
        container_remove(kept);
    if (kept->scratch != NULL)
        (void)nftw(kept->scratch, remove_one, FTW_FDS, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
    if (WIFSIGNALED(status)) {
        (void)signal(WTERMSIG(status), SIG_DFL);
        (void)sigemptyset(&none);
        (void)sigprocmask(SIG_SETMASK, &none, NULL);
        (void)kill(getpid(), WTERMSIG(status));
    }
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

/* Signals are blocked and taken one by one. */
static void keeper_run(pid_t pid, pid_t parent, const sigset_t *signals,
                       const struct confine_kept *kept)
{
    int status = 0;

    if (getppid() != parent) /* it died before we asked to be told */
        keeper_end(kept, SIGKILL);
    for (;;) {
        int got = sigwaitinfo(signals, NULL);
        pid_t ended;

        if (got == CONFINE_END_SIGNAL)
            keeper_end(kept, SIGKILL);
        if (got == SIGTERM || got == SIGINT)
            (void)kill(-pid, got);
        while ((ended = waitpid(-1, &status, WNOHANG)) > 0) {
            if (ended == pid)
                keeper_end(kept, status);
        }
    }
}

void confine_end(struct child *child)
{
    child_signal(child, CONFINE_END_SIGNAL);
    child_signal(child, SIGCONT);
}

int confine_keep(const struct confine_kept *kept, struct err *err)
{
    pid_t parent = getppid(), pid;
    sigset_t signals, before;

    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGCHLD);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, CONFINE_END_SIGNAL);
    (void)sigprocmask(SIG_BLOCK, &signals, &before);
    if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
        return err_set_errno(err, ERR_UNSUPPORTED, "become the reaper of what it leaves behind");
    (void)prctl(PR_SET_PDEATHSIG, CONFINE_END_SIGNAL);
    pid = fork();
    if (pid < 0)
        return err_set_errno(err, ERR_UNAVAILABLE, "start a process");
    if (pid > 0) {
        (void)setpgid(pid, pid);
        (void)close_range(STDERR_FILENO + 1, ~0u, 0); /* the program's sockets end with it */
        keeper_run(pid, parent, &signals, kept);
    }
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)setpgid(0, 0);
    (void)sigprocmask(SIG_SETMASK, &before, NULL);
    return 0;
}
