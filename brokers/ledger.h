/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the owner of a shard and the store say to each other: job rows, flushes, what a takeover
 * finds. Data only; the owner (brokers/owner.h) decides, the store (brokers/store.h) writes.
 *
 * A flush is one ledger transaction. Everything that it borrows stays alive and unchanged until
 * its result is handed back.
 *
 * Times ending in _us that are points in time are microseconds since 1970 as Kafka's append time
 * counts them; times on the monotonic clock say so.
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/wire.h"
#include "schema/job.h"
#include "schema/message.h"

#define FLUSH_JOBS_MAX 1000
#define FLUSH_BYTES_MAX (8u << 20)

/* token = epoch << 32 | n: the fence of one attempt (docs: DESIGN words, PROTOCOL 2). */
#define TOKEN_MAKE(epoch, n) ((uint64_t)(epoch) << 32 | (uint32_t)(n))
#define TOKEN_EPOCH(token) ((uint32_t)((token) >> 32))

/* What never changes about a job: its Submit and what the append time makes of it. One block of
 * memory; texts and bytes point into it. Shared by window, staging and flush. */
struct job_spec {
    uint32_t ref_count;
    uint64_t seq; /* offset in intake of its Submit, or its newest Place: order in the shard */
    uint64_t accepted_us;       /* Kafka's append time */
    uint64_t queued_us;         /* of the record that began its round; deadlines count from here */
    uint64_t start_deadline_us; /* not started by then: EXPIRED */
    uint64_t total_deadline_us; /* UINT64_MAX: none */
    enum job_rank rank;
    uint32_t slot_count; /* at least 1 */
    uint32_t round;
    size_t record_size; /* bytes of the encoded Submit behind the struct */
    struct message_submit submit;
};

/* Copies the encoded Submit and decodes the copy. ERR_MALFORMED and friends: see message_decode. */
int job_spec_new(struct wire_decoder *decoder, const void *record, size_t record_size, uint64_t seq,
                 uint64_t append_us, struct job_spec **ret_spec, struct err *err) MUST_CHECK;
/* The same job in another place: its seq and the time that its round began at. */
struct job_spec *job_spec_placed(struct wire_decoder *decoder, const struct job_spec *from,
                                 uint64_t seq, uint64_t queued_us);
struct job_spec *job_spec_ref(struct job_spec *spec);
void job_spec_unref(struct job_spec **spec_p);
size_t job_spec_size(const struct job_spec *spec); /* bytes of memory, for the caps */

/* A job as its row has it, loaded at takeover or by a cursor. */
struct ledger_row {
    struct job_spec *spec; /* a reference that the receiver takes over */
    enum job_state state;  /* not final, but for the answer to a lookup */
    uint64_t token;        /* of the attempt that runs as far as the row knows; 0: none */
    uint64_t fence;        /* highest token that has ended */
    uint32_t attempt_count;
    uint32_t user_failures, oom_failures, lost_failures;
    uint64_t due_us; /* retry not before; 0: at once */
};

/* How an attempt ended, or that it was given up. One row in `attempt`. */
struct flush_attempt {
    struct wire_id job;
    uint32_t round, number;
    uint64_t token, boot;
    struct wire_text worker, device, error_message;
    uint64_t dispatched_us, started_us, ended_us;
    enum error_class error_class; /* NONE: it succeeded */
    uint32_t batch_count;
};

enum flush_action {
    FLUSH_INSERT, /* first row of this job, perhaps already final */
    FLUSH_UPDATE,
    FLUSH_REPLAY, /* the row is dead (FAILED, EXPIRED) and of the round before */
};

/* One changed job. Final changes carry the result. */
struct flush_job {
    const struct job_spec *spec;
    enum flush_action action;
    bool placed; /* UPDATE: rank and seq are others than the row's */
    enum job_state state;
    uint64_t token, fence;
    uint64_t final_token; /* final by an attempt: its token, checked as fence < token; 0: else */
    uint32_t attempt_count;
    uint32_t user_failures, oom_failures, lost_failures;
    uint64_t due_us;
    uint64_t state_us;            /* when the state was entered */
    uint64_t started_us;          /* of the newest attempt; 0: none */
    struct wire_text worker;      /* of the newest attempt */
    enum error_class error_class; /* final and not SUCCEEDED: why; else of the last failure */
    struct wire_text error_message;
    struct wire_bytes output;     /* SUCCEEDED: the result; FAILED: the model's own answer; or… */
    struct wire_text output_blob; /* …the key of its blob */
    uint64_t output_size;
    struct wire_text output_type;
    uint64_t http_status; /* the model's own; 0: none */
};

