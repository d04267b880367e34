/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/yaml_json.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#define TAG_PREFIX "tag:yaml.org,2002:"
#define NUMBER_SIZE_MAX 40

struct anchor {
    char *name;
    json_t *value;
    size_t node_count;
};

struct reader {
    const char *what;
    yaml_parser_t parser;
    yaml_event_t event; /* the one at hand */
    bool has_event;
    size_t node_count;
    int depth;
    struct anchor anchors[YAML_ANCHORS_MAX];
    size_t anchor_count;
};

static void json_free(json_t **json_p)
{
    json_decref(*json_p);
    *json_p = NULL;
}

static void reader_done(struct reader *reader)
{
    if (reader->has_event)
        yaml_event_delete(&reader->event);
    yaml_parser_delete(&reader->parser);
    for (size_t i = 0; i < reader->anchor_count; i++) {
        free(reader->anchors[i].name);
        json_decref(reader->anchors[i].value);
    }
}

static size_t reader_line(const struct reader *reader)
{
    return reader->event.start_mark.line + 1;
}

static int reader_next(struct reader *reader, struct err *err)
{
    if (reader->has_event)
        yaml_event_delete(&reader->event);
    reader->has_event = false;
    if (yaml_parser_parse(&reader->parser, &reader->event) == 0)
        return err_set(err, ERR_MALFORMED, "%s: line %zu: %s", reader->what,
                       reader->parser.problem_mark.line + 1,
                       reader->parser.problem != NULL ? reader->parser.problem : "no YAML");
    reader->has_event = true;
    return 0;
}

static int count_nodes(struct reader *reader, size_t count, struct err *err)
{
    reader->node_count += count;
    if (reader->node_count > YAML_NODES_MAX)
        return err_set(err, ERR_TOO_BIG, "%s: line %zu: over %d values", reader->what,
                       reader_line(reader), YAML_NODES_MAX);
    return 0;
}

/* ---- scalars ---- */

static bool is_one_of(const char *text, const char *const words[], size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(text, words[i]) == 0)
            return true;
    }
    return false;
}

static json_t *as_integer(const char *digits, unsigned base, bool negative)
{
    uint64_t value = 0;
    bool any = false;

    for (; *digits != '\0'; digits++) {
        unsigned digit;

        if (*digits == '_')
            continue;
        if (!isxdigit((unsigned char)*digits))
            return NULL;
        digit = isdigit((unsigned char)*digits)
                    ? (unsigned)(*digits - '0')
                    : (unsigned)(tolower((unsigned char)*digits) - 'a') + 10;
        if (digit >= base || value > ((uint64_t)INT64_MAX - digit) / base)
            return NULL;
        value = value * base + digit;
        any = true;
    }
    return any ? json_integer(negative ? -(json_int_t)value : (json_int_t)value) : NULL;
}

/* digits, a point somewhere among them, perhaps an exponent with its sign. jansson reads it. */
static json_t *as_real(const char *text, bool negative)
{
    char number[NUMBER_SIZE_MAX + 4] = "", *to = number;
    const char *point = strchr(text, '.');
    json_t *value;

    if (point == NULL || strlen(text) > NUMBER_SIZE_MAX ||
        strspn(text, "0123456789_.eE+-") != strlen(text))
        return NULL;
    if (negative)
        *to++ = '-';
    if (point == text)
        *to++ = '0';
    for (const char *at = text; *at != '\0'; at++) {
        if (*at != '_')
            *to++ = *at;
        if (at == point && !isdigit((unsigned char)at[1]))
            *to++ = '0';
    }
    *to = '\0';
    value = json_loads(number, JSON_DECODE_ANY, NULL);
    if (json_is_real(value))
        return value;
    json_decref(value);
    return NULL;
}

static json_t *as_number(const char *text)
{
    bool negative = *text == '-';
    const char *at = text + (*text == '-' || *text == '+');

    if (!isdigit((unsigned char)*at) && *at != '.')
        return NULL;
    if (strncmp(at, "0x", 2) == 0)
        return as_integer(at + 2, 16, negative);
    if (strncmp(at, "0b", 2) == 0)
        return as_integer(at + 2, 2, negative);
    if (strchr(at, '.') != NULL)
        return as_real(at, negative);
    if (at[0] == '0' && at[1] != '\0')
        return as_integer(at, 8, negative);
    return as_integer(at, 10, negative);
}

static json_t *as_plain(const char *text)
{
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL"};
    static const char *const yes[] = {"yes",  "Yes", "YES", "true", "True",
                                      "TRUE", "on",  "On",  "ON"};
    static const char *const no[] = {"no",    "No",  "NO",  "false", "False",
                                     "FALSE", "off", "Off", "OFF"};
    json_t *number;

    if (is_one_of(text, nulls, COUNT_OF(nulls)))
        return json_null();
    if (is_one_of(text, yes, COUNT_OF(yes)))
        return json_true();
    if (is_one_of(text, no, COUNT_OF(no)))
        return json_false();
    number = as_number(text);
    return number != NULL ? number : json_string(text);
}

