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
    (void)printf("%s%s%s%s%s\n", when != NULL ? when : "", when != NULL ? " " : "",
                 replica != NULL ? replica : "", replica != NULL ? " " : "",
                 message != NULL ? message : "");
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
