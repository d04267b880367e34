/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Kafka as our programs use it: send and be told, read a partition from an offset, be elected.
 *
 *   queue_producer   sends records; each is reported exactly once
 *   queue_consumer   reads partitions from explicit offsets (queue_reader); no group, no stored
 *                    offsets: the reader's owner knows where to start
 *   queue_election   a member of a consumer group that reads nothing: Kafka's assignment says who
 *                    may try to own a partition (DESIGN 3.2: Kafka elects, Postgres decides)
 *   queue_admin      questions with an answer: make topics, where a partition ends, which cluster
 *
 * Everything runs on the caller's loop; librdkafka's own threads never call us. No callback comes
 * from inside the call that asked for it. Errors are translated once, here: no type of librdkafka
 * leaves brokers/queue*.c.
 *
 * Adapter: brokers/queue_*.c on librdkafka. Tests and `--kafka=embedded` run the same code against
 * a cluster inside the process (brokers/queue_embedded.h).
 * Thread: the loop's.   Tests: tests/unit/test_queue.c, tests/stack/
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct loop;
struct queue_admin;
struct queue_consumer;
struct queue_election;
struct queue_producer;
struct queue_reader;
struct queue_topic;

struct queue_options {
    const char *bootstrap;  /* "host:port,host:port", also with kafka:// in front */
    const char *client_id;  /* "gateway-<boot>": what Kafka's own logs call us */
    const char *properties; /* "name=value;name=value" of librdkafka, for TLS and SASL; or NULL */
    bool steady; /* consumer: readers come and go seldom. A fetch then waits half a second at Kafka,
                    and so long a reader that is added to others may wait for its first record */
    bool explains; /* admin: failed answers say why there is no connection. For one that is asked
                      again and again: until then reasons are kept */
};

/* ---- producer ---- */

struct queue_producer_options {
    struct queue_options queue;
    uint32_t record_count_max; /* unreported; above: ERR_FULL [50,000] */
    size_t record_size_max;    /* unreported bytes; above: ERR_FULL [64 MiB] */
    uint32_t group_count;      /* waiting records that the gap does not hold back any more [256] */
    uint32_t group_gap_us;     /* a busy partition sends at most this often [3,000] */
};

/* acks=all, idempotent, lz4. Kafka may be away: records wait. A fatal producer error (fenced, out
 * of order) makes a new producer inside; what was sent and unreported is settled as ERR_UNKNOWN. */
int queue_producer_open(struct loop *loop, const struct queue_producer_options *options,
                        struct queue_producer **ret_producer, struct err *err) MUST_CHECK;

/* Drops what is unreported, without calls. Blocks some milliseconds. To lose nothing, first wait
 * for queue_producer_unreported() to become 0. */
void queue_producer_close(struct queue_producer **producer_p);

/* The handle of a topic by name; belongs to the producer, the same name gives the same one. */
struct queue_topic *queue_producer_topic(struct queue_producer *producer, const char *name);

struct queue_report {
    int code;       /* ERR_OK: in the log. ERR_UNKNOWN: perhaps. Anything else: it is not. */
    int64_t offset; /* -1 unless ERR_OK */
    uint64_t
        append_us;   /* Kafka's append time where the topic has it, else the send time; 0: none */
    const char *why; /* "" for ERR_OK; borrowed for the call */
};

/* Called once for each record that queue_produce() took, in order per partition as long as
 * nothing fails. */
typedef void queue_report_fn(void *opaque, uint64_t tag, const struct queue_report *report);

struct queue_header {
    const char *name;  /* terminated */
    const void *value; /* NULL: none, which is not an empty one */
    size_t size;
};

#define QUEUE_PARTITION_BY_KEY 4095u /* by the hash of the key that Java's client uses, too */