static bool tag_is(const char *tag, const char *name)
{
    return tag != NULL && strncmp(tag, TAG_PREFIX, strlen(TAG_PREFIX)) == 0 &&
           strcmp(tag + strlen(TAG_PREFIX), name) == 0;
}

static int refuse_tag(struct reader *reader, const char *tag, struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, "%s: line %zu: the tag %.80s is not allowed", reader->what,
                   reader_line(reader), tag);
}

static int read_scalar(struct reader *reader, json_t **ret_value, struct err *err)
{
    const char *text = (const char *)reader->event.data.scalar.value;
    const char *tag = (const char *)reader->event.data.scalar.tag;

    if (strlen(text) != reader->event.data.scalar.length)
        return err_set(err, ERR_MALFORMED, "%s: line %zu: a NUL byte", reader->what,
                       reader_line(reader));
    if (tag != NULL && !tag_is(tag, "str") && !tag_is(tag, "int") && !tag_is(tag, "float") &&
        !tag_is(tag, "bool") && !tag_is(tag, "null") && strcmp(tag, "!") != 0)
        return refuse_tag(reader, tag, err);
    if (tag == NULL ? reader->event.data.scalar.plain_implicit
                    : !tag_is(tag, "str") && strcmp(tag, "!") != 0)
        *ret_value = as_plain(text);
    else
        *ret_value = json_string(text);
    if (*ret_value == NULL)
        return err_set(err, ERR_MALFORMED, "%s: line %zu: bytes that are no UTF-8", reader->what,
                       reader_line(reader));
    return 0;
}

/* ---- nodes ---- */

/* Remembers what an anchor names; nothing in it refers to itself, since it is complete. */
static int keep_anchor(struct reader *reader, char *name, json_t *value, size_t node_count,
                       struct err *err)
{
    OWNED(mem_free) char *owned = name;

    if (owned == NULL)
        return 0;
    if (reader->anchor_count == YAML_ANCHORS_MAX)
        return err_set(err, ERR_TOO_BIG, "%s: over %d anchors", reader->what, YAML_ANCHORS_MAX);
    reader->anchors[reader->anchor_count++] = (struct anchor){TAKE(owned), json_incref(value),
                                                              node_count};
    return 0;
}

static int read_alias(struct reader *reader, json_t **ret_value, struct err *err)
{
    const char *name = (const char *)reader->event.data.alias.anchor;

    for (size_t i = reader->anchor_count; i > 0; i--) { /* the newest of that name */
        const struct anchor *anchor = &reader->anchors[i - 1];
        int r;

        if (strcmp(anchor->name, name) != 0)
            continue;
        r = count_nodes(reader, anchor->node_count, err);
        if (r < 0)
            return r;
        *ret_value = json_deep_copy(anchor->value);
        return 0;
    }
    return err_set(err, ERR_MALFORMED, "%s: line %zu: nothing is called *%.60s", reader->what,
                   reader_line(reader), name);
}

static int read_node(struct reader *reader, json_t **ret_value, struct err *err);

static int read_sequence(struct reader *reader, json_t *list, struct err *err)
{
    int r;

    while ((r = reader_next(reader, err)) == 0 && reader->event.type != YAML_SEQUENCE_END_EVENT) {
        json_t *value = NULL;

        r = read_node(reader, &value, err);
        if (r < 0)
            return r;
        (void)json_array_append_new(list, value);
    }
    return r;
}

/* The key at hand as text: of a plain scalar its own letters, so that 1 is "1". */
static int read_key(struct reader *reader, char **ret_key, bool *ret_is_merge, struct err *err)
{
    const char *text = (const char *)reader->event.data.scalar.value;

    if (reader->event.type != YAML_SCALAR_EVENT)
        return err_set(err, ERR_MALFORMED, "%s: line %zu: a key is no plain word", reader->what,
                       reader_line(reader));
    if (reader->event.data.scalar.anchor != NULL || reader->event.data.scalar.tag != NULL ||
        strlen(text) != reader->event.data.scalar.length)
        return err_set(err, ERR_UNSUPPORTED, "%s: line %zu: a key with an anchor, tag or NUL",
                       reader->what, reader_line(reader));
    *ret_is_merge = strcmp(text, "<<") == 0 && reader->event.data.scalar.plain_implicit;
    *ret_key = xstrdup(text);
    return count_nodes(reader, 1, err);
}

/* Gives `map` what it has not, of a mapping or of a list of them. */
static int merge(struct reader *reader, json_t *map, json_t *value, struct err *err)
{
    size_t i;
    json_t *item;

    if (json_is_object(value)) {
        (void)json_object_update_missing(map, value);
        return 0;
    }
    json_array_foreach(value, i, item)
    {
        if (!json_is_object(item))
            break;
        (void)json_object_update_missing(map, item);
    }
    if (json_is_array(value) && i == json_array_size(value))
        return 0;
    return err_set(err, ERR_MALFORMED, "%s: line %zu: << wants mappings", reader->what,
                   reader_line(reader));
}

