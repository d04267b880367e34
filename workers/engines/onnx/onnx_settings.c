/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/onnx/onnx_settings.h"

#include <dirent.h>
#include <string.h>
#include <unistd.h>

#include "schema/model_plan.h"
#include "workers/engines/encoder/encoder_json.h"

void onnx_settings_done(struct onnx_settings *settings)
{
    json_decref(settings->json);
    settings->json = NULL;
}

static int check_keys(json_t *json, struct err *err)
{
    static const char *const known[] = {"file", "task", "join", "outputs", "threads", "batching"};
    const json_t *value;
    const char *key;

    json_object_foreach(json, key, value)
    {
        bool found = false;

        for (size_t i = 0; i < COUNT_OF(known); i++)
            found = found || strcmp(known[i], key) == 0;
        if (!found)
            return err_set(err, ERR_USAGE,
                           "setting '%.60s' is unknown; the onnx engine has file, task, join, "
                           "outputs, threads and batching",
                           key);
    }
    return 0;
}

static int read_wish(const json_t *json, const char *key, const char *first, const char *second,
                     enum onnx_wish *ret_wish, struct err *err)
{
    const char *text = "auto";
    int r = encoder_json_get_text(json, key, &text, err);

    if (r < 0)
        return err_wrap(err, "setting");
    if (strcmp(text, "auto") != 0 && strcmp(text, first) != 0 && strcmp(text, second) != 0)
        return err_set(err, ERR_USAGE, "setting '%s' is '%.40s', allowed are auto, %s and %s", key,
                       text, first, second);
    *ret_wish = strcmp(text, first) == 0    ? ONNX_FIRST
                : strcmp(text, second) == 0 ? ONNX_SECOND
                                            : ONNX_AUTO;
    return 0;
}

/* By the rules that a push has. */
static int find_file(const char *dir, char to[ONNX_NAME_SIZE], struct err *err)
{
    OWNED(mem_free) char *inner = xasprintf("%s/onnx/model.onnx", dir);
    struct model_facts facts = {.file_count = 0};
    struct dirent *entry;
    DIR *folder = opendir(dir);

    if (folder == NULL)
        return err_set_errno(err, ERR_IO, "read '%s'", dir);
    while ((entry = readdir(folder)) != NULL)
        model_facts_note(&facts, entry->d_name);
    (void)closedir(folder);
    if (access(inner, F_OK) == 0)
        model_facts_note(&facts, "onnx/model.onnx");
    if (facts.onnx_file[0] == '\0')
        return err_set(err, ERR_NOT_FOUND,
                       "there is neither model.onnx, nor a single *.onnx, nor onnx/model.onnx");
    if (facts.onnx_count > 1 && strcmp(facts.onnx_file, "model.onnx") != 0)
        return err_set(
            err, ERR_UNSUPPORTED,
            "there are %u files *.onnx and none is model.onnx: the setting 'file' has to "
            "name one",
            facts.onnx_count);
    mem_copy_text_at(to, ONNX_NAME_SIZE, facts.onnx_file);
    return 0;
}

static int read_file(const char *dir, const json_t *json, char to[ONNX_NAME_SIZE], struct err *err)
{
    const char *file = NULL;
    int r = encoder_json_get_text(json, "file", &file, err);

    if (r < 0 || file == NULL)
        return r < 0 ? err_wrap(err, "setting") : find_file(dir, to, err);
    if (strlen(file) >= ONNX_NAME_SIZE)
        return err_set(err, ERR_RANGE, "setting 'file' has %zu bytes, limit %u", strlen(file),
                       ONNX_NAME_SIZE - 1);
    mem_copy_text_at(to, ONNX_NAME_SIZE, file);
    return onnx_file_path_check("setting 'file'", file, err);
}

static int read_outputs(json_t *json, struct onnx_settings *settings, struct err *err)
{
    const json_t *name;
    size_t i;

    settings->outputs = json_object_get(json, "outputs");
    if (settings->outputs == NULL)
        return 0;
    if (!json_is_array(settings->outputs) || json_array_size(settings->outputs) == 0)
        return err_set(err, ERR_USAGE, "setting 'outputs' is no list of one or more names");
    json_array_foreach(settings->outputs, i, name)
    {
        if (!json_is_string(name))
            return err_set(err, ERR_USAGE, "setting 'outputs' has something that is no name");
    }
    return 0;
}

int onnx_settings_read(const char *dir, const char *text, struct onnx_settings *ret_settings,
                       struct err *err)
{
    OWNED(onnx_settings_done) struct onnx_settings settings = {.json = NULL};
    int r;

    r = encoder_json_read_settings(text, &settings.json, err);
    if (r == 0)
        r = check_keys(settings.json, err);
    if (r == 0)
        r = read_wish(settings.json, "task", "tensor", "embed", &settings.task, err);
    if (r == 0)
        r = read_wish(settings.json, "join", "on", "off", &settings.join, err);
    if (r == 0)
        r = encoder_json_get_u32(settings.json, "threads", 1, ONNX_THREAD_COUNT_MAX,
                                 &settings.thread_count, err);
    if (r == 0)
        r = read_outputs(settings.json, &settings, err);
    if (r == 0)
        r = read_file(dir, settings.json, settings.file, err);
    if (r < 0)
        return r;
    *ret_settings = settings;
    settings.json = NULL;
    return 0;
}
