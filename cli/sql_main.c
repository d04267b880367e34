/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace sql: one statement over the views of headrace_v1, as a role that can only read.
 *
 *     headrace sql "SELECT status, count(*) FROM jobs GROUP BY status"
 *     headrace sql                      the views, and what they are for
 *     headrace sql --views jobs         the columns of one
 *
 * The session switches to the role headrace_reader and runs the statement in a READ ONLY
 * transaction with a timeout, so that neither a typing error nor a statement from elsewhere can
 * change the ledger. The views are in the search path: `jobs` is headrace_v1.jobs. A login that is
 * bound to a tenant stays what it is, and finds that tenant's views, headrace_tenant_v1.
 *
 * Exit status: 0 done, 1 wrong use, 2 no database, or it has no views yet, 3 the statement failed.
 */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/settings.h"
#include "brokers/pg.h"
#include "cli/client.h"
#include "cli/sql_print.h"

int sql_main(int argc, char **argv);

/* clang-format off */
struct sql_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
#include "cli/sql_settings.def"
#include "base/settings_end.def"
};

static const struct setting rows[] = {
#define SETTINGS_ROWS struct sql_settings
#include "base/settings_rows.def"
#include "cli/sql_settings.def"
#include "base/settings_end.def"
};
/* clang-format on */

static const struct settings_program program = {
    .command = "sql",
    .purpose = "Asks the ledger in SQL, as a role that can only read. Without a statement: lists "
               "the views.",
    .operands = "[STATEMENT]",
    .rows = rows,
    .row_count = COUNT_OF(rows),
};

static const char *const views_sql =
    "SELECT c.relname AS view, obj_description(c.oid, 'pg_class') AS \"what it shows\" "
    "FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'v' "
    "ORDER BY c.relname";

PG_STATEMENT(columns_of_view,
             "SELECT a.attname::text AS column, format_type(a.atttypid, a.atttypmod) AS type, "
             "col_description(a.attrelid, a.attnum) AS \"what it says\" FROM pg_attribute a "
             "JOIN pg_class c ON c.oid = a.attrelid "
             "WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = $1 "
             "AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum");

/* A login that sees one tenant's rows, or one that may switch to the role that sees all. */
static const char *const is_tenant_sql =
    "SELECT NOT pg_has_role(r.oid, 'MEMBER') AND EXISTS (SELECT FROM pg_roles t WHERE "
    "t.rolname = 'headrace_tenant' AND pg_has_role(t.oid, 'MEMBER')) "
    "FROM pg_roles r WHERE r.rolname = 'headrace_reader'";

static int session_restrict(struct pg_session *session, struct err *err)
{
    struct pg_answer answer;
    bool is_tenant;
    int r = pg_session_query(session, is_tenant_sql, &answer, err);

    if (r < 0)
        return r;
    is_tenant = pg_row_count(&answer, 0) == 1 && strcmp(pg_c(&answer, 0, 0, 0), "t") == 0;
    pg_answer_done(&answer);
    if (is_tenant)
        r = pg_session_script(session, "SET search_path = headrace_tenant_v1, pg_catalog", err);
    else
        r = pg_session_script(
            session, "SET search_path = headrace_v1, pg_catalog; SET ROLE headrace_reader", err);
    if (r < 0)
        return err_wrap(err, "no role headrace_reader (headrace migrate makes it)");
    return pg_session_script(session, "BEGIN READ ONLY", err);
}

/* "  SELECT x FRM jobs" with a mark under the character where it went wrong. */
static void complain_at(const char *sql, size_t position)
{
    size_t begin = 0, column = 0, index = 1;
    const char *end;

    for (size_t i = 0; sql[i] != '\0' && index < position; i++) {
        if (((unsigned char)sql[i] & 0xc0) == 0x80)
            continue; /* positions count characters, not bytes */
        index++;
        column++;
        if (sql[i] == '\n') {
            begin = i + 1;
            column = 0;
        }
    }
    end = strchr(sql + begin, '\n');
    (void)fprintf(stderr, "  %.*s\n  %*s^\n",
                  end == NULL ? (int)strlen(sql + begin) : (int)(end - sql - (long)begin),
                  sql + begin, (int)column, "");
}

