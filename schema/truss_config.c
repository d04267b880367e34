/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/truss_config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schema/secret.h"
#include "schema/yaml_json.h"

#define PATH_SIZE 128

enum kind {
    KIND_TEXT,
    KIND_TEXT_OR_NULL,
    KIND_PATH, /* below the pushed directory */
    KIND_PATH_OR_NULL,
    KIND_ENDPOINT,
    KIND_INT,
    KIND_INT_OR_NULL,
    KIND_NUMBER,
    KIND_BOOL,
    KIND_BOOL_OR_NULL,
    KIND_AMOUNT, /* a text, or a number that is taken as one */
    KIND_TEXTS,
    KIND_LIST,
    KIND_MAP,
    KIND_VALUES,  /* name to text; numbers and bools become texts */
    KIND_SECRETS, /* name to text or null */
    KIND_PYTHON,
    KIND_ACCELERATOR,
    KIND_TRANSPORT,
    KIND_SERVER,
    KIND_GROUP,
    KIND_GROUP_OR_NULL,
};

enum use {
    USE_HONOURED,
    USE_WORDS,
    USE_NOTED,
    USE_REFUSED,
};

static const struct key {
    const char *path;
    enum kind kind;
    const char *fallback;
    json_int_t lowest, highest;
    enum use use;
    const char *why;
} keys[] = {
#define KEY(path, kind, fallback, lowest, highest, use, why)                                       \
    {path, KIND_##kind, fallback, lowest, highest, USE_##use, why},
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

/* ---- kinds ---- */

static int refuse(const struct key *key, const char *must, struct err *err)
{
    return err_set(err, ERR_RANGE, "config.yaml: %s must be %s", key->path, must);
}

static bool text_ok(const json_t *value)
{
    return json_is_string(value) && strlen(json_string_value(value)) == json_string_length(value);
}

/* A path that stays below the directory: nothing absolute, no empty part, '.' or '..'. */
static bool path_ok(const char *path)
{
    if (*path == '\0' || *path == '/' || strlen(path) > 512 || strpbrk(path, "\\\n\r\t") != NULL)
        return false;
    for (const char *at = path; *at != '\0'; at += *at == '/') {
        size_t part = strcspn(at, "/");

        if (part == 0 || (part <= 2 && strncmp(at, "..", part) == 0))
            return false;
        at += part;
    }
    return true;
}

static int check_whole(const struct key *key, const json_t *value, struct err *err)
{
    if (!json_is_integer(value))
        return refuse(key, "a whole number", err);
    if (json_integer_value(value) < key->lowest || json_integer_value(value) > key->highest)
        return err_set(err, ERR_RANGE, "config.yaml: %s is %lld; it must be %lld to %lld",
                       key->path, (long long)json_integer_value(value), (long long)key->lowest,
                       (long long)key->highest);
    return 0;
}

static int check_texts(const struct key *key, const json_t *value, struct err *err)
{
    size_t i;
    json_t *item;

    if (!json_is_array(value))
        return refuse(key, "a list of texts", err);
    json_array_foreach(value, i, item)
    {
        if (!text_ok(item) || json_string_length(item) == 0 ||
            strpbrk(json_string_value(item), "\n\r") != NULL)
            return err_set(err, ERR_RANGE, "config.yaml: %s[%zu] must be a text of one line",
                           key->path, i);
    }
    return 0;
}

/* The shortest decimal that reads back as the same number, as Python prints it. */
static json_t *text_of_real(double number)
{
    char text[40];

    for (int digits = 1; digits <= 17; digits++) {
        json_t *back;
        bool same;

        (void)snprintf(text, sizeof(text), "%.*g", digits, number);
        if (strpbrk(text, ".e") == NULL)
            (void)snprintf(text + strlen(text), sizeof(text) - strlen(text), ".0");
        back = json_loads(text, JSON_DECODE_ANY, NULL);
        same = json_real_value(back) == number;
        json_decref(back);
        if (same)
            break;
    }
    return json_string(text);
}

/* A number or bool as the text that Python's str() makes; NULL: it is neither, nor a text. */
static json_t *text_of(const json_t *value)
{
    if (json_is_string(value))
        return json_incref((json_t *)value);
    if (json_is_boolean(value))
        return json_string(json_is_true(value) ? "true" : "false");
    if (json_is_real(value))
        return text_of_real(json_real_value(value));
    if (json_is_integer(value)) {
        OWNED(mem_free)
        char *text = xasprintf("%lld", (long long)json_integer_value(value));

        return json_string(text);
    }
    return NULL;
}

static int check_values(const struct key *key, json_t *value, struct err *err)
{
    const char *name;
    json_t *item;
    void *next;

    if (!json_is_object(value))
        return refuse(key, "a mapping of names to texts", err);
    json_object_foreach_safe(value, next, name, item)
    {
        json_t *text = text_of(item);

        if (*name == '\0' || strchr(name, '=') != NULL || text == NULL || !text_ok(text)) {
            json_decref(text);
            return err_set(err, ERR_RANGE, "config.yaml: %s: '%.60s' is no name with a text",
                           key->path, name);
        }
        (void)json_object_set_new(value, name, text);
    }
    return 0;
}

static int check_secrets(const struct key *key, json_t *value, struct err *err)
{
    const char *name;
    json_t *item;

    if (!json_is_object(value))
        return refuse(key, "a mapping of names to texts or null", err);
    json_object_foreach(value, name, item)
    {
        if (secret_name_check(name, err) < 0)
            return err_wrap(err, "config.yaml: secrets");
        if (!json_is_null(item) && !text_ok(item))
            return err_set(err, ERR_RANGE, "config.yaml: secrets: '%.60s' must be a text or null",
                           name);
    }
    return 0;
}

static int check_word(const struct key *key, const json_t *value, const char *const words[],
                      size_t count, struct err *err)
{
    OWNED(mem_free) char *list = xstrdup("one of");
    const char *text = json_string_value(value);

    for (size_t i = 0; i < count; i++) {
        char *longer;

        if (text != NULL && strcmp(text, words[i]) == 0)
            return 0;
        longer = xasprintf("%s%s %s", list, i > 0 ? "," : "", words[i]);
        free(list);
        list = longer;
    }
    return refuse(key, list, err);
}

static int check_accelerator(const struct key *key, json_t *value, struct err *err)
{
    static const char *const kinds[] = {"T4",        "L4",    "A10G",      "V100",         "A100",
                                        "A100_40GB", "H100",  "H100_40GB", "H200",         "B200",
                                        "B300",      "GB300", "L40S",      "RTX_PRO_6000", "B10"};
    const char *text = json_string_value(value), *count;
    OWNED(json_free) json_t *kind = NULL;

    if (json_is_null(value) || (text != NULL && *text == '\0'))
        return 0;
    if (!text_ok(value))
        return refuse(key, "TYPE or TYPE:N", err);
    count = strchrnul(text, ':');
    kind = json_stringn(text, (size_t)(count - text));
    if (*count != '\0' && (strspn(count + 1, "0123456789") != strlen(count + 1) ||
                           count[1] == '\0' || count[1] == '0' || strlen(count) > 3))
        return refuse(key, "TYPE or TYPE:N with N of 1 to 99", err);
    return check_word(key, kind, kinds, COUNT_OF(kinds), err);
}

static int check_python(const struct key *key, const json_t *value, struct err *err)
{
    static const char *const versions[] = {"py39", "py310", "py311", "py312", "py313", "py314"};

    return check_word(key, value, versions, COUNT_OF(versions), err);
}

static int check_text(const struct key *key, const json_t *value, struct err *err)
{
    if (!text_ok(value))
        return refuse(key, "a text", err);
    if ((key->kind == KIND_PATH || key->kind == KIND_PATH_OR_NULL) &&
        !path_ok(json_string_value(value)))
        return err_set(err, ERR_RANGE,
                       "config.yaml: %s is '%.80s'; it must be a path inside of the directory, "
                       "without '..'",
                       key->path, json_string_value(value));
    if (key->kind == KIND_ENDPOINT && json_string_value(value)[0] != '/')
        return refuse(key, "a path that begins with /", err);
    return 0;
}

static int check_group(const struct key *key, const json_t *value, struct err *err)
{
    return json_is_object(value) ? 0 : refuse(key, "a mapping", err);
}

static bool may_be_null(enum kind kind)
{
    return kind == KIND_TEXT_OR_NULL || kind == KIND_PATH_OR_NULL || kind == KIND_INT_OR_NULL ||
           kind == KIND_BOOL_OR_NULL || kind == KIND_ACCELERATOR || kind == KIND_GROUP_OR_NULL ||
           kind == KIND_LIST || kind == KIND_MAP;
}

static int check_kind(const struct key *key, json_t *value, struct err *err)
{
    static const char *const transports[] = {"http", "websocket", "grpc"};
    static const char *const servers[] = {"TrussServer", "TRT_LLM"};

    if (json_is_null(value) && may_be_null(key->kind))
        return 0;
    switch (key->kind) {
    case KIND_TEXT:
    case KIND_TEXT_OR_NULL:
    case KIND_PATH:
    case KIND_PATH_OR_NULL:
    case KIND_ENDPOINT:
        return check_text(key, value, err);
    case KIND_INT:
    case KIND_INT_OR_NULL:
        return check_whole(key, value, err);
    case KIND_NUMBER: /* of seconds */
        return json_is_number(value) && json_number_value(value) > 0
                   ? 0
                   : refuse(key, "a number over 0", err);
    case KIND_BOOL:
    case KIND_BOOL_OR_NULL:
        return json_is_boolean(value) ? 0 : refuse(key, "true or false", err);
    case KIND_AMOUNT:
        return text_ok(value) || json_is_number(value) ? 0 : refuse(key, "an amount", err);
    case KIND_TEXTS:
        return check_texts(key, value, err);
    case KIND_LIST:
        return json_is_array(value) ? 0 : refuse(key, "a list", err);
    case KIND_MAP:
        return json_is_object(value) ? 0 : refuse(key, "a mapping", err);
    case KIND_VALUES:
        return check_values(key, value, err);
    case KIND_SECRETS:
        return check_secrets(key, value, err);
    case KIND_PYTHON:
        return check_python(key, value, err);
    case KIND_ACCELERATOR:
        return check_accelerator(key, value, err);
    case KIND_TRANSPORT:
        return check_word(key, value, transports, COUNT_OF(transports), err);
    case KIND_SERVER:
        return check_word(key, value, servers, COUNT_OF(servers), err);
    case KIND_GROUP:
    case KIND_GROUP_OR_NULL:
        return check_group(key, value, err);
    }
    return 0;
}

/* ---- the table against the document ---- */

static const struct key *key_find(const char *path)
{
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        if (strcmp(keys[i].path, path) == 0)
            return &keys[i];
    }
    return NULL;
}

static bool is_group(const struct key *key)
{
    return key->kind == KIND_GROUP || key->kind == KIND_GROUP_OR_NULL;
}

/* Every key of the document is in the table. */
static int check_known(const json_t *map, const char *above, struct err *err)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)map, name, value)
    {
        OWNED(mem_free) char *path = xasprintf("%s%s%s", above, *above != '\0' ? "." : "", name);
        const struct key *key = key_find(path);
        int r;

        if (key == NULL || strchr(name, '.') != NULL)
            return err_set(err, ERR_RANGE, "config.yaml: there is no key '%.120s'", path);
        r = is_group(key) && json_is_object(value) ? check_known(value, path, err) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

/* The mapping that a path's last name stands in, in `root`; NULL: a group above is absent. */
static json_t *map_of(json_t *root, const char *path, const char **ret_name)
{
    char part[PATH_SIZE];
    const char *dot;

    while (root != NULL && (dot = strchr(path, '.')) != NULL) {
        (void)snprintf(part, sizeof(part), "%.*s", (int)(dot - path), path);
        root = json_object_get(root, part);
        path = dot + 1;
    }
    *ret_name = path;
    return json_is_object(root) ? root : NULL;
}

static bool is_empty(const json_t *value)
{
    return json_is_null(value) || (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0) ||
           (json_is_string(value) && json_string_length(value) == 0);
}

/* Says or refuses what is not honoured, once it differs from its default. */
static int heed(const struct key *key, const json_t *value, const json_t *fallback,
                json_t *warnings, struct err *err)
{
    OWNED(mem_free) char *text = NULL;

    if (key->use == USE_HONOURED || key->use == USE_WORDS || is_empty(value) ||
        json_equal(value, fallback) || (fallback == NULL && json_is_false(value)))
        return 0;
    if (key->use == USE_REFUSED)
        return err_set(err, ERR_UNSUPPORTED, "config.yaml: %s is not honoured: %s", key->path,
                       key->why);
    text = xasprintf("%s: %s", key->path, key->why);
    (void)json_array_append_new(warnings, json_string(text));
    return 0;
}

/* One key of the table: its value or default goes into `whole`. */
static int take(const struct key *key, json_t *document, json_t *whole, json_t *warnings,
                struct err *err)
{
    const char *name;
    json_t *from = map_of(document, key->path, &name);
    json_t *to = map_of(whole, key->path, &name);
    json_t *value = json_object_get(from, name);
    OWNED(json_free)
    json_t *fallback = *key->fallback != '\0' ? json_loads(key->fallback, JSON_DECODE_ANY, NULL)
                                              : NULL;
    int r;

    if (to == NULL)
        return 0; /* of a group that is absent */
    if (value != NULL) {
        r = check_kind(key, value, err);
        if (r == 0)
            r = heed(key, value, fallback, warnings, err);
        if (r < 0)
            return r;
    }
    if (is_group(key) && (json_is_object(value) || key->kind == KIND_GROUP))
        (void)json_object_set_new(to, name, json_object());
    else if (value != NULL && key->kind == KIND_AMOUNT)
        (void)json_object_set_new(to, name, text_of(value));
    else if (value != NULL)
        (void)json_object_set(to, name, value);
    else if (fallback != NULL)
        (void)json_object_set(to, name, fallback);
    return 0;
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
    if (json_object_get(config->server, "start_command") == NULL &&
        json_object_get(config->server, "image") == NULL)
        return err_set(err, ERR_RANGE, "config.yaml: docker_server.start_command is missing");
    return 0;
}

static int conclude(struct truss_config *config, struct err *err)
{
    const json_t *runtime = json_object_get(config->config, "runtime");
    json_t *resources = json_object_get(config->config, "resources");
    const char *accelerator = json_string_value(json_object_get(resources, "accelerator"));

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
    int r = yaml_json_parse("config.yaml", text, size, &document, err);

    if (r == 0 && !json_is_object(document))
        r = err_set(err, ERR_MALFORMED, "config.yaml is no mapping of keys to values");
    if (r == 0)
        r = check_known(document, "", err);
    if (r < 0)
        return r;
    config.config = json_object();
    config.warnings = json_array();
    for (size_t i = 0; r == 0 && i < COUNT_OF(keys); i++)
        r = take(&keys[i], document, config.config, config.warnings, err);
    if (r == 0)
        r = conclude(&config, err);
    if (r < 0)
        return r;
    *ret_config = config;
    config = (struct truss_config){0};
    return 0;
}
