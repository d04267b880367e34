/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What status and detail of one job ask Postgres alike: the same columns, the same two statements
 * beside each other (the job's row, and its shard's floor for an id that has none), one reading.
 *
 * Thread: the gateway's loop.
 */

#include <stdbool.h>

#include "brokers/pg.h"
#include "producers/gateway_view.h"

struct call;

/* Of `job j` and `delivery d`: what status_read() reads, from column 0 on. */
#define STATUS_COLUMNS                                                                             \
    "j.state, j.model, j.deployment, coalesce(j.environment, ''), j.accepted_at, "                 \
    "j.state_at, j.error_class, coalesce(j.error_message, ''), j.webhook_url IS NOT NULL, "        \
    "coalesce(d.state, 0), j.attempt_count"
#define STATUS_COLUMN_COUNT 11 /* columns of one's own begin here */

/*
 * Sends `find`, the floor of the call's job, and `more` (NULL: nothing), which become results 0, 1
 * and 2 of done's answer. $1 of both is the job's id, $2 the call's tenant. Ends the call itself
 * when the path names no job, or Postgres is away (false); done has the call for its opaque.
 */
bool status_ask(struct call *call, const struct pg_statement *find, const struct pg_statement *more,
                pg_done_fn *done);

/* Row 0 of result 0; its texts are the answer's. */
struct job_view status_read(const struct pg_answer *answer, const struct wire_id *id);

/* For a job without a row, by the floor in result 1. */
bool status_may_be_queued(const struct pg_answer *answer, const struct wire_id *id);
