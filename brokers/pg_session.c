/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Postgres for programs that may wait: command lines, migrations, tests. The same batches and
 * answers as on the loop; each statement waits for its answer.
 *
 * Failures: a refused statement rolls the batch back. A lost connection is ERR_UNKNOWN when it was
 * lost in COMMIT, ERR_UNAVAILABLE before; the session is of no more use then.
 */

#include <stdlib.h>
#include <string.h>

#include "brokers/pg_int.h"

struct pg_session {
    PGconn *conn;
};

/* Notices are for people at a terminal; libpq would print them. */
static void on_notice(void *opaque, const char *message)
{
    (void)opaque;
    (void)message;
}

char *pg_list_rotate(const char *list, size_t by)
{
    size_t count = 1;
    const char *at = list;

    if (list == NULL || strchr(list, ',') == NULL)
        return NULL;
    for (const char *c = list; *c != '\0'; c++)
        count += *c == ',';
    for (by %= count; by > 0; by--)
        at = strchr(at, ',') + 1;
    if (at == list)
        return xstrdup(list);
    return xasprintf("%s,%.*s", at, (int)(at - list - 1), list);
}

/* Of the url, with the hosts in another order. NULL: as the url has it. */
static char *url_rotate(const PQconninfoOption *parsed, const char *keyword, size_t by)
{
    for (; parsed != NULL && parsed->keyword != NULL; parsed++) {
        if (strcmp(parsed->keyword, keyword) == 0)
            return pg_list_rotate(parsed->val, by);
    }
    return NULL;
}

PGconn *pg_connect(const struct pg_options *options, size_t first_host, bool wait)
{
    PQconninfoOption *parsed = first_host == 0 ? NULL : PQconninfoParse(options->url, NULL);
    OWNED(mem_free) char *host = url_rotate(parsed, "host", first_host);
    OWNED(mem_free) char *hostaddr = url_rotate(parsed, "hostaddr", first_host);
    OWNED(mem_free) char *port = url_rotate(parsed, "port", first_host);
    PGconn *conn;
    uint32_t connect_ms = options->connect_timeout_ms == 0 ? PG_CONNECT_TIMEOUT_MS
                                                           : options->connect_timeout_ms;
    uint32_t statement_ms = options->statement_timeout_ms == 0 ? PG_STATEMENT_TIMEOUT_MS
                                                               : options->statement_timeout_ms;
    char session[512], connect_s[16];
    const char *const names[] = {"dbname",
                                 "application_name",
                                 "client_encoding",
                                 "options",
                                 "connect_timeout",
                                 "keepalives_idle",
                                 "keepalives_interval",
                                 "keepalives_count",
                                 "tcp_user_timeout",
                                 "host",
                                 "hostaddr",
                                 "port",
                                 NULL};
    const char *const values[] = {options->url, options->application,
                                  "UTF8",       session,
                                  connect_s,    "2",
                                  "1",          "3",
                                  "2000",       host, /* NULL leaves what the url says */
                                  hostaddr,     port,
                                  NULL};

    /* An owner whose host is gone must not hold its locks until TCP gives up (PROTOCOL 6). */
    (void)snprintf(
        session, sizeof(session),
        "-c search_path=headrace -c timezone=UTC -c statement_timeout=%u "
        "-c idle_in_transaction_session_timeout=%u -c tcp_user_timeout=2000 "
        "-c tcp_keepalives_idle=2 -c tcp_keepalives_interval=1 -c tcp_keepalives_count=3 %s",
        statement_ms, wait ? 60000u : 2000u, options->settings == NULL ? "" : options->settings);
    (void)snprintf(connect_s, sizeof(connect_s), "%u", (connect_ms + 999) / 1000);
    PQconninfoFree(parsed);
    conn = wait ? PQconnectdbParams(names, values, 1) : PQconnectStartParams(names, values, 1);
    if (conn != NULL)
        (void)PQsetNoticeProcessor(conn, on_notice, NULL);
    return conn;
}

int pg_session_open(const struct pg_options *options, struct pg_session **ret_session,
                    struct err *err)
{
    char message[ERR_TEXT_SIZE / 2];
    PGconn *conn = pg_connect(options, 0, true);

