/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of the owner share. Who does what:
 *
 *   owner.c           life, events, phases, ticks
 *   owner_todo.c      the queue of to-dos
 *   owner_pin.c       records whose effect is not written yet, and so the floors
 *   owner_lane.c      pools, lanes, the bounded window, loads
 *   owner_expiry.c    deadlines of jobs that are not in memory
 *   owner_job.c       jobs: places, timers, how attempts end, deadlines
 *   owner_delayed.c   how many jobs of a tenant may wait for their next try
 *   owner_cancel.c    cancels and their verdicts
 *   owner_command.c   commands, their acknowledgements; replays and new places
 *   owner_switch.c    kill switches, and the jobs that they hold
 *   owner_worker.c    workers: credit, leases, heartbeats
 *   owner_limit.c     tenants and keys: how many of their jobs may run
 *   owner_dispatch.c  which job goes to which worker
 *   owner_flush.c     staging, composing and settling flushes
 *   owner_publish.c   what is told after a commit
 *   owner_takeover.c  evidence about jobs that are not known (yet), lookups
 */

#include <sys/queue.h>

#include "base/assert.h"
#include "base/rng.h"
#include "brokers/owner.h"
#include "brokers/owner_guard.h"
#include "brokers/sched.h"

/* uthash trips over -Wshadow nowhere, but aborts by exit(); ours abort by assertion. */
#define uthash_fatal(text) NEVER(text)
#define uthash_malloc(size) xmalloc(size)
#include <uthash.h>

#ifndef TAILQ_FOREACH_SAFE
#define TAILQ_FOREACH_SAFE(var, head, field, next)                                                 \
    for ((var) = TAILQ_FIRST(head); (var) != NULL && ((next) = TAILQ_NEXT(var, field), 1);         \
         (var) = (next))
#endif

#define OWNER_NAME_SIZE 65
#define OWNER_EVIDENCE_MAX 65536 /* tokens of unknown jobs */
#define OWNER_EVIDENCE_BYTES_MAX (64u << 20)
#define OWNER_CANCELS_MAX 65536 /* cancels that wait for a lookup */
#define OWNER_LOOKUP_MAX 1000   /* ids of one LOOKUP */
#define OWNER_LOADS_MAX 4       /* LOADs without an answer */
#define OWNER_LOAD_LEAST 16     /* rows for a lane that has slots but no window */
#define OWNER_UNPUBLISHED_BYTES_MAX (64u << 20)
#define OWNER_UNPUBLISHED_FLUSHES_MAX 256
#define OWNER_GONE_MAX 64 /* boots reported dead that are remembered */
#define OWNER_IDLE_LANES_MAX 4096

enum job_place {
    JOB_HELD,    /* until its flush is back: not inserted yet, or its last attempt just ended */
    JOB_DELAYED, /* a retry that is not due */
    JOB_WAITING, /* in its lane */
    JOB_BARRED,  /* would be next, but for what its tenant has delayed */
    JOB_PARKED,  /* its turn came, and a switch held it */
    JOB_RUNNING, /* has a token */
    JOB_ENDED,   /* final; until its flush is back */
};

/* A record that was read and whose effect is not in the ledger. */
struct pin {
    struct pin *next;        /* in its log, by offset */
    struct pin *next_of_job; /* of those that the same change will write */
    int64_t offset;
    uint64_t append_us;
    bool written;
};

struct pin_log {
    struct pin *head, *tail;
    size_t count;
    int64_t next;       /* offset that comes next */
    uint64_t append_us; /* of the newest record, or when the end was seen */
};

/* A Finished record that is kept until its effect is published. */
struct finish {
    struct message_finished message;
    size_t size;
};

struct verdict {
    struct verdict *next;
    struct wire_id id;
    uint64_t request, append_us; /* as of its cancel */
    bool canceled;
    char gateway[OWNER_NAME_SIZE];
};

/* What came of a command; written in the flush of its effect. */
struct ack {
    struct ack *next;
    struct flush_command command;
    struct pin *pin; /* of the command, or of its Place in intake */
};

