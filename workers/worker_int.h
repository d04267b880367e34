/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The worker program behind its pure core: what its files share.
 *
 *   worker_main.c    settings, start, the loop, the end; the agent's lock
 *   worker_queue.c   Kafka: its dispatch partition in, messages to outcome out
 *   worker_act.c     the to-dos of the core: host, blobs, messages
 *   worker_pages.c   /metrics, /healthz, /readyz
 *   worker_trace.c   spans of runs
 *   worker_stream.c  pieces of answers, to Redis
 *   worker_tunnel.c  connections of websockets, to their gateways
 *
 * Every callback of the loop follows one pattern: worker_tick(), one event of the core,
 * worker_act(). Once a turn worker_tick() and worker_act() run in any case.
 *
 * Thread: the loop's.
 */

#include <sys/queue.h>
#include <uthash.h>

#include "base/loop.h"
#include "brokers/blob.h"
#include "brokers/queue.h"
#include "workers/worker_core.h"
#include "workers/worker_host.h"

struct worker_pages;
struct cache;
struct run;
struct stream;
struct tracer;

struct worker_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
#include "workers/worker_settings.def"
#include "base/settings_end.def"
};

/* A message that Kafka must have: kept until its report, produced again after a failure. */
struct parcel {
    LIST_ENTRY(parcel) all;
    STAILQ_ENTRY(parcel) again; /* while it waits to be produced again */
    struct worker *worker;
    enum message_type type;
    uint64_t token;
    struct buf bytes;
};

/* An input of the blob store, by token: being fetched, or here until it is sent to the host. */
struct input {
    UT_hash_handle hh;
    struct worker *worker;
    uint64_t token, size;
    uint8_t digest[BLOB_DIGEST_SIZE];
    bool has_digest, fetching, forgotten;
    int fd; /* a memfd: from the store to the host without a copy of our own */
};

struct worker {
    enum confine_level isolation; /* in force, for hosts of user code */
    struct worker_settings settings;
    struct loop *loop;
    struct worker_core *core;
    struct worker_host *host;
    struct worker_options options;
    char machine[256];
    struct buf secrets; /* JSON; empty: none */

    struct queue_admin *admin;
    struct queue_producer *producer;
    struct queue_consumer *consumer;
    struct queue_reader *reader;
    struct queue_topic *outcome;
    char dispatch[80];
    struct wire_decoder *decoder;
    struct loop_timer *connect_timer, *retry_timer, *tick_timer, *lock_timer;
    struct loop_turn *turn;
    uint64_t armed_us;
    LIST_HEAD(, parcel) parcels;
    STAILQ_HEAD(, parcel) retry;
    uint64_t unreadable_records;

    struct blob_store *blobs;
    struct input *inputs;

    struct tracer *tracer;
    struct run *runs; /* spans that are open, by token */

    struct cache *cache;                /* NULL: pieces of answers go nowhere */
    struct stream *streams;             /* of the runs whose pieces are wanted, by token */
    TAILQ_HEAD(, stream) dirty_streams; /* with pieces of this turn */
    struct buf stream_record;           /* scratch */
    struct stream_counts {
        uint64_t pieces, bytes, lost; /* lost: not written, their readers see a gap */
    } stream_counts;

    struct worker_pages *pages;
    struct frame_stats engine_stats;
    struct {
        char engine[64], task[24], detail[512];
        uint64_t loaded_size, weights_size;
    } loaded;
    int lock_fd;
    uint64_t alone_since_us, standby_position;
    bool exiting, leaving;
    bool standby, standby_reads, told_warm; /* takes no jobs; knows its position; has said so */
    int exit_code;
};

/* ---- worker_main.c ---- */
void worker_tick(struct worker *worker);
void worker_leave(struct worker *worker, int exit_code); /* ends the loop */

/* One JSON line on standard output, for whoever started us. Takes the object (jansson). */
struct json_t;
void worker_say(struct worker *worker, struct json_t *line);

/* ---- worker_queue.c ---- */
int worker_queue_open(struct worker *worker, struct err *err) MUST_CHECK;
void worker_queue_close(struct worker *worker);

/* Once in standby, when the model is loaded and the dispatch partition is read: says so. */
void worker_queue_tell_warm(struct worker *worker);
void worker_queue_serve(struct worker *worker); /* the end of standby */

/* Produces to outcome[shard]; kept and repeated until it is reported when token or type asks. */
void worker_produce(struct worker *worker, enum message_type type, const void *fields,
                    uint64_t token);

/* ---- worker_act.c ---- */
void worker_act(struct worker *worker);
void worker_inputs_free(struct worker *worker);
struct worker_host *worker_host_open(struct worker *worker);

/* ---- worker_secrets.c ---- */
int worker_secrets_open(struct worker *worker, struct err *err) MUST_CHECK;
void worker_secrets_close(struct worker *worker);

/* ---- worker_stream.c ---- */
int worker_stream_open(struct worker *worker, struct err *err) MUST_CHECK;
void worker_stream_close(struct worker *worker);
void worker_stream_begin(struct worker *worker, const struct worker_todo *todo); /* RUN */
void worker_stream_add(struct worker *worker, uint64_t token, struct wire_bytes bytes,
                       struct wire_text type);
void worker_stream_flush(struct worker *worker); /* once a turn */
void worker_stream_end(struct worker *worker, uint64_t token);
void worker_stream_drop_all(struct worker *worker);

/* ---- worker_pages.c ---- */
int worker_pages_open(struct worker *worker, struct err *err) MUST_CHECK;
void worker_pages_close(struct worker *worker);
uint16_t worker_pages_port(const struct worker *worker);
void worker_pages_count_finished(struct worker *worker, const struct message_finished *finished);

/* ---- worker_trace.c ---- */
int worker_trace_open(struct worker *worker, struct err *err) MUST_CHECK;
void worker_trace_close(struct worker *worker);
void worker_trace_flush(struct worker *worker, void (*done)(void *opaque));

/* Begins the span of WORKER_TODO_RUN; what it returns is for the host, valid until the next call
 * that begins or ends one. */
struct wire_text worker_trace_begin(struct worker *worker, const struct worker_todo *todo);
void worker_trace_end(struct worker *worker, uint64_t token, const struct worker_result *result);
void worker_trace_end_all(struct worker *worker, enum error_class class);

/* ---- worker_tunnel.c ---- */
bool worker_tunnel_is_wanted(const struct worker *worker, const struct frame_req *req);
void worker_tunnel_run(struct worker *worker, struct frame_req *req);
