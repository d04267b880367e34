/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Rows of JSON objects as a table for people (libsmartcols: columns fit the terminal), or as the
 * JSON itself with --json.
 *
 * Thread: the only one of a command.   Tests: tests/unit/test_cli_table.c
 */

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "base/err.h"

struct table_column {
    const char *title;
    const char *key; /* "status", or "error.code" for a member of a member */
    bool right;      /* numbers stand to the right */
    bool cut;        /* may be cut when the terminal is narrow */
};

/* Prints the array; with nothing in it, `empty` instead. */
int table_print(FILE *to, const json_t *array, const struct table_column *columns,
                size_t column_count, const char *empty, struct err *err) MUST_CHECK;

/* "name: value" lines of one object, nested objects indented. */
void table_print_object(FILE *to, const json_t *object);

/* The JSON with two spaces of indentation and a newline. */
void table_print_json(FILE *to, const json_t *json);
