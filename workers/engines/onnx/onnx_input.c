/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/onnx/onnx_input.h"

#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/json_fast.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "base64 data is copied as it is");

/* One tensor on its way from JSON: elements are written as they come. */
struct fill {
    const struct onnx_spec *spec;
    uint32_t type;
    uint8_t *to;    /* grows while the shape is not known */
    uint64_t count; /* of elements there */
    uint64_t room;  /* in elements */
};

static bool is_float(uint32_t type)
{
    return type == ONNX_FLOAT32 || type == ONNX_FLOAT64 || type == ONNX_FLOAT16;
}

static int mistyped(const struct fill *fill, const char *is, struct err *err)
{
    return err_set(err, ERR_MALFORMED, "inputs.%.80s: element %llu is %s, the model wants %s",
                   fill->spec->name, (unsigned long long)fill->count, is,
                   onnx_type_name(fill->type));
}

static int out_of_range(const struct fill *fill, struct err *err)
{
    return err_set(err, ERR_RANGE, "inputs.%.80s: element %llu does not fit into %s",
                   fill->spec->name, (unsigned long long)fill->count, onnx_type_name(fill->type));
}

/* Whole numbers, signed and unsigned, by their size. */
static int put_integer(struct fill *fill, const struct json_leaf *leaf, void *to, struct err *err)
{
    const uint32_t size = onnx_type_size(fill->type), bits = size * 8;
    const bool is_signed = fill->type == ONNX_INT8 || fill->type == ONNX_INT16 ||
                           fill->type == ONNX_INT32 || fill->type == ONNX_INT64;
    uint64_t value = leaf->kind == JSON_LEAF_INT ? (uint64_t)leaf->integer : leaf->large;

    if (leaf->kind == JSON_LEAF_BOOL)
        return mistyped(fill, "a boolean", err);
    if (leaf->kind == JSON_LEAF_DOUBLE)
        return mistyped(fill, "no whole number", err);
    if (leaf->kind == JSON_LEAF_LARGE ? bits < 64 || is_signed
        : is_signed                   ? bits < 64 && (leaf->integer >= (int64_t)1 << (bits - 1) ||
                                    leaf->integer < -((int64_t)1 << (bits - 1)))
                                      : leaf->integer < 0 || (bits < 64 && value >> bits != 0))
        return out_of_range(fill, err);
    memcpy(to, &value, size); /* little-endian: the low bytes come first */
    return 0;
}

static int put_float(struct fill *fill, const struct json_leaf *leaf, void *to, struct err *err)
{
    double value = leaf->kind == JSON_LEAF_DOUBLE  ? leaf->number
                   : leaf->kind == JSON_LEAF_LARGE ? (double)leaf->large
                                                   : (double)leaf->integer;
    uint16_t half;
    float single;

    if (leaf->kind == JSON_LEAF_BOOL)
        return mistyped(fill, "a boolean", err);
    single = fabs(value) > 3.5e38 ? INFINITY : (float)value;
    if (fill->type == ONNX_FLOAT64) {
        memcpy(to, &value, sizeof(value));
        return 0;
    }
    half = onnx_float_to_half(single);
    if (isinf(single) || (fill->type == ONNX_FLOAT16 && (half & 0x7fff) == 0x7c00))
        return out_of_range(fill, err);
    if (fill->type == ONNX_FLOAT16)
        memcpy(to, &half, sizeof(half));
    else
        memcpy(to, &single, sizeof(single));
    return 0;
}

static int put_leaf(void *opaque, const struct json_leaf *leaf, struct err *err)
{
    struct fill *fill = opaque;
    const uint32_t size = onnx_type_size(fill->type);
    uint8_t *to;
    int r;

    if (fill->count == fill->room) {
        fill->room = fill->room == 0 ? 64 : fill->room * 2;
        fill->to = xrealloc(fill->to, fill->room, size);
    }
    to = fill->to + fill->count * size;
    if (leaf->kind == JSON_LEAF_TEXT)
        return mistyped(fill, "a text", err);
    if (fill->type == ONNX_BOOL) {
        if (leaf->kind != JSON_LEAF_BOOL)
            return mistyped(fill, "a number", err);
        *to = leaf->integer != 0;
        r = 0;
    } else if (is_float(fill->type)) {
        r = put_float(fill, leaf, to, err);
    } else {
        r = put_integer(fill, leaf, to, err);
    }
    fill->count++;
    return r;
}

/* ---- shapes ---- */

