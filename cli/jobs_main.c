/* SPDX-License-Identifier: Apache-2.0 */

/* headrace jobs: what was submitted, how it goes, cancel, replay and priority. */

#include <stdio.h>
#include <string.h>

#include "cli/jobs_bulk.h"
#include "cli/list.h"
#include "cli/watch.h"

int jobs_main(int argc, char **argv);

#define PATH_SIZE_MAX 8192

#define JOBS_SETTINGS                                                                              \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(status, "", "ls: only QUEUED, IN_PROGRESS, SUCCEEDED, FAILED, EXPIRED, …")      \
    SETTING_STRING(model, "", "ls: only of this model")                                            \
    SETTING_STRING(environment, "", "ls: only of this environment")                                \
    SETTING_STRING(since, "", "ls: only accepted at or after this time (RFC 3339)")                \
    SETTING_STRING(cursor, "", "ls: the page behind this cursor")                                  \
    SETTING_INT(limit, 50, 1, 1000, "ls: rows of a page")

struct jobs_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    JOBS_SETTINGS
#include "base/settings_end.def"
};

static const struct setting jobs_rows[] = {
#define SETTINGS_ROWS struct jobs_settings
#include "base/settings_rows.def"
    JOBS_SETTINGS
#include "base/settings_end.def"
};

#define JOBS_ACTION jobs_rows, COUNT_OF(jobs_rows), sizeof(struct jobs_settings)

static const struct setting bulk_rows[] = {
#define SETTINGS_ROWS struct bulk_settings
#include "base/settings_rows.def"
    BULK_SETTINGS
#include "base/settings_end.def"
};

#define BULK_ACTION bulk_rows, COUNT_OF(bulk_rows), sizeof(struct bulk_settings)

static int jobs_ls(const struct client *client, const void *values, char **operands,
                   int operand_count)
{
    static const struct table_column columns[] = {
        {"REQUEST", "request_id", false, false},     {"STATUS", "status", false, false},
        {"WEBHOOK", "webhook_status", false, false}, {"MODEL", "model_name", false, true},
        {"ENVIRONMENT", "environment", false, true}, {"ATTEMPTS", "attempts", true, false},
        {"CREATED", "created_at", false, true},
    };
    const struct jobs_settings *settings = values;
    OWNED(buf_done) struct buf path = BUF_WITH_LIMIT(PATH_SIZE_MAX);
    struct list_view view = {"jobs ls",      NULL,    "requests",
                             "no such jobs", columns, COUNT_OF(columns)};

    (void)operands;
    (void)operand_count;
    buf_printf(&path, "/v1/requests?limit=%lld", (long long)settings->limit);
    path_append_field(&path, "status", settings->status);
    path_append_field(&path, "model", settings->model);
    path_append_field(&path, "environment", settings->environment);
    path_append_field(&path, "since", settings->since);
    path_append_field(&path, "cursor", settings->cursor);
    view.path = buf_text(&path);
    return list_run(client, &view, settings->json);
}

static void show_budget(const json_t *job, const char *name, const char *title)
{
    const json_t *budget = json_object_get(json_object_get(job, "budgets"), name);

    (void)printf("  %-24s %lld of %lld\n", title,
                 (long long)json_integer_value(json_object_get(budget, "used")),
                 (long long)json_integer_value(json_object_get(budget, "limit")));
}

/* The job's own lines, then what its failures have cost, then each attempt. */
static int show_detail(json_t *job, struct err *err)
{
    static const struct table_column columns[] = {
        {"#", "number", true, false},
        {"STATUS", "status", false, false},
        {"STARTED", "started_at", false, false},
        {"SECONDS", "run_seconds", true, false},
        {"WORKER", "worker", false, true},
        {"DEVICE", "device", false, false},
        {"BATCH", "batch_size", true, false},
        {"CLASS", "error_class", false, false},
        {"ERROR", "error_message", false, true},
    };
    OWNED(client_json_free) json_t *own = json_copy(job);

    (void)json_object_del(own, "budgets");
    (void)json_object_del(own, "attempt_log");
    table_print_object(stdout, own);
    (void)printf("budgets used:\n");
    show_budget(job, "model_errors", "model errors");
    show_budget(job, "out_of_memory", "out of memory");
    show_budget(job, "lost_workers", "lost workers");
    (void)printf("attempts:\n");
    return table_print(stdout, json_object_get(job, "attempt_log"), columns, COUNT_OF(columns),
                       "  none yet", err);
}