struct queue_message {
    struct queue_topic *topic;
    uint32_t partition;
    const void *key; /* NULL: none; at most QUEUE_KEY_MAX bytes */
    size_t key_size;
    const void *bytes;                  /* copied */
    size_t size;                        /* at most QUEUE_RECORD_MAX */
    const char *trace;                  /* W3C traceparent, sent as a header; NULL or "": none */
    const struct queue_header *headers; /* besides; copied */
    size_t header_count;                /* at most QUEUE_HEADERS_MAX */
    queue_report_fn *done;              /* NULL: nobody wants to know */
    void *opaque;
    uint64_t tag; /* handed to done as it is */
};

#define QUEUE_KEY_MAX 65536
#define QUEUE_HEADERS_MAX 128
#define QUEUE_RECORD_MAX (1000u * 1000)

/* Records of one partition go out together: at once when it was idle, else when the previous
 * request has returned and the gap is over, or group_count wait. One request a partition is under
 * way. ERR_FULL past the limits of the options, ERR_TOO_BIG past QUEUE_RECORD_MAX; the record was
 * then not taken and done is never called. */
int queue_produce(struct queue_producer *producer, const struct queue_message *message,
                  struct err *err) MUST_CHECK;

struct queue_producer_counts {
    uint32_t unreported;    /* taken and not yet reported */
    size_t unreported_size; /* their bytes */
    uint64_t taken, reported_ok, reported_failed;
    uint64_t groups;   /* hand-overs to librdkafka: taken / groups is the batching */
    uint64_t renewals; /* fatal errors survived */
    bool connected;    /* a broker answers, as far as librdkafka knows */
};
struct queue_producer_counts queue_producer_counts(const struct queue_producer *producer);
uint32_t queue_producer_unreported(const struct queue_producer *producer);

/* ---- consumer ---- */

/* One client for any number of partitions. */
int queue_consumer_open(struct loop *loop, const struct queue_options *options,
                        struct queue_consumer **ret_consumer, struct err *err) MUST_CHECK;
void queue_consumer_close(struct queue_consumer **consumer_p); /* its readers are closed first */

struct queue_record {
    int64_t offset;
    uint64_t append_us; /* the record's timestamp: append time where the topic has it */
    const void *key;    /* NULL when there is none */
    size_t key_size;
    const void *bytes; /* borrowed for the call */
    size_t size;
    const void *origin; /* for queue_record_headers() */
};

/* The headers of a record, in order, at most `room` of them; returns how many were written.
 * Borrowed as the record is. */
size_t queue_record_headers(const struct queue_record *record, struct queue_header *headers,
                            size_t room);

struct queue_reader_calls {
    /* 1 to QUEUE_BATCH_MAX records in order. Offsets may have gaps, never go back. */
    void (*on_records)(void *opaque, const struct queue_record *records, size_t record_count);

    /* Everything before `offset` was handed over, and the log ended there a moment ago. Comes at
     * least once after open, then each time that the end is reached again; not again and again
     * while nothing is written (ask queue_admin_ends() for that). */
    void (*on_end)(void *opaque, int64_t offset);

    /* RETRY class: reading goes on by itself. Else the reader is dead: close it. ERR_RANGE: the
     * start offset is not in the log (auto.offset.reset is `error`: nothing is skipped in silence).
     * A topic or partition that does not exist is waited for, in silence: queue_admin_ensure() it
     * first. */
    void (*on_error)(void *opaque, const struct err *err);
};

#define QUEUE_OFFSET_BEGIN (-2)
#define QUEUE_OFFSET_END (-1)
#define QUEUE_BATCH_MAX 1000

/* topic is copied. */
int queue_reader_open(struct queue_consumer *consumer, const char *topic, uint32_t partition,
                      int64_t start_offset, const struct queue_reader_calls *calls, void *opaque,
                      struct queue_reader **ret_reader, struct err *err) MUST_CHECK;

/* No call comes after it, not even for records that are already here. Allowed in its callbacks. */
void queue_reader_close(struct queue_reader **reader_p);

/* Offset of the next record that on_records would get; -1 while a logical start (BEGIN, END) is
 * not resolved yet. */
int64_t queue_reader_position(const struct queue_reader *reader);

/* Stops and goes on handing out records; up to 16 MiB are fetched ahead meanwhile. */
void queue_reader_pause(struct queue_reader *reader);
void queue_reader_resume(struct queue_reader *reader);

