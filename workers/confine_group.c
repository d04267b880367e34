/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A cgroup for each confined program, where this user may make one: version 2, or the memory and
 * pids trees of version 1. All of ours stand below one folder `headrace` at the tree's root.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "workers/confine_int.h"

#define ROOT "/sys/fs/cgroup"
#define FILE_SIZE 4096
#define END_TURNS 100
#define END_TURN_MS 2

/* One row a tree and limit; the first of a limit that is there counts. */
static const struct tree {
    const char *path, *limit_file;
    unsigned holds;
} trees[] = {
    {ROOT, "memory.max", CONFINE_GROUP_MEMORY},
    {ROOT, "pids.max", CONFINE_GROUP_PROCESSES},
    {ROOT "/memory", "memory.limit_in_bytes", CONFINE_GROUP_MEMORY},
    {ROOT "/pids", "pids.max", CONFINE_GROUP_PROCESSES},
};

static bool file_write(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

    if (fd >= 0)
        (void)close(fd);
    return good;
}

static bool file_read(const char *path, char text[FILE_SIZE])
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, FILE_SIZE - 1);

    if (fd >= 0)
        (void)close(fd);
    text[n > 0 ? n : 0] = '\0';
    return n >= 0;
}

/* The folder below which ours are made; NULL: this tree is not to be had. */
static char *tree_base(const struct tree *tree)
{
    OWNED(mem_free) char *base = xasprintf("%s/headrace", tree->path);
    OWNED(mem_free) char *above = xasprintf("%s/cgroup.subtree_control", tree->path);
    OWNED(mem_free) char *below = xasprintf("%s/cgroup.subtree_control", base);
    OWNED(mem_free) char *procs = xasprintf("%s/cgroup.procs", tree->path);

    if (access(procs, F_OK) < 0 || (mkdir(base, 0755) < 0 && errno != EEXIST))
        return NULL;
    (void)file_write(above, "+memory +pids"); /* version 2; there is no such file in version 1 */
    (void)file_write(below, "+memory +pids");
    return TAKE(base);
}

static bool tree_join(const struct tree *tree, const char *name, uint64_t limit)
{
    OWNED(mem_free) char *base = tree_base(tree);
    OWNED(mem_free) char *group = xasprintf("%s/%s", base == NULL ? "" : base, name);
    OWNED(mem_free) char *file = xasprintf("%s/%s", group, tree->limit_file);
    OWNED(mem_free) char *procs = xasprintf("%s/cgroup.procs", group);
    OWNED(mem_free) char *number = xasprintf("%llu", (unsigned long long)limit);

    if (base == NULL || (mkdir(group, 0755) < 0 && errno != EEXIST))
        return false;
    if (access(file, W_OK) == 0 && (limit == 0 || file_write(file, number)) &&
        file_write(procs, "0"))
        return true;
    (void)rmdir(group);
    return false;
}

unsigned confine_group_join(const struct confine_settings *settings)
{
    unsigned held = 0;

    for (size_t i = 0; settings->group[0] != '\0' && i < COUNT_OF(trees); i++) {
        uint64_t limit = trees[i].holds == CONFINE_GROUP_MEMORY ? settings->memory_size
                                                                : (uint64_t)settings->processes;

        if (!(held & trees[i].holds) && tree_join(&trees[i], settings->group, limit))
            held |= trees[i].holds;
    }
    return held;
}

unsigned confine_group_can(void)
{
    unsigned held = 0;

    for (size_t i = 0; i < COUNT_OF(trees); i++) {
        OWNED(mem_free) char *base = tree_base(&trees[i]);
        OWNED(mem_free)
        char *file = xasprintf("%s/try-%d", base == NULL ? "" : base, (int)getpid());
        OWNED(mem_free) char *limit = xasprintf("%s/%s", file, trees[i].limit_file);

        if (base == NULL || (held & trees[i].holds) || mkdir(file, 0755) < 0)
            continue;
        if (access(limit, W_OK) == 0)
            held |= trees[i].holds;
        (void)rmdir(file);
    }
    return held;
}

bool confine_group_has_memory(void)
{
    return (confine_group_can() & CONFINE_GROUP_MEMORY) != 0;
}

char *confine_group_dir(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(trees); i++) {
        OWNED(mem_free) char *group = xasprintf("%s/headrace/%s", trees[i].path, name);
        OWNED(mem_free) char *procs = xasprintf("%s/cgroup.procs", group);

        if (access(procs, R_OK) == 0)
            return TAKE(group);
    }
    return NULL;
}

/* Kills what is in it; true when nothing is left. */
static bool group_kill(const char *group)
{
    OWNED(mem_free) char *procs = xasprintf("%s/cgroup.procs", group);
    char text[FILE_SIZE];

    for (int turn = 0; turn < END_TURNS; turn++) {
        if (!file_read(procs, text) || text[0] == '\0')
            return true;
        for (const char *at = text; at != NULL && *at != '\0'; at = strchr(at + 1, '\n')) {
            pid_t pid = (pid_t)strtoull(at, NULL, 10);

            if (pid > 0)
                (void)kill(pid, SIGKILL);
        }
        (void)poll(NULL, 0, END_TURN_MS); /* they are dying */
    }
    return false;
}

/* "oom_kill 3" of memory.events, or of version 1's memory.oom_control. */
static bool group_was_short(const char *group)
{
    static const char *const files[] = {"memory.events", "memory.oom_control"};
    char text[FILE_SIZE];

    for (size_t i = 0; i < COUNT_OF(files); i++) {
        OWNED(mem_free) char *path = xasprintf("%s/%s", group, files[i]);
        const char *at = file_read(path, text) ? strstr(text, "oom_kill ") : NULL;

        if (at != NULL && strtoull(at + strlen("oom_kill "), NULL, 10) > 0)
            return true;
    }
    return false;
}

/* Whether a folder's name is "<prefix>-<pid>" of a process that is no more. */
static bool is_stale(const char *name, const char *prefix)
{
    size_t size = strlen(prefix);
    const char *pid = name + size + 1;

    if (strncmp(name, prefix, size) != 0 || name[size] != '-' || pid[0] == '\0' ||
        pid[strspn(pid, "0123456789")] != '\0')
        return false;
    return kill((pid_t)strtoull(pid, NULL, 10), 0) < 0 && errno == ESRCH;
}

void confine_group_sweep(const char *prefix)
{
    for (size_t i = 0; i < COUNT_OF(trees); i++) {
        OWNED(mem_free) char *base = xasprintf("%s/headrace", trees[i].path);
        DIR *folder = opendir(base);
        struct dirent *entry;

        while (folder != NULL && (entry = readdir(folder)) != NULL) {
            if (is_stale(entry->d_name, prefix))
                (void)confine_group_end(entry->d_name);
        }
        if (folder != NULL)
            (void)closedir(folder);
    }
}

bool confine_group_end(const char *name)
{
    bool was_short = false;

    for (size_t i = 0; i < COUNT_OF(trees); i++) {
        OWNED(mem_free) char *group = xasprintf("%s/headrace/%s", trees[i].path, name);

        if (access(group, F_OK) < 0)
            continue;
        was_short = was_short || group_was_short(group);
        (void)group_kill(group);
        (void)rmdir(group);
    }
    return was_short;
}
