/* SPDX-License-Identifier: Apache-2.0 */

/* headrace tenants: who pays, and what each may have waiting, running and coming. */

#include <stdio.h>
#include <string.h>

#include "cli/limits.h"
#include "cli/list.h"

int tenants_main(int argc, char **argv);

#define TENANTS_SETTINGS                                                                           \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(name, "", "create, set: what people call the tenant")

struct tenants_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    TENANTS_SETTINGS
#include "base/settings_end.def"
};

static const struct setting tenants_rows[] = {
#define SETTINGS_ROWS struct tenants_settings
#include "base/settings_rows.def"
    TENANTS_SETTINGS
#include "base/settings_end.def"
};

#define TENANTS_ACTION tenants_rows, COUNT_OF(tenants_rows), sizeof(struct tenants_settings)

static int tenants_ls(const struct client *client, const void *values, char **operands,
                      int operand_count)
{
    static const struct table_column columns[] = {
        {"ID", "id", false, false},
        {"NAME", "name", false, true},
        {"WAITING", "limits.waiting_jobs", true, false},
        {"RUNNING", "limits.running_jobs", true, false},
        {"RATE", "limits.rate_per_second", true, false},
        {"WEIGHT", "limits.weight", true, false},
        {"CREATED", "created_at", false, true},
    };
    static const struct list_view view = {"tenants ls", "/v1/tenants", "tenants",
                                          "no tenants", columns,       COUNT_OF(columns)};
    const struct tenants_settings *settings = values;

    (void)operands;
    (void)operand_count;
    return list_run(client, &view, settings->json);
}

/* A body of name and limits, as both create and set take it. */
static int tenant_body(const struct tenants_settings *settings, char **operands, int operand_count,
                       json_t **ret_body, struct err *err)
{
    json_t *limits, *body;
    int r = limits_of_operands(operands, operand_count, &limits, err);

    if (r < 0)
        return r;
    body = json_pack("{s:o}", "limits", limits);
    if (settings->name[0] != '\0')
        (void)json_object_set_new(body, "name", json_string(settings->name));
    *ret_body = body;
    return 0;
}

static int tenants_create(const struct client *client, const void *values, char **operands,
                          int operand_count)
{
    const struct tenants_settings *settings = values;
    OWNED(client_json_free) json_t *body = NULL;
    struct err err;

    if (!verb_operands("an id, perhaps LIMIT=NUMBER …", operand_count, 1, 100))
        return CLI_EXIT_USAGE;
    if (tenant_body(settings, operands + 1, operand_count - 1, &body, &err) < 0)
        return client_complain("tenants create", &err);
    (void)json_object_set_new(body, "id", json_string(operands[0]));
    return show_run(client, "tenants create", "POST", "/v1/tenants", body, settings->json);
}

static int tenants_show(const struct client *client, const void *values, char **operands,
                        int operand_count)
{
    const struct tenants_settings *settings = values;
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("one tenant", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = path_make("/v1/tenants/%", operands[0]);
    return show_run(client, "tenants show", "GET", path, NULL, settings->json);
}

static int tenants_set(const struct client *client, const void *values, char **operands,
                       int operand_count)
{
    const struct tenants_settings *settings = values;
    OWNED(client_json_free) json_t *body = NULL;
    OWNED(mem_free) char *path = NULL;
    struct err err;

    if (!verb_operands("a tenant and LIMIT=NUMBER …", operand_count, 1, 100))
        return CLI_EXIT_USAGE;
    if (operand_count == 1 && settings->name[0] == '\0') {
        (void)fprintf(stderr,
                      "headrace tenants set: nothing to set: LIMIT=NUMBER …, LIMIT= to take "
                      "one away, or --name\n");
        return CLI_EXIT_USAGE;
    }
    if (tenant_body(settings, operands + 1, operand_count - 1, &body, &err) < 0)
        return client_complain("tenants set", &err);
    path = path_make("/v1/tenants/%", operands[0]);
    return show_run(client, "tenants set", "PATCH", path, body, settings->json);
}

static int tenants_rm(const struct client *client, const void *values, char **operands,
                      int operand_count)
{
    const struct tenants_settings *settings = values;
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("one tenant", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = path_make("/v1/tenants/%", operands[0]);
    return show_run(client, "tenants rm", "DELETE", path, NULL, settings->json);
}

int tenants_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {"ls", NULL, "Lists tenants and their limits; empty: as the gateway's settings say.",
         TENANTS_ACTION, tenants_ls},
        {"create", "TENANT [LIMIT=NUMBER …]",
         "Makes a tenant; headrace keys create --tenant makes it a key.", TENANTS_ACTION,
         tenants_create},
        {"show", "TENANT", "Shows a tenant: its limits, and what it has waiting and running.",
         TENANTS_ACTION, tenants_show},
        {"set", "TENANT LIMIT=NUMBER …",
         "Sets limits (docs/limits.md); LIMIT= takes one away. In force at once.", TENANTS_ACTION,
         tenants_set},
        {"rm", "TENANT", "Deletes a tenant without models and revokes its keys.", TENANTS_ACTION,
         tenants_rm},
    };
    static const struct verb verb = {"tenants", "Tenants and their limits.", actions,
                                     COUNT_OF(actions)};

    return verb_main(&verb, argc, argv);
}
