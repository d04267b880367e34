/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A node in a container of its job's image: the same script, folders and network as without one, at
 * the places where Baseten has them. How it comes and goes:
 *
 *   look ─▶ fetch, where it is not here ─▶ `run` under a keeper, which removes it in the end
 *
 * SIGTERM is told to each of its processes by a shell inside, since docker and podman tell it to
 * the first one only. That the script never ran is seen by its file, which it removes first; that
 * the kernel ended a process of it for its memory, by a file that it leaves (trainer_env.c).
 *
 * What a trainer that died with its keeper has left is known by its label, and goes at the start,
 * before anything is taken.
 */

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/settings.h"
#include "workers/trainer_int.h"

#define CALL_MS 30000
#define FETCH_MS (30ull * 60 * 1000)
#define SIZE_TURNS 10 /* seconds between two looks at what it has written into itself */
#define MOUNTS_MAX 48
#define SWEEP_MAX 64 /* more than a call tells of at a time */

const struct node_place node_places[NODE_PLACE_COUNT] = {
    [NODE_WORKSPACE] = {"workspace", "/b10/workspace"},
    [NODE_SCRATCH] = {"scratch", "/mnt/bt-scratch"},
    [NODE_CHECKPOINTS] = {"checkpoints", "/mnt/ckpts"},
    [NODE_LOADED] = {"loaded", "/tmp/loaded_checkpoints"},
};

/* ---- whether ---- */

static const char *node_image(const struct node *node)
{
    const char *image = json_string_value(json_object_get(node->spec, "base_image"));

    return image == NULL || image[0] == '\0' || strcmp(image, "none") == 0 ? NULL : image;
}

int node_container_choose(struct node *node, struct err *err)
{
    const char *image = node_image(node), *setting = node->trainer->settings->container;

    if (image == NULL || strcmp(setting, "never") == 0)
        return 0;
    container_find(&node->tool);
    if (node->tool.program == NULL && strcmp(setting, "require") == 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "image '%.200s' needs docker, whose daemon answers, or podman on trainer "
                       "%.60s, and neither is there (its setting container is 'require')",
                       image, node->trainer->settings->trainer);
    if (node->tool.program == NULL)
        return 0;
    node->image = image;
    (void)snprintf(node->container, sizeof(node->container), "headrace-train-%s-%u-%u",
                   node->job_text, node->placement, node->rank);
    return container_image_check(image, err);
}

void node_container_say(struct node *node)
{
    const char *image = node_image(node), *trainer = node->trainer->settings->trainer;
    OWNED(mem_free) char *line = NULL;

    if (image == NULL)
        return;
    if (node->image != NULL)
        line = xasprintf("headrace: in a container of %s, by %s", image,
                         container_tool_name(&node->tool));
    else if (strcmp(node->trainer->settings->container, "never") == 0)
        line = xasprintf("headrace: not in a container of %s: trainer %s is set to start none; the "
                         "commands find what its machine has",
                         image, trainer);
    else
        line = xasprintf("headrace: not in a container of %s: trainer %s has neither podman nor a "
                         "docker that answers; the commands find what its machine has",
                         image, trainer);
    node_log_say(node, line);
}

/* ---- its image ---- */

void node_container_look(struct node *node, container_done *done, void *opaque)
{
    const char *const words[] = {"image", "inspect", "--format", "{{.Id}}", node->image, NULL};

    container_call(node->trainer->loop, &node->tool, words, CALL_MS, done, opaque, &node->call);
}

void node_container_fetch(struct node *node, container_done *done, void *opaque)
{
    const char *const words[] = {"pull", "--quiet", node->image, NULL};

    log_info("image_fetched", LOG_STR("job", node->job_text), LOG_STR("image", node->image),
             LOG_STR("by", node->tool.program));
    container_call(node->trainer->loop, &node->tool, words, FETCH_MS, done, opaque, &node->call);
}

/* ---- its start ---- */

