/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/sql_print.h"

#include <jansson.h>
#include <libsmartcols.h>
#include <string.h>
#include <unistd.h>

/* ---- CSV ---- */

static void csv_field(FILE *to, const char *text)
{
    if (strpbrk(text, ",\"\r\n") == NULL) {
        (void)fputs(text, to);
        return;
    }
    (void)fputc('"', to);
    for (; *text != '\0'; text++) {
        if (*text == '"')
            (void)fputc('"', to);
        (void)fputc(*text, to);
    }
    (void)fputc('"', to);
}

static void csv_print(FILE *to, const struct pg_answer *answer)
{
    size_t columns = pg_column_count(answer, 0);

    for (size_t c = 0; c < columns; c++) {
        (void)fputs(c == 0 ? "" : ",", to);
        csv_field(to, pg_column_name(answer, 0, c));
    }
    (void)fputs("\r\n", to);
    for (size_t row = 0; row < pg_row_count(answer, 0); row++) {
        for (size_t c = 0; c < columns; c++) {
            (void)fputs(c == 0 ? "" : ",", to);
            csv_field(to, pg_c(answer, 0, row, c));
        }
        (void)fputs("\r\n", to);
    }
}

/* ---- JSON ---- */

static json_t *value_json(const struct pg_answer *answer, size_t row, size_t column)
{
    const char *text = pg_c(answer, 0, row, column);
    json_t *value = NULL;

    if (pg_is_null(answer, 0, row, column))
        return json_null();
    switch (pg_column_kind(answer, 0, column)) {
    case PG_KIND_BOOL:
        return json_boolean(text[0] == 't');
    case PG_KIND_NUMBER:
    case PG_KIND_JSON:
        /* What JSON cannot say (NaN, a number over 64 bits) stays text. */
        value = json_loads(text, JSON_DECODE_ANY, NULL);
        break;
    case PG_KIND_TEXT:
        break;
    }
    return value != NULL ? value : json_string(text);
}

/* Row by row, so that a large answer is not held twice. */
static int json_print(FILE *to, const struct pg_answer *answer, struct err *err)
{
    size_t rows = pg_row_count(answer, 0), columns = pg_column_count(answer, 0);

    (void)fputs("[", to);
    for (size_t row = 0; row < rows; row++) {
        json_t *object = json_object();

        for (size_t c = 0; c < columns; c++)
            (void)json_object_set_new(object, pg_column_name(answer, 0, c),
                                      value_json(answer, row, c));
        (void)fputs(row == 0 ? "\n  " : ",\n  ", to);
        if (json_dumpf(object, to, JSON_COMPACT) != 0) {
            json_decref(object);
            return err_set(err, ERR_IO, "writing JSON failed at row %zu", row + 1);
        }
        json_decref(object);
    }
    (void)fputs(rows == 0 ? "]\n" : "\n]\n", to);
    return 0;
}

/* ---- table ---- */

static void table_free(struct libscols_table **table_p)
{
    scols_unref_table(*table_p);
    *table_p = NULL;
}

static int table_print_rows(FILE *to, const struct pg_answer *answer, struct err *err)
{
    OWNED(table_free) struct libscols_table *table = scols_new_table();
    size_t rows = pg_row_count(answer, 0), columns = pg_column_count(answer, 0);

    if (table == NULL)
        return err_set(err, ERR_MEMORY, "no memory for a table of %zu rows", rows);
    (void)scols_table_set_stream(table, to);
    for (size_t c = 0; c < columns; c++) {
        /* The last column of text is cut or wrapped; ids and numbers stay whole. */
        int flags = pg_column_kind(answer, 0, c) == PG_KIND_NUMBER ? SCOLS_FL_RIGHT
                    : c + 1 == columns && c > 0                    ? SCOLS_FL_WRAP
                                                                   : 0;

        if (scols_table_new_column(table, pg_column_name(answer, 0, c), 0, flags) == NULL)
            return err_set(err, ERR_MEMORY, "no memory for a table of %zu columns", columns);
    }
    for (size_t row = 0; row < rows; row++) {
        struct libscols_line *line = scols_table_new_line(table, NULL);

        for (size_t c = 0; c < columns; c++) {
            if (line == NULL || scols_line_set_data(line, c, pg_c(answer, 0, row, c)) != 0)
                return err_set(err, ERR_MEMORY, "no memory for a table of %zu rows", rows);
        }
    }
    if (scols_print_table(table) != 0)
        return err_set(err, ERR_IO, "printing the table failed");
    return 0;
}

int sql_print(FILE *to, const struct pg_answer *answer, enum sql_format format, struct err *err)
{
    size_t rows = pg_row_count(answer, 0);
    int r = 0;

    if (format == SQL_PRINT_JSON)
        return json_print(to, answer, err);
    if (format == SQL_PRINT_CSV) {
        csv_print(to, answer);
        return 0;
    }
    if (rows > 0)
        r = table_print_rows(to, answer, err);
    /* The count is for people only: in a pipe the rows stand alone. */
    if (r == 0 && (rows == 0 || isatty(fileno(to))))
        (void)fprintf(to == stdout ? stderr : to, "(%zu row%s)\n", rows, rows == 1 ? "" : "s");
    return r;
}
