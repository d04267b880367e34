/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace push DIR: makes a deployment of a model directory and, unless told not to wait, stays
 * until it is ready or says why it is not.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/push_archive.h"
#include "cli/push_checkpoints.h"
#include "cli/push_folder.h"
#include "cli/push_model.h"
#include "cli/verb.h"
#include "schema/truss_config.h"

int push_main(int argc, char **argv);

#define PUSH_SETTINGS                                                                              \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(name, "", "name of the model; empty: config.yaml's, else the directory's")      \
    SETTING_STRING(deployment_name, "", "name of this deployment; empty: deployment-N")            \
    SETTING_STRING(environment, "",                                                                \
                   "environment to point at it once it is ready; empty: production if it is the "  \
                   "first of its model, else none")                                                \
    SETTING_STRING(device, "",                                                                     \
                   "where it runs: cpu, cuda or cuda:N; empty: what headrace.json says")           \
    SETTING_BOOL(no_wait, false, "do not wait until the deployment is ready")                      \
    SETTING_DURATION(timeout, "10m", "1s", "24h", "how long to wait until it is ready")

struct push_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    PUSH_SETTINGS
#include "base/settings_end.def"
};

static const struct setting push_rows[] = {
#define SETTINGS_ROWS struct push_settings
#include "base/settings_rows.def"
    PUSH_SETTINGS
#include "base/settings_end.def"
};

/* The last part of the directory's path, as a model's name. */
static char *name_of_folder(const char *folder)
{
    OWNED(mem_free) char *real = realpath(folder, NULL);
    const char *slash = real != NULL ? strrchr(real, '/') : NULL;

    return xstrdup(slash != NULL && slash[1] != '\0' ? slash + 1 : "model");
}

/* config.yaml's model_name, where it can be a name here; NULL: it has none. The caller frees. */
static char *name_of_config(const char *name)
{
    static const char good[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._";

    if (name == NULL)
        return NULL;
    if (strlen(name) <= 64 && strspn(name, good) == strlen(name))
        return xstrdup(name);
    (void)fprintf(stderr,
                  "warning: model_name: '%.80s' is no name here (a-z A-Z 0-9 . _ -); the "
                  "directory's name is used, or --name\n",
                  name);
    return NULL;
}

/* Decides as the gateway will, before anything is sent, and says what is to be known. Fills in the
 * model's name when it is NULL. */
static int check_folder(const char *folder, const char *device, char **name, struct err *err)
{
    OWNED(model_facts_done) struct model_facts facts = {.file_count = 0};
    OWNED(model_plan_done) struct model_plan plan = {.settings = NULL};
    OWNED(client_json_free) json_t *warnings = NULL;
    size_t i;
    json_t *warning;
    int r = push_archive_look(folder, &facts, err);

    if (r == 0 && strlen(device) >= sizeof(facts.device))
        r = err_set(err, ERR_RANGE, "--device is '%.40s'; it must be cpu, cuda or cuda:N", device);
    if (r == 0) {
        mem_copy_text(facts.device, device);
        r = model_plan_make(&facts, &plan, err);
    }
    if (r < 0)
        return r;
    (void)fprintf(stderr, "engine %s: %s\n", plan.engine, plan.why);
    if (*name == NULL)
        *name = name_of_config(plan.name);
    if (*name == NULL)
        *name = name_of_folder(folder);
    warnings = plan.warnings == NULL ? NULL : json_loads(plan.warnings, 0, NULL);
    json_array_foreach(warnings, i, warning)
    {
        (void)fprintf(stderr, "warning: %s\n", json_string_value(warning));
    }
    return 0;
}

static int push_run(const struct client *client, const void *values, char **operands,
                    int operand_count)
{
    const struct push_settings *settings = values;
    struct push_model push = {
        .folder = operands[0],
        .deployment_name = settings->deployment_name,
        .environment = settings->environment,
        .device = settings->device,
    };
    OWNED(client_json_free) json_t *state = NULL;
    OWNED(push_folder_remove) char *above = NULL;
    OWNED(mem_free) char *trained = NULL;
    OWNED(mem_free) char *external = NULL;
    OWNED(mem_free) char *name = NULL;
    OWNED(mem_free) char *id = NULL;
    struct err err;

    if (!verb_operands("one directory", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    name = *settings->name != '\0' ? xstrdup(settings->name) : NULL;
    if (check_folder(operands[0], settings->device, &name, &err) < 0)
        return client_complain("push", &err);
    push.name = name;
    if (push_checkpoints_bring(client, operands[0], &above, &trained, &err) < 0)
        return client_complain("push", &err);
    external = above != NULL ? xasprintf("%s/" TRUSS_CHECKPOINTS_FOLDER, above) : NULL;
    push.trained = trained;
    push.external = external;
    if (push_model_send(client, &push, &id, &err) < 0)
        return client_complain("push", &err);
    if (settings->no_wait) {
        (void)printf("%s\n", id);
        return CLI_EXIT_OK;
    }
    if (push_model_wait(client, name, id, settings->timeout_ms, &state, &err) < 0)
        return client_complain("push", &err);
    return push_model_report("push", name, state, settings->json);
}

int push_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {NULL, "DIR", "Deploys a model directory: a Truss, ONNX or Hugging Face files.", push_rows,
         COUNT_OF(push_rows), sizeof(struct push_settings), push_run},
    };
    static const struct verb verb = {"push", "", actions, COUNT_OF(actions)};

    return verb_main(&verb, argc, argv);
}
