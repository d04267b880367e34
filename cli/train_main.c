/* SPDX-License-Identifier: Apache-2.0 */

/* headrace train: training jobs from a folder to a served model. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/list.h"
#include "cli/push_archive.h"
#include "cli/push_folder.h"
#include "cli/push_model.h"
#include "cli/train.h"

int train_main(int argc, char **argv);

#define TRAIN_SETTINGS                                                                             \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(project, "", "ls: only of this project, an id or a name")                       \
    SETTING_BOOL(active, false, "ls: only those that are not over")

#define TRAIN_LOGS_SETTINGS                                                                        \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_BOOL(follow, false, "from the first line on, and go on until the job is over")         \
    SETTING_INT(limit, 500, 1, 1000, "without --follow: lines, the newest ones")                   \
    SETTING_STRING(search, "", "only lines that have this regular expression")                     \
    SETTING_STRING(node, "", "only of this node: its rank")

#define TRAIN_DOWNLOAD_SETTINGS                                                                    \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(checkpoint, "", "name of the checkpoint; empty: the newest that is complete")   \
    SETTING_STRING(to, "", "folder to make; empty: one of the checkpoint's name")

#define TRAIN_DEPLOY_SETTINGS                                                                      \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(checkpoint, "", "name of the checkpoint; empty: the newest that is complete")   \
    SETTING_STRING(model, "", "name of the model; empty: the project's")                           \
    SETTING_STRING(environment, "", "environment to point at it once it is ready")                 \
    SETTING_BOOL(no_wait, false, "do not wait until the deployment is ready")                      \
    SETTING_DURATION(timeout, "10m", "1s", "24h", "how long to wait until it is ready")

struct train_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    TRAIN_SETTINGS
#include "base/settings_end.def"
};
struct train_logs_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    TRAIN_LOGS_SETTINGS
#include "base/settings_end.def"
};
struct train_download_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    TRAIN_DOWNLOAD_SETTINGS
#include "base/settings_end.def"
};
struct train_deploy_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    TRAIN_DEPLOY_SETTINGS
#include "base/settings_end.def"
};

static const struct setting train_rows[] = {
#define SETTINGS_ROWS struct train_settings
#include "base/settings_rows.def"
    TRAIN_SETTINGS
#include "base/settings_end.def"
};
static const struct setting push_rows[] = {
#define SETTINGS_ROWS struct train_push_settings
#include "base/settings_rows.def"
    TRAIN_PUSH_SETTINGS
#include "base/settings_end.def"
};
static const struct setting view_rows[] = {
#define SETTINGS_ROWS struct train_view_settings
#include "base/settings_rows.def"
    TRAIN_VIEW_SETTINGS
#include "base/settings_end.def"
};
static const struct setting metrics_rows[] = {
#define SETTINGS_ROWS struct train_metrics_settings
#include "base/settings_rows.def"
    TRAIN_METRICS_SETTINGS
#include "base/settings_end.def"
};
static const struct setting logs_rows[] = {
#define SETTINGS_ROWS struct train_logs_settings
#include "base/settings_rows.def"
    TRAIN_LOGS_SETTINGS
#include "base/settings_end.def"
};
static const struct setting download_rows[] = {
#define SETTINGS_ROWS struct train_download_settings
#include "base/settings_rows.def"
    TRAIN_DOWNLOAD_SETTINGS
#include "base/settings_end.def"
};
static const struct setting deploy_rows[] = {
#define SETTINGS_ROWS struct train_deploy_settings
#include "base/settings_rows.def"
    TRAIN_DEPLOY_SETTINGS
#include "base/settings_end.def"
};

/* ---- lists and single steps ---- */

/* No jobs of a project that is none are not the same as none of one. */
static int project_check(const struct client *client, const char *project, struct err *err)
{
    OWNED(mem_free) char *path = path_make("/v1/training_projects/%", project);
    OWNED(client_json_free) json_t *answer = NULL;
    const struct client_call call = {.method = "GET", .path = path};
    int status, r = client_exchange(client, &call, &status, &answer, err);

    return r < 0 ? err_wrap(err, "project '%.100s'", project) : 0;
}

static int train_ls(const struct client *client, const void *values, char **operands,
                    int operand_count)
{
    static const struct table_column columns[] = {
        {"JOB", "id", false, false},
        {"PROJECT", "training_project.name", false, true},
        {"NAME", "name", false, true},
        {"STATUS", "current_status", false, false},
        {"PLACE", "queue_position", true, false},
        {"PRIORITY", "priority", true, false},
        {"NODES", "node_count", true, false},
        {"EACH", "instance_type.name", false, false},
        {"CHECKPOINTS", "checkpoint_count", true, false},
        {"CREATED", "created_at", false, true},
    };
    const struct train_settings *settings = values;
    OWNED(client_json_free) json_t *body = json_object();
    OWNED(client_json_free) json_t *answer = NULL;
    const struct client_call call = {
        .method = "POST", .path = "/v1/training_jobs/search", .body = body};
    struct err err;
    int status;

    (void)operands;
    (void)operand_count;
    if (*settings->project != '\0' && project_check(client, settings->project, &err) < 0)
        return client_complain("train ls", &err);
    if (*settings->project != '\0')
        (void)json_object_set_new(body, "project_id", json_string(settings->project));
    if (settings->active)
        (void)json_object_set_new(
            body, "statuses", json_pack("[s,s,s,s]", "PENDING", "CREATED", "DEPLOYING", "RUNNING"));
    if (client_exchange(client, &call, &status, &answer, &err) < 0)
        return client_complain("train ls", &err);
    if (settings->json)
        table_print_json(stdout, answer);
    else if (table_print(stdout, json_object_get(answer, "training_jobs"), columns,
                         COUNT_OF(columns), "no training jobs", &err) < 0)
        return client_complain("train ls", &err);
    return CLI_EXIT_OK;
}

