/* SPDX-License-Identifier: Apache-2.0 */

#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "workers/agent_core_int.h"

#define HASTE_MS 1000      /* a worker that is told to stop twice hands back at once */
#define WORKER_EXIT_LOAD 2 /* of the worker program: the model could not be loaded */

const struct agent_options agent_options_default = {
    .restart_ms_min = 200,
    .restart_ms_max = 30000,
    .steady_ms = 60000,
    .stop_ms = 40000,
    .lost_ms = 5000,
    .place_ms = 1000,
    .warm_max = 8,
    .devices = {.fault_max = 3,
                .window_ms = 600000,
                .quarantine_ms = 60000,
                .quarantine_ms_max = 3600000},
};

/* ---- to-dos ---- */

static struct agent_todo *todo_add(struct agent_core *core, enum agent_todo_type type)
{
    struct agent_todo *todo;

    if (core->todo_first == core->todo_count)
        core->todo_first = core->todo_count = 0;
    if (core->todo_count == core->todo_room) {
        core->todo_room = core->todo_room == 0 ? 16 : core->todo_room * 2;
        core->todos = xrealloc(core->todos, core->todo_room, sizeof(*core->todos));
    }
    todo = &core->todos[core->todo_count++];
    *todo = (struct agent_todo){.type = type};
    return todo;
}

bool agent_core_next_todo(struct agent_core *core, struct agent_todo *ret_todo)
{
    if (core->todo_first == core->todo_count)
        agent_warm_settle(core);
    if (core->todo_first == core->todo_count)
        return false;
    *ret_todo = core->todos[core->todo_first++];
    return true;
}

struct agent_todo *agent_core_todo_of(struct agent_core *core, enum agent_todo_type type,
                                      const struct replica *replica)
{
    struct agent_todo *todo = todo_add(core, type);

    mem_copy_text(todo->worker, replica->worker);
    mem_copy_text(todo->deployment_id, replica->deployment_id);
    todo->boot = replica->boot;
    todo->shard = replica->shard;
    todo->restart_count = replica->restart_count;
    return todo;
}

/* As people and the next agent read it: "cuda:GPU-…,GPU-…". */
static void device_text(const struct agent_core *core, const struct replica *replica,
                        char to[AGENT_DEVICE_SIZE])
{
    struct device_placement placement;
    size_t size;

    to[0] = '\0';
    if (!devices_placed(core->devices, replica->worker, &placement))
        return;
    size = (size_t)snprintf(to, AGENT_DEVICE_SIZE, "cuda:");
    for (uint32_t i = 0; i < placement.count; i++)
        size += (size_t)snprintf(to + size, AGENT_DEVICE_SIZE - size, "%s%s", i > 0 ? "," : "",
                                 placement.uuids[i]);
}

void agent_core_tell(struct agent_core *core, struct replica *replica, const char *state,
                     const char *reason)
{
    struct agent_todo *todo = agent_core_todo_of(core, AGENT_TODO_REPLICA, replica);

    replica->state = state;
    if (reason != replica->reason)
        mem_copy_text(replica->reason, reason);
    mem_copy_text(todo->state, state);
    mem_copy_text(todo->reason, reason);
    device_text(core, replica, todo->device);
}

/* ---- finding ---- */

static struct agent_deployment *deployment_find(struct agent_core *core, const char *id)
{
    for (size_t i = 0; i < core->deployment_count; i++) {
        if (strcmp(core->deployments[i].id, id) == 0)
            return &core->deployments[i];
    }
    return NULL;
}

struct replica *agent_core_find(struct agent_core *core, const char *worker)
{
    struct replica *replica;

    TAILQ_FOREACH(replica, &core->replicas, link)
    {
        if (strcmp(replica->worker, worker) == 0)
            return replica;
    }
    return NULL;
}

static struct archive *archive_find(struct agent_core *core, const char *digest)
{
    struct archive *archive;

    TAILQ_FOREACH(archive, &core->archives, link)
    {
        if (strcmp(archive->digest, digest) == 0)
            return archive;
    }
    return NULL;
}

