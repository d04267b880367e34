/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The line of `headrace dev`: what to run, where, and the requests to a dev that runs already.
 *
 * Exit codes: 0 stopped because somebody asked; 1 wrong use; 2 something could not be started;
 * 3 a child died while it ran.
 */

#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/settings.h"
#include "cli/dev.h"
#include "cli/dev_files.h"
#include "cli/dev_roles.h"

int dev_main(int argc, char **argv);

/* The order of these includes is what they do. */
/* clang-format off */
struct dev_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
#include "cli/dev_settings.def"
#include "base/settings_end.def"
};

static const struct setting dev_rows[] = {
#define SETTINGS_ROWS struct dev_settings
#include "base/settings_rows.def"
#include "cli/dev_settings.def"
#include "base/settings_end.def"
};
/* clang-format on */

static const struct settings_program dev_program = {
    .command = "dev",
    .purpose = "Runs the whole platform on this machine: Kafka, Redis, PostgreSQL and every role, "
               "on free loopback ports, in one directory. Ctrl-C stops all that it started.",
    .rows = dev_rows,
    .row_count = COUNT_OF(dev_rows),
};

enum { DOWN_WAIT_MS = 120000, DOWN_STEP_MS = 50 };

/* --- requests to a running dev ---------------------------------------------------------------- */

static void status_print(const char *answer)
{
    json_t *root = json_loads(answer, 0, NULL);
    const char *name;
    json_t *service;

    (void)printf(
        "dev       pid %lld, data in %s\n",
        (long long)json_integer_value(json_object_get(json_object_get(root, "dev"), "pid")),
        json_string_value(json_object_get(root, "data")));
    json_object_foreach(json_object_get(root, "services"), name, service)(void) printf(
        "%-9s %-9s pid %-7lld %s\n", name, json_string_value(json_object_get(service, "state")),
        (long long)json_integer_value(json_object_get(service, "pid")),
        json_string_value(json_object_get(service, "url")));
    json_decref(root);
}

/* Sends one request and shows the answer; for `down`, waits until the directory is free. */
static int request_send(const char *data_dir, const char *request, bool json, struct err *err)
{
    OWNED(mem_free) char *answer = NULL;
    OWNED(mem_free) char *lock = xasprintf("%s/dev.lock", data_dir);
    uint64_t started_ms = clock_mono_ms();
    int code = dev_control_ask(data_dir, request, &answer, err);
    int fd;

    if (code < 0)
        return code;
    if (strncmp(answer, "{\"error\"", 8) == 0)
        return err_set(err, ERR_CONFLICT, "%s: %s", request, answer);
    if (json)
        (void)printf("%s\n", answer);
    else if (strcmp(request, "status") == 0)
        status_print(answer);
    if (strcmp(request, "down") != 0)
        return 0;
    fd = open(lock, O_RDWR | O_CLOEXEC);
    while (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (clock_mono_ms() - started_ms > DOWN_WAIT_MS) {
            (void)close(fd);
            return err_set(err, ERR_TIMEOUT, "it has not stopped after %d s", DOWN_WAIT_MS / 1000);
        }
        (void)usleep(DOWN_STEP_MS * 1000);
    }
    if (fd >= 0)
        (void)close(fd);
    return 0;
}

/* --- making the struct ------------------------------------------------------------------------ */

static char *path_absolute(const char *path)
{
    char directory[PATH_MAX];

    if (*path == '/' || getcwd(directory, sizeof(directory)) == NULL)
        return xstrdup(path);
    return xasprintf("%s/%s", directory, path);
}

/* Where scripts/kafka/fetch put the jars: as told, below the data directory, or in the clone that
 * our binary was built in. */
static char *deps_find(const char *told, const char *data_dir, const char *binary)
{
    OWNED(mem_free) char *at = xstrdup(binary);
    char *deps = *told != '\0' ? path_absolute(told) : xasprintf("%s/deps", data_dir);
    char *slash;

    if (*told != '\0' || dev_file_exists(deps))
        return deps;
    while ((slash = strrchr(at, '/')) != NULL) {
        OWNED(mem_free) char *candidate = NULL;

        *slash = '\0';
        candidate = xasprintf("%s/.headrace/deps", at);
        if (dev_file_exists(candidate)) {
            mem_free(&deps);
            return TAKE(candidate);
        }
    }
    return deps;
}

/* Engines find ONNX Runtime where scripts/onnx/fetch put it, unless somebody said otherwise. */
static void use_onnxruntime(const char *deps_dir)
{
    OWNED(mem_free) char *path = xasprintf("%s/onnxruntime/libonnxruntime.so.1", deps_dir);

    if (dev_file_exists(path))
        (void)setenv("HEADRACE_ONNXRUNTIME", path, 0);
}