char *node_place(const struct node *node, enum node_place_id id)
{
    return node->image != NULL ? xstrdup(node_places[id].inside)
                               : xasprintf("%s/%s", node->dir, node_places[id].below);
}

/* Where caches of its project and tenant are; the second is below the first in a container. */
char *node_cache(const struct node *node, bool of_tenant)
{
    const char *home = geteuid() == 0 || node->tool.is_podman ? "/root/.cache" : "/b10/cache";

    if (node->image != NULL)
        return xasprintf("%s%s", home, of_tenant ? "/team_artifacts" : "");
    return xasprintf("%s/%s/%s", node->trainer->cache_dir, of_tenant ? "teams" : "projects",
                     of_tenant ? node->tenant : node->project);
}

struct mounts {
    struct container_mount rows[MOUNTS_MAX];
    size_t count;
};

static void mount_add(struct mounts *mounts, char *from, char *to, bool read_only)
{
    mounts->rows[mounts->count++] = (struct container_mount){from, to, read_only};
}

static void mounts_done(struct mounts *mounts)
{
    for (size_t i = 0; i < mounts->count; i++) {
        free((char *)mounts->rows[i].from); /* NOLINT: mount_add() was given them */
        free((char *)mounts->rows[i].to);
    }
}

static int mounts_fill(const struct node *node, struct mounts *mounts, struct err *err)
{
    const char *cache = node->trainer->cache_dir;
    OWNED(mem_free) char *read = xstrdup(node->trainer->settings->isolation_read);
    char *rest = NULL;

    for (size_t i = 0; i < NODE_PLACE_COUNT; i++) {
        if (i != NODE_LOADED || node->loaded != NULL)
            mount_add(mounts, xasprintf("%s/%s", node->dir, node_places[i].below),
                      node_place(node, (enum node_place_id)i), false);
    }
    mount_add(mounts, xasprintf("%s/projects/%s", cache, node->project), node_cache(node, false),
              false);
    mount_add(mounts, xasprintf("%s/teams/%s", cache, node->tenant), node_cache(node, true), false);
    for (char *at = strtok_r(read, ":", &rest); at != NULL; at = strtok_r(NULL, ":", &rest)) {
        if (mounts->count == MOUNTS_MAX)
            return err_set(err, ERR_RANGE, "isolation-read names more than %d folders", MOUNTS_MAX);
        mount_add(mounts, xstrdup(at), xstrdup(at), true);
    }
    return 0;
}

int node_container_words(const struct node *node, struct container_words *ret_words,
                         struct err *err)
{
    OWNED(mounts_done) struct mounts mounts = {.count = 0};
    bool is_root = geteuid() == 0 || node->tool.is_podman; /* to podman, root is who starts it */
    OWNED(mem_free)
    char *user = is_root ? xstrdup("0:0")
                         : xasprintf("%u:%u", (unsigned)geteuid(), (unsigned)getegid());
    OWNED(mem_free) char *workdir = node_place(node, NODE_WORKSPACE);
    OWNED(mem_free) char *scratch = node_place(node, NODE_SCRATCH);
    OWNED(mem_free) char *script = xasprintf("%s/" NODE_SCRIPT, scratch);
    const char *const command[] = {"/bin/sh", script, NULL};
    struct container_run run = {.tool = &node->tool,
                                .image = node->image,
                                .name = node->container,
                                .owner = node->trainer->jobs_dir,
                                .user = user,
                                .workdir = workdir,
                                .fetched = true,
                                .mounts = mounts.rows,
                                .memory_size = node->memory_size,
                                .process_count = (uint64_t)node->trainer->settings->host_processes,
                                .gpus = node->gpus,
                                .gpu_count = node->gpu_count,
                                .command = command};
    int r = mounts_fill(node, &mounts, err);

    run.mount_count = mounts.count;
    return r < 0 ? r : container_run_words(&run, ret_words, err);
}

/* ---- while it runs ---- */

