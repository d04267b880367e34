/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engine_host.h"

#include <ctype.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "schema/truss_config.h"
#include "workers/container.h"

#define OUR_BINARY "/proc/self/exe"
#define FAST_BINARY "headrace-host" /* beside ours */
#define GONE " (deleted)"
#define PATH_DEFAULT "/usr/local/bin:/usr/bin:/bin"

static const struct {
    const char *engine;
    enum engine_host_kind kind;
} engine_hosts[] = {
#define HOST_PY ENGINE_HOST_PY
#define HOST_SERVER ENGINE_HOST_SERVER
#define HOST_CHAIN ENGINE_HOST_CHAIN
#define HOST_TRAINING ENGINE_HOST_TRAINING
#define ENGINE_HOST(engine, kind) {engine, kind},
#include "workers/engine_hosts.def"
#undef ENGINE_HOST
#undef HOST_PY
#undef HOST_SERVER
#undef HOST_CHAIN
#undef HOST_TRAINING
};

enum engine_host_kind engine_host_kind(const char *engine)
{
    for (size_t i = 0; i < COUNT_OF(engine_hosts); i++) {
        if (strcmp(engine, engine_hosts[i].engine) == 0)
            return engine_hosts[i].kind;
    }
    return ENGINE_HOST_C;
}

int engine_host_binary(char *to, size_t to_size, struct err *err)
{
    ssize_t size = readlink(OUR_BINARY, to, to_size - 1);

    if (size < 0)
        return err_set_errno(err, ERR_IO, "find the running binary");
    to[size] = '\0';
    /* proc(5): replaced while it ran. Then what is there now is meant. */
    if ((size_t)size > sizeof(GONE) - 1 && access(to, X_OK) < 0 &&
        strcmp(to + size - (sizeof(GONE) - 1), GONE) == 0)
        to[(size_t)size - (sizeof(GONE) - 1)] = '\0';
    return 0;
}

int engine_host_binary_folder(char *to, size_t to_size, struct err *err)
{
    int r = engine_host_binary(to, to_size, err);
    char *slash;

    if (r < 0)
        return r;
    slash = strrchr(to, '/');
    if (slash != NULL)
        *slash = '\0';
    return 0;
}

char *engine_host_program(const char *name)
{
    const char *at = getenv("PATH");

    if (at == NULL || at[0] == '\0')
        at = PATH_DEFAULT;
    while (*at != '\0') {
        size_t size = strcspn(at, ":");
        char *path = xasprintf("%.*s/%s", (int)size, at, name);

        if (size > 0 && access(path, X_OK) == 0)
            return path;
        free(path);
        at += size + (at[size] == ':');
    }
    return NULL;
}

/* The folder of host-py: installed beside the binary, or in the source tree that built it. */
static int find_host_py(char **ret_path, struct err *err)
{
    static const char *const beside[] = {"../lib/headrace/host_py", "../../../workers/host_py",
                                         "../../workers/host_py"};
    char binary[PATH_MAX];
    int r = engine_host_binary_folder(binary, sizeof(binary), err);

    if (r < 0)
        return r;
    for (size_t i = 0; i < COUNT_OF(beside); i++) {
        OWNED(mem_free) char *path = xasprintf("%s/%s", binary, beside[i]);
        OWNED(mem_free) char *main = xasprintf("%s/__main__.py", path);

        if (access(main, R_OK) < 0)
            continue;
        *ret_path = TAKE(path);
        return 0;
    }
    return err_set(err, ERR_DEPENDENCY,
                   "engine 'python' needs host_py/__main__.py, which is neither in "
                   "../lib/headrace nor in a source tree above %.100s",
                   binary);
}

static int find_py(struct engine_host *host, struct err *err)
{
    int r;

    host->path = engine_host_program("python3");
    if (host->path == NULL)
        return err_set(err, ERR_DEPENDENCY, "engine 'python' needs python3, which is not in PATH");
    host->argv[0] = xstrdup("python3");
    host->argv[1] = xstrdup(
        "-IS"); /* nothing of the machine's own packages, whose start takes time */
    r = find_host_py(&host->argv[2], err);
    return r;
}

/* The program of hosts and their confinement that starts fast; this one, which can do the same,
 * where it was copied somewhere alone. */
