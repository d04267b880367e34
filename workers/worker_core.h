/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a worker decides: which Attempts it runs, when they end, and what it tells its owner.
 *
 *   Attempt ─▶ FETCHING ─▶ WAITING ─▶ HOST ─▶ NONE       where it is: all but NONE cost slots
 *              (by blob)   (for host) (runs)
 *   OPEN ─▶ FINISHED ─▶ OVER                              what was told: all but OVER are held
 *           (produced)  (reported, or revoked)
 *
 * An attempt is forgotten when it is both NONE and OVER. Rules (DESIGN 3.3, PROTOCOL 9, 10, 22,
 * 24, 26):
 * - Only Attempts of this boot, this shard, and no lower epoch than the highest seen count.
 * - Credit is cumulative: granted = received + free slots, and it never falls. Nothing is granted
 *   while the host is not ready or the worker drains. What comes above it is handed back. Each
 *   Finished carries it, so that a slot is not empty for a heartbeat longer.
 * - More is granted than there are slots where jobs are short: so much as the slots get done in
 *   5 ms, and no more than again the slots. It waits here, so that none of them is empty meanwhile.
 *   What has waited 100 ms for a slot is handed back: what runs takes longer than was thought.
 * - Of an engine that batches no more slots are free than it gets done in hold_us (worker_pace.h),
 * and none come ahead.
 * - Nothing starts before all that was fetched is read, because a Revoke may stand behind.
 * - Run limit and total deadline end an attempt here: Finished at once, CANCEL to the host, and
 *   after a grace the host is killed. Its other jobs are handed back then: they did nothing; also
 *   those whose own limit passed meanwhile, since one job may have stopped the whole host.
 * - The host's own death is LOST_WORKER for every job in it: one of them may be poison. A device
 *   fault is DEVICE_FAULT for them, and the worker leaves. Runs of a chain (resumes) are
 *   LOST_COORDINATOR instead, and handed back as soon as the worker drains.
 * - An attempt that is to run alone (after oom, or lost twice) has the whole host: it starts when
 *   nothing is in it, and nothing starts beside it. So poison ends by itself, and what it had
 *   taken along does not. Nothing is granted meanwhile; what comes waits host_wait at most.
 * - Started is told only of attempts that run longer than started_delay: a shorter one costs its
 *   owner one record, not two; its start is in its Finished.
 *
 * Pure: events in, to-dos out of worker_core_next_todo(), which is called until it is empty after
 * each event. No I/O, no clock. Bounded by the slots and by what an owner may send.
 *
 * Thread: its owner's; no locks.   Tests: tests/unit/test_worker_core.c
 */

#include "schema/job.h"
#include "schema/message.h"

struct worker_core;

#define WORKER_SLOTS_MAX 2048
#define WORKER_STANDBY_NAME "headrace-warm" /* of a process that waits, in /proc/PID/comm */

/* Attempts held at once, those that are finished and unreported too; no credit above it. */
#define WORKER_HELD_MAX 4096 /* as many as a heartbeat can list */

struct worker_options { /* texts are borrowed for the life of the core */
    const char *worker, *pool, *machine, *device;
    uint64_t boot, pid;
    uint32_t shard, partition, slot_count;
    uint64_t heartbeat_us;     /* at least this often; 1 s */
    uint64_t credit_delay_us;  /* news of credit wait this long for company; 2 ms */
    uint64_t credit_lazy_us;   /* … and this long while the owner has half of it left; 20 ms */
    uint64_t ahead_us;         /* of work may wait here: until what comes next is here; 5 ms */
    uint64_t hold_us;          /* work that is held ahead of an engine that batches; 0: all slots */
    uint64_t started_delay_us; /* 10 ms */
    uint64_t cancel_grace_us;  /* from CANCEL to the death of a host that does not obey; 2 s */
    uint64_t host_wait_us;     /* an attempt waits this long for a host that is not ready; 5 s */
    uint64_t drain_us;         /* 30 s */
    uint64_t load_us;          /* a host that loads says something within so long; 1 h */
    uint32_t load_count_max;   /* failed loads in a row before the worker gives up; 3 */
    bool resumes; /* runs of a chain: another worker goes on with them, so none is waited for */
};

extern const struct worker_options worker_options_default;

struct worker_core *worker_core_new(const struct worker_options *options, uint64_t now_us);
void worker_core_free(struct worker_core **core_p);

/* Before the first worker_core_on_read(): which dispatch partition it is, once that is known. */
void worker_core_set_partition(struct worker_core *core, uint32_t partition);

/* ---- events. now_us of worker_core_tick() holds until the next one. ---- */

/* Time passes; before any other event of a turn. wall_us is for messages and deadlines. */
void worker_core_tick(struct worker_core *core, uint64_t now_us, uint64_t wall_us);

