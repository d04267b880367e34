/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The owner of one shard: everything that is decided about its jobs.
 *
 * Pure: an event goes in (a record, a flush result, a tick), to-dos come out of
 * owner_next_todo(). No I/O, no clock, no allocation that is not bounded by the options. The
 * broker program (brokers/broker_*.c) carries the to-dos out; tests/sim carries them out in a
 * simulated world.
 *
 *   takeover ─▶ OUTCOME: read outcome[s] up to its end as of now; adopt tokens
 *            ─▶ LOOKUP:  rows of adopted tokens whose job is not in memory
 *            ─▶ LIVE:    dispatch. Records below intake_end, and `repeat` ones, are inserted
 *                        first and dispatched only if the insert was applied
 *
 * Rules and the interleavings behind them: DESIGN 3.2 to 3.4, PROTOCOL 1. Guards that the
 * simulation removes one by one are marked GUARD(name) in the code (owner_guard.h).
 *
 * What it expects of a worker: a Hello makes it known, its heartbeats grant credit (a Hello alone
 * grants nothing). `granted` and `received` count Attempts of this shard since the boot; `position`
 * is the next dispatch offset that it has not read yet. A token is held from the read of its
 * Attempt until the report of its Finished, and its Finished comes before, in the same partition,
 * any heartbeat that does not hold it any more.
 *
 * Thread: the broker's; no locks.   Tests: tests/unit/test_owner.c, tests/sim/
 */

#include "brokers/ledger.h"

struct owner;

struct owner_options {
    uint64_t row_delay_us;      /* an unfinished change waits this long for company; 100 ms */
    uint64_t row_delay_bulk_us; /* … one of a bulk job's line; below run_ahead_us; 400 ms */
    uint64_t run_ahead_us;      /* no dispatch while the oldest unflushed change is older; 1 s */
    uint64_t run_ahead_bytes;   /* … or unflushed changes hold more; 64 MiB */
    uint64_t lease_us;          /* 4 s, on the monotonic clock */
    uint64_t caught_up_us;    /* leases age only if outcome was at its end this recently; 500 ms */
    uint64_t publish_idle_us; /* a flush row that only says "published" after this; 1 s */
    uint32_t window_jobs;     /* waiting jobs in memory; the rest is in the ledger; 20,000 */
    uint64_t window_bytes;    /* 64 MiB */
    uint32_t load_jobs;       /* rows per LOAD; 1,000 */
    uint32_t commands;        /* rows per COMMANDS, and commands in memory; 1,000 */
    uint64_t command_poll_us; /* asked for without a notice this often; 5 s */
    uint32_t workers_max;     /* 1,024 */
    uint64_t run_grace_us;    /* a run that its worker did not end is ended this late; 30 s */
    uint32_t ageing_percent;  /* share of slots for overdue lower ranks; 5; 0: strict ranks */
    uint64_t ageing_after_us; /* waiting this long is overdue; 30 s */
    uint32_t flush_jobs;      /* rows of one flush; FLUSH_JOBS_MAX */
    uint32_t flush_busy_jobs; /* behind a flush of so many rows the next one keeps … */
    uint64_t flush_gap_us;    /* … a gap from start to start, unless … */
    uint32_t flush_full_jobs; /* … so many wait to be written; 16, 8 ms, 256 */
    uint64_t delayed_jobs;    /* of a tenant, between two attempts; 100,000 */
    uint64_t delayed_bytes;   /* … and their memory; 256 MiB */
    uint64_t seed;            /* jitter of retries */
    bool await_limits;        /* no dispatch before the first owner_on_limits() */
    unsigned removed_guards;  /* tests only: bits of owner_guard.h; 0 in production */
};

extern const struct owner_options owner_options_default;

/* Where intake and outcome end as the new owner sees them; offsets of the next record. */
struct owner_ends {
    int64_t intake_end, outcome_end;
};

/* Takes the rows of the takeover (their specs), borrows nothing. */
struct owner *owner_new(const struct owner_options *options, struct ledger_takeover *takeover,
                        struct owner_ends ends, uint64_t now_mono_us, uint64_t now_wall_us);
void owner_free(struct owner **owner_p);

