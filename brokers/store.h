/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The ledger in Postgres, as the broker uses it: takeover, flush, load. All calls are
 * asynchronous on the caller's loop and are answered once, in order, from that loop.
 *
 * Happy path of a flush: one pipeline, one implicit transaction: guard (SELECT … FOR SHARE of the
 * shard row, which raises when the epoch is not ours), job rows by unnest of binary arrays,
 * results, attempts, one append-only flush row; commit.
 *
 * Failures: guard raised: FLUSH_STALE. Class 22/23: the store halves the flush in transactions
 * that it rolls back until one row is found: FLUSH_REFUSED. Connection lost before the commit was
 * sent: FLUSH_RETRY. Lost during it: the store reconnects and looks for the flush number; found:
 * FLUSH_COMMITTED (applied is read again from the rows), else FLUSH_RETRY. While Postgres is away
 * the store keeps trying to connect (100 ms … 2 s) and answers nothing.
 *
 * Sessions set idle_in_transaction_session_timeout and tcp_user_timeout to 2 s, a
 * statement_timeout, and carry shard and epoch in application_name, so that a successor may
 * terminate them (PROTOCOL 6).
 *
 * Thread: the loop's.   Tests: tests/stack/test_store.c against a real server
 */

#include "brokers/ledger.h"

struct loop;
struct store;

/* One store serves one shard at a time: its session is named after shard and epoch. The err of an
 * answer is never NULL; its code is ERR_OK when the call succeeded. A lost connection is no answer:
 * the call is made again. */
struct store_options {
    const char *url;               /* postgresql://… */
    const char *application;       /* for pg_stat_activity */
    uint32_t statement_timeout_ms; /* 10,000 */
    uint32_t connect_timeout_ms;   /* 2,000 */
};

int store_open(struct loop *loop, const struct store_options *options, struct store **ret_store,
               struct err *err) MUST_CHECK;
void store_close(struct store **store_p); /* unanswered calls are dropped */
bool store_connected(const struct store *store);

/* Raises the epoch (greatest(epoch + 1, seconds since 2025)) after the old owner's open flush and
 * reads what it left. NULL when it failed. The takeover stays valid after the callback, until the
 * next takeover of this store: the owner is made only when the ends of both topics are known, and
 * those must be asked for after the epoch was raised. Specs that the receiver took have to be NULL
 * in its rows; the others are freed with it. One takeover at a time. */
typedef void store_takeover_fn(void *opaque, struct ledger_takeover *takeover, struct err *err);
void store_takeover(struct store *store, uint32_t shard, store_takeover_fn *done, void *opaque);

/* One flush at a time; it stays unchanged until it is answered. FLUSH_STALE is also the answer when
 * the flush before it is not in the ledger: a failover has lost it, and rows with it. */
typedef void store_flush_fn(void *opaque, const struct flush_result *result);
void store_flush(struct store *store, const struct flush *flush, store_flush_fn *done,
                 void *opaque);

/* QUEUED rows of the lane with seq > after_seq that never had an attempt, in order of seq. */
typedef void store_rows_fn(void *opaque, const struct ledger_lane *lane, struct ledger_row *rows,
                           size_t row_count, bool complete, struct err *err);
void store_load(struct store *store, uint32_t shard, const struct ledger_lane *lane, uint32_t limit,
                store_rows_fn *done, void *opaque);

/* Waiting rows without an attempt whose earlier deadline lies behind the cursor and is due, by
 * deadline and seq; without their inputs, which nobody reads any more. */
typedef void store_due_fn(void *opaque, const struct ledger_due *due, struct ledger_row *rows,
                          size_t row_count, bool complete, struct err *err);
void store_due(struct store *store, uint32_t shard, const struct ledger_due *due, uint32_t limit,
               store_due_fn *done, void *opaque);

/* Calls when commands of the shard may have come: after a notification, and with each connection.
 */
typedef void store_notice_fn(void *opaque);
void store_on_commands(struct store *store, uint32_t shard, store_notice_fn *call, void *opaque);

/* Commands with ids of at least `from` that nobody has acknowledged, by id. */
typedef void store_commands_fn(void *opaque, const struct ledger_command *commands,
                               size_t command_count, bool complete, struct err *err);
void store_commands(struct store *store, uint32_t shard, uint64_t from, uint32_t limit,
                    store_commands_fn *done, void *opaque);

/* Rows of these ids, the final ones too. lane is NULL in the answer. */
void store_lookup(struct store *store, const struct wire_id *ids, size_t id_count,
                  store_rows_fn *done, void *opaque);
