/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Starting: the child sets itself up by system calls alone and reports the first failure
 * (which step, which errno) through a close-on-exec pipe; a successful exec closes the pipe.
 * Watching: a pidfd becomes readable at the end, so a loop needs no SIGCHLD.
 * Our death: PR_SET_PDEATHSIG, set after every change of identity because those clear it, and
 * followed by a look at getppid() because we may be gone already.
 */

#include "cli/dev_process.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the child says when it could not become the program. */
struct child_report {
    char step[32];
    int errno_value;
};

static int file_put_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    ssize_t written;

    if (fd < 0)
        return -1;
    written = write(fd, text, strlen(text));
    (void)close(fd);
    return written == (ssize_t)strlen(text) ? 0 : -1;
}

static int namespace_enter(uid_t inner_uid, gid_t inner_gid)
{
    char map[64];
    uid_t uid = geteuid();
    gid_t gid = getegid();

    if (unshare(CLONE_NEWUSER) < 0)
        return -1;
    (void)snprintf(map, sizeof(map), "%u %u 1\n", (unsigned)inner_uid, (unsigned)uid);
    if (file_put_text("/proc/self/uid_map", map) < 0)
        return -1;
    /* A group may be mapped only after the right to change groups is given up. */
    if (file_put_text("/proc/self/setgroups", "deny") < 0 && errno != ENOENT)
        return -1;
    (void)snprintf(map, sizeof(map), "%u %u 1\n", (unsigned)inner_gid, (unsigned)gid);
    return file_put_text("/proc/self/gid_map", map);
}

static int identity_take(const struct dev_spawn *spawn)
{
    switch (spawn->identity) {
    case DEV_IDENTITY_SAME:
        return 0;
    case DEV_IDENTITY_NAMESPACE:
        return namespace_enter(spawn->uid, spawn->gid);
    case DEV_IDENTITY_ACCOUNT:
        if (setgroups(0, NULL) < 0 || setgid(spawn->gid) < 0)
            return -1;
        return setuid(spawn->uid);
    }
    return 0;
}

static int output_redirect(const char *log_path)
{
    int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int out = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    if (in < 0 || out < 0)
        return -1;
    return dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0 ? -1 : 0;
}

static void signals_reset(void)
{
    sigset_t none;

    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)signal(SIGPIPE, SIG_DFL);
    (void)signal(SIGINT, SIG_DFL);
}

/* Runs in the child; returns the name of the step that failed, with errno. */
static const char *child_become(const struct dev_spawn *spawn, pid_t parent)
{
    signals_reset();
    if (setpgid(0, 0) < 0)
        return "setpgid";
    if (output_redirect(spawn->log_path) < 0)
        return "open the log";
    if (identity_take(spawn) < 0)
        return "change the user";
    if (prctl(PR_SET_PDEATHSIG, spawn->death_signal) < 0)
        return "prctl";
    if (getppid() != parent)
        _exit(1);
    if (chdir(spawn->directory) < 0)
        return "chdir";
    (void)execve(spawn->program, spawn->argv, spawn->env);
    return "exec";
}

static _Noreturn void child_run(const struct dev_spawn *spawn, pid_t parent, int report_fd)
{
    struct child_report report = {.errno_value = 0};
    const char *step = child_become(spawn, parent);

    report.errno_value = errno;
    mem_copy_text(report.step, step);
    (void)!write(report_fd, &report, sizeof(report));
    _exit(127);
}

/* The start time in /proc/PID/stat and the state's letter; 0 when there is no such process. */
static uint64_t stat_read(pid_t pid, char *ret_state)
{
    char path[48];
    char text[1024];
    const char *at;
    ssize_t got;
    int fd;

    (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    got = read(fd, text, sizeof(text) - 1);
    (void)close(fd);
    if (got <= 0)
        return 0;
    text[got] = '\0';
    /* The name in brackets may hold spaces: fields are counted from its end. The start time is
     * field 22 and the state behind the name is field 3. */
    at = strrchr(text, ')');
    if (at == NULL || at[1] != ' ')
        return 0;
    *ret_state = at[2];
    for (int field = 2; at != NULL && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at == NULL ? 0 : strtoull(at, NULL, 10);
}

int dev_process_start(struct dev_process *process, const struct dev_spawn *spawn, struct err *err)
{
    struct child_report report;
    int report_pipe[2];
    pid_t parent = getpid();
    char state;
    ssize_t got;

    if (pipe2(report_pipe, O_CLOEXEC) < 0)
        return err_set_errno(err, ERR_IO, "pipe");
    process->pid = fork();
    if (process->pid == 0)
        child_run(spawn, parent, report_pipe[1]);
    (void)close(report_pipe[1]);
    if (process->pid < 0) {
        process->pid = 0;
        (void)close(report_pipe[0]);
        return err_set_errno(err, ERR_IO, "fork");
    }
    do {
        got = read(report_pipe[0], &report, sizeof(report));
    } while (got < 0 && errno == EINTR);
    (void)close(report_pipe[0]);
    if (got == (ssize_t)sizeof(report)) {
        (void)waitpid(process->pid, NULL, 0);
        process->pid = 0;
        return err_set(err, ERR_DEPENDENCY, "start %s: %s: %s", spawn->program, report.step,
                       strerror(report.errno_value));
    }
    process->pidfd = (int)syscall(SYS_pidfd_open, process->pid, 0);
    if (process->pidfd < 0) {
        int code = err_set_errno(err, ERR_IO, "pidfd_open");

        (void)kill(process->pid, SIGKILL);
        (void)waitpid(process->pid, NULL, 0);
        process->pid = 0;
        return code;
    }
    (void)fcntl(process->pidfd, F_SETFD, FD_CLOEXEC);
    process->start_ticks = stat_read(process->pid, &state);
    return 0;
}

bool dev_process_reap(struct dev_process *process)
{
    siginfo_t info = {.si_pid = 0};

    if (process->pid == 0)
        return false;
    if (waitid(P_PID, (id_t)process->pid, &info, WEXITED | WNOHANG) < 0 || info.si_pid == 0)
        return false;
    process->wait_code = info.si_code;
    process->wait_status = info.si_status;
    process->pid = 0;
    (void)close(process->pidfd);
    process->pidfd = -1;
    return true;
}

void dev_process_signal(const struct dev_process *process, int signal_number)
{
    /* Not reaped yet, so the pid is still this child's. */
    if (process->pid != 0)
        (void)kill(process->pid, signal_number);
}

void dev_process_describe_end(const struct dev_process *process, char *to, size_t to_size)
{
    if (process->wait_code == CLD_EXITED)
        (void)snprintf(to, to_size, "exited with code %d", process->wait_status);
    else
        (void)snprintf(to, to_size, "was killed by signal %d (%s)", process->wait_status,
                       strsignal(process->wait_status));
}

uint64_t dev_process_start_ticks(pid_t pid)
{
    char state = 'X';
    uint64_t ticks = stat_read(pid, &state);

    /* A zombie has ended; it only waits for a parent that may never ask. */
    return state == 'Z' || state == 'X' ? 0 : ticks;
}

bool dev_process_can_map_user(void)
{
    int status = 1;
    pid_t pid = fork();

    if (pid == 0)
        _exit(namespace_enter(1, 1) < 0 ? 1 : 0);
    if (pid < 0 || waitpid(pid, &status, 0) < 0)
        return false;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}
