/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The shim over simdjson. Two passes over the same bytes: the DOM parser checks the whole document
 * and keeps the values; the on-demand parser then tells where each top-level value begins and
 * ends, which the DOM does not keep. Both walk in the input's order, so field i is field i.
 *
 * The DOM parser turns every number into 64 bits and refuses a document with one that does not fit.
 * Most of a document is somebody else's business, who may well read such numbers: when one is met,
 * the DOM parser gets a copy in which the large ones stand for zeros of the same length. The second
 * pass, which looks at no number, reads the original.
 *
 * No exception leaves this file: simdjson is used through its error codes, and what the standard
 * library may throw (memory) is caught at each entry.
 */

#include "base/json_fast.h"

#include <charconv>
#include <cstring>
#include <simdjson.h>
#include <string>
#include <string_view>
#include <vector>

#define NUMBER_SIZE_LARGE 20 /* an integer of fewer characters always fits, with its sign */

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
    std::string copy;  /* of an input without padding */
    std::string small; /* of an input with numbers past 64 bits: without them */
    const char *input = nullptr;
    size_t next = 0;
    bool shrunk = false; /* values come from `small` */
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
        return err_set(err, ERR_MALFORMED, "JSON holds a number that is malformed");
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

/* ---- Numbers past 64 bits */

static size_t digits_skip(const char *text, size_t size, size_t at)
{
    while (at < size && text[at] >= '0' && text[at] <= '9')
        at++;
    return at;
}

/* A number as RFC 8259 has it; *ret_exponent is where its exponent's digits begin, or size. */
static bool is_number(const char *text, size_t size, size_t *ret_exponent)
{
    size_t at = size > 0 && text[0] == '-' ? 1 : 0, begin = at;

    *ret_exponent = size;
    at = digits_skip(text, size, at);
    if (at == begin || (text[begin] == '0' && at > begin + 1))
        return false;
    if (at < size && text[at] == '.') {
        begin = at + 1;
        at = digits_skip(text, size, begin);
        if (at == begin)
            return false;
    }
    if (at < size && (text[at] == 'e' || text[at] == 'E')) {
        at++;
        if (at < size && (text[at] == '+' || text[at] == '-'))
            at++;
        *ret_exponent = begin = at;
        at = digits_skip(text, size, begin);
        if (at == begin)
            return false;
    }
    return at == size;
}

/* Whatever it was, it is near zero now, and as long as before. */
static void number_shrink(char *text, size_t size, size_t exponent)
{
    size_t sign = text[0] == '-' ? 1 : 0;

    if (size < NUMBER_SIZE_LARGE) {
        memset(text + exponent, '0', size - exponent);
        return;
    }
    memset(text + sign, '0', size - sign);
    text[sign + 1] = '.';
}

/* False where a token that begins as a number is none. */
static bool numbers_shrink(std::string *text, size_t size)
{
    static const char ends[] = ",]}: \t\r\n\"[{";
    bool in_string = false;
    size_t exponent;

    for (size_t at = 0; at < size; at++) {
        char c = (*text)[at];
        size_t end = at;

        if (in_string && c == '\\')
            at++;
        else if (c == '"')
            in_string = !in_string;
        if (in_string || (c != '-' && (c < '0' || c > '9')))
            continue;
        while (end < size && memchr(ends, (*text)[end], sizeof(ends) - 1) == nullptr)
            end++;
        if (!is_number(text->data() + at, end - at, &exponent))
            return false;
        number_shrink(text->data() + at, end - at, exponent);
        at = end - 1;
    }
    return true;
}

/* The root of the input with its large numbers as zeros; NUMBER_ERROR when it was another fault. */
static simdjson::error_code parse_shrunk(json_fast *parser, size_t size, element *ret_root)
{
    parser->small.assign(parser->input, size);
    if (!numbers_shrink(&parser->small, size))
        return simdjson::NUMBER_ERROR;
    parser->small.append(JSON_FAST_PADDING, '\0');
    return parser->dom.parse(reinterpret_cast<const uint8_t *>(parser->small.data()), size, false)
        .get(*ret_root);
}

static int parse_root(json_fast *parser, const char *bytes, size_t size, bool padded,
                      element *ret_root, struct err *err)
{
    simdjson::error_code code = simdjson::SUCCESS;

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
                   .get(*ret_root);
    parser->shrunk = code == simdjson::NUMBER_ERROR;
    if (parser->shrunk)
        code = parse_shrunk(parser, size, ret_root);
    return code == simdjson::SUCCESS ? 0 : refuse(code, err);
}

