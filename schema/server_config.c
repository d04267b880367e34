/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/server_config.h"

#include <jansson.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/buf.h"
#include "schema/secret.h"

#define COMMAND_SIZE_MAX 32768
#define ENDPOINT_SIZE_MAX 2048
#define SECONDS_MAX 3000.0

enum key_kind {
    KEY_COMMAND,
    KEY_ENDPOINT,
    KEY_IMAGE,
    KEY_SECONDS,
    KEY_PORT,
    KEY_USER,
    KEY_SIZE,
    KEY_ENV,
    KEY_NETWORK,
    KEY_SECRETS,
    KEY_PLACE,
};

static const struct key {
    const char *name;
    enum key_kind kind;
    size_t offset;
    double lowest; /* of KEY_SECONDS */
} keys[] = {
    {"start_command", KEY_COMMAND, offsetof(struct server_config, start_command), 0},
    {"server_port", KEY_PORT, offsetof(struct server_config, port), 0},
    {"predict_endpoint", KEY_ENDPOINT, offsetof(struct server_config, predict_endpoint), 0},
    {"readiness_endpoint", KEY_ENDPOINT, offsetof(struct server_config, readiness_endpoint), 0},
    {"liveness_endpoint", KEY_ENDPOINT, offsetof(struct server_config, liveness_endpoint), 0},
    {"environment_variables", KEY_ENV, offsetof(struct server_config, env), 0},
    {"startup_threshold_seconds", KEY_SECONDS, offsetof(struct server_config, startup_ms), 1},
    {"stop_traffic_threshold_seconds", KEY_SECONDS, offsetof(struct server_config, stop_traffic_ms),
     0},
    {"restart_threshold_seconds", KEY_SECONDS, offsetof(struct server_config, restart_ms), 0},
    {"probe_seconds", KEY_SECONDS, offsetof(struct server_config, probe_ms), 0.1},
    {"stop_seconds", KEY_SECONDS, offsetof(struct server_config, stop_ms), 0},
    {"answer_size_max", KEY_SIZE, offsetof(struct server_config, answer_size_max), 0},
    {"network", KEY_NETWORK, offsetof(struct server_config, network_out), 0},
    {"image", KEY_IMAGE, offsetof(struct server_config, image), 0},
    {"secrets", KEY_SECRETS, offsetof(struct server_config, secrets), 0},
    {"run_as_user_id", KEY_USER, offsetof(struct server_config, run_as_user_id), 0},
    {"checkpoint_folder", KEY_PLACE, offsetof(struct server_config, checkpoint_folder), 0},
};

static int read_text(const char *name, const json_t *value, size_t size_max, char **to,
                     struct err *err)
{
    const char *text = json_string_value(value);

    if (text == NULL || text[0] == '\0' || strlen(text) != json_string_length(value) ||
        strlen(text) > size_max)
        return err_set(err, ERR_RANGE, "server: %s must be a string of 1 to %zu bytes", name,
                       size_max);
    *to = xstrdup(text);
    return 0;
}

static int read_endpoint(const char *name, const json_t *value, char **to, struct err *err)
{
    int r = read_text(name, value, ENDPOINT_SIZE_MAX, to, err);

    if (r < 0)
        return r;
    if ((*to)[0] == '/' && strcspn(*to, " \t\r\n#") == strlen(*to))
        return 0;
    return err_set(err, ERR_RANGE,
                   "server: %s is '%.60s': it must be a path that begins with / and has no spaces",
                   name, *to);
}

/* Absolute, and nothing that the options of a sandbox or a container would split. */
static int read_place(const char *name, const json_t *value, char **to, struct err *err)
{
    int r = read_text(name, value, ENDPOINT_SIZE_MAX, to, err);

    if (r < 0)
        return r;
    if ((*to)[0] == '/' && strpbrk(*to, ":;=\n") == NULL && strstr(*to, "/..") == NULL)
        return 0;
    return err_set(err, ERR_RANGE,
                   "server: %s is '%.60s': it must be an absolute path without '..', ':', ';' and "
                   "'='",
                   name, *to);
}

