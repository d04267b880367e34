/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The program `headrace broker`, as its parts see each other. Only brokers/broker_*.c include it.
 *
 *   broker_main.c      options, parts, election, drain
 *   broker_shard.c     one owned shard: takeover, readers, the owner's events
 *   broker_todo.c      carries out what the owner asks for
 *   broker_publish.c   a committed flush becomes known: Redis, wake-ups, `completed`
 *   broker_command.c   commands: reads them, puts their Places into intake
 *   broker_ledger.c    the cluster check before a takeover, and the care of Postgres' days
 *   broker_pace.c      how fast pools work, for estimates
 *   broker_limits.c    limits of tenants and keys, from Postgres to the owners
 *   broker_blobs.c     the collector of blobs
 *   broker_training.c  the collector of files of checkpoints
 *   broker_watch.c     /metrics, /healthz, /readyz
 *   broker_switch.c    kill switches, read for all shards
 *   broker_trace.c     spans of jobs and of their waiting
 *   broker_public.c    metrics under the names that users know
 *
 * One thread, one loop; nothing here locks.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/buf.h"
#include "base/trace.h"
#include "brokers/cache.h"
#include "brokers/owner.h"
#include "brokers/queue.h"
#include "brokers/store.h"

struct broker_limits;
struct broker_blobs;
struct broker_training;
struct http_server;
struct loop;
struct loop_timer;
struct loop_turn;
struct metrics;
struct model_names;
struct pg;
struct pg_answer;
struct pg_batch;

#define BROKER_SHARDS_MAX 1024

struct broker_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
#include "brokers/broker_settings.def"
#include "base/settings_end.def"
};

enum broker_metric {
#define METRICS_ENUM(name) BROKER_METRIC_##name,
#include "base/metrics_rows.def"
#include "brokers/broker_metrics.def"
#include "base/metrics_end.def"
    BROKER_METRIC_COUNT
};

/* ---- One shard */

enum shard_phase {
    SHARD_CHECKING, /* is the ledger of this Kafka? */
    SHARD_TAKING,   /* the epoch is being raised */
    SHARD_ENDS,     /* where do intake and outcome end now? */
    SHARD_OWNED,    /* the owner decides */
    SHARD_WAITING,  /* something failed: tried again after a while */
    SHARD_CLOSED,   /* let go; the memory stays until the last report of Kafka */
};

struct shard {
    LIST_ENTRY(shard) next; /* in broker->shards, or closed_shards */
    struct broker *broker;
    uint32_t number;
    uint32_t ref_count; /* the broker's, and one for each answer that is due from Kafka */
    enum shard_phase phase;
    struct store *store;
    struct ledger_takeover *takeover; /* the store's, until the owner is made */
    int64_t intake_floor, outcome_floor;
    struct owner_ends ends;
    uint32_t ends_due;
    struct owner *owner;
    struct queue_reader *intake, *outcome;
    struct loop_timer *timer;  /* what the owner does without an event; also the retry */
    struct loop_timer *prober; /* asks where the topics end while nothing comes */
    bool dirty;                /* events came: to-dos are due at the end of the turn */
    bool held;                 /* no to-do until a DEAD record is reported */
    bool intake_probe_due, outcome_probe_due;
    uint64_t probe_wall_us, probe_mono_us, outcome_end_us;
    uint64_t flush_sent_us;
    const struct flush *flush; /* the one that is under way; the owner's */
    struct publication_list *publications;
    struct owner_stats counted; /* what /metrics has added up already */
    bool live_logged;
    char waits_for[ERR_TEXT_SIZE]; /* why, as it was logged last: not each second */
};

/* Starts to take the shard over. */
struct shard *shard_open(struct broker *broker, uint32_t number);

/* Lets it go at once: no event, no to-do, no answer has an effect any more. */
void shard_close(struct shard **shard_p);

/* No new dispatch; shard_drained() once the last flush is written and published. */
void shard_drain(struct shard *shard);
bool shard_drained(const struct shard *shard);

/* At the end of each turn of the loop: carries out the to-dos, sets the timer. */
void shard_turn(struct shard *shard);

/* Time goes on for the owner; every event is handed to it behind this call. */
void shard_touch(struct shard *shard);

/* Gives this ownership up and tries again after a second; logs why. */
void shard_retry(struct shard *shard, const struct err *err);

struct shard *shard_ref(struct shard *shard);
void shard_unref(struct shard **shard_p);

/* At the very end, when nobody is left who could answer: frees what waits for answers. */
void shards_forget(struct broker *broker);

/* ---- To-dos (broker_todo.c) and publishing (broker_publish.c) */

void shard_carry_out(struct shard *shard);

struct publication_list *publications_new(struct shard *shard);
void publications_free(struct publication_list **list_p);
void publication_add(struct shard *shard, uint64_t flush_number, const struct ledger_final *finals,
                     size_t final_count);
/* At the very end: those whose reports have not come. */
void publications_forget(struct broker *broker);
/* Sends what could not be sent before. True while something is still unsent. */
bool publications_push(struct shard *shard);

/* ---- Commands (broker_command.c) */

void shard_listen(struct shard *shard);
void carry_out_commands(struct shard *shard, const struct owner_todo *todo);
void carry_out_place(struct shard *shard, const struct message_place *place);

/* ---- Kill switches (broker_switch.c) */

