/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/ingest_map.h"

#include <jansson.h>
#include <msgpack.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_fast.h"
#include "base/wire.h"
#include "schema/chain_template.h"

#define PRIORITY_MAX 2

struct ingest_mapper {
    struct json_fast *parser;
};

struct ingest_mapping {
    bool is_msgpack;
    json_t *json; /* the whole mapping; what follows is borrowed from it */
    const json_t *input, *key, *priority;
};

struct ingest_mapper *ingest_mapper_new(void)
{
    struct ingest_mapper *mapper = xcalloc(1, sizeof(*mapper));

    mapper->parser = json_fast_new();
    return mapper;
}

void ingest_mapper_free(struct ingest_mapper **mapper_p)
{
    struct ingest_mapper *mapper = TAKE(*mapper_p);

    if (mapper == NULL)
        return;
    json_fast_free(&mapper->parser);
    free(mapper);
}

/* ---- mappings ---- */

static int refuse_steps(void *opaque, const char *step, struct err *err)
{
    (void)opaque;
    return err_set(err, ERR_MALFORMED, "a record has no steps ('%.60s')", step);
}

/* jq runs in processes of their own, which a record does not wait for. */
static int refuse_expressions(const json_t *value, const char *where, struct err *err)
{
    const char *key;
    json_t *member;
    size_t index;
    int r = 0;

    if (json_is_string(value) && chain_jq_is_expression(json_string_value(value)))
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: expressions in jq are for chains; a mapping has templates", where);
    json_array_foreach(value, index, member)
    {
        r = r == 0 ? refuse_expressions(member, where, err) : r;
    }
    json_object_foreach((json_t *)value, key, member)
    {
        r = r == 0 ? refuse_expressions(member, where, err) : r;
    }
    return r;
}

static int mapping_check(const struct ingest_mapping *mapping, struct err *err)
{
    const struct chain_template_use use = {.step = refuse_steps};
    const char *name;
    json_t *value;

    json_object_foreach(mapping->json, name, value)
    {
        char where[40];
        int r;

        if (value != mapping->input && value != mapping->key && value != mapping->priority)
            return err_set(err, ERR_MALFORMED,
                           "mapping has the member '%.60s'; it may have input, key and priority",
                           name);
        if (value != mapping->input && !json_is_string(value))
            return err_set(err, ERR_MALFORMED, "mapping.%s must be a text", name);
        (void)snprintf(where, sizeof(where), "mapping.%s", name);
        r = refuse_expressions(value, where, err);
        if (r == 0)
            r = chain_template_check(value, where, &use, err);
        if (r < 0)
            return r;
    }
    return 0;
}

int ingest_mapping_parse(const char *format, const char *json, struct ingest_mapping **ret_mapping,
                         struct err *err)
{
    OWNED(ingest_mapping_free) struct ingest_mapping *mapping = xcalloc(1, sizeof(*mapping));
    json_error_t where;
    int r;

    mapping->is_msgpack = strcmp(format, "msgpack") == 0;
    if (!mapping->is_msgpack && strcmp(format, "json") != 0)
        return err_set(err, strcmp(format, "avro") == 0 ? ERR_UNSUPPORTED : ERR_RANGE,
                       "format is '%.40s'; json and msgpack are read, Avro with a schema registry "
                       "is not",
                       format);
    if (strlen(json) > INGEST_MAPPING_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "mapping has %zu bytes; it may have %d", strlen(json),
                       INGEST_MAPPING_SIZE_MAX);
    mapping->json = json_loads(json, JSON_REJECT_DUPLICATES, &where);
    if (!json_is_object(mapping->json))
        return err_set(err, ERR_MALFORMED, "mapping is no JSON object: %.120s",
                       mapping->json == NULL ? where.text : "it is another value");
    mapping->input = json_object_get(mapping->json, "input");
    mapping->key = json_object_get(mapping->json, "key");
    mapping->priority = json_object_get(mapping->json, "priority");
    r = mapping_check(mapping, err);
    if (r == 0)
        *ret_mapping = TAKE(mapping);
    return r;
}

void ingest_mapping_free(struct ingest_mapping **mapping_p)
{
    struct ingest_mapping *mapping = TAKE(*mapping_p);

    if (mapping == NULL)
        return;
    json_decref(mapping->json);
    free(mapping);
}

/* ---- values ---- */

