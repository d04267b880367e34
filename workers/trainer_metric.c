/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/trainer_metric.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "workers/nvml.h"

#define MARK "headrace_metric"
#define LINE_SIZE_MAX 4096
#define NAME_SIZE_MAX 48
#define NAME_CHARACTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-/"
#define PROCESSES_MAX 16384
#define DEPTH_MAX 64
#define FILE_SIZE 4096

/* ---- what it uses ---- */

static size_t put(struct trainer_metric *to, size_t count, size_t max, const char *name,
                  double value)
{
    if (count >= max)
        return count;
    mem_copy_text(to[count].name, name);
    to[count].value = value;
    to[count].step = -1;
    return count + 1;
}

/* The beginning of a small file, terminated. False: there is none. */
static bool read_file(const char *path, char text[FILE_SIZE])
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, FILE_SIZE - 1);

    if (fd >= 0)
        (void)close(fd);
    if (n < 0)
        return false;
    text[n] = '\0';
    return true;
}

struct usage {
    uint64_t cpu_us, memory_size;
};

struct process {
    int pid, parent;
    uint64_t ticks, pages;
};

/* Of /proc/<pid>/stat: the name may hold blanks and brackets, the other fields begin behind it. */
static bool process_read(const char *name, struct process *ret)
{
    char path[300], text[FILE_SIZE];
    const char *at;
    unsigned long user, system, waited_user, waited_system, pages;
    int pid, parent;

    (void)snprintf(path, sizeof(path), "/proc/%s/stat", name);
    if (!read_file(path, text) || (at = strrchr(text, ')')) == NULL ||
        sscanf(text, "%d", &pid) != 1)
        return false;
    /* state ppid … utime(14) stime(15) cutime(16) cstime(17) … rss(24) */
    if (sscanf(
            at + 1,
            " %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %lu %lu %*d %*d %*d %*d %*u %*u "
            "%lu",
            &parent, &user, &system, &waited_user, &waited_system, &pages) != 6)
        return false;
    *ret = (struct process){pid, parent, user + system + waited_user + waited_system, pages};
    return true;
}

static int by_pid(const void *a, const void *b)
{
    const struct process *x = a, *y = b;

    return (x->pid > y->pid) - (x->pid < y->pid);
}

static bool descends(const struct process *processes, size_t count, const struct process *process,
                     int leader)
{
    for (int depth = 0; process != NULL && depth < DEPTH_MAX; depth++) {
        const struct process parent = {.pid = process->parent};

        if (process->pid == leader)
            return true;
        process = bsearch(&parent, processes, count, sizeof(*processes), by_pid);
    }
    return false;
}

