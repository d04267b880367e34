/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Postgres on the loop: libpq in pipeline mode, binary parameters, one answer a batch.
 *
 *     PG_STATEMENT(key_find, "SELECT tenant, role FROM api_key WHERE digest = $1 AND …");
 *
 *     struct pg_batch *batch = pg_batch_new();
 *     pg_add(batch, &key_find);
 *     pg_bind_bytes(batch, (struct wire_bytes){digest, 32});
 *     r = pg_send(pg, &batch, 1000, on_key, request, &err);   takes the batch on success
 *
 *     static void on_key(void *opaque, const struct pg_answer *answer)
 *     {
 *         if (answer->err.code != ERR_OK) …
 *         if (pg_row_count(answer, 0) == 1)
 *             tenant = pg_text(answer, 0, 0, 0);               statement, row, column
 *
 * A batch is one or more statements between two syncs, thus one transaction: all of them happen or
 * none. Batches of a connection are carried out in the order in which they were sent, without
 * waiting for one another. To commit in groups, gather rows for a turn (loop_turn_new) and send
 * one statement over unnest() of arrays.
 *
 * While there is no connection, batches wait, each up to its timeout; pg_connected() lets a caller
 * refuse at once instead. A batch whose sync was written when the connection broke is answered
 * ERR_UNKNOWN: it may have been committed. A timeout answers ERR_UNAVAILABLE (not connected) or
 * ERR_TIMEOUT (not written yet); when the batch was written already it is ERR_UNKNOWN, and the
 * connection is closed with it, since its answer would block those behind it. Connecting is tried
 * again after 100 ms … 2 s, for ever; with several hosts and target_session_attrs=read-write in the
 * url it follows a failover.
 *
 * Sessions run with search_path headrace, in UTC, and prepare each statement once. Rows come in
 * binary: select numeric and jsonb as text or another type (x::text, x::float8).
 *
 * What refusals of the server become: pg_code() in pg.c; the SQLSTATE is kept in the answer.
 *
 * Thread: the loop's.   Tests: tests/stack/test_pg.c against a real server
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/wire.h"
#include "brokers/fault.h"

struct loop;
struct pg;
struct pg_batch;
struct pg_pool;
struct pg_result;

#define PG_PARAMS_MAX 64     /* of one statement */
#define PG_STATEMENTS_MAX 32 /* of one batch */
#define PG_BATCH_BYTES_MAX (64u << 20)

/* A statement is a named constant next to its one caller; the name tells prepared ones apart. */
struct pg_statement {
    const char *name;
    const char *sql;
};
#define PG_STATEMENT(id, text) static const struct pg_statement id = {#id, text}

struct pg_options {
    const char *url; /* postgresql://user:password@host:port[,host:port…]/database[?…] */
    const char *application;       /* shown in pg_stat_activity */
    uint32_t connect_timeout_ms;   /* 0: 2,000 */
    uint32_t statement_timeout_ms; /* at the server; 0: 10,000 */
    uint32_t in_flight_max;        /* batches sent and not answered; 0: 1,000 */
    const char *settings;          /* more of the session, "-c work_mem=64MB"; NULL: none */
};

/* Opens without waiting: only a url that cannot be parsed fails. */
int pg_open(struct loop *loop, const struct pg_options *options, struct pg **ret_pg,
            struct err *err) MUST_CHECK;
void pg_close(struct pg **pg_p); /* unanswered batches are dropped */
bool pg_connected(const struct pg *pg);
uint32_t pg_in_flight(const struct pg *pg);
const char *
pg_last_error(const struct pg *pg); /* why the last connection failed; "" if it did not */

/* Calls with every change of pg_connected(). The first statements of a session belong here: they
 * are carried out before the batches that waited. */
typedef void pg_state_fn(void *opaque, struct pg *pg, bool connected);
void pg_on_state(struct pg *pg, pg_state_fn *call, void *opaque);

/* Calls for each notification, and once with payload NULL after each connection was made, because
 * notifications may have been missed before it. Four channels a connection. */
typedef void pg_notify_fn(void *opaque, const char *payload);
void pg_listen(struct pg *pg, const char *channel, pg_notify_fn *call, void *opaque);

/* Takes effect with the next connection. */
void pg_set_application(struct pg *pg, const char *application);

/* Drops the connection as if it had broken, and connects again (at once, then with back-off). */
void pg_reset(struct pg *pg);

/* ---- batches ---- */

struct pg_batch *pg_batch_new(void);
void pg_batch_free(struct pg_batch **batch_p);

/* Begins a statement; the binds that follow are its $1, $2, … A statement has to be bound with the
 * same types each time. Values are copied. */
void pg_add(struct pg_batch *batch, const struct pg_statement *statement);

void pg_bind_bool(struct pg_batch *batch, bool value);
void pg_bind_i16(struct pg_batch *batch, int64_t value); /* smallint; the value must fit */
void pg_bind_i32(struct pg_batch *batch, int64_t value); /* integer */
void pg_bind_i64(struct pg_batch *batch, int64_t value); /* bigint */
void pg_bind_double(struct pg_batch *batch, double value);
void pg_bind_id(struct pg_batch *batch, const struct wire_id *id);   /* uuid; NULL: null */
void pg_bind_text(struct pg_batch *batch, struct wire_text text);    /* text NULL: null */
void pg_bind_c(struct pg_batch *batch, const char *text);            /* NULL: null */
void pg_bind_bytes(struct pg_batch *batch, struct wire_bytes bytes); /* bytes NULL: null */
void pg_bind_time(struct pg_batch *batch, uint64_t unix_us);         /* 0, UINT64_MAX: null */
void pg_bind_json(struct pg_batch *batch, const char *json);         /* jsonb; NULL: null */

/* An array parameter: exactly `count` items of that type follow, by the pg_bind_… above. */
enum pg_type {
    PG_BOOL,
    PG_I16,
    PG_I32,
    PG_I64,
    PG_DOUBLE,
    PG_ID,
    PG_TEXT,
    PG_BYTES,
    PG_TIME,
    PG_JSON,
    PG_TYPE_COUNT,
};
void pg_bind_array(struct pg_batch *batch, enum pg_type type, size_t count);

size_t pg_batch_size(const struct pg_batch *batch); /* bytes of its values */

/* Tests can hold the program once all of this batch is written (brokers/fault.h). */
void pg_batch_set_fault(struct pg_batch *batch, enum fault point);

/* ---- answers ---- */

struct pg_answer {
    struct err err;           /* code ERR_OK: committed */
    char sqlstate[6];         /* "23505"; empty unless the server refused */
    char constraint[64];      /* name of the constraint that was violated; may be empty */
    size_t failed;            /* index of the statement that was refused */
    size_t position;          /* character of it, from 1, where it went wrong; 0: not known */
    struct pg_result *result; /* borrowed for the call; see pg_answer_take() */
};

/* err.code is ERR_TIMEOUT, ERR_UNAVAILABLE, ERR_UNKNOWN, or what pg_code() makes of sqlstate. The
 * rows of an answer with an error must not be read. */
typedef void pg_done_fn(void *opaque, const struct pg_answer *answer);

/* Takes the batch and answers it once, never from inside this call. ERR_FULL: too many in flight;
 * ERR_TOO_BIG: over PG_BATCH_BYTES_MAX; the batch stays the caller's. timeout_ms 0: no end. */
int pg_send(struct pg *pg, struct pg_batch **batch_p, uint32_t timeout_ms, pg_done_fn *done,
            void *opaque, struct err *err) MUST_CHECK;

/* Rows of statement `at` of an answer; 0 for statements that give none. */
size_t pg_row_count(const struct pg_answer *answer, size_t at);
uint64_t pg_changed_count(const struct pg_answer *answer, size_t at); /* INSERT, UPDATE, DELETE */

/* Values by statement, row, column. A null is 0, false or empty. Text and bytes live as long as
 * the answer; text is terminated all the same. Integers of any width are read by pg_i64. */
bool pg_is_null(const struct pg_answer *answer, size_t at, size_t row, size_t column);
bool pg_bool(const struct pg_answer *answer, size_t at, size_t row, size_t column);
int64_t pg_i64(const struct pg_answer *answer, size_t at, size_t row, size_t column);
uint64_t pg_u64(const struct pg_answer *answer, size_t at, size_t row, size_t column);
double pg_double(const struct pg_answer *answer, size_t at, size_t row, size_t column);
struct wire_id pg_id(const struct pg_answer *answer, size_t at, size_t row, size_t column);
struct wire_text pg_text(const struct pg_answer *answer, size_t at, size_t row, size_t column);
const char *pg_c(const struct pg_answer *answer, size_t at, size_t row, size_t column);
struct wire_bytes pg_bytes(const struct pg_answer *answer, size_t at, size_t row, size_t column);
uint64_t pg_time_us(const struct pg_answer *answer, size_t at, size_t row, size_t column);

/* Keeps the rows beyond the callback: moves them into *to, the caller's to pg_answer_done(). */
void pg_answer_take(const struct pg_answer *answer, struct pg_answer *to);
void pg_answer_done(struct pg_answer *answer);

/* ERR_ code for an SQLSTATE: 22/23514 RANGE, 23505 and serialization CONFLICT, 23503 NOT_FOUND,
 * 57014 TIMEOUT, 08/53/57P UNAVAILABLE, 28 UNAUTHORIZED, 42501 FORBIDDEN, P0001 CONFLICT,
 * HR001 STALE, others INTERNAL. */
int pg_code(const char *sqlstate);

/* ---- a pool: each batch goes to the connected one with the least in flight ---- */

#define PG_POOL_MAX 16

int pg_pool_open(struct loop *loop, const struct pg_options *options, uint32_t count,
                 struct pg_pool **ret_pool, struct err *err) MUST_CHECK;
void pg_pool_close(struct pg_pool **pool_p);
bool pg_pool_connected(const struct pg_pool *pool); /* any of them is */
struct pg *pg_pool_pick(struct pg_pool *pool);      /* for batches that must stay in order */
int pg_pool_send(struct pg_pool *pool, struct pg_batch **batch_p, uint32_t timeout_ms,
                 pg_done_fn *done, void *opaque, struct err *err) MUST_CHECK;

/* ---- blocking, for command lines and tests ---- */

struct pg_session;

/* Connects, waiting up to the connect timeout. ERR_UNAVAILABLE says why. */
int pg_session_open(const struct pg_options *options, struct pg_session **ret_session,
                    struct err *err) MUST_CHECK;
void pg_session_close(struct pg_session **session_p);

/* Carries the batch out as one transaction and waits. Takes the batch in any case. On success the
 * answer is the caller's to pg_answer_done(); on failure it needs none but may have it. */
int pg_session_run(struct pg_session *session, struct pg_batch **batch_p,
                   struct pg_answer *ret_answer, struct err *err) MUST_CHECK;

/* Runs text that may hold several statements, without parameters: as one transaction unless it has
 * its own BEGIN. For migrations and tests. */
int pg_session_script(struct pg_session *session, const char *sql, struct err *err) MUST_CHECK;

/* One statement that a person typed, without parameters; several in one text are refused. Values
 * come as text: read them by pg_c() and pg_is_null() only. On failure the answer has sqlstate and
 * position. */
int pg_session_query(struct pg_session *session, const char *sql, struct pg_answer *ret_answer,
                     struct err *err) MUST_CHECK;

enum pg_kind {
    PG_KIND_TEXT,
    PG_KIND_NUMBER,
    PG_KIND_BOOL, /* "t" or "f" */
    PG_KIND_JSON,
};
size_t pg_column_count(const struct pg_answer *answer, size_t at);
const char *pg_column_name(const struct pg_answer *answer, size_t at, size_t column);
enum pg_kind pg_column_kind(const struct pg_answer *answer, size_t at, size_t column);
