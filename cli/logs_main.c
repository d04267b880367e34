/* SPDX-License-Identifier: Apache-2.0 */

/* headrace logs MODEL [DEPLOYMENT]: what the workers of a deployment wrote. */

#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "cli/list.h"

int logs_main(int argc, char **argv);

#define FOLLOW_MS 500
#define PATH_SIZE_MAX 8192

#define LOGS_SETTINGS                                                                              \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_INT(limit, 500, 1, 1000, "lines, the newest ones")                                     \
    SETTING_BOOL(follow, false, "go on printing what comes")

struct logs_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    LOGS_SETTINGS
#include "base/settings_end.def"
};

static const struct setting logs_rows[] = {
#define SETTINGS_ROWS struct logs_settings
#include "base/settings_rows.def"
    LOGS_SETTINGS
#include "base/settings_end.def"
};

/* The deployment that production points at, or the newest; the caller frees. */
static char *deployment_of(const struct client *client, const char *model, struct err *err)
{
    OWNED(mem_free) char *path = path_make("/v1/models/%", model);
    const struct client_call call = {.method = "GET", .path = path};
    OWNED(client_json_free) json_t *answer = NULL;
    const char *id;
    int status;

    if (client_exchange(client, &call, &status, &answer, err) < 0)
        return NULL;
    id = json_string_value(json_object_get(answer, "production_deployment_id"));
    if (id == NULL)
        id = json_string_value(json_object_get(answer, "newest_deployment_id"));
    if (id == NULL) {
        (void)err_set(err, ERR_NOT_FOUND, "model '%s' has no deployment in production: name one",
                      model);
        return NULL;
    }
    return xstrdup(id);
}

/* "key=value" of what a record says besides; what is of no use to a reader is left out. */
static void members_print(const json_t *record)
{
    static const char *const known[] = {"ts",    "level",     "program", "version",
                                        "event", "wire",      "message", "asctime",
                                        "boot",  "levelname", "worker"};
    const char *key;
    const json_t *value;

    json_object_foreach((json_t *)record, key, value)
    {
        bool skip = false;

        for (size_t i = 0; i < COUNT_OF(known); i++)
            skip = skip || strcmp(key, known[i]) == 0;
        if (skip)
            continue;
        (void)printf(" %s=", key);
        if (json_is_string(value))
            (void)fputs(json_string_value(value), stdout);
        else
            (void)json_dumpf(value, stdout, JSON_COMPACT | JSON_ENCODE_ANY);
    }
}

/* A line that is a record of a worker ("event") or of a Python model ("message") in words. */
static void message_print(const char *message)
{
    OWNED(client_json_free) json_t *record = *message == '{' ? json_loads(message, 0, NULL) : NULL;
    const char *level = json_string_value(json_object_get(record, "level"));
    const char *what = json_string_value(json_object_get(record, "event"));

    if (what == NULL) {
        level = json_string_value(json_object_get(record, "levelname"));
        what = json_string_value(json_object_get(record, "message"));
    }
    if (level == NULL || what == NULL) {
        (void)fputs(message, stdout);
        return;
    }
    (void)printf("%s: %s", level, what);
    members_print(record);
}

static void line_print(const json_t *line, bool json)
{
    const char *when = json_string_value(json_object_get(line, "timestamp"));
    const char *replica = json_string_value(json_object_get(line, "replica"));
    const char *message = json_string_value(json_object_get(line, "message"));

    if (json) {
        (void)json_dumpf(line, stdout, JSON_COMPACT);
        (void)fputc('\n', stdout);
        return;
    }
    (void)printf("%s%s%s%s", when != NULL ? when : "", when != NULL ? " " : "",
                 replica != NULL ? replica : "", replica != NULL ? " " : "");
    message_print(message != NULL ? message : "");
    (void)fputc('\n', stdout);
}

/* Prints one page; *cursor becomes where the next one begins. */
static int page_print(const struct client *client, const struct logs_settings *settings,
                      const char *model, const char *deployment, char **cursor, struct err *err)
{
    OWNED(buf_done) struct buf path = BUF_WITH_LIMIT(PATH_SIZE_MAX);
    OWNED(mem_free) char *route = path_make("/v1/models/%/deployments/%/logs", model, deployment);
    OWNED(client_json_free) json_t *answer = NULL;
    struct client_call call = {.method = "GET"};
    const char *next;
    json_t *line;
    size_t i;
    int status, r;

    buf_printf(&path, "%s?limit=%lld", route, (long long)settings->limit);
    if (*cursor != NULL) {
        buf_append_text(&path, "&cursor=");
        client_append_escaped(&path, *cursor);
    }
    call.path = buf_text(&path);
    r = client_exchange(client, &call, &status, &answer, err);
    if (r < 0)
        return r;
    json_array_foreach(json_object_get(answer, "logs"), i, line) line_print(line, settings->json);
    (void)fflush(stdout);
    next = json_string_value(json_object_get(answer, "next_cursor"));
    if (next != NULL) {
        mem_free(cursor);
        *cursor = xstrdup(next);
    }
    return 0;
}

static int logs_run(const struct client *client, const void *values, char **operands,
                    int operand_count)
{
    const struct logs_settings *settings = values;
    OWNED(mem_free) char *deployment = NULL;
    OWNED(mem_free) char *cursor = NULL;
    struct err err;

    if (!verb_operands("a model, and perhaps a deployment,", operand_count, 1, 2))
        return CLI_EXIT_USAGE;
    deployment = operand_count == 2 ? xstrdup(operands[1])
                                    : deployment_of(client, operands[0], &err);
    if (deployment == NULL)
        return client_complain("logs", &err);
    for (;;) {
        if (page_print(client, settings, operands[0], deployment, &cursor, &err) < 0)
            return client_complain("logs", &err);
        if (!settings->follow)
            return CLI_EXIT_OK;
        (void)poll(NULL, 0, FOLLOW_MS);
    }
}

int logs_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {NULL, "MODEL [DEPLOYMENT]", "Shows what the workers of a deployment wrote.", logs_rows,
         COUNT_OF(logs_rows), sizeof(struct logs_settings), logs_run},
    };
    static const struct verb verb = {"logs", "", actions, COUNT_OF(actions)};

    return verb_main(&verb, argc, argv);
}