/* ---- events; each may add to-dos ---- */

/* A record of intake[s] in order of offset. An undecodable one asks for DEAD; a newer major
 * version for STOP. The bytes are copied. */
void owner_on_intake(struct owner *owner, int64_t offset, uint64_t append_us, const void *bytes,
                     size_t size);

/* A record of outcome[s] in order of offset. The bytes are copied where they are kept. */
void owner_on_outcome(struct owner *owner, int64_t offset, const void *bytes, size_t size);

/* outcome[s] was read to its end at this time (an empty fetch or EOF). */
void owner_on_outcome_end(struct owner *owner, uint64_t now_mono_us);

/* intake[s] was read to its end at this time of Kafka's clock: everything older is known, so that
 * a status question about an id that nobody accepted can be answered 404. */
void owner_on_intake_end(struct owner *owner, uint64_t now_wall_us);

void owner_on_flush(struct owner *owner, const struct flush_result *result);

/* The report of an Attempt: its offset in the dispatch partition, or -1 when it failed (the token
 * is then ended as if handed back, since Kafka may have it all the same). */
void owner_on_attempt_reported(struct owner *owner, uint64_t token, int64_t offset);

/* All records of that flush are reported by Kafka. */
void owner_on_published(struct owner *owner, uint64_t flush_number);

/* Rows of a LOAD or LOOKUP (the latter: final ones too); takes the specs. complete: the lane had no
 * more rows. Answers of FLUSH, LOAD, LOOKUP and DUE come in the order in which they were asked for.
 */
void owner_on_rows(struct owner *owner, const struct ledger_lane *lane, struct ledger_row *rows,
                   size_t row_count, bool complete);
void owner_on_lookup(struct owner *owner, struct ledger_row *rows, size_t row_count);

/* Limits of tenants and API keys: the whole set, each time it has changed. Who is not in it has
 * none. Names are copied. */
enum owner_party { OWNER_PARTY_TENANT = 1, OWNER_PARTY_KEY };

struct owner_limit {
    enum owner_party kind;
    struct wire_text name; /* the tenant's id, the key's prefix */
    uint64_t running_max;  /* jobs that may have a token at a time; UINT64_MAX: no limit */
    uint32_t weight;       /* of a tenant: its share among those that wait; 0: SCHED_WEIGHT_ONE */
};
void owner_on_limits(struct owner *owner, const struct owner_limit *limits, size_t limit_count);

/* Rows of a DUE, without their inputs; takes the specs. complete: nothing more is due by then. */
void owner_on_due(struct owner *owner, const struct ledger_due *due, struct ledger_row *rows,
                  size_t row_count, bool complete);

/* The kill switches that are on, all of them. Jobs that they match are not dispatched; what runs
 * goes on. Jobs that waited for a switch that is off now wait for a worker again. */
void owner_set_switches(struct owner *owner, const struct ledger_switch *switches,
                        size_t switch_count);

/* Commands may have come. */
void owner_on_command_notice(struct owner *owner);

/* The answer to COMMANDS, by id. complete: there were no more. */
void owner_on_commands(struct owner *owner, const struct ledger_command *commands,
                       size_t command_count, bool complete);

/* The report of a Place: Kafka has it, or may not have it and it is asked for again later. */
void owner_on_place_reported(struct owner *owner, uint64_t command, bool ok);

/* Time passes: at least every 10 ms, and before any other event with the times of that event.
 * Wall time follows Kafka's append time; monotonic time drives leases. */
void owner_tick(struct owner *owner, uint64_t now_mono_us, uint64_t now_wall_us);

/* SIGTERM or revoke: no new dispatch; one last flush of what is staged is asked for. */
void owner_drain(struct owner *owner);
bool owner_drained(const struct owner *owner); /* nothing staged, nothing unpublished */

/* ---- to-dos ---- */

