/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace train push: config -> checked -> workspace packed -> sent, unless an archive of its
 * digest is there -> project made or found -> job queued.
 */

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/list.h"
#include "cli/push_archive.h"
#include "cli/push_model.h"
#include "cli/train.h"

#define WORKSPACE_SIZE_MAX (5ull << 30)

/* ---- the workspace ---- */

/* A path of the file, which counts from where the file stands; the caller frees. NULL: nothing is
 * there. */
static char *resolve(const char *folder, const char *path)
{
    OWNED(mem_free)
    char *whole = *path == '/' ? xstrdup(path) : xasprintf("%s/%s", folder, path);

    return realpath(whole, NULL);
}

static void paths_free(struct push_sources *sources)
{
    for (size_t i = 0; i < sources->exclude_count; i++)
        free(sources->excludes[i]);
    for (size_t i = 0; i < sources->external_count; i++)
        free(sources->externals[i]);
}

static int read_excludes(const json_t *list, const char *folder, const char *root,
                         struct push_sources *sources, struct err *err)
{
    size_t i, size = strlen(root);
    const json_t *item;

    if (json_array_size(list) > PUSH_SOURCES_MAX)
        return err_set(err, ERR_TOO_BIG, "workspace.exclude_dirs has %zu folders; at most %d",
                       json_array_size(list), PUSH_SOURCES_MAX);
    json_array_foreach(list, i, item)
    {
        OWNED(mem_free) char *path = resolve(folder, json_string_value(item));

        if (path == NULL)
            continue; /* what is not there need not be left out */
        if (strncmp(path, root, size) != 0 || path[size] != '/' ||
            strchr(path + size + 1, '/') != NULL)
            return err_set(err, ERR_USAGE,
                           "workspace.exclude_dirs: '%s' is no folder of the top level of '%s'",
                           json_string_value(item), root);
        sources->excludes[sources->exclude_count++] = xstrdup(path + size + 1);
    }
    return 0;
}

static int read_externals(const json_t *list, const char *folder, struct push_sources *sources,
                          struct err *err)
{
    size_t i;
    const json_t *item;

    if (json_array_size(list) > PUSH_SOURCES_MAX)
        return err_set(err, ERR_TOO_BIG, "workspace.external_dirs has %zu folders; at most %d",
                       json_array_size(list), PUSH_SOURCES_MAX);
    json_array_foreach(list, i, item)
    {
        char *path = resolve(folder, json_string_value(item));

        if (path == NULL)
            return err_set_errno(err, ERR_USAGE, "workspace.external_dirs: '%s'",
                                 json_string_value(item));
        sources->externals[sources->external_count++] = path;
    }
    return 0;
}

static int pack(const struct training_config *config, const char *folder,
                struct push_archive *ret_archive, struct err *err)
{
    const json_t *workspace = json_object_get(config->config, "workspace");
    const char *root_name = json_string_value(json_object_get(workspace, "workspace_root"));
    OWNED(mem_free) char *root = resolve(folder, root_name != NULL ? root_name : ".");
    OWNED(paths_free)
    struct push_sources sources = {.content_size_max = WORKSPACE_SIZE_MAX};
    int r;

    if (root == NULL)
        return err_set_errno(err, ERR_USAGE, "workspace.workspace_root: '%s'", root_name);
    if (strncmp(folder, root, strlen(root)) != 0)
        return err_set(err, ERR_USAGE,
                       "workspace.workspace_root: '%s' does not hold the file's folder, '%s'", root,
                       folder);
    r = read_excludes(json_object_get(workspace, "exclude_dirs"), folder, root, &sources, err);
    if (r == 0)
        r = read_externals(json_object_get(workspace, "external_dirs"), folder, &sources, err);
    return r < 0 ? r : push_archive_make_of(root, &sources, ret_archive, err);
}

/* ---- sent ---- */

static int is_known(const struct client *client, const char *digest, bool *ret_known,
                    struct err *err)
{
    OWNED(mem_free) char *path = path_make("/v1/training_archives/%", digest);
    const struct client_call call = {.method = "HEAD", .path = path};
    struct client_answer answer;
    int r = client_stream(client, &call, NULL, NULL, &answer, err);

    *ret_known = r == 0 && answer.status == 200;
    client_answer_done(&answer);
    return r;
}

static int send_archive(const struct client *client, const struct push_archive *archive,
                        struct err *err)
{
    OWNED(client_json_free) json_t *answer = NULL;
    bool known = false;
    int r = is_known(client, archive->digest, &known, err);

    (void)fprintf(stderr, "workspace: %llu files, %.1f MB, packed %.1f MB, sha-256 %.12s%s\n",
                  (unsigned long long)archive->file_count, (double)archive->content_size / 1e6,
                  (double)archive->size / 1e6, archive->digest, known ? ": known already" : "");
    if (r < 0 || known)
        return r;
    return push_archive_send(client, "/v1/training_archives", NULL, 0, archive, &answer, err);
}