/* A Cancel that cannot be decided yet; or a command, or the Place that followed from one, which go
 * the same way to their job. */
struct cancel {
    TAILQ_ENTRY(cancel) link;
    struct wire_id id;
    uint64_t request;
    struct pin *pin;
    uint64_t command; /* its id; 0: a Cancel from a gateway */
    enum command_kind kind;
    uint32_t round, priority;
    uint64_t seq;       /* of the Place */
    uint64_t append_us; /* of the Place, or of a gateway's Cancel */
    uint64_t barrier;   /* told first: what up to this flush became final; 0: not asked yet */
    bool asked;         /* in the LOOKUP that is out */
    char tenant[OWNER_NAME_SIZE], gateway[OWNER_NAME_SIZE];
};
TAILQ_HEAD(cancels, cancel);

/* A tenant or an API key: what runs for it, and what may. */
#define PARTY_KEY_SIZE (1 + OWNER_NAME_SIZE)
struct party {
    UT_hash_handle hh;
    char key[PARTY_KEY_SIZE]; /* its kind, and its name padded with zeros */
    bool listed;              /* is in the newest set of limits */
    uint32_t weight;
    uint64_t running, running_max;
    size_t user_count; /* lanes or flows */
    TAILQ_HEAD(, lane) parked_lanes;
    TAILQ_HEAD(, flow) parked_flows;
};

struct flow_key {
    struct lane *lane;
    char party[PARTY_KEY_SIZE];
};

/* Jobs of one key in a lane. */
struct flow {
    UT_hash_handle hh;
    struct flow_key key;
    struct sched_flow sched;
    struct lane *lane;
    struct party *party; /* NULL: no key was used */
    uint64_t jobs;
    LIST_ENTRY(flow) lane_link;
    TAILQ_ENTRY(flow) parked_link;
};

/* A tenant, as far as its jobs between two attempts go. */
struct delayer {
    UT_hash_handle hh;
    char tenant[OWNER_NAME_SIZE];
    uint64_t jobs, bytes;
    size_t lane_count;
    TAILQ_HEAD(, job) barred;
    TAILQ_ENTRY(delayer) link; /* in owner->barring, while it has any */
};

struct lane {
    UT_hash_handle hh;
    struct sched_lane sched;
    struct pool *pool;
    struct party *party;
    LIST_HEAD(, flow) flows;
    TAILQ_ENTRY(lane) parked_link;
    struct delayer *delayer;
    char key[OWNER_NAME_SIZE + 1]; /* tenant, padded with zeros, and the rank */
    uint64_t waiting, waiting_bytes, jobs;
    bool spilled;   /* rows above the cursor are not in memory */
    bool loading;   /* a LOAD is out */
    int64_t cursor; /* rows up to here were loaded, or were never out of memory */
    bool forgot;    /* a job left memory since the newest LOAD was asked for */
    TAILQ_ENTRY(lane) spilled_link;
};

struct pool {
    UT_hash_handle hh;
    char name[OWNER_NAME_SIZE];
    struct sched_pool sched;
    struct lane *lanes;
    TAILQ_HEAD(, worker) ready; /* workers with credit, served in turn */
    TAILQ_ENTRY(pool) busy_link;
    bool busy; /* something waits and somebody may take it */
    uint64_t running[JOB_RANK_COUNT];
    uint64_t waiting[JOB_RANK_COUNT];
    uint32_t workers;
    size_t lane_count;
};

struct worker_key {
    uint64_t boot;
    char name[OWNER_NAME_SIZE];
};

struct worker {
    UT_hash_handle hh;
    uint32_t ref_count;
    struct worker_key key;
    struct pool *pool; /* NULL: the stand-in for workers that were not heard of yet */
    uint64_t machine;  /* hash of its name; 0: not known */
    char device[129];
    char why[256]; /* how its process ended, as the agent says */
    uint32_t partition;
    uint64_t slots, granted, sent, position;
    int64_t last_offset; /* of the newest Attempt reported; -1: none */
    uint32_t unreported, running;
    uint64_t used_slots, silent_us, mark;
    bool draining, ready, spared, listed, heard;
    bool resumes; /* what it runs goes on where it was lost: runs of chains */
    TAILQ_ENTRY(worker) ready_link;
    TAILQ_HEAD(, job) jobs;
};

