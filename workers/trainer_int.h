/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What the files of a trainer share; workers/trainer.h tells which does what. */

#include <jansson.h>
#include <sys/queue.h>
#include <uthash.h>
#include <uv.h>

#include "base/log.h"
#include "base/loop.h"
#include "base/seal.h"
#include "brokers/blob.h"
#include "brokers/pg.h"
#include "schema/job_id.h"
#include "workers/child.h"
#include "workers/confine.h"
#include "workers/container.h"
#include "workers/container_call.h"
#include "workers/host_frames.h"
#include "workers/trainer.h"
#include "workers/trainer_disk.h"
#include "workers/trainer_metric.h"

#define TRAINER_SQL_MS 10000
#define TRAINER_NODES_MAX 64 /* at once */
#define TRAINER_GPUS_MAX 64
#define TRAINER_WHY_SIZE 400
#define TRAINER_DIGEST_TEXT_SIZE 65
#define NODE_SCRIPT ".start"     /* in its scratch folder */
#define NODE_SHORT_MARK ".short" /* left by the script of a container that was short of memory */

struct hold { /* an attempt of the ledger */
    struct trainer *trainer;
    uint64_t id;
    struct wire_id job;
    char *input;
    bool begun;
    UT_hash_handle hh;
};

enum node_phase {
    NODE_TAKING, /* its row is asked for */
    NODE_SETUP,  /* folders, workspace, checkpoint */
    NODE_READY,  /* waits for the others of its gang */
    NODE_STARTING,
    NODE_RUNNING,
    NODE_SAVING, /* its process is over: the last checkpoint, the last lines */
    NODE_ENDING, /* its end is being written */
    NODE_GONE,   /* over for us; freed when nothing is under way for it */
};

struct node_log;
#define NODE_FIGURES_MAX 512 /* that wait to be written */
struct node_figure {
    struct trainer_metric metric;
    uint64_t at_us;
};
struct node_sync;

struct node {
    LIST_ENTRY(node) link;
    struct trainer *trainer;
    struct wire_id job;
    char job_text[JOB_ID_TEXT_SIZE];
    uint32_t placement, rank, node_count, slot;
    enum node_phase phase;
    uint32_t busy; /* calls under way that will come back to it */
    bool gathered; /* all nodes of its placement are ready */

    /* of its job */
    char *project, *project_name, *tenant, *name, *leader, *archive_blob;
    char archive[TRAINER_DIGEST_TEXT_SIZE];
    json_t *spec, *secrets;
    uint32_t retry_count, gpu_count, cpu_count, checkpoint_keep;
    uint64_t memory_size, disk_size, limit_ms, grace_ms, quiet_ms, log_number, ran_ms;
    bool checkpoints;
    uint32_t gpus[TRAINER_GPUS_MAX];
    char *dir;    /* the node's: workspace, checkpoints, scratch, loaded below it */
    char *loaded; /* folder that holds a checkpoint to go on with; NULL: none */

    const char *image; /* its container's, of the spec; NULL: it has none */
    struct container_tool tool;
    char container[64];                      /* its name */
    struct container_call *call, *term_call; /* fetch, then looks at it; SIGTERM */
    pid_t container_pid;                     /* of its first process; 0: not known */
    uint64_t container_size;                 /* what it has written into itself, as told last */
    uint32_t container_turns;

    struct child *child;
    char group[96];
    char *group_dir;   /* its cgroup's; NULL: not seen yet, or it has none */
    bool group_memory; /* which holds its memory */
    struct node_log *log;
    struct node_sync *sync;
    struct trainer_metric_state metric_state;
    struct node_figure *figures;
    size_t figure_count;
    bool telling; /* figures are being written */
    struct loop_timer *watch_timer, *grace_timer, *limit_timer, *end_timer;
    struct trainer_disk disk;
    uint64_t memory_used; /* as sampled last */
    bool measuring, told_term;
    char stop_cause[16]; /* why it is to end: of its row, or a limit; "": it is not */
    bool saved;          /* all that is to be sent of its checkpoints is sent */
    bool fast;           /* the process did not end by itself: what it was writing may be half */

    char cause[24]; /* of its end */
    int exit_code, signal;
    char why[TRAINER_WHY_SIZE];
};

struct trainer {
    const struct trainer_settings *settings;
    struct loop *loop;
    struct host_frames *frames;
    struct pg *pg;
    struct blob_store *blobs;
    struct seal_key *seal_key;
    struct hold *holds;
    LIST_HEAD(node_list, node) nodes;
    struct loop_timer *beat_timer, *look_timer;
    uint64_t boot;
    uint64_t gpu_used; /* bits */
    uint64_t slot_used;
    uint32_t cpu_count;
    uint64_t memory_size;
    enum confine_level isolation;
    bool beating, asking, ask_again, planning, draining, drained, replaced;
    uint64_t beat_sent_us, beat_ok_us, touch_since_us;
    char *jobs_dir, *cache_dir;
    struct container_tool tool; /* that what is left over is removed with */
    struct container_call *call;
    struct trainer_leftovers *leftovers;
};

/* ---- trainer.c ---- */

/* Sends; a batch that cannot be sent is answered as if Postgres were away. */
void trainer_send(struct trainer *trainer, struct pg_batch **batch_p, pg_done_fn *done,
                  void *opaque);
void trainer_look_soon(struct trainer *trainer);

