/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/encoder_input.h"

#include <string.h>

#include "workers/engines/encoder/encoder_json.h"

static const char *const known_fields[] = {"input",      "model",    "encoding_format",
                                           "dimensions", "truncate", "user"};

static const char *kind_of(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a text";
    case JSON_INTEGER:
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        break;
    }
    return "null";
}

static int check_texts(const json_t *value, uint32_t *ret_text_count, struct err *err)
{
    const json_t *text;
    size_t i;

    if (value == NULL)
        return err_set(err, ERR_MALFORMED, "input is missing: a text or an array of texts");
    if (json_is_string(value)) {
        *ret_text_count = 1;
        return 0;
    }
    if (!json_is_array(value))
        return err_set(err, ERR_MALFORMED, "input is %s, not a text or an array of texts",
                       kind_of(value));
    if (json_array_size(value) == 0 || json_array_size(value) > ENCODER_TEXT_COUNT_MAX)
        return err_set(err, ERR_RANGE, "input has %zu texts, allowed are 1 to %u",
                       json_array_size(value), ENCODER_TEXT_COUNT_MAX);
    json_array_foreach(value, i, text)
    {
        if (!json_is_string(text))
            return err_set(err, ERR_UNSUPPORTED,
                           "input[%zu] is %s, only texts are taken (no token "
                           "ids)",
                           i, kind_of(text));
    }
    *ret_text_count = (uint32_t)json_array_size(value);
    return 0;
}

static int check_format(const json_t *json, bool *ret_base64, struct err *err)
{
    const char *format = "float";
    int r;

    r = encoder_json_get_text(json, "encoding_format", &format, err);
    if (r < 0)
        return r;
    if (strcmp(format, "float") != 0 && strcmp(format, "base64") != 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "encoding_format is '%.40s', allowed are float and "
                       "base64",
                       format);
    *ret_base64 = strcmp(format, "base64") == 0;
    return 0;
}

static int check_dimensions(const json_t *json, uint32_t dimension_count, struct err *err)
{
    const json_t *value = json_object_get(json, "dimensions");

    if (value == NULL || json_is_null(value))
        return 0;
    if (!json_is_integer(value))
        return err_set(err, ERR_MALFORMED, "dimensions is %s, not a whole number", kind_of(value));
    if (json_integer_value(value) != dimension_count)
        return err_set(err, ERR_UNSUPPORTED,
                       "dimensions is %" JSON_INTEGER_FORMAT ", this model "
                       "has %u and cannot be cut",
                       json_integer_value(value), dimension_count);
    return 0;
}

static bool is_known(const char *field)
{
    for (size_t i = 0; i < COUNT_OF(known_fields); i++) {
        if (strcmp(field, known_fields[i]) == 0)
            return true;
    }
    return false;
}

static json_t *warn_unknown(json_t *json)
{
    json_t *warnings = NULL;
    const json_t *value;
    const char *field;

    json_object_foreach(json, field, value)
    {
        if (is_known(field))
            continue;
        if (warnings == NULL)
            warnings = json_array();
        if (json_array_size(warnings) == ENCODER_WARNING_COUNT_MAX) {
            (void)json_array_append_new(warnings, json_string("more unknown fields are ignored"));
            break;
        }
        (void)json_array_append_new(warnings,
                                    strlen(field) <= ENCODER_WARNING_NAME_MAX
                                        ? json_sprintf("unknown field '%s' is ignored", field)
                                        : json_string("a field with a long name is ignored"));
    }
    return warnings;
}

int encoder_input_parse(const void *bytes, size_t size, uint32_t dimension_count,
                        struct encoder_input *ret_input, struct err *err)
{
    OWNED(encoder_input_done) struct encoder_input input = {.truncate = true};
    json_error_t json_err;
    int r;

    input.json = json_loadb(bytes, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY,
                            &json_err);
    if (input.json == NULL)
        return err_set(err, ERR_MALFORMED, "model_input is not JSON at byte %d: %.160s",
                       json_err.position, json_err.text);
    if (!json_is_object(input.json))
        return err_set(err, ERR_MALFORMED, "model_input is %s, not an object with 'input'",
                       kind_of(input.json));
    r = check_texts(json_object_get(input.json, "input"), &input.text_count, err);
    if (r == 0)
        r = check_format(input.json, &input.base64, err);
    if (r == 0)
        r = check_dimensions(input.json, dimension_count, err);
    if (r == 0)
        r = encoder_json_get_bool(input.json, "truncate", &input.truncate, err);
    if (r < 0)
        return r;
    input.warnings = warn_unknown(input.json);
    *ret_input = input;
    input = (struct encoder_input){0};
    return 0;
}

void encoder_input_done(struct encoder_input *input)
{
    json_decref(input->warnings);
    json_decref(input->json);
    *input = (struct encoder_input){0};
}

const char *encoder_input_text(const struct encoder_input *input, uint32_t index, size_t *ret_size)
{
    const json_t *value = json_object_get(input->json, "input");

    if (json_is_array(value))
        value = json_array_get(value, index);
    *ret_size = json_string_length(value);
    return json_string_value(value);
}
