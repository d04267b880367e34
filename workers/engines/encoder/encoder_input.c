/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/encoder_input.h"

#include <string.h>

#include "base/assert.h"
#include "workers/engines/encoder/encoder_json.h"

static const struct {
    const char *name;
    const char *fields[8];
} routes[ENCODER_ROUTE_COUNT] = {
    [ENCODER_ROUTE_EMBEDDINGS] = {"POST /v1/embeddings",
                                  {"input", "model", "encoding_format", "dimensions", "truncate",
                                   "user"}},
    [ENCODER_ROUTE_RERANK] = {"POST /rerank", {"query", "texts"}},
    [ENCODER_ROUTE_PREDICT] = {"POST /predict", {"inputs"}},
    [ENCODER_ROUTE_PREDICT_TOKENS] = {"POST /predict_tokens", {"inputs"}},
};

static const char *const aggregations[] = {
    [ENCODER_AGGREGATE_NONE] = "none",   [ENCODER_AGGREGATE_SIMPLE] = "simple",
    [ENCODER_AGGREGATE_FIRST] = "first", [ENCODER_AGGREGATE_AVERAGE] = "average",
    [ENCODER_AGGREGATE_MAX] = "max",
};

const char *encoder_route_name(enum encoder_route route)
{
    return routes[route].name;
}

bool encoder_route_find(const char *text, enum encoder_route *ret_route)
{
    const size_t size = strcspn(text, "?");

    for (int i = 0; i < ENCODER_ROUTE_COUNT; i++) {
        if (strlen(routes[i].name) == size && strncmp(text, routes[i].name, size) == 0) {
            *ret_route = (enum encoder_route)i;
            return true;
        }
    }
    return false;
}

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

static int check_count(const char *field, size_t count, struct err *err)
{
    if (count == 0 || count > ENCODER_TEXT_COUNT_MAX)
        return err_set(err, ERR_RANGE, "%s has %zu texts, allowed are 1 to %u", field, count,
                       ENCODER_TEXT_COUNT_MAX);
    return 0;
}

/* An array of texts, or, where `single` says so, one text. */
static int check_texts(const json_t *json, const char *field, bool single, uint32_t *ret_text_count,
                       struct err *err)
{
    const char *wanted = single ? "a text or an array of texts" : "an array of texts";
    const json_t *value = json_object_get(json, field), *text;
    size_t i;
    int r;

    if (value == NULL)
        return err_set(err, ERR_MALFORMED, "%s is missing: %s", field, wanted);
    if (single && json_is_string(value)) {
        *ret_text_count = 1;
        return 0;
    }
    if (!json_is_array(value))
        return err_set(err, ERR_MALFORMED, "%s is %s, not %s", field, kind_of(value), wanted);
    r = check_count(field, json_array_size(value), err);
    if (r < 0)
        return r;
    json_array_foreach(value, i, text)
    {
        if (!json_is_string(text))
            return err_set(err, ERR_UNSUPPORTED,
                           "%s[%zu] is %s, only texts are taken (no token "
                           "ids)",
                           field, i, kind_of(text));
    }
    *ret_text_count = (uint32_t)json_array_size(value);
    return 0;
}

/* A text, or an array of arrays of 1 to `each_max` texts. */
static int check_inputs(const json_t *json, size_t each_max, uint32_t *ret_text_count,
                        struct err *err)
{
    const json_t *value = json_object_get(json, "inputs"), *each, *text;
    size_t i, j;
    int r;