static int read_number(const char *name, const json_t *value, uint64_t lowest, uint64_t highest,
                       uint64_t *to, struct err *err)
{
    json_int_t number = json_integer_value(value);

    if (!json_is_integer(value) || number < 0 || (uint64_t)number < lowest ||
        (uint64_t)number > highest)
        return err_set(err, ERR_RANGE, "server: %s must be an integer from %llu to %llu", name,
                       (unsigned long long)lowest, (unsigned long long)highest);
    *to = (uint64_t)number;
    return 0;
}

static int read_seconds(const struct key *key, const json_t *value, uint64_t *to, struct err *err)
{
    double seconds = json_number_value(value);

    if (!json_is_number(value) || seconds < key->lowest || seconds > SECONDS_MAX)
        return err_set(err, ERR_RANGE, "server: %s must be a number of seconds from %g to %g",
                       key->name, key->lowest, SECONDS_MAX);
    *to = (uint64_t)(seconds * 1000);
    return 0;
}

static int read_env(const json_t *value, char **env, struct err *err)
{
    const char *name;
    json_t *text;
    size_t count = 0;

    if (!json_is_object(value) || json_object_size(value) > SERVER_ENV_MAX)
        return err_set(err, ERR_RANGE,
                       "server: environment_variables must be an object of at most %d texts",
                       SERVER_ENV_MAX);
    json_object_foreach((json_t *)value, name, text)
    {
        if (name[0] == '\0' || strchr(name, '=') != NULL || !json_is_string(text) ||
            strlen(json_string_value(text)) != json_string_length(text))
            return err_set(err, ERR_RANGE,
                           "server: environment_variables: '%.60s' is no name with a text", name);
        if (strcmp(name, "PORT") == 0)
            return err_set(err, ERR_RANGE,
                           "server: environment_variables: PORT is set to server_port; leave it");
        env[count++] = xasprintf("%s=%s", name, json_string_value(text));
    }
    return 0;
}

static int read_network(const json_t *value, bool *to, struct err *err)
{
    const char *text = json_string_value(value);

    if (text != NULL && strcmp(text, "out") == 0) {
        *to = true;
        return 0;
    }
    if (text != NULL && strcmp(text, "none") == 0)
        return 0;
    return err_set(err, ERR_RANGE, "server: network must be \"none\" or \"out\"");
}

static int read_secrets(json_t *value, json_t **to, struct err *err)
{
    const char *name;
    json_t *text;

    if (!json_is_object(value))
        return err_set(err, ERR_RANGE,
                       "server: secrets must be an object of names and null, or a text for want of "
                       "a value");
    json_object_foreach(value, name, text)
    {
        if (secret_name_check(name, err) < 0)
            return err_wrap(err, "server: secrets");
        if (!json_is_null(text) && !json_is_string(text))
            return err_set(err, ERR_RANGE, "server: secrets: '%.60s' must be a text or null", name);
    }
    *to = json_incref(value);
    return 0;
}

static int read_u32(const char *name, const json_t *value, uint32_t highest, uint32_t *to,
                    struct err *err)
{
    uint64_t number;
    int r = read_number(name, value, 0, highest, &number, err);

    if (r == 0)
        *to = (uint32_t)number;
    return r;
}

static int read_key(struct server_config *config, const struct key *key, json_t *value,
                    struct err *err)
{
    void *to = (char *)config + key->offset;

    switch (key->kind) {
    case KEY_COMMAND:
        return read_text(key->name, value, COMMAND_SIZE_MAX, to, err);
    case KEY_IMAGE:
        return read_text(key->name, value, ENDPOINT_SIZE_MAX, to, err);
    case KEY_ENDPOINT:
        return read_endpoint(key->name, value, to, err);
    case KEY_SECONDS:
        return read_seconds(key, value, to, err);
    case KEY_PORT:
        return read_u32(key->name, value, 65535, to, err);
    case KEY_USER:
        return read_u32(key->name, value, INT32_MAX, to, err);
    case KEY_SIZE:
        return read_number(key->name, value, 1024, SERVER_ANSWER_SIZE_MAX, to, err);
    case KEY_ENV:
        return read_env(value, to, err);
    case KEY_NETWORK:
        return read_network(value, to, err);
    case KEY_PLACE:
        return read_place(key->name, value, to, err);
    case KEY_SECRETS:
        return read_secrets(value, to, err);
    }
    NEVER("a kind of key without a reader");
}