static bool deployment_has_ready(struct agent_core *core, const char *id)
{
    struct replica *replica;

    TAILQ_FOREACH(replica, &core->replicas, link)
    {
        if (replica->phase == PHASE_READY && strcmp(replica->deployment_id, id) == 0)
            return true;
    }
    return false;
}

/* ---- starting ---- */

static struct replica *replica_new(struct agent_core *core, const char *worker,
                                   const char *deployment_id)
{
    struct replica *replica = xcalloc(1, sizeof(*replica));

    mem_copy_text(replica->worker, worker);
    mem_copy_text(replica->deployment_id, deployment_id);
    TAILQ_INSERT_TAIL(&core->replicas, replica, link);
    return replica;
}

/* What it has of a device is free. */
static void replica_release(struct agent_core *core, const struct replica *replica)
{
    struct device_placement placement;

    core->room_freed |= devices_placed(core->devices, replica->worker, &placement);
    devices_release(core->devices, replica->worker);
}

static void replica_forget(struct agent_core *core, struct replica *replica)
{
    replica_release(core, replica);
    TAILQ_REMOVE(&core->replicas, replica, link);
    free(replica);
}

static void replica_claim(struct agent_core *core, struct replica *replica,
                          const struct agent_deployment *deployment)
{
    replica->phase = PHASE_CLAIMING;
    replica->start_ms = AGENT_NEVER_MS;
    agent_core_todo_of(core, AGENT_TODO_CLAIM, replica)->deployment = deployment;
}

static void replica_start(struct agent_core *core, struct replica *replica,
                          const struct agent_deployment *deployment, const char *folder)
{
    struct agent_todo *todo = agent_core_todo_of(core, AGENT_TODO_START, replica);

    replica->phase = PHASE_STARTING;
    replica->evicted = false;
    replica->warm = todo->warm = deployment->replicas_warm > 0;
    replica->boot = 0;
    core->stats.starts++;
    todo->deployment = deployment;
    todo->folder = folder;
    agent_core_tell(core, replica, "LOADING", "");
}

/* ---- placing ---- */

/* Its own words for what a deployment needs, checked when it was pushed. */
static int need_parse(const char *device, const char *text, struct gpu_need *ret_need,
                      struct err *err)
{
    json_t *config = json_loads(text, 0, NULL);
    int r = gpu_need_parse(device, json_object_get(config, "resources"), ret_need, err);

    json_decref(config);
    return r;
}

int agent_core_need_of(const struct agent_deployment *deployment, struct gpu_need *ret_need,
                       struct err *err)
{
    return need_parse(deployment->device, deployment->config, ret_need, err);
}

/* Whether devices of one other machine would do; now: as they are at this moment. */
static bool fits_elsewhere(const struct agent_core *core, const struct gpu_need *need, bool now)
{
    uint32_t count = 0;

    for (size_t i = 0; i < core->elsewhere_count; i++) {
        const struct agent_elsewhere *there = &core->elsewhere[i];
        bool is_next = i > 0 && strcmp(there->host, core->elsewhere[i - 1].host) == 0;
        bool fits = device_fits(&there->info, need) == DEVICE_FITS;

        if (now && need->memory_size == 0)
            fits = fits && there->empty && there->free_size > 0;
        else if (now)
            fits = fits && there->free_size >= need->memory_size;
        count = (is_next ? count : 0) + fits;
        if (count >= need->count)
            return true;
    }
    return false;
}

/* Another machine's devices would do, and ours will not (now): its agent is to have the row. */
static bool is_for_others(const struct agent_core *core, const struct agent_deployment *deployment)
{
    struct gpu_need need;
    struct err err;
    int r;

    if (!gpu_is_wanted(deployment->device) || agent_core_need_of(deployment, &need, &err) < 0)
        return false;
    r = devices_check(core->devices, deployment->id, &need, &err);
    return r < 0 && fits_elsewhere(core, &need, r != ERR_UNSUPPORTED);
}