static int jobs_show(const struct client *client, const void *values, char **operands,
                     int operand_count)
{
    const struct jobs_settings *settings = values;
    OWNED(mem_free) char *path = NULL;
    OWNED(client_json_free) json_t *job = NULL;
    struct client_call call = {.method = "GET"};
    struct err err;
    int status;

    if (!verb_operands("one request id", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    call.path = path = path_make("/v1/requests/%", operands[0]);
    if (client_exchange(client, &call, &status, &job, &err) < 0)
        return client_complain("jobs show", &err);
    if (settings->json)
        table_print_json(stdout, job);
    else if (show_detail(job, &err) < 0)
        return client_complain("jobs show", &err);
    return CLI_EXIT_OK;
}

static int jobs_watch(const struct client *client, const void *values, char **operands,
                      int operand_count)
{
    const struct jobs_settings *settings = values;
    OWNED(client_json_free) json_t *status = NULL;
    const char *state;
    struct err err;

    if (!verb_operands("one request id", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    if (watch_job(client, operands[0], false, &status, &err) < 0)
        return client_complain("jobs watch", &err);
    if (settings->json)
        table_print_json(stdout, status);
    else
        table_print_object(stdout, status);
    state = json_string_value(json_object_get(status, "status"));
    return strcmp(state, "SUCCEEDED") == 0 ? CLI_EXIT_OK : CLI_EXIT_FAILED;
}

static int jobs_result(const struct client *client, const void *values, char **operands,
                       int operand_count)
{
    OWNED(buf_done) struct buf output = BUF_WITH_LIMIT(CLI_ANSWER_SIZE_MAX);
    OWNED(mem_free) char *path = NULL;
    struct err err;

    (void)values;
    if (!verb_operands("one request id", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = path_make("/async_request/%/result", operands[0]);
    if (client_fetch(client, path, &output, &err) < 0)
        return client_complain("jobs result", &err);
    (void)fwrite(buf_text(&output), 1, output.size, stdout);
    (void)fputc('\n', stdout);
    return CLI_EXIT_OK;
}

static int jobs_cancel(const struct client *client, const void *values, char **operands,
                       int operand_count)
{
    const struct bulk_settings *settings = values;
    OWNED(mem_free) char *path = NULL;

    if (operand_count != 1 || bulk_has_filter(settings))
        return bulk_run(client, "cancel", settings, operands, operand_count);
    path = path_make("/async_request/%", operands[0]); /* one job: its verdict at once */
    return show_run(client, "jobs cancel", "DELETE", path, NULL, settings->json);
}

static int jobs_replay(const struct client *client, const void *values, char **operands,
                       int operand_count)
{
    return bulk_run(client, "replay", values, operands, operand_count);
}

static int jobs_priority(const struct client *client, const void *values, char **operands,
                         int operand_count)
{
    return bulk_run(client, "priority", values, operands, operand_count);
}

int jobs_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {"ls", NULL, "Lists jobs, newest first.", JOBS_ACTION, jobs_ls},
        {"show", "REQUEST", "Shows one job: why it ended, what its budgets paid, each attempt.",
         JOBS_ACTION, jobs_show},
        {"watch", "REQUEST", "Waits until a job is final.", JOBS_ACTION, jobs_watch},
        {"result", "REQUEST", "Prints what the model said.", JOBS_ACTION, jobs_result},
        {"cancel", "[REQUEST…]",
         "Cancels waiting and running jobs: those named, or those that --where matches.",
         BULK_ACTION, jobs_cancel},
        {"replay", "[REQUEST…]",
         "Runs dead jobs (FAILED, EXPIRED) again, as their next round: those named, or those that "
         "--where matches.",
         BULK_ACTION, jobs_replay},
        {"priority", "[REQUEST…]", "Serves waiting jobs at another priority (--to).", BULK_ACTION,
         jobs_priority},
    };
    static const struct verb verb = {"jobs", "Jobs that were submitted.", actions,
                                     COUNT_OF(actions)};

    return verb_main(&verb, argc, argv);
}
