/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the tests with a Postgres server of their own share: its address, and a session that looks
 * and meddles. A failure fails the test that asked. For tests/stack/test_*.c only.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "brokers/pg.h"

#define LOOKER static __attribute__((unused))

LOOKER const char *looker_url(void)
{
    const char *text = getenv("HEADRACE_POSTGRES");

    assert_non_null(text); /* run it by tests/lib/postgres.sh */
    return text;
}

LOOKER struct pg_session *looker_open(void)
{
    const struct pg_options options = {.url = looker_url(), .application = "looker"};
    struct pg_session *session;
    struct err err = {0};

    if (pg_session_open(&options, &session, &err) < 0)
        fail_msg("%s", err.text);
    return session;
}

LOOKER void looker_script(struct pg_session *session, const char *sql)
{
    struct err err = {0};

    if (pg_session_script(session, sql, &err) < 0)
        fail_msg("%s: %s", sql, err.text);
}

/* One row of text values; the caller's to pg_answer_done(). */
LOOKER void looker_query(struct pg_session *session, const char *sql, struct pg_answer *ret_answer)
{
    struct err err = {0};

    if (pg_session_query(session, sql, ret_answer, &err) < 0)
        fail_msg("%s: %s", sql, err.text);
    assert_int_equal(pg_row_count(ret_answer, 0), 1);
}

LOOKER bool looker_is_true(struct pg_session *session, const char *sql)
{
    struct pg_answer answer;
    bool yes;

    looker_query(session, sql, &answer);
    yes = strcmp(pg_c(&answer, 0, 0, 0), "t") == 0;
    pg_answer_done(&answer);
    return yes;
}

LOOKER void looker_expect(struct pg_session *session, const char *sql, const char *wanted)
{
    struct pg_answer answer;

    looker_query(session, sql, &answer);
    if (strcmp(pg_c(&answer, 0, 0, 0), wanted) != 0)
        fail_msg("%s: '%s', not '%s'", sql, pg_c(&answer, 0, 0, 0), wanted);
    pg_answer_done(&answer);
}

/* The same in a session that lasts no longer than the call. */
LOOKER void script_once(const char *sql)
{
    struct pg_session *session = looker_open();

    looker_script(session, sql);
    pg_session_close(&session);
}

LOOKER void expect_once(const char *sql, const char *wanted)
{
    struct pg_session *session = looker_open();

    looker_expect(session, sql, wanted);
    pg_session_close(&session);
}
