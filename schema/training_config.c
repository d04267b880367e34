/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/training_config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "schema/config_table.h"
#include "schema/job_id.h"
#include "schema/yaml_json.h"

#define COMMAND_SIZE_MAX (32u << 10)
#define VARIABLES_MAX 1000
#define MEMORY_SIZE_MIN 0x1p20
#define MEMORY_SIZE_MAX 0x1p46

static const struct config_key keys[] = {
#define KEY(path, kind, fallback, lowest, highest, use, why)                                       \
    {path, CONFIG_##kind, fallback, lowest, highest, CONFIG_USE_##use, why},
#include "schema/training_config.def"
#undef KEY
};

static void json_free(json_t **json_p)
{
    json_decref(*json_p);
    *json_p = NULL;
}

void training_config_done(struct training_config *config)
{
    json_free(&config->config);
    json_free(&config->warnings);
}

/* ---- names, amounts ---- */

int training_name_check(const char *what, const char *name, struct err *err)
{
    size_t size = strlen(name);

    for (const char *at = name; *at != '\0'; at++) {
        if ((unsigned char)*at < ' ' || *at == '/' || *at == 0x7f)
            return err_set(err, ERR_RANGE, "%s is '%.80s'; it must be one line without a slash",
                           what, name);
    }
    if (size == 0 || size >= TRAINING_NAME_SIZE)
        return err_set(err, ERR_RANGE, "%s has %zu bytes; it must have 1 to %d", what, size,
                       TRAINING_NAME_SIZE - 1);
    if (name[0] == ' ' || name[size - 1] == ' ' || name[0] == '.')
        return err_set(err, ERR_RANGE,
                       "%s is '%.80s'; it must not begin with a dot, or begin or end with a space",
                       what, name);
    return 0;
}

int training_memory_parse(const char *text, uint64_t *ret_size, struct err *err)
{
    static const struct {
        const char *unit;
        double size;
    } units[] = {{"", 1},        {"Ki", 0x1p10}, {"Mi", 0x1p20}, {"Gi", 0x1p30}, {"Ti", 0x1p40},
                 {"k", 1e3},     {"M", 1e6},     {"G", 1e9},     {"T", 1e12},    {"K", 1e3},
                 {"KB", 0x1p10}, {"MB", 0x1p20}, {"GB", 0x1p30}, {"TB", 0x1p40}};
    size_t digits = strspn(text, "0123456789.");
    char *end;
    double number = strtod(text, &end);

    for (size_t i = 0; i < COUNT_OF(units) && digits > 0 && end == text + digits; i++) {
        double size = number * units[i].size;

        if (strcmp(end, units[i].unit) != 0)
            continue;
        if (!(size >= MEMORY_SIZE_MIN && size <= MEMORY_SIZE_MAX))
            break;
        *ret_size = (uint64_t)size;
        return 0;
    }
    return err_set(err, ERR_RANGE, "memory is '%.40s'; it must be an amount of 1Mi to 64Ti", text);
}

/* ---- before the table: what has two shapes ---- */

/* {"accelerator": "H100", "count": 2} becomes "H100:2". */
static int fold_accelerator(json_t *job, struct err *err)
{
    json_t *compute = json_object_get(job, "compute");
    json_t *value = json_object_get(compute, "accelerator");
    const json_t *kind = json_object_get(value, "accelerator");
    const json_t *count = json_object_get(value, "count");
    OWNED(mem_free) char *text = NULL;

    if (!json_is_object(value))
        return 0;
    if (json_object_size(value) != (size_t)(kind != NULL) + (size_t)(count != NULL))
        return err_set(err, ERR_RANGE,
                       "compute.accelerator has other keys than accelerator and count");
    if (kind == NULL || json_is_null(kind)) {
        (void)json_object_set_new(compute, "accelerator", json_null());
        return 0;
    }
    if (!json_is_string(kind) || (count != NULL && !json_is_integer(count)) ||
        (count != NULL && (json_integer_value(count) < 1 || json_integer_value(count) > 99)))
        return err_set(err, ERR_RANGE, "compute.accelerator must be a type and a count of 1 to 99");
    text = xasprintf("%.40s:%lld", json_string_value(kind),
                     count != NULL ? (long long)json_integer_value(count) : 1LL);
    (void)json_object_set_new(compute, "accelerator", json_string(text));
    return 0;
}

/* The deprecated enable_cache means a cache_config. */
static int fold_cache(json_t *job, struct err *err)
{
    json_t *runtime = json_object_get(job, "runtime");
    const json_t *enable = json_object_get(runtime, "enable_cache");
    const json_t *config = json_object_get(runtime, "cache_config");

    if (enable == NULL || json_is_null(enable) || !json_is_boolean(enable))
        return 0;
    if (config != NULL && !json_is_null(config))
        return err_set(err, ERR_MISMATCH,
                       "runtime.enable_cache and runtime.cache_config exclude each other");
    (void)json_object_set_new(runtime, "cache_config",
                              json_pack("{s:b, s:b}", "enabled", json_is_true(enable),
                                        "enable_legacy_hf_mount", json_is_true(enable)));
    (void)json_object_set_new(runtime, "enable_cache", json_null());
    return 0;
}

/* ---- behind it: what depends on more than one key ---- */

static const json_t *at(const json_t *root, const char *group, const char *name)
{
    return json_object_get(json_object_get(root, group), name);
}

static int check_commands(const json_t *config, struct err *err)
{
    const json_t *commands = at(config, "runtime", "start_commands");
    const json_t *variables = at(config, "runtime", "environment_variables");
    size_t i, count = json_array_size(commands);
    const json_t *command;

    if (count == 0)
        return err_set(err, ERR_RANGE, "runtime.start_commands is empty: there is nothing to run");
    if (count > TRAINING_COMMANDS_MAX)
        return err_set(err, ERR_RANGE, "runtime.start_commands has %zu texts; at most %d", count,
                       TRAINING_COMMANDS_MAX);
    json_array_foreach(commands, i, command)
    {
        if (json_string_length(command) > COMMAND_SIZE_MAX)
            return err_set(err, ERR_RANGE, "runtime.start_commands[%zu] has %zu bytes; at most %u",
                           i, json_string_length(command), COMMAND_SIZE_MAX);
    }
    if (json_object_size(variables) > VARIABLES_MAX)
        return err_set(err, ERR_RANGE, "runtime.environment_variables has %zu names; at most %d",
                       json_object_size(variables), VARIABLES_MAX);
    return 0;
}

/* What is taken, and comes out otherwise than the key's own table can tell. */
static void warn_of_place(const struct training_config *config)
{
    const char *image = json_string_value(at(config->config, "image", "base_image"));

    if (strcmp(image, "none") != 0)
        (void)json_array_append_new(
            config->warnings,
            json_string("image.base_image: a trainer that has neither Docker nor Podman runs the "
                        "commands with what its machine has (none: each trainer does)"));
    if (json_is_false(json_object_get(config->config, "enable_baseten_workdir")))
        (void)json_array_append_new(
            config->warnings, json_string("enable_baseten_workdir: commands begin in "
                                          "BT_WORKING_DIR, which is the workspace, all the same"));
}

/* Names of our own would be overwritten: who sets one should hear of it. */
static void warn_reserved(const struct training_config *config)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)at(config->config, "runtime", "environment_variables"), name,
                        value)
    {
        OWNED(mem_free) char *text = NULL;

        if (strncmp(name, "BT_", 3) != 0)
            continue;
        text = xasprintf("runtime.environment_variables.%s: names that begin with BT_ are given by "
                         "the trainer, which may overwrite it",
                         name);
        (void)json_array_append_new(config->warnings, json_string(text));
    }
}

