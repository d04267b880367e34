/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Inside of the coordinator: coordinator.c (life, runs), coordinator_item.c (a job of a step: its
 * Submit, its outcome), coordinator_cache.c (outputs of earlier jobs), coordinator_call.c (URLs),
 * coordinator_wait.c (steps that wait), coordinator_look.c (questions to the ledger).
 */

#include <sys/queue.h>

#include "base/assert.h"
#include "base/http_client.h"
#include "base/loop.h"
#include "brokers/address_guard.h"
#include "brokers/blob.h"
#include "brokers/cache.h"
#include "brokers/jq.h"
#include "brokers/pg.h"
#include "brokers/queue.h"
#include "chains/coordinator.h"
#include "chains/plan.h"
#include "schema/job_id.h"
#include "schema/message.h"

#define uthash_fatal(text) NEVER(text)
#define uthash_malloc(size) xmalloc(size)
#include <uthash.h>

#define COORDINATOR_TICK_MS 250
#define COORDINATOR_LOOK_MS_MAX 2000
#define COORDINATOR_BOOT_SIZE 24
#define REST_MS_MIN 5000 /* a shorter wait is not worth another attempt */
#define COORDINATOR_QUERY_MS 10000
#define COORDINATOR_RECORD_MAX (128u << 10) /* of a Submit */

/* A job that an earlier attempt, or an earlier round, has submitted. */
struct known {
    UT_hash_handle hh;
    struct known_key {
        uint32_t step, item;
    } key;
    struct wire_id job;
    uint32_t round;
    enum job_state state; /* 0: the ledger has no row of it yet */
};

#define COORDINATOR_ASKED_MAX 32    /* of the cache at once: outputs of 512 KiB at most */
#define COORDINATOR_CACHED_MAX 1000 /* to be told to the cache */

enum item_stage {
    ITEM_TO_ASK, /* whether its output is there already */
    ITEM_ASKING,
    ITEM_TO_SEND, /* its Submit is to be produced, or tried again */
    ITEM_SENDING, /* Kafka, or the blob store, has not answered */
    ITEM_WATCHED, /* it is out there */
    ITEM_WANTED,  /* it has succeeded, and its output is to be read */
    ITEM_READING,
};

/* A job of a run that is waited for. */
struct item {
    UT_hash_handle hh;         /* by its job */
    LIST_ENTRY(item) link;     /* of its run, or of what is forgotten */
    LIST_ENTRY(item) ask_link; /* TO_ASK */
    struct coordinator *coordinator;
    struct run *run; /* NULL: forgotten while an answer is out */
    struct wire_id job;
    uint32_t step, item;
    enum item_stage stage;
    uint32_t pin_count; /* answers that are out */
    bool repeat, stored;
    bool settles; /* its run has failed: it is canceled as soon as it is there */
    bool untried; /* it was canceled before an attempt */
    bool untold;  /* … and that could not be said */
    bool fresh;   /* its job is its own, and was submitted by this attempt */
    char *text;   /* its input, until Kafka has it */
    size_t text_size;
    char *text_type, *output_type; /* media types of what is no JSON; else NULL */
    uint8_t digest[BLOB_DIGEST_SIZE];
    char blob[BLOB_KEY_SIZE];
    uint64_t look_ms, gap_ms;
};
LIST_HEAD(items, item);
LIST_HEAD(run_waits, wait);
TAILQ_HEAD(waits, wait);
LIST_HEAD(calls, call);

/* A job that has succeeded, for the cache. */
struct cached {
    char deployment[CHAIN_NAME_SIZE];
    uint8_t digest[BLOB_DIGEST_SIZE];
    struct wire_id job;
};

struct target {
    char model[CHAIN_NAME_SIZE], deployment[CHAIN_NAME_SIZE], environment[CHAIN_NAME_SIZE];
    char pool[CHAIN_NAME_SIZE];
    uint32_t shard;
    uint64_t run_limit_ms;
    bool chain; /* it is a chain itself */
};

struct run {
    UT_hash_handle hh; /* by id */
    struct coordinator *coordinator;
    uint64_t id, limit_ms, number;
    struct wire_id job;
    char job_text[JOB_ID_TEXT_SIZE], tenant[CHAIN_NAME_SIZE], trace[64];
    json_t *input;
    json_t *given;          /* of a run again: inputs of steps, by their names; NULL: it is none */
    struct plan *plan;      /* NULL: chain_begin() has not answered */
    struct target *targets; /* by step; deployment "": there is none */
    struct known *known;
    struct items items;
    struct run_waits waits;
    uint32_t job_count, evaluation_count; /* that this attempt has asked for; that are out */
    uint32_t url_count;                   /* calls that are out */
    uint32_t round, undone_round;         /* the last one before whose steps were undone; 0: none */
    uint64_t whole_limit_ms;              /* for what undoes */
    uint64_t end_ms;                      /* when its chain's limit is over; 0: it has none */
    bool again;                           /* somebody was here before */
    bool asks_cache;                      /* … but left nothing that has no row yet */
};