/* An Attempt that Kafka has not reported. */
struct sent {
    UT_hash_handle hh;
    uint64_t token;
    struct worker *worker;
    struct job *job; /* NULL: over already */
};

/* How the newest attempt ended, until it is written. */
struct ended {
    bool present;
    uint64_t token, boot, dispatched_us, started_us, ended_us;
    uint32_t number, batch_count;
    enum error_class class;
};

enum stage { STAGE_NONE, STAGE_LAZY_BULK, STAGE_LAZY, STAGE_URGENT };

struct job {
    UT_hash_handle hh;
    struct job_spec *spec;
    struct lane *lane;
    struct flow *flow;
    struct sched_job sched;
    struct heap_node timer;
    enum job_place place;
    enum job_state state;
    bool row;     /* is in the ledger */
    bool certain; /* false: nothing is decided before its insert is answered */
    bool alone, started, adopted, on_worker, told_end, in_flush, revoke, refused;
    bool replay; /* without its row: a round of a job that has one */
    bool placed; /* rank and seq of the row are old */
    bool woken;  /* while its attempt ran: it need not be put off */
    uint64_t token, fence, final_token;
    uint32_t attempt_count, user_failures, oom_failures, lost_failures, free_losses;
    uint64_t due_us, state_us, started_us, dispatched_us, mark;
    uint64_t run_us; /* dispatched, or heard to have started: the worker's clock may differ */
    int64_t dispatch_offset; /* -1: not known */
    struct sent *sent;
    struct worker *worker; /* of the newest attempt, a reference; may be NULL */
    TAILQ_ENTRY(job) worker_link, barred_link;
    enum error_class error_class;
    const char *error_text; /* static storage; NULL: as finish says */
    struct finish *finish;
    struct ended ended;
    struct pin *pins;
    struct verdict *verdicts;
    struct ack *acks;
    struct cancels cancels;
    enum stage stage;
    uint64_t changed_us; /* monotonic, of the oldest change that is not in a flush */
    size_t stage_size;
    TAILQ_ENTRY(job) stage_link;
    TAILQ_ENTRY(job) parked_link;
};
TAILQ_HEAD(job_list, job);

/* What a change of one job takes into its flush. */
struct flush_item {
    struct job *job; /* NULL once settled */
    struct job_spec *spec;
    struct finish *finish;
    struct worker *worker;
    struct verdict *verdicts;
    char *refused_why;
    void *copy; /* of a takeover's unpublished record */
    struct wire_text gateway;
    uint64_t revoke_token; /* 0: nothing to revoke */
};

struct flush_batch {
    TAILQ_ENTRY(flush_batch) link;
    struct flush flush;
    struct flush_job *jobs;
    struct flush_attempt *attempts;
    struct flush_item *items;
    struct flush_command *commands;
    struct ledger_final *finals;
    size_t final_count, item_count;
    size_t size;
    uint64_t oldest_us;
    bool published;
};

enum evidence_step { EVIDENCE_WANTED, EVIDENCE_ASKED, EVIDENCE_WAITS };

/* A token of a job that is not in memory, or not certain. */
struct evidence {
    UT_hash_handle hh;
    struct wire_id id;
    enum evidence_step step;
    uint64_t token, started_us;
    struct worker *worker; /* a reference; NULL: not known */
    struct finish *finish;
    struct pin *pins;
};

struct todo_node {
    TAILQ_ENTRY(todo_node) link;
    struct owner_todo todo;
    struct job_spec *spec; /* references that keep the pointers of the to-do alive */
    struct worker *worker;
    void *memory;
    struct pin *pin; /* written once the to-do was carried out */
};

enum owner_phase { OWNER_OUTCOME, OWNER_LOOKUP, OWNER_LIVE, OWNER_OVER };

