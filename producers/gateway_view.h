/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A job as its client sees it: states and error codes in the wire's words, as JSON; and what an id
 * that nothing is known of means. Pure.
 *
 * Thread: any.   Tests: tests/unit/test_gateway_view.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/wire.h"
#include "schema/job.h"

struct message_completed;

/* States of a delivery as SQL has them; 0: there is none (yet). */
enum view_delivery {
    VIEW_DELIVERY_NONE,
    VIEW_DELIVERY_PENDING,
    VIEW_DELIVERY_SUCCEEDED,
    VIEW_DELIVERY_FAILED,
    VIEW_DELIVERY_CANCELED,
};

struct job_view { /* texts are borrowed */
    struct wire_id id;
    enum job_state state;
    struct wire_text model, model_name, deployment, environment, error_message;
    uint64_t accepted_us, state_us;
    uint64_t run_at_us; /* of one that is to run at a time which has not come; 0: none */
    enum error_class error_class;
    bool has_webhook;
    bool is_chain; /* the model is called chain_id then */
    enum view_delivery delivery;
    uint64_t attempts;
};

/* As a `completed` record tells it; a webhook counts as on its way. */
struct job_view view_of_completed(const struct message_completed *completed);

/* A job that the ledger does not know yet. */
struct job_view view_of_queued(const struct wire_id *id);

const char *view_status(const struct job_view *view);         /* "WEBHOOK_FAILED" too */
const char *view_webhook_status(const struct job_view *view); /* static storage, both */

/* Appends `,"name":"base/async_request/<id><suffix>"`. */
void view_append_url(struct buf *to, const char *name, const struct buf *base, const char *id,
                     const char *suffix);

/* Appends the object of SURFACE 1.3, with model_name, environment, attempts and run_at besides. */
void view_append_json(const struct job_view *view, struct buf *to);

/* What is known of a job besides: times are 0 where there is none. */
struct view_detail {
    uint64_t round, user_failures, max_attempts, oom_failures, lost_failures, run_limit_ms;
    uint64_t due_us, start_deadline_us, total_deadline_us;
    struct wire_text attempt_log; /* a JSON array; empty: no attempt yet */
};

/* The same object, and why the job ended, what its budgets paid, and its attempts. */
void view_append_detail(const struct job_view *view, const struct view_detail *detail,
                        struct buf *to);

/* For a job that will have no result: the answer to those who ask for it. */
void view_append_failure(const struct job_view *view, struct buf *to);

/* An id is made when the body was read; until its Submit is in intake, the input is stored, a key
 * is reserved, and Kafka may stand still. Who is promised a job is so within this time, so that an
 * id that is older than what its shard's owner has read and written by more, and by what clocks may
 * differ, is of no job that was accepted and has no row. */
#define VIEW_PROMISE_US_MAX (5 * 60 * 1000 * 1000ull)

/* Whether a job of that id may be answered as accepted now. */
bool view_may_be_promised(const struct wire_id *id, uint64_t now_us);

/* Whether an id that is in no store may still be on its way to the ledger, by the above. floor_us:
 * append time up to which its shard's owner has read and written; 0: nothing was written yet. */
bool view_may_be_queued(const struct wire_id *id, uint64_t floor_us, uint64_t now_us);
