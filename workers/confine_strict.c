/* SPDX-License-Identifier: Apache-2.0 */

/*
 * bubblewrap's command line. The new root holds what every program reads (confine_system_paths),
 * our own binary, the model and what the settings name, read-only; folders in memory for what is
 * written; the devices of a GPU. What is not named is not there.
 *
 * The user is 60000 inside and ours outside; the fixed places of a model are /app, /packages,
 * /home/app, /tmp and /workspace, as in a container of the original platform.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "workers/confine_int.h"
#include "workers/engine_host.h"

#define ARGS_MAX 4096
#define USER_ID "60000"

struct line {
    char *path;
    char *args[ARGS_MAX + 1];
    size_t count;
    uint64_t scratch_size;
};

static void line_done(struct line *line)
{
    free(line->path);
    for (size_t i = 0; i < line->count; i++)
        free(line->args[i]);
}

static void line_add(struct line *line, const char *arg)
{
    if (line->count < ARGS_MAX)
        line->args[line->count++] = xstrdup(arg);
}

static void line_add_3(struct line *line, const char *option, const char *from, const char *to)
{
    line_add(line, option);
    line_add(line, from);
    line_add(line, to);
}

static int line_add_read(void *opaque, const char *path, struct err *err)
{
    (void)err;
    line_add_3(opaque, "--ro-bind-try", path, path);
    return 0;
}

static int line_add_write(void *opaque, const char *path, struct err *err)
{
    (void)err;
    line_add_3(opaque, "--bind", path, path);
    return 0;
}

static int line_add_bind(void *opaque, const char *pair, struct err *err)
{
    const char *equals = strchr(pair, '=');
    OWNED(mem_free) char *from = NULL;

    if (equals == NULL)
        return err_set(err, ERR_USAGE, "--bind: '%.80s' is no FILE=PLACE", pair);
    from = xasprintf("%.*s", (int)(equals - pair), pair);
    line_add_3(opaque, "--ro-bind-try", from, equals + 1);
    return 0;
}

static void line_add_memory(struct line *line, const char *place)
{
    OWNED(mem_free) char *size = xasprintf("%llu", (unsigned long long)line->scratch_size);

    line_add(line, "--size");
    line_add(line, size);
    line_add(line, "--tmpfs");
    line_add(line, place);
}

/* /app can be written to, what came with the model cannot: each of its entries is bound alone. */
static int line_add_app(struct line *line, const char *app, struct err *err)
{
    DIR *folder = opendir(app);
    struct dirent *entry;

    if (folder == NULL)
        return err_set_errno(err, ERR_NOT_FOUND, "open the model folder %s", app);
    while ((entry = readdir(folder)) != NULL) {
        OWNED(mem_free) char *from = xasprintf("%s/%s", app, entry->d_name);
        OWNED(mem_free) char *to = xasprintf("/app/%s", entry->d_name);

        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        line_add_3(line, "--ro-bind-try", from, to);
        if (strcmp(entry->d_name, "packages") == 0)
            line_add_3(line, "--ro-bind-try", from, "/packages");
    }
    (void)closedir(folder);
    line_add_3(line, "--ro-bind", app, app);
    return 0;
}

/* What writes to the machine. The user of the sandbox is somebody else's inside, but where the
 * agent is root it is user 0 to the kernel, which asks for no more; bubblewrap covers what it
 * cannot write to itself. */
static void line_add_proc(struct line *line)
{
    static const char *const covered[] = {"/proc/acpi", "/proc/bus",  "/proc/driver", "/proc/fs",
                                          "/proc/irq",  "/proc/scsi", "/proc/sys"};

    line_add(line, "--proc");
    line_add(line, "/proc");
    for (size_t i = 0; i < COUNT_OF(covered); i++)
        line_add_3(line, "--ro-bind-try", covered[i], covered[i]);
}

static void line_add_devices(struct line *line)
{
    static const char *const patterns[] = {"/dev/nvidia*", "/dev/dri", "/dev/kfd"};

    line_add(line, "--dev");
    line_add(line, "/dev");
    for (size_t i = 0; i < COUNT_OF(patterns); i++) {
        glob_t found;

        if (glob(patterns[i], 0, NULL, &found) != 0)
            continue;
        for (size_t at = 0; at < found.gl_pathc; at++)
            line_add_3(line, "--dev-bind-try", found.gl_pathv[at], found.gl_pathv[at]);
        globfree(&found);
    }
    line_add_memory(line, "/dev/shm");
    line_add(line, "--remount-ro");
    line_add(line, "/dev");
}

static void line_add_namespaces(struct line *line, bool own_network)
{
    static const char *const common[] = {"bwrap",
                                         "--unshare-user",
                                         "--unshare-pid",
                                         "--unshare-ipc",
                                         "--unshare-uts",
                                         "--unshare-cgroup-try",
                                         "--die-with-parent",
                                         "--new-session",
                                         "--uid",
                                         USER_ID,
                                         "--gid",
                                         USER_ID,
                                         "--hostname",
                                         "headrace",
                                         "--cap-drop",
                                         "ALL"};

    for (size_t i = 0; i < COUNT_OF(common); i++)
        line_add(line, common[i]);
    if (own_network)
        line_add(line, "--unshare-net");
}

/* In memory, each of its own size. */
static const char *const places[] = {"/tmp",       "/var/tmp", "/home/app",
                                     "/workspace", "/secrets", "/app"};

