/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What status and detail of one job ask Postgres alike: the same columns, the same two statements
 * one behind the other (its shard's floor for an id that has no row, then the job's row), one
 * reading. The floor comes first: asked behind the row, it could be of a flush in between that has
 * inserted it, and say 404 of a job that was accepted.
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

/* Results of the answer. */
#define STATUS_FLOOR 0
#define STATUS_ROW 1
#define STATUS_MORE 2

/*
 * Sends the floor of the call's job, `find`, and `more` (NULL: nothing), whose results are named
 * above, in done's answer. $1 of the last two is the job's id, $2 the call's tenant. Ends the call
 * itself when the path names no job, or Postgres is away (false); done has the call for its opaque.
 */
bool status_ask(struct call *call, const struct pg_statement *find, const struct pg_statement *more,
                pg_done_fn *done);

/* Row 0 of STATUS_ROW; its texts are the answer's. */
struct job_view status_read(const struct pg_answer *answer, const struct wire_id *id);

/* For a job without a row, by its shard's floor. */
bool status_may_be_queued(const struct pg_answer *answer, const struct wire_id *id);
