/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Deadlines of jobs that are not in memory.
 *
 * A job in memory has a timer. A spilled one is a row; while a lane is spilled the owner asks ten
 * times a second for the waiting rows whose deadline has passed, by deadline and seq, and ends
 * those that it does not hold. So a job expires in time at any backlog, and what is asked costs the
 * rows that are due, never those that wait.
 *
 * The cursor only moves forward, and never past now. Nothing is missed behind it: a job leaves
 * memory only before its deadlines (job_settle), and its row was committed before that. Nothing is
 * brought back to life either: answers come in the order of the questions, down the connection of
 * the flushes (PROTOCOL 23), so a row that still waits in an answer, and whose job is not in
 * memory, waits in truth. And no index entry is read twice, however long a snapshot keeps the dead
 * ones (PROTOCOL 12). A takeover starts anew.
 *
 * Rows come without their inputs; as they are ended at once, nobody can dispatch them.
 */

#include "brokers/owner_int.h"

#define EXPIRY_STEP_US                                                                             \
    100000 /* a spilled job expires so late at most, and the time of two flushes */
#define EXPIRY_ROWS 1000

static bool expiry_wanted(const struct owner *owner)
{
    return owner->phase == OWNER_LIVE && !owner->draining && !owner->expiry_out &&
           !TAILQ_EMPTY(&owner->spilled) && owner_guarded(owner, OWNER_GUARD_EXPIRY);
}

/* What was found has to be written before more is fetched: memory stays bounded. */
static bool expiry_lags(const struct owner *owner)
{
    return owner->urgent_count >= 2 * FLUSH_JOBS_MAX;
}

uint64_t expiry_due_us(const struct owner *owner)
{
    return expiry_wanted(owner) && !expiry_lags(owner) ? owner->expiry_us : UINT64_MAX;
}

void expiry_run(struct owner *owner)
{
    struct todo_node *node;

    if (expiry_due_us(owner) > owner->now_us)
        return;
    owner->expiry_out = true;
    owner->expiry_us = owner->now_us + EXPIRY_STEP_US;
    node = todo_add(owner, OWNER_TODO_DUE);
    node->todo.due.cursor = owner->expiry;
    node->todo.due.cursor.upto_us = owner->wall_us;
    node->todo.due.limit = EXPIRY_ROWS;
}

static uint64_t row_deadline_us(const struct ledger_row *row)
{
    const struct job_spec *spec = row->spec;

    return spec->start_deadline_us < spec->total_deadline_us ? spec->start_deadline_us
                                                             : spec->total_deadline_us;
}

/* A job in memory is ended by its own timer. One whose insert is still out learns here that its row
 * was there before, with the deadlines that were promised; else it would be taken for a duplicate
 * and forgotten behind the cursor. */
static void expiry_take(struct owner *owner, struct ledger_row *row)
{
    struct job *job = job_find(owner, &row->spec->submit.id);

    if (job == NULL) {
        job = job_add_row(owner, row);
        if (!job_expire(owner, job))
            job_remove(owner, job);
        return;
    }
    if (job->row || job->place == JOB_ENDED) {
        job_spec_unref(&row->spec);
        return;
    }
    lane_confirm(owner, job, row);
    job->row = true;
}

void owner_on_due(struct owner *owner, const struct ledger_due *due, struct ledger_row *rows,
                  size_t row_count, bool complete)
{
    owner->expiry_out = false;
    if (!complete)
        owner->expiry_us = owner->now_us; /* there is more of it */
    if (complete)
        owner->expiry = (struct ledger_due){.after_us = due->upto_us, .after_seq = INT64_MAX};
    for (size_t i = 0; i < row_count; i++) {
        if (!complete)
            owner->expiry = (struct ledger_due){.after_us = row_deadline_us(&rows[i]),
                                                .after_seq = (int64_t)rows[i].spec->seq};
        if (owner->phase == OWNER_OVER)
            job_spec_unref(&rows[i].spec);
        else
            expiry_take(owner, &rows[i]);
    }
}