/* A text, or where the bytes are no UTF-8 their base64. */
static json_t *json_of_bytes(const void *bytes, size_t size)
{
    json_t *text = json_stringn(size > 0 ? bytes : "", size);
    OWNED(mem_free) char *encoded = NULL;
    size_t encoded_size;

    if (text != NULL)
        return text;
    encoded_size = sodium_base64_encoded_len(size, sodium_base64_VARIANT_ORIGINAL);
    encoded = xmalloc(encoded_size);
    (void)sodium_bin2base64(encoded, encoded_size, bytes, size, sodium_base64_VARIANT_ORIGINAL);
    return json_string(encoded);
}

static int json_of_msgpack(const msgpack_object *object, json_t **ret_json, struct err *err);

static int json_of_map(const msgpack_object_map *map, json_t **ret_json, struct err *err)
{
    json_t *to = json_object();
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < map->size; i++) {
        const msgpack_object *key = &map->ptr[i].key;
        OWNED(mem_free) char *name = NULL;
        json_t *value = NULL;

        if (key->type != MSGPACK_OBJECT_STR) {
            r = err_set(err, ERR_MALFORMED, "a map of it has a key that is no text");
            break;
        }
        name = wire_text_dup((struct wire_text){key->via.str.ptr, key->via.str.size});
        r = json_of_msgpack(&map->ptr[i].val, &value, err);
        if (r == 0 && json_object_set_new(to, name, value) < 0)
            r = err_set(err, ERR_MALFORMED, "a map of it has a key that is no UTF-8");
    }
    *ret_json = to;
    return r;
}

static int json_of_array(const msgpack_object_array *array, json_t **ret_json, struct err *err)
{
    json_t *to = json_array();
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < array->size; i++) {
        json_t *value = NULL;

        r = json_of_msgpack(&array->ptr[i], &value, err);
        if (value != NULL)
            (void)json_array_append_new(to, value);
    }
    *ret_json = to;
    return r;
}

static int json_of_number(const msgpack_object *object, json_t **ret_json, struct err *err)
{
    if (object->type == MSGPACK_OBJECT_POSITIVE_INTEGER && object->via.u64 > INT64_MAX)
        return err_set(err, ERR_RANGE, "it holds the number %llu, over %lld",
                       (unsigned long long)object->via.u64, (long long)INT64_MAX);
    if (object->type == MSGPACK_OBJECT_FLOAT32 || object->type == MSGPACK_OBJECT_FLOAT64)
        *ret_json = json_real(object->via.f64);
    else
        *ret_json = json_integer(object->via.i64);
    return *ret_json != NULL ? 0
                             : err_set(err, ERR_RANGE, "it holds a number that is none in JSON");
}

/* On failure *ret_json may be there, too: for the caller to free. */
static int json_of_msgpack(const msgpack_object *object, json_t **ret_json, struct err *err)
{
    switch (object->type) {
    case MSGPACK_OBJECT_NIL:
        *ret_json = json_null();
        return 0;
    case MSGPACK_OBJECT_BOOLEAN:
        *ret_json = json_boolean(object->via.boolean);
        return 0;
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
    case MSGPACK_OBJECT_NEGATIVE_INTEGER:
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64:
        return json_of_number(object, ret_json, err);
    case MSGPACK_OBJECT_STR:
        *ret_json = json_stringn(object->via.str.size > 0 ? object->via.str.ptr : "",
                                 object->via.str.size);
        return *ret_json != NULL ? 0 : err_set(err, ERR_MALFORMED, "a text of it is no UTF-8");
    case MSGPACK_OBJECT_BIN:
        *ret_json = json_of_bytes(object->via.bin.ptr, object->via.bin.size);
        return 0;
    case MSGPACK_OBJECT_ARRAY:
        return json_of_array(&object->via.array, ret_json, err);
    case MSGPACK_OBJECT_MAP:
        return json_of_map(&object->via.map, ret_json, err);
    case MSGPACK_OBJECT_EXT:
        break;
    }
    return err_set(err, ERR_UNSUPPORTED, "it holds an extension type");
}