/* No room now: asks again soon, and says why it waits once. */
static void replica_wait(struct agent_core *core, struct replica *replica, const char *why)
{
    bool is_news = replica->state == NULL || strcmp(replica->state, "STARTING") != 0 ||
                   strcmp(replica->reason, why) != 0;

    replica->phase = PHASE_WAITING;
    replica->starved = true;
    replica->start_ms = core->now_ms + core->options.place_ms;
    if (is_news)
        agent_core_tell(core, replica, "STARTING", why);
}

static void deployment_fail(struct agent_core *core, const char *id, const char *reason);

/* True: it has what it needs. False: it waits, has failed or was given up, and may be no more. */
static bool replica_place(struct agent_core *core, struct replica *replica,
                          const struct agent_deployment *deployment)
{
    struct device_placement placement;
    struct gpu_need need;
    struct err err = {0};
    bool is_spare;
    int r;

    replica->starved = false;
    if (!gpu_is_wanted(deployment->device))
        return true;
    is_spare = agent_warm_is_spare(core, replica, deployment);
    r = agent_core_need_of(deployment, &need, &err);
    if (r == 0)
        r = devices_place(core->devices, replica->worker, deployment->id, &need, &placement, &err);
    if (r == 0 && is_spare && agent_warm_must_wait(core, replica)) {
        devices_release(core->devices, replica->worker);
        r = err_set(&err, ERR_FULL, "its room is kept for a worker that is to serve");
    }
    devices_set_spare(core->devices, replica->worker, is_spare);
    if (r == 0)
        return true;
    if (is_for_others(core, deployment)) {
        agent_core_tell(core, replica, "STOPPED", err.text);
        replica_forget(core, replica);
    } else if (err_class(r) == ERR_CLASS_REJECT && !deployment->was_active) {
        deployment_fail(core, deployment->id, err.text);
    } else {
        if (r == ERR_FULL && !is_spare)
            agent_warm_reclaim(core, deployment, &need);
        replica_wait(core, replica, err.text);
    }
    return false;
}

/* Starts it, or asks for its archive first. */
static void replica_prepare(struct agent_core *core, struct replica *replica)
{
    const struct agent_deployment *deployment = deployment_find(core, replica->deployment_id);
    struct archive *archive;

    assert(deployment != NULL);
    replica->shard = deployment->shard;
    if (!replica_place(core, replica, deployment))
        return;
    if (deployment->digest[0] == '\0') {
        replica_start(core, replica, deployment, "");
        return;
    }
    archive = archive_find(core, deployment->digest);
    if (archive != NULL && archive->folder != NULL) {
        replica_start(core, replica, deployment, archive->folder);
        return;
    }
    replica->phase = PHASE_FETCHING;
    if (archive != NULL)
        return;
    archive = xcalloc(1, sizeof(*archive));
    mem_copy_text(archive->digest, deployment->digest);
    TAILQ_INSERT_TAIL(&core->archives, archive, link);
    todo_add(core, AGENT_TODO_FETCH)->deployment = deployment;
}

/* It will be started again: only a failure for good is FAILED, for that ends its deployment. */
static void replica_back_off(struct agent_core *core, struct replica *replica, const char *why)
{
    uint64_t wait_ms = core->options.restart_ms_min;

    for (uint32_t i = 0; i < replica->failures && wait_ms < core->options.restart_ms_max; i++)
        wait_ms *= 2;
    replica_release(core, replica);
    replica->failures++;
    replica->restart_count++;
    replica->starved = false;
    replica->phase = PHASE_WAITING;
    replica->start_ms = core->now_ms + (wait_ms < core->options.restart_ms_max
                                            ? wait_ms
                                            : core->options.restart_ms_max);
    agent_core_tell(core, replica, "STARTING", why);
}

/* ---- stopping ---- */