static char *find_fast(const char *otherwise)
{
    char folder[PATH_MAX];
    struct err err;
    char *path = NULL;

    if (engine_host_binary_folder(folder, sizeof(folder), &err) == 0)
        path = xasprintf("%s/%s", folder, FAST_BINARY);
    if (path != NULL && access(path, X_OK) == 0)
        return path;
    free(path);
    return xstrdup(otherwise);
}

static void find_ours(struct engine_host *host, const char *command, const char *operand)
{
    host->path = xstrdup(OUR_BINARY);
    host->argv[0] = xstrdup("headrace");
    host->argv[1] = xstrdup(command);
    host->argv[2] = operand == NULL ? NULL : xstrdup(operand);
}

int engine_host_find(const char *engine, const char *engines_folder, struct engine_host *ret_host,
                     struct err *err)
{
    struct engine_host host = {.kind = engine_host_kind(engine)};
    int r = 0;

    switch (host.kind) {
    case ENGINE_HOST_C:
        find_ours(&host, "host-c", engines_folder);
        free(host.path);
        host.path = find_fast(OUR_BINARY);
        break;
    case ENGINE_HOST_PY:
        r = find_py(&host, err);
        break;
    case ENGINE_HOST_SERVER:
        find_ours(&host, "host-server", NULL);
        break;
    case ENGINE_HOST_CHAIN:
        find_ours(&host, "host-chain", NULL);
        break;
    case ENGINE_HOST_TRAINING:
        find_ours(&host, "host-training", NULL);
        break;
    }
    if (r < 0) {
        engine_host_done(&host);
        return r;
    }
    *ret_host = host;
    return 0;
}

/* ---- confinement ---- */

struct wishes { /* of a deployment */
    char network[8];
    bool image;
    bool chainlet;         /* calls others through the gateway */
    char checkpoints[512]; /* place of files of training jobs; "": it has none */
};

/* Of a server, or of a Truss that names some; "": none. Borrowed of the settings. */
static const char *checkpoints_of(const json_t *root)
{
    const json_t *python = json_object_get(json_object_get(root, "truss"), "training_checkpoints");
    const char *of_server = json_string_value(json_object_get(root, "checkpoint_folder"));
    const char *of_python = json_string_value(json_object_get(python, "download_folder"));

    if (of_server != NULL)
        return of_server;
    if (of_python == NULL || json_array_size(json_object_get(python, "artifact_references")) == 0)
        return "";
    return of_python;
}

/* What an engine's settings ask for; whether they are good is for the engine to say. Python code is
 * allowed out, as on the platform that it was written for, where ports can be kept apart. */
static struct wishes wishes_of(enum engine_host_kind kind, const char *settings_json)
{
    json_t *root = json_loads(settings_json, 0, NULL);
    const char *network = json_string_value(json_object_get(root, "network"));
    const json_t *metadata = json_object_get(json_object_get(root, "truss"), "model_metadata");
    struct wishes wishes = {.image = json_object_get(root, "image") != NULL,
                            .chainlet = json_object_get(metadata, "headrace_chainlets") != NULL};

    mem_copy_text(wishes.checkpoints, checkpoints_of(root));
    if (network == NULL)
        network = kind == ENGINE_HOST_PY ? "out" : "none";
    mem_copy_text(wishes.network, strcmp(network, "out") == 0 ? "out" : "none");
    json_decref(root);
    return wishes;
}

/* A server's host needs to connect to it, so only a network of its own takes that away. */
static const char *network_of(enum engine_host_kind kind, enum confine_level level,
                              const struct wishes *wishes)
{
    if (kind == ENGINE_HOST_PY)
        return strcmp(wishes->network, "out") == 0 ? "out" : "none";
    return level == CONFINE_STRICT && strcmp(wishes->network, "none") == 0 ? "none" : "host";
}

const char *engine_host_network(enum engine_host_kind kind, enum confine_level level,
                                const char *settings_json)
{
    struct wishes wishes = wishes_of(kind, settings_json);

    return network_of(kind, level, &wishes);
}

/* That of the URL's authority, or its scheme's own. */
static unsigned port_of_url(const char *url)
{
    const char *authority = strstr(url, "://");
    size_t size = authority == NULL ? 0 : strcspn(authority + 3, "/?#");
    const char *digit = authority == NULL ? url : authority + 3 + size;
    unsigned port = 0;

    while (authority != NULL && digit > authority + 3 && isdigit((unsigned char)digit[-1]))
        digit--;
    if (authority == NULL || digit[-1] != ':' || digit == authority + 3 + size)
        return strncasecmp(url, "https:", 6) == 0 ? 443 : 80;
    while (isdigit((unsigned char)*digit) && port <= UINT16_MAX)
        port = 10 * port + (unsigned)(*digit++ - '0');
    return port;
}

