/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What an agent decides: which workers run on this machine, and what is written about them.
 *
 *   deployments in SQL ─▶ CLAIM a worker's row ─▶ FETCH its archive ─▶ START ─▶ READY
 *        │ removed, or fewer wanted                  ▲                   │ ended
 *        ▼                                           └──── back-off ─────┤
 *   STOP (SIGTERM), KILL after a while ─▶ STOPPED                        └▶ GONE to its owner
 *
 * Rules
 * - A worker is named <deployment>-<n>, n below replicas_wanted; its row in `replica` is claimed
 *   first, so that several agents share the deployments: who has the row runs the worker.
 * - Its end is told to its owner at once (GONE), so that no lease has to lapse.
 * - Only workers are told of; what their states make of the deployment's is decided in SQL.
 * - A load that fails before the deployment was ever ACTIVE is final: FAILED, with the worker's
 *   reason, which makes the deployment DEPLOY_FAILED. All other failures are tried again, with
 *   back-off; such a worker is STARTING.
 * - A deployment for a GPU is given a place among the devices (workers/devices.h) before its
 * archive is fetched. Where no device of this machine ever will do it fails with the sentence that
 * says what it needs and what there is, unless another machine's would do: then its row is left to
 * that one. Where none will do now it waits, STARTING with that sentence.
 * - While the driver does not answer all for a GPU wait, with that reason; nothing else does.
 * - A worker whose device goes out is stopped, and placed anew as if it were a new one.
 * - Workers that run when the agent starts are adopted when they are READY or WARM, and ended
 *   otherwise: a worker that is loading has no jobs.
 * - Spares (replicas_warm of a deployment, warm_max of this machine) are loaded and WARM: they have
 *   no work and nobody counts them. One serves as soon as fewer do than are wanted (agent_warm.c).
 *   What they have of a device is promised to them like anybody's, and they go where it is wanted
 *   for a worker that is to serve.
 *
 * Pure: events in, to-dos out of agent_core_next_todo(), which is called until it is empty after
 * each event. No I/O, no clock. Bounded: AGENT_DEPLOYMENTS_MAX, AGENT_REPLICAS_MAX.
 *
 * Thread: its owner's; no locks.   Tests: tests/unit/test_agent_core.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "workers/devices.h"

#define AGENT_DEPLOYMENTS_MAX 1000
#define AGENT_REPLICAS_MAX 64 /* of one deployment on this machine */
#define AGENT_NAME_SIZE 65
#define AGENT_DIGEST_SIZE 65 /* hex */
#define AGENT_BLOB_SIZE 160
#define AGENT_REASON_SIZE 512
#define AGENT_DEVICE_SIZE 1600
#define AGENT_EXIT_UNKNOWN (-1)

struct agent_core;

struct agent_options {
    uint64_t restart_ms_min; /* before a worker that ended is started again; doubled … */
    uint64_t restart_ms_max; /* … up to this; back to the start after steady_ms of work */
    uint64_t steady_ms;
    uint64_t stop_ms;  /* from SIGTERM to SIGKILL: drain timeout and some */
    uint64_t lost_ms;  /* the same for one whose device is lost: nothing can end well there */
    uint64_t place_ms; /* how often one that waits for a device asks again */
    uint32_t warm_max; /* spares of all deployments */
    struct devices_options devices;
};
extern const struct agent_options agent_options_default;

/* A deployment that should run, as SQL says. */
struct agent_deployment {
    char id[AGENT_NAME_SIZE], model[AGENT_NAME_SIZE], pool[AGENT_NAME_SIZE];
    char engine[AGENT_NAME_SIZE], device[AGENT_NAME_SIZE];
    char model_id[AGENT_NAME_SIZE], environment[AGENT_NAME_SIZE]; /* labels; may be "" */
    char digest[AGENT_DIGEST_SIZE]; /* of its archive; "": it has none */
    char blob[AGENT_BLOB_SIZE];     /* where that is */
    char *config;                   /* JSON; the core takes it (heap) */
    uint32_t shard, slot_count, replicas_wanted, replicas_warm;
    bool was_active; /* it has been ACTIVE once: failures are not final */
};

struct agent_core *agent_core_new(const struct agent_options *options);
void agent_core_free(struct agent_core **core_p);

/* ---- events ---- */

void agent_core_tick(struct agent_core *core, uint64_t now_ms);

/* All deployments that should run; takes their heap fields. What is not in it is to be stopped. */
void agent_core_on_deployments(struct agent_core *core, struct agent_deployment *deployments,
                               size_t deployment_count);

/* Answer of CLAIM: the row is ours, or another agent has it. */
void agent_core_on_claimed(struct agent_core *core, const char *worker, bool ours);

/* Answer of FETCH: the folder with the model, or why there is none. final: trying again would end
 * the same way. */
void agent_core_on_fetched(struct agent_core *core, const char *digest, const char *folder,
                           bool final, const char *why);

