/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/push_checkpoints.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/push_archive.h"
#include "cli/push_folder.h"
#include "cli/push_model.h"
#include "cli/train.h"
#include "schema/truss_config.h"

#define ORIGINS_MAX 8 /* as the gateway takes them */
#define SHOWN_MAX 400

struct bringing {
    const struct client *client;
    char *folder;    /* training_checkpoints in the new one */
    json_t *origins; /* JOB/CHECKPOINT: true */
};

static void bringing_done(struct bringing *bringing)
{
    mem_free(&bringing->folder);
    json_decref(bringing->origins);
}

/* "rank-0/step-1/" and "rank-0/step-1" are all below it; else * crosses slashes. */
static bool is_named(const char *pattern, const char *path)
{
    size_t size = strlen(pattern);
    OWNED(mem_free)
    char *bare = xasprintf("%.*s", (int)(size - (pattern[size - 1] == '/')), pattern);

    return fnmatch(bare, path, 0) == 0 || fnmatch(bare, path, FNM_LEADING_DIR) == 0;
}

static int note_origin(struct bringing *bringing, const char *job, const char *checkpoint,
                       struct err *err)
{
    OWNED(mem_free) char *origin = xasprintf("%s/%s", job, checkpoint);

    if (strpbrk(checkpoint, ",\r\n") != NULL)
        return err_set(err, ERR_UNSUPPORTED, "checkpoint '%.80s': its name has a comma",
                       checkpoint);
    (void)json_object_set_new(bringing->origins, origin, json_true());
    if (json_object_size(bringing->origins) > ORIGINS_MAX)
        return err_set(err, ERR_TOO_BIG,
                       "config.yaml: training_checkpoints names files of more than %d checkpoints",
                       ORIGINS_MAX);
    return 0;
}

/* Where a file stands below its job's folder; the caller frees. */
static char *place_of(const json_t *file)
{
    const char *name = json_string_value(json_object_get(file, "relative_file_name"));

    return xasprintf("rank-%lld/%s",
                     (long long)json_integer_value(json_object_get(file, "node_rank")),
                     name != NULL ? name : "");
}

static int bring_file(struct bringing *bringing, const char *job, const json_t *file,
                      struct err *err)
{
    const char *checkpoint = json_string_value(json_object_get(file, "checkpoint_id"));
    OWNED(mem_free) char *place = place_of(file);
    OWNED(mem_free) char *to = xasprintf("%s/%s/%s", bringing->folder, job, place);
    int r;

    if (checkpoint == NULL)
        return err_set(err, ERR_MALFORMED, "the gateway's list of files has no checkpoint_id");
    r = note_origin(bringing, job, checkpoint, err);
    return r < 0 ? r : train_take_file(bringing->client, file, to, err);
}

static int refuse_pattern(const char *job, const char *pattern, const json_t *files,
                          struct err *err)
{
    OWNED(client_json_free) json_t *seen = json_object();
    char shown[SHOWN_MAX] = "";
    const char *name;
    json_t *file;
    size_t i;

    json_array_foreach((json_t *)files, i, file)
    {
        OWNED(mem_free)
        char *one = xasprintf("rank-%lld/%s/",
                              (long long)json_integer_value(json_object_get(file, "node_rank")),
                              json_string_value(json_object_get(file, "checkpoint_id")));

        (void)json_object_set_new(seen, one, json_true());
    }
    json_object_foreach(seen, name, file)
    {
        size_t used = strlen(shown);

        (void)snprintf(shown + used, sizeof(shown) - used, "%s%s", used > 0 ? ", " : "", name);
    }
    return err_set(err, ERR_NOT_FOUND,
                   "config.yaml: training_checkpoints: job %s has no file '%.100s' in a complete "
                   "checkpoint; there %s%s",
                   job, pattern, shown[0] != '\0' ? "are " : "is none", shown);
}

/* Each file once, however many patterns name it; each pattern names some. */
static int bring_job(struct bringing *bringing, const json_t *reference, struct err *err)
{
    const char *job = json_string_value(json_object_get(reference, "training_job_id"));
    const json_t *patterns = json_object_get(reference, "paths"), *pattern;
    OWNED(client_json_free) json_t *files = json_array();
    size_t i, k;
    json_t *file;
    int r = train_list_files(bringing->client, job, "", files, err);

    json_array_foreach(patterns, k, pattern)
    {
        const char *text = json_string_value(pattern);
        bool found = false;

        for (i = 0; r == 0 && i < json_array_size(files); i++) {
            OWNED(mem_free) char *place = NULL;

            file = json_array_get(files, i);
            place = place_of(file);
            if (!is_named(text, place))
                continue;
            found = true;
            if (json_object_get(file, "brought") == NULL)
                r = bring_file(bringing, job, file, err);
            (void)json_object_set_new(file, "brought", json_true());
        }
        if (r == 0 && !found)
            r = refuse_pattern(job, text, files, err);
    }
    return r;
}

static char *origins_text(const json_t *origins)
{
    char *text = xstrdup("");
    const char *origin;
    json_t *value;

    json_object_foreach((json_t *)origins, origin, value)
    {
        char *longer = xasprintf("%s%s%s", text, *text != '\0' ? "," : "", origin);

        free(text);
        text = longer;
    }
    return text;
}

/* The references of the folder's config.yaml; NULL: it has none. The caller frees. */
static int read_references(const char *folder, json_t **ret_references, struct err *err)
{
    OWNED(model_facts_done) struct model_facts facts = {.file_count = 0};
    OWNED(truss_config_done) struct truss_config truss = {0};
    int r = push_archive_look(folder, &facts, err);

    *ret_references = NULL;
    if (r < 0 || facts.config_yaml == NULL ||
        strstr(facts.config_yaml, TRUSS_CHECKPOINTS_FOLDER) == NULL)
        return r;
    r = truss_config_parse(facts.config_yaml, strlen(facts.config_yaml), &truss, err);
    if (r == 0)
        *ret_references = json_incref(truss.checkpoints);
    return r;
}

int push_checkpoints_bring(const struct client *client, const char *folder, char **ret_above,
                           char **ret_origins, struct err *err)
{
    OWNED(client_json_free) json_t *references = NULL;
    OWNED(push_folder_remove) char *above = NULL;
    OWNED(bringing_done) struct bringing bringing = {.client = client};
    const json_t *one;
    size_t i;
    int r = read_references(folder, &references, err);

    *ret_above = *ret_origins = NULL;
    if (r < 0 || references == NULL)
        return r;
    r = push_folder_make("headrace-push", &above, err);
    if (r < 0)
        return r;
    bringing.folder = xasprintf("%s/" TRUSS_CHECKPOINTS_FOLDER, above);
    bringing.origins = json_object();
    json_array_foreach(references, i, one)
    {
        r = bring_job(&bringing, one, err);
        if (r < 0)
            return r;
    }
    *ret_origins = origins_text(bringing.origins);
    *ret_above = TAKE(above);
    return 0;
}