static void on_told_term(void *opaque, int exit_code, const char *text)
{
    struct node *node = opaque;

    if (node_unbusy(node) || exit_code == 0)
        return;
    log_warn("container_not_told", LOG_STR("container", node->container), LOG_STR("text", text));
    node_kill(node); /* it has not begun, or has no shell any more */
}

void node_container_terminate(struct node *node)
{
    const char *const words[] = {
        "exec", node->container, "/bin/sh", "-c", "kill -TERM 1; kill -TERM -1", NULL};

    node->busy++;
    container_call(node->trainer->loop, &node->tool, words, CALL_MS, on_told_term, node,
                   &node->term_call);
}

static bool number(const char *text, int64_t *ret_number)
{
    struct err err;

    return settings_parse_int("", text, ret_number, &err) == 0 && *ret_number >= 0;
}

static void on_pid(void *opaque, int exit_code, const char *text)
{
    struct node *node = opaque;
    int64_t pid = 0;

    if (!node_unbusy(node) && exit_code == 0 && number(text, &pid))
        node->container_pid = (pid_t)pid;
}

static void on_size(void *opaque, int exit_code, const char *text)
{
    struct node *node = opaque;
    int64_t size = 0;

    if (!node_unbusy(node) && exit_code == 0 && number(text, &size))
        node->container_size = (uint64_t)size;
}

void node_container_watch(struct node *node)
{
    const char *const pid[] = {"inspect", "--format", "{{.State.Pid}}", node->container, NULL};
    const char *const size[] = {"inspect",     "--size",        "--format",
                                "{{.SizeRw}}", node->container, NULL};
    bool has_pid = node->container_pid > 0;

    if (node->call != NULL || (has_pid && ++node->container_turns % SIZE_TURNS != 0))
        return;
    node->busy++;
    container_call(node->trainer->loop, &node->tool, has_pid ? size : pid, CALL_MS,
                   has_pid ? on_size : on_pid, node, &node->call);
}

bool node_container_never_ran(const struct node *node)
{
    OWNED(mem_free) char *path = xasprintf("%s/scratch/" NODE_SCRIPT, node->dir);

    return node->image != NULL && access(path, F_OK) == 0;
}

bool node_container_was_short(const struct node *node)
{
    OWNED(mem_free) char *path = xasprintf("%s/scratch/" NODE_SHORT_MARK, node->dir);

    return node->image != NULL && access(path, F_OK) == 0;
}

/* ---- what is left over ---- */

static void on_swept(void *opaque, int exit_code, const char *text)
{
    struct trainer *trainer = opaque;

    if (exit_code != 0) {
        log_warn("containers_stay", LOG_STR("text", text));
        trainer_look_soon(trainer);
        return;
    }
    trainer_containers_sweep(trainer); /* there may be more than one list has room for */
}

static void on_left_over(void *opaque, int exit_code, const char *text)
{
    struct trainer *trainer = opaque;
    OWNED(mem_free) char *ids = xstrdup(text);
    const char *words[SWEEP_MAX + 3] = {"rm", "--force"};
    size_t count = container_ids(ids, words + 2, SWEEP_MAX);

    if (exit_code != 0)
        log_warn("containers_stay", LOG_STR("text", text));
    if (exit_code != 0 || count == 0) {
        trainer_look_soon(trainer);
        return;
    }
    log_info("containers_swept", LOG_U64("count", count));
    container_call(trainer->loop, &trainer->tool, words, CALL_MS, on_swept, trainer,
                   &trainer->call);
}

void trainer_containers_sweep(struct trainer *trainer)
{
    OWNED(mem_free) char *label = xasprintf("label=" CONTAINER_LABEL "=%s", trainer->jobs_dir);
    const char *const words[] = {"ps", "--all", "--quiet", "--no-trunc", "--filter", label, NULL};

    if (strcmp(trainer->settings->container, "never") != 0)
        container_find(&trainer->tool);
    if (trainer->tool.program == NULL)
        trainer_look_soon(trainer);
    else
        container_call(trainer->loop, &trainer->tool, words, CALL_MS, on_left_over, trainer,
                       &trainer->call);
}
