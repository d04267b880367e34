/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of the Postgres adapter share: a batch's bytes and libpq's results.
 * For brokers/pg*.c only.
 */

#include <libpq-fe.h>

#include "brokers/pg.h"

struct pg_param {
    Oid oid;
    bool null;
    size_t offset; /* of its value in batch->values */
    size_t size;
};

struct pg_call {
    const struct pg_statement *statement;
    size_t param_first, param_count;
};

struct pg_batch {
    struct buf values;
    struct pg_param *params;
    size_t param_count, param_room;
    struct pg_call calls[PG_STATEMENTS_MAX];
    size_t call_count;
    enum pg_type array_type;
    size_t array_left; /* items that the array begun last still lacks */
    bool has_fault;
    enum fault fault;
};

struct pg_result {
    size_t count;
    PGresult *of[PG_STATEMENTS_MAX]; /* one a statement; NULL where none came */
};

/* The arrays that libpq wants for one call; pointers into the batch. */
struct pg_wire_params {
    int count;
    Oid oids[PG_PARAMS_MAX];
    const char *values[PG_PARAMS_MAX];
    int sizes[PG_PARAMS_MAX];
    int formats[PG_PARAMS_MAX];
};
void pg_batch_params(const struct pg_batch *batch, size_t call, struct pg_wire_params *ret_params);

int pg_batch_check(const struct pg_batch *batch, struct err *err) MUST_CHECK;

void pg_result_clear(struct pg_result *result);

/* Fills the answer from a result that says that the server refused; call is its statement. */
void pg_answer_refuse(struct pg_answer *answer, const PGresult *refusal, const char *statement);

/* libpq's text without its line ends. */
void pg_copy_message(char *to, size_t to_size, const char *message);

/* A connection with our parameters, begun (PQconnectStartParams) or made (PQconnectdbParams). Of
 * several hosts in the url the one at first_host, modulo their number, is tried first. */
PGconn *pg_connect(const struct pg_options *options, size_t first_host, bool wait);

/* "a,b,c" by 1 is "b,c,a", to be freed; NULL when there is one item or none: nothing to rotate. */
char *pg_list_rotate(const char *list, size_t by);
#define PG_CONNECT_TIMEOUT_MS 2000
#define PG_STATEMENT_TIMEOUT_MS 10000
