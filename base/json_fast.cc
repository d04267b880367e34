/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The shim over simdjson. Two passes over the same bytes: the DOM parser checks the whole document
 * and keeps the values; the on-demand parser then tells where each top-level value begins and
 * ends, which the DOM does not keep. Both walk in the input's order, so field i is field i.
 *
 * No exception leaves this file: simdjson is used through its error codes, and what the standard
 * library may throw (memory) is caught at each entry.
 */

#include "base/json_fast.h"

#include <cstring>
#include <simdjson.h>
#include <string>
#include <string_view>
#include <vector>

using simdjson::dom::element;
using simdjson::dom::element_type;

namespace
{

struct field_row {
    std::string_view key;
    element value;
    const char *raw;
    size_t raw_size;
};

} // namespace

struct json_fast {
    simdjson::dom::parser dom;
    simdjson::ondemand::parser raw;
    std::vector<field_row> fields;
    std::string copy; /* of an input without padding */
    const char *input = nullptr;
    size_t next = 0;
};

static_assert(JSON_FAST_PADDING >= simdjson::SIMDJSON_PADDING, "padding is too small for simdjson");

const char *json_type_name(enum json_type type)
{
    static const char *const names[] = {"null", "boolean", "number", "string", "array", "object"};

    return names[type];
}

struct json_fast *json_fast_new(void)
{
    return new (std::nothrow) json_fast();
}

void json_fast_free(struct json_fast **parser_p)
{
    delete *parser_p;
    *parser_p = nullptr;
}

static enum json_type type_of(const element &value)
{
    switch (value.type()) {
    case element_type::ARRAY:
        return JSON_TYPE_ARRAY;
    case element_type::OBJECT:
        return JSON_TYPE_OBJECT;
    case element_type::STRING:
        return JSON_TYPE_STRING;
    case element_type::BOOL:
        return JSON_TYPE_BOOL;
    case element_type::NULL_VALUE:
        return JSON_TYPE_NULL;
    default:
        return JSON_TYPE_NUMBER;
    }
}

static int refuse(simdjson::error_code code, struct err *err)
{
    if (code == simdjson::DEPTH_ERROR)
        return err_set(err, ERR_TOO_BIG, "JSON is nested deeper than %d", JSON_FAST_DEPTH_MAX);
    if (code == simdjson::CAPACITY)
        return err_set(err, ERR_TOO_BIG, "JSON is over 4 GiB");
    if (code == simdjson::NUMBER_ERROR)
        return err_set(err, ERR_MALFORMED, "JSON holds a number that is malformed or past 64 bits");
    if (code == simdjson::EMPTY)
        return err_set(err, ERR_MALFORMED, "JSON expected, the body is empty");
    if (code == simdjson::MEMALLOC)
        return err_set(err, ERR_MEMORY, "no memory to parse JSON");
    return err_set(err, ERR_MALFORMED, "JSON is malformed: %s", simdjson::error_message(code));
}

/* Cuts the white space that a scalar's token may end in. */
static size_t trimmed_size(std::string_view token)
{
    size_t size = token.size();

    while (size > 0 && strchr(" \t\r\n", token[size - 1]) != nullptr)
        size--;
    return size;
}

/* Fills in where each value stands. */
static simdjson::error_code slices_find(json_fast *parser, size_t size)
{
    simdjson::ondemand::document document;
    simdjson::ondemand::object object;
    simdjson::padded_string_view view(parser->input, size, size + JSON_FAST_PADDING);
    simdjson::error_code code = parser->raw.iterate(view).get(document);
    size_t i = 0;

    if (code == simdjson::SUCCESS)
        code = document.get_object().get(object);
    if (code != simdjson::SUCCESS)
        return code;
    for (auto item : object) {
        simdjson::ondemand::value value;
        std::string_view slice;

        code = item.value().get(value);
        if (code != simdjson::SUCCESS)
            return code;
        field_row &row = parser->fields[i++];
        enum json_type type = type_of(row.value);
        if (type == JSON_TYPE_OBJECT) {
            simdjson::ondemand::object inner;
            code = value.get_object().get(inner);
            if (code == simdjson::SUCCESS)
                code = inner.raw_json().get(slice);
        } else if (type == JSON_TYPE_ARRAY) {
            simdjson::ondemand::array inner;
            code = value.get_array().get(inner);
            if (code == simdjson::SUCCESS)
                code = inner.raw_json().get(slice);
        } else {
            slice = value.raw_json_token();
        }
        if (code != simdjson::SUCCESS)
            return code;
        row.raw = slice.data();
        row.raw_size = trimmed_size(slice);
    }
    return simdjson::SUCCESS;
}

static int fields_collect(json_fast *parser, const simdjson::dom::object &object, struct err *err)
{
    for (auto item : object) {
        if (parser->fields.size() == JSON_FAST_FIELDS_MAX)
            return err_set(err, ERR_TOO_BIG, "JSON has more than %d fields", JSON_FAST_FIELDS_MAX);
        if (item.key.find('\0') != std::string_view::npos)
            return err_set(err, ERR_MALFORMED, "JSON has a field whose name holds NUL");
        for (const field_row &row : parser->fields) {
            if (row.key == item.key)
                return err_set(err, ERR_MALFORMED, "JSON has field '%.64s' twice", item.key.data());
        }
        parser->fields.push_back({item.key, item.value, nullptr, 0});
    }
    return 0;
}

