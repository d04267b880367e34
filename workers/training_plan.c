/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/training_plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

struct planner {
    const struct training_facts *facts;
    struct training_plan *plan;
    struct training_need *free, *soon; /* of each trainer: now, and when what is ending has ended */
    bool *out;                         /* of each trainer: may be given nothing */
    bool *kept;                        /* of each trainer: kept for a job that waits */
    bool *ending;                      /* of each running job */
    bool *decided;                     /* of each waiting job */
    uint32_t *pick;                    /* trainers that a fit has chosen */
};

static void need_add(struct training_need *to, const struct training_need *need)
{
    to->gpu_count += need->gpu_count;
    to->cpu_count += need->cpu_count;
    to->memory_size += need->memory_size;
}

/* Never below nothing: a trainer may come back with less than it runs. */
static void need_take(struct training_need *from, const struct training_need *need)
{
    from->gpu_count -= need->gpu_count < from->gpu_count ? need->gpu_count : from->gpu_count;
    from->cpu_count -= need->cpu_count < from->cpu_count ? need->cpu_count : from->cpu_count;
    from->memory_size -= need->memory_size < from->memory_size ? need->memory_size
                                                               : from->memory_size;
}

static bool need_fits(const struct training_need *need, const struct training_need *room)
{
    return need->gpu_count <= room->gpu_count && need->cpu_count <= room->cpu_count &&
           need->memory_size <= room->memory_size;
}

static struct training_action *action_add(struct planner *planner, enum training_action_type type,
                                          size_t job)
{
    struct training_plan *plan = planner->plan;

    if (plan->count == plan->room) {
        plan->room = plan->room == 0 ? 16 : plan->room * 2;
        plan->actions = xrealloc(plan->actions, plan->room, sizeof(*plan->actions));
    }
    plan->actions[plan->count] = (struct training_action){.type = type, .job = job};
    return &plan->actions[plan->count++];
}

static bool kind_fits(const struct training_waiting *job, const struct training_trainer *trainer)
{
    return job->accelerator[0] == '\0' || strcmp(job->accelerator, trainer->accelerator) == 0;
}

/* The better place: which has the fewest GPUs, then the fewest cores, to spare. */
static bool tighter(const struct training_need *a, const struct training_need *b)
{
    if (a->gpu_count != b->gpu_count)
        return a->gpu_count < b->gpu_count;
    return a->cpu_count < b->cpu_count;
}

/* Whether all nodes find a trainer each in what `room` has; planner->pick says which. `all`: also
 * those that are kept for others. */
static bool job_fits(struct planner *planner, const struct training_waiting *job,
                     const struct training_need *room, bool all)
{
    const struct training_facts *facts = planner->facts;

    if (job->node_count > facts->trainer_count || job->node_count > TRAINING_NODES_MAX)
        return false;
    for (uint32_t rank = 0; rank < job->node_count; rank++) {
        size_t best = SIZE_MAX;

        for (size_t i = 0; i < facts->trainer_count; i++) {
            bool taken = planner->out[i] || (planner->kept[i] && !all) ||
                         !kind_fits(job, &facts->trainers[i]) || !need_fits(&job->need, &room[i]);

            for (uint32_t r = 0; r < rank && !taken; r++)
                taken = planner->pick[r] == i;
            if (!taken && (best == SIZE_MAX || tighter(&room[i], &room[best])))
                best = i;
        }
        if (best == SIZE_MAX)
            return false;
        planner->pick[rank] = (uint32_t)best;
    }
    return true;
}

static void job_place(struct planner *planner, size_t at)
{
    const struct training_waiting *job = &planner->facts->waiting[at];
    struct training_action *action = action_add(planner, TRAINING_PLACE, at);

    action->trainers = xcalloc(job->node_count, sizeof(*action->trainers));
    action->trainer_count = job->node_count;
    for (uint32_t rank = 0; rank < job->node_count; rank++) {
        action->trainers[rank] = planner->pick[rank];
        need_take(&planner->free[planner->pick[rank]], &job->need);
        need_take(&planner->soon[planner->pick[rank]], &job->need);
    }
}