/* One entry of load_checkpoint_config.checkpoints; its typ is told from its keys where it is left
 * out. */
static int check_loaded(json_t *entry, size_t i, struct err *err)
{
    static const char *const known[] = {"typ", "job_id", "project_name", "checkpoint_name"};
    const char *typ = json_string_value(json_object_get(entry, "typ")), *key;
    bool named = json_object_get(entry, "checkpoint_name") != NULL;
    struct wire_id job;
    json_t *value;

    if (!json_is_object(entry))
        return err_set(err, ERR_RANGE, "checkpoints[%zu] must be a mapping", i);
    if (json_object_get(entry, "run_id") != NULL ||
        (typ != NULL && strcmp(typ, "loops_checkpoint") == 0))
        return err_set(err, ERR_UNSUPPORTED,
                       "checkpoints[%zu] is not honoured: there are no runs of loops", i);
    json_object_foreach(entry, key, value)
    {
        bool found = false;

        for (size_t k = 0; k < COUNT_OF(known); k++)
            found = found || strcmp(known[k], key) == 0;
        if (!found)
            return err_set(err, ERR_RANGE, "checkpoints[%zu]: there is no key '%.60s'", i, key);
        if (!json_is_null(value) && (!json_is_string(value) || json_string_length(value) == 0 ||
                                     strlen(json_string_value(value)) != json_string_length(value)))
            return err_set(err, ERR_RANGE, "checkpoints[%zu].%.60s must be a text", i, key);
    }
    if (typ == NULL)
        typ = named ? "baseten_named_checkpoint" : "baseten_latest_checkpoint";
    if (strcmp(typ, named ? "baseten_named_checkpoint" : "baseten_latest_checkpoint") != 0)
        return err_set(err, ERR_RANGE,
                       "checkpoints[%zu].typ is '%.60s'; it must be baseten_latest_checkpoint, or "
                       "baseten_named_checkpoint with a checkpoint_name",
                       i, typ);
    if (named && json_string_length(json_object_get(entry, "job_id")) == 0)
        return err_set(err, ERR_RANGE, "checkpoints[%zu].job_id is missing", i);
    if (json_string_length(json_object_get(entry, "job_id")) > 0 &&
        job_id_parse(json_string_value(json_object_get(entry, "job_id")), &job, err) < 0)
        return err_wrap(err, "checkpoints[%zu].job_id", i);
    (void)json_object_set_new(entry, "typ", json_string(typ));
    return 0;
}

