/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Settings of a program: one table, from which come the parser, --help and the page of settings.
 *
 * The table stands beside the program's main, one row a setting:
 *
 *     SETTING_STRING(listen, "127.0.0.1", "address that the program listens on")
 *     SETTING_INT(port, 8080, 0, 65535, "port; 0 picks a free one and prints it")
 *     SETTING_DURATION(lease, "4s", "100ms", "1h", "how long a lease lasts")
 *     SETTING_BYTES(body, "256KiB", "1KiB", "100MiB", "largest body of a request")
 *     SETTING_BOOL(strict, false, "never let a lower class pass a higher one")
 *     SETTING_URL(database, "postgresql:///app", "where the database is")
 *     SETTING_SECRET(api_key, "", "key that …")
 *
 * and twice included, it makes the struct and the rows:
 *
 *     struct gate_settings {
 *     #define SETTINGS_FIELDS
 *     #include "base/settings_rows.def"
 *     #include "producers/gate_settings.def"
 *     #include "base/settings_end.def"
 *     };
 *     static const struct setting gate_rows[] = {
 *     #define SETTINGS_ROWS struct gate_settings
 *     #include "base/settings_rows.def"
 *     #include "producers/gate_settings.def"
 *     #include "base/settings_end.def"
 *     };
 *
 * A row `port` is the field `port`, the flag --port and the variable HEADRACE_PORT; `_` becomes `-`
 * in flags. Flags win over the environment, which wins over the default. A variable may be empty:
 * then the default holds. The field of a duration is `<name>_ms`, that of a size `<name>_size`.
 * A secret is a string that --help and errors never show, and has the twin --<name>-file
 * (HEADRACE_<NAME>_FILE) whose first line is taken.
 *
 * Numbers: integers; durations `250ms 4s 5m 2h 3d` (a bare number is milliseconds); sizes
 * `512 64KiB 1MiB 2GiB` (and KB MB GB of powers of ten). Every error names setting, value, range.
 *
 * Thread: the one that starts the program.   Tests: tests/unit/test_settings.c
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

enum setting_type {
    SETTING_TYPE_STRING,
    SETTING_TYPE_SECRET,
    SETTING_TYPE_URL,
    SETTING_TYPE_INT,
    SETTING_TYPE_DURATION,
    SETTING_TYPE_BYTES,
    SETTING_TYPE_BOOL,
};

struct setting {
    const char *name;
    enum setting_type type;
    size_t offset;                /* of the field in the program's struct */
    const char *initial;          /* the default, in the form that a person would write */
    const char *lowest, *highest; /* bounds, in the same form; NULL: none */
    const char *help;             /* one sentence without its full stop */
};

struct settings_program {
    const char *command;   /* "gateway": what stands behind the binary's name */
    const char *purpose;   /* first paragraph of --help */
    const char *operands;  /* "MODEL INPUT…" for --help; NULL: none are allowed */
    unsigned wire_version; /* for --version: of what it sends to other programs; 0: nothing */
    const struct setting *rows;
    size_t row_count;
};

enum settings_outcome {
    SETTINGS_RUN,  /* the struct is filled: go on */
    SETTINGS_QUIT, /* --help, --version or --help-settings was answered on standard output */
};

/* Fills *values (the program's struct, zeroed by the caller) from defaults, environment and argv.
 * Strings are heap copies: settings_free(). Operands are what argp left over: argv + *ret_operand,
 * NULL when the caller takes none (then one is an error). ERR_USAGE names setting, value, range.
 *
 * Every program also gets: --help, --version, --help-settings (a markdown table), --check (parse,
 * say ok, quit). */
int settings_parse(const struct settings_program *program, int argc, char **argv, void *values,
                   int *ret_operand, enum settings_outcome *ret_outcome,
                   struct err *err) MUST_CHECK;
void settings_free(const struct settings_program *program, void *values);

/* Sets one value by name, as a flag would; for tests and for tables read elsewhere. */
int settings_set(const struct settings_program *program, const char *name, const char *text,
                 void *values, struct err *err) MUST_CHECK;

/* | flag | variable | type | default | range | what it does |, one row a setting. */
void settings_print_markdown(const struct settings_program *program, FILE *to);

/* The parsers by themselves; `name` is what an error calls the value. */
int settings_parse_int(const char *name, const char *text, int64_t *ret_number,
                       struct err *err) MUST_CHECK;
int settings_parse_duration(const char *name, const char *text, uint64_t *ret_ms,
                            struct err *err) MUST_CHECK;
int settings_parse_bytes(const char *name, const char *text, uint64_t *ret_size,
                         struct err *err) MUST_CHECK;
