/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Records of users' Kafka topics become jobs, and results go to users' topics: a part of the
 * ingest.
 *
 *   ingest_topics.c    opens, looks, leaves        ingest_bindings.c  which topics, for whom
 *   ingest_stream.c    a binding's share of the partitions of a topic, claims, batches
 *   ingest_in.c        record -> Submit, or dead letter
 *   ingest_out.c       completed -> record of a result topic
 *   pure: ingest_map (what a record says), ingest_headers
 *
 *   records -> mapped -> claim (one row: from where to where, at what time, for which deployments)
 *   -> Submit to intake[s], all of the batch -> reports -> the next claim moves the position on
 *
 * A job's id is a hash of binding, partition and offset, with the claim's time and a deployment
 * that the claim names. Whoever reads a claimed record again, after a kill or a rebalance, makes
 * the same id of it, and the ledger has one job. A claim needs the epoch of its partition, which
 * every takeover raises: a process that sleeps through a rebalance can at most send again what it
 * had claimed.
 *
 * One loop, one thread; claims are the only wait that a batch has besides Kafka's.
 *
 * Thread: the loop's.
 */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "producers/ingest.h"
#include "producers/ingest_map.h"
#include "schema/job_id.h"

struct seal_key;
struct wire_decoder;

#define INGEST_BATCH_MAX QUEUE_BATCH_MAX
#define TOPIC_TARGETS_MAX 64
#define INGEST_PROBLEM_SIZE 400

struct shard_pace {
    int64_t reported; /* highest offset of intake that we were told of */
    int64_t floor;    /* below it, all is in the ledger */
};

struct topics {
    const struct ingest_settings *settings;
    const char *boot; /* who we are, in the ledger */
    struct loop *loop;
    struct metrics *metrics;
    struct pg *pg; /* what is looked at; the ingest's, as the three behind it */
    struct queue_producer *producer;
    struct queue_topic *intake;
    struct blob_store *blobs;
    struct pg *pg_claims;      /* what is written */
    struct seal_key *seal_key; /* NULL: none was given */
    struct wire_decoder *decoder;
    struct ingest_mapper *mapper;
    TAILQ_HEAD(binding_list, binding) bindings;
    LIST_HEAD(, partition) orphans; /* only answers are awaited */
    struct loop_timer *tick;
    struct shard_pace shards[JOB_SHARD_COUNT_MAX];
    size_t bytes; /* of records that are on their way */
    bool looking, hurry, leaving;
    uint64_t looked_ms;
};

int topics_open(struct ingest *ingest, struct topics **ret_topics, struct err *err) MUST_CHECK;

/* SIGTERM: what was claimed is finished, positions are written, groups left. */
void topics_leave(struct topics *topics);
size_t topics_busy(const struct topics *topics); /* what is not given back yet */
void topics_close(struct topics **topics_p);     /* after all that answers to it */

/* ---- ingest_bindings.c: which topics, for whom ---- */

/* A deployment that a claim may choose. */
struct topic_target {
    char deployment[INGEST_NAME_SIZE], environment[INGEST_NAME_SIZE], pool[INGEST_NAME_SIZE];
    uint32_t shard, weight;
    uint64_t run_limit_ms;
};

struct topic_targets {
    struct topic_target items[TOPIC_TARGETS_MAX];
    size_t count;
    uint64_t weight;
};

/* ERR_INTERNAL for what the ledger would not say. */
int topic_targets_read(const char *json, struct topic_targets *ret_targets,
                       struct err *err) MUST_CHECK;

/* Strings are the binding's; what stands in the ledger as null is NULL. */
struct binding {
    TAILQ_ENTRY(binding) link;
    struct topics *topics;
    char *id, *tenant, *name, *topic, *brokers, *properties, *group, *dead_topic, *result_topic,
        *tags;
    bool start_at_end, skips_bad;
    uint32_t max_attempts, priority;
    uint64_t queue_limit_ms, created_ms;
    struct ingest_mapping *mapping;
    /* as last looked at */
    char model[INGEST_NAME_SIZE];
    char *targets_json;
    struct topic_targets targets;
    char problem[INGEST_PROBLEM_SIZE]; /* "": none */
    char limit[INGEST_PROBLEM_SIZE];   /* what there is no room for; "": there is */
    double room;
    bool paused, seen;
    bool refused; /* it cannot be opened; its streams say why */
    uint32_t refused_looks;
    struct stream *in, *out;
};

