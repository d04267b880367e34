/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/encoder_json.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define SETTINGS_SIZE_MAX 65536u

void encoder_json_free(json_t **json_p)
{
    json_decref(*json_p);
    *json_p = NULL;
}

int encoder_json_read_bytes(const char *dir, const char *name, size_t size_max, char **ret_bytes,
                            size_t *ret_size, struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", dir, name);
    OWNED(mem_free) char *bytes = NULL;
    struct stat st;
    size_t size;
    FILE *file;
    bool whole;

    file = fopen(path, "rbe");
    if (file == NULL)
        return err_set_errno(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "open '%s'", path);
    if (fstat(fileno(file), &st) < 0 || !S_ISREG(st.st_mode)) {
        (void)fclose(file);
        return err_set(err, ERR_IO, "'%s' is no regular file", path);
    }
    if ((uint64_t)st.st_size > size_max) {
        (void)fclose(file);
        return err_set(err, ERR_TOO_BIG, "'%s' has %" PRIu64 " bytes, limit %zu", path,
                       (uint64_t)st.st_size, size_max);
    }
    size = (size_t)st.st_size;
    bytes = xmalloc(size + 1);
    whole = fread(bytes, 1, size, file) == size;
    (void)fclose(file);
    if (!whole)
        return err_set(err, ERR_IO, "'%s' became shorter while it was read", path);
    bytes[size] = '\0';
    *ret_bytes = TAKE(bytes);
    *ret_size = size;
    return 0;
}

int encoder_json_read(const char *dir, const char *name, size_t size_max, json_t **ret_json,
                      struct err *err)
{
    OWNED(mem_free) char *bytes = NULL;
    json_error_t json_err;
    size_t size = 0;
    json_t *json;
    int r;

    r = encoder_json_read_bytes(dir, name, size_max, &bytes, &size, err);
    if (r < 0)
        return r;
    json = json_loadb(bytes, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &json_err);
    if (json == NULL)
        return err_set(err, ERR_MALFORMED, "'%s' is not JSON: line %d: %.160s", name, json_err.line,
                       json_err.text);
    *ret_json = json;
    return 0;
}

int encoder_json_read_settings(const char *text, json_t **ret_json, struct err *err)
{
    OWNED(encoder_json_free) json_t *json = NULL;
    json_error_t json_err;

    if (text != NULL && strlen(text) > SETTINGS_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "settings have %zu bytes, limit %u", strlen(text),
                       SETTINGS_SIZE_MAX);
    json = text != NULL ? json_loads(text, JSON_REJECT_DUPLICATES, &json_err) : json_object();
    if (!json_is_object(json))
        return err_set(err, ERR_USAGE, "settings are not a JSON object");
    *ret_json = TAKE(json);
    return 0;
}

int encoder_json_get_bool(const json_t *json, const char *key, bool *ret_value, struct err *err)
{
    const json_t *value = json_object_get(json, key);

    if (value == NULL || json_is_null(value))
        return 0;
    if (!json_is_boolean(value))
        return err_set(err, ERR_MALFORMED, "'%s' is neither true nor false", key);
    *ret_value = json_is_true(value);
    return 0;
}

int encoder_json_get_u32(const json_t *json, const char *key, uint32_t min, uint32_t max,
                         uint32_t *ret_value, struct err *err)
{
    const json_t *value = json_object_get(json, key);

    if (value == NULL || json_is_null(value))
        return 0;
    if (!json_is_integer(value))
        return err_set(err, ERR_MALFORMED, "'%s' is no whole number", key);
    if (json_integer_value(value) < min || json_integer_value(value) > max)
        return err_set(err, ERR_RANGE, "'%s' is %" JSON_INTEGER_FORMAT ", allowed are %u to %u",
                       key, json_integer_value(value), min, max);
    *ret_value = (uint32_t)json_integer_value(value);
    return 0;
}

int encoder_json_get_text(const json_t *json, const char *key, const char **ret_value,
                          struct err *err)
{
    const json_t *value = json_object_get(json, key);

    if (value == NULL || json_is_null(value))
        return 0;
    if (!json_is_string(value))
        return err_set(err, ERR_MALFORMED, "'%s' is no text", key);
    *ret_value = json_string_value(value);
    return 0;
}
