/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/table.h"

#include <libsmartcols.h>
#include <stdlib.h>
#include <string.h>

#define KEY_SIZE_MAX 64
#define INDENT_MAX 8

/* Follows "a.b" through objects; NULL when a part is missing. */
static const json_t *value_at(const json_t *row, const char *key)
{
    char part[KEY_SIZE_MAX];

    while (row != NULL) {
        size_t size = strcspn(key, ".");

        if (size >= sizeof(part))
            return NULL;
        memcpy(part, key, size);
        part[size] = '\0';
        row = json_object_get(row, part);
        if (key[size] == '\0')
            return row;
        key += size + 1;
    }
    return NULL;
}

/* What a person reads: text without quotes, a dash for nothing. The caller frees. */
static char *value_text(const json_t *value)
{
    if (value == NULL || json_is_null(value))
        return xstrdup("-");
    if (json_is_string(value))
        return xstrdup(json_string_value(value));
    return json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
}

static void table_free(struct libscols_table **table_p)
{
    scols_unref_table(*table_p);
    *table_p = NULL;
}

static int table_add_row(struct libscols_table *table, const json_t *row,
                         const struct table_column *columns, size_t column_count)
{
    struct libscols_line *line = scols_table_new_line(table, NULL);

    if (line == NULL)
        return -1;
    for (size_t i = 0; i < column_count; i++) {
        OWNED(mem_free) char *text = value_text(value_at(row, columns[i].key));

        if (scols_line_set_data(line, i, text) != 0)
            return -1;
    }
    return 0;
}

int table_print(FILE *to, const json_t *array, const struct table_column *columns,
                size_t column_count, const char *empty, struct err *err)
{
    OWNED(table_free) struct libscols_table *table = scols_new_table();
    const json_t *row;
    size_t i;
    int failed = table == NULL;

    if (json_array_size(array) == 0) {
        (void)fprintf(to, "%s\n", empty);
        return 0;
    }
    for (i = 0; i < column_count && !failed; i++) {
        int flags = (columns[i].right ? SCOLS_FL_RIGHT : 0) | (columns[i].cut ? SCOLS_FL_TRUNC : 0);

        failed = scols_table_new_column(table, columns[i].title, 0, flags) == NULL;
    }
    json_array_foreach(array, i, row)
    {
        if (!failed)
            failed = table_add_row(table, row, columns, column_count) < 0;
    }
    if (!failed) {
        (void)scols_table_set_stream(table, to);
        failed = scols_print_table(table) != 0;
    }
    if (failed)
        return err_set(err, ERR_IO, "table cannot be printed");
    return 0;
}

static void print_level(FILE *to, const json_t *object, int indent)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)object, key, value)
    {
        if (json_is_object(value) && json_object_size(value) > 0 && indent < INDENT_MAX) {
            (void)fprintf(to, "%*s%s:\n", indent, "", key);
            print_level(to, value, indent + 2);
        } else {
            OWNED(mem_free) char *text = value_text(value);

            (void)fprintf(to, "%*s%-*s %s\n", indent, "", 26 - indent, key, text);
        }
    }
}

void table_print_object(FILE *to, const json_t *object)
{
    print_level(to, object, 0);
}

void table_print_json(FILE *to, const json_t *json)
{
    (void)json_dumpf(json, to, JSON_INDENT(2) | JSON_ENCODE_ANY);
    (void)fputc('\n', to);
}