static int make_project(const struct client *client, const char *name, char **ret_id,
                        struct err *err)
{
    OWNED(client_json_free) json_t *body = json_pack("{s:{s:s}}", "training_project", "name", name);
    OWNED(client_json_free) json_t *answer = NULL;
    const struct client_call call = {
        .method = "POST", .path = "/v1/training_projects", .body = body};
    const char *id;
    int status, r = client_exchange(client, &call, &status, &answer, err);

    if (r < 0)
        return r;
    id = json_string_value(json_object_get(json_object_get(answer, "training_project"), "id"));
    if (id == NULL)
        return err_set(err, ERR_MALFORMED, "the gateway's answer has no training_project.id");
    *ret_id = xstrdup(id);
    return 0;
}

/* The job as it is asked for: of its workspace the archive alone. */
static json_t *job_body(const struct training_config *config, const char *digest)
{
    json_t *job = json_copy(config->config);

    (void)json_object_set_new(job, "workspace", json_pack("{s:s}", "archive", digest));
    return json_pack("{s:o}", "training_job", job);
}

static int queue_job(const struct client *client, const char *project,
                     const struct training_config *config, const char *digest, json_t **ret_job,
                     struct err *err)
{
    OWNED(mem_free) char *path = path_make("/v1/training_projects/%/jobs", project);
    OWNED(client_json_free) json_t *body = job_body(config, digest);
    OWNED(client_json_free) json_t *answer = NULL;
    const struct client_call call = {.method = "POST", .path = path, .body = body};
    int status, r = client_exchange(client, &call, &status, &answer, err);

    if (r < 0)
        return r;
    *ret_job = json_incref(json_object_get(answer, "training_job"));
    return *ret_job != NULL
               ? 0
               : err_set(err, ERR_MALFORMED, "the gateway's answer has no training_job");
}

/* ---- all of it ---- */

static void warn(const struct training_config *config)
{
    size_t i;
    const json_t *warning;

    json_array_foreach(config->warnings, i, warning)
    {
        (void)fprintf(stderr, "warning: %s\n", json_string_value(warning));
    }
}

static int push(const struct client *client, const char *project_name,
                const struct training_config *config, const char *folder, json_t **ret_job,
                struct err *err)
{
    OWNED(mem_free) char *project = NULL;
    struct push_archive archive;
    int r = pack(config, folder, &archive, err);

    if (r < 0)
        return r;
    r = send_archive(client, &archive, err);
    (void)close(archive.fd);
    if (r == 0)
        r = make_project(client, project_name, &project, err);
    return r < 0 ? r : queue_job(client, project, config, archive.digest, ret_job, err);
}

static void told(const json_t *job, const char *project, bool json)
{
    const char *outlook = json_string_value(json_object_get(job, "outlook"));
    const char *id = json_string_value(json_object_get(job, "id"));

    if (json) {
        table_print_json(stdout, job);
        return;
    }
    (void)printf("%s\n", id);
    (void)fprintf(stderr, "%s in project '%s', place %lld in the queue\n", train_status(job),
                  project, (long long)json_integer_value(json_object_get(job, "queue_position")));
    if (outlook != NULL)
        (void)fprintf(stderr, "%s\n", outlook);
    (void)fprintf(stderr, "  headrace train logs %s --follow\n", id);
}

int train_push(const struct client *client, const void *values, char **operands, int operand_count)
{
    const struct train_push_settings *settings = values;
    OWNED(training_config_done) struct training_config config = {0};
    OWNED(client_json_free) json_t *job = NULL;
    OWNED(mem_free) char *folder = NULL;
    char project[TRAINING_NAME_SIZE];
    struct err err;
    int r;

    if (!verb_operands("one file or folder", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    r = train_config_read(settings, operands[0], project, &config, &folder, &err);
    if (r < 0)
        return client_complain("train push", &err);
    warn(&config);
    if (settings->check) {
        table_print_json(stdout, config.config);
        return CLI_EXIT_OK;
    }
    if (push(client, project, &config, folder, &job, &err) < 0)
        return client_complain("train push", &err);
    told(job, project, settings->json);
    if (settings->tail) {
        const struct train_logs logs = {.job = json_string_value(json_object_get(job, "id")),
                                        .follow = true,
                                        .json = settings->json};
        bool completed = false;

        (void)fflush(stdout);
        if (train_logs_print(client, &logs, &completed, &err) < 0)
            return client_complain("train push", &err);
        return completed ? CLI_EXIT_OK : CLI_EXIT_FAILED;
    }
    return CLI_EXIT_OK;
}
