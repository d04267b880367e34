/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of the ledger's Postgres adapter share.
 *
 *     store_postgres.c        sessions, takeover, loads: what is asked again after a lost
 * connection store_postgres_flush.c  one flush: verdicts, trials, unknown outcomes
 *     store_postgres_write.c  the statements of a flush and their arrays
 *     store_postgres_ends.c   what a flush makes final, added up
 *     store_postgres_rows.c   rows of the ledger as structs
 *     store_postgres_command.c commands: reading them, and the notification about them
 *
 * For brokers/store_postgres*.c only.
 */

#include "brokers/pg.h"
#include "brokers/store.h"

struct loop_timer;

/* Jobs [first, beyond) of a flush; a trial is rolled back when it has succeeded. */
struct flush_range {
    size_t first, beyond;
    bool trial;
    bool without_attempts;
};

/* Indexes of a batch's statements, to read which rows were applied; SIZE_MAX: it has none. */
enum flush_statement { FLUSH_INSERTED, FLUSH_UPDATED, FLUSH_REPLAYED, FLUSH_STATEMENT_COUNT };

struct flush_statements {
    size_t at[FLUSH_STATEMENT_COUNT];
};

struct store_flush {
    const struct flush *flush; /* NULL: none is in flight */
    store_flush_fn *done;
    void *opaque;
    struct flush_range range;           /* that was sent last */
    struct flush_statements statements; /* of what was sent last */
    size_t low, high;                   /* the row that is refused lies in [low, high) */
    bool without_attempts;              /* no job was at fault: they are left out */
    bool *applied;
    char why[256];
};

struct store_takeover {
    uint32_t shard, epoch;
    store_takeover_fn *done; /* NULL: none is asked for */
    void *opaque;
    struct ledger_takeover found;
    struct pg_answer answer; /* found's texts point into it, until the next takeover */
};

struct store_commands {
    uint32_t shard, limit, listened;
    uint64_t from;
    store_commands_fn *done; /* NULL: none are asked for */
    void *opaque;
    store_notice_fn *notice;
    void *notice_opaque;
};

struct store {
    struct loop *loop;
    struct pg *pg;
    char *application;
    struct wire_decoder *decoder;
    struct buf record; /* scratch of the rows */
    struct buf text;   /* scratch of texts that are made storable */
    struct loop_timer *takeover_pause;
    struct loop_timer *flush_pause;
    struct store_takeover takeover;
    struct store_flush flush;
    struct store_commands commands;
    struct store_query *queries; /* loads and lookups that are asked */
};

#define STORE_PAUSE_MS 100

/* Whatever it was, it is asked again. */
static inline bool store_connection_lost(const struct err *err)
{
    return err->code == ERR_UNKNOWN || err->code == ERR_UNAVAILABLE;
}

/* Takes the batch; nobody else uses this connection, so it is not full. */
void store_send(struct store *store, struct pg_batch **batch_p, pg_done_fn *done, void *opaque);

/* Adds the statement that bounds the waiting for a lock by the statements behind it. Who waited in
 * vain (SQLSTATE 55P03) ends the sessions that hold it. */
void store_add_patience(struct pg_batch *batch);
#define STORE_NO_PATIENCE "55P03"

/* Ends sessions of this shard up to that epoch, but for ours: their host may be gone. */
void store_terminate_others(struct store *store, uint32_t shard, uint32_t epoch, pg_done_fn *done);

/* Puts the statements of the range into the batch. */
void store_write_flush(struct store *store, const struct flush *flush,
                       const struct flush_range *range, struct pg_batch *batch,
                       struct flush_statements *ret_statements);

/* Binds the text with '?' for every byte that Postgres would refuse. */
void store_bind_storable(struct store *store, struct pg_batch *batch, struct wire_text text);

/* Binds what a flush makes final, added up: its names, then its numbers. For one that makes some.
 */
void store_bind_ends(struct store *store, const struct flush *flush, struct pg_batch *batch);

void store_flush_done(struct store *store);
void store_on_flush_pause(void *opaque);

/* The columns of a row, for the SELECT lists that store_read_row() reads. */
#define STORE_ROW_COLUMNS                                                                          \
    STORE_ROW_COLUMNS_BUT_INPUT ", (SELECT i.input FROM job_input i WHERE i.job_id = j.id) "
#define STORE_ROW_COLUMNS_BUT_INPUT                                                                \
    " j.id, j.seq, j.accepted_at, j.received_at, j.state, j.token, j.fence, j.attempt_count,"      \
    " j.user_failures, j.oom_failures, j.lost_failures, j.due_at, j.round, j.rank, j.slot_count,"  \
    " j.tenant, j.model, j.deployment, j.environment, j.pool, j.input_blob, j.input_size,"         \
    " j.input_digest, j.max_attempts, j.initial_delay_ms, j.max_delay_ms, j.queue_limit_ms,"       \
    " j.run_limit_ms, j.total_limit_ms, j.webhook_url, j.idempotency_key, j.gateway, j.trace,"     \
    " j.key_prefix, j.replayed_at, j.input_type, j.route, j.stream,"                               \
    " (SELECT string_agg(t.tag, ',' ORDER BY t.tag) FROM job_tag t WHERE t.job_id = j.id)"

int store_read_row(struct store *store, const struct pg_answer *answer, size_t at, size_t row,
                   struct ledger_row *ret_row, struct err *err) MUST_CHECK;

/* All rows of a statement; on failure none. The caller frees the array, the receiver the specs. */
int store_read_rows(struct store *store, const struct pg_answer *answer, size_t at,
                    struct ledger_row **ret_rows, struct err *err) MUST_CHECK;

#define STORE_FINAL_COLUMNS                                                                        \
    " j.id, j.round, j.tenant, j.model, j.deployment, j.environment, j.state, j.error_class,"      \
    " j.error_message, r.output, r.output_blob, coalesce(r.output_size, 0), j.webhook_url,"        \
    " j.accepted_at, j.state_at, j.trace, j.attempt_count, j.gateway, r.output_type,"              \
    " coalesce(r.http_status, 0), j.sync "

/* Texts and bytes stay in the answer. */
void store_read_final(const struct pg_answer *answer, size_t at, size_t row,
                      struct ledger_final *ret_final);
