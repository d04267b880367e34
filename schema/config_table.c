/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/config_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schema/secret.h"

#define PATH_SIZE 128

static void json_free(json_t **json_p)
{
    json_decref(*json_p);
    *json_p = NULL;
}

/* ---- kinds ---- */

/* The value is shown where it is one; NULL: it could be a secret. */
static int refuse(const struct config_key *key, const json_t *value, const char *must,
                  struct err *err)
{
    OWNED(mem_free) char *text = NULL;

    if (value != NULL && !json_is_array(value) && !json_is_object(value))
        text = json_dumps(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    if (text == NULL)
        return err_set(err, ERR_RANGE, "%s must be %s", key->path, must);
    return err_set(err, ERR_RANGE, "%s must be %s, not %.60s", key->path, must, text);
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

static int check_whole(const struct config_key *key, const json_t *value, struct err *err)
{
    if (!json_is_integer(value))
        return refuse(key, value, "a whole number", err);
    if (json_integer_value(value) < key->lowest || json_integer_value(value) > key->highest)
        return err_set(err, ERR_RANGE, "%s is %lld; it must be %lld to %lld", key->path,
                       (long long)json_integer_value(value), (long long)key->lowest,
                       (long long)key->highest);
    return 0;
}

static int check_texts(const struct config_key *key, const json_t *value, struct err *err)
{
    size_t i;
    json_t *item;

    if (!json_is_array(value))
        return refuse(key, value, "a list of texts", err);
    json_array_foreach(value, i, item)
    {
        if (!text_ok(item) || json_string_length(item) == 0)
            return err_set(err, ERR_RANGE, "%s[%zu] must be a text that is not empty", key->path,
                           i);
        if (key->kind == CONFIG_TEXTS && strpbrk(json_string_value(item), "\n\r") != NULL)
            return err_set(err, ERR_RANGE, "%s[%zu] must be a text of one line", key->path, i);
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

/* A reference to a secret, {"name": NAME}, as it is; NULL: it is none. */
static json_t *secret_of(const json_t *value)
{
    const json_t *name = json_object_get(value, "name");
    struct err err;

    if (json_object_size(value) != 1 || !text_ok(name) ||
        secret_name_check(json_string_value(name), &err) < 0)
        return NULL;
    return json_incref((json_t *)value);
}

static int check_values(const struct config_key *key, json_t *value, struct err *err)
{
    const char *name;
    json_t *item;
    void *next;

    if (!json_is_object(value))
        return refuse(key, NULL, "a mapping of names to texts", err);
    json_object_foreach_safe(value, next, name, item)
    {
        json_t *text = key->kind == CONFIG_ENVIRONMENT && json_is_object(item) ? secret_of(item)
                                                                               : text_of(item);

        if (*name == '\0' || strchr(name, '=') != NULL || text == NULL ||
            !(text_ok(text) || json_is_object(text))) {
            json_decref(text);
            return err_set(err, ERR_RANGE, "%s: '%.60s' is no name with a text", key->path, name);
        }
        (void)json_object_set_new(value, name, text);
    }
    return 0;
}

static int check_secrets(const struct config_key *key, json_t *value, struct err *err)
{
    const char *name;
    json_t *item;

    if (!json_is_object(value))
        return refuse(key, NULL, "a mapping of names to texts or null", err);
    json_object_foreach(value, name, item)
    {
        if (secret_name_check(name, err) < 0)
            return err_wrap(err, "secrets");
        if (!json_is_null(item) && !text_ok(item))
            return err_set(err, ERR_RANGE, "secrets: '%.60s' must be a text or null", name);
    }
    return 0;
}

static int check_word(const struct config_key *key, const json_t *value, const char *const words[],
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
    return refuse(key, value, list, err);
}

static int check_accelerator(const struct config_key *key, json_t *value, struct err *err)
{
    static const char *const kinds[] = {"T4",        "L4",    "A10G",      "V100",         "A100",
                                        "A100_40GB", "H100",  "H100_40GB", "H200",         "B200",
                                        "B300",      "GB300", "L40S",      "RTX_PRO_6000", "B10"};
    const char *text = json_string_value(value), *count;
    OWNED(json_free) json_t *kind = NULL;

    if (json_is_null(value) || (text != NULL && *text == '\0'))
        return 0;
    if (!text_ok(value))
        return refuse(key, value, "TYPE or TYPE:N", err);
    count = strchrnul(text, ':');
    kind = json_stringn(text, (size_t)(count - text));
    if (*count != '\0' && (strspn(count + 1, "0123456789") != strlen(count + 1) ||
                           count[1] == '\0' || count[1] == '0' || strlen(count) > 3))
        return refuse(key, value, "TYPE or TYPE:N with N of 1 to 99", err);
    return check_word(key, kind, kinds, COUNT_OF(kinds), err);
}

static int check_python(const struct config_key *key, const json_t *value, struct err *err)
{
    static const char *const versions[] = {"py39", "py310", "py311", "py312", "py313", "py314"};

    return check_word(key, value, versions, COUNT_OF(versions), err);
}

static int check_text(const struct config_key *key, const json_t *value, struct err *err)
{
    if (!text_ok(value))
        return refuse(key, value, "a text", err);
    if ((key->kind == CONFIG_PATH || key->kind == CONFIG_PATH_OR_NULL) &&
        !path_ok(json_string_value(value)))
        return err_set(err, ERR_RANGE,
                       "%s is '%.80s'; it must be a path inside of the directory, "
                       "without '..'",
                       key->path, json_string_value(value));
    if ((key->kind == CONFIG_PLACE || key->kind == CONFIG_PLACE_OR_NULL) &&
        !(json_string_value(value)[0] == '/' && path_ok(json_string_value(value) + 1)))
        return err_set(err, ERR_RANGE, "%s is '%.80s'; it must be an absolute path, without '..'",
                       key->path, json_string_value(value));
    if (key->kind == CONFIG_ENDPOINT && json_string_value(value)[0] != '/')
        return refuse(key, value, "a path that begins with /", err);
    return 0;
}

static int check_group(const struct config_key *key, const json_t *value, struct err *err)
{
    return json_is_object(value) ? 0 : refuse(key, value, "a mapping", err);
}

static bool may_be_null(enum config_kind kind)
{
    return kind == CONFIG_PLACE_OR_NULL || kind == CONFIG_TEXT_OR_NULL ||
           kind == CONFIG_PATH_OR_NULL || kind == CONFIG_INT_OR_NULL ||
           kind == CONFIG_BOOL_OR_NULL || kind == CONFIG_ACCELERATOR ||
           kind == CONFIG_GROUP_OR_NULL || kind == CONFIG_LIST || kind == CONFIG_MAP;
}

static int check_kind(const struct config_key *key, json_t *value, struct err *err)
{
    static const char *const transports[] = {"http", "websocket", "grpc"};
    static const char *const availabilities[] = {"dedicated", "spot"};
    static const char *const servers[] = {"TrussServer", "TRT_LLM"};

    if (json_is_null(value) && may_be_null(key->kind))
        return 0;
    switch (key->kind) {
    case CONFIG_TEXT:
    case CONFIG_TEXT_OR_NULL:
    case CONFIG_PATH:
    case CONFIG_PATH_OR_NULL:
    case CONFIG_PLACE:
    case CONFIG_PLACE_OR_NULL:
    case CONFIG_ENDPOINT:
        return check_text(key, value, err);
    case CONFIG_INT:
    case CONFIG_INT_OR_NULL:
        return check_whole(key, value, err);
    case CONFIG_NUMBER: /* of seconds */
        return json_is_number(value) && json_number_value(value) > 0
                   ? 0
                   : refuse(key, value, "a number over 0", err);
    case CONFIG_BOOL:
    case CONFIG_BOOL_OR_NULL:
        return json_is_boolean(value) ? 0 : refuse(key, value, "true or false", err);
    case CONFIG_AMOUNT:
        return text_ok(value) || json_is_number(value) ? 0 : refuse(key, value, "an amount", err);
    case CONFIG_TEXTS:
    case CONFIG_COMMANDS:
        return check_texts(key, value, err);
    case CONFIG_LIST:
        return json_is_array(value) ? 0 : refuse(key, value, "a list", err);
    case CONFIG_MAP:
        return json_is_object(value) ? 0 : refuse(key, value, "a mapping", err);
    case CONFIG_VALUES:
    case CONFIG_ENVIRONMENT:
        return check_values(key, value, err);
    case CONFIG_SECRETS:
        return check_secrets(key, value, err);
    case CONFIG_PYTHON:
        return check_python(key, value, err);
    case CONFIG_ACCELERATOR:
        return check_accelerator(key, value, err);
    case CONFIG_TRANSPORT:
        return check_word(key, value, transports, COUNT_OF(transports), err);
    case CONFIG_AVAILABILITY:
        return check_word(key, value, availabilities, COUNT_OF(availabilities), err);
    case CONFIG_SERVER:
        return check_word(key, value, servers, COUNT_OF(servers), err);
    case CONFIG_GROUP:
    case CONFIG_GROUP_OR_NULL:
        return check_group(key, value, err);
    }
    return 0;
}

/* ---- the table against the document ---- */

static const struct config_key *key_find(const struct config_table *table, const char *path)
{
    for (size_t i = 0; i < table->count; i++) {
        if (strcmp(table->keys[i].path, path) == 0)
            return &table->keys[i];
    }
    return NULL;
}

static bool is_group(const struct config_key *key)
{
    return key->kind == CONFIG_GROUP || key->kind == CONFIG_GROUP_OR_NULL;
}

/* Every key of the document is in the table. */
static int check_known(const struct config_table *table, const json_t *map, const char *above,
                       struct err *err)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)map, name, value)
    {
        OWNED(mem_free) char *path = xasprintf("%s%s%s", above, *above != '\0' ? "." : "", name);
        const struct config_key *key = key_find(table, path);
        int r;

        if (key == NULL || strchr(name, '.') != NULL)
            return err_set(err, ERR_RANGE, "there is no key '%.120s'", path);
        r = is_group(key) && json_is_object(value) ? check_known(table, value, path, err) : 0;
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
static int heed(const struct config_key *key, const json_t *value, const json_t *fallback,
                json_t *warnings, struct err *err)
{
    OWNED(mem_free) char *text = NULL;

    if (key->use == CONFIG_USE_HONOURED || key->use == CONFIG_USE_WORDS || is_empty(value) ||
        json_equal(value, fallback) || (fallback == NULL && json_is_false(value)))
        return 0;
    if (key->use == CONFIG_USE_REFUSED)
        return err_set(err, ERR_UNSUPPORTED, "%s is not honoured: %s", key->path, key->why);
    text = xasprintf("%s: %s", key->path, key->why);
    (void)json_array_append_new(warnings, json_string(text));
    return 0;
}

/* One key of the table: its value or default goes into `whole`. */
static int take(const struct config_key *key, json_t *document, json_t *whole, json_t *warnings,
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
    if (is_group(key) && (json_is_object(value) || key->kind == CONFIG_GROUP))
        (void)json_object_set_new(to, name, json_object());
    else if (value != NULL && key->kind == CONFIG_AMOUNT)
        (void)json_object_set_new(to, name, text_of(value));
    else if (value != NULL)
        (void)json_object_set(to, name, value);
    else if (fallback != NULL)
        (void)json_object_set(to, name, fallback);
    return 0;
}

int config_table_apply(const struct config_table *table, json_t *document, json_t *whole,
                       json_t *warnings, struct err *err)
{
    int r = json_is_object(document)
                ? check_known(table, document, "", err)
                : err_set(err, ERR_MALFORMED, "this is no mapping of keys to values");

    for (size_t i = 0; r == 0 && i < table->count; i++)
        r = take(&table->keys[i], document, whole, warnings, err);
    return r;
}