static int check_shape(const struct onnx_spec *spec, const struct onnx_tensor *tensor,
                       struct err *err)
{
    char want[ONNX_SHAPE_TEXT_SIZE], got[ONNX_SHAPE_TEXT_SIZE];
    bool good = !spec->has_shape || spec->rank == tensor->rank;
    uint64_t count;

    for (uint32_t i = 0; good && i < tensor->rank && spec->has_shape; i++)
        good = spec->dims[i] < 0 || spec->dims[i] == tensor->dims[i];
    onnx_shape_text(tensor->dims, tensor->rank, got);
    if (!good) {
        onnx_shape_text(spec->dims, spec->rank, want);
        return err_set(err, ERR_MISMATCH, "inputs.%.80s has shape %s, the model wants %s",
                       spec->name, got, want);
    }
    if (!onnx_shape_count(tensor->dims, tensor->rank, &count) || count == 0)
        return err_set(err, ERR_RANGE,
                       "inputs.%.80s has shape %s: every axis has 1 at least, and all of them "
                       "together %llu elements at most",
                       spec->name, got, ONNX_ELEMENT_COUNT_MAX);
    return 0;
}

static int read_axis(void *opaque, const struct json_leaf *leaf, struct err *err)
{
    struct onnx_tensor *tensor = opaque;

    if (leaf->kind != JSON_LEAF_INT || leaf->integer < 0)
        return err_set(err, ERR_MALFORMED, "'shape' has an axis that is no whole number from 0 on");
    tensor->dims[tensor->rank++] = leaf->integer;
    return 0;
}

static int read_shape(struct json_fast *parser, const struct json_field *field,
                      const struct onnx_spec *spec, struct onnx_tensor *tensor, struct err *err)
{
    struct json_list list;
    int r = json_fast_list(parser, field, ONNX_RANK_MAX, read_axis, tensor, &list, err);

    if (r == 0 && list.rank != 1)
        r = err_set(err, ERR_MALFORMED, "'shape' is no list of whole numbers");
    return r < 0 ? err_wrap(err, "inputs.%.80s", spec->name) : 0;
}

/* ---- data ---- */

static int read_list(struct json_fast *parser, const struct json_field *field,
                     const struct onnx_spec *spec, bool has_shape, struct onnx_tensor *tensor,
                     struct err *err)
{
    struct fill fill = {.spec = spec, .type = spec->type};
    struct json_list list;
    uint64_t count = 0;
    int r;

    r = json_fast_list(parser, field, ONNX_TENSORS_SIZE_MAX / onnx_type_size(spec->type), put_leaf,
                       &fill, &list, err);
    tensor->data = fill.to;
    tensor->size = fill.count * onnx_type_size(spec->type);
    if (r < 0)
        return err_wrap(err, "inputs.%.80s", spec->name);
    if (!has_shape) {
        tensor->rank = list.rank;
        for (uint32_t i = 0; i < list.rank; i++)
            tensor->dims[i] = (int64_t)list.dims[i];
        return 0;
    }
    if (!onnx_shape_count(tensor->dims, tensor->rank, &count) || count != list.count)
        return err_set(err, ERR_MISMATCH, "inputs.%.80s has %llu elements, its shape says %llu",
                       spec->name, (unsigned long long)list.count, (unsigned long long)count);
    return 0;
}

static int read_base64(struct json_fast *parser, const struct json_field *field,
                       const struct onnx_spec *spec, struct onnx_tensor *tensor, struct err *err)
{
    const char *text = NULL, *end = NULL;
    size_t text_size = 0, size = 0;
    int r;

    r = json_fast_string(parser, field, &text, &text_size, err);
    if (r == 0)
        r = onnx_tensor_alloc(tensor, spec->name, ONNX_TENSORS_SIZE_MAX, err);
    if (r < 0)
        return r;
    if (text_size / 4 * 3 > tensor->size + 2 ||
        sodium_base642bin(tensor->data, tensor->size, text, text_size, NULL, &size, &end,
                          sodium_base64_VARIANT_ORIGINAL) != 0 ||
        end != text + text_size || size != tensor->size)
        return err_set(err, ERR_MALFORMED,
                       "inputs.%.80s: data has %zu characters and is not the base64 of the %llu "
                       "bytes that its shape and %s say",
                       spec->name, text_size, (unsigned long long)tensor->size,
                       onnx_type_name(spec->type));
    for (uint64_t i = 0; spec->type == ONNX_BOOL && i < tensor->size; i++)
        ((uint8_t *)tensor->data)[i] = ((uint8_t *)tensor->data)[i] != 0;
    return 0;
}

