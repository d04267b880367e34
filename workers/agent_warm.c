/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Workers that are kept warm: loaded, and without work until they are told to serve.
 *
 * A deployment has replicas_wanted workers that serve and replicas_warm spares beside them. Which
 * is which is not in their names: of its rows this agent holds some below replicas_wanted, and so
 * many of its workers of that deployment serve, whatever their numbers are. So every agent decides
 * for itself, and a row that comes over from a machine that is gone makes a spare serve here.
 *
 *   started with --standby ─▶ WARM ─▶ SERVE: one too few serves ─▶ READY
 *                              └──▶ STOP: its room is wanted, or nobody wants it
 *
 * All workers of a deployment that has spares start the same way; who is loaded first serves first.
 * There is no way back: who serves and is too many drains, ends, and begins again as a spare; at
 * once where fewer are wanted than were, after steady_ms where a row has gone to another agent.
 */

#include <string.h>

#include "base/assert.h"
#include "workers/agent_core_int.h"

#define RANK_NONE UINT32_MAX

/* ---- counting ---- */

static uint32_t number_of(const struct replica *replica)
{
    const char *at = strrchr(replica->worker, '-');
    uint32_t number = 0;

    while (at != NULL && *++at >= '0' && *at <= '9')
        number = number * 10 + (uint32_t)(*at - '0');
    return number;
}

static bool is_of(const struct replica *replica, const struct agent_deployment *deployment)
{
    return strcmp(replica->deployment_id, deployment->id) == 0;
}

static bool is_held(const struct replica *replica)
{
    return replica->phase != PHASE_CLAIMING && replica->phase != PHASE_FAILED;
}

static bool serves(const struct replica *replica)
{
    return replica->phase == PHASE_READY && !replica->warm;
}

static bool is_on_its_way(const struct replica *replica)
{
    return replica->phase == PHASE_FETCHING || replica->phase == PHASE_STARTING ||
           replica->phase == PHASE_READY;
}

/* So many of its workers serve here. claims: with the rows that are asked for. */
static uint32_t quota_of(const struct agent_core *core, const struct agent_deployment *deployment,
                         bool claims)
{
    const struct replica *replica;
    uint32_t count = 0;

    TAILQ_FOREACH(replica, &core->replicas, link)
    {
        count += is_of(replica, deployment) && number_of(replica) < deployment->replicas_wanted &&
                 (is_held(replica) || (claims && replica->phase == PHASE_CLAIMING));
    }
    return count;
}

static const struct agent_deployment *deployment_of(const struct agent_core *core,
                                                    const struct replica *replica)
{
    for (size_t i = 0; i < core->deployment_count; i++) {
        if (is_of(replica, &core->deployments[i]))
            return &core->deployments[i];
    }
    return NULL;
}

uint32_t agent_warm_count(const struct agent_core *core, const struct replica *except)
{
    const struct replica *replica;
    uint32_t count = 0;

    TAILQ_FOREACH(replica, &core->replicas, link)
    {
        const struct agent_deployment *deployment = deployment_of(core, replica);

        count += replica != except && is_held(replica) && deployment != NULL &&
                 number_of(replica) >= deployment->replicas_wanted;
    }
    return count;
}

bool agent_warm_is_over(const struct agent_core *core, const struct replica *replica)
{
    const struct agent_deployment *deployment = deployment_of(core, replica);

    return deployment != NULL && number_of(replica) >= deployment->replicas_wanted &&
           agent_warm_count(core, replica) >= core->options.warm_max;
}

bool agent_warm_is_spare(const struct agent_core *core, const struct replica *replica,
                         const struct agent_deployment *deployment)
{
    const struct replica *other;
    uint32_t count = 0;

    if (deployment->replicas_warm == 0)
        return false;
    TAILQ_FOREACH(other, &core->replicas, link)
    count += other != replica && is_of(other, deployment) && is_on_its_way(other);
    return count >= quota_of(core, deployment, false);
}

/* ---- room ---- */

void agent_warm_reclaim(struct agent_core *core, const struct agent_deployment *deployment,
                        const struct gpu_need *need)
{
    char names[DEVICES_RECLAIM_MAX][DEVICE_HOLDER_SIZE];
    size_t count = devices_reclaim(core->devices, deployment->id, need, names);

    for (size_t i = 0; i < count; i++) {
        struct replica *spare = agent_core_find(core, names[i]);

        if (spare != NULL)
            spare->yields = true;
    }
}

/* Whether that device is one that the other could have, were it alone there. */
static bool would_do(const struct agent_core *core, const struct device_placement *placement,
                     const struct replica *starved)
{
    const struct agent_deployment *deployment = deployment_of(core, starved);
    struct device_view view;
    struct gpu_need need;
    struct err err;

    if (deployment == NULL || agent_warm_is_spare(core, starved, deployment) ||
        agent_core_need_of(deployment, &need, &err) < 0)
        return false;
    for (size_t i = 0; devices_view(core->devices, i, &view); i++) {
        for (uint32_t j = 0; j < placement->count; j++) {
            if (strcmp(view.info->uuid, placement->uuids[j]) == 0 &&
                device_fits(view.info, &need) == DEVICE_FITS)
                return true;
        }
    }
    return false;
}