void agent_core_stop(struct agent_core *core, struct replica *replica)
{
    replica->wanted = false;
    if (replica->phase == PHASE_STOPPING)
        return;
    if (replica->running) {
        replica->phase = PHASE_STOPPING;
        replica->kill_ms = core->now_ms + core->options.stop_ms;
        replica->haste_ms = AGENT_NEVER_MS;
        (void)agent_core_todo_of(core, AGENT_TODO_STOP, replica);
        agent_core_tell(core, replica, "DRAINING", "");
        return;
    }
    if (replica->phase == PHASE_STARTING)
        return; /* agent_core_on_started() sees that it is not wanted */
    if (replica->phase != PHASE_CLAIMING && replica->phase != PHASE_FAILED)
        agent_core_tell(core, replica, "STOPPED", "");
    replica_forget(core, replica);
}

static void exit_when_empty(struct agent_core *core)
{
    if (!core->draining || core->asked_exit || !TAILQ_EMPTY(&core->replicas))
        return;
    core->asked_exit = true;
    (void)todo_add(core, AGENT_TODO_EXIT);
}

/* ---- deployments ---- */

static void deployments_free(struct agent_deployment *deployments, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(deployments[i].config);
    free(deployments);
}

static void worker_name(char to[AGENT_NAME_SIZE], const char *deployment_id, uint32_t index)
{
    (void)snprintf(to, AGENT_NAME_SIZE, "%.58s-%u", deployment_id, index);
}

/* Rows of spares that are ours already: as they were before, and those that are wanted again. */
struct spares {
    uint32_t before, kept;
};

/* A spare's row is not asked for, and not kept, where this machine has as many as it may. */
static bool is_too_many(const struct agent_core *core, const struct replica *replica,
                        struct spares *spares)
{
    bool held = replica != NULL && replica->phase != PHASE_CLAIMING;

    spares->kept += held;
    return held ? spares->kept > core->options.warm_max
                : replica == NULL && spares->before >= core->options.warm_max;
}

static void deployment_want(struct agent_core *core, struct agent_deployment *deployment,
                            struct spares *spares)
{
    uint32_t count = deployment->replicas_wanted + deployment->replicas_warm;

    for (uint32_t i = 0; i < count && i < AGENT_REPLICAS_MAX; i++) {
        char name[AGENT_NAME_SIZE];
        struct replica *replica;

        worker_name(name, deployment->id, i);
        replica = agent_core_find(core, name);
        if (i >= deployment->replicas_wanted && is_too_many(core, replica, spares))
            continue;
        if (replica == NULL && is_for_others(core, deployment))
            continue;
        if (replica == NULL) {
            replica = replica_new(core, name, deployment->id);
            replica_claim(core, replica, deployment);
        }
        replica->wanted = true;
    }
    if (deployment_has_ready(core, deployment->id))
        deployment->was_active = true;
}

/* What no deployment names may be gone from the cache when one does again. */
static void archives_forget(struct agent_core *core)
{
    struct archive *archive, *next;

    for (archive = TAILQ_FIRST(&core->archives); archive != NULL; archive = next) {
        bool named = archive->folder == NULL; /* being fetched */

        next = TAILQ_NEXT(archive, link);
        for (size_t i = 0; !named && i < core->deployment_count; i++)
            named = strcmp(core->deployments[i].digest, archive->digest) == 0;
        if (named)
            continue;
        TAILQ_REMOVE(&core->archives, archive, link);
        free(archive->folder);
        free(archive);
    }
}

/* Whether fewer of it are wanted than these said, or it is in none of them. */
static bool has_shrunk(const struct agent_deployment *deployment,
                       const struct agent_deployment *before, size_t before_count)
{
    for (size_t i = 0; i < before_count; i++) {
        if (strcmp(before[i].id, deployment->id) == 0)
            return before[i].replicas_wanted > deployment->replicas_wanted;
    }
    return true;
}

static void deployments_want(struct agent_core *core, const struct agent_deployment *before,
                             size_t before_count)
{
    struct spares spares = {.before = agent_warm_count(core, NULL)};

    for (size_t i = 0; i < core->deployment_count; i++) {
        struct agent_deployment *deployment = &core->deployments[i];

        deployment_want(core, deployment, &spares);
        if (deployment->replicas_warm > 0 && has_shrunk(deployment, before, before_count))
            agent_warm_shrink(core, deployment);
    }
}

