/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The ingest: puts work in that is not one request at a time: bulk jobs, and records of
 * users' Kafka topics (producers/ingest_topics.h).
 *
 *   ingest_main.c     opens, runs, drains           ingest_bulk.c     which bulk jobs are ours
 *   ingest_scan.c     input -> chunks, or errors    ingest_target.c   whom a line goes to
 *   ingest_send.c     chunk -> jobs                 ingest_collect.c  jobs -> output, in order
 *   ingest_sweep.c    files that are to go          ingest_fetch.c    inputs that are at a URL
 *   pure: bulk_line, bulk_seen, bulk_pace (how many lines may be jobs at a time)
 *
 *     claimed -> scan: every line is looked at, once, and chunks are rows
 *             -> for each chunk, several at a time:  send -> watch -> collect -> blobs -> done
 *             -> no chunk is left: files, and the bulk job is over
 *
 * Nothing is kept of a line but its job, whose id follows from the bulk job and the line's number.
 * A chunk's blobs are made from rows of the ledger, so to write them again is to write the same.
 * Killed at any point, the next ingest that claims the bulk job (its lease has lapsed) does again
 * what was not done: Submits of chunks that may have been sent are marked `repeat`, and have the
 * same ids. `epoch` is the fence: SQL takes nothing from an ingest that has lost the bulk job.
 *
 * Failures: Postgres, Kafka or the blob store away: tried again, later; the bulk job is given back
 * when its lease cannot be renewed.
 * Thread: the loop's.   Tests: tests/stack/test_bulk.py
 */

#include <sys/queue.h>

#include "base/assert.h"
#include "base/loop.h"
#include "base/metrics.h"
#include "brokers/address_guard.h"
#include "brokers/blob.h"
#include "brokers/pg.h"
#include "brokers/queue.h"
#include "producers/bulk_line.h"
#include "producers/bulk_pace.h"
#include "producers/bulk_seen.h"
#include "schema/job_id.h"

struct fetch;
struct http_client;
struct http_server;
struct json_t;

#define INGEST_BOOT_SIZE 24
#define INGEST_NAME_SIZE 65
#define INGEST_QUERY_MS 10000
#define INGEST_RETRY_MS 250
#define INGEST_TARGETS_MAX 10000

struct ingest_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
#include "producers/ingest_settings.def"
#include "base/settings_end.def"
};

enum ingest_metric {
#define METRICS_ENUM(name) INGEST_METRIC_##name,
#include "base/metrics_rows.def"
#include "producers/ingest_metrics.def"
#include "base/metrics_end.def"
    INGEST_METRIC_COUNT
};

struct bulk;
struct sweep;
struct topics;
LIST_HEAD(bulks, bulk);

struct ingest {
    struct ingest_settings settings;
    char boot[INGEST_BOOT_SIZE];
    struct loop *loop;
    struct pg *pg;
    struct queue_producer *producer;
    struct queue_topic *intake;
    struct blob_store *blobs;
    struct http_client *http; /* for URLs of users */
    struct address_allow url_allow;
    struct metrics *metrics;
    struct metrics_pages pages;
    struct http_server *server;
    struct bulk_reader *reader;
    struct loop_timer *tick, *drain_step;
    struct sweep *sweep;
    struct topics *topics;
    struct bulks bulks;
    uint32_t bulk_count;
    uint64_t renewed_ms; /* when our leases were last known to hold */
    bool claiming, renewing, draining, released;
    uint64_t drain_by_ms;
    int exit_code;
};

/* Whom the lines of a model go to. */
struct target {
    char model[INGEST_NAME_SIZE], name[INGEST_NAME_SIZE], deployment[INGEST_NAME_SIZE];
    char environment[INGEST_NAME_SIZE], pool[INGEST_NAME_SIZE];
    uint64_t run_limit_ms;
    uint32_t shard;
    bool serves, used; /* the endpoint; by a line */
};

enum chunk_stage {
    CHUNK_SEND,    /* its Submits are to be produced */
    CHUNK_REPORTS, /* Kafka has not told of all of them */
    CHUNK_WATCH,   /* its jobs are not all final */
    CHUNK_COLLECT, /* what became of them is read and written */
};

/* One of the two texts that a chunk becomes. */
struct part {
    struct buf text; /* not yet written */
    struct blob_upload *upload;
    uint64_t size;
    bool stored;
};

enum { PART_OUTPUT, PART_ERROR, PART_COUNT };

struct chunk {
    TAILQ_ENTRY(chunk) link;
    struct bulk *bulk;
    uint32_t number, size;
    uint64_t start, first_line;
    enum chunk_stage stage;
    bool repeat, resend, given_up; /* given_up: its lines are not run any more */
    struct buf bytes;              /* of the input; empty unless it is sent or collected */
    size_t at;                     /* in bytes: the line that is next */
    uint64_t line;                 /* its number */
    uint64_t *only;                /* of a retry: these lines, in order; NULL: all */
    uint32_t only_count, only_at;
    struct json_t *bad;   /* lines that are not run, as bulk_chunk.bad has them; NULL: none */
    size_t bad_at;        /* the next of them */
    struct wire_id *jobs; /* of its requests, in order */
    uint32_t job_count, job_room, unreported;
    uint64_t look_ms, gap_ms, sent_ms;
    bool looking, last_is_final;
    /* collecting */
    struct pg_answer rows;
    uint32_t row, row_count, collected, page;
    uint64_t page_size;
    struct part parts[PART_COUNT];
    uint32_t completed, failed;
    uint64_t *failed_lines;
};
TAILQ_HEAD(chunks, chunk);