bool agent_warm_must_wait(const struct agent_core *core, const struct replica *replica)
{
    struct device_placement placement;
    const struct replica *other;

    if (!devices_placed(core->devices, replica->worker, &placement))
        return false;
    TAILQ_FOREACH(other, &core->replicas, link)
    {
        if (other != replica && other->starved && would_do(core, &placement, other))
            return true;
    }
    return false;
}

/* Those that yield go; who waits for room asks again when some has come free. */
static void settle_room(struct agent_core *core)
{
    struct replica *replica, *next;

    for (replica = TAILQ_FIRST(&core->replicas); replica != NULL; replica = next) {
        next = TAILQ_NEXT(replica, link);
        if (!replica->yields)
            continue;
        replica->yields = false;
        agent_core_stop(core, replica);
    }
    if (!core->room_freed)
        return;
    core->room_freed = false;
    TAILQ_FOREACH(replica, &core->replicas, link)
    {
        if (replica->starved && replica->phase == PHASE_WAITING)
            replica->start_ms = core->now_ms;
    }
}

/* ---- who serves ---- */

void agent_warm_shrink(struct agent_core *core, const struct agent_deployment *deployment)
{
    uint32_t quota = quota_of(core, deployment, true), count = 0;
    struct replica *replica, *last;

    TAILQ_FOREACH(replica, &core->replicas, link)
    count += is_of(replica, deployment) && serves(replica);
    for (; count > quota; count--) {
        last = NULL;
        TAILQ_FOREACH(replica, &core->replicas, link)
        {
            if (is_of(replica, deployment) && serves(replica) &&
                (last == NULL || number_of(replica) > number_of(last)))
                last = replica;
        }
        assert(last != NULL);
        agent_core_stop(core, last);
    }
}

static void serve(struct agent_core *core, struct replica *replica)
{
    replica->warm = false;
    replica->ready_ms = core->now_ms;
    (void)agent_core_todo_of(core, AGENT_TODO_SERVE, replica);
    agent_core_tell(core, replica, "READY", "");
}

/* Who is nearest to serving is the first to do it. */
static uint32_t rank_of(const struct replica *replica)
{
    if (serves(replica))
        return 0;
    if (replica->phase == PHASE_READY)
        return 1;
    if (replica->phase == PHASE_STARTING)
        return 2;
    return replica->phase == PHASE_FETCHING ? 3 : RANK_NONE;
}

static void settle_deployment(struct agent_core *core, const struct agent_deployment *deployment)
{
    uint32_t quota = quota_of(core, deployment, false), count = 0;
    struct replica *replica;

    for (uint32_t rank = 0; rank <= 3; rank++) {
        TAILQ_FOREACH(replica, &core->replicas, link)
        {
            if (!is_of(replica, deployment) || rank_of(replica) != rank)
                continue;
            if (rank == 1 && count < quota)
                serve(core, replica);
            else if (rank == 1 && strcmp(replica->state, "WARM") != 0)
                agent_core_tell(core, replica, "WARM", "");
            devices_set_spare(core->devices, replica->worker, rank != 0 && count >= quota);
            count++;
        }
    }
}

/* A row has gone to another agent, whose worker may still be loading: ours is not stopped at once.
 */
static void settle_excess(struct agent_core *core, const struct agent_deployment *deployment)
{
    uint32_t quota = quota_of(core, deployment, false), count = 0;
    struct replica *replica;
    bool is_long = false;

    if (quota != quota_of(core, deployment, true))
        return; /* known when the claims are answered */
    TAILQ_FOREACH(replica, &core->replicas, link)
    count += is_of(replica, deployment) && serves(replica);
    TAILQ_FOREACH(replica, &core->replicas, link)
    {
        if (!is_of(replica, deployment))
            continue;
        if (count <= quota)
            replica->excess_ms = 0;
        else if (replica->excess_ms == 0)
            replica->excess_ms = core->now_ms;
        is_long |= replica->excess_ms != 0 &&
                   core->now_ms - replica->excess_ms >= core->options.steady_ms;
    }
    if (is_long)
        agent_warm_shrink(core, deployment);
}

static bool has_warm(const struct agent_core *core, const struct agent_deployment *deployment)
{
    const struct replica *replica;

    if (deployment->replicas_warm > 0)
        return true;
    TAILQ_FOREACH(replica, &core->replicas, link)
    {
        if (replica->warm && is_of(replica, deployment))
            return true;
    }
    return false;
}

void agent_warm_settle(struct agent_core *core)
{
    settle_room(core);
    if (core->draining)
        return;
    for (size_t i = 0; i < core->deployment_count; i++) {
        if (!has_warm(core, &core->deployments[i]))
            continue;
        settle_deployment(core, &core->deployments[i]);
        settle_excess(core, &core->deployments[i]);
    }
}