struct owner {
    struct owner_options options;
    struct owner_ends ends;
    uint32_t shard, epoch, token_count;
    enum owner_phase phase;
    bool draining, paused, intake_was_read;
    bool intake_at_end,
        outcome_at_end;        /* read to an end after the takeover; offsets may have gaps */
    uint64_t now_us, wall_us;  /* monotonic, and Kafka's append time */
    uint64_t leases_us;        /* monotonic: when leases were last aged */
    uint64_t outcome_end_us;   /* monotonic: when outcome was last read to its end */
    uint64_t outcome_known_us; /* monotonic: since when it has been, again and again */
    struct rng rng;
    struct wire_decoder *decoder;
    struct buf scratch;

    struct pin_log intake, outcome, commands;

    struct job *jobs; /* by id */
    struct heap timers;
    struct pool *pools;
    TAILQ_HEAD(, pool) busy;
    TAILQ_HEAD(, lane) spilled;
    uint32_t loads;
    uint64_t lane_count_ever;
    struct party *parties;
    struct flow *flows;
    size_t flow_sweep_at;
    bool limits_known;
    struct ledger_due expiry; /* the cursor over deadlines of spilled jobs */
    uint64_t expiry_us;       /* monotonic: not asked again before */
    bool expiry_out;          /* a DUE is out */
    struct delayer *delayers;
    TAILQ_HEAD(, delayer) barring;
    uint64_t delayed_jobs, delayed_bytes; /* between two attempts: they cannot leave memory */

    struct worker *workers;
    struct worker *unknown; /* holds adopted jobs whose worker was not heard of */
    struct sent *sent;
    struct {
        struct worker_key key;
        uint64_t until_us;
    } gone[OWNER_GONE_MAX];
    size_t gone_next;

    struct job_list lazy, lazy_bulk, urgent, parked;
    struct switch_on *switches;
    size_t lazy_count, urgent_count; /* lazy_count: of both lists */
    uint64_t unflushed_bytes;        /* staged and in flight */
    struct flush_batch *batch;
    uint64_t flush_count, flushed_us;
    uint32_t flushed_jobs; /* rows of the newest flush */
    int64_t flushed_intake, flushed_outcome, flushed_commands;
    uint64_t flushed_published, flushed_floor_us;

    TAILQ_HEAD(, flush_batch) unpublished; /* committed, in order of number; 0 is the takeover's */
    uint64_t unpublished_bytes, unpublished_count;
    uint32_t published_epoch;
    uint64_t published_number;

    struct evidence *evidence;
    uint64_t evidence_bytes;
    struct cancels cancels;
    size_t cancel_count;
    struct cancels unpublished_cancels; /* replays of what is not told yet, by barrier … */
    size_t awaiting_count;              /* … and gateways' cancels of what is to be replayed */
    struct ack *acks, **acks_tail;      /* that need no change of a job */
    size_t ack_count;                   /* those of jobs too */
    struct command *commands_sent;      /* by id: their Places are on the way to Kafka */
    TAILQ_HEAD(, command) commands_unsent;
    bool commands_asked, commands_noticed;
    uint64_t commands_us, places_us; /* monotonic: asked last; not again before */
    struct wire_id *lookup;          /* ids of the LOOKUP that is out; NULL: none is */
    size_t lookup_count, lookup_wanted;

    TAILQ_HEAD(, todo_node) todos;
    struct todo_node *last_todo;

    struct owner_stats stats;
};

static inline bool owner_guarded(const struct owner *owner, enum owner_guard guard)
{
    return (owner->options.removed_guards & (unsigned)guard) == 0;
}