static int train_logs(const struct client *client, const void *values, char **operands,
                      int operand_count)
{
    const struct train_logs_settings *settings = values;
    struct train_logs logs = {.search = settings->search,
                              .node = settings->node,
                              .limit = settings->limit,
                              .follow = settings->follow,
                              .json = settings->json};
    struct err err;

    if (!verb_operands("one job", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    logs.job = operands[0];
    return train_logs_print(client, &logs, NULL, &err) < 0 ? client_complain("train logs", &err)
                                                           : CLI_EXIT_OK;
}

/* POST to the job's own route; its new state is shown as a line. */
static int job_post(const struct client *client, const void *values, const char *verb,
                    const char *pattern, const char *job)
{
    const struct train_settings *settings = values;
    OWNED(mem_free) char *path = path_make(pattern, job);
    OWNED(client_json_free) json_t *body = json_object();
    OWNED(client_json_free) json_t *answer = NULL;
    const struct client_call call = {.method = "POST", .path = path, .body = body};
    const json_t *now;
    const char *id;
    struct err err;
    int status;

    if (client_exchange(client, &call, &status, &answer, &err) < 0)
        return client_complain(verb, &err);
    now = json_object_get(answer, "training_job");
    id = json_string_value(json_object_get(now, "id"));
    if (settings->json)
        table_print_json(stdout, now);
    else
        (void)printf("%s %s\n", id != NULL ? id : "-", train_status(now));
    return CLI_EXIT_OK;
}

static int train_stop(const struct client *client, const void *values, char **operands,
                      int operand_count)
{
    if (!verb_operands("one job", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    return job_post(client, values, "train stop", "/v1/training_projects/-/jobs/%/stop",
                    operands[0]);
}

static int train_recreate(const struct client *client, const void *values, char **operands,
                          int operand_count)
{
    if (!verb_operands("one job", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    return job_post(client, values, "train recreate", "/v1/training_projects/-/jobs/%/recreate",
                    operands[0]);
}

static int train_checkpoints(const struct client *client, const void *values, char **operands,
                             int operand_count)
{
    static const struct table_column columns[] = {
        {"CHECKPOINT", "checkpoint_id", false, false}, {"TYPE", "checkpoint_type", false, false},
        {"STATUS", "sync_status", false, false},       {"NODES", "node_count", true, false},
        {"FILES", "file_count", true, false},          {"BYTES", "size_bytes", true, false},
        {"UPLOADED", "uploaded_bytes", true, false},   {"COMPLETE", "completed_at", false, true},
    };
    const struct train_settings *settings = values;
    OWNED(mem_free) char *path = NULL;
    struct list_view view = {"train checkpoints",  NULL,    "checkpoints",
                             "no checkpoints yet", columns, COUNT_OF(columns)};

    if (!verb_operands("one job", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = path_make("/v1/training_projects/-/jobs/%/checkpoints", operands[0]);
    view.path = path;
    return list_run(client, &view, settings->json);
}

/* ---- a checkpoint here, or served ---- */

static int train_download_run(const struct client *client, const void *values, char **operands,
                              int operand_count)
{
    const struct train_download_settings *settings = values;
    OWNED(mem_free) char *checkpoint = NULL;
    const char *to;
    struct err err;

    if (!verb_operands("one job", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    if (train_choose(client, operands[0], settings->checkpoint, &checkpoint, &err) < 0)
        return client_complain("train download", &err);
    to = *settings->to != '\0' ? settings->to : checkpoint;
    if (train_download(client, operands[0], checkpoint, -1, to, &err) < 0)
        return client_complain("train download", &err);
    if (settings->json) {
        OWNED(client_json_free)
        json_t *told = json_pack("{s:s, s:s}", "checkpoint", checkpoint, "folder", to);

        table_print_json(stdout, told);
    } else {
        (void)printf("%s: checkpoint %s\n", to, checkpoint);
    }
    return CLI_EXIT_OK;
}

/* What the gateway will decide, told before anything is sent. */
static int look(const char *folder, struct err *err)
{
    OWNED(model_facts_done) struct model_facts facts = {.file_count = 0};
    OWNED(model_plan_done) struct model_plan plan = {.settings = NULL};
    int r = push_archive_look(folder, &facts, err);

    if (r == 0)
        r = model_plan_make(&facts, &plan, err);
    if (r == 0)
        (void)fprintf(stderr, "engine %s: %s\n", plan.engine, plan.why);
    return r;
}

/* The project's name, with dashes for what a model's name cannot have; the caller frees. */
static int model_of(const struct client *client, const char *job, char **ret_name, struct err *err)
{
    OWNED(mem_free) char *path = path_make("/v1/training_projects/-/jobs/%", job);
    const struct client_call call = {.method = "GET", .path = path};
    OWNED(client_json_free) json_t *answer = NULL;
    const char *name;
    int status, r = client_exchange(client, &call, &status, &answer, err);

    if (r < 0)
        return r;
    name = json_string_value(json_object_get(
        json_object_get(json_object_get(answer, "training_job"), "training_project"), "name"));
    if (name == NULL)
        return err_set(err, ERR_MALFORMED, "the gateway's answer has no project");
    *ret_name = xstrdup(name);
    for (char *at = *ret_name; *at != '\0'; at++) {
        if (strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._", *at) ==
            NULL)
            *at = '-';
    }
    return 0;
}

static int deploy(const struct client *client, const struct train_deploy_settings *settings,
                  const char *job, const char *folder, const char *name, char **ret_id,
                  struct err *err)
{
    OWNED(mem_free) char *checkpoint = NULL;
    OWNED(mem_free) char *trained = NULL;
    struct push_model push = {
        .folder = folder,
        .name = name,
        .deployment_name = "",
        .environment = settings->environment,
        .device = "",
    };
    int r = train_choose(client, job, settings->checkpoint, &checkpoint, err);

    if (r == 0)
        r = train_download(client, job, checkpoint, 0, folder, err);
    if (r == 0)
        r = look(folder, err);
    if (r < 0)
        return r;
    trained = xasprintf("%s/%s", job, checkpoint);
    push.trained = trained;
    return push_model_send(client, &push, ret_id, err);
}

static int train_deploy(const struct client *client, const void *values, char **operands,
                        int operand_count)
{
    const struct train_deploy_settings *settings = values;
    OWNED(push_folder_remove) char *above = NULL;
    OWNED(mem_free) char *folder = NULL;
    OWNED(mem_free) char *name = NULL;
    OWNED(mem_free) char *id = NULL;
    OWNED(client_json_free) json_t *state = NULL;
    struct err err;
    int r;

    if (!verb_operands("one job", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    name = *settings->model != '\0' ? xstrdup(settings->model) : NULL;
    r = name != NULL ? 0 : model_of(client, operands[0], &name, &err);
    if (r == 0)
        r = push_folder_make("headrace-train", &above, &err);
    if (r == 0) {
        folder = xasprintf("%s/model", above);
        r = deploy(client, settings, operands[0], folder, name, &id, &err);
    }
    if (r < 0)
        return client_complain("train deploy", &err);
    if (settings->no_wait) {
        (void)printf("%s\n", id);
        return CLI_EXIT_OK;
    }
    if (push_model_wait(client, name, id, settings->timeout_ms, &state, &err) < 0)
        return client_complain("train deploy", &err);
    return push_model_report("train deploy", name, state, settings->json);
}

#define ROWS(rows, type) rows, COUNT_OF(rows), sizeof(struct type)

int train_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {"init", "DIR", "Makes a folder with a job to begin with: what it trains can be deployed.",
         ROWS(train_rows, train_settings), train_init},
        {"push", "FILE|DIR", "Queues the training job of a config.yaml or config.py.",
         ROWS(push_rows, train_push_settings), train_push},
        {"ls", NULL, "Lists training jobs, newest first.", ROWS(train_rows, train_settings),
         train_ls},
        {"view", "JOB", "Shows a job, what it waits for, and what became of it.",
         ROWS(view_rows, train_view_settings), train_view},
        {"logs", "JOB", "Shows what a job has printed.", ROWS(logs_rows, train_logs_settings),
         train_logs},
        {"metrics", "JOB", "Draws what a job uses, and its own figures, as curves.",
         ROWS(metrics_rows, train_metrics_settings), train_metrics},
        {"stop", "JOB", "Stops a job; its checkpoints stay.", ROWS(train_rows, train_settings),
         train_stop},
        {"recreate", "JOB", "Queues the same job once more.", ROWS(train_rows, train_settings),
         train_recreate},
        {"checkpoints", "JOB", "Lists the checkpoints of a job.", ROWS(train_rows, train_settings),
         train_checkpoints},
        {"download", "JOB", "Brings a checkpoint here.",
         ROWS(download_rows, train_download_settings), train_download_run},
        {"deploy", "JOB", "Makes a deployment of a checkpoint.",
         ROWS(deploy_rows, train_deploy_settings), train_deploy},
    };
    static const struct verb verb = {"train", "Training jobs, from a folder to a served model.",
                                     actions, COUNT_OF(actions)};

    /* Two actions need no gateway: one writes files, the other may only check them. */
    return argc > 1 && strcmp(argv[1], "init") == 0 ? verb_main_offline(&verb, argc, argv)
                                                    : verb_main(&verb, argc, argv);
}