static int parse(json_fast *parser, const char *bytes, size_t size, bool padded, struct err *err)
{
    simdjson::dom::object object;
    simdjson::error_code code;
    element root;
    int r = parse_root(parser, bytes, size, padded, &root, err);

    if (r < 0)
        return r;
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

int json_fast_check(struct json_fast *parser, const void *bytes, size_t size, bool padded,
                    struct err *err)
{
    element root;

    try {
        return parser == nullptr
                   ? err_set(err, ERR_MEMORY, "no memory to parse JSON")
                   : parse_root(parser, static_cast<const char *>(bytes), size, padded, &root, err);
    } catch (...) {
        return err_set(err, ERR_MEMORY, "no memory to parse JSON");
    }
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

/* Numbers are read from the input: the DOM may have had another one in their place. */
int json_fast_int64(struct json_fast *parser, const struct json_field *field, int64_t *ret_number,
                    struct err *err)
{
    const char *end = field->raw + field->raw_size;
    std::from_chars_result result;
    int64_t number;

    (void)parser;
    if (field->type != JSON_TYPE_NUMBER)
        return mismatch(field, "an integer", err);
    result = std::from_chars(field->raw, end, number);
    if (result.ptr != end)
        return err_set(err, ERR_MALFORMED, "%.64s must be an integer, not %.*s", field->key,
                       static_cast<int>(field->raw_size < 32 ? field->raw_size : 32), field->raw);
    if (result.ec != std::errc())
        return err_set(err, ERR_RANGE, "%.64s is out of the range of 64-bit integers", field->key);
    *ret_number = number;
    return 0;
}

int json_fast_double(struct json_fast *parser, const struct json_field *field, double *ret_number,
                     struct err *err)
{
    std::from_chars_result result;
    double number;

    (void)parser;
    if (field->type != JSON_TYPE_NUMBER)
        return mismatch(field, "a number", err);
    result = std::from_chars(field->raw, field->raw + field->raw_size, number);
    if (result.ec != std::errc())
        return err_set(err, ERR_RANGE, "%.64s is out of the range of a double", field->key);
    *ret_number = number;
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

/* ---- Lists */

namespace
{

struct list_walk {
    struct json_list list;
    uint32_t shaped; /* dims that are known */
    bool has_rank;   /* a value was met: lists go this deep and no deeper */
    uint64_t count_max;
    json_leaf_call *take;
    void *opaque;
};

} // namespace

static int leaf_take(list_walk *walk, const element &value, struct err *err)
{
    struct json_leaf leaf = {};
    std::string_view text;

    switch (value.type()) {
    case element_type::INT64:
        leaf.kind = JSON_LEAF_INT;
        leaf.integer = int64_t(value);
        break;
    case element_type::UINT64:
        leaf.kind = JSON_LEAF_LARGE;
        leaf.large = uint64_t(value);
        break;
    case element_type::DOUBLE:
        leaf.kind = JSON_LEAF_DOUBLE;
        leaf.number = double(value);
        break;
    case element_type::BOOL:
        leaf.kind = JSON_LEAF_BOOL;
        leaf.integer = bool(value) ? 1 : 0;
        break;
    case element_type::STRING:
        leaf.kind = JSON_LEAF_TEXT;
        text = value;
        leaf.text = text.data(); /* simdjson terminates its strings */
        if (text.find('\0') != std::string_view::npos)
            return err_set(err, ERR_MALFORMED, "a text holds a NUL character");
        break;
    default:
        return err_set(err, ERR_MALFORMED, "value %llu is a %s",
                       static_cast<unsigned long long>(walk->list.count),
                       json_type_name(type_of(value)));
    }
    if (walk->list.count == walk->count_max)
        return err_set(err, ERR_TOO_BIG, "there are more than %llu values",
                       static_cast<unsigned long long>(walk->count_max));
    walk->list.count++;
    return walk->take(walk->opaque, &leaf, err);
}

static int list_take(list_walk *walk, const element &value, uint32_t depth, struct err *err)
{
    simdjson::dom::array array;
    uint64_t size = 0;

    if (value.get(array) != simdjson::SUCCESS) {
        if ((walk->has_rank && walk->list.rank != depth) || walk->shaped >> depth != 0)
            return err_set(err, ERR_MALFORMED,
                           "lists are of no one shape: value %llu stands where "
                           "a list should be, or too deep",
                           static_cast<unsigned long long>(walk->list.count));
        walk->has_rank = true;
        walk->list.rank = depth;
        return leaf_take(walk, value, err);
    }
    if (depth == JSON_FAST_RANK_MAX)
        return err_set(err, ERR_TOO_BIG, "lists are nested deeper than %d", JSON_FAST_RANK_MAX);
    if (walk->has_rank && depth >= walk->list.rank)
        return err_set(err, ERR_MALFORMED,
                       "lists are of no one shape: a list stands where value "
                       "%llu should be",
                       static_cast<unsigned long long>(walk->list.count));
    for (element item : array) {
        int r = list_take(walk, item, depth + 1, err);

        if (r < 0)
            return r;
        size++;
    }
    if (!walk->has_rank && walk->list.rank < depth + 1)
        walk->list.rank = depth + 1; /* so far only empty lists */
    if (walk->shaped & 1u << depth && walk->list.dims[depth] != size)
        return err_set(err, ERR_MALFORMED,
                       "lists are of no one shape: one has %llu items, another "
                       "%llu",
                       static_cast<unsigned long long>(walk->list.dims[depth]),
                       static_cast<unsigned long long>(size));
    walk->shaped |= 1u << depth;
    walk->list.dims[depth] = size;
    return 0;
}

int json_fast_list(struct json_fast *parser, const struct json_field *field, uint64_t count_max,
                   json_leaf_call *take, void *opaque, struct json_list *ret_list, struct err *err)
{
    list_walk walk = {};
    int r;

    if (parser->shrunk)
        return err_set(err, ERR_RANGE, "%.64s: the input has a number that does not fit 64 bits",
                       field->key);
    walk.count_max = count_max;
    walk.take = take;
    walk.opaque = opaque;
    try {
        r = list_take(&walk, parser->fields[field->index].value, 0, err);
    } catch (...) {
        r = err_set(err, ERR_MEMORY, "no memory to read a list");
    }
    *ret_list = walk.list;
    return r;
}