void agent_core_on_deployments(struct agent_core *core, struct agent_deployment *deployments,
                               size_t deployment_count)
{
    struct agent_deployment *before = core->deployments;
    size_t before_count = core->deployment_count;
    struct replica *replica, *next;

    core->deployments = xmemdup(deployments, deployment_count * sizeof(*deployments));
    core->deployment_count = deployment_count;
    if (!core->draining) {
        archives_forget(core);
        TAILQ_FOREACH(replica, &core->replicas, link) replica->wanted = false;
        deployments_want(core, before, before_count);
    }
    deployments_free(before, before_count);
    for (replica = TAILQ_FIRST(&core->replicas); replica != NULL && !core->draining;
         replica = next) {
        next = TAILQ_NEXT(replica, link);
        if (!replica->wanted)
            agent_core_stop(core, replica);
    }
}

/* ---- answers and ends ---- */

/* What an adopted worker has is its own, from the start on and whatever becomes of its deployment.
 */
static void replica_reserve(struct agent_core *core, const struct replica *replica,
                            const char *config, const char *device)
{
    struct device_placement placement = {.count = 0};
    char text[AGENT_DEVICE_SIZE], *rest = text, *uuid;
    struct gpu_need need;
    struct err err;

    mem_copy_text(text, device);
    if (strncmp(text, "cuda:", 5) != 0 || need_parse("cuda", config, &need, &err) < 0)
        return;
    rest += 5;
    while ((uuid = strsep(&rest, ",")) != NULL && placement.count < DEVICE_COUNT_MAX)
        mem_copy_text(placement.uuids[placement.count++], uuid);
    placement.memory_size = need.memory_size;
    devices_adopt(core->devices, replica->worker, replica->deployment_id, &placement);
}

void agent_core_on_adopted(struct agent_core *core, const char *worker, const char *deployment,
                           const char *config, const char *device, uint32_t shard, uint64_t boot,
                           uint32_t restart_count, bool warm)
{
    struct replica *replica = replica_new(core, worker, deployment);

    replica_reserve(core, replica, config, device);
    replica->phase = PHASE_READY;
    replica->wanted = replica->running = true;
    replica->shard = shard;
    replica->boot = boot;
    replica->restart_count = restart_count;
    replica->ready_ms = core->now_ms;
    replica->warm = warm;
    if (warm) /* whatever its row says */
        agent_core_tell(core, replica, "WARM", "");
}

void agent_core_on_claimed(struct agent_core *core, const char *worker, bool ours)
{
    struct replica *replica = agent_core_find(core, worker);

    if (replica == NULL || replica->phase != PHASE_CLAIMING)
        return;
    if (ours && replica->wanted && !agent_warm_is_over(core, replica)) {
        replica_prepare(core, replica);
    } else { /* another agent's: asked for again when the deployments are read again */
        if (ours)
            agent_core_tell(core, replica, "STOPPED", "");
        replica_forget(core, replica);
    }
    exit_when_empty(core);
}

/* For good: whoever runs is stopped. */
static void deployment_fail(struct agent_core *core, const char *id, const char *reason)
{
    struct replica *replica, *next;

    for (replica = TAILQ_FIRST(&core->replicas); replica != NULL; replica = next) {
        next = TAILQ_NEXT(replica, link);
        if (strcmp(replica->deployment_id, id) != 0)
            continue;
        if (replica->running) {
            agent_core_stop(core, replica);
        } else if (replica->phase == PHASE_STARTING) {
            replica->wanted = false; /* agent_core_on_started() sees it */
        } else if (replica->phase != PHASE_FAILED) {
            replica->phase = PHASE_FAILED;
            replica_release(core, replica);
            agent_core_tell(core, replica, "FAILED", reason);
        }
    }
}

