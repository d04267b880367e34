/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The words of the ledger: states of a job, classes of errors, limits and defaults.
 *
 *     QUEUED ──dispatched──▶ IN_PROGRESS ──▶ SUCCEEDED | FAILED | EXPIRED | CANCELED
 *        ▲                        │
 *        └──── retry, lost ───────┘
 *
 * Who moves a job: only the owner of its shard (brokers/owner.h), and only by a flush.
 * Thread: any.   Tests: tests/unit/test_job.c
 */

#include <stdbool.h>
#include <stdint.h>

enum job_state {
#define JOB_STATE(name, number, final, meaning) JOB_##name = (number),
#include "schema/job_states.def"
#undef JOB_STATE
};

enum error_class {
    ERROR_CLASS_NONE, /* success */
#define ERROR_CLASS(name, number, wire, http, budget, effect) ERROR_CLASS_##name = (number),
#include "schema/error_classes.def"
#undef ERROR_CLASS
    ERROR_CLASS_COUNT,
};

enum error_budget {
    ERROR_BUDGET_NONE,
    ERROR_BUDGET_USER, /* inference_retry_config.max_attempts */
    ERROR_BUDGET_OOM,
    ERROR_BUDGET_LOST,
};

/* Order in which classes of jobs are served; wire priority p is JOB_RANK_PRIORITY_0 + p. */
enum job_rank {
    JOB_RANK_SYNC,
    JOB_RANK_PRIORITY_0,
    JOB_RANK_PRIORITY_1,
    JOB_RANK_PRIORITY_2,
    JOB_RANK_BULK, /* lines of bulk jobs */
    JOB_RANK_COUNT,
};

#define JOB_INPUT_INLINE_MAX (64u * 1024)   /* bytes in the message; above: claim check */
#define JOB_OUTPUT_INLINE_MAX (512u * 1024) /* bytes in the message; above: blob */
#define JOB_ATTEMPTS_DEFAULT 3
#define JOB_ATTEMPTS_MAX 10
#define JOB_INITIAL_DELAY_MS_DEFAULT 1000
#define JOB_INITIAL_DELAY_MS_MAX 10000
#define JOB_MAX_DELAY_MS_DEFAULT 5000
#define JOB_MAX_DELAY_MS_MAX 60000
#define JOB_PUT_OFF_MS_MAX                                                                         \
    (7ull * 24 * 3600 * 1000) /* that an attempt may ask for which only waits */
#define JOB_QUEUE_LIMIT_S_DEFAULT 600
#define JOB_QUEUE_LIMIT_S_MIN 10
#define JOB_QUEUE_LIMIT_S_MAX 259200
#define JOB_RUN_LIMIT_MS_DEFAULT 3600000
#define JOB_PRIORITY_MAX 2  /* that a client may ask for */
#define JOB_PRIORITY_BULK 3 /* of a Submit by an ingest */
#define JOB_OOM_ATTEMPTS_MAX 3
#define JOB_LOST_ATTEMPTS_MAX 5
#define JOB_LOST_ATTEMPTS_SHARED 2 /* lost so often, it runs alone: is it the one that kills? */

bool job_state_known(uint64_t number);
bool job_state_final(enum job_state state);
bool job_state_dead(enum job_state state); /* final without a result or a cancel: may be replayed */
const char *job_state_name(enum job_state state); /* "IN_PROGRESS"; static storage */

bool error_class_known(uint64_t number);
const char *error_class_name(enum error_class class); /* "BAD_INPUT"; static storage */
const char *error_class_wire(enum error_class class); /* "MODEL_INVALID_INPUT" */
int error_class_http(enum error_class class);
enum error_budget error_class_budget(enum error_class class);
bool error_class_final(enum error_class class);

/* Why a job whose last error has this class is FAILED: "poison", "attempts_used", "out_of_memory",
 * or the class itself where one error is enough. Static storage. */
const char *error_class_reason(enum error_class class);

/* Milliseconds before the next try after `failures` failed ones (at least 1): doubled each time,
 * capped, and spread over [half, whole] by `jitter`, a number of 0.0 … below 1.0. */
uint64_t job_backoff_ms(uint64_t initial_ms, uint64_t max_ms, uint32_t failures, double jitter);
