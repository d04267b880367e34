/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/truss_plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schema/truss_config.h"

#define SERVER_SLOTS 8u

bool truss_plan_fits(const struct model_facts *facts)
{
    return facts->config_yaml != NULL &&
           (facts->has_model_py || strstr(facts->config_yaml, "docker_server:") != NULL ||
            strstr(facts->config_yaml, "model_module_dir:") != NULL ||
            strstr(facts->config_yaml, "model_class_filename:") != NULL);
}

/* What headrace.json may say to the engine `python`. */
static int check_python_settings(json_t *settings, struct err *err)
{
    static const struct {
        const char *key, *a, *b;
    } known[] = {{"python", "nearest", "exact"}, {"network", "none", "out"}};
    const char *key;
    json_t *value;

    json_object_foreach(settings, key, value)
    {
        const char *text = json_string_value(value);
        size_t i = 0;

        while (i < COUNT_OF(known) && strcmp(known[i].key, key) != 0)
            i++;
        if (i == COUNT_OF(known))
            return err_set(err, ERR_RANGE,
                           "headrace.json: settings '%.60s' is unknown to python; there are "
                           "python and network",
                           key);
        if (text == NULL || (strcmp(text, known[i].a) != 0 && strcmp(text, known[i].b) != 0))
            return err_set(err, ERR_RANGE, "headrace.json: settings.%s must be \"%s\" or \"%s\"",
                           key, known[i].a, known[i].b);
    }
    return 0;
}

static int plan_python(const struct model_facts *facts, const struct truss_config *truss,
                       struct model_plan *plan, json_t *settings, struct err *err)
{
    const char *folder = json_string_value(json_object_get(truss->config, "model_module_dir"));
    const char *file = json_string_value(json_object_get(truss->config, "model_class_filename"));
    int r = check_python_settings(settings, err);

    if (r < 0)
        return r;
    if (!facts->has_model_py && strcmp(folder, "model") == 0 && strcmp(file, "model.py") == 0)
        return err_set(
            err, ERR_UNSUPPORTED,
            "config.yaml is there, and neither model/model.py nor a docker_server in it");
    (void)json_object_set(settings, "truss", truss->config);
    if (plan->slot_count == 0)
        plan->slot_count = truss->concurrency;
    (void)snprintf(plan->why, sizeof(plan->why), "config.yaml, with Python code in %.60s/%.60s",
                   folder, file);
    return 0;
}

static void plan_server(const struct truss_config *truss, struct model_plan *plan, json_t *settings)
{
    (void)json_object_update_missing(settings, truss->server);
    if (plan->slot_count == 0)
        plan->slot_count = truss->concurrency > SERVER_SLOTS ? truss->concurrency : SERVER_SLOTS;
    mem_copy_text(plan->why, "config.yaml has a docker_server");
}

static const char *accelerator_of(const struct truss_config *truss)
{
    return json_string_value(
        json_object_get(json_object_get(truss->config, "resources"), "accelerator"));
}

int truss_plan_make(const struct model_facts *facts, struct model_plan *plan, json_t *settings,
                    struct err *err)
{
    OWNED(truss_config_done) struct truss_config truss = {0};
    const char *engine, *name;
    char *dumped;
    int r = truss_config_parse(facts->config_yaml, strlen(facts->config_yaml), &truss, err);

    if (r < 0)
        return r;
    engine = truss.server != NULL ? "server" : "python";
    if (plan->engine[0] != '\0' && strcmp(plan->engine, engine) != 0)
        return err_set(err, ERR_MISMATCH,
                       "headrace.json: engine is '%s', and config.yaml is of a %s", plan->engine,
                       engine);
    mem_copy_text(plan->engine, engine);
    if (plan->device[0] == '\0' && truss.accelerator)
        mem_copy_text(plan->device, "cuda");
    mem_copy_text(plan->accelerator, truss.accelerator ? accelerator_of(&truss) : "");
    if (truss.server != NULL)
        plan_server(&truss, plan, settings);
    else
        r = plan_python(facts, &truss, plan, settings, err);
    if (r < 0)
        return r;
    plan->wants_checkpoints = truss.checkpoints != NULL;
    plan->warnings = json_dumps(truss.warnings, JSON_COMPACT);
    name = json_string_value(json_object_get(truss.config, "model_name"));
    plan->name = name == NULL || *name == '\0' ? NULL : xstrdup(name);
    dumped = json_dumps(settings, JSON_COMPACT);
    if (dumped == NULL || strlen(dumped) > TRUSS_SETTINGS_SIZE_MAX)
        r = err_set(err, ERR_TOO_BIG, "config.yaml has %zu bytes as JSON, the limit is %d",
                    dumped == NULL ? 0 : strlen(dumped), TRUSS_SETTINGS_SIZE_MAX);
    free(dumped);
    return r;
}