static int value_of_msgpack(const struct queue_record *record, json_t **ret_json, struct err *err)
{
    msgpack_unpacked unpacked;
    int r = wire_walk(record->bytes, record->size, err);

    if (r < 0)
        return r;
    msgpack_unpacked_init(&unpacked);
    if (msgpack_unpack_next(&unpacked, record->bytes, record->size, NULL) != MSGPACK_UNPACK_SUCCESS)
        r = err_set(err, ERR_MALFORMED, "it is no msgpack");
    else
        r = json_of_msgpack(&unpacked.data, ret_json, err);
    msgpack_unpacked_destroy(&unpacked);
    return r;
}

static int value_of_json(const struct queue_record *record, json_t **ret_json, struct err *err)
{
    json_error_t where;

    *ret_json = json_loadb(record->bytes, record->size, JSON_DECODE_ANY, &where);
    return *ret_json != NULL ? 0
                             : err_set(err, ERR_MALFORMED, "it is no JSON: %.120s (byte %d)",
                                       where.text, where.position);
}

/* ---- records ---- */

static json_t *json_of_record(const char *topic, uint32_t partition,
                              const struct queue_record *record, json_t *value)
{
    struct queue_header headers[INGEST_HEADERS_MAX];
    size_t count = queue_record_headers(record, headers, COUNT_OF(headers));
    json_t *named = json_object();

    for (size_t i = 0; i < count; i++)
        (void)json_object_set_new(named, headers[i].name,
                                  headers[i].value == NULL
                                      ? json_null()
                                      : json_of_bytes(headers[i].value, headers[i].size));
    return json_pack(
        "{s:O, s:o, s:o, s:s, s:I, s:I, s:I}", "value", value, "key",
        record->key == NULL ? json_null() : json_of_bytes(record->key, record->key_size), "headers",
        named, "topic", topic, "partition", (json_int_t)partition, "offset",
        (json_int_t)record->offset, "timestamp_ms", (json_int_t)(record->append_us / 1000));
}

static int text_of(const json_t *value, const char *what, char **ret_text, struct err *err)
{
    char *text = json_is_string(value) ? xstrdup(json_string_value(value))
                                       : json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);

    if (json_is_object(value) || json_is_array(value) || text == NULL || text[0] == '\0' ||
        strlen(text) > INGEST_KEY_SIZE_MAX) {
        free(text);
        return err_set(err, ERR_RANGE, "its %s must be a text of 1 to %d bytes, or a number", what,
                       INGEST_KEY_SIZE_MAX);
    }
    *ret_text = text;
    return 0;
}

static int map_key(const struct ingest_mapping *mapping, const struct chain_scope *scope,
                   struct ingest_record *record, struct err *err)
{
    json_t *value = NULL;
    int r;

    if (mapping->key == NULL)
        return 0;
    r = chain_template_make(mapping->key, scope, &value, err);
    if (r == 0 && !json_is_null(value))
        r = text_of(value, "key", &record->dedupe, err);
    json_decref(value);
    return r;
}

static int map_priority(const struct ingest_mapping *mapping, const struct chain_scope *scope,
                        struct ingest_record *record, struct err *err)
{
    OWNED(mem_free) char *text = NULL;
    json_t *value = NULL;
    int r;

    if (mapping->priority == NULL)
        return 0;
    r = chain_template_make(mapping->priority, scope, &value, err);
    if (r == 0 && !json_is_null(value)) {
        r = text_of(value, "priority", &text, err);
        if (r == 0 && (strlen(text) != 1 || text[0] < '0' || text[0] > '0' + PRIORITY_MAX))
            r = err_set(err, ERR_RANGE, "its priority is '%.20s'; it must be 0 to %d", text,
                        PRIORITY_MAX);
        if (r == 0)
            record->priority = text[0] - '0';
    }
    json_decref(value);
    return r;
}

static int map_input(const struct ingest_mapping *mapping, const struct chain_scope *scope,
                     const json_t *value, struct ingest_record *record, struct err *err)
{
    json_t *made = NULL;
    int r = 0;

    if (mapping->input != NULL)
        r = chain_template_make(mapping->input, scope, &made, err);
    if (r == 0) {
        record->input = json_dumps(made != NULL ? made : value, JSON_ENCODE_ANY | JSON_COMPACT);
        record->input_size = strlen(record->input);
    }
    json_decref(made);
    return r;
}

/* As it came, when nothing is to be looked up in it. */
static int map_verbatim(struct ingest_mapper *mapper, const struct queue_record *from,
                        struct ingest_record *record, struct err *err)
{
    int r = json_fast_check(mapper->parser, from->bytes, from->size, false, err);

