/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The config of a training project: YAML, or Python that the truss package knows.
 *
 * A config.py is code: it runs in a process of its own, by default where it can read its folder and
 * its Python, write nothing and reach nobody (`headrace confine`), for at most a minute. What it
 * says on standard error is shown; its answer is JSON, bounded, and checked as YAML is.
 */

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "cli/train.h"
#include "schema/yaml_json.h"

#define ANSWER_SIZE_MAX (1u << 20)
#define EVALUATE_MS 60000
#define EXIT_NO_TRUSS 3
#define EXIT_CONFINE 125   /* of `headrace confine`: … */
#define END_SIGNAL SIGUSR1 /* … and what has it end all that it runs */

extern char **environ;

/* ---- Python ---- */

/* Where a program of PATH is; NULL: nowhere. The caller frees. */
static char *find_program(const char *name)
{
    const char *path = getenv("PATH");

    if (strchr(name, '/') != NULL)
        return access(name, X_OK) == 0 ? xstrdup(name) : NULL;
    while (path != NULL && *path != '\0') {
        size_t size = strcspn(path, ":");
        char *found = xasprintf("%.*s/%s", (int)size, path, name);

        if (access(found, X_OK) == 0)
            return found;
        free(found);
        path += size + (path[size] == ':');
    }
    return NULL;
}

/* The folder above the folder of a file: what a virtual environment or an installation is below. */
static char *prefix_of(const char *file)
{
    OWNED(mem_free) char *copy = xstrdup(file);

    return xstrdup(dirname(dirname(copy)));
}

/* Folders that the program may read, with colons between; the caller frees. */
static char *readable(const struct train_push_settings *settings, const char *python,
                      const char *folder)
{
    OWNED(mem_free) char *real = realpath(python, NULL);
    OWNED(mem_free) char *own = prefix_of(python);
    OWNED(mem_free) char *base = prefix_of(real != NULL ? real : python);

    return xasprintf("%s:%s:%s%s%s", folder, own, base, *settings->read != '\0' ? ":" : "",
                     settings->read);
}

static int evaluate_start(const struct train_push_settings *settings, const char *file,
                          const char *folder, int to, pid_t *ret_pid, struct err *err)
{
    OWNED(mem_free) char *python = find_program(settings->python);
    OWNED(mem_free) char *read = readable(settings, python != NULL ? python : "/", folder);
    OWNED(mem_free) char *read_flag = xasprintf("--read=%s", read);
    OWNED(mem_free) char *level_flag = xasprintf("--level=%s", settings->confine);
    char *const argv[] = {"headrace",   "confine",
                          level_flag,   "--network=none",
                          read_flag,    "--",
                          python,       "-B",
                          "-c",         (char *)train_evaluate_text,
                          (char *)file, NULL};
    posix_spawn_file_actions_t actions;
    int r;

    if (python == NULL)
        return err_set(err, ERR_DEPENDENCY, "there is no program '%.100s' (--python)",
                       settings->python);
    r = posix_spawn_file_actions_init(&actions);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(&actions, to, STDOUT_FILENO);
    if (r == 0)
        r = posix_spawn(ret_pid, "/proc/self/exe", &actions, NULL, argv, environ);
    (void)posix_spawn_file_actions_destroy(&actions);
    if (r == 0)
        return 0;
    errno = r;
    return err_set_errno(err, ERR_DEPENDENCY, "start '%.100s' (--python)", settings->python);
}

/* Its answer, up to its end or the minute's. */
static int evaluate_read(int fd, struct buf *answer, struct err *err)
{
    uint64_t end_ms = clock_mono_ms() + EVALUATE_MS;

    for (;;) {
        uint64_t now_ms = clock_mono_ms();
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        uint8_t *to;
        ssize_t n;

        if (now_ms >= end_ms || (poll(&wait, 1, (int)(end_ms - now_ms)) == 0))
            return err_set(err, ERR_TIMEOUT, "it did not end within %d s", EVALUATE_MS / 1000);
        to = buf_reserve(answer, 65536);
        if (to == NULL)
            return err_set(err, ERR_TOO_BIG, "it says more than %u bytes", ANSWER_SIZE_MAX);
        n = read(fd, to, 65536);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return 0;
        answer->size += (size_t)n;
    }
}