static int parse(json_fast *parser, const char *bytes, size_t size, bool padded, struct err *err)
{
    simdjson::dom::object object;
    element root;
    simdjson::error_code code = simdjson::SUCCESS;
    int r;

    parser->fields.clear();
    parser->next = 0;
    parser->input = bytes;
    if (!padded) {
        parser->copy.assign(bytes, size);
        parser->copy.append(JSON_FAST_PADDING, '\0');
        parser->input = parser->copy.data();
    }
    if (parser->dom.capacity() < size || parser->dom.max_depth() != JSON_FAST_DEPTH_MAX)
        code = parser->dom.allocate(size, JSON_FAST_DEPTH_MAX);
    if (code == simdjson::SUCCESS)
        code = parser->dom.parse(reinterpret_cast<const uint8_t *>(parser->input), size, false)
                   .get(root);
    if (code != simdjson::SUCCESS)
        return refuse(code, err);
    if (root.get(object) != simdjson::SUCCESS)
        return err_set(err, ERR_MALFORMED, "JSON object expected, this is: %s",
                       json_type_name(type_of(root)));
    r = fields_collect(parser, object, err);
    if (r < 0)
        return r;
    code = slices_find(parser, size);
    return code == simdjson::SUCCESS ? 0 : refuse(code, err);
}

int json_fast_parse(struct json_fast *parser, const void *bytes, size_t size, bool padded,
                    struct err *err)
{
    int r;

    try {
        r = parser == nullptr ? err_set(err, ERR_MEMORY, "no memory to parse JSON")
                              : parse(parser, static_cast<const char *>(bytes), size, padded, err);
    } catch (...) {
        r = err_set(err, ERR_MEMORY, "no memory to parse JSON");
    }
    if (r < 0 && parser != nullptr)
        parser->fields.clear();
    return r;
}

size_t json_fast_field_count(const struct json_fast *parser)
{
    return parser->fields.size();
}

static void field_fill(const json_fast *parser, size_t index, struct json_field *field)
{
    const field_row &row = parser->fields[index];

    field->key = row.key.data(); /* simdjson terminates its strings */
    field->key_size = row.key.size();
    field->type = type_of(row.value);
    field->raw = row.raw;
    field->raw_size = row.raw_size;
    field->raw_start = static_cast<size_t>(row.raw - parser->input);
    field->index = index;
}

bool json_fast_next(struct json_fast *parser, struct json_field *ret_field)
{
    if (parser->next >= parser->fields.size())
        return false;
    field_fill(parser, parser->next++, ret_field);
    return true;
}

bool json_fast_find(struct json_fast *parser, const char *key, struct json_field *ret_field)
{
    for (size_t i = 0; i < parser->fields.size(); i++) {
        if (parser->fields[i].key == key) {
            field_fill(parser, i, ret_field);
            return true;
        }
    }
    return false;
}

static int mismatch(const struct json_field *field, const char *want, struct err *err)
{
    return err_set(err, ERR_MALFORMED, "%.64s must be %s, not %s", field->key, want,
                   json_type_name(field->type));
}

int json_fast_int64(struct json_fast *parser, const struct json_field *field, int64_t *ret_number,
                    struct err *err)
{
    const element &value = parser->fields[field->index].value;

    if (field->type != JSON_TYPE_NUMBER)
        return mismatch(field, "an integer", err);
    if (value.type() == element_type::UINT64)
        return err_set(err, ERR_RANGE, "%.64s is out of the range of 64-bit integers", field->key);
    if (value.type() != element_type::INT64 || value.get(*ret_number) != simdjson::SUCCESS)
        return err_set(err, ERR_MALFORMED, "%.64s must be an integer, not %.*s", field->key,
                       static_cast<int>(field->raw_size < 32 ? field->raw_size : 32), field->raw);
    return 0;
}

int json_fast_double(struct json_fast *parser, const struct json_field *field, double *ret_number,
                     struct err *err)
{
    if (field->type != JSON_TYPE_NUMBER ||
        parser->fields[field->index].value.get_double().get(*ret_number) != simdjson::SUCCESS)
        return mismatch(field, "a number", err);
    return 0;
}

int json_fast_bool(struct json_fast *parser, const struct json_field *field, bool *ret_yes,
                   struct err *err)
{
    if (field->type != JSON_TYPE_BOOL ||
        parser->fields[field->index].value.get(*ret_yes) != simdjson::SUCCESS)
        return mismatch(field, "true or false", err);
    return 0;
}

int json_fast_string(struct json_fast *parser, const struct json_field *field,
                     const char **ret_text, size_t *ret_size, struct err *err)
{
    std::string_view text;

    if (field->type != JSON_TYPE_STRING ||
        parser->fields[field->index].value.get(text) != simdjson::SUCCESS)
        return mismatch(field, "a string", err);
    if (ret_size == nullptr && text.find('\0') != std::string_view::npos)
        return err_set(err, ERR_MALFORMED, "%.64s holds a NUL character", field->key);
    *ret_text = text.data();
    if (ret_size != nullptr)
        *ret_size = text.size();
    return 0;
}
