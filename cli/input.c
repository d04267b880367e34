/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/input.h"

#include <stdio.h>
#include <string.h>

#include "cli/client.h"

static int input_read_file(const char *path, struct buf *text, struct err *err)
{
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    char part[65536];
    size_t n;
    bool bad;

    if (file == NULL)
        return err_set_errno(err, ERR_USAGE, "input file '%s'", path);
    while ((n = fread(part, 1, sizeof(part), file)) > 0)
        buf_append(text, part, n);
    bad = ferror(file) != 0;
    if (file != stdin)
        (void)fclose(file);
    if (bad)
        return err_set(err, ERR_IO, "input file '%s' cannot be read", path);
    return buf_check(text, "input", err);
}

int input_read(const char *input, struct buf *text, struct err *err)
{
    if (*input == '\0')
        return err_set(err, ERR_USAGE, "--input is missing: JSON, @FILE, or - for standard input");
    if (strcmp(input, "-") == 0 || *input == '@')
        return input_read_file(*input == '@' ? input + 1 : input, text, err);
    buf_append_text(text, input);
    return buf_check(text, "input", err);
}

int input_load(const char *input, json_t **ret_json, struct err *err)
{
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(INPUT_SIZE_MAX);
    json_error_t where;
    json_t *json;
    int r = input_read(input, &text, err);

    if (r < 0)
        return r;
    json = json_loadb(buf_text(&text), text.size, JSON_REJECT_DUPLICATES, &where);
    if (json == NULL)
        return err_set(err, ERR_USAGE, "--input is no JSON: line %d, column %d: %s", where.line,
                       where.column, where.text);
    *ret_json = json;
    return 0;
}
