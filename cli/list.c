/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/list.h"

#include <stdarg.h>

#define PATH_SIZE_MAX 8192

int list_run(const struct client *client, const struct list_view *view, bool json)
{
    const struct client_call call = {.method = "GET", .path = view->path};
    OWNED(client_json_free) json_t *answer = NULL;
    struct err err;
    int status;

    if (client_exchange(client, &call, &status, &answer, &err) < 0)
        return client_complain(view->verb, &err);
    if (json) {
        table_print_json(stdout, answer);
        return CLI_EXIT_OK;
    }
    if (table_print(stdout, json_object_get(answer, view->key), view->columns, view->column_count,
                    view->empty, &err) < 0)
        return client_complain(view->verb, &err);
    return CLI_EXIT_OK;
}

int show_run(const struct client *client, const char *verb, const char *method, const char *path,
             json_t *body, bool json)
{
    const struct client_call call = {.method = method, .path = path, .body = body};
    OWNED(client_json_free) json_t *answer = NULL;
    struct err err;
    int status;

    if (client_exchange(client, &call, &status, &answer, &err) < 0)
        return client_complain(verb, &err);
    if (json)
        table_print_json(stdout, answer);
    else
        table_print_object(stdout, answer);
    return CLI_EXIT_OK;
}

char *path_make(const char *pattern, ...)
{
    OWNED(buf_done) struct buf path = BUF_WITH_LIMIT(PATH_SIZE_MAX);
    va_list args;

    va_start(args, pattern);
    for (; *pattern != '\0'; pattern++) {
        if (*pattern == '%')
            client_append_escaped(&path, va_arg(args, const char *));
        else
            buf_append_byte(&path, (uint8_t)*pattern);
    }
    va_end(args);
    return xstrdup(buf_text(&path));
}

void path_append_field(struct buf *path, const char *name, const char *value)
{
    if (*value == '\0')
        return;
    buf_printf(path, "&%s=", name);
    client_append_escaped(path, value);
}
