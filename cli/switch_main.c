/* SPDX-License-Identifier: Apache-2.0 */

/* headrace switch: kill switches. While one is on, submits that it matches are refused, and waiting
 * jobs are held; --cancel cancels them instead. */

#include <stdio.h>
#include <string.h>

#include "cli/jobs_bulk.h"
#include "cli/list.h"

int switch_main(int argc, char **argv);

#define SWITCH_SETTINGS                                                                            \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(model, "", "on, off: this model")                                               \
    SETTING_STRING(tag, "", "on, off: jobs with this tag")                                         \
    SETTING_BOOL(tenant, false, "on, off: everything of this tenant")                              \
    SETTING_STRING(reason, "", "on: why; clients are told")                                        \
    SETTING_BOOL(cancel, false, "on: cancel what waits or runs, instead of holding what waits")    \
    SETTING_BOOL(yes, false, "on --cancel: do not ask")

struct switch_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    SWITCH_SETTINGS
#include "base/settings_end.def"
};

static const struct setting switch_rows[] = {
#define SETTINGS_ROWS struct switch_settings
#include "base/settings_rows.def"
    SWITCH_SETTINGS
#include "base/settings_end.def"
};

#define SWITCH_ACTION switch_rows, COUNT_OF(switch_rows), sizeof(struct switch_settings)

static int switch_ls(const struct client *client, const void *values, char **operands,
                     int operand_count)
{
    static const struct table_column columns[] = {
        {"ID", "id", false, false},           {"KIND", "kind", false, false},
        {"VALUE", "value", false, true},      {"MODEL", "model_name", false, true},
        {"REASON", "reason", false, true},    {"BY", "created_by", false, true},
        {"SINCE", "created_at", false, true},
    };
    static const struct list_view view = {"switch ls",       "/v1/switches", "switches",
                                          "no switch is on", columns,        COUNT_OF(columns)};

    (void)operands;
    (void)operand_count;
    return list_run(client, &view, ((const struct switch_settings *)values)->json);
}

static int check_target(const struct switch_settings *settings, struct err *err)
{
    if ((*settings->model != '\0') + (*settings->tag != '\0') + settings->tenant != 1)
        return err_set(err, ERR_USAGE, "what? one of --model, --tag and --tenant");
    return 0;
}

/* Cancels what the switch matches, by the way of jobs cancel. */
static int cancel_matching(const struct client *client, const struct switch_settings *settings)
{
    OWNED(mem_free) char *where = NULL;
    struct bulk_settings bulk = {.json = settings->json, .yes = settings->yes, .wait_ms = 60000};
    int code;

    where = settings->tenant         ? xstrdup("")
            : *settings->tag != '\0' ? xasprintf("tag=%s", settings->tag)
                                     : xasprintf("model=%s", settings->model);
    bulk.where = where;
    bulk.all = settings->tenant;
    code = bulk_run(client, "cancel", &bulk, NULL, 0);
    return code == CLI_EXIT_NOTHING ? CLI_EXIT_OK : code;
}

static int switch_on(const struct client *client, const void *values, char **operands,
                     int operand_count)
{
    const struct switch_settings *settings = values;
    OWNED(client_json_free) json_t *body = json_object();
    struct err err;
    int code;

    (void)operands;
    (void)operand_count;
    if (check_target(settings, &err) < 0)
        return client_complain("switch on", &err);
    if (*settings->model != '\0')
        (void)json_object_set_new(body, "model", json_string(settings->model));
    if (*settings->tag != '\0')
        (void)json_object_set_new(body, "tag", json_string(settings->tag));
    if (settings->tenant)
        (void)json_object_set_new(body, "tenant", json_true());
    if (*settings->reason != '\0')
        (void)json_object_set_new(body, "reason", json_string(settings->reason));
    code = show_run(client, "switch on", "POST", "/v1/switches", body, settings->json);
    if (code == CLI_EXIT_OK && settings->cancel)
        code = cancel_matching(client, settings);
    return code;
}

static bool row_matches(const json_t *row, const struct switch_settings *settings)
{
    const char *kind = json_string_value(json_object_get(row, "kind"));
    const char *value = json_string_value(json_object_get(row, "value"));
    const char *name = json_string_value(json_object_get(row, "model_name"));

    if (kind == NULL || value == NULL)
        return false;
    if (settings->tenant)
        return strcmp(kind, "tenant") == 0;
    if (*settings->tag != '\0')
        return strcmp(kind, "tag") == 0 && strcmp(value, settings->tag) == 0;
    return strcmp(kind, "model") == 0 && (strcmp(value, settings->model) == 0 ||
                                          (name != NULL && strcmp(name, settings->model) == 0));
}

/* The id of the switch that --model, --tag or --tenant names. */
static int find_switch(const struct client *client, const struct switch_settings *settings,
                       char **ret_id, struct err *err)
{
    const struct client_call call = {.method = "GET", .path = "/v1/switches"};
    OWNED(client_json_free) json_t *answer = NULL;
    json_t *row;
    size_t i;
    int status, r = check_target(settings, err);

    if (r == 0)
        r = client_exchange(client, &call, &status, &answer, err);
    if (r < 0)
        return r;
    json_array_foreach(json_object_get(answer, "switches"), i, row)
    {
        if (row_matches(row, settings)) {
            *ret_id = xstrdup(json_string_value(json_object_get(row, "id")));
            return 0;
        }
    }
    return err_set(err, ERR_NOT_FOUND, "no such switch is on; headrace switch ls lists them");
}

static int switch_off(const struct client *client, const void *values, char **operands,
                      int operand_count)
{
    const struct switch_settings *settings = values;
    OWNED(mem_free) char *id = NULL;
    OWNED(mem_free) char *path = NULL;
    struct err err;

    if (operand_count > 1)
        return verb_operands("one id of a switch", operand_count, 0, 1) ? CLI_EXIT_OK
                                                                        : CLI_EXIT_USAGE;
    if (operand_count == 1)
        id = xstrdup(operands[0]);
    else if (find_switch(client, settings, &id, &err) < 0)
        return client_complain("switch off", &err);
    path = path_make("/v1/switches/%", id);
    return show_run(client, "switch off", "DELETE", path, NULL, settings->json);
}

int switch_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {"ls", NULL, "Lists the switches that are on.", SWITCH_ACTION, switch_ls},
        {"on", NULL, "Refuses submits of a model, a tag or the tenant, and holds what waits.",
         SWITCH_ACTION, switch_on},
        {"off", "[ID]", "Switches it off again: what was held goes on.", SWITCH_ACTION, switch_off},
    };
    static const struct verb verb = {"switch", "Kill switches.", actions, COUNT_OF(actions)};

    return verb_main(&verb, argc, argv);
}
