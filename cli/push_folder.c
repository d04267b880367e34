/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/push_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"

#define FOLDERS_MAX 4

/* Who watches over which folder; pid 0: nobody over none. */
static struct guard {
    char *folder;
    pid_t pid;
    int fd; /* closed by our end at the latest */
} guards[FOLDERS_MAX];

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
    (void)status;
    (void)kind;
    (void)walk;
    return remove(path);
}

static void tree_remove(const char *folder)
{
    (void)nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void guard_run(const char *folder, int fd) __attribute__((noreturn));

/* In the child: a session of its own, which no Ctrl-C reaches, and nothing of ours held open. */
static void guard_run(const char *folder, int fd)
{
    sigset_t all;
    char byte;

    (void)sigfillset(&all);
    (void)sigprocmask(SIG_BLOCK, &all, NULL);
    (void)setsid();
    (void)dup2(fd, STDIN_FILENO);
    (void)close_range(STDIN_FILENO + 1, ~0u, 0);
    while (read(STDIN_FILENO, &byte, 1) < 0 && errno == EINTR)
        ;
    tree_remove(folder);
    _exit(0);
}

/* Without one a folder outlives a command that is killed, and that is no reason not to go on. */
static void guard_start(const char *folder)
{
    struct guard *guard = NULL;
    int fds[2];

    for (size_t i = 0; i < FOLDERS_MAX && guard == NULL; i++)
        guard = guards[i].pid == 0 ? &guards[i] : NULL;
    if (guard == NULL || pipe2(fds, O_CLOEXEC) < 0)
        return;
    guard->pid = fork();
    if (guard->pid == 0) {
        (void)close(fds[1]);
        guard_run(folder, fds[0]);
    }
    (void)close(fds[0]);
    if (guard->pid < 0) {
        guard->pid = 0;
        (void)close(fds[1]);
        return;
    }
    guard->folder = xstrdup(folder);
    guard->fd = fds[1];
}

void push_folder_remove(char **folder_p)
{
    const char *folder = *folder_p;

    for (size_t i = 0; folder != NULL && i < FOLDERS_MAX; i++) {
        struct guard *guard = &guards[i];

        if (guard->pid == 0 || strcmp(guard->folder, folder) != 0)
            continue;
        (void)close(guard->fd); /* it removes it, then */
        (void)waitpid(guard->pid, NULL, 0);
        free(guard->folder);
        *guard = (struct guard){.pid = 0};
    }
    if (folder != NULL)
        tree_remove(folder); /* where there was none */
    mem_free(folder_p);
}

int push_folder_make(const char *name, char **ret_folder, struct err *err)
{
    const char *above = getenv("TMPDIR");
    OWNED(mem_free)
    char *folder = xasprintf("%s/%s.XXXXXX", above != NULL ? above : "/tmp", name);

    if (mkdtemp(folder) == NULL)
        return err_set_errno(err, ERR_IO, "make a folder %s", folder);
    guard_start(folder);
    *ret_folder = TAKE(folder);
    return 0;
}