static int check_dtype(struct json_fast *parser, const struct onnx_spec *spec, struct err *err)
{
    struct json_field field;
    const char *name = "";
    int r = 0;

    if (!json_fast_find(parser, "dtype", &field))
        return 0;
    r = json_fast_string(parser, &field, &name, NULL, err);
    if (r == 0 && onnx_type_find(name) != spec->type)
        r = err_set(err, ERR_MISMATCH, "dtype is '%.40s', the model wants %s", name,
                    onnx_type_name(spec->type));
    return r < 0 ? err_wrap(err, "inputs.%.80s", spec->name) : 0;
}

/* {"shape": …, "dtype": …, "data": …} */
static int read_object(struct json_fast *parser, const struct json_field *outer,
                       const struct onnx_spec *spec, struct onnx_tensor *tensor, struct err *err)
{
    struct json_field field;
    bool has_shape = false;
    int r;

    r = json_fast_parse(parser, outer->raw, outer->raw_size, true, err);
    if (r < 0)
        return err_wrap(err, "inputs.%.80s", spec->name);
    while (json_fast_next(parser, &field)) {
        if (strcmp(field.key, "shape") != 0 && strcmp(field.key, "dtype") != 0 &&
            strcmp(field.key, "data") != 0)
            return err_set(err, ERR_MALFORMED,
                           "inputs.%.80s has '%.60s'; there are shape, dtype and data", spec->name,
                           field.key);
    }
    r = check_dtype(parser, spec, err);
    if (r == 0 && json_fast_find(parser, "shape", &field)) {
        has_shape = true;
        r = read_shape(parser, &field, spec, tensor, err);
    }
    if (r == 0 && has_shape)
        r = check_shape(spec, tensor, err);
    if (r < 0)
        return r;
    if (!json_fast_find(parser, "data", &field))
        return err_set(err, ERR_MALFORMED, "inputs.%.80s has no data", spec->name);
    if (field.type != JSON_TYPE_STRING)
        return read_list(parser, &field, spec, has_shape, tensor, err);
    if (!has_shape)
        return err_set(err, ERR_MALFORMED, "inputs.%.80s: data is base64 and needs a shape",
                       spec->name);
    return read_base64(parser, &field, spec, tensor, err);
}

/* ---- the request ---- */

struct parsers {
    struct json_fast *body, *inputs, *tensor;
};

static void parsers_done(struct parsers *parsers)
{
    json_fast_free(&parsers->body);
    json_fast_free(&parsers->inputs);
    json_fast_free(&parsers->tensor);
}

static int find_spec(const struct onnx_spec *specs, uint32_t count, const char *name)
{
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(specs[i].name, name) == 0)
            return (int)i;
    }
    return -1;
}

static int unknown_name(const char *what, const char *name, const struct onnx_spec *specs,
                        uint32_t count, const bool *offered, struct err *err)
{
    char list[200] = "";
    size_t size = 0;

    for (uint32_t i = 0; i < count && size < sizeof(list) - 70; i++) {
        if (offered == NULL || offered[i])
            size += (size_t)snprintf(list + size, sizeof(list) - size, "%s%.60s",
                                     size > 0 ? ", " : "", specs[i].name);
    }
    return err_set(err, ERR_MALFORMED, "%s has '%.80s'; the model has %s", what, name, list);
}

static int read_tensor(struct parsers *parsers, const struct json_field *field,
                       const struct onnx_spec *spec, struct onnx_tensor *tensor, struct err *err)
{
    int r;

    tensor->type = spec->type;
    if (field->type == JSON_TYPE_OBJECT)
        r = read_object(parsers->tensor, field, spec, tensor, err);
    else if (field->type == JSON_TYPE_STRING || field->type == JSON_TYPE_NULL)
        r = err_set(err, ERR_MALFORMED,
                    "inputs.%.80s is a %s, not lists of numbers or an object with data", spec->name,
                    json_type_name(field->type));
    else
        r = read_list(parsers->inputs, field, spec, false, tensor, err);
    return r < 0 ? r : check_shape(spec, tensor, err);
}

