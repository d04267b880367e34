/* SPDX-License-Identifier: Apache-2.0 */

/* headrace models, headrace deployments: what was pushed, and what of it runs. */

#include "cli/list.h"

int models_main(int argc, char **argv);
int deployments_main(int argc, char **argv);

struct plain_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    VERB_COMMON_SETTINGS
#include "base/settings_end.def"
};

static const struct setting plain_rows[] = {
#define SETTINGS_ROWS struct plain_settings
#include "base/settings_rows.def"
    VERB_COMMON_SETTINGS
#include "base/settings_end.def"
};

#define PLAIN_ACTION plain_rows, COUNT_OF(plain_rows), sizeof(struct plain_settings)

static int models_ls(const struct client *client, const void *values, char **operands,
                     int operand_count)
{
    static const struct table_column columns[] = {
        {"ID", "id", false, false},
        {"NAME", "name", false, true},
        {"PRODUCTION", "production_deployment_id", false, false},
        {"DEPLOYMENTS", "deployments_count", true, false},
        {"CREATED", "created_at", false, true},
    };
    static const struct list_view view = {
        "models ls", "/v1/models",     "models", "no models: headrace push DIR makes the first one",
        columns,     COUNT_OF(columns)};
    const struct plain_settings *settings = values;

    (void)operands;
    (void)operand_count;
    return list_run(client, &view, settings->json);
}

static int models_show(const struct client *client, const void *values, char **operands,
                       int operand_count)
{
    const struct plain_settings *settings = values;
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("one model", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = path_make("/v1/models/%", operands[0]);
    return show_run(client, "models show", "GET", path, NULL, settings->json);
}

static int models_rm(const struct client *client, const void *values, char **operands,
                     int operand_count)
{
    const struct plain_settings *settings = values;
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("one model", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = path_make("/v1/models/%", operands[0]);
    return show_run(client, "models rm", "DELETE", path, NULL, settings->json);
}

int models_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {"ls", NULL, "Lists the models of this tenant.", PLAIN_ACTION, models_ls},
        {"show", "MODEL", "Shows one model, by name or id.", PLAIN_ACTION, models_show},
        {"rm", "MODEL", "Deletes a model and its deployments.", PLAIN_ACTION, models_rm},
    };
    static const struct verb verb = {"models", "Models by name or id.", actions, COUNT_OF(actions)};

    return verb_main(&verb, argc, argv);
}

static int deployments_ls(const struct client *client, const void *values, char **operands,
                          int operand_count)
{
    static const struct table_column columns[] = {
        {"ID", "id", false, false},
        {"NAME", "name", false, true},
        {"STATUS", "status", false, false},
        {"ENVIRONMENT", "environment", false, false},
        {"ENGINE", "engine", false, false},
        {"REPLICAS", "active_replica_count", true, false},
        {"CREATED", "created_at", false, true},
    };
    const struct plain_settings *settings = values;
    OWNED(mem_free) char *path = NULL;
    struct list_view view = {"deployments ls", NULL,
                             "deployments",    "this model has no deployments",
                             columns,          COUNT_OF(columns)};

    if (!verb_operands("one model", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = path_make("/v1/models/%/deployments", operands[0]);
    view.path = path;
    return list_run(client, &view, settings->json);
}

static int deployment_do(const struct client *client, const void *values, char **operands,
                         int operand_count, const char *verb, const char *method)
{
    const struct plain_settings *settings = values;
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("a model and a deployment", operand_count, 2, 2))
        return CLI_EXIT_USAGE;
    path = path_make("/v1/models/%/deployments/%", operands[0], operands[1]);
    return show_run(client, verb, method, path, NULL, settings->json);
}

static int deployments_show(const struct client *client, const void *values, char **operands,
                            int operand_count)
{
    return deployment_do(client, values, operands, operand_count, "deployments show", "GET");
}

static int deployments_rm(const struct client *client, const void *values, char **operands,
                          int operand_count)
{
    return deployment_do(client, values, operands, operand_count, "deployments rm", "DELETE");
}

#define PROMOTE_SETTINGS                                                                           \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(environment, "production", "environment to point at the deployment")

struct promote_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    PROMOTE_SETTINGS
#include "base/settings_end.def"
};

static const struct setting promote_rows[] = {
#define SETTINGS_ROWS struct promote_settings
#include "base/settings_rows.def"
    PROMOTE_SETTINGS
#include "base/settings_end.def"
};

static int deployments_promote(const struct client *client, const void *values, char **operands,
                               int operand_count)
{
    const struct promote_settings *settings = values;
    OWNED(client_json_free) json_t *body = NULL;
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("a model and a deployment", operand_count, 2, 2))
        return CLI_EXIT_USAGE;
    path = path_make("/v1/models/%/environments/%/promote", operands[0], settings->environment);
    body = json_pack("{s:s}", "deployment_id", operands[1]);
    return show_run(client, "deployments promote", "POST", path, body, settings->json);
}

int deployments_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {"ls", "MODEL", "Lists the deployments of a model.", PLAIN_ACTION, deployments_ls},
        {"show", "MODEL DEPLOYMENT", "Shows one deployment.", PLAIN_ACTION, deployments_show},
        {"promote", "MODEL DEPLOYMENT", "Points an environment at a deployment.", promote_rows,
         COUNT_OF(promote_rows), sizeof(struct promote_settings), deployments_promote},
        {"rm", "MODEL DEPLOYMENT", "Stops and deletes a deployment.", PLAIN_ACTION, deployments_rm},
    };
    static const struct verb verb = {"deployments", "Immutable versions of a model.", actions,
                                     COUNT_OF(actions)};

    return verb_main(&verb, argc, argv);
}