/* A worker that runs already, from the `replica` table of before: alive, and READY or (warm) WARM.
 * Only before the first agent_core_on_deployments(). device: as AGENT_TODO_REPLICA told of it.
 * config: of its deployment, which may be gone: what it has is promised to it all the same, until
 * it has ended. */
void agent_core_on_adopted(struct agent_core *core, const char *worker, const char *deployment,
                           const char *config, const char *device, uint32_t shard, uint64_t boot,
                           uint32_t restart_count, bool warm);

/* Answer of START. final: trying again would end the same way. */
void agent_core_on_started(struct agent_core *core, const char *worker, bool started, bool final,
                           const char *why);
void agent_core_on_ready(struct agent_core *core, const char *worker, uint64_t boot);

/* One that was started `warm` has loaded, and waits to be told to serve. */
void agent_core_on_warm(struct agent_core *core, const char *worker, uint64_t boot);

/* exit_code AGENT_EXIT_UNKNOWN: it ended unseen. */
void agent_core_on_ended(struct agent_core *core, const char *worker, int exit_code, int signal,
                         const char *why);

/* The devices of this machine, as devices_on_inventory(); before the first deployments, and then
 * now and then. */
void agent_core_on_inventory(struct agent_core *core, const struct device_info *infos, size_t count,
                             const char *why_none);
void agent_core_on_silent(struct agent_core *core, const char *why); /* devices_on_silent() */
void agent_core_on_xid(struct agent_core *core, const char *uuid, uint64_t xid, const char *why);
void agent_core_on_worker_fault(struct agent_core *core, const char *worker,
                                enum device_fault fault, const char *why);
void agent_core_on_probed(struct agent_core *core, const char *uuid, bool well, const char *why);

/* A device of another machine whose agent lives. free_size: that could be promised there now; 0
 * where it is not well. */
struct agent_elsewhere {
    char host[AGENT_NAME_SIZE]; /* those of one host stand together */
    struct device_info info;
    uint64_t free_size;
    bool empty; /* nobody is on it */
};
void agent_core_on_elsewhere(struct agent_core *core, const struct agent_elsewhere *devices,
                             size_t count);

/* Some writes were lost: asks for all of them again. */
void agent_core_tell_again(struct agent_core *core);

/* SIGTERM: stop all workers, then EXIT. */
void agent_core_drain(struct agent_core *core);

/* ---- to-dos ---- */

enum agent_todo_type {
    AGENT_TODO_CLAIM,   /* make or take the worker's row; answer agent_core_on_claimed() */
    AGENT_TODO_FETCH,   /* unpack the archive; answer agent_core_on_fetched() */
    AGENT_TODO_START,   /* start the process; answer agent_core_on_started() */
    AGENT_TODO_SERVE,   /* one that is WARM takes jobs from now on */
    AGENT_TODO_STOP,    /* SIGTERM */
    AGENT_TODO_KILL,    /* SIGKILL */
    AGENT_TODO_REPLICA, /* write the worker's state */
    AGENT_TODO_GONE,    /* tell the owner: this boot has ended */
    AGENT_TODO_PROBE,   /* look whether device `reason` answers; agent_core_on_probed() */
    AGENT_TODO_DEVICES, /* the state of a device has changed: write them all */
    AGENT_TODO_EXIT,    /* nothing runs any more */
};

/* Pointers stay valid until the next event. */
struct agent_todo {
    enum agent_todo_type type;
    const struct agent_deployment *deployment; /* CLAIM, FETCH, START */
    char worker[AGENT_NAME_SIZE];
    const char *folder; /* START */
    char state[12];     /* REPLICA: as in replica_state_check */
    char deployment_id[AGENT_NAME_SIZE];
    char reason[AGENT_REASON_SIZE];
    char device[AGENT_DEVICE_SIZE]; /* REPLICA: "cpu", "cuda", "cuda:GPU-…,GPU-…" */
    uint64_t boot;
    bool left; /* GONE: by its own decision, or because it was told to */
    bool warm; /* START: it loads, and serves when it is told to */
    uint32_t shard, restart_count;
};

bool agent_core_next_todo(struct agent_core *core, struct agent_todo *ret_todo);

/* When agent_core_tick() is due; UINT64_MAX: not before something happens. */
uint64_t agent_core_due_ms(const struct agent_core *core);

/* Where a worker is placed. False: on no device. */
bool agent_core_placement(const struct agent_core *core, const char *worker,
                          struct device_placement *ret_placement);

/* For looking only. */
const struct devices *agent_core_devices(const struct agent_core *core);

struct agent_stats {
    uint32_t deployments, workers, ready, warm;
    uint64_t starts, crashes;
};
struct agent_stats agent_core_stats(const struct agent_core *core);

/* One deployment after the other; index from 0. False: there is none of that index. */
struct agent_deployment_stats {
    const struct agent_deployment *deployment; /* valid until the next event */
    uint32_t ready, warm, starting, restart_count;
};
bool agent_core_deployment_stats(const struct agent_core *core, size_t index,
                                 struct agent_deployment_stats *ret_stats);