/* What waits for chain_begin(): the run may be forgotten by then. */
struct beginning {
    LIST_ENTRY(beginning) link;
    struct coordinator *coordinator;
    uint64_t id;
};

struct coordinator {
    struct loop *loop;
    const struct chain *chain;
    struct coordinator_calls calls;
    void *opaque;
    char *deployment;
    char boot[COORDINATOR_BOOT_SIZE];
    struct pg *pg;
    struct queue_producer *producer;
    struct queue_topic *intake;
    struct cache *cache; /* NULL: none */
    struct cache_listener *listener;
    struct blob_store *blobs; /* NULL: none */
    struct jq_pool *jq;
    struct http_client *http; /* NULL: no step calls a URL */
    struct address_allow http_allow;
    json_t *secrets; /* by name; NULL: none */
    struct calls urls_out;
    struct wire_decoder *decoder, *wake_decoder; /* a wake-up may carry another message */
    struct buf record;                           /* of a Submit, while it is made */
    char *targets_text; /* of the run before, with what was read from it; NULL: none yet */
    struct target *targets;
    struct loop_timer *tick, *sweep, *alarm;
    uint64_t alarm_ms; /* when it rings; 0: it does not */
    struct run *runs;
    struct item *items;
    struct items forgotten;
    LIST_HEAD(, beginning) beginnings;
    struct waits waits; /* steps that wait for a time or a person */
    LIST_HEAD(, asked) asked;
    struct items to_ask;
    struct item *questions[COORDINATOR_ASKED_MAX]; /* that the cache is asked */
    size_t question_count;
    struct cached *cached;
    size_t cached_count;
    bool caching;
    uint64_t decided_ms; /* to look at what was decided */
    bool deciding;
    bool looking, fetching, sweeping, sweep_again;
    struct wire_id *closed; /* runs that succeeded, to be closed in SQL */
    size_t closed_count;
};

/* coordinator.c */
struct run *run_find(struct coordinator *coordinator, uint64_t id);
void run_pump(struct run *run); /* may free it */
/* If all that it does is wait, and for long, its attempt is over. May free it. */
void run_rest(struct run *run);
void run_fail(struct run **run_p, enum error_class class, const char *text);

/* coordinator_item.c */
void item_begin(struct run *run, struct plan_todo *todo); /* takes the todo's text */
void item_send(struct item *item);
/* An answer has come. False: nobody waits for it any more, and the item is gone. */
bool item_unpin(struct item *item);
void item_free(struct item **item_p); /* or forgets it, when an answer is out */
/* A job that may have been submitted before is canceled, and its end told. */
void item_settle(struct run *run, struct plan_todo *todo); /* takes the todo's text */
void item_cancel(struct run *run, const struct plan_todo *todo);
void item_on_wake(struct coordinator *coordinator, const void *bytes, size_t size);
/* The job is final; the output is what the ledger has of it. May free item and run. */
void item_over(struct item *item, enum job_state state, enum error_class class,
               struct wire_text error, struct wire_bytes output, struct wire_text output_type,
               struct wire_text output_blob);
/* It waits for a model that was deleted: its job is canceled, the step fails. */
void item_orphaned(struct item *item);
struct wire_id step_job_id(const struct wire_id *run, const char *step, uint32_t item,
                           uint32_t round, uint32_t shard);
int cancel_job(struct coordinator *coordinator, const struct wire_id *job, const char *tenant,
               struct err *err);

/* coordinator_cache.c */
void cache_want(struct item *item); /* its output is asked for before it is sent */
void cache_forget(struct item *item);
void cache_note(const struct item *item); /* it has succeeded */
void cache_tick(struct coordinator *coordinator);

/* coordinator_call.c */
void url_begin(struct run *run, struct plan_todo *todo); /* takes the todo's text */
void url_cancel(struct run *run, const struct plan_todo *todo);
void urls_forget(const struct run *run);
void urls_tick(struct coordinator *coordinator);
void urls_close(struct coordinator *coordinator); /* behind pg_close() */

/* coordinator_wait.c */
void wait_close(struct coordinator *coordinator); /* forgets what was asked, behind pg_close() */
void wait_begin(struct run *run, struct plan_todo *todo); /* takes the todo's text */
void wait_forget(const struct run *run);
void wait_tick(struct coordinator *coordinator);
void wait_on_alarm(struct coordinator *coordinator);
/* When the first of the run's waits is over; 0: it has none, or one that is being asked about. */
uint64_t waits_due_ms(const struct run *run);

/* coordinator_look.c */
void look_run(struct coordinator *coordinator);   /* at what is due */
void look_sweep(struct coordinator *coordinator); /* at runs that are over */
void look_close(struct coordinator *coordinator); /* tells SQL of runs that ended well */