static bool list_has(const char *list, const char *name)
{
    size_t size = strlen(name);

    for (const char *at = list; at != NULL && *at != '\0'; at = strchr(at, ',')) {
        at += *at == ',' ? 1 : 0;
        if (strncmp(at, name, size) == 0 && (at[size] == '\0' || at[size] == ','))
            return true;
    }
    return false;
}

static void service_add(struct dev *dev, const struct dev_kind *kind,
                        const struct dev_settings *settings, const char *given)
{
    const char *only = settings->only;
    struct dev_service *service = &dev->services[dev->service_count++];

    *service = (struct dev_service){.kind = kind, .process = DEV_PROCESS_NONE};
    service->state = (*only == '\0' || list_has(only, kind->name)) &&
                             !list_has(settings->without, kind->name)
                         ? DEV_STATE_DOWN
                         : DEV_STATE_ABSENT;
    service->given = *given != '\0' && service->state == DEV_STATE_DOWN;
    if (*given != '\0')
        service->url = xstrdup(given);
    service->directory = xasprintf("%s/%s", dev->data_dir, kind->name);
    service->log_path = xasprintf("%s/logs/%s.log", dev->data_dir, kind->name);
}

static int services_add(struct dev *dev, const struct dev_settings *settings, struct err *err)
{
    OWNED(mem_free) char *names = xstrdup(settings->only);
    const struct dev_kind *roles[DEV_SERVICE_COUNT_MAX - 3];
    size_t role_count;
    char *rest = names;
    char *name;

    dev->kafka_embedded = strcmp(settings->kafka, "embedded") == 0;
    if (dev->kafka_embedded)
        service_add(dev, &dev_kafka_embedded, settings, "");
    else
        service_add(dev, &dev_kafka, settings, settings->kafka);
    service_add(dev, &dev_redis, settings, settings->redis);
    service_add(dev, &dev_postgres, settings, settings->postgres);
    role_count = dev_role_kinds(roles, COUNT_OF(roles));
    for (size_t i = 0; i < role_count; i++)
        service_add(dev, roles[i], settings, "");
    while ((name = strsep(&rest, ",")) != NULL)
        if (*name != '\0' && dev_service_find(dev, name) == NULL)
            return err_set(err, ERR_USAGE, "--only: there is no service '%s'", name);
    return 0;
}

static int on_death_parse(const char *text, enum dev_on_death *ret, struct err *err)
{
    static const char *const names[] = {"stop", "restart", "keep"};

    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (strcmp(text, names[i]) == 0) {
            *ret = (enum dev_on_death)i;
            return 0;
        }
    return err_set(err, ERR_USAGE, "--on-death is '%s', must be stop, restart or keep", text);
}

/* Only one dev at a time in a directory; the lock goes with the process, however it ends. */
static int directory_take(struct dev *dev, struct err *err)
{
    OWNED(mem_free) char *lock = xasprintf("%s/dev.lock", dev->data_dir);
    OWNED(mem_free) char *logs = xasprintf("%s/logs", dev->data_dir);
    int code = dev_dir_make(logs, err);

    if (code < 0)
        return code;
    dev->lock_fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (dev->lock_fd < 0)
        return err_set_errno(err, ERR_IO, "open %s", lock);
    if (flock(dev->lock_fd, LOCK_EX | LOCK_NB) < 0)
        return err_set(err, ERR_CONFLICT,
                       "a headrace dev runs in %s already; --status shows it, --down stops it",
                       dev->data_dir);
    for (size_t i = 0; i < dev->service_count && code == 0; i++)
        if (dev->services[i].state != DEV_STATE_ABSENT && !dev->services[i].given)
            code = dev_dir_make(dev->services[i].directory, err);
    return code;
}

static void dev_done(struct dev *dev)
{
    for (size_t i = 0; i < dev->service_count; i++) {
        struct dev_service *service = &dev->services[i];

        if (service->kind->forget != NULL)
            service->kind->forget(service);
        if (service->kind->close != NULL)
            service->kind->close(service);
        mem_free(&service->url);
        mem_free(&service->directory);
        mem_free(&service->log_path);
    }
    if (dev->lock_fd >= 0)
        (void)close(dev->lock_fd);
    mem_free(&dev->data_dir);
    mem_free(&dev->deps_dir);
    mem_free(&dev->binary);
    mem_free(&dev->postgres_account);
    mem_free(&dev->blobs);
    mem_free(&dev->key);
    mem_free(&dev->webhook_secret);
}

