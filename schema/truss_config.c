/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/truss_config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schema/config_table.h"
#include "schema/job_id.h"
#include "schema/yaml_json.h"

static const struct config_key keys[] = {
#define KEY(path, kind, fallback, lowest, highest, use, why)                                       \
    {path, CONFIG_##kind, fallback, lowest, highest, CONFIG_USE_##use, why},
#include "schema/truss_config.def"
#undef KEY
};

static void json_free(json_t **json_p)
{
    json_decref(*json_p);
    *json_p = NULL;
}

void truss_config_done(struct truss_config *config)
{
    json_free(&config->config);
    json_free(&config->warnings);
    json_free(&config->server);
}

/* ---- what depends on more than one key ---- */

static const char *text_at(const json_t *root, const char *a, const char *b, const char *c)
{
    const json_t *value = json_object_get(root, a);

    value = b != NULL ? json_object_get(value, b) : value;
    return json_string_value(c != NULL ? json_object_get(value, c) : value);
}

static void warn_reserved(struct truss_config *config)
{
    static const char *const names[] = {"PORT", "HOST", "HOSTNAME", "PATH"};

    for (size_t i = 0; i < COUNT_OF(names); i++) {
        OWNED(mem_free) char *text = NULL;

        if (json_object_get(json_object_get(config->config, "environment_variables"), names[i]) ==
            NULL)
            continue;
        text = xasprintf("environment_variables.%s: reserved, and dropped", names[i]);
        (void)json_array_append_new(config->warnings, json_string(text));
    }
}

/* Frames between a server and its clients are nobody's but theirs. */
static void warn_pings(struct truss_config *config)
{
    static const char *const names[] = {"ping_interval_seconds", "ping_timeout_seconds"};
    const json_t *runtime = json_object_get(config->config, "runtime");

    for (size_t i = 0; i < COUNT_OF(names); i++) {
        OWNED(mem_free) char *text = NULL;

        if (json_object_get(json_object_get(runtime, "transport"), names[i]) == NULL)
            continue;
        text = xasprintf("runtime.transport.%s: without effect, a server pings its clients itself",
                         names[i]);
        (void)json_array_append_new(config->warnings, json_string(text));
    }
}

/* A value in the file is kept as it stands, for everybody who may see the deployment. */
static void warn_open_secrets(struct truss_config *config)
{
    const char *name;
    json_t *value;

    json_object_foreach(json_object_get(config->config, "secrets"), name, value)
    {
        OWNED(mem_free) char *text = NULL;

        if (json_string_length(value) == 0)
            continue;
        text = xasprintf("secrets.%s: its value stands in the file, where it is no secret; write "
                         "null, and `headrace secrets set %s`",
                         name, name);
        (void)json_array_append_new(config->warnings, json_string(text));
    }
}

static int check_python_code(const struct truss_config *config, struct err *err)
{
    const char *server = text_at(config->config, "build", "model_server", NULL);
    const char *image = text_at(config->config, "base_image", "image", NULL);

    if (image != NULL && *image != '\0')
        return err_set(err, ERR_UNSUPPORTED,
                       "config.yaml: base_image is not honoured: Python code runs in a virtual "
                       "environment on the machine itself; only docker_server has an image");
    if (strcmp(server, "TrussServer") != 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "config.yaml: build.model_server is '%s': TensorRT engines are not built",
                       server);
    if (json_array_size(json_object_get(config->config, "requirements")) > 0 &&
        !json_is_null(json_object_get(config->config, "requirements_file")))
        return err_set(err, ERR_MISMATCH,
                       "config.yaml: requirements and requirements_file exclude each other");
    return 0;
}

/* The settings of the `server` engine: docs/engines.md has them. */
static int lift_server(struct truss_config *config, struct err *err)
{
    static const char *const names[] = {"start_command",     "server_port",
                                        "predict_endpoint",  "readiness_endpoint",
                                        "liveness_endpoint", "run_as_user_id"};
    static const char *const checks[] = {
        "startup_threshold_seconds", "stop_traffic_threshold_seconds", "restart_threshold_seconds"};
    const json_t *from = json_object_get(config->config, "docker_server");
    const json_t *runtime = json_object_get(config->config, "runtime");
    const char *image = text_at(config->config, "base_image", "image", NULL);
    json_t *variables = json_deep_copy(json_object_get(config->config, "environment_variables"));

    for (size_t i = 1; i < 5; i++) {
        if (json_object_get(from, names[i]) == NULL) {
            json_decref(variables);
            return err_set(err, ERR_RANGE, "config.yaml: docker_server.%s is missing", names[i]);
        }
    }
    config->server = json_object();
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        json_t *value = json_object_get(from, names[i]);

        if (value != NULL && !json_is_null(value))
            (void)json_object_set(config->server, names[i], value);
    }
    for (size_t i = 0; i < COUNT_OF(checks); i++) {
        json_t *value = json_object_get(json_object_get(runtime, "health_checks"), checks[i]);

        if (value != NULL && !json_is_null(value))
            (void)json_object_set(config->server, checks[i], value);
    }
    if (json_object_size(json_object_get(config->config, "secrets")) > 0)
        (void)json_object_set(config->server, "secrets",
                              json_object_get(config->config, "secrets"));
    (void)json_object_del(variables, "PORT");
    (void)json_object_set_new(config->server, "environment_variables", variables);
    if (image != NULL && *image != '\0')
        (void)json_object_set_new(config->server, "image", json_string(image));
    if (config->checkpoints != NULL)
        (void)json_object_set(
            config->server, "checkpoint_folder",
            json_object_get(json_object_get(config->config, "training_checkpoints"),
                            "download_folder"));
    if (json_object_get(config->server, "start_command") == NULL &&
        json_object_get(config->server, "image") == NULL)
        return err_set(err, ERR_RANGE, "config.yaml: docker_server.start_command is missing");
    return 0;
}