static int show_columns(struct pg_session *session, const char *view,
                        const struct sql_settings *settings, struct err *err)
{
    struct pg_batch *batch = pg_batch_new();
    struct pg_answer answer;
    int r;

    pg_add(batch, &columns_of_view);
    pg_bind_c(batch, view);
    r = pg_session_run(session, &batch, &answer, err);
    if (r < 0)
        return r;
    if (pg_row_count(&answer, 0) == 0)
        r = err_set(err, ERR_NOT_FOUND, "there is no view '%s'; headrace sql lists them", view);
    else
        r = sql_print(stdout, &answer, settings->json ? SQL_PRINT_JSON : SQL_PRINT_TABLE, err);
    pg_answer_done(&answer);
    return r;
}

static int show_rows(struct pg_session *session, const char *sql,
                     const struct sql_settings *settings, struct err *err)
{
    enum sql_format format = settings->json  ? SQL_PRINT_JSON
                             : settings->csv ? SQL_PRINT_CSV
                                             : SQL_PRINT_TABLE;
    struct pg_answer answer;
    int r = pg_session_query(session, sql, &answer, err);

    if (r < 0) {
        if (answer.position > 0)
            complain_at(sql, answer.position);
        return r;
    }
    r = sql_print(stdout, &answer, format, err);
    pg_answer_done(&answer);
    return r;
}

static int ask(const char *url, const char *operand, const struct sql_settings *settings,
               struct err *err)
{
    const struct pg_options options = {.url = url,
                                       .application = "headrace sql",
                                       .connect_timeout_ms = 5000,
                                       .statement_timeout_ms = (uint32_t)settings->timeout_ms};
    struct pg_session *session;
    int r = pg_session_open(&options, &session, err);

    if (r < 0)
        return r;
    r = session_restrict(session, err);
    if (r < 0)
        r = err->code = ERR_UNAVAILABLE;
    else if (operand == NULL)
        r = show_rows(session, views_sql, settings, err);
    else if (settings->views)
        r = show_columns(session, operand, settings, err);
    else
        r = show_rows(session, operand, settings, err);
    pg_session_close(&session);
    return r;
}

/* The address of --postgres or HEADRACE_POSTGRES, or of the client file. The caller frees. */
static int find_postgres(const struct sql_settings *settings, char **ret_url, struct err *err)
{
    struct client client;
    int r;

    if (settings->postgres[0] != '\0') {
        *ret_url = xstrdup(settings->postgres);
        return 0;
    }
    r = client_open(NULL, NULL, settings->client[0] == '\0' ? NULL : settings->client, &client,
                    err);
    if (r < 0)
        return r;
    *ret_url = TAKE(client.postgres);
    client_done(&client);
    if ((*ret_url)[0] == '\0')
        return err_set(err, ERR_USAGE,
                       "which database? the client file names none; set "
                       "--postgres or HEADRACE_POSTGRES");
    return 0;
}

static int run(struct sql_settings *settings, char **operands, int operand_count, struct err *err)
{
    OWNED(mem_free) char *url = NULL;
    int r;

    if (operand_count > 1)
        return err_set(err, ERR_USAGE, "one statement, in quotes; %d operands were given",
                       operand_count);
    if (settings->json && settings->csv)
        return err_set(err, ERR_USAGE, "--json or --csv, not both");
    r = find_postgres(settings, &url, err);
    if (r < 0)
        return r;
    return ask(url, operand_count == 1 ? operands[0] : NULL, settings, err);
}

int sql_main(int argc, char **argv)
{
    struct sql_settings settings = {0};
    enum settings_outcome outcome;
    struct err err = {0};
    int operand = argc, r;

    r = settings_parse(&program, argc, argv, &settings, &operand, &outcome, &err);
    if (r == 0 && outcome == SETTINGS_RUN)
        r = run(&settings, argv + operand, argc - operand, &err);
    settings_free(&program, &settings);
    if (r == 0)
        return 0;
    (void)fprintf(stderr, "headrace sql: %s\n", err.text);
    return r == ERR_USAGE ? 1 : r == ERR_UNAVAILABLE ? 2 : 3;
}