/* owner.c */
void owner_stop(struct owner *owner, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* owner_todo.c */
struct todo_node *todo_add(struct owner *owner, enum owner_todo_type type);
void todo_free(struct todo_node **node_p);

/* owner_pin.c */
struct pin *pin_add(struct pin_log *log, int64_t offset, uint64_t append_us);
void pin_link(struct pin **list, struct pin *pin); /* onto a job's list; pin may be NULL */
void pin_move(struct pin **to, struct pin **from);
void pin_write(struct pin **list);  /* marks all of the list and empties it */
void pin_trim(struct pin_log *log); /* forgets the written ones at the front */
int64_t pin_floor(const struct pin_log *log);
uint64_t pin_floor_us(const struct pin_log *log);
void pin_log_done(struct pin_log *log);

/* owner_lane.c */
struct pool *pool_get(struct owner *owner, struct wire_text name);
void pool_check_busy(struct owner *owner, struct pool *pool);
struct lane *lane_get(struct owner *owner, const struct job_spec *spec);
bool lane_admits(const struct owner *owner, const struct lane *lane);
void lane_spill(struct owner *owner, struct lane *lane, int64_t cursor);
bool lane_must_forget(const struct lane *lane, const struct job *job);
void lane_adopt_takeover(struct owner *owner, const struct ledger_lane *found);
void lane_confirm(struct owner *owner, struct job *job, struct ledger_row *row);
void lane_plan_loads(struct owner *owner);
void lane_free_all(struct owner *owner);

/* owner_limit.c */
void limit_join_lane(struct owner *owner, struct lane *lane, struct wire_text tenant);
void limit_leave_lane(struct owner *owner, struct lane *lane);
struct flow *limit_flow(struct owner *owner, struct lane *lane, struct wire_text key_prefix);
void limit_count(struct owner *owner, const struct job *job, int sign);
/* True when the job that is to run next may not: then it is out of the way. */
bool limit_park(struct job *job);
void limit_free_all(struct owner *owner);

/* owner_job.c */
struct job *job_find(struct owner *owner, const struct wire_id *id);
struct job *job_add(struct owner *owner, struct job_spec *spec); /* takes the reference */
/* Takes another spec of the same job, and the reference. */
void job_take_spec(struct owner *owner, struct job *job, struct job_spec *spec);
/* Moves the job to the lane that its new spec names, and takes the reference. */
void job_change_lane(struct owner *owner, struct job *job, struct job_spec *spec);
struct job *job_add_row(struct owner *owner, struct ledger_row *row);
void job_remove(struct owner *owner, struct job *job); /* frees it; its pins count as written */
void job_move(struct owner *owner, struct job *job, enum job_place place);
void job_wait(struct owner *owner, struct job *job); /* to DELAYED or WAITING */
void job_settle(struct owner *owner, struct job *job);
void job_start(struct owner *owner, struct job *job, struct worker *worker, uint64_t token);
void job_attach(struct job *job, struct worker *worker);
void job_adopt(struct owner *owner, struct job *job, uint64_t token, struct worker *worker);
void job_end_final(struct owner *owner, struct job *job, enum job_state state,
                   enum error_class class, const char *why);
void job_on_finish(struct owner *owner, struct job *job, struct finish **finish_p);
void job_on_lost(struct owner *owner, struct job *job, bool counts, const char *why);
void job_on_handed_back(struct owner *owner, struct job *job, const char *why);
void job_run_timers(struct owner *owner);
bool job_expire(struct owner *owner, struct job *job); /* true: a deadline has passed */

/* owner_expiry.c */
void expiry_run(struct owner *owner);
uint64_t expiry_due_us(const struct owner *owner); /* UINT64_MAX: nothing to look for */

/* owner_delayed.c */
struct delayer *delayed_join(struct owner *owner, const char tenant[OWNER_NAME_SIZE]);
void delayed_leave(struct owner *owner, struct delayer **delayer_p);
void delayed_count(struct owner *owner, struct delayer *delayer, int sign, size_t size);
bool delayed_bars(const struct owner *owner, const struct job *job);
void delayed_bar(struct owner *owner, struct job *job);
void delayed_unbar(struct owner *owner, struct job *job);
void delayed_run(struct owner *owner);

/* owner_cancel.c */
void cancel_on_record(struct owner *owner, const struct message_cancel *message, struct pin *pin);
void cancel_apply_all(struct owner *owner, struct job *job);
void cancel_postpone_all(struct owner *owner, struct job *job); /* to a lookup */
void cancel_give_up(struct owner *owner, struct cancel *cancel, const struct ledger_row *row);
void cancel_ask_again(struct owner *owner, struct verdict **list, const struct job_spec *spec);
void cancel_free_all(struct owner *owner);
void cancel_decide(struct owner *owner,
                   struct cancel **cancel_p); /* now, or when its job is known */
void cancel_look_up(struct owner *owner, struct cancel *cancel);
void verdict_tell(struct owner *owner, struct verdict **list, bool applied);
void verdict_free(struct verdict **list);

/* owner_command.c */
void command_plan(struct owner *owner);
void command_on_place(struct owner *owner, const struct message_place *message, struct pin *pin);
void command_apply(struct owner *owner, struct job *job, struct cancel *cancel);
void command_give_up(struct owner *owner, struct cancel *cancel, const struct ledger_row *row);
void command_refuse(struct owner *owner, struct cancel *cancel, const char *reason);
void command_on_published(struct owner *owner);
/* True: the job is to be replayed by what came before, and the cancel waits behind that. */
bool command_is_awaited(struct owner *owner, struct cancel *cancel);
void command_free_all(struct owner *owner);
uint64_t command_due_us(const struct owner *owner);
void ack_job(struct owner *owner, struct job *job, struct cancel *cancel, bool applied,
             const char *reason);
void ack_compose(struct owner *owner, struct flush_batch *batch, struct ack **list);
void ack_compose_rest(struct owner *owner, struct flush_batch *batch);
void ack_keep_all(struct owner *owner, struct job *job); /* of a job that leaves memory */

/* owner_switch.c */
bool switch_holds(const struct owner *owner, const struct job *job);
void switch_free_all(struct owner *owner);

/* owner_worker.c */
struct worker_key worker_key_of(struct wire_text name, uint64_t boot);
struct worker *worker_new(struct owner *owner, struct wire_text name, uint64_t boot);
struct worker *worker_ref(struct worker *worker);
void worker_unref(struct worker **worker_p);
void worker_check_ready(struct owner *owner, struct worker *worker);
void worker_on_hello(struct owner *owner, const struct message_hello *hello);
void worker_on_heartbeat(struct owner *owner, const struct message_heartbeat *beat);
void worker_on_bye(struct owner *owner, const struct message_bye *bye);
void worker_on_gone(struct owner *owner, const struct message_gone *gone);
void worker_on_credit(struct owner *owner, struct worker *worker, uint64_t granted);
void worker_on_life(struct owner *owner, struct wire_text name, uint64_t boot);
/* What workers have said is known, but for the last half second. */
bool worker_words_are_known(const struct owner *owner);
/* It has been for a lease: after a stall, each has been heard again, or is lost. */
bool worker_words_stay_known(const struct owner *owner);
void worker_age_leases(struct owner *owner, uint64_t elapsed_us);
void worker_free_all(struct owner *owner);

/* owner_dispatch.c */
bool dispatch_allowed(const struct owner *owner);
void dispatch_run(struct owner *owner);
void dispatch_revoke(struct owner *owner, uint64_t token, struct worker *worker,
                     const struct wire_id *job);

/* owner_flush.c */
void job_changed(struct owner *owner, struct job *job, enum stage stage);
void flush_unstage(struct owner *owner, struct job *job);
void flush_run(struct owner *owner);
uint64_t flush_oldest_us(const struct owner *owner); /* UINT64_MAX: all is written */
uint64_t flush_due_us(const struct owner *owner);
void flush_batch_free(struct flush_batch **batch_p);

/* owner_publish.c */
void publish_batch(struct owner *owner, struct flush_batch *batch, const bool *applied);
void publish_takeover(struct owner *owner, const struct ledger_takeover *takeover);

/* owner_takeover.c */
void evidence_see(struct owner *owner, const struct wire_id *id, uint64_t token,
                  struct worker *worker, uint64_t started_us, struct finish **finish_p,
                  struct pin *pin);
bool evidence_exists(struct owner *owner, const struct wire_id *id);
void evidence_resolve(struct owner *owner, struct job *job);
void evidence_ask_again(struct owner *owner, const struct wire_id *id);
void takeover_step(struct owner *owner);
void takeover_free(struct owner *owner);