/* A pattern of files, `rank-0/step-100/` or with * ? [ ]: below the job, wherever it is put. */
static bool pattern_ok(const json_t *value)
{
    const char *text = json_string_value(value);

    if (text == NULL || strlen(text) != json_string_length(value) || strlen(text) > 512 ||
        strncmp(text, "rank-", 5) != 0 || strpbrk(text, "\\\n\r\t,") != NULL)
        return false;
    for (const char *at = text; *at != '\0'; at += *at == '/') {
        if (strncmp(at, "../", 3) == 0 || strcmp(at, "..") == 0)
            return false;
        at += strcspn(at, "/");
    }
    return true;
}

static int check_reference(const json_t *one, size_t at, struct err *err)
{
    const char *job = json_string_value(json_object_get(one, "training_job_id"));
    const json_t *paths = json_object_get(one, "paths");
    struct wire_id id;
    size_t i;
    json_t *path;

    if (job == NULL || json_object_size(one) != (paths == NULL ? 1 : 2) ||
        job_id_parse(job, &id, err) < 0)
        return err_set(err, ERR_RANGE,
                       "config.yaml: training_checkpoints.artifact_references[%zu] must be a "
                       "mapping of training_job_id, the id of a training job, and paths",
                       at);
    if (json_array_size(paths) == 0 || json_array_size(paths) > TRUSS_PATTERNS_MAX)
        return err_set(err, ERR_RANGE,
                       "config.yaml: training_checkpoints.artifact_references[%zu].paths must be a "
                       "list of 1 to %d texts",
                       at, TRUSS_PATTERNS_MAX);
    json_array_foreach(paths, i, path)
    {
        if (!pattern_ok(path))
            return err_set(err, ERR_RANGE,
                           "config.yaml: training_checkpoints.artifact_references[%zu].paths[%zu] "
                           "is '%.80s'; it must be like rank-0/CHECKPOINT/ or "
                           "rank-0/CHECKPOINT/*, without '..'",
                           at, i, json_is_string(path) ? json_string_value(path) : "no text");
    }
    return 0;
}

static int check_checkpoints(struct truss_config *config, struct err *err)
{
    const char *folder = text_at(config->config, "training_checkpoints", "download_folder", NULL);
    json_t *list = json_object_get(json_object_get(config->config, "training_checkpoints"),
                                   "artifact_references");
    size_t i;
    json_t *one;

    if (folder != NULL && strpbrk(folder, ":;=") != NULL)
        return err_set(err, ERR_RANGE,
                       "config.yaml: training_checkpoints.download_folder is '%.80s'; it must have "
                       "no ':', ';' or '='",
                       folder);
    if (json_array_size(list) > TRUSS_REFERENCES_MAX)
        return err_set(err, ERR_RANGE,
                       "config.yaml: training_checkpoints.artifact_references has %zu entries; at "
                       "most %d",
                       json_array_size(list), TRUSS_REFERENCES_MAX);
    json_array_foreach(list, i, one)
    {
        int r = check_reference(one, i, err);

        if (r < 0)
            return r;
    }
    config->checkpoints = json_array_size(list) > 0 ? list : NULL;
    return 0;
}

static int conclude(struct truss_config *config, struct err *err)
{
    const json_t *runtime = json_object_get(config->config, "runtime");
    json_t *resources = json_object_get(config->config, "resources");
    const char *accelerator = json_string_value(json_object_get(resources, "accelerator"));
    int r;

    if (strcmp(text_at(config->config, "runtime", "transport", "kind"), "grpc") == 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "config.yaml: runtime.transport.kind is 'grpc', and only http and "
                       "websocket are served");
    config->concurrency = (uint32_t)json_integer_value(
        json_object_get(runtime, "predict_concurrency"));
    config->accelerator = accelerator != NULL && *accelerator != '\0';
    (void)json_object_set_new(resources, "use_gpu", json_boolean(config->accelerator));
    warn_reserved(config);
    warn_open_secrets(config);
    r = check_checkpoints(config, err);
    if (r < 0)
        return r;
    if (json_is_object(json_object_get(config->config, "docker_server"))) {
        warn_pings(config);
        return lift_server(config, err);
    }
    return check_python_code(config, err);
}

int truss_config_parse(const char *text, size_t size, struct truss_config *ret_config,
                       struct err *err)
{
    OWNED(json_free) json_t *document = NULL;
    OWNED(truss_config_done) struct truss_config config = {0};
    const struct config_table table = {keys, COUNT_OF(keys)};
    int r = yaml_json_parse("config.yaml", text, size, &document, err);

    if (r < 0)
        return r;
    config.config = json_object();
    config.warnings = json_array();
    r = config_table_apply(&table, document, config.config, config.warnings, err);
    if (r < 0)
        return err_wrap(err, "config.yaml");
    if (r == 0)
        r = conclude(&config, err);
    if (r < 0)
        return r;
    *ret_config = config;
    config = (struct truss_config){0};
    return 0;
}