void bindings_look(struct topics *topics);
void bindings_on_config(void *opaque, const char *payload);
void bindings_tick(struct topics *topics);
void bindings_leave(struct topics *topics);
size_t bindings_busy(const struct topics *topics); /* partitions that are not given back yet */
void bindings_close(struct topics *topics);

/* ---- ingest_stream.c ---- */

enum item_stage {
    ITEM_READY,   /* to be sent (again) */
    ITEM_SENDING, /* a report or a stored input is awaited */
    ITEM_DONE,
};

/* A record on its way. */
struct item {
    struct batch *batch;
    int64_t offset;
    enum item_stage stage;
    struct ingest_record made; /* what was made of it, or why nothing could be */
    struct wire_id job;
    uint32_t target;       /* in the targets of the batch */
    uint32_t shard;        /* of `completed`: its partition */
    uint8_t digest[32];    /* of the input */
    bool stored, repeated; /* the input is in the blob store; its key had a job */
    bool foreign;          /* …that no deployment of ours runs: nothing is sent */
};

/* What was claimed together. */
struct batch {
    struct partition *partition;
    struct item *items;
    size_t count, left; /* left: items that are not done */
    uint64_t claim_ms;
    struct topic_targets targets;
    bool claimed;
};

struct stream_kind {
    const char *what; /* "in", "out": a label */
    /* Makes an item of a record. False: it is of no concern. */
    bool (*take)(struct partition *partition, const struct queue_record *record, struct item *item);
    /* How many of the first `count` items may be claimed now; 0: why is in the stream's problem. */
    size_t (*allow)(struct partition *partition, const struct item *items, size_t count);
    /* Adds statements to the claim, which has one already. */
    void (*claim)(struct batch *batch, struct pg_batch *pg);
    void (*on_claimed)(struct batch *batch, const struct pg_answer *answer);
    /* Sends a READY item: it becomes SENDING, or DONE, or stays. */
    void (*send)(struct item *item);
};
extern const struct stream_kind stream_in, stream_out;

struct partition {
    LIST_ENTRY(partition) link;
    struct stream *stream; /* NULL: it was closed; only answers are awaited */
    struct topics *topics;
    uint32_t number;
    struct queue_reader *reader;
    uint64_t epoch;            /* 0: not taken over yet */
    int64_t position, written; /* of the next record; what the ledger knows. -1: nothing yet */
    int64_t claim_to;          /* records before are of an earlier claim… */
    uint64_t claim_ms;         /* …of this time… */
    char *claim_targets;       /* …and these targets */
    int64_t next_offset;       /* behind what was gathered */
    int64_t log_end;
    struct item *gathered;
    size_t gathered_count;
    struct batch *batch;                  /* under way; NULL: none */
    uint64_t accepted, refused, repeated; /* not written yet */
    bool asking;       /* a claim, a position or a takeover is on its way to the ledger */
    bool leaving;      /* it is to be given back */
    bool dead;         /* its reader is, and says why in the stream's problem */
    uint64_t again_ms; /* not before: after a failure */
};

struct stream {
    struct binding *binding;
    struct topics *topics;
    const struct stream_kind *kind;
    bool result;
    struct queue_admin *admin;
    struct queue_consumer *consumer;
    struct queue_election *election;
    struct queue_producer *producer; /* in the user's cluster: dead letters, results; or NULL */
    struct queue_topic *topic_out;
    LIST_HEAD(, partition) partitions;
    char problem[INGEST_PROBLEM_SIZE], told[INGEST_PROBLEM_SIZE];
    char trouble[INGEST_PROBLEM_SIZE]; /* of a partition that is dead: stays until it is given back
                                        */
    uint64_t told_ms, asked_ms, release_by_ms, problem_ms;
    bool asking, releasing, left, is_open;
    bool broken; /* the group has no place for us any more */
};

struct stream *stream_new(struct binding *binding, const struct stream_kind *kind);
void stream_tick(struct stream *stream, uint64_t now_ms);
void stream_leave(struct stream *stream);
size_t stream_busy(const struct stream *stream);
void stream_close(struct stream **stream_p);

/* What is wrong now; it is over when nothing has said it for some seconds. */
void stream_trouble(struct stream *stream, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* When no answer comes any more. */
void orphans_free(struct topics *topics);

void item_done(struct item *item);
void item_again(struct item *item); /* it is READY again, for the next tick */