/* What is to end gives its room back, soon. */
static void running_free(const struct planner *planner, size_t running, struct training_need *room,
                         bool back)
{
    const struct training_facts *facts = planner->facts;

    for (size_t i = 0; i < facts->node_count; i++) {
        struct training_need *of = &room[facts->nodes[i].trainer];

        if (facts->nodes[i].running != running)
            continue;
        if (back)
            need_take(of, &facts->running[running].need);
        else
            need_add(of, &facts->running[running].need);
    }
}

/* Whom a job of that priority may end: the lowest priority first, of these the youngest. */
static size_t next_victim(const struct planner *planner, int64_t priority, const bool *chosen)
{
    const struct training_facts *facts = planner->facts;
    size_t best = SIZE_MAX;

    for (size_t i = 0; i < facts->running_count; i++) {
        const struct training_running *running = &facts->running[i], *than;

        if (planner->ending[i] || chosen[i] || running->priority >= priority)
            continue;
        than = best == SIZE_MAX ? NULL : &facts->running[best];
        if (than == NULL || running->priority < than->priority ||
            (running->priority == than->priority && running->created_us > than->created_us))
            best = i;
    }
    return best;
}

/* Jobs of a lower priority are asked to end, until there is room, and not one more than that. */
static bool job_preempt(struct planner *planner, size_t at)
{
    const struct training_facts *facts = planner->facts;
    const struct training_waiting *job = &facts->waiting[at];
    OWNED(mem_free) bool *chosen = xcalloc(facts->running_count + 1, sizeof(*chosen));
    size_t victim;
    bool fits = false;

    while (!fits && (victim = next_victim(planner, job->priority, chosen)) != SIZE_MAX) {
        chosen[victim] = true;
        running_free(planner, victim, planner->soon, false);
        fits = job_fits(planner, job, planner->soon, false);
    }
    for (size_t i = 0; i < facts->running_count; i++) {
        if (!chosen[i])
            continue;
        running_free(planner, i, planner->soon, true);
        if (fits && job_fits(planner, job, planner->soon, false))
            continue; /* there is room without it */
        if (!fits)
            continue;
        running_free(planner, i, planner->soon, false);
        planner->ending[i] = true;
        action_add(planner, TRAINING_PREEMPT, i)->by = at;
    }
    return fits;
}

/* What a job could use is kept for it. */
static void job_keep(struct planner *planner, const struct training_waiting *job)
{
    const struct training_facts *facts = planner->facts;

    for (size_t i = 0; i < facts->trainer_count; i++) {
        if (kind_fits(job, &facts->trainers[i]) && need_fits(&job->need, &facts->trainers[i].has))
            planner->kept[i] = true;
    }
}

static bool job_could_ever(struct planner *planner, const struct training_waiting *job)
{
    const struct training_facts *facts = planner->facts;
    OWNED(mem_free)
    struct training_need *empty = xcalloc(facts->trainer_count + 1, sizeof(*empty));

    for (size_t i = 0; i < facts->trainer_count; i++)
        empty[i] = facts->trainers[i].has;
    return job_fits(planner, job, empty, true);
}

static void job_decide(struct planner *planner, size_t at)
{
    const struct training_waiting *job = &planner->facts->waiting[at];

    if (job_fits(planner, job, planner->free, false)) {
        job_place(planner, at);
        return;
    }
    if (job_fits(planner, job, planner->soon, false) || job_preempt(planner, at) ||
        job_could_ever(planner, job))
        job_keep(planner, job);
}

/* ---- order ---- */

/* GPUs weigh what a machine with eight of them has cores for each. */
static uint64_t weight_of(const struct training_need *need, uint64_t nodes)
{
    return nodes * ((uint64_t)need->gpu_count * 16 + need->cpu_count);
}