static int read_pair(struct reader *reader, json_t *map, json_t *merged, struct err *err)
{
    OWNED(mem_free) char *key = NULL;
    OWNED(json_free) json_t *value = NULL;
    bool is_merge = false;
    size_t line = reader_line(reader);
    int r = read_key(reader, &key, &is_merge, err);

    if (r < 0)
        return r;
    if (!is_merge && json_object_get(map, key) != NULL)
        return err_set(err, ERR_MALFORMED, "%s: line %zu: the key '%.60s' is there twice",
                       reader->what, line, key);
    r = reader_next(reader, err);
    if (r == 0)
        r = read_node(reader, &value, err);
    if (r == 0 && is_merge)
        return merge(reader, merged, value, err);
    if (r == 0 && json_object_set(map, key, value) < 0)
        return err_set(err, ERR_MALFORMED, "%s: line %zu: bytes that are no UTF-8", reader->what,
                       line);
    return r;
}

static int read_mapping(struct reader *reader, json_t *map, struct err *err)
{
    OWNED(json_free) json_t *merged = json_object();
    int r;

    while ((r = reader_next(reader, err)) == 0 && reader->event.type != YAML_MAPPING_END_EVENT) {
        r = read_pair(reader, map, merged, err);
        if (r < 0)
            return r;
    }
    if (r == 0)
        (void)json_object_update_missing(map, merged);
    return r;
}

static int read_collection(struct reader *reader, bool is_map, json_t *value, struct err *err)
{
    const char *tag = (const char *)(is_map ? reader->event.data.mapping_start.tag
                                            : reader->event.data.sequence_start.tag);
    int r;

    if (tag != NULL && !tag_is(tag, is_map ? "map" : "seq"))
        return refuse_tag(reader, tag, err);
    if (reader->depth == YAML_DEPTH_MAX)
        return err_set(err, ERR_TOO_BIG, "%s: line %zu: nested deeper than %d", reader->what,
                       reader_line(reader), YAML_DEPTH_MAX);
    reader->depth++;
    r = is_map ? read_mapping(reader, value, err) : read_sequence(reader, value, err);
    reader->depth--;
    return r;
}

static char *anchor_of(const yaml_event_t *event)
{
    const yaml_char_t *name = event->type == YAML_SCALAR_EVENT ? event->data.scalar.anchor
                              : event->type == YAML_MAPPING_START_EVENT
                                  ? event->data.mapping_start.anchor
                                  : event->data.sequence_start.anchor;

    return name == NULL ? NULL : xstrdup((const char *)name);
}

/* The node that begins at the event at hand. */
static int read_node(struct reader *reader, json_t **ret_value, struct err *err)
{
    OWNED(json_free) json_t *value = NULL;
    OWNED(mem_free) char *anchor = NULL;
    size_t before = reader->node_count;
    int r = count_nodes(reader, 1, err);

    if (r < 0)
        return r;
    if (reader->event.type == YAML_ALIAS_EVENT)
        return read_alias(reader, ret_value, err);
    anchor = anchor_of(&reader->event);
    if (reader->event.type == YAML_SCALAR_EVENT) {
        r = read_scalar(reader, &value, err);
    } else {
        bool is_map = reader->event.type == YAML_MAPPING_START_EVENT;

        value = is_map ? json_object() : json_array();
        r = read_collection(reader, is_map, value, err);
    }
    if (r == 0)
        r = keep_anchor(reader, TAKE(anchor), value, reader->node_count - before, err);
    if (r == 0)
        *ret_value = TAKE(value);
    return r;
}

static int read_document(struct reader *reader, json_t **ret_value, struct err *err)
{
    int r = reader_next(reader, err); /* of the stream */

    if (r == 0)
        r = reader_next(reader, err);
    if (r < 0)
        return r;
    if (reader->event.type == YAML_STREAM_END_EVENT) {
        *ret_value = json_object();
        return 0;
    }
    r = reader_next(reader, err);
    if (r == 0)
        r = read_node(reader, ret_value, err);
    if (r == 0)
        r = reader_next(reader, err); /* the end of the document */
    if (r == 0)
        r = reader_next(reader, err);
    if (r == 0 && reader->event.type != YAML_STREAM_END_EVENT)
        return err_set(err, ERR_MALFORMED, "%s: line %zu: a second document begins", reader->what,
                       reader_line(reader));
    return r;
}

int yaml_json_parse(const char *what, const char *text, size_t size, json_t **ret_json,
                    struct err *err)
{
    OWNED(json_free) json_t *value = NULL;
    struct reader reader = {.what = what};
    int r;

    if (size > YAML_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "%s has %zu bytes, the limit is %u", what, size,
                       YAML_SIZE_MAX);
    if (yaml_parser_initialize(&reader.parser) == 0)
        return err_set(err, ERR_MEMORY, "%s: no memory for a parser", what);
    yaml_parser_set_input_string(&reader.parser, (const unsigned char *)text, size);
    r = read_document(&reader, &value, err);
    reader_done(&reader);
    if (r < 0)
        return r;
    if (json_is_null(value)) {
        json_decref(value);
        value = json_object();
    }
    *ret_json = TAKE(value);
    return 0;
}