    if (conn == NULL)
        return err_set(err, ERR_MEMORY, "libpq has no memory for a connection");
    if (PQstatus(conn) != CONNECTION_OK) {
        pg_copy_message(message, sizeof(message), PQerrorMessage(conn));
        PQfinish(conn);
        return err_set(err, ERR_UNAVAILABLE, "Postgres: %s", message);
    }
    *ret_session = xcalloc(1, sizeof(**ret_session));
    (*ret_session)->conn = conn;
    return 0;
}

void pg_session_close(struct pg_session **session_p)
{
    struct pg_session *session = TAKE(*session_p);

    if (session == NULL)
        return;
    PQfinish(session->conn);
    mem_free(&session);
}

static bool result_is_good(const PGresult *result)
{
    ExecStatusType status = PQresultStatus(result);

    return status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK || status == PGRES_EMPTY_QUERY;
}

static int session_exec(struct pg_session *session, const char *sql, struct pg_answer *answer)
{
    PGresult *result = PQexec(session->conn, sql);

    if (!result_is_good(result))
        pg_answer_refuse(answer, result, sql);
    PQclear(result);
    return answer->err.code;
}

static int session_call(struct pg_session *session, const struct pg_batch *batch, size_t at,
                        struct pg_answer *answer)
{
    const struct pg_statement *statement = batch->calls[at].statement;
    struct pg_wire_params params;
    PGresult *result;

    pg_batch_params(batch, at, &params);
    result = PQexecParams(session->conn, statement->sql, params.count, params.oids, params.values,
                          params.sizes, params.formats, 1);
    answer->result->of[at] = result;
    answer->result->count = at + 1;
    if (!result_is_good(result)) {
        answer->failed = at;
        pg_answer_refuse(answer, result, statement->name);
    }
    return answer->err.code;
}

int pg_session_run(struct pg_session *session, struct pg_batch **batch_p,
                   struct pg_answer *ret_answer, struct err *err)
{
    OWNED(pg_batch_free) struct pg_batch *batch = TAKE(*batch_p);
    struct pg_answer answer = {0};
    struct err commit_err;
    int r;

    *ret_answer = answer;
    r = pg_batch_check(batch, err);
    if (r < 0)
        return r;
    answer.result = xcalloc(1, sizeof(*answer.result));
    if (batch->call_count > 1)
        r = session_exec(session, "BEGIN", &answer);
    for (size_t i = 0; i < batch->call_count && r == 0; i++)
        r = session_call(session, batch, i, &answer);
    if (batch->call_count > 1 && r == 0) {
        r = session_exec(session, "COMMIT", &answer);
        if (r < 0 && answer.sqlstate[0] == '\0') {
            commit_err = answer.err;
            r = err_set(&answer.err, ERR_UNKNOWN, "the outcome is not known: %.200s",
                        commit_err.text);
        }
    } else if (batch->call_count > 1) {
        PQclear(PQexec(session->conn, "ROLLBACK"));
    }
    *err = answer.err;
    *ret_answer = answer;
    if (r < 0)
        pg_answer_done(ret_answer);
    return r;
}

int pg_session_script(struct pg_session *session, const char *sql, struct err *err)
{
    struct pg_answer answer = {0};
    PGresult *result = PQexec(session->conn, sql);
    const char *position;

    if (!result_is_good(result)) {
        pg_answer_refuse(&answer, result, "script");
        *err = answer.err;
        position = PQresultErrorField(result, PG_DIAG_STATEMENT_POSITION);
        if (position != NULL)
            (void)err_wrap(err, "at character %s", position);
    }
    PQclear(result);
    return answer.err.code;
}

int pg_session_query(struct pg_session *session, const char *sql, struct pg_answer *ret_answer,
                     struct err *err)
{
    struct pg_answer answer = {.result = xcalloc(1, sizeof(*answer.result))};
    /* The extended protocol takes one statement only. */
    PGresult *result = PQexecParams(session->conn, sql, 0, NULL, NULL, NULL, NULL, 0);

    answer.result->of[0] = result;
    answer.result->count = 1;
    if (!result_is_good(result)) {
        pg_answer_refuse(&answer, result, "Postgres");
        *err = answer.err;
        pg_answer_done(&answer);
    }
    *ret_answer = answer;
    return answer.err.code;
}