static int evaluate_outcome(const struct train_push_settings *settings, int status, struct err *err)
{
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;

    if (code == 0)
        return 0;
    if (code == EXIT_NO_TRUSS)
        return err_set(err, ERR_DEPENDENCY,
                       "a config in Python needs the truss package: --python names a Python that "
                       "has it, and '%.100s' has not (scripts/python/venv compare makes one)",
                       settings->python);
    if (code == EXIT_CONFINE)
        return err_set(err, ERR_DEPENDENCY, "it cannot be confined as --confine=%.20s says",
                       settings->confine);
    return err_set(err, ERR_USAGE, "it is no config of a training project; why is said above");
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

static int evaluate(const struct train_push_settings *settings, const char *file,
                    const char *folder, json_t **ret_document, struct err *err)
{
    OWNED(buf_done) struct buf answer = BUF_WITH_LIMIT(ANSWER_SIZE_MAX);
    OWNED(close_fd) int from = -1;
    int pipes[2], status = 0, r, outcome;
    json_error_t where;
    pid_t pid;

    if (pipe2(pipes, O_CLOEXEC) < 0)
        return err_set_errno(err, ERR_IO, "a pipe");
    from = pipes[0];
    r = evaluate_start(settings, file, folder, pipes[1], &pid, err);
    (void)close(pipes[1]);
    if (r < 0)
        return r;
    r = evaluate_read(from, &answer, err);
    if (r < 0)
        (void)kill(pid, END_SIGNAL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (r < 0)
        return r;
    outcome = evaluate_outcome(settings, status, err);
    if (outcome < 0)
        return outcome;
    *ret_document = json_loadb(buf_text(&answer), answer.size, 0, &where);
    return *ret_document != NULL ? 0 : err_set(err, ERR_MALFORMED, "its answer: %s", where.text);
}

/* ---- the file ---- */

static int read_yaml(const char *file, json_t **ret_document, struct err *err)
{
    OWNED(close_fd) int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    OWNED(mem_free) char *text = xmalloc(YAML_SIZE_MAX + 1);
    size_t size = 0;
    ssize_t n;

    if (fd < 0)
        return err_set_errno(err, ERR_USAGE, "'%s'", file);
    while (size <= YAML_SIZE_MAX && (n = read(fd, text + size, YAML_SIZE_MAX + 1 - size)) > 0)
        size += (size_t)n;
    return yaml_json_parse(file, text, size, ret_document, err);
}

/* The file that is meant; the caller frees. */
static int find_file(const char *path, char **ret_file, struct err *err)
{
    static const char *const names[] = {"config.py", "config.yaml"};
    struct stat info;

    if (stat(path, &info) < 0)
        return err_set_errno(err, ERR_USAGE, "'%s'", path);
    if (!S_ISDIR(info.st_mode)) {
        *ret_file = xstrdup(path);
        return 0;
    }
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        char *file = xasprintf("%s/%s", path, names[i]);

        if (access(file, R_OK) == 0) {
            *ret_file = file;
            return 0;
        }
        free(file);
    }
    return err_set(err, ERR_USAGE, "'%s' has neither config.py nor config.yaml", path);
}

static bool ends_in(const char *text, const char *end)
{
    size_t size = strlen(text), end_size = strlen(end);

    return size > end_size && strcmp(text + size - end_size, end) == 0;
}

/* ---- what the settings change ---- */

static json_t *group_of(json_t *job, const char *name)
{
    json_t *group = json_object_get(job, name);

    if (json_is_object(group))
        return group;
    group = json_object();
    (void)json_object_set_new(job, name, group);
    return group;
}

static int change(const struct train_push_settings *settings, json_t *job, struct err *err)
{
    int64_t priority;
    int r;

    if (!json_is_object(job))
        return 0; /* said by the check */
    if (*settings->job_name != '\0')
        (void)json_object_set_new(job, "name", json_string(settings->job_name));
    if (*settings->priority != '\0') {
        r = settings_parse_int("priority", settings->priority, &priority, err);
        if (r < 0)
            return r;
        (void)json_object_set_new(job, "priority", json_integer(priority));
    }
    if (*settings->accelerator != '\0')
        (void)json_object_set_new(group_of(job, "compute"), "accelerator",
                                  json_string(settings->accelerator));
    if (settings->node_count > 0)
        (void)json_object_set_new(group_of(job, "compute"), "node_count",
                                  json_integer(settings->node_count));
    if (*settings->entrypoint != '\0')
        (void)json_object_set_new(group_of(job, "runtime"), "start_commands",
                                  json_pack("[s]", settings->entrypoint));
    return 0;
}

static void free_json(json_t **json_p)
{
    json_decref(*json_p);
    *json_p = NULL;
}

int train_config_read(const struct train_push_settings *settings, const char *path,
                      char ret_project[TRAINING_NAME_SIZE], struct training_config *ret_config,
                      char **ret_folder, struct err *err)
{
    OWNED(free_json) json_t *document = NULL;
    OWNED(mem_free) char *file = NULL;
    OWNED(mem_free) char *real = NULL;
    OWNED(mem_free) char *folder = NULL;
    int r = find_file(path, &file, err);

    if (r < 0)
        return r;
    real = realpath(file, NULL);
    if (real == NULL)
        return err_set_errno(err, ERR_USAGE, "'%s'", file);
    folder = xstrdup(real);
    folder[strrchr(folder, '/') - folder] = '\0';
    if (ends_in(real, ".py"))
        r = evaluate(settings, real, *folder != '\0' ? folder : "/", &document, err);
    else
        r = read_yaml(file, &document, err);
    if (r < 0)
        return ends_in(real, ".py") ? err_wrap(err, "%s", file) : r;
    r = change(settings, json_object_get(document, "job"), err);
    if (r == 0)
        r = training_config_project(file, document, ret_project, ret_config, err);
    if (r == 0)
        *ret_folder = TAKE(folder);
    return r;
}
