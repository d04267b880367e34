/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The agent's core: what its two files share.
 *
 *   agent_core.c   workers come, run and go
 *   agent_warm.c   those that are kept loaded without work, and when they serve
 *
 * Thread: the core's owner; no locks.
 */

#include <sys/queue.h>

#include "workers/agent_core.h"

#define AGENT_NEVER_MS UINT64_MAX

enum phase {
    PHASE_CLAIMING, /* the row is asked for */
    PHASE_FETCHING, /* its archive is */
    PHASE_WAITING,  /* to be started at start_ms */
    PHASE_STARTING, /* the process is being started, or loads */
    PHASE_READY,
    PHASE_STOPPING, /* SIGTERM is out; SIGKILL at kill_ms */
    PHASE_FAILED,   /* for good: the deployment has failed */
};

struct replica {
    TAILQ_ENTRY(replica) link;
    char worker[AGENT_NAME_SIZE];
    char deployment_id[AGENT_NAME_SIZE];
    enum phase phase;
    bool wanted, running;
    bool evicted; /* its device went out while its process was being started */
    bool warm;    /* its process is one that waits, and was not told to serve yet */
    bool starved; /* WAITING because there is no room */
    bool yields;  /* a spare that is to go, for its room */
    uint32_t shard, restart_count, failures; /* failures in a row, for the back-off */
    uint64_t boot, start_ms, ready_ms, kill_ms;
    uint64_t excess_ms; /* since when more serve than should; 0: they do not */
    uint64_t haste_ms;  /* STOPPING on a lost device: when it is told again, to hand back at once */
    const char *state;  /* as it was last told; NULL: never */
    char reason[AGENT_REASON_SIZE];
};

struct archive {
    TAILQ_ENTRY(archive) link;
    char digest[AGENT_DIGEST_SIZE];
    char *folder; /* NULL: being fetched */
};

struct agent_core {
    struct agent_options options;
    uint64_t now_ms;
    struct agent_deployment *deployments;
    size_t deployment_count;
    TAILQ_HEAD(, replica) replicas;
    TAILQ_HEAD(, archive) archives;
    struct devices *devices;
    struct agent_elsewhere *elsewhere;
    size_t elsewhere_count;
    bool draining, asked_exit;
    bool room_freed; /* somebody has left a device: who waits for room asks again at once */
    struct agent_todo *todos;
    size_t todo_first, todo_count, todo_room;
    struct agent_stats stats;
};

/* ---- agent_core.c ---- */
struct agent_todo *agent_core_todo_of(struct agent_core *core, enum agent_todo_type type,
                                      const struct replica *replica);
void agent_core_tell(struct agent_core *core, struct replica *replica, const char *state,
                     const char *reason);
void agent_core_stop(struct agent_core *core, struct replica *replica); /* may free it */
struct replica *agent_core_find(struct agent_core *core, const char *worker);
int agent_core_need_of(const struct agent_deployment *deployment, struct gpu_need *ret_need,
                       struct err *err) MUST_CHECK;

/* ---- agent_warm.c ---- */

/* Whether as many of its deployment as serve here are on their way without it. */
bool agent_warm_is_spare(const struct agent_core *core, const struct replica *replica,
                         const struct agent_deployment *deployment);

/* Rows above replicas_wanted that are ours; the machine keeps warm_max of them. */
uint32_t agent_warm_count(const struct agent_core *core, const struct replica *except);

/* Whether it has such a row, and is one too many with it. */
bool agent_warm_is_over(const struct agent_core *core, const struct replica *replica);

/* There is no room for it: marks the spares whose end makes some. */
void agent_warm_reclaim(struct agent_core *core, const struct agent_deployment *deployment,
                        const struct gpu_need *need);

/* Whether who waits for room could use what a spare has just been given. */
bool agent_warm_must_wait(const struct agent_core *core, const struct replica *replica);

/* Who serves beyond what is wanted stops, and comes back as a spare. */
void agent_warm_shrink(struct agent_core *core, const struct agent_deployment *deployment);

/* After each event: who is loaded serves where one is missing. */
void agent_warm_settle(struct agent_core *core);