static int read_object(struct server_config *config, const json_t *root, struct err *err)
{
    const char *name;
    json_t *value;
    int r = 0;

    json_object_foreach((json_t *)root, name, value)
    {
        const struct key *key = NULL;

        for (size_t i = 0; i < COUNT_OF(keys); i++) {
            if (strcmp(keys[i].name, name) == 0)
                key = &keys[i];
        }
        if (key == NULL)
            return err_set(err, ERR_RANGE, "server: '%.60s' is no setting of this engine", name);
        r = read_key(config, key, value, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int check_whole(struct server_config *config, struct err *err)
{
    if (config->start_command == NULL && config->image == NULL)
        return err_set(err, ERR_RANGE, "server: start_command is missing");
    if (config->predict_endpoint == NULL || config->readiness_endpoint == NULL)
        return err_set(err, ERR_RANGE, "server: %s is missing",
                       config->predict_endpoint == NULL ? "predict_endpoint"
                                                        : "readiness_endpoint");
    if (config->run_as_user_id != 0 && config->image == NULL)
        return err_set(err, ERR_RANGE,
                       "server: run_as_user_id needs an image; a plain process runs as nobody's "
                       "user in its own sandbox");
    if (config->image != NULL && config->port == 0)
        return err_set(err, ERR_RANGE, "server: an image needs the server_port that it listens on");
    if (config->image != NULL && config->image[0] == '-')
        return err_set(err, ERR_RANGE, "server: image is '%.60s': no image begins with -",
                       config->image);
    if (config->liveness_endpoint == NULL)
        config->liveness_endpoint = xstrdup(config->readiness_endpoint);
    return 0;
}

int server_config_parse(const char *json, struct server_config *ret_config, struct err *err)
{
    OWNED(server_config_done)
    struct server_config config = {.probe_ms = 10000,
                                   .startup_ms = 1800000,
                                   .stop_traffic_ms = 1800000,
                                   .restart_ms = 1800000,
                                   .stop_ms = 10000,
                                   .answer_size_max = SERVER_ANSWER_SIZE_MAX};
    json_error_t where;
    json_t *root = json_loads(json, JSON_REJECT_DUPLICATES, &where);
    int r = 0;

    if (root == NULL)
        r = err_set(err, ERR_MALFORMED, "server: settings: line %d: %s", where.line, where.text);
    else if (!json_is_object(root))
        r = err_set(err, ERR_MALFORMED, "server: settings are no object");
    if (r == 0)
        r = read_object(&config, root, err);
    if (r == 0)
        r = check_whole(&config, err);
    json_decref(root);
    if (r < 0)
        return r;
    *ret_config = config;
    config = (struct server_config){0};
    return 0;
}

void server_config_done(struct server_config *config)
{
    mem_free(&config->start_command);
    mem_free(&config->image);
    mem_free(&config->predict_endpoint);
    mem_free(&config->readiness_endpoint);
    mem_free(&config->liveness_endpoint);
    mem_free(&config->checkpoint_folder);
    for (size_t i = 0; config->env[i] != NULL; i++)
        mem_free(&config->env[i]);
    json_decref(config->secrets);
    config->secrets = NULL;
}

char *server_config_command(const struct server_config *config, uint32_t port)
{
    struct buf text = BUF_WITH_LIMIT(2 * COMMAND_SIZE_MAX);
    const char *at = config->start_command == NULL ? "" : config->start_command, *mark;
    char *command;

    while ((mark = strstr(at, SERVER_PORT_MARK)) != NULL) {
        buf_append(&text, at, (size_t)(mark - at));
        buf_printf(&text, "%u", port);
        at = mark + strlen(SERVER_PORT_MARK);
    }
    buf_append_text(&text, at);
    command = xstrdup(buf_text(&text));
    buf_done(&text);
    return command;
}