struct scan;

struct bulk {
    LIST_ENTRY(bulk) link;
    struct ingest *ingest;
    struct wire_id id;
    int64_t epoch;
    char text[JOB_ID_TEXT_SIZE], tenant[INGEST_NAME_SIZE], key_prefix[INGEST_NAME_SIZE];
    char endpoint[INGEST_NAME_SIZE], route[INGEST_NAME_SIZE + 8];
    char blob[BLOB_KEY_SIZE]; /* "": its input is at a URL yet */
    struct wire_id input_file;
    struct fetch *fetch; /* while that is read; NULL: it is not */
    uint64_t input_size, expires_us;
    int fd;                                     /* of the input; -1: not yet open */
    uint32_t pin_count;                         /* answers that are out */
    bool dead;                                  /* not ours any more: freed with the last answer */
    bool validated, cancelling, expired, again; /* again: somebody else may have sent of it */
    bool native;                                /* of one model, by its predict */
    bool skip_bad;                              /* bad lines fail alone */
    bool loading, all_loaded, ending, renew_asked, unpacking;
    struct target *targets;
    size_t target_count;
    struct target *last_target; /* of those; NULL: none yet */
    struct scan *scan;          /* while it is validated */
    struct chunks chunks;
    uint32_t chunk_count, collecting;
    struct bulk_pace pace;
    int64_t newest;          /* chunk that was loaded; -1: none */
    uint32_t loaded;         /* chunks, since it is ours */
    uint64_t step_ms;        /* when it is due */
    struct loop_timer *step; /* goes on with what waits for nothing but its turn */
};

/* ---- ingest_bulk.c ---- */

void ingest_tick(struct ingest *ingest);    /* each second, and when there is news */
void ingest_release(struct ingest *ingest); /* drain: others may take them at once */
void ingest_bulks_close(struct ingest *ingest);

/* An answer to something that bulk_pin() preceded: false when the bulk job is not ours any more
 * (and perhaps gone). */
void bulk_pin(struct bulk *bulk);
bool bulk_unpin(struct bulk *bulk) MUST_CHECK;
void bulk_drop(struct bulk *bulk); /* it is somebody else's, or over */
/* Sends and frees the batch, pinned; false: not sent, and the bulk job goes on by its step. */
bool bulk_query(struct bulk *bulk, struct pg_batch **batch_p, pg_done_fn *done, void *opaque);
void bulk_go_on(struct bulk *bulk, uint64_t in_ms);
void bulk_open_input(struct bulk *bulk); /* its blob is there */
/* Its input is not what it was when it was validated; line 0: none is to blame. What is written
 * stays, and what is not cannot be told apart any more, and has failed. */
void bulk_lose_input(struct bulk *bulk, const char *code, uint64_t line, const char *text);
void bulk_key(const struct bulk *bulk, uint32_t chunk, int part, char to[BLOB_KEY_SIZE]);

/* ---- ingest_fetch.c: an input that is at a URL ---- */

void bulk_fetch_begin(struct bulk *bulk, const char *url); /* then bulk_open_input(), or refused */
void bulk_fetch_stop(struct bulk *bulk);                   /* it is dead */
void bulk_fetch_free(struct fetch **fetch_p);              /* when nothing answers any more */

/* ---- ingest_sweep.c: files that are to go ---- */

void ingest_sweep_open(struct ingest *ingest);
void ingest_sweep_now(struct ingest *ingest); /* also each 30 s */
void ingest_sweep_close(struct ingest *ingest);

/* ---- ingest_target.c ---- */

void targets_ask(struct pg_batch *batch, const struct bulk *bulk);
void targets_take(struct bulk *bulk, const struct pg_answer *answer, size_t at);
int targets_read(struct bulk *bulk, const char *json, struct err *err) MUST_CHECK;
struct json_t *targets_json(const struct bulk *bulk); /* of those that are used */
/* By id or name; NULL and a text that lists what is served. */
struct target *target_find(struct bulk *bulk, const char *model, struct err *err);

/* ---- ingest_scan.c ---- */

void bulk_scan_begin(struct bulk *bulk);
/* The whole input is no good: the bulk job fails. */
void bulk_scan_refuse(struct bulk *bulk, const char *code, const char *text);
void bulk_scan_step(struct bulk *bulk);
void bulk_scan_end(struct scan **scan_p);

/* ---- ingest_send.c ---- */

int chunk_read(struct chunk *chunk, struct err *err) MUST_CHECK; /* its bytes */
/* The next line that is no blank one; false: no more. */
bool chunk_next(struct chunk *chunk, const char **ret_line, size_t *ret_size);
/* Of the line that chunk_next() gave: what is wrong with it; NULL: nothing is. Borrowed. */
const struct json_t *chunk_bad(struct chunk *chunk);
void chunk_send(struct chunk *chunk);
void chunk_cancel(struct chunk *chunk);

/* ---- ingest_collect.c ---- */

void chunk_watch(struct chunk *chunk, bool first);
void chunk_collect(struct chunk *chunk);
void chunk_free(struct chunk **chunk_p);