void switches_open(struct broker *broker);
void switches_close(struct broker *broker);
void switches_ask(struct pg_batch *batch); /* adds one statement… */
void switches_take(struct broker *broker, const struct pg_answer *answer, size_t at);

/* ---- Postgres beside the ledger (broker_ledger.c) */

int ledger_open(struct broker *broker, struct err *err) MUST_CHECK;
void ledger_close(struct broker *broker);

/* Calls shard_take() or shard_retry(); dropped when the shard is closed meanwhile. */
void ledger_check_cluster(struct shard *shard);
void shard_take(struct shard *shard);

/* ---- Limits (broker_limits.c) */

void broker_limits_open(struct broker *broker);
void broker_limits_close(struct broker *broker); /* after the connection that it listens on */
void broker_limits_apply(struct shard *shard);   /* to an owner that was just made */

/* ---- Estimates (broker_pace.c) */

void broker_pace_open(struct broker *broker);
void broker_pace_close(struct broker *broker);

/* ---- Blobs that have outlived their jobs (broker_blobs.c) */

int broker_blobs_open(struct broker *broker, struct err *err) MUST_CHECK;
void broker_blobs_close(struct broker *broker); /* after ledger_close(): nobody answers it then */

/* ---- Files of checkpoints that no checkpoint names any more (broker_training.c); likewise */

int broker_training_open(struct broker *broker, struct err *err) MUST_CHECK;
void broker_training_close(struct broker *broker);

/* ---- Watching (broker_watch.c) */

int watch_open(struct broker *broker, struct err *err) MUST_CHECK;
void watch_close(struct broker *broker);

/* What was told of the shard is another broker's to tell from now on. */
void watch_shard_left(struct shard *shard);

/* ---- Spans (broker_trace.c) */

int broker_trace_open(struct broker *broker, struct err *err) MUST_CHECK;
void broker_trace_flush(struct broker *broker, void (*done)(void *opaque));

/* Records how long the attempt waited, and makes its worker's run a child of the job: the message's
 * trace then points into `trace`. */
void broker_trace_attempt(struct broker *broker, const struct owner_todo *todo,
                          struct message_attempt *attempt, char trace[TRACE_PARENT_SIZE]);
void broker_trace_final(struct broker *broker, const struct message_completed *completed);

/* ---- Public metrics (broker_public.c) */

/* The labels and the series that were used last. */
struct public_memo {
    char model[65], deployment[65], environment[65];
    int status;
    bool sync;
    unsigned version; /* of the names of models */
    struct metric *series[3];
};

void broker_public_open(struct broker *broker);
void broker_public_attempt(struct broker *broker, const struct owner_todo *todo, uint64_t now_us);
void broker_public_final(struct broker *broker, const struct ledger_final *final);

/* ---- The program */

enum broker_phase {
    BROKER_STARTING, /* topics are made */
    BROKER_RUNNING,
    BROKER_DRAINING,
};

struct broker {
    struct broker_settings settings;
    struct loop *loop;
    enum broker_phase phase;
    int exit_code;
    char boot[64]; /* names this process in Kafka's and Postgres' own views */
    char *cluster_id;
    uint32_t shard_count; /* partitions of intake */
    struct queue_admin *admin;
    struct queue_producer *producer;
    struct queue_topic *intake, *completed, *intake_dead;
    struct queue_consumer *consumer;
    struct queue_election *election;
    struct cache *cache;
    struct pg *pg;
    struct loop_timer *maintenance_timer, *compact_timer, *pace_timer;
    bool maintenance_due, compact_due, pace_due; /* a statement is under way */
    struct broker_blobs *blobs;                  /* NULL: no store was named */
    struct broker_training *training;            /* likewise */
    struct loop_turn *turn;
    struct loop_timer *start_timer;
    struct loop_timer *drain_timer;
    uint64_t start_deadline_ms;
    bool elected;  /* Kafka has told us our share, perhaps nothing */
    bool revoking; /* shards drain because Kafka wants them back, or we stop */
    bool keeping;  /* we stop, and stay a member of the group until the session is over */
    bool left;     /* nothing is ours any more */
    LIST_HEAD(, shard) shards, closed_shards;
    TAILQ_HEAD(, publication) dropped_publications;
    uint32_t takeover_count;
    struct buf scratch; /* for the message that is being encoded */
    struct buf wake_scratch;
    struct http_server *http;
    char not_ready[ERR_TEXT_SIZE + 64]; /* what /readyz says */
    struct metrics *metrics;
    struct tracer *tracer;
    struct model_names *names;
    struct broker_limits *limits;
    struct ledger_switch *switches;
    size_t switch_count;
    bool switches_due; /* a statement is under way */
    struct loop_timer *switches_timer;
    struct public_memo memo_attempt, memo_final;
    struct metric *flush_seconds, *flush_jobs;
    struct queue_producer_counts counted_queue;
    uint64_t counted_redis_failures;
    uint32_t counted_takeovers;
    uint64_t maintenance_failures, counted_maintenance_failures;
};

struct queue_options broker_queue_options(const struct broker *broker);
bool broker_is_ready(const struct broker *broker);

/* Drains and ends with this exit code. */
void broker_stop(struct broker *broker, int exit_code);

/* A shard that this program can never serve (ERR_UNSUPPORTED, ERR_DEPENDENCY): leaves it. */
void broker_give_up(struct shard *shard, const struct err *err);