enum owner_todo_type {
    OWNER_TODO_ATTEMPT,      /* produce to dispatch.<pool>, partition; report with the token */
    OWNER_TODO_REVOKE,       /* produce behind it, same partition; no report */
    OWNER_TODO_FLUSH,        /* give to the store; one at a time; answer owner_on_flush */
    OWNER_TODO_PUBLISH,      /* final keys, wake-ups, `completed`; answer owner_on_published */
    OWNER_TODO_VERDICT,      /* wake a gateway about its cancel */
    OWNER_TODO_LOAD,         /* answer owner_on_rows */
    OWNER_TODO_LOOKUP,       /* answer owner_on_lookup */
    OWNER_TODO_DUE,          /* answer owner_on_due */
    OWNER_TODO_COMMANDS,     /* read them behind a cursor; answer owner_on_commands */
    OWNER_TODO_PLACE,        /* produce to intake[s]; report with the command's id */
    OWNER_TODO_INTAKE_PAUSE, /* the ledger cannot write: the only reason */
    OWNER_TODO_INTAKE_RESUME,
    OWNER_TODO_DEAD, /* produce an undecodable record to intake.dead, then go on */
    OWNER_TODO_STOP, /* this owner is over: stale epoch or a record it must not skip */
};

/* Pointers stay valid until the next call of owner_next_todo(); those of FLUSH, PUBLISH and LOOKUP
 * until the answering event. A DEAD record counts as reported when the next to-do is asked for.
 *
 * Revokes and verdicts come only after the flush that ended the token, or decided the cancel, is
 * committed (PROTOCOL 5). */
struct owner_todo {
    enum owner_todo_type type;
    union {
        struct {
            struct message_attempt message;
            struct wire_text pool;
            uint32_t partition;
            struct wire_text environment;
            uint32_t round;
            uint64_t waited_from_us; /* wall clock: accepted, or free for its next try */
        } attempt;
        struct {
            struct message_revoke message;
            struct wire_text pool;
            uint32_t partition;
        } revoke;
        const struct flush *flush;
        struct {
            uint64_t flush_number; /* 0: what a takeover found unpublished */
            const struct ledger_final *finals;
            size_t final_count;
        } publish;
        struct {
            struct wire_text gateway;
            struct message_wake message;
        } verdict;
        struct {
            struct ledger_lane lane;
            uint32_t limit;
        } load;
        struct {
            const struct wire_id *ids;
            size_t id_count;
        } lookup;
        struct {
            struct ledger_due cursor;
            uint32_t limit;
        } due;
        struct {
            uint64_t from; /* ids of at least this */
            uint32_t limit;
        } commands;
        struct message_place place;
        struct {
            int64_t offset;
            const void *bytes;
            size_t size;
            const char *why;
        } dead;
        struct {
            int code; /* ERR_STALE or ERR_UNSUPPORTED */
            char why[200];
        } stop;
    };
};

/* False when nothing is to be done now. */
bool owner_next_todo(struct owner *owner, struct owner_todo *ret_todo);

/* Monotonic time of the next thing to do without an event; UINT64_MAX: none. */
uint64_t owner_next_due_us(const struct owner *owner);

/* ---- inspection, for metrics and tests ---- */

struct owner_stats {
    uint64_t accepted, dispatched, finished, retried, expired, canceled, lost;
    uint64_t fenced; /* Finished of tokens that were over */
    uint64_t commands, replayed;
    uint64_t handed_back, published, dead_records, duplicate_records, flushes;
    uint64_t waiting_in_memory, waiting_bytes, running, unflushed, unpublished, delayed, parked;
    uint64_t barred; /* held up by what their tenant has delayed */
    uint32_t workers;
    bool live, intake_paused;
};
struct owner_stats owner_stats(const struct owner *owner);

/* Jobs of a tenant or key that have a token. */
uint64_t owner_running(const struct owner *owner, enum owner_party kind, struct wire_text name);

/* Calls back for each pool that has finished a job: what a job is expected to take a slot for, and
 * how many slots its workers have now. */
void owner_each_pace(const struct owner *owner,
                     void (*visit)(void *opaque, struct wire_text pool, uint64_t service_us,
                                   uint64_t slots),
                     void *opaque);

/* Calls back for each pool and rank with jobs in memory; for gauges. */
void owner_each_depth(const struct owner *owner,
                      void (*visit)(void *opaque, struct wire_text pool, enum job_rank rank,
                                    uint64_t waiting, uint64_t running),
                      void *opaque);