void agent_core_on_fetched(struct agent_core *core, const char *digest, const char *folder,
                           bool final, const char *why)
{
    struct archive *archive = archive_find(core, digest);
    struct replica *replica, *next;

    if (archive == NULL)
        return;
    if (folder != NULL) {
        archive->folder = xstrdup(folder);
    } else {
        TAILQ_REMOVE(&core->archives, archive, link);
        free(archive);
    }
    for (replica = TAILQ_FIRST(&core->replicas); replica != NULL; replica = next) {
        const struct agent_deployment *deployment = deployment_find(core, replica->deployment_id);

        next = TAILQ_NEXT(replica, link);
        if (replica->phase != PHASE_FETCHING || deployment == NULL ||
            strcmp(deployment->digest, digest) != 0)
            continue;
        if (folder != NULL) {
            replica_prepare(core, replica);
        } else if (final && !deployment->was_active) {
            deployment_fail(core, deployment->id, why);
        } else {
            replica_back_off(core, replica, why);
        }
    }
}

void agent_core_on_started(struct agent_core *core, const char *worker, bool started, bool final,
                           const char *why)
{
    struct replica *replica = agent_core_find(core, worker);
    const struct agent_deployment *deployment;

    if (replica == NULL || replica->phase != PHASE_STARTING)
        return;
    replica->running = started;
    if (!started)
        replica_back_off(core, replica, why);
    deployment = deployment_find(core, replica->deployment_id);
    if (!replica->wanted || (replica->evicted && started))
        agent_core_stop(core, replica);
    else if (!started && final && deployment != NULL && !deployment->was_active)
        deployment_fail(core, replica->deployment_id, why);
    exit_when_empty(core);
}

/* It has loaded; who waits is told what it is by agent_warm_settle(). */
static void replica_on_loaded(struct agent_core *core, const char *worker, uint64_t boot, bool warm)
{
    struct replica *replica = agent_core_find(core, worker);
    struct agent_deployment *deployment;

    if (replica == NULL || !replica->running)
        return;
    replica->boot = boot;
    if (replica->phase != PHASE_STARTING)
        return;
    replica->phase = PHASE_READY;
    replica->ready_ms = core->now_ms;
    replica->warm = warm;
    devices_on_loaded(core->devices, worker);
    if (!warm)
        agent_core_tell(core, replica, "READY", "");
    deployment = deployment_find(core, replica->deployment_id);
    if (deployment != NULL)
        deployment->was_active = true;
}

void agent_core_on_ready(struct agent_core *core, const char *worker, uint64_t boot)
{
    replica_on_loaded(core, worker, boot, false);
}

void agent_core_on_warm(struct agent_core *core, const char *worker, uint64_t boot)
{
    replica_on_loaded(core, worker, boot, true);
}

/* It came to its own end, whatever the code says of it; or it was told to stop, and we killed it
 * when it did not. Nothing that it ran has killed it. */
static bool ended_by_will(const struct replica *replica, int exit_code, int signal)
{
    return signal == 0 ? exit_code != AGENT_EXIT_UNKNOWN
                       : signal == SIGKILL && replica->phase == PHASE_STOPPING;
}

static void tell_gone(struct agent_core *core, const struct replica *replica, bool left,
                      const char *why)
{
    struct agent_todo *todo = agent_core_todo_of(core, AGENT_TODO_GONE, replica);

    todo->left = left;
    mem_copy_text(todo->reason, why);
}

void agent_core_on_ended(struct agent_core *core, const char *worker, int exit_code, int signal,
                         const char *why)
{
    struct replica *replica = agent_core_find(core, worker);
    const struct agent_deployment *deployment;
    bool was_ready, clean = signal == 0 && exit_code == 0;

    if (replica == NULL)
        return;
    replica->running = false;
    was_ready = replica->phase == PHASE_READY;
    if (replica->boot != 0 && !clean &&
        !replica->warm) /* nobody knows of one that has not served */
        tell_gone(core, replica, ended_by_will(replica, exit_code, signal), why);
    if (!replica->wanted || replica->phase == PHASE_STOPPING) {
        agent_core_tell(core, replica, "STOPPED", why);
        replica_forget(core, replica);
        exit_when_empty(core);
        return;
    }
    core->stats.crashes += !clean;
    deployment = deployment_find(core, replica->deployment_id);
    if (signal == 0 && exit_code == WORKER_EXIT_LOAD && deployment != NULL &&
        !deployment->was_active) {
        replica->phase = PHASE_WAITING; /* for nothing: it has failed, too */
        deployment_fail(core, replica->deployment_id, why);
        return;
    }
    if (was_ready && core->now_ms - replica->ready_ms >= core->options.steady_ms)
        replica->failures = 0;
    replica_back_off(core, replica, why);
}

