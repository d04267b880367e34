/* SPDX-License-Identifier: Apache-2.0 */

/* Which words a schema may have, and how those of later drafts are said in the library's. */

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "schema/json_schema_int.h"

#define REF_SIZE_MAX 300

enum word_kind {
    WORD_NOTE,   /* checks nothing */
    WORD_SCHEMA, /* a schema */
    WORD_LIST,   /* a list of schemas */
    WORD_MAP,    /* schemas by name */
    WORD_ITEMS,  /* a schema, or a list of them */
    WORD_TYPE,
    WORD_ENUM,
    WORD_CONST, /* as in an enum: no list and no object, which the library takes for schemas */
    WORD_NAMES, /* a list of texts */
    WORD_NUMBER,
    WORD_COUNT, /* a whole number that is not negative */
    WORD_LIMIT, /* a number, or whether the limit beside it is exclusive */
    WORD_REF,
};

static const struct word {
    const char *name;
    enum word_kind kind;
    bool here; /* its schemas are about the same value */
} words[] = {
    {"$schema", WORD_NOTE, false},
    {"$id", WORD_NOTE, false},
    {"id", WORD_NOTE, false},
    {"$comment", WORD_NOTE, false},
    {"title", WORD_NOTE, false},
    {"description", WORD_NOTE, false},
    {"default", WORD_NOTE, false},
    {"examples", WORD_NOTE, false},
    {"example", WORD_NOTE, false},
    {"format", WORD_NOTE, false},
    {"readOnly", WORD_NOTE, false},
    {"writeOnly", WORD_NOTE, false},
    {"deprecated", WORD_NOTE, false},
    {"type", WORD_TYPE, false},
    {"enum", WORD_ENUM, false},
    {"const", WORD_CONST, false},
    {"allOf", WORD_LIST, true},
    {"anyOf", WORD_LIST, true},
    {"oneOf", WORD_LIST, true},
    {"not", WORD_SCHEMA, true},
    {"properties", WORD_MAP, false},
    {"additionalProperties", WORD_SCHEMA, false},
    {"required", WORD_NAMES, false},
    {"minProperties", WORD_COUNT, false},
    {"maxProperties", WORD_COUNT, false},
    {"items", WORD_ITEMS, false},
    {"additionalItems", WORD_SCHEMA, false},
    {"minItems", WORD_COUNT, false},
    {"maxItems", WORD_COUNT, false},
    {"minLength", WORD_COUNT, false},
    {"maxLength", WORD_COUNT, false},
    {"minimum", WORD_NUMBER, false},
    {"maximum", WORD_NUMBER, false},
    {"exclusiveMinimum", WORD_LIMIT, false},
    {"exclusiveMaximum", WORD_LIMIT, false},
    {"multipleOf", WORD_NUMBER, false},
    {"definitions", WORD_MAP, false},
    {"$defs", WORD_MAP, false},
    {"$ref", WORD_REF, true},
};

/* Where the walk is, for errors. */
struct walk {
    const json_t *root;
    struct err *err;
    char where[200];
    unsigned depth, count;
};

static const struct word *word_find(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(words); i++) {
        if (strcmp(words[i].name, name) == 0)
            return &words[i];
    }
    return NULL;
}

static int wrong(const struct walk *walk, const char *name, const char *must)
{
    return err_set(walk->err, ERR_MALFORMED, "%s%s must be %s", walk->where, name, must);
}

static size_t walk_enter(struct walk *walk, const char *name, const char *more)
{
    size_t size = strlen(walk->where);

    (void)snprintf(walk->where + size, sizeof(walk->where) - size, "%.60s%s%.60s.", name,
                   more[0] == '\0' ? "" : ".", more);
    return size;
}

static json_t *schema_read(struct walk *walk, const json_t *json);

/* The schema at a place below; NULL: it is wrong. */
static json_t *schema_below(struct walk *walk, const char *name, const char *more,
                            const json_t *json)
{
    size_t size = walk_enter(walk, name, more);
    json_t *schema = schema_read(walk, json);

    if (schema != NULL)
        walk->where[size] = '\0';
    return schema;
}

/* ---- values of words ---- */

static bool is_type(const json_t *value)
{
    static const char *const names[] = {"null",   "boolean", "object", "array",
                                        "string", "number",  "integer"};

    for (size_t i = 0; json_is_string(value) && i < COUNT_OF(names); i++) {
        if (strcmp(json_string_value(value), names[i]) == 0)
            return true;
    }
    return false;
}

static bool all_are(const json_t *list, bool (*is)(const json_t *value))
{
    const json_t *value;
    size_t i;

    json_array_foreach(list, i, value)
    {
        if (!is(value))
            return false;
    }
    return i > 0;
}

static bool is_text(const json_t *value)
{
    return json_is_string(value);
}

static bool is_plain(const json_t *value)
{
    return !json_is_object(value) && !json_is_array(value);
}