/* ---- election ---- */

struct queue_election_options {
    struct queue_options queue;
    const char *topic;
    const char *group;
    const char *instance;        /* static membership: the same name takes its place again at once;
                                    NULL: none */
    uint32_t session_timeout_ms; /* a dead member's partitions are given away after it [6,000] */
};

struct queue_election_calls {
    /* All that is ours from now on; comes after on_revoked or on_lost took away what was. */
    void (*on_assigned)(void *opaque, const uint32_t *partitions, size_t partition_count);

    /* Everything must be let go: finish, then call queue_election_release(). Others wait for it. */
    void (*on_revoked)(void *opaque);

    /* Somebody else may own it all already: drop at once. Nothing is to be released. */
    void (*on_lost)(void *opaque);

    /* RETRY class: it goes on by itself. ERR_STALE: another process has our instance name; any
     * FATAL class: the election is over for this process. */
    void (*on_error)(void *opaque, const struct err *err);
};

int queue_election_open(struct loop *loop, const struct queue_election_options *options,
                        const struct queue_election_calls *calls, void *opaque,
                        struct queue_election **ret_election, struct err *err) MUST_CHECK;

void queue_election_release(struct queue_election *election);

/* Leaves the group, so that others get our partitions within a heartbeat: on_revoked comes first
 * where something is owned; on_left is called when Kafka has answered, or after within_ms, whatever
 * was answered by then. No on_assigned comes any more. */
void queue_election_leave(struct queue_election *election, uint32_t within_ms,
                          void (*on_left)(void *opaque));

/* Blocks some milliseconds, and half a second when Kafka is away. Without queue_election_leave() a
 * static member keeps its place until the session times out: that is what a quick restart wants. */
void queue_election_close(struct queue_election **election_p);

/* Stores an offset in the group, about once a second: of use for lag tools, and as a starting point
 * to those who can bear repeats. offset is that of the next record to read. */
void queue_election_store(struct queue_election *election, uint32_t partition, int64_t offset);

/* What the group has stored: -1 for nothing. */
typedef void queue_stored_fn(void *opaque, uint32_t partition, int64_t offset,
                             const struct err *err);
void queue_election_ask_stored(struct queue_election *election, uint32_t partition,
                               queue_stored_fn *done, void *opaque);

/* ---- admin ---- */

int queue_admin_open(struct loop *loop, const struct queue_options *options,
                     struct queue_admin **ret_admin, struct err *err) MUST_CHECK;
void queue_admin_close(struct queue_admin **admin_p); /* answers that are due are dropped */

/* err is NULL when it went well. */
typedef void queue_done_fn(void *opaque, const struct err *err);

struct queue_topic_spec {
    const char *name;
    uint32_t partition_count;
    uint64_t retention_ms;
    bool append_time;       /* LogAppendTime; checked when the topic exists */
    uint32_t replica_count; /* 0: as Kafka's own default says */
};

/* Makes the topics that do not exist. Existing ones: fewer partitions than asked for are added
 * (never fewer made), another timestamp type is ERR_DEPENDENCY, by name. Specs are copied. */
void queue_admin_ensure(struct queue_admin *admin, const struct queue_topic_spec *specs,
                        size_t spec_count, uint32_t timeout_ms, queue_done_fn *done, void *opaque);

/* Where the partition begins and ends now; end is the offset of the next record. */
typedef void queue_ends_fn(void *opaque, int64_t begin, int64_t end, const struct err *err);
void queue_admin_ends(struct queue_admin *admin, const char *topic, uint32_t partition,
                      uint32_t timeout_ms, queue_ends_fn *done, void *opaque);

/* The cluster's id, to be compared with what the ledger was written from; and how many partitions
 * the topic has (0: there is none). */
typedef void queue_about_fn(void *opaque, const char *cluster_id, uint32_t partition_count,
                            const struct err *err);
void queue_admin_about(struct queue_admin *admin, const char *topic, uint32_t timeout_ms,
                       queue_about_fn *done, void *opaque);
