/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace push DIR: makes a deployment of a model directory and, unless told not to wait, stays
 * until it is ready or says why it is not.
 */

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/list.h"
#include "cli/push_archive.h"

int push_main(int argc, char **argv);

#define UPLOAD_TIMEOUT_MS (3600u * 1000)
#define READY_POLL_MS 250

#define PUSH_SETTINGS                                                                              \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(name, "", "name of the model; empty: config.yaml's, else the directory's")      \
    SETTING_STRING(deployment_name, "", "name of this deployment; empty: deployment-N")            \
    SETTING_STRING(environment, "",                                                                \
                   "environment to point at it once it is ready; empty: production if it is the "  \
                   "first of its model, else none")                                                \
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

struct upload {
    uint64_t size;
    bool terminal;
    unsigned percent_shown;
};

static void on_progress(uint64_t sent_size, void *opaque)
{
    struct upload *upload = opaque;
    unsigned percent = (unsigned)(upload->size > 0 ? sent_size * 100 / upload->size : 100);

    if (!upload->terminal || percent == upload->percent_shown)
        return;
    upload->percent_shown = percent;
    (void)fprintf(stderr, "\r\033[Kuploading %u %% of %.1f MB%s", percent,
                  (double)upload->size / 1e6, percent == 100 ? "\n" : "");
}

/* The last part of the directory's path, as a model's name. */
static char *name_of_folder(const char *folder)
{
    OWNED(mem_free) char *real = realpath(folder, NULL);
    const char *slash = real != NULL ? strrchr(real, '/') : NULL;

    return xstrdup(slash != NULL && slash[1] != '\0' ? slash + 1 : "model");
}

static int upload_archive(const struct client *client, const struct push_settings *settings,
                          const char *name, const struct push_archive *archive, json_t **ret_answer,
                          struct err *err)
{
    OWNED(mem_free)
    char *path = *settings->environment != '\0'
                     ? path_make("/v1/models/%/deployments?environment=%", name,
                                 settings->environment)
                     : path_make("/v1/models/%/deployments", name);
    OWNED(mem_free) char *digest = xasprintf("sha-256=%s", archive->digest);
    struct upload upload = {archive->size, isatty(STDERR_FILENO) == 1, 101};
    const struct http_header headers[] = {
        {.name = "Content-Type", .value = "application/zstd"},
        {.name = "X-Headrace-Digest", .value = digest},
        {.name = "X-Headrace-Deployment-Name", .value = settings->deployment_name},
    };
    const struct client_call call = {
        .method = "POST",
        .path = path,
        .send =
            {
                .body_fd = archive->fd,
                .body_size = archive->size,
                .headers = headers,
                .header_count = *settings->deployment_name != '\0' ? 3 : 2,
                .on_progress = on_progress,
                .opaque = &upload,
                .timeout_ms = UPLOAD_TIMEOUT_MS,
            },
    };
    int status;

    return client_exchange(client, &call, &status, ret_answer, err);
}

static bool status_settled(const char *status)
{
    static const char *const waiting[] = {"BUILDING", "DEPLOYING", "LOADING_MODEL", "UPDATING",
                                          "WAKING_UP"};

    for (size_t i = 0; i < COUNT_OF(waiting); i++) {
        if (strcmp(status, waiting[i]) == 0)
            return false;
    }
    return true;
}

