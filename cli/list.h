/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The two shapes that most user verbs have: list what a route returns, and show or do one thing.
 *
 * Thread: the only one of a command.
 */

#include "cli/table.h"
#include "cli/verb.h"

struct list_view {
    const char *verb;  /* for complaints: "models ls" */
    const char *path;  /* "/v1/models" */
    const char *key;   /* member of the answer that holds the array: "models" */
    const char *empty; /* what to say about an empty array */
    const struct table_column *columns;
    size_t column_count;
};

/* GET, then table or JSON; returns the exit code. */
int list_run(const struct client *client, const struct list_view *view, bool json);

/* One exchange whose answer is shown as lines or JSON; `body` is borrowed and may be NULL. */
int show_run(const struct client *client, const char *verb, const char *method, const char *path,
             json_t *body, bool json);

/* "/v1/models/" and the escaped segments joined with the given texts between; NULL ends. The
 * caller frees. path_make("/v1/models/%/deployments/%", "a b", "d1") escapes each operand. */
char *path_make(const char *pattern, ...);

/* Appends "&name=value", escaped; nothing when the value is empty. */
void path_append_field(struct buf *path, const char *name, const char *value);