/* Records of the dispatch partition in order, then worker_core_on_read() once they are all in;
 * position is the offset of the next one. The bytes are copied where they are kept. */
void worker_core_on_attempt(struct worker_core *core, const struct message_attempt *attempt);
void worker_core_on_revoke(struct worker_core *core, const struct message_revoke *revoke);
void worker_core_on_read(struct worker_core *core, uint64_t position);

/* Answers of WORKER_TODO_FETCH. The bytes stay the shell's, by token; error_class 0: they are
 * there. */
void worker_core_on_input(struct worker_core *core, uint64_t token, enum error_class class,
                          const char *why);

/* A host that loads gets on with it. One that says nothing for load_us is killed, for good. */
void worker_core_on_host_loading(struct worker_core *core);

/* The host is ready and takes `granted` requests in all. */
void worker_core_on_host_ready(struct worker_core *core, uint64_t granted);

struct worker_result {
    enum error_class error_class; /* NONE: output is the answer */
    struct wire_text error_message;
    struct wire_bytes output; /* borrowed until the to-dos are read; of a failure: what the model
                               * itself has answered */
    struct wire_text output_type; /* media type; empty: JSON */
    uint64_t retry_after_ms, http_status, batch_count;
};
void worker_core_on_host_final(struct worker_core *core, uint64_t token, uint64_t granted,
                               const struct worker_result *result);

/* The host's process has ended. class: LOST_WORKER for a crash, DEVICE_FAULT, or NONE after a
 * drain. final: another try at loading would fail the same way. */
void worker_core_on_host_gone(struct worker_core *core, enum error_class class, bool final,
                              const char *why);

/* Kafka has the Finished of that token. */
void worker_core_on_finished_reported(struct worker_core *core, uint64_t token);
void worker_core_on_hello_reported(struct worker_core *core);
void worker_core_on_bye_reported(struct worker_core *core);

/* SIGTERM. A second call hands back at once what still runs. */
void worker_core_drain(struct worker_core *core);

/* ---- to-dos ---- */

enum worker_todo_type {
    WORKER_TODO_FETCH,      /* get the input by its blob key, answer worker_core_on_input() */
    WORKER_TODO_RUN,        /* REQ to the host */
    WORKER_TODO_CANCEL,     /* CANCEL to the host */
    WORKER_TODO_FORGET,     /* drop the input of that token, fetched or being fetched */
    WORKER_TODO_HELLO,      /* produce, until it is reported */
    WORKER_TODO_HEARTBEAT,  /* produce, no report wanted */
    WORKER_TODO_STARTED,    /* produce, no report wanted */
    WORKER_TODO_FINISHED,   /* produce (a large output to the blob store first), until reported */
    WORKER_TODO_BYE,        /* produce, until it is reported */
    WORKER_TODO_HOST_START, /* start a host process */
    WORKER_TODO_HOST_KILL,  /* kill -9 */
    WORKER_TODO_HOST_DRAIN, /* DRAIN to the host: it ends by itself */
    WORKER_TODO_EXIT,       /* everything is said; end with this code */
};

/* Pointers stay valid until the next event. */
struct worker_todo {
    enum worker_todo_type type;
    uint64_t token;          /* FETCH, RUN, CANCEL, FORGET, FINISHED */
    bool hung;               /* HOST_KILL: it does not do what it is told; else it is in our way */
    struct wire_text tenant; /* RUN, FINISHED; for logs, as is the next */
    struct wire_text trace;  /* of the Attempt */
    union {
        struct {
            struct wire_id job, run; /* the chain's that it is a step of; zeros: of none */
            struct wire_bytes input; /* inline; empty when it was fetched */
            struct wire_text input_type, route, gateway;
            uint64_t limit_ms, number;
            bool alone, stream;
        } run;
        struct {
            struct wire_text blob;
            uint64_t size;
            struct wire_bytes digest;
        } fetch;
        struct message_hello hello;
        struct message_heartbeat heartbeat;
        struct message_started started;
        struct message_finished finished;
        struct message_bye bye;
        struct {
            int code;
            const char *why;
        } exit;
    };
};

bool worker_core_next_todo(struct worker_core *core, struct worker_todo *ret_todo);

/* When worker_core_tick() is to be called next, if nothing happens before. */
uint64_t worker_core_due_us(const struct worker_core *core);

/* ---- inspection, for metrics, health and tests ---- */

struct worker_stats {
    uint64_t attempts, skipped, revoked, started, succeeded, failed, handed_back, host_starts;
    uint64_t granted, received;
    uint32_t slots_busy, slots_allowed, held, in_host;
    bool host_ready, said_hello, draining;
};
struct worker_stats worker_core_stats(const struct worker_core *core);