static int wait_ready(const struct client *client, const char *model, const char *deployment,
                      uint64_t timeout_ms, json_t **ret_state, struct err *err)
{
    OWNED(mem_free) char *path = path_make("/v1/models/%/deployments/%", model, deployment);
    const struct client_call call = {.method = "GET", .path = path};
    uint64_t give_up_ms = clock_mono_ms() + timeout_ms;
    char last[32] = "";

    for (;;) {
        OWNED(client_json_free) json_t *state = NULL;
        const char *status;
        int http, r;

        r = client_exchange(client, &call, &http, &state, err);
        if (r < 0)
            return r;
        status = json_string_value(json_object_get(state, "status"));
        if (status == NULL)
            return err_set(err, ERR_MALFORMED, "the gateway's answer has no status");
        if (strcmp(last, status) != 0)
            (void)fprintf(stderr, "%s\n", status);
        mem_copy_text(last, status);
        if (status_settled(status)) {
            *ret_state = TAKE(state);
            return 0;
        }
        if (clock_mono_ms() > give_up_ms)
            return err_set(err, ERR_TIMEOUT, "not ready after %llu ms; headrace logs %s says more",
                           (unsigned long long)timeout_ms, model);
        (void)poll(NULL, 0, READY_POLL_MS);
    }
}

static int report(const json_t *state, bool json)
{
    const char *status = json_string_value(json_object_get(state, "status"));
    const char *why = json_string_value(json_object_get(state, "error"));

    if (json)
        table_print_json(stdout, state);
    else
        table_print_object(stdout, state);
    if (strcmp(status, "ACTIVE") == 0)
        return CLI_EXIT_OK;
    (void)fprintf(stderr, "headrace push: %s%s%s\n", status, why != NULL ? ": " : "",
                  why != NULL ? why : "");
    return CLI_EXIT_FAILED;
}

/* config.yaml's model_name, where it can be a name here; NULL: it has none. The caller frees. */
static char *name_of_config(const char *settings)
{
    static const char good[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._";
    OWNED(client_json_free) json_t *root = json_loads(settings, 0, NULL);
    const json_t *config = json_object_get(root, "truss");
    const char *name = json_string_value(json_object_get(config, "model_name"));

    if (name == NULL || *name == '\0')
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
static int check_folder(const char *folder, char **name, struct err *err)
{
    OWNED(model_facts_done) struct model_facts facts = {.file_count = 0};
    OWNED(model_plan_done) struct model_plan plan = {.settings = NULL};
    OWNED(client_json_free) json_t *warnings = NULL;
    size_t i;
    json_t *warning;
    int r = push_archive_look(folder, &facts, err);

    if (r == 0)
        r = model_plan_make(&facts, &plan, err);
    if (r < 0)
        return r;
    (void)fprintf(stderr, "engine %s: %s\n", plan.engine, plan.why);
    if (*name == NULL)
        *name = name_of_config(plan.settings);
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
    OWNED(client_json_free) json_t *answer = NULL;
    OWNED(client_json_free) json_t *state = NULL;
    OWNED(mem_free) char *name = NULL;
    struct push_archive archive;
    const char *id;
    struct err err;
    int r;

    if (!verb_operands("one directory", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    name = *settings->name != '\0' ? xstrdup(settings->name) : NULL;
    if (check_folder(operands[0], &name, &err) < 0 ||
        push_archive_make(operands[0], &archive, &err) < 0)
        return client_complain("push", &err);
    (void)fprintf(stderr, "%llu files, %.1f MB, packed %.1f MB, sha-256 %.12s; %llu left out\n",
                  (unsigned long long)archive.file_count, (double)archive.content_size / 1e6,
                  (double)archive.size / 1e6, archive.digest,
                  (unsigned long long)archive.left_out_count);
    r = upload_archive(client, settings, name, &archive, &answer, &err);
    (void)close(archive.fd);
    if (r < 0)
        return client_complain("push", &err);
    id = json_string_value(json_object_get(answer, "id"));
    if (id == NULL) {
        (void)fprintf(stderr, "headrace push: the gateway's answer has no id\n");
        return CLI_EXIT_REFUSED;
    }
    if (settings->no_wait) {
        (void)printf("%s\n", id);
        return CLI_EXIT_OK;
    }
    if (wait_ready(client, name, id, settings->timeout_ms, &state, &err) < 0)
        return client_complain("push", &err);
    return report(state, settings->json);
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