/* The keeper of a host that is killed kills the keeper of its container, too, and takes its place.
 */
static size_t container_keeper_words(char **to)
{
    OWNED(container_tool_done) struct container_tool tool;

    container_find(&tool);
    if (tool.program == NULL)
        return 0;
    to[0] = xasprintf("--kept-by=%s", tool.program);
    to[1] = xstrdup("--kept-container=" CONTAINER_OF_SERVER);
    return 2;
}

/* What stands in front of a program to confine it; returns the count of arguments. */
static size_t confine_words(const struct engine_host *host, const struct engine_confine *how,
                            enum confine_level level, const struct wishes *wishes, char **to)
{
    size_t at = 0;

    to[at++] = xstrdup("confine");
    to[at++] = xasprintf("--level=%s", confine_level_name(level));
    to[at++] = xstrdup("--tried");
    to[at++] = xasprintf("--network=%s", network_of(host->kind, level, wishes));
    if (wishes->chainlet && how->gateway[0] != '\0')
        to[at++] = xasprintf("--ports=80,443,%u", port_of_url(how->gateway));
    to[at++] = xasprintf("--app=%s", how->dir);
    if (wishes->checkpoints[0] != '\0')
        to[at++] = xasprintf("--bind=%s/" TRUSS_CHECKPOINTS_FOLDER "=%s", how->dir,
                             wishes->checkpoints);
    to[at++] = xasprintf("--read=%s", how->read);
    to[at++] = xasprintf("--group=%s", how->group);
    to[at++] = xasprintf("--memory=%llu", (unsigned long long)how->memory_size);
    to[at++] = xasprintf("--processes=%llu", (unsigned long long)how->process_count);
    to[at++] = xasprintf("--nice=%u", how->nice);
    to[at++] = xstrdup(host->kind == ENGINE_HOST_PY ? "--filter" : "--filter=false");
    if (wishes->image)
        at += container_keeper_words(to + at);
    to[at++] = xstrdup("--");
    return at;
}

/* Its first half fetches packages and runs nothing of the model's; it is told what to put in front
 * of the second, and adds to --read what only it knows: the environment. */
static void confine_py(struct engine_host *host, const struct engine_confine *how,
                       const struct wishes *wishes)
{
    char binary[PATH_MAX] = "headrace";
    struct err err;

    (void)!engine_host_binary(binary, sizeof(binary), &err);
    host->argv[3] = find_fast(binary);
    (void)confine_words(host, how, how->level, wishes, &host->argv[4]);
}

void engine_host_confine(struct engine_host *host, const struct engine_confine *how)
{
    struct engine_host inside = *host, outside = {.kind = host->kind};
    struct wishes wishes = wishes_of(host->kind, how->settings_json);
    enum confine_level level = wishes.image ? CONFINE_OFF : how->level;
    char binary[PATH_MAX];
    struct err err;
    size_t at = 1;

    if (host->kind == ENGINE_HOST_PY)
        confine_py(host, how, &wishes);
    if (host->kind != ENGINE_HOST_SERVER)
        return;
    outside.path = xstrdup(OUR_BINARY);
    outside.argv[0] = xstrdup("headrace");
    at += confine_words(host, how, level, &wishes, &outside.argv[1]);
    /* Seen from inside of the sandbox, where only the real name is. */
    if (engine_host_binary(binary, sizeof(binary), &err) == 0) {
        mem_free(&inside.argv[0]);
        inside.argv[0] = xstrdup(binary);
    }
    mem_free(&inside.argv[2]);
    inside.argv[2] = xstrdup(confine_level_name(level));
    for (size_t i = 0; inside.argv[i] != NULL && at < ENGINE_HOST_ARGS_MAX; i++)
        outside.argv[at++] = inside.argv[i];
    mem_free(&inside.path);
    *host = outside;
}

void engine_host_done(struct engine_host *host)
{
    mem_free(&host->path);
    for (size_t i = 0; i < COUNT_OF(host->argv); i++)
        mem_free(&host->argv[i]);
}
