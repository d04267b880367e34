/* SPDX-License-Identifier: Apache-2.0 */

/* headrace keys: API keys. A key is shown once, when it is made. */

#include "cli/limits.h"
#include "cli/list.h"

int keys_main(int argc, char **argv);

#define KEYS_CREATE_SETTINGS                                                                       \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(name, "", "what people call this key")                                          \
    SETTING_STRING(tenant, "",                                                                     \
                   "keys of this tenant; only an operator may say another one than its own")

struct keys_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    KEYS_CREATE_SETTINGS
#include "base/settings_end.def"
};

static const struct setting keys_rows[] = {
#define SETTINGS_ROWS struct keys_settings
#include "base/settings_rows.def"
    KEYS_CREATE_SETTINGS
#include "base/settings_end.def"
};

#define KEYS_ACTION keys_rows, COUNT_OF(keys_rows), sizeof(struct keys_settings)

/* The path, with the tenant that it is about. */
static char *keys_path(const struct keys_settings *settings, const char *prefix)
{
    bool other = settings->tenant[0] != '\0';

    if (prefix == NULL)
        return other ? path_make("/v1/api_keys?tenant=%", settings->tenant)
                     : xstrdup("/v1/api_keys");
    return other ? path_make("/v1/api_keys/%?tenant=%", prefix, settings->tenant)
                 : path_make("/v1/api_keys/%", prefix);
}

static int keys_ls(const struct client *client, const void *values, char **operands,
                   int operand_count)
{
    static const struct table_column columns[] = {
        {"PREFIX", "prefix", false, false},
        {"NAME", "name", false, true},
        {"TENANT", "tenant", false, true},
        {"RUNNING", "limits.running_jobs", true, false},
        {"RATE", "limits.rate_per_second", true, false},
        {"CREATED", "created_at", false, true},
        {"LAST USED", "last_used_at", false, true},
    };
    const struct keys_settings *settings = values;
    OWNED(mem_free) char *path = keys_path(settings, NULL);
    const struct list_view view = {"keys ls", path, "keys", "no keys", columns, COUNT_OF(columns)};

    (void)operands;
    (void)operand_count;
    return list_run(client, &view, settings->json);
}

static int keys_create(const struct client *client, const void *values, char **operands,
                       int operand_count)
{
    const struct keys_settings *settings = values;
    OWNED(client_json_free) json_t *body = NULL;
    OWNED(mem_free) char *path = keys_path(settings, NULL);
    json_t *limits;
    struct err err;

    if (limits_of_operands(operands, operand_count, &limits, &err) < 0)
        return client_complain("keys create", &err);
    body = json_pack("{s:s, s:o}", "name", settings->name, "limits", limits);
    return show_run(client, "keys create", "POST", path, body, settings->json);
}

static int keys_set(const struct client *client, const void *values, char **operands,
                    int operand_count)
{
    const struct keys_settings *settings = values;
    OWNED(client_json_free) json_t *body = NULL;
    OWNED(mem_free) char *path = NULL;
    json_t *limits;
    struct err err;

    if (!verb_operands("the prefix of a key and LIMIT=NUMBER …", operand_count, 1, 100))
        return CLI_EXIT_USAGE;
    if (limits_of_operands(operands + 1, operand_count - 1, &limits, &err) < 0)
        return client_complain("keys set", &err);
    body = json_pack("{s:o}", "limits", limits);
    if (settings->name[0] != '\0')
        (void)json_object_set_new(body, "name", json_string(settings->name));
    path = keys_path(settings, operands[0]);
    return show_run(client, "keys set", "PATCH", path, body, settings->json);
}

static int keys_rm(const struct client *client, const void *values, char **operands,
                   int operand_count)
{
    const struct keys_settings *settings = values;
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("the prefix of one key", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = keys_path(settings, operands[0]);
    return show_run(client, "keys rm", "DELETE", path, NULL, settings->json);
}

int keys_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {"ls", NULL, "Lists API keys by prefix.", KEYS_ACTION, keys_ls},
        {"create", "[LIMIT=NUMBER …]", "Makes a key and shows it, this once.", KEYS_ACTION,
         keys_create},
        {"set", "PREFIX LIMIT=NUMBER …", "Sets limits of a key; LIMIT= takes one away.",
         KEYS_ACTION, keys_set},
        {"rm", "PREFIX", "Revokes a key.", KEYS_ACTION, keys_rm},
    };
    static const struct verb verb = {"keys", "API keys of this tenant.", actions,
                                     COUNT_OF(actions)};

    return verb_main(&verb, argc, argv);
}