void agent_core_tell_again(struct agent_core *core)
{
    struct replica *replica;

    TAILQ_FOREACH(replica, &core->replicas, link)
    {
        if (replica->state != NULL)
            agent_core_tell(core, replica, replica->state, replica->reason);
    }
}

void agent_core_drain(struct agent_core *core)
{
    struct replica *replica, *next;

    core->draining = true;
    for (replica = TAILQ_FIRST(&core->replicas); replica != NULL; replica = next) {
        next = TAILQ_NEXT(replica, link);
        agent_core_stop(core, replica);
    }
    exit_when_empty(core);
}

/* ---- devices ---- */

/* Its device is out. When it has ended it is claimed and placed anew, with the next deployments. */
static void replica_evict(struct agent_core *core, struct replica *replica, bool hopeless,
                          const char *why)
{
    if (replica->phase == PHASE_FETCHING || replica->phase == PHASE_WAITING) {
        replica_release(core, replica);
        replica_wait(core, replica, why);
        return;
    }
    replica->evicted = true;
    if (!replica->running)
        return; /* agent_core_on_started() sees it */
    agent_core_stop(core, replica);
    if (!hopeless)
        return;
    replica->haste_ms = core->now_ms + HASTE_MS;
    if (core->now_ms + core->options.lost_ms < replica->kill_ms)
        replica->kill_ms = core->now_ms + core->options.lost_ms;
}

static void devices_pump(struct agent_core *core)
{
    struct devices_todo todo;
    struct replica *replica;

    while (devices_next_todo(core->devices, &todo)) {
        switch (todo.type) {
        case DEVICES_TODO_DRAIN:
            replica = agent_core_find(core, todo.holder);
            if (replica != NULL)
                replica_evict(core, replica, todo.hopeless, todo.why);
            break;
        case DEVICES_TODO_PROBE:
            mem_copy_text(todo_add(core, AGENT_TODO_PROBE)->reason, todo.uuid);
            break;
        case DEVICES_TODO_TELL:
            (void)todo_add(core, AGENT_TODO_DEVICES);
            break;
        }
    }
}

void agent_core_on_inventory(struct agent_core *core, const struct device_info *infos, size_t count,
                             const char *why_none)
{
    devices_on_inventory(core->devices, infos, count, why_none);
    devices_pump(core);
}

void agent_core_on_silent(struct agent_core *core, const char *why)
{
    devices_on_silent(core->devices, why);
    devices_pump(core);
}

void agent_core_on_xid(struct agent_core *core, const char *uuid, uint64_t xid, const char *why)
{
    devices_on_fault(core->devices, uuid, DEVICE_FAULT_XID, xid, why);
    devices_pump(core);
}

void agent_core_on_worker_fault(struct agent_core *core, const char *worker,
                                enum device_fault fault, const char *why)
{
    devices_on_holder_fault(core->devices, worker, fault, why);
    devices_pump(core);
}

void agent_core_on_probed(struct agent_core *core, const char *uuid, bool well, const char *why)
{
    devices_on_probed(core->devices, uuid, well, why);
    devices_pump(core);
}

void agent_core_on_elsewhere(struct agent_core *core, const struct agent_elsewhere *devices,
                             size_t count)
{
    free(core->elsewhere);
    core->elsewhere = count == 0 ? NULL : xmemdup(devices, count * sizeof(*devices));
    core->elsewhere_count = count;
}

bool agent_core_placement(const struct agent_core *core, const char *worker,
                          struct device_placement *ret_placement)
{
    return devices_placed(core->devices, worker, ret_placement);
}

const struct devices *agent_core_devices(const struct agent_core *core)
{
    return core->devices;
}

/* ---- time ---- */

