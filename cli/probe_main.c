/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace probe DIR: which engine would serve a model directory, why, and within which limits.
 *
 * The engine and its settings are decided by the rules that the gateway has for a push
 * (schema/model_plan.h); what the model itself allows comes from the engine's probe, which reads
 * headers only. Talks to nobody. Exit code 0: it would be accepted; 2: it would be
 * refused, and the text says what was looked for.
 */

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/settings.h"
#include "cli/client.h"
#include "cli/push_archive.h"
#include "cli/table.h"
#include "workers/engine_host.h"
#include "workers/host_plugin.h"

int probe_main(int argc, char **argv);

#define PROBE_SETTINGS                                                                             \
    SETTING_STRING(engines, "", "folder of the engine plugins; empty: beside the binary")          \
    SETTING_BOOL(json, false, "print JSON instead of lines")

struct probe_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    PROBE_SETTINGS
#include "base/settings_end.def"
};

static const struct setting probe_rows[] = {
#define SETTINGS_ROWS struct probe_settings
#include "base/settings_rows.def"
    PROBE_SETTINGS
#include "base/settings_end.def"
};

static void put_text(json_t *to, const char *key, const char *text)
{
    (void)json_object_set_new(to, key, json_string(text));
}

/* What the plugin finds in the files. 0 also where this machine lacks the plugin: it says so. */
static int ask_engine(const struct probe_settings *settings, const char *dir,
                      const struct model_plan *plan, json_t *to, struct err *err)
{
    const struct engine_api *api;
    struct engine_probe probe;
    int r;

    if (engine_host_kind(plan->engine) != ENGINE_HOST_C || strcmp(plan->engine, "sim") == 0)
        return 0;
    r = host_plugin_open(settings->engines, plan->engine, NULL, &api, err);
    if (r < 0) {
        put_text(to, "model", err->text);
        return 0;
    }
    r = api->probe(dir, &probe, err);
    if (r < 0)
        return r;
    if (probe.score == 0)
        return err_set(err, ERR_MISMATCH, "%s cannot serve it: %s", plan->engine, probe.text);
    put_text(to, "task", probe.task);
    put_text(to, "model", probe.text);
    if (probe.token_count_max > 0)
        (void)json_object_set_new(to, "max_tokens", json_integer(probe.token_count_max));
    (void)json_object_set_new(to, "memory_mb", json_integer((json_int_t)(probe.host_size >> 20)));
    return 0;
}

static int probe_dir(const struct probe_settings *settings, const char *dir, json_t *to,
                     struct err *err)
{
    OWNED(model_facts_done) struct model_facts facts = {.file_count = 0};
    OWNED(model_plan_done) struct model_plan plan = {.settings = NULL};
    int r;

    r = push_archive_look(dir, &facts, err);
    if (r == 0)
        r = model_plan_make(&facts, &plan, err);
    if (r < 0)
        return r;
    put_text(to, "engine", plan.engine);
    put_text(to, "why", plan.why);
    put_text(to, "device", plan.device);
    (void)json_object_set_new(to, "slots", json_integer(plan.slot_count));
    (void)json_object_set_new(to, "replicas", json_integer(plan.replica_count));
    (void)json_object_set_new(to, "warm", json_integer(plan.warm_count));
    (void)json_object_set_new(to, "settings", json_loads(plan.settings, 0, NULL));
    (void)json_object_set_new(to, "files", json_integer(facts.file_count));
    (void)json_object_set_new(to, "bytes", json_integer((json_int_t)facts.content_size));
    return ask_engine(settings, dir, &plan, to, err);
}

int probe_main(int argc, char **argv)
{
    const struct settings_program program = {
        .command = "probe",
        .purpose = "Says which engine would serve a model directory, why, and its limits.",
        .operands = "DIR",
        .rows = probe_rows,
        .row_count = COUNT_OF(probe_rows),
    };
    struct probe_settings settings = {0};
    OWNED(client_json_free) json_t *found = json_object();
    enum settings_outcome outcome;
    int operand = argc, code = CLI_EXIT_OK;
    struct err err;

    if (settings_parse(&program, argc, argv, &settings, &operand, &outcome, &err) < 0)
        return client_complain("probe", &err);
    if (outcome == SETTINGS_QUIT) {
        settings_free(&program, &settings);
        return CLI_EXIT_OK;
    }
    if (argc - operand != 1) {
        (void)fprintf(stderr, "headrace: one directory expected, %d given\n", argc - operand);
        code = CLI_EXIT_USAGE;
    } else if (probe_dir(&settings, argv[operand], found, &err) < 0) {
        code = client_complain("probe", &err);
    } else if (settings.json) {
        table_print_json(stdout, found);
    } else {
        table_print_object(stdout, found);
    }
    settings_free(&program, &settings);
    return code;
}
