/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Rows of SQL for people (a table that fits the terminal), for programs (JSON) and for
 * spreadsheets (CSV, RFC 4180).
 *
 * Thread: the only one of a command.   Tests: tests/stack/test_sql.py
 */

#include <stdio.h>

#include "brokers/pg.h"

enum sql_format {
    SQL_PRINT_TABLE,
    SQL_PRINT_JSON, /* numbers, booleans and JSON stay what they are, the rest is text */
    SQL_PRINT_CSV,
};

/* Prints the rows of the first statement, whose values are text. */
int sql_print(FILE *to, const struct pg_answer *answer, enum sql_format format,
              struct err *err) MUST_CHECK;