static const char *value_must(const struct word *word, const json_t *value)
{
    switch (word->kind) {
    case WORD_TYPE:
        return is_type(value) || all_are(value, is_type)
                   ? NULL
                   : "null, boolean, object, array, string, number, integer or a list of these";
    case WORD_ENUM:
        return all_are(value, is_plain) ? NULL : "a list of texts, numbers, truth values and null";
    case WORD_CONST:
        return is_plain(value) ? NULL : "a text, a number, a truth value or null";
    case WORD_NAMES:
        return json_is_array(value) && (json_array_size(value) == 0 || all_are(value, is_text))
                   ? NULL
                   : "a list of texts";
    case WORD_NUMBER:
        return json_is_number(value) &&
                       (strcmp(word->name, "multipleOf") != 0 || json_number_value(value) > 0)
                   ? NULL
                   : "a number, and of multipleOf a positive one";
    case WORD_COUNT:
        return json_is_integer(value) && json_integer_value(value) >= 0 &&
                       json_integer_value(value) <= UINT32_MAX
                   ? NULL
                   : "a whole number from 0 to 4294967295";
    case WORD_LIMIT:
        return json_is_number(value) || json_is_boolean(value) ? NULL : "a number or a truth value";
    default:
        return NULL;
    }
}

static json_t *list_read(struct walk *walk, const struct word *word, const json_t *list)
{
    json_t *to = json_array();
    const json_t *value;
    char place[24];
    size_t i;

    json_array_foreach(list, i, value)
    {
        json_t *schema;

        (void)snprintf(place, sizeof(place), "%zu", i);
        schema = schema_below(walk, word->name, place, value);
        if (schema == NULL) {
            json_decref(to);
            return NULL;
        }
        (void)json_array_append_new(to, schema);
    }
    return to;
}

static json_t *map_read(struct walk *walk, const struct word *word, const json_t *map)
{
    json_t *to = json_object(), *value;
    const char *name;

    json_object_foreach((json_t *)map, name, value)
    {
        json_t *schema = schema_below(walk, word->name, name, value);

        if (schema == NULL) {
            json_decref(to);
            return NULL;
        }
        (void)json_object_set_new(to, name, schema);
    }
    return to;
}

/* What the reference names; NULL: nothing, or it is none of ours. */
static const json_t *ref_find(const json_t *root, const char *ref)
{
    static const char *const places[] = {"definitions", "$defs"};
    size_t size;

    if (ref != NULL && (strcmp(ref, "#") == 0 || strcmp(ref, "#/") == 0))
        return ref[1] == '\0' ? root : NULL;
    for (size_t i = 0; ref != NULL && i < COUNT_OF(places); i++) {
        size = strlen(places[i]);
        if (strncmp(ref, "#/", 2) != 0 || strncmp(ref + 2, places[i], size) != 0 ||
            ref[2 + size] != '/' || strpbrk(ref + 3 + size, "/~%") != NULL)
            continue;
        return json_object_get(json_object_get(root, places[i]), ref + 3 + size);
    }
    return NULL;
}

/* A pointer in a URI, as the library reads them: it would take another one for no reference. */
static json_t *ref_read(const char *ref)
{
    OWNED(buf_done) struct buf to = BUF_WITH_LIMIT(4096);

    buf_append_text(&to, ref[1] == '\0' ? "#" : ref[2] == '$' ? "#/defs/" : "#/definitions/");
    for (const char *name = ref[1] == '\0' ? "" : strchr(ref + 2, '/') + 1; *name != '\0'; name++)
        buf_printf(&to, isalnum((unsigned char)*name) ? "%c" : "%%%02X", (unsigned char)*name);
    return to.failed ? NULL : json_string(buf_text(&to));
}

/* The word's value in the library's terms; NULL: it is wrong. */
static json_t *value_read(struct walk *walk, const struct word *word, const json_t *value)
{
    const char *must = value_must(word, value);

    if (must != NULL) {
        (void)wrong(walk, word->name, must);
        return NULL;
    }
    switch (word->kind) {
    case WORD_SCHEMA:
        if (json_is_boolean(value) && strncmp(word->name, "additional", 10) == 0)
            return json_incref((json_t *)value);
        return schema_below(walk, word->name, "", value);
    case WORD_ITEMS:
        return json_is_array(value) ? list_read(walk, word, value)
                                    : schema_below(walk, word->name, "", value);
    case WORD_LIST:
        if (json_array_size(value) > 0)
            return list_read(walk, word, value);
        (void)wrong(walk, word->name, "a list of a schema or more");
        return NULL;
    case WORD_MAP:
        if (json_is_object(value))
            return map_read(walk, word, value);
        (void)wrong(walk, word->name, "an object: schemas by name");
        return NULL;
    case WORD_REF:
        if (ref_find(walk->root, json_string_value(value)) != NULL &&
            json_string_length(value) < REF_SIZE_MAX)
            return ref_read(json_string_value(value));
        (void)wrong(walk, word->name,
                    "#, #/definitions/NAME or #/$defs/NAME, and that has to be there");
        return NULL;
    default:
        return json_incref((json_t *)value);
    }
}

/* ---- a schema ---- */