static int check_load(const json_t *config, struct err *err)
{
    const json_t *load = at(config, "runtime", "load_checkpoint_config");
    const json_t *list = json_object_get(load, "checkpoints");
    size_t i;
    json_t *entry;

    if (json_is_true(json_object_get(load, "enabled")) &&
        (json_array_size(list) == 0 || json_array_size(list) > TRAINING_LOADED_MAX))
        return err_set(err, ERR_RANGE, "checkpoints has %zu entries; it must have 1 to %d",
                       json_array_size(list), TRAINING_LOADED_MAX);
    json_array_foreach(list, i, entry)
    {
        int r = check_loaded(entry, i, err);

        if (r < 0)
            return r;
    }
    return 0;
}

/* Folders are for whoever packs them. */
static int check_workspace(struct training_config *config, struct err *err)
{
    const json_t *workspace = json_object_get(config->config, "workspace");
    const char *archive = json_string_value(json_object_get(workspace, "archive"));

    if (archive == NULL)
        return 0;
    if (strlen(archive) != TRAINING_DIGEST_SIZE - 1 ||
        strspn(archive, "0123456789abcdef") != strlen(archive))
        return err_set(err, ERR_RANGE,
                       "workspace.archive is '%.80s'; it must be a SHA-256 in 64 hex digits",
                       archive);
    mem_copy_text(config->archive, archive);
    return 0;
}

static int lift_compute(struct training_config *config, struct err *err)
{
    const char *accelerator = json_string_value(at(config->config, "compute", "accelerator"));
    const char *memory = json_string_value(at(config->config, "compute", "memory"));
    int r = training_memory_parse(memory, &config->memory_size, err);

    if (r < 0)
        return err_wrap(err, "compute");
    config->node_count = (uint32_t)json_integer_value(at(config->config, "compute", "node_count"));
    config->cpu_count = (uint32_t)json_integer_value(at(config->config, "compute", "cpu_count"));
    if (accelerator != NULL && *accelerator != '\0') {
        const char *colon = strchrnul(accelerator, ':');

        (void)snprintf(config->gpu_type, sizeof(config->gpu_type), "%.*s",
                       (int)(colon - accelerator), accelerator);
        config->gpu_count = *colon == ':' ? 0 : 1;
        for (const char *digit = colon + 1; *colon == ':' && *digit != '\0'; digit++)
            config->gpu_count = 10 * config->gpu_count + (uint32_t)(*digit - '0');
    }
    return 0;
}

static int conclude(const struct training_origin *origin, struct training_config *config,
                    struct err *err)
{
    const char *name = json_string_value(json_object_get(config->config, "name"));
    int r = name == NULL ? 0 : training_name_check("name", name, err);

    if (r == 0 && at(config->config, "image", "base_image") == NULL)
        r = err_set(err, ERR_RANGE, "image.base_image is missing");
    if (r == 0)
        r = check_commands(config->config, err);
    if (r == 0) {
        r = check_load(config->config, err);
        if (r < 0)
            return err_wrap(err, "runtime.load_checkpoint_config");
    }
    if (r == 0)
        r = check_workspace(config, err);
    if (r == 0)
        r = lift_compute(config, err);
    if (r < 0)
        return r;
    if (name != NULL)
        mem_copy_text(config->name, name);
    config->priority = (int32_t)json_integer_value(json_object_get(config->config, "priority"));
    warn_of_place(config);
    if (json_object_get(config->config, "enable_baseten_workdir") == NULL)
        (void)json_object_set_new(config->config, "enable_baseten_workdir",
                                  json_boolean(origin->workdir));
    (void)json_object_del(json_object_get(config->config, "runtime"), "enable_cache");
    warn_reserved(config);
    return 0;
}

int training_config_job(const struct training_origin *origin, json_t *job,
                        struct training_config *ret_config, struct err *err)
{
    const struct config_table table = {keys, COUNT_OF(keys)};
    OWNED(training_config_done) struct training_config config = {0};
    int r = fold_accelerator(job, err);

    config.config = json_object();
    config.warnings = json_array();
    if (r == 0)
        r = fold_cache(job, err);
    if (r == 0)
        r = config_table_apply(&table, job, config.config, config.warnings, err);
    if (r == 0)
        r = conclude(origin, &config, err);
    if (r < 0)
        return err_wrap(err, "%s", origin->what);
    *ret_config = config;
    config = (struct training_config){0};
    return 0;
}

