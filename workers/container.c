/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/container.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "workers/child.h"
#include "workers/engine_host.h"

#define DOCKER_SOCKET "/var/run/docker.sock"
#define PODMAN_INIT "/usr/libexec/podman/catatonit"
#define PIDS_MAX 32768 /* what the kernel takes at least */

/* ---- which ---- */

/* Its command line may be there without its daemon. */
static bool docker_answers(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = DOCKER_SOCKET};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool answers = getenv("DOCKER_HOST") != NULL ||
                   (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0);

    if (fd >= 0)
        (void)close(fd);
    return answers;
}

static uint64_t own_limit(__rlimit_resource_t what, uint64_t most)
{
    struct rlimit limit;

    if (getrlimit(what, &limit) < 0 || limit.rlim_max == RLIM_INFINITY)
        return 0;
    return limit.rlim_max < most ? limit.rlim_max : most;
}

void container_find(struct container_tool *ret_tool)
{
    OWNED(mem_free) char *docker = engine_host_program("docker");
    OWNED(mem_free) char *podman = engine_host_program("podman");

    *ret_tool = (struct container_tool){.file_count_max = own_limit(RLIMIT_NOFILE, UINT64_MAX),
                                        .process_count_max = own_limit(RLIMIT_NPROC, PIDS_MAX)};
    if (docker != NULL && docker_answers()) {
        ret_tool->program = TAKE(docker);
        ret_tool->has_init = true;
    } else if (podman != NULL) {
        ret_tool->program = TAKE(podman);
        ret_tool->is_podman = true;
        ret_tool->has_init = access(PODMAN_INIT, X_OK) == 0;
    }
}

void container_tool_done(struct container_tool *tool)
{
    mem_free(&tool->program);
}

const char *container_tool_name(const struct container_tool *tool)
{
    return tool->program == NULL ? "" : tool->is_podman ? "podman" : "docker";
}