    if (r < 0)
        return r;
    record->input = xmalloc(from->size + 1);
    memcpy(record->input, from->bytes, from->size);
    record->input_size = from->size;
    return 0;
}

static int map_value(struct ingest_mapper *mapper, const struct ingest_mapping *mapping,
                     const char *topic, uint32_t partition, const struct queue_record *from,
                     struct ingest_record *record, struct err *err)
{
    bool plain = mapping->input == NULL && mapping->key == NULL && mapping->priority == NULL;
    struct chain_scope scope = {.run = ""};
    json_t *value = NULL, *whole;
    int r;

    if (from->bytes == NULL)
        return err_set(err, ERR_MALFORMED, "it has no value (a tombstone)");
    if (!mapping->is_msgpack && from->size > 5 && *(const uint8_t *)from->bytes == 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "it begins with a zero byte, as Avro of a schema registry does; that is not "
                       "read");
    if (plain && !mapping->is_msgpack)
        return map_verbatim(mapper, from, record, err);
    r = mapping->is_msgpack ? value_of_msgpack(from, &value, err)
                            : value_of_json(from, &value, err);
    if (r < 0) {
        json_decref(value);
        return r;
    }
    whole = json_of_record(topic, partition, from, value);
    scope.input = whole;
    r = map_key(mapping, &scope, record, err);
    if (r == 0)
        r = map_priority(mapping, &scope, record, err);
    if (r == 0)
        r = map_input(mapping, &scope, value, record, err);
    json_decref(whole);
    json_decref(value);
    return r;
}

static void record_keep(const struct queue_record *from, struct ingest_record *record)
{
    struct queue_header headers[INGEST_HEADERS_MAX];
    size_t count = queue_record_headers(from, headers, COUNT_OF(headers));

    record->has_key = from->key != NULL && from->key_size <= QUEUE_KEY_MAX;
    record->key_size = record->has_key ? from->key_size : 0;
    if (record->key_size > 0)
        record->key = xmemdup(from->key, from->key_size);
    buf_init(&record->headers, 2 * INGEST_HEADERS_SIZE_MAX);
    ingest_headers_pack(headers, count, &record->headers);
}

static void record_keep_value(const struct queue_record *from, struct ingest_record *record)
{
    record->has_value = from->bytes != NULL && from->size <= QUEUE_RECORD_MAX;
    record->value_size = record->has_value ? from->size : 0;
    if (record->value_size > 0)
        record->value = xmemdup(from->bytes, from->size);
}

static void record_trace(const struct queue_record *from, struct ingest_record *record)
{
    struct queue_header headers[INGEST_HEADERS_MAX];
    size_t count = queue_record_headers(from, headers, COUNT_OF(headers));
    struct trace_context context;
    char text[TRACE_PARENT_SIZE];
    struct err err;

    for (size_t i = 0; i < count; i++) {
        if (strcmp(headers[i].name, "traceparent") != 0 || headers[i].value == NULL ||
            headers[i].size >= sizeof(text))
            continue;
        memcpy(text, headers[i].value, headers[i].size);
        text[headers[i].size] = '\0';
        if (trace_context_parse(text, &context, &err) == 0)
            mem_copy_text(record->trace, text);
    }
}

void ingest_map_record(struct ingest_mapper *mapper, const struct ingest_mapping *mapping,
                       const char *topic, uint32_t partition, const struct queue_record *from,
                       bool keep, struct ingest_record *ret_record)
{
    struct ingest_record record = {.priority = -1};
    struct err err;

    record_trace(from, &record);
    if (map_value(mapper, mapping, topic, partition, from, &record, &err) < 0) {
        mem_free(&record.input);
        mem_free(&record.dedupe);
        record.reason = xasprintf("%.*s", INGEST_REASON_SIZE, err.text);
        record_keep_value(from, &record);
    }
    if (keep || record.reason != NULL)
        record_keep(from, &record);
    record.size = record.input_size + record.value_size + record.key_size + record.headers.size;
    *ret_record = record;
}

void ingest_record_done(struct ingest_record *record)
{
    free(record->input);
    free(record->dedupe);
    free(record->reason);
    free(record->value);
    free(record->key);
    buf_done(&record->headers);
    *record = (struct ingest_record){0};
}