static void usage_set(struct usage *ret, uint64_t ticks, uint64_t pages)
{
    ret->cpu_us = ticks * 1000000 / (uint64_t)sysconf(_SC_CLK_TCK);
    ret->memory_size = pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Adds the processes that a file names. False: there is no such file. */
static bool pids_add(const char *path, int *pids, size_t *count)
{
    FILE *file = fopen(path, "re");
    int pid;

    if (file == NULL)
        return false;
    while (*count < PROCESSES_MAX && fscanf(file, "%d", &pid) == 1) /* NOLINT */
        pids[(*count)++] = pid;
    (void)fclose(file);
    return true;
}

/* Of all that the cgroup names. False: it names none. */
static bool usage_of_group(const char *dir, struct usage *ret)
{
    OWNED(mem_free) int *pids = xmalloc(PROCESSES_MAX * sizeof(*pids));
    OWNED(mem_free) char *path = xasprintf("%s/cgroup.procs", dir);
    uint64_t ticks = 0, pages = 0;
    size_t count = 0;
    bool found = false;

    if (!pids_add(path, pids, &count))
        return false;
    for (size_t i = 0; i < count; i++) {
        struct process process;
        char name[16];

        (void)snprintf(name, sizeof(name), "%d", pids[i]);
        if (!process_read(name, &process))
            continue; /* gone meanwhile */
        ticks += process.ticks;
        pages += process.pages;
        found = true;
    }
    usage_set(ret, ticks, pages);
    return found;
}

static bool children_of(int pid, int *pids, size_t *count)
{
    char path[600];
    const struct dirent *entry;
    bool found = false;
    DIR *threads;

    (void)snprintf(path, sizeof(path), "/proc/%d/task", pid);
    threads = opendir(path);
    while (threads != NULL && (entry = readdir(threads)) != NULL) {
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        (void)snprintf(path, sizeof(path), "/proc/%d/task/%s/children", pid, entry->d_name);
        found = pids_add(path, pids, count) || found;
    }
    if (threads != NULL)
        (void)closedir(threads);
    return found;
}

/* From `leader` down, and nobody else's processes are looked at. False: it is not there, or the
 * kernel names no children. */
static bool usage_by_children(int leader, struct usage *ret)
{
    OWNED(mem_free) int *pids = xmalloc(PROCESSES_MAX * sizeof(*pids));
    uint64_t ticks = 0, pages = 0;
    size_t count = 1;

    pids[0] = leader;
    for (size_t i = 0; i < count; i++) {
        struct process process;
        char name[16];

        (void)snprintf(name, sizeof(name), "%d", pids[i]);
        if (!process_read(name, &process) || (!children_of(pids[i], pids, &count) && i == 0)) {
            if (i == 0)
                return false;
            continue; /* gone meanwhile */
        }
        ticks += process.ticks;
        pages += process.pages;
    }
    usage_set(ret, ticks, pages);
    return true;
}

/* Sums up `leader` and all that descend from it. */
static bool usage_of_tree(int leader, struct usage *ret)
{
    OWNED(mem_free)
    struct process *processes = xcalloc(PROCESSES_MAX, sizeof(*processes));
    DIR *proc = opendir("/proc");
    uint64_t ticks = 0, pages = 0;
    const struct dirent *entry;
    size_t count = 0;
    bool found = false;

    while (proc != NULL && count < PROCESSES_MAX && (entry = readdir(proc)) != NULL) {
        if (isdigit((unsigned char)entry->d_name[0]) &&
            process_read(entry->d_name, &processes[count]))
            count++;
    }
    if (proc != NULL)
        (void)closedir(proc);
    qsort(processes, count, sizeof(*processes), by_pid);
    for (size_t i = 0; i < count; i++) {
        if (!descends(processes, count, &processes[i], leader))
            continue;
        ticks += processes[i].ticks;
        pages += processes[i].pages;
        found = true;
    }
    usage_set(ret, ticks, pages);
    return found;
}

size_t trainer_metric_sample(struct trainer_metric_state *state, const char *group_dir,
                             pid_t leader, struct trainer_metric *to, size_t max)
{
    uint64_t now_us = clock_mono_us();
    struct usage usage;
    size_t count = 0;

    if (!(group_dir != NULL && usage_of_group(group_dir, &usage)) &&
        !(leader > 0 && (usage_by_children(leader, &usage) || usage_of_tree(leader, &usage))))
        return 0;
    if (state->at_us > 0 && now_us > state->at_us)
        count = put(to, count, max, "cpu",
                    usage.cpu_us < state->cpu_us
                        ? 0
                        : (double)(usage.cpu_us - state->cpu_us) / (double)(now_us - state->at_us));
    state->cpu_us = usage.cpu_us;
    state->at_us = now_us;
    return put(to, count, max, "memory_bytes", (double)usage.memory_size);
}

/* ---- GPUs ---- */

size_t trainer_metric_gpus(const unsigned *indices, size_t count, struct trainer_metric *to,
                           size_t max)
{
    size_t filled = 0;

    if (nvml_load(NVML_LIBRARY) != NULL)
        return 0;
    for (size_t i = 0; i < count; i++) {
        char name[TRAINER_METRIC_NAME_SIZE];
        double utilization;
        uint64_t used_size;

        if (!nvml_use(indices[i], &utilization, &used_size))
            continue;
        (void)snprintf(name, sizeof(name), "gpu.%zu.utilization", i);
        filled = put(to, filled, max, name, utilization);
        (void)snprintf(name, sizeof(name), "gpu.%zu.memory_bytes", i);
        filled = put(to, filled, max, name, (double)used_size);
    }
    return filled;
}

/* ---- what its script says ---- */

struct said {
    struct trainer_metric *to;
    size_t count, max;
    int64_t step;
};

/* One name and number of a line. */
static void said_take(struct said *said, const char *name, double value)
{
    size_t size = strlen(name);

    if (strcmp(name, "step") == 0) {
        if (value >= 0 && value < 0x1p53 && value == floor(value))
            said->step = (int64_t)value;
        return;
    }
    if (size == 0 || size > NAME_SIZE_MAX || strspn(name, NAME_CHARACTERS) != size ||
        !isfinite(value) || said->count >= said->max || said->count >= TRAINER_METRIC_LINE_MAX)
        return;
    (void)snprintf(said->to[said->count].name, sizeof(said->to[0].name), "user.%s", name);
    said->to[said->count++].value = value;
}

static void said_json(struct said *said, const char *text)
{
    json_t *object = json_loads(text, 0, NULL);
    const char *name;
    json_t *value;

    json_object_foreach(object, name, value)
    {
        if (json_is_number(value))
            said_take(said, name, json_number_value(value));
    }
    json_decref(object);
}

static void said_words(struct said *said, char *text)
{
    char *rest = text, *word;

    while ((word = strsep(&rest, " \t\r")) != NULL) {
        char *equals = strchr(word, '='), *end;
        double value;

        if (equals == NULL || equals[1] == '\0')
            continue;
        *equals = '\0';
        value = strtod(equals + 1, &end);
        if (*end == '\0')
            said_take(said, word, value);
    }
}

size_t trainer_metric_line(const char *line, size_t size, struct trainer_metric *to, size_t max)
{
    struct said said = {.to = to, .max = max, .step = -1};
    char text[LINE_SIZE_MAX];
    size_t skip = 0;

    while (skip < size && (line[skip] == ' ' || line[skip] == '\t'))
        skip++;
    line += skip;
    size -= skip;
    if (size <= sizeof(MARK) || size >= sizeof(text) || memcmp(line, MARK " ", sizeof(MARK)) != 0)
        return 0;
    line += sizeof(MARK);
    size -= sizeof(MARK);
    memcpy(text, line, size);
    text[size] = '\0';
    if (text[strspn(text, " ")] == '{')
        said_json(&said, text);
    else
        said_words(&said, text);
    for (size_t i = 0; i < said.count; i++)
        to[i].step = said.step;
    return said.count;
}