static uint64_t tenant_has(const struct planner *planner, const char *tenant)
{
    const struct training_facts *facts = planner->facts;
    uint64_t weight = 0;

    for (size_t i = 0; i < facts->node_count; i++) {
        const struct training_running *running = &facts->running[facts->nodes[i].running];

        if (strcmp(running->tenant, tenant) == 0)
            weight += weight_of(&running->need, 1);
    }
    for (size_t i = 0; i < planner->plan->count; i++) {
        const struct training_action *action = &planner->plan->actions[i];
        const struct training_waiting *job;

        if (action->type != TRAINING_PLACE)
            continue;
        job = &facts->waiting[action->job];
        if (strcmp(job->tenant, tenant) == 0)
            weight += weight_of(&job->need, job->node_count);
    }
    return weight;
}

/* SIZE_MAX: all are decided. */
static size_t next_waiting(const struct planner *planner)
{
    const struct training_facts *facts = planner->facts;
    size_t best = SIZE_MAX;
    uint64_t best_has = 0;

    for (size_t i = 0; i < facts->waiting_count; i++) {
        const struct training_waiting *job = &facts->waiting[i];
        const struct training_waiting *than = best == SIZE_MAX ? NULL : &facts->waiting[best];
        uint64_t has;

        if (planner->decided[i] || (than != NULL && job->priority < than->priority))
            continue;
        has = tenant_has(planner, job->tenant);
        if (than != NULL && job->priority == than->priority &&
            (has > best_has || (has == best_has && job->created_us >= than->created_us)))
            continue;
        best = i;
        best_has = has;
    }
    return best;
}

/* ---- a plan ---- */

static void trainers_look(struct planner *planner)
{
    const struct training_facts *facts = planner->facts;

    for (size_t i = 0; i < facts->trainer_count; i++) {
        const struct training_trainer *trainer = &facts->trainers[i];

        planner->free[i] = trainer->has;
        planner->out[i] = trainer->draining || trainer->silent_ms > facts->late_ms;
        if (facts->may_bury && trainer->silent_ms > facts->lease_ms)
            action_add(planner, TRAINING_BURY, i);
    }
    for (size_t i = 0; i < facts->node_count; i++) {
        assert(facts->nodes[i].running < facts->running_count);
        assert(facts->nodes[i].trainer < facts->trainer_count);
        need_take(&planner->free[facts->nodes[i].trainer],
                  &facts->running[facts->nodes[i].running].need);
    }
    for (size_t i = 0; i < facts->trainer_count; i++)
        planner->soon[i] = planner->free[i];
    for (size_t i = 0; i < facts->running_count; i++) {
        planner->ending[i] = facts->running[i].ending;
        if (planner->ending[i])
            running_free(planner, i, planner->soon, false);
    }
}

void training_plan_make(const struct training_facts *facts, struct training_plan *ret_plan)
{
    OWNED(mem_free)
    struct training_need *free = xcalloc(facts->trainer_count + 1, sizeof(*free));
    OWNED(mem_free)
    struct training_need *soon = xcalloc(facts->trainer_count + 1, sizeof(*soon));
    OWNED(mem_free) bool *out = xcalloc(facts->trainer_count + 1, sizeof(*out));
    OWNED(mem_free) bool *kept = xcalloc(facts->trainer_count + 1, sizeof(*kept));
    OWNED(mem_free) bool *ending = xcalloc(facts->running_count + 1, sizeof(*ending));
    OWNED(mem_free) bool *decided = xcalloc(facts->waiting_count + 1, sizeof(*decided));
    OWNED(mem_free) uint32_t *pick = xcalloc(TRAINING_NODES_MAX, sizeof(*pick));
    struct planner planner = {.facts = facts,
                              .plan = ret_plan,
                              .free = free,
                              .soon = soon,
                              .out = out,
                              .kept = kept,
                              .ending = ending,
                              .decided = decided,
                              .pick = pick};
    size_t at;

    *ret_plan = (struct training_plan){0};
    trainers_look(&planner);
    while ((at = next_waiting(&planner)) != SIZE_MAX) {
        decided[at] = true;
        job_decide(&planner, at);
    }
}

void training_plan_done(struct training_plan *plan)
{
    for (size_t i = 0; i < plan->count; i++)
        free(plan->actions[i].trainers);
    mem_free(&plan->actions);
    plan->count = plan->room = 0;
}