void agent_core_tick(struct agent_core *core, uint64_t now_ms)
{
    struct replica *replica, *next;

    core->now_ms = now_ms;
    devices_tick(core->devices, now_ms);
    devices_pump(core);
    for (replica = TAILQ_FIRST(&core->replicas); replica != NULL; replica = next) {
        next = TAILQ_NEXT(replica, link);
        if (replica->phase == PHASE_STOPPING && replica->haste_ms <= now_ms) {
            replica->haste_ms = AGENT_NEVER_MS;
            (void)agent_core_todo_of(core, AGENT_TODO_STOP, replica);
        }
        if (replica->phase == PHASE_STOPPING && replica->kill_ms <= now_ms) {
            replica->kill_ms = AGENT_NEVER_MS;
            (void)agent_core_todo_of(core, AGENT_TODO_KILL, replica);
        }
        if (replica->phase != PHASE_WAITING || replica->start_ms > now_ms)
            continue;
        if (deployment_find(core, replica->deployment_id) == NULL)
            replica->start_ms = now_ms + core->options.restart_ms_max; /* not read yet */
        else
            replica_prepare(core, replica);
    }
}

uint64_t agent_core_due_ms(const struct agent_core *core)
{
    const struct replica *replica;
    uint64_t due_ms = devices_due_ms(core->devices);

    TAILQ_FOREACH(replica, &core->replicas, link)
    {
        if (replica->phase == PHASE_STOPPING && replica->kill_ms < due_ms)
            due_ms = replica->kill_ms;
        if (replica->phase == PHASE_STOPPING && replica->haste_ms < due_ms)
            due_ms = replica->haste_ms;
        if (replica->phase == PHASE_WAITING && replica->start_ms < due_ms)
            due_ms = replica->start_ms;
    }
    return due_ms;
}

/* ---- life ---- */

struct agent_core *agent_core_new(const struct agent_options *options)
{
    struct agent_core *core = xcalloc(1, sizeof(*core));

    core->options = *options;
    core->devices = devices_new(&options->devices);
    TAILQ_INIT(&core->replicas);
    TAILQ_INIT(&core->archives);
    return core;
}

void agent_core_free(struct agent_core **core_p)
{
    struct agent_core *core = TAKE(*core_p);
    struct archive *archive;

    if (core == NULL)
        return;
    while (!TAILQ_EMPTY(&core->replicas))
        replica_forget(core, TAILQ_FIRST(&core->replicas));
    while ((archive = TAILQ_FIRST(&core->archives)) != NULL) {
        TAILQ_REMOVE(&core->archives, archive, link);
        free(archive->folder);
        free(archive);
    }
    deployments_free(core->deployments, core->deployment_count);
    devices_free(&core->devices);
    free(core->elsewhere);
    free(core->todos);
    free(core);
}

struct agent_stats agent_core_stats(const struct agent_core *core)
{
    struct agent_stats stats = core->stats;
    const struct replica *replica;

    stats.deployments = (uint32_t)core->deployment_count;
    TAILQ_FOREACH(replica, &core->replicas, link)
    {
        stats.workers += replica->running;
        stats.ready += replica->phase == PHASE_READY && !replica->warm;
        stats.warm += replica->phase == PHASE_READY && replica->warm;
    }
    return stats;
}

bool agent_core_deployment_stats(const struct agent_core *core, size_t index,
                                 struct agent_deployment_stats *ret_stats)
{
    const struct replica *replica;

    if (index >= core->deployment_count)
        return false;
    *ret_stats = (struct agent_deployment_stats){.deployment = &core->deployments[index]};
    TAILQ_FOREACH(replica, &core->replicas, link)
    {
        if (strcmp(replica->deployment_id, ret_stats->deployment->id) != 0)
            continue;
        ret_stats->ready += replica->phase == PHASE_READY && !replica->warm;
        ret_stats->warm += replica->phase == PHASE_READY && replica->warm;
        ret_stats->starting += replica->phase <= PHASE_STARTING;
        ret_stats->restart_count += replica->restart_count;
    }
    return true;
}