/* Of a file of a checkpoint; as training_blob() of the migrations says. */
void trainer_blob_key(const char *project, const char *digest, uint64_t number,
                      char to[BLOB_KEY_SIZE]);
void trainer_end_if_drained(struct trainer *trainer);

/* ---- trainer_hold.c ---- */
void trainer_holds_look(struct trainer *trainer);
void trainer_holds_free(struct trainer *trainer);

/* ---- trainer_facts.c ---- */
void trainer_plan(struct trainer *trainer);

/* ---- trainer_node.c ---- */

/* One row of what is to run here. */
struct node_row {
    struct wire_id job;
    uint32_t placement, rank;
    const char *state, *stop_cause;
    bool gathered;
};
struct node *node_find(struct trainer *trainer, const struct wire_id *job, uint32_t placement,
                       uint32_t rank);
void node_take(struct trainer *trainer, const struct node_row *row);
void node_follow(struct node *node, const struct node_row *row);
void node_lost(struct node *node); /* its placement is over: all of it ends at once */
void node_stop(struct node *node, const char *cause);

/* The node's work is over, for this cause; the first one counts. */
void node_end(struct node *node, const char *cause, int exit_code, int signal, const char *why);
void node_saved(struct node *node); /* the last checkpoint is sent, or will not be */
bool node_ended_well(const struct node *node);

/* Before node_saved(): it has left a checkpoint that the store did not take. */
void node_not_saved(struct node *node, const char *why);

/* An answer has come for it. True: it is gone, and perhaps freed. */
bool node_unbusy(struct node *node);
void node_free(struct node **node_p);

/* In front of what must not be written after its end; binds the node's own names. */
void node_bind(struct pg_batch *batch, const struct node *node);
void node_fence(struct pg_batch *batch, const struct node *node);

/* ---- trainer_setup.c: ends in node_ready(), or in node_end(). ---- */
void node_setup(struct node *node);
void node_ready(struct node *node);

/* ---- trainer_leftover.c ---- */
void trainer_leftovers_open(
    struct trainer *trainer); /* folders of nodes that were; removed later */
void trainer_leftovers_close(struct trainer *trainer);

/* ---- trainer_container.c ---- */

/* Folders of a node, on the machine below its own and in a container. */
enum node_place_id {
    NODE_WORKSPACE,
    NODE_SCRATCH,
    NODE_CHECKPOINTS,
    NODE_LOADED,
    NODE_PLACE_COUNT,
};
struct node_place {
    const char *below, *inside;
};
extern const struct node_place node_places[NODE_PLACE_COUNT];

/* As the node's commands see it; the caller frees. */
char *node_place(const struct node *node, enum node_place_id id);
char *node_cache(const struct node *node, bool of_tenant);

/* Sets `image` and the rest where it is to have a container. ERR_UNSUPPORTED: it must, and cannot;
 * ERR_RANGE: its image's name is none. */
int node_container_choose(struct node *node, struct err *err) MUST_CHECK;
void node_container_say(struct node *node); /* its first line, where its job names an image */
void node_container_look(struct node *node, container_done *done, void *opaque); /* 0: it is here */
void node_container_fetch(struct node *node, container_done *done, void *opaque);
int node_container_words(const struct node *node, struct container_words *ret_words,
                         struct err *err) MUST_CHECK;
void node_container_terminate(struct node *node);       /* SIGTERM to each of its processes */
void node_container_watch(struct node *node);           /* each second */
bool node_container_never_ran(const struct node *node); /* when it is over: it was not started */
bool node_container_was_short(const struct node *node); /* when it is over: of memory */

/* What is left of a trainer that was killed; then the first look at what is to run. */
void trainer_containers_sweep(struct trainer *trainer);

/* ---- trainer_env.c ---- */

/* Writes the script that runs the commands with their environment; its path is the caller's. */
int node_script(const struct node *node, char **ret_path, struct err *err) MUST_CHECK;

/* ---- trainer_run.c ---- */
void node_run_open(struct node *node); /* its timers, for a node may end before it runs */
void node_run(struct node *node);
void node_terminate(struct node *node); /* SIGTERM, and after the grace node_kill() */
void node_kill(struct node *node);      /* all of it; its end is told */

/* ---- trainer_log.c ---- */
int node_log_open(struct node *node, int fd, struct err *err) MUST_CHECK;
void node_log_close(struct node *node);
void node_log_finish(struct node *node); /* after the end: what is in the pipe, and sends all */
bool node_log_is_empty(const struct node *node);

/* Something else of it is being sent: lines that wait go along, in the same packet. */
void node_log_along(struct node *node);

/* Number of the line that comes after all that were printed until now. */
uint64_t node_log_mark(struct node *node);

/* Whether Postgres has said that it has all lines before that one; what is not under way is sent.
 */
bool node_log_has_stored(struct node *node, uint64_t mark);
void node_log_say(struct node *node, const char *line); /* a line of ours */
void node_log_last(const struct node *node, char *to, size_t to_size);

/* ---- trainer_figures.c ---- */
void node_metric_line(struct node *node, const char *line, size_t size);
void node_metric_sample(struct node *node); /* each second */
void node_metric_flush(struct node *node);
void node_metric_add(struct node *node, const char *name, double value, int64_t step);

/* ---- trainer_sync.c ---- */
int node_sync_open(struct node *node, struct err *err) MUST_CHECK;
void node_sync_close(struct node *node);
void node_sync_finish(struct node *node); /* a last look; then node_saved() */
