/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * From `completed` records to delivery rows, and from due rows to the sender.
 *
 * Kafka's group gives partitions of `completed` to senders. A partition is read from the group's
 * stored offset (nothing stored: from the beginning; repeats are met by the key of the row).
 * Records with a webhook become rows, gathered per partition; the offset is stored after the commit
 * of the rows. Rows that are new go to the sender at once while it has room; the others are
 * claimed when they are due.
 *
 * Failures: ledger away: the reader is paused and the same rows are inserted again. Record that
 * does not decode: counted, reported, skipped (the job's result is in the ledger all the same).
 * Revoked: reading stops at once; deliveries in memory are still sent.
 *
 * Thread: the loop's.   Tests: tests/stack/test_webhook.py
 */

#include "brokers/queue.h"
#include "workers/webhook_sender.h"

struct loop;
struct webhook_intake;

struct webhook_intake_options {
    struct queue_options queue;
    const char *instance; /* static group membership; NULL: none */
    struct pg *pg;
    struct webhook_sender *sender;
    struct metrics *metrics;
    uint64_t claim_ms;
    void (*on_trouble)(void *opaque, const char *what, const struct err *err);
    void (*on_fatal)(void *opaque, const struct err *err); /* the election is over */
    void *opaque;
};

int webhook_intake_open(struct loop *loop, const struct webhook_intake_options *options,
                        struct webhook_intake **ret_intake, struct err *err) MUST_CHECK;
void webhook_intake_close(struct webhook_intake **intake_p);

/* The sender has room again, and something comes back within a second, or not. What is due is
 * looked for when the sender had no room for all of it, or is about to be; else each second. */
void webhook_intake_room(struct webhook_intake *intake, bool soon);

/* Stops reading and leaves the group; on_left is called once others may take over. */
void webhook_intake_leave(struct webhook_intake *intake, void (*on_left)(void *opaque),
                          void *opaque);