static int line_add_files(struct line *line, const struct confine_settings *settings,
                          const char *binary_folder, struct err *err)
{
    int r = 0;

    for (size_t i = 0; confine_system_paths[i] != NULL; i++)
        (void)line_add_read(line, confine_system_paths[i], err);
    line_add_proc(line);
    line_add_devices(line);
    for (size_t i = 0; i < COUNT_OF(places); i++)
        line_add_memory(line, places[i]);
    (void)line_add_read(line, binary_folder, err);
    if (settings->app[0] != '\0')
        r = line_add_app(line, settings->app, err);
    if (r == 0)
        r = confine_parts(settings->read, ':', line_add_read, line, err);
    if (r == 0)
        r = confine_parts(settings->write, ':', line_add_write, line, err);
    if (r == 0)
        r = confine_parts(settings->bind, ';', line_add_bind, line, err);
    line_add(line, "--remount-ro"); /* the root, which is of memory, too */
    line_add(line, "/");
    line_add(line, "--chdir");
    line_add(line, settings->app[0] != '\0' ? settings->app : "/app");
    return r;
}

static char *writable(const struct confine_settings *settings)
{
    char *list = xasprintf("--write=/dev:%s", settings->write);

    for (size_t i = 0; i < COUNT_OF(places); i++) {
        char *longer = xasprintf("%s:%s", list, places[i]);

        free(list);
        list = longer;
    }
    return list;
}

/* The second half, which runs inside: what bubblewrap does not do, then the program. */
static void line_add_inner(struct line *line, const struct confine_settings *settings,
                           const char *binary, char **argv)
{
    const char *network = strcmp(settings->network, "out") == 0 ? "out" : "host";
    OWNED(mem_free) char *network_arg = xasprintf("--network=%s", network);
    OWNED(mem_free) char *ports = xasprintf("--ports=%s", settings->ports);
    OWNED(mem_free) char *listen = xasprintf("--own-ports=%s", settings->own_ports);
    OWNED(mem_free) char *write = writable(settings);
    OWNED(mem_free)
    char *processes = xasprintf("--processes=%lld", (long long)settings->processes);
    OWNED(mem_free) char *nice_arg = xasprintf("--nice=%lld", (long long)settings->nice);
    const char *const args[] = {
        "--",      binary,          "confine",
        "--inner", "--own-session", network_arg,
        ports,     listen,          write,
        processes, nice_arg,        settings->filter ? "--filter" : "--filter=false",
        "--"};

    for (size_t i = 0; i < COUNT_OF(args); i++)
        line_add(line, args[i]);
    for (size_t i = 0; argv[i] != NULL; i++)
        line_add(line, argv[i]);
}

int confine_strict_exec(const struct confine_settings *settings, char **argv, struct err *err)
{
    OWNED(line_done) struct line line = {.scratch_size = settings->scratch_size};
    char folder[PATH_MAX], binary[PATH_MAX];
    int r = engine_host_binary_folder(folder, sizeof(folder), err);

    if (r == 0)
        r = engine_host_binary(binary, sizeof(binary), err);
    if (r < 0)
        return r;
    line.path = engine_host_program("bwrap");
    if (line.path == NULL)
        return err_set(err, ERR_UNSUPPORTED, "bubblewrap (bwrap) is not in PATH");
    line_add_namespaces(&line, strcmp(settings->network, "none") == 0);
    r = line_add_files(&line, settings, folder, err);
    if (r < 0)
        return r;
    line_add_inner(&line, settings, binary, argv);
    if (line.count == ARGS_MAX)
        return err_set(err, ERR_TOO_BIG, "the model has too many entries for the sandbox");
    (void)execv(line.path, line.args);
    return err_set_errno(err, ERR_DEPENDENCY, "start %s", line.path);
}

/* ---- the try ---- */

static int try_wait(pid_t pid, int fd, struct err *err)
{
    char said[160] = "";
    ssize_t n = read(fd, said, sizeof(said) - 1);
    int status;

    if (n > 0)
        said[strcspn(said, "\n")] = '\0';
    if (waitpid(pid, &status, 0) < 0)
        return err_set_errno(err, ERR_IO, "wait for bubblewrap");
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    return err_set(err, ERR_UNSUPPORTED, "bubblewrap cannot make namespaces here: %s", said);
}

int confine_strict_try(struct err *err)
{
    OWNED(line_done) struct line line = {.path = engine_host_program("bwrap")};
    int fds[2], r;
    pid_t pid;

    if (line.path == NULL)
        return err_set(err, ERR_UNSUPPORTED, "bubblewrap (bwrap) is not in PATH");
    line_add_namespaces(&line, true);
    for (size_t i = 0; confine_system_paths[i] != NULL; i++)
        (void)line_add_read(&line, confine_system_paths[i], err);
    line_add(&line, "--proc");
    line_add(&line, "/proc");
    line_add(&line, "--dev");
    line_add(&line, "/dev");
    line_add(&line, "/bin/true");
    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_set_errno(err, ERR_IO, "make a pipe");
    pid = fork();
    if (pid == 0) {
        (void)dup2(fds[1], STDERR_FILENO);
        (void)execv(line.path, line.args);
        _exit(127);
    }
    (void)close(fds[1]);
    r = pid < 0 ? err_set_errno(err, ERR_UNAVAILABLE, "start a process")
                : try_wait(pid, fds[0], err);
    (void)close(fds[0]);
    return r;
}