    *ret_text_count = 1;
    if (json_is_string(value))
        return 0;
    if (!json_is_array(value))
        return err_set(err, ERR_MALFORMED, "inputs is %s: a text or an array of arrays of texts",
                       value != NULL ? kind_of(value) : "missing");
    r = check_count("inputs", json_array_size(value), err);
    if (r < 0)
        return r;
    json_array_foreach(value, i, each)
    {
        if (!json_is_array(each))
            return err_set(err, ERR_MALFORMED, "inputs[%zu] is %s, not an array of %s", i,
                           kind_of(each), each_max == 1 ? "one text" : "one text or two");
        if (json_array_size(each) == 0 || json_array_size(each) > each_max)
            return err_set(err, ERR_RANGE, "inputs[%zu] has %zu texts, allowed %s", i,
                           json_array_size(each), each_max == 1 ? "is 1" : "are 1 to 2");
        json_array_foreach(each, j, text)
        {
            if (!json_is_string(text))
                return err_set(err, ERR_UNSUPPORTED, "inputs[%zu][%zu] is %s, only texts are taken",
                               i, j, kind_of(text));
        }
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

static bool is_known(enum encoder_route route, const char *field)
{
    for (size_t i = 0; routes[route].fields[i] != NULL; i++) {
        if (strcmp(field, routes[route].fields[i]) == 0)
            return true;
    }
    return false;
}

static json_t *warn_unknown(json_t *json, enum encoder_route route)
{
    json_t *warnings = NULL;
    const json_t *value;
    const char *field;

    json_object_foreach(json, field, value)
    {
        if (is_known(route, field))
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

static int read_embeddings(struct encoder_input *input, uint32_t dimension_count, struct err *err)
{
    int r;

    input->truncate = true;
    r = check_texts(input->json, "input", true, &input->text_count, err);
    if (r == 0)
        r = check_format(input->json, &input->base64, err);
    if (r == 0)
        r = check_dimensions(input->json, dimension_count, err);
    if (r == 0)
        r = encoder_json_get_bool(input->json, "truncate", &input->truncate, err);
    if (r == 0)
        input->warnings = warn_unknown(input->json, input->route);
    return r;
}

static int read_rerank(struct encoder_input *input, struct err *err)
{
    const json_t *query = json_object_get(input->json, "query");

    if (!json_is_string(query))
        return err_set(err, ERR_MALFORMED, "query is %s, not a text",
                       query != NULL ? kind_of(query) : "missing");
    return check_texts(input->json, "texts", false, &input->text_count, err);
}

static int read_aggregation(const json_t *json, enum encoder_aggregation *ret_value,
                            struct err *err)
{
    const char *name = "none";
    int r;

    r = encoder_json_get_text(json, "aggregation_strategy", &name, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < COUNT_OF(aggregations); i++) {
        if (strcmp(name, aggregations[i]) == 0) {
            *ret_value = (enum encoder_aggregation)i;
            return 0;
        }
    }
    return err_set(err, ERR_UNSUPPORTED,
                   "aggregation_strategy is '%.40s', allowed are none, simple, first, average and "
                   "max",
                   name);
}

/* What the three routes besides embeddings share. */
static int read_scores(struct encoder_input *input, struct err *err)
{
    const char *direction = "Right";
    int r;

    r = encoder_json_get_bool(input->json, "raw_scores", &input->raw_scores, err);
    if (r == 0)
        r = encoder_json_get_bool(input->json, "truncate", &input->truncate, err);
    if (r == 0)
        r = encoder_json_get_bool(input->json, "return_text", &input->return_text, err);
    if (r == 0)
        r = encoder_json_get_text(input->json, "truncation_direction", &direction, err);
    if (r < 0)
        return r;
    if (strcmp(direction, "Right") != 0 && strcmp(direction, "Left") != 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "truncation_direction is '%.40s', allowed are Right and Left", direction);
    input->truncate_left = strcmp(direction, "Left") == 0;
    return 0;
}

static int read_fields(struct encoder_input *input, uint32_t dimension_count, struct err *err)
{
    int r = 0;

    switch (input->route) {
    case ENCODER_ROUTE_EMBEDDINGS:
        return read_embeddings(input, dimension_count, err);
    case ENCODER_ROUTE_RERANK:
        r = read_rerank(input, err);
        break;
    case ENCODER_ROUTE_PREDICT:
        r = check_inputs(input->json, 2, &input->text_count, err);
        break;
    case ENCODER_ROUTE_PREDICT_TOKENS:
        r = check_inputs(input->json, 1, &input->text_count, err);
        if (r == 0)
            r = read_aggregation(input->json, &input->aggregation, err);
        break;
    case ENCODER_ROUTE_COUNT:
        NEVER("encoder_route_find() gives none");
    }
    return r < 0 ? r : read_scores(input, err);
}

int encoder_input_parse(const void *bytes, size_t size, enum encoder_route route,
                        uint32_t dimension_count, struct encoder_input *ret_input, struct err *err)
{
    OWNED(encoder_input_done) struct encoder_input input = {.route = route};
    json_error_t json_err;
    int r;

    input.json = json_loadb(bytes, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY,
                            &json_err);
    if (input.json == NULL)
        return err_set(err, ERR_MALFORMED, "model_input is not JSON at byte %d: %.160s",
                       json_err.position, json_err.text);
    if (!json_is_object(input.json))
        return err_set(err, ERR_MALFORMED, "model_input is %s, not an object with '%s'",
                       kind_of(input.json), routes[route].fields[0]);
    r = read_fields(&input, dimension_count, err);
    if (r < 0)
        return r;
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

static const char *text_of(const json_t *value, size_t *ret_size)
{
    *ret_size = json_string_length(value);
    return json_string_value(value);
}

const char *encoder_input_text(const struct encoder_input *input, uint32_t index, size_t *ret_size)
{
    const json_t *value;

    if (input->route == ENCODER_ROUTE_RERANK)
        return text_of(json_object_get(input->json, "query"), ret_size);
    value = json_object_get(input->json, routes[input->route].fields[0]);
    if (json_is_array(value))
        value = json_array_get(value, index);
    if (json_is_array(value))
        value = json_array_get(value, 0);
    return text_of(value, ret_size);
}

const char *encoder_input_second(const struct encoder_input *input, uint32_t index,
                                 size_t *ret_size)
{
    switch (input->route) {
    case ENCODER_ROUTE_RERANK:
        return text_of(json_array_get(json_object_get(input->json, "texts"), index), ret_size);
    case ENCODER_ROUTE_PREDICT:
        return text_of(
            json_array_get(json_array_get(json_object_get(input->json, "inputs"), index), 1),
            ret_size);
    case ENCODER_ROUTE_EMBEDDINGS:
    case ENCODER_ROUTE_PREDICT_TOKENS:
    case ENCODER_ROUTE_COUNT:
        break;
    }
    *ret_size = 0;
    return NULL;
}
