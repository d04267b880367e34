/* SPDX-License-Identifier: Apache-2.0 */

/* headrace schedules: jobs that are submitted at a time, or again and again by a cron line. */

#include <stdio.h>
#include <string.h>

#include "cli/input.h"
#include "cli/list.h"

int schedules_main(int argc, char **argv);

#define SCHEDULES_SETTINGS                                                                         \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(model, "", "create: model to run, by id or name")                               \
    SETTING_STRING(environment, "production", "create: environment of the model")                  \
    SETTING_STRING(cron, "", "create: minute, hour, day, month and weekday, or @daily …")          \
    SETTING_STRING(timezone, "UTC", "create: time zone of the cron line, like Europe/Berlin")      \
    SETTING_STRING(run_at, "", "create: once, at this time (2026-12-24T18:00:00Z)")                \
    SETTING_STRING(input, "", "create: model input: JSON, @FILE, or - for standard input")         \
    SETTING_STRING(webhook, "", "create: address that results are sent to")                        \
    SETTING_INT(priority, 1, 0, 2, "create: lower runs first")                                     \
    SETTING_DURATION(jitter, "0s", "0s", "24h", "create: put each tick off by up to that much")    \
    SETTING_STRING(catch_up, "one",                                                                \
                   "create: of ticks that were missed run none (skip), the "                       \
                   "newest (one) or all")

struct schedules_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    SCHEDULES_SETTINGS
#include "base/settings_end.def"
};

static const struct setting schedules_rows[] = {
#define SETTINGS_ROWS struct schedules_settings
#include "base/settings_rows.def"
    SCHEDULES_SETTINGS
#include "base/settings_end.def"
};

#define SCHEDULES_ACTION schedules_rows, COUNT_OF(schedules_rows), sizeof(struct schedules_settings)

static int schedules_ls(const struct client *client, const void *values, char **operands,
                        int operand_count)
{
    static const struct table_column columns[] = {
        {"NAME", "name", false, false},          {"MODEL", "model_name", false, true},
        {"CRON", "cron", false, true},           {"TIMEZONE", "timezone", false, true},
        {"NEXT", "next_at", false, true},        {"PAUSED", "paused_at", false, true},
        {"LAST", "last.at", false, true},        {"STATUS", "last.status", false, true},
        {"JOB", "last.request_id", false, true},
    };
    static const struct list_view view = {"schedules ls", "/v1/schedules", "schedules",
                                          "no schedules", columns,         COUNT_OF(columns)};

    (void)operands;
    if (!verb_operands("nothing more", operand_count, 0, 0))
        return CLI_EXIT_USAGE;
    return list_run(client, &view, ((const struct schedules_settings *)values)->json);
}

static int read_body(const struct schedules_settings *settings, const char *name, json_t **ret_body,
                     struct err *err)
{
    json_t *input = NULL, *request;
    int r;

    if (*settings->model == '\0')
        return err_set(err, ERR_USAGE, "--model is missing");
    if ((*settings->cron != '\0') == (*settings->run_at != '\0'))
        return err_set(err, ERR_USAGE, "when? one of --cron and --run-at");
    r = input_load(settings->input, &input, err);
    if (r < 0)
        return r;
    request = json_pack("{s:o, s:I}", "model_input", input, "priority",
                        (json_int_t)settings->priority);
    if (*settings->webhook != '\0')
        (void)json_object_set_new(request, "webhook_endpoint", json_string(settings->webhook));
    *ret_body = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:s, s:o}", "name", name, "model",
                          settings->model, "environment", settings->environment, "timezone",
                          settings->timezone, *settings->cron != '\0' ? "cron" : "run_at",
                          *settings->cron != '\0' ? settings->cron : settings->run_at,
                          "jitter_seconds", (json_int_t)(settings->jitter_ms / 1000), "catch_up",
                          settings->catch_up, "request", request);
    return 0;
}

static int schedules_create(const struct client *client, const void *values, char **operands,
                            int operand_count)
{
    const struct schedules_settings *settings = values;
    OWNED(client_json_free) json_t *body = NULL;
    struct err err;

    if (!verb_operands("a name", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    if (read_body(settings, operands[0], &body, &err) < 0)
        return client_complain("schedules create", &err);
    return show_run(client, "schedules create", "POST", "/v1/schedules", body, settings->json);
}

/* One exchange about the schedule that the operand names. */
static int about_one(const struct client *client, const void *values, char **operands,
                     int operand_count, const char *verb, const char *method, const char *pattern)
{
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("the name of a schedule", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = path_make(pattern, operands[0]);
    return show_run(client, verb, method, path, NULL,
                    ((const struct schedules_settings *)values)->json);
}

#define ABOUT_ONE(name, method, pattern)                                                           \
    static int schedules_##name(const struct client *client, const void *values, char **operands,  \
                                int operand_count)                                                 \
    {                                                                                              \
        return about_one(client, values, operands, operand_count, "schedules " #name, method,      \
                         pattern);                                                                 \
    }

ABOUT_ONE(show, "GET", "/v1/schedules/%")
ABOUT_ONE(pause, "POST", "/v1/schedules/%/pause")
ABOUT_ONE(resume, "POST", "/v1/schedules/%/resume")
ABOUT_ONE(run, "POST", "/v1/schedules/%/run")
ABOUT_ONE(rm, "DELETE", "/v1/schedules/%")

int schedules_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {"ls", NULL, "Lists schedules, when they run next and what became of the last time.",
         SCHEDULES_ACTION, schedules_ls},
        {"create", "NAME", "Makes or replaces a schedule.", SCHEDULES_ACTION, schedules_create},
        {"show", "NAME", "Shows one with its request and its newest ticks.", SCHEDULES_ACTION,
         schedules_show},
        {"pause", "NAME", "Submits nothing until it is resumed.", SCHEDULES_ACTION,
         schedules_pause},
        {"resume", "NAME", "Goes on with the next tick.", SCHEDULES_ACTION, schedules_resume},
        {"run", "NAME", "Submits it now, whatever its line says.", SCHEDULES_ACTION, schedules_run},
        {"rm", "NAME", "Removes it; its jobs stay.", SCHEDULES_ACTION, schedules_rm},
    };
    static const struct verb verb = {"schedules", "Jobs at a time, or again and again.", actions,
                                     COUNT_OF(actions)};

    return verb_main(&verb, argc, argv);
}