/* What somebody asked for in SQL: a row of `command`. */
enum command_kind {
    COMMAND_CANCEL,
    COMMAND_REPLAY,
    COMMAND_PRIORITY,
    COMMAND_WAKE, /* the next attempt need not wait any longer */
};

struct ledger_command {
    uint64_t id;
    struct wire_id job;
    enum command_kind kind;
    uint32_t round;    /* REPLAY: the one that ended badly */
    uint32_t priority; /* PRIORITY */
};

/* A kill switch that is on: jobs of the tenant that it matches wait. */
enum switch_kind { SWITCH_TENANT, SWITCH_MODEL, SWITCH_TAG };

struct ledger_switch {
    enum switch_kind kind;
    char tenant[65], value[65]; /* id of the model, or the tag */
};

/* What came of a command. */
struct flush_command {
    uint64_t id;
    struct wire_id job;
    uint32_t round; /* applied: only if the row is of that round by now; 0: in any case */
    bool applied;
    const char *reason; /* static storage; why not */
};

struct flush {
    uint32_t shard, epoch;
    uint64_t number;      /* 1, 2, … within the epoch */
    int64_t intake_floor; /* lowest offset whose effect this flush leaves unwritten */
    int64_t outcome_floor;
    uint64_t command_floor;   /* lowest id of a command that this flush leaves unacknowledged */
    uint64_t floor_us;        /* append time that intake was read and written up to */
    uint32_t published_epoch; /* flushes up to this one have all records reported */
    uint64_t published_number;
    const struct flush_job *jobs;
    size_t job_count;
    const struct flush_attempt *attempts;
    size_t attempt_count;
    const struct flush_command *commands;
    size_t command_count;
};

enum flush_verdict {
    FLUSH_COMMITTED,
    FLUSH_STALE,   /* the epoch is not ours any more: stop at once */
    FLUSH_REFUSED, /* a row cannot be stored (SQLSTATE 22/23); see refused */
    FLUSH_RETRY,   /* certainly not committed; the same flush may be sent again */
};

struct flush_result {
    enum flush_verdict verdict;
    uint64_t number;
    const bool *applied;     /* COMMITTED: one a job, true when its row was inserted or updated */
    size_t refused_index;    /* REFUSED: the job that no half without it was refused for */
    const char *refused_why; /* borrowed */
};

/* A waiting line of the ledger: jobs of one pool, rank and tenant that are not in memory. */
struct ledger_lane {
    char pool[65], tenant[65];
    enum job_rank rank;
    int64_t after_seq; /* the cursor: rows up to here were loaded; -1: none */
};

/* Waiting rows that never had an attempt, by the earlier of their deadlines and then by seq: those
 * behind the cursor and due by upto_us. */
struct ledger_due {
    uint64_t after_us; /* the cursor: deadline and seq of the row that was read last */
    int64_t after_seq;
    uint64_t upto_us;
};

/* Made from a committed row, for publishing. Texts and bytes are borrowed. */
struct ledger_final {
    struct message_completed completed;
    struct wire_text gateway; /* boot to wake; may be empty */
    bool sync;                /* a caller waits */
    bool bulk;                /* a line of a bulk job: nobody asks Redis for it */
};

/* What the newest owner finds. Arrays belong to the store until the next call. */
struct ledger_takeover {
    uint32_t shard, epoch;
    int64_t intake_floor, outcome_floor; /* -1: no flush yet, start at the beginning */
    uint64_t command_floor;
    uint32_t published_epoch;
    uint64_t published_number;
    struct ledger_row *rows; /* IN_PROGRESS, and QUEUED with attempts behind them */
    size_t row_count;
    struct ledger_lane *lanes; /* with QUEUED rows that never had an attempt */
    size_t lane_count;
    struct ledger_final *unpublished;
    size_t unpublished_count;
};