static int read_inputs(struct parsers *parsers, const struct onnx_model *model,
                       const struct json_field *outer, struct onnx_input *input, struct err *err)
{
    struct json_field field;
    uint64_t size = 0;
    int r;

    if (outer->type != JSON_TYPE_OBJECT)
        return err_set(err, ERR_MALFORMED, "inputs is a %s, not an object of tensors",
                       json_type_name(outer->type));
    r = json_fast_parse(parsers->inputs, outer->raw, outer->raw_size, true, err);
    if (r < 0)
        return err_wrap(err, "inputs");
    while (json_fast_next(parsers->inputs, &field)) {
        int i = find_spec(model->inputs, model->input_count, field.key);

        if (i < 0)
            return unknown_name("inputs", field.key, model->inputs, model->input_count, NULL, err);
        r = read_tensor(parsers, &field, &model->inputs[i], &input->tensors[i], err);
        if (r < 0)
            return r;
        size += input->tensors[i].size;
    }
    if (size > ONNX_TENSORS_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "inputs have %llu bytes, limit %llu",
                       (unsigned long long)size, ONNX_TENSORS_SIZE_MAX);
    for (uint32_t i = 0; i < model->input_count; i++) {
        if (input->tensors[i].data == NULL)
            return err_set(err, ERR_MALFORMED, "inputs.%.80s is missing", model->inputs[i].name);
    }
    return 0;
}

struct wanted {
    const struct onnx_model *model;
    const bool *offered;
    bool *wanted;
};

static int want_output(void *opaque, const struct json_leaf *leaf, struct err *err)
{
    const struct wanted *to = opaque;
    const struct onnx_model *model = to->model;
    int at;

    if (leaf->kind != JSON_LEAF_TEXT)
        return err_set(err, ERR_MALFORMED, "outputs is no list of names");
    at = find_spec(model->outputs, model->output_count, leaf->text);
    if (at < 0 || !to->offered[at])
        return unknown_name("outputs", leaf->text, model->outputs, model->output_count, to->offered,
                            err);
    to->wanted[at] = true;
    return 0;
}

static int read_outputs(struct json_fast *parser, const struct onnx_model *model,
                        const bool *offered, struct onnx_input *input, struct err *err)
{
    struct wanted to = {model, offered, input->wanted};
    struct json_field field;
    struct json_list list;
    int r;

    if (!json_fast_find(parser, "outputs", &field)) {
        memcpy(input->wanted, offered, sizeof(input->wanted));
        return 0;
    }
    r = json_fast_list(parser, &field, ONNX_OUTPUT_COUNT_MAX, want_output, &to, &list, err);
    if (r == 0 && (list.rank != 1 || list.count == 0))
        r = err_set(err, ERR_MALFORMED, "outputs is no list of one or more names");
    return r;
}

static int read_encoding(struct json_fast *parser, struct onnx_input *input, struct err *err)
{
    struct json_field field;
    const char *name = "list";
    int r = 0;

    if (json_fast_find(parser, "encoding", &field))
        r = json_fast_string(parser, &field, &name, NULL, err);
    if (r == 0 && strcmp(name, "list") != 0 && strcmp(name, "base64") != 0)
        r = err_set(err, ERR_RANGE, "encoding is '%.40s', allowed are list and base64", name);
    input->base64 = r == 0 && strcmp(name, "base64") == 0;
    return r;
}

static int check_fields(struct json_fast *parser, struct err *err)
{
    struct json_field field;

    while (json_fast_next(parser, &field)) {
        if (strcmp(field.key, "inputs") != 0 && strcmp(field.key, "outputs") != 0 &&
            strcmp(field.key, "encoding") != 0)
            return err_set(err, ERR_MALFORMED,
                           "model_input has '%.60s'; there are inputs, outputs and encoding",
                           field.key);
    }
    return 0;
}

int onnx_input_parse(const struct onnx_model *model, const bool *offered, const void *bytes,
                     size_t size, struct onnx_input *ret_input, struct err *err)
{
    OWNED(parsers_done)
    struct parsers parsers = {json_fast_new(), json_fast_new(), json_fast_new()};
    OWNED(onnx_input_done) struct onnx_input input = {.base64 = false};
    struct json_field field;
    int r;

    r = json_fast_parse(parsers.body, bytes, size, false, err);
    if (r < 0)
        return err_wrap(err, "model_input");
    r = check_fields(parsers.body, err);
    if (r == 0)
        r = read_encoding(parsers.body, &input, err);
    if (r == 0)
        r = read_outputs(parsers.body, model, offered, &input, err);
    if (r < 0)
        return r;
    if (!json_fast_find(parsers.body, "inputs", &field))
        return err_set(err, ERR_MALFORMED, "inputs is missing: an object with the model's tensors");
    r = read_inputs(&parsers, model, &field, &input, err);
    if (r < 0)
        return r;
    *ret_input = input;
    input = (struct onnx_input){.base64 = false};
    return 0;
}

void onnx_input_done(struct onnx_input *input)
{
    for (uint32_t i = 0; i < ONNX_INPUT_COUNT_MAX; i++)
        onnx_tensor_done(&input->tensors[i]);
}