/* Takes the value. A number as exclusive limit is a limit of its own: it must hold beside the other
 * one. */
static void word_put(json_t *to, json_t *also, const struct word *word, json_t *value)
{
    if (word->kind == WORD_CONST) {
        (void)json_array_append_new(also, json_pack("{s:[o]}", "enum", value));
    } else if (word->kind == WORD_LIMIT && json_is_number(value)) {
        (void)json_array_append_new(
            also, json_pack("{s:o, s:b}",
                            word->name[9] == 'M' && word->name[10] == 'i' ? "minimum" : "maximum",
                            value, word->name, true));
    } else if (word->kind == WORD_REF) { /* in a schema of its own: what is beside it counts */
        (void)json_array_append_new(also, json_pack("{s:o}", "$ref", value));
    } else {
        (void)json_object_set_new(to, strcmp(word->name, "$defs") == 0 ? "defs" : word->name,
                                  value);
    }
}

static json_t *words_read(struct walk *walk, const json_t *json)
{
    json_t *to = json_object(), *also = json_array(), *value;
    const char *name;

    json_object_foreach((json_t *)json, name, value)
    {
        const struct word *word = word_find(name);
        json_t *read;

        if (word != NULL && word->kind == WORD_NOTE)
            continue;
        if (word == NULL)
            (void)err_set(walk->err, ERR_UNSUPPORTED,
                          "%s%.60s is not checked here, so it is refused", walk->where, name);
        read = word == NULL ? NULL : value_read(walk, word, value);
        if (read == NULL) {
            json_decref(to);
            json_decref(also);
            return NULL;
        }
        word_put(to, also, word, read);
    }
    value = json_object_get(to, "allOf");
    if (value != NULL)
        (void)json_array_extend(value, also);
    else if (json_array_size(also) > 0)
        (void)json_object_set(to, "allOf", also);
    json_decref(also);
    return to;
}

/* The caller's; NULL: err says what is wrong. */
static json_t *schema_read(struct walk *walk, const json_t *json)
{
    json_t *to = NULL;

    if (json_is_true(json))
        return json_object();
    if (json_is_false(json))
        return json_pack("{s:{}}", "not");
    if (!json_is_object(json)) {
        (void)wrong(walk, "it", "a schema: an object, true or false");
        return NULL;
    }
    if (walk->depth == JSON_SCHEMA_DEPTH_MAX || ++walk->count > JSON_SCHEMA_COUNT_MAX) {
        (void)err_set(walk->err, ERR_TOO_BIG,
                      "it has over %d schemas, or over %d of them in one another",
                      JSON_SCHEMA_COUNT_MAX, JSON_SCHEMA_DEPTH_MAX);
        return NULL;
    }
    walk->depth++;
    to = words_read(walk, json);
    walk->depth--;
    return to;
}

/* ---- how often one value is looked at ---- */

static bool weigh(const json_t *root, const json_t *json, unsigned *places);

static bool weigh_word(const json_t *root, const struct word *word, json_t *value, unsigned *places)
{
    bool fits = true;
    json_t *one;
    size_t i;

    if (word->kind == WORD_REF)
        return weigh(root, ref_find(root, json_string_value(value)), places);
    if (word->kind == WORD_SCHEMA)
        return weigh(root, value, places);
    json_array_foreach(value, i, one)
    {
        fits = fits && weigh(root, one, places);
    }
    return fits;
}

static bool weigh(const json_t *root, const json_t *json, unsigned *places)
{
    const char *name;
    json_t *value;

    if (++*places > JSON_SCHEMA_PLACES_MAX)
        return false;
    json_object_foreach((json_t *)json, name, value)
    {
        const struct word *word = word_find(name);

        if (word != NULL && word->here && !weigh_word(root, word, value, places))
            return false;
    }
    return true;
}

/* Every object of it, since each schema in it may be begun at. */
static bool weigh_all(const json_t *root, const json_t *json)
{
    unsigned places = 0;
    const char *name;
    json_t *value;
    size_t i;

    if (json_is_object(json) && !weigh(root, json, &places))
        return false;
    json_object_foreach((json_t *)json, name, value)
    {
        if (!weigh_all(root, value))
            return false;
    }
    json_array_foreach(json, i, value)
    {
        if (!weigh_all(root, value))
            return false;
    }
    return true;
}

int json_schema_new(const json_t *json, struct json_schema **ret_schema, struct err *err)
{
    struct walk walk = {.root = json, .err = err};
    json_t *schema = schema_read(&walk, json);
    char *text;
    int r;

    if (schema == NULL)
        return err->code;
    if (!weigh_all(json, json)) {
        json_decref(schema);
        return err_set(err, ERR_TOO_BIG,
                       "it refers to itself without going into a value, or looks at one value over "
                       "%d times",
                       JSON_SCHEMA_PLACES_MAX);
    }
    text = json_dumps(schema, JSON_COMPACT);
    json_decref(schema);
    r = json_schema_compile(text, strlen(text), ret_schema, err);
    free(text);
    return r;
}