int training_config_project(const char *what, json_t *document,
                            char ret_project[TRAINING_NAME_SIZE],
                            struct training_config *ret_config, struct err *err)
{
    OWNED(mem_free) char *job_what = xasprintf("%s: job", what);
    const struct training_origin origin = {job_what, true};
    const char *name = json_string_value(json_object_get(document, "name")), *key;
    json_t *job = json_object_get(document, "job"), *value;
    int r;

    if (!json_is_object(document))
        return err_set(err, ERR_MALFORMED, "%s is no mapping of keys to values", what);
    json_object_foreach(document, key, value)
    {
        if (strcmp(key, "name") != 0 && strcmp(key, "job") != 0 && strcmp(key, "team_name") != 0)
            return err_set(err, ERR_RANGE, "%s: there is no key '%.120s'", what, key);
    }
    if (name == NULL || strlen(name) != json_string_length(json_object_get(document, "name")))
        return err_set(err, ERR_RANGE, "%s: name is missing: the project's name, a text", what);
    value = json_object_get(document, "team_name");
    if (value != NULL && !json_is_null(value))
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: team_name is not honoured: a project belongs to the key's tenant",
                       what);
    if (job == NULL)
        return err_set(err, ERR_RANGE, "%s: job is missing", what);
    r = training_name_check("name", name, err);
    if (r < 0)
        return err_wrap(err, "%s", what);
    r = training_config_job(&origin, job, ret_config, err);
    if (r == 0)
        (void)snprintf(ret_project, TRAINING_NAME_SIZE, "%s", name);
    return r;
}

int training_config_yaml(const char *what, const char *text, size_t size,
                         char ret_project[TRAINING_NAME_SIZE], struct training_config *ret_config,
                         struct err *err)
{
    OWNED(json_free) json_t *document = NULL;
    int r = yaml_json_parse(what, text, size, &document, err);

    return r < 0 ? r : training_config_project(what, document, ret_project, ret_config, err);
}

/* ---- as a trainer reads it ---- */

/* A member, where it is none of null and absent; else the other value. Takes the other. */
static json_t *or_else(const json_t *value, json_t *other)
{
    if (value == NULL || json_is_null(value))
        return other;
    json_decref(other);
    return json_incref((json_t *)value);
}

static json_t *gib(const json_t *value)
{
    return json_integer(json_integer_value(value) << 30);
}

static json_t *spec_checkpointing(const json_t *config)
{
    const json_t *from = at(config, "runtime", "checkpointing_config");

    return json_pack("{s:O, s:o, s:o, s:o}", "enabled", json_object_get(from, "enabled"), "path",
                     or_else(json_object_get(from, "checkpoint_path"), json_string("")),
                     "volume_bytes", gib(json_object_get(from, "volume_size_gib")), "keep",
                     or_else(at(config, "headrace", "keep_checkpoints"), json_integer(0)));
}

static json_t *spec_load(const json_t *config)
{
    const json_t *from = at(config, "runtime", "load_checkpoint_config");

    if (!json_is_true(json_object_get(from, "enabled")))
        return json_pack("{s:b}", "enabled", 0);
    return json_deep_copy(from);
}

json_t *training_config_spec(const struct training_config *config)
{
    const json_t *all = config->config;
    const json_t *cache = at(all, "runtime", "cache_config");

    return json_pack(
        "{s:s, s:i, s:I, s:I, s:I, s:s, s:I, s:O, s:O, s:O, s:s, s:o, s:o, s:{s:b}, s:o, s:O, s:o, "
        "s:I, s:O}",
        "name", config->name, "priority", (int)config->priority, "node_count",
        (json_int_t)config->node_count, "cpu_count", (json_int_t)config->cpu_count, "memory_bytes",
        (json_int_t)config->memory_size, "accelerator", config->gpu_type, "gpu_count",
        (json_int_t)config->gpu_count, "base_image", at(all, "image", "base_image"),
        "start_commands", at(all, "runtime", "start_commands"), "environment_variables",
        at(all, "runtime", "environment_variables"), "archive", config->archive, "checkpointing",
        spec_checkpointing(all), "load_checkpoint", spec_load(all), "cache", "enabled",
        json_is_true(json_object_get(cache, "enabled")), "time_limit_seconds",
        or_else(at(all, "headrace", "time_limit_seconds"), json_integer(0)), "grace_seconds",
        at(all, "headrace", "grace_seconds"), "disk_bytes", gib(at(all, "headrace", "scratch_gib")),
        "max_attempts", json_integer_value(at(all, "headrace", "retries")) + 1,
        "enable_baseten_workdir", json_object_get(all, "enable_baseten_workdir"));
}