int container_image_check(const char *image, struct err *err)
{
    static const char fit[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-/:@";
    size_t size = strlen(image);

    if (size == 0 || size > CONTAINER_IMAGE_MAX || strspn(image, fit) != size ||
        strchr("._-/:@", image[0]) != NULL)
        return err_set(err, ERR_RANGE,
                       "'%.100s' is no name of an image: 1 to %d of a-z A-Z 0-9 . _ - / : @, the "
                       "first a letter or digit",
                       image, CONTAINER_IMAGE_MAX);
    return 0;
}

char *container_name_of(const char *name, pid_t keeper)
{
    size_t size = strcspn(name, "@");

    if (name[size] == '\0')
        return xstrdup(name);
    return xasprintf("%.*s%d-%llu", (int)size, name, (int)keeper,
                     (unsigned long long)child_start_ticks(keeper));
}

/* ---- command lines ---- */

static void add(struct container_words *to, char *word)
{
    to->words = xrealloc(to->words, to->count + 2, sizeof(*to->words));
    to->words[to->count++] = word;
    to->words[to->count] = NULL;
}

static void add_number(struct container_words *to, const char *name, uint64_t value)
{
    if (value > 0)
        add(to, xasprintf("--%s=%llu", name, (unsigned long long)value));
}

static void add_text(struct container_words *to, const char *name, const char *value)
{
    if (value != NULL)
        add(to, xasprintf("--%s=%s", name, value));
}

void container_words_done(struct container_words *words)
{
    for (size_t i = 0; i < words->count; i++)
        free(words->words[i]);
    mem_free(&words->words);
    words->count = 0;
}

/* The keeper, which removes that container in the end. */
static void add_keeper(struct container_words *to, const struct container_tool *tool,
                       const char *name)
{
    add(to, xstrdup("headrace"));
    add(to, xstrdup("confine"));
    add(to, xstrdup("--level=off"));
    if (name != NULL) {
        add_text(to, "kept-by", tool->program);
        add_text(to, "kept-container", name);
    }
    add(to, xstrdup("--"));
    add(to, xstrdup(tool->program));
}

size_t container_ids(char *text, const char **to, size_t most)
{
    size_t count = 0;
    char *rest = NULL;

    for (char *line = strtok_r(text, "\r\n", &rest); line != NULL && count < most;
         line = strtok_r(NULL, "\r\n", &rest)) {
        if (strlen(line) == CONTAINER_ID_SIZE &&
            strspn(line, "0123456789abcdef") == CONTAINER_ID_SIZE)
            to[count++] = line;
    }
    return count;
}

void container_call_words(const struct container_tool *tool, const char *const *words,
                          struct container_words *ret_words)
{
    *ret_words = (struct container_words){0};
    add_keeper(ret_words, tool, NULL);
    for (size_t i = 0; words[i] != NULL; i++)
        add(ret_words, xstrdup(words[i]));
}

static void add_limits(struct container_words *to, const struct container_run *run)
{
    const struct container_tool *tool = run->tool;

    if (run->memory_size > 0) { /* shared memory counts as memory */
        add_number(to, "memory", run->memory_size);
        add_number(to, "memory-swap", run->memory_size);
        add_number(to, "shm-size", run->memory_size);
    }
    add_number(to, "pids-limit", run->process_count);
    /* Podman's own defaults are more than a program without CAP_SYS_RESOURCE may give. */
    if (tool->is_podman && tool->file_count_max > 0)
        add(to, xasprintf("--ulimit=nofile=%llu:%llu", (unsigned long long)tool->file_count_max,
                          (unsigned long long)tool->file_count_max));
    if (tool->is_podman && tool->process_count_max > 0)
        add(to, xasprintf("--ulimit=nproc=%llu:%llu", (unsigned long long)tool->process_count_max,
                          (unsigned long long)tool->process_count_max));
}

static void add_gpus(struct container_words *to, const struct container_run *run)
{
    OWNED(buf_done) struct buf list = BUF_WITH_LIMIT(1024);

    for (size_t i = 0; i < run->gpu_count; i++) {
        if (run->tool->is_podman) /* by the names of NVIDIA's container device interface */
            add(to, xasprintf("--device=nvidia.com/gpu=%u", run->gpus[i]));
        else
            buf_printf(&list, "%s%u", i == 0 ? "" : ",", run->gpus[i]);
    }
    if (list.size > 0)
        add(to, xasprintf("--gpus=\"device=%s\"", buf_text(&list)));
}

static void add_mounts(struct container_words *to, const struct container_run *run)
{
    for (size_t i = 0; i < run->mount_count; i++)
        add(to, xasprintf("--volume=%s:%s%s", run->mounts[i].from, run->mounts[i].to,
                          run->mounts[i].read_only ? ":ro" : ""));
    for (size_t i = 0; i < run->env_count; i++)
        add(to, xasprintf("--env=%s", run->env[i]));
}

static int check(const struct container_run *run, struct err *err)
{
    for (size_t i = 0; i < run->mount_count; i++) {
        if (strchr(run->mounts[i].from, ':') != NULL)
            return err_set(err, ERR_RANGE, "'%.200s' has a colon, and a container cannot have it",
                           run->mounts[i].from);
    }
    return container_image_check(run->image, err);
}

int container_run_words(const struct container_run *run, struct container_words *ret_words,
                        struct err *err)
{
    struct container_words *to = ret_words;
    int r = check(run, err);

    *to = (struct container_words){0};
    if (r < 0)
        return r;
    add_keeper(to, run->tool, run->name);
    add(to, xstrdup("run"));
    add_text(to, "name", run->name);
    if (run->owner != NULL)
        add(to, xasprintf("--label=" CONTAINER_LABEL "=%s", run->owner));
    add(to, xstrdup("--log-driver=none")); /* what it prints comes to us, and is kept by us */
    if (run->init && run->tool->has_init)
        add(to, xstrdup("--init"));
    if (run->fetched)
        add(to, xstrdup("--pull=never"));
    add(to, xstrdup("--security-opt=no-new-privileges"));
    add(to, xstrdup("--stop-timeout=0")); /* who has it removed has waited before */
    if (run->publish != NULL)
        add_text(to, "publish", run->publish);
    else
        add(to, xstrdup("--network=host"));
    add_limits(to, run);
    add_gpus(to, run);
    add_mounts(to, run);
    add_text(to, "user", run->user);
    add_text(to, "workdir", run->workdir);
    if (run->command != NULL)
        add_text(to, "entrypoint", run->command[0]);
    add(to, xstrdup(run->image));
    for (size_t i = 1; run->command != NULL && run->command[i] != NULL; i++)
        add(to, xstrdup(run->command[i]));
    return 0;
}