static int dev_init(struct dev *dev, const struct dev_settings *settings, struct err *err)
{
    char binary[PATH_MAX];
    ssize_t size = readlink("/proc/self/exe", binary, sizeof(binary) - 1);
    int code;

    if (size < 0)
        return err_set_errno(err, ERR_IO, "read /proc/self/exe");
    binary[size] = '\0';
    *dev = (struct dev){.lock_fd = -1, .control_fd = -1, .signal_fd = -1, .json = settings->json};
    dev->started_ms = clock_mono_ms();
    dev->binary = xstrdup(binary);
    dev->data_dir = path_absolute(settings->data);
    dev->deps_dir = deps_find(settings->deps, dev->data_dir, dev->binary);
    use_onnxruntime(dev->deps_dir);
    if (*settings->postgres_account != '\0')
        dev->postgres_account = xstrdup(settings->postgres_account);
    if (*settings->blobs != '\0')
        dev->blobs = xstrdup(settings->blobs);
    code = on_death_parse(settings->on_death, &dev->on_death, err);
    return code < 0 ? code : services_add(dev, settings, err);
}

/* --- the three things that one can ask for ------------------------------------------------------
 */

static int reset(struct dev *dev, struct err *err)
{
    static const char *const rest[] = {"logs", "blobs", "seal.key", "dev.json", "client.json"};
    int code = directory_take(dev, err);
    char *path = dev_postgres_account_directory(dev->data_dir);

    if (code == 0)
        code = dev_dir_remove(path, err);
    mem_free(&path);
    for (size_t i = 0; i < dev->service_count && code == 0; i++)
        code = dev_dir_remove(dev->services[i].directory, err);
    for (size_t i = 0; i < COUNT_OF(rest) && code == 0; i++) {
        path = xasprintf("%s/%s", dev->data_dir, rest[i]);
        code = dev_dir_remove(path, err);
        mem_free(&path);
    }
    if (code == 0)
        dev_print(dev, "reset", NULL, "removed the data in %s; downloads are kept", dev->data_dir);
    return code;
}

static int run(struct dev *dev, struct err *err)
{
    int code = directory_take(dev, err);
    int leftovers;

    if (code < 0)
        return code;
    leftovers = dev_state_kill_leftovers(dev->data_dir);
    if (leftovers > 0)
        dev_print(dev, "warning", NULL, "ended %d processes that a killed run had left behind",
                  leftovers);
    if (dev->kafka_embedded)
        dev_print(dev, "warning", NULL,
                  "KAFKA IS EMBEDDED: in memory only, everything in it is lost at the end");
    if ((code = dev_state_load_ports(dev, err)) < 0 || (code = dev_control_listen(dev, err)) < 0)
        return code;
    dev_print(dev, "starting", NULL, "headrace %s in %s", HEADRACE_VERSION, dev->data_dir);
    code = dev_run(dev, err);
    dev_control_close(dev);
    return code;
}

static int dispatch(struct dev *dev, const struct dev_settings *settings, struct err *err)
{
    OWNED(mem_free) char *request = NULL;

    if (settings->status || settings->down)
        request = xstrdup(settings->status ? "status" : "down");
    else if (*settings->stop != '\0')
        request = xasprintf("stop %s", settings->stop);
    else if (*settings->kill != '\0')
        request = xasprintf("kill %s", settings->kill);
    else if (*settings->start != '\0')
        request = xasprintf("start %s", settings->start);
    if (request != NULL)
        return request_send(dev->data_dir, request, settings->json, err);
    return settings->reset ? reset(dev, err) : run(dev, err);
}

int dev_main(int argc, char **argv)
{
    struct dev_settings settings = {.data = NULL};
    enum settings_outcome outcome;
    struct dev dev = {.lock_fd = -1};
    struct err err;
    int code = settings_parse(&dev_program, argc, argv, &settings, NULL, &outcome, &err);

    if (code == 0 && outcome == SETTINGS_RUN)
        code = dev_init(&dev, &settings, &err);
    if (code == 0 && outcome == SETTINGS_RUN)
        code = dispatch(&dev, &settings, &err);
    if (code < 0)
        (void)fprintf(stderr, "headrace dev: %s\n", err.text);
    dev_done(&dev);
    settings_free(&dev_program, &settings);
    if (code >= 0)
        return code;
    return code == ERR_USAGE || code == ERR_CONFLICT || code == ERR_NOT_FOUND ? 1 : 2;
}
