/* SPDX-License-Identifier: Apache-2.0 */

#include "base/wire.h"

#include <msgpack.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

struct wire_decoder {
    msgpack_zone zone; /* holds the parsed tree and lists until the next decode */
};

#define WIRE_ZONE_CHUNK 4096

struct wire_decoder *wire_decoder_new(void)
{
    struct wire_decoder *decoder = xcalloc(1, sizeof(*decoder));

    if (!msgpack_zone_init(&decoder->zone, WIRE_ZONE_CHUNK))
        NEVER("memory is exhausted");
    return decoder;
}

void wire_decoder_free(struct wire_decoder **decoder_p)
{
    struct wire_decoder *decoder = TAKE(*decoder_p);

    if (decoder == NULL)
        return;
    msgpack_zone_destroy(&decoder->zone);
    free(decoder);
}

/* ---- the bounded walk ---- */

struct walk {
    const uint8_t *at, *end;
};

static uint64_t walk_number(const uint8_t *at, size_t size)
{
    uint64_t value = 0;

    for (size_t i = 0; i < size; i++)
        value = value << 8 | at[i];
    return value;
}

/* What follows one head byte: how many bytes of length or value, of payload, of elements. */
struct walk_head {
    uint8_t number_size; /* bytes of the number behind the head byte */
    uint8_t payload;     /* fixed payload bytes behind the number */
    enum { WALK_SCALAR, WALK_RAW, WALK_ARRAY, WALK_MAP, WALK_BAD } shape;
};

static struct walk_head walk_classify(uint8_t head)
{
    static const struct walk_head heads[] = {
        /* 0xc0 … 0xdf */
        {0, 0, WALK_SCALAR},  {0, 0, WALK_BAD},    {0, 0, WALK_SCALAR}, {0, 0, WALK_SCALAR},
        {1, 0, WALK_RAW},     {2, 0, WALK_RAW},    {4, 0, WALK_RAW},    {1, 1, WALK_RAW},
        {2, 1, WALK_RAW},     {4, 1, WALK_RAW},    {0, 4, WALK_SCALAR}, {0, 8, WALK_SCALAR},
        {0, 1, WALK_SCALAR},  {0, 2, WALK_SCALAR}, {0, 4, WALK_SCALAR}, {0, 8, WALK_SCALAR},
        {0, 1, WALK_SCALAR},  {0, 2, WALK_SCALAR}, {0, 4, WALK_SCALAR}, {0, 8, WALK_SCALAR},
        {0, 2, WALK_SCALAR},  {0, 3, WALK_SCALAR}, {0, 5, WALK_SCALAR}, {0, 9, WALK_SCALAR},
        {0, 17, WALK_SCALAR}, {1, 0, WALK_RAW},    {2, 0, WALK_RAW},    {4, 0, WALK_RAW},
        {2, 0, WALK_ARRAY},   {4, 0, WALK_ARRAY},  {2, 0, WALK_MAP},    {4, 0, WALK_MAP},
    };

    if (head >= 0xc0 && head < 0xe0)
        return heads[head - 0xc0];
    if (head >= 0xa0 && head < 0xc0)
        return (struct walk_head){0, 0, WALK_RAW};
    if (head >= 0x90 && head < 0xa0)
        return (struct walk_head){0, 0, WALK_ARRAY};
    if (head >= 0x80 && head < 0x90)
        return (struct walk_head){0, 0, WALK_MAP};
    return (struct walk_head){0, 0, WALK_SCALAR};
}

static uint64_t walk_inline_count(uint8_t head, const struct walk_head *kind)
{
    return kind->shape == WALK_RAW ? (head & 0x1fu) : (head & 0x0fu);
}

/* Steps over one value and all that it holds; recursion is bounded by WIRE_DEPTH_MAX. */
static int walk_value(struct walk *walk, int depth, struct err *err)
{
    struct walk_head kind;
    uint64_t count = 0;
    uint8_t head;

    if (walk->at == walk->end)
        return err_set(err, ERR_MALFORMED, "message ends inside a value");
    head = *walk->at++;
    kind = walk_classify(head);
    if (kind.shape == WALK_BAD)
        return err_set(err, ERR_MALFORMED, "byte 0x%02x starts no msgpack value", head);
    if ((size_t)(walk->end - walk->at) < (size_t)kind.number_size + kind.payload)
        return err_set(err, ERR_MALFORMED, "message ends inside a value");
    if (kind.shape != WALK_SCALAR) {
        count = kind.number_size > 0 ? walk_number(walk->at, kind.number_size)
                                     : walk_inline_count(head, &kind);
    }
    walk->at += kind.number_size + kind.payload;
    if (count > (uint64_t)(walk->end - walk->at))
        return err_set(err, ERR_MALFORMED, "a value claims %llu elements, %zu bytes are left",
                       (unsigned long long)count, (size_t)(walk->end - walk->at));
    if (kind.shape == WALK_RAW)
        walk->at += count;
    if (kind.shape != WALK_ARRAY && kind.shape != WALK_MAP)
        return 0;
    if (depth == WIRE_DEPTH_MAX)
        return err_set(err, ERR_MALFORMED, "values are nested deeper than %d", WIRE_DEPTH_MAX);
    if (kind.shape == WALK_MAP)
        count *= 2;
    for (uint64_t i = 0; i < count; i++) {
        int r = walk_value(walk, depth + 1, err);

        if (r < 0)
            return r;
    }
    return 0;
}

int wire_walk(const void *bytes, size_t size, struct err *err)
{
    struct walk walk = {bytes, (const uint8_t *)bytes + size};
    int r;

    if (size == 0)
        return err_set(err, ERR_MALFORMED, "message is empty");
    r = walk_value(&walk, 0, err);
    if (r < 0)
        return r;
    if (walk.at != walk.end)
        return err_set(err, ERR_MALFORMED, "%zu bytes follow the message",
                       (size_t)(walk.end - walk.at));
    return 0;
}

/* ---- encoding ---- */

static int buf_write(void *data, const char *bytes, size_t size)
{
    buf_append(data, bytes, size);
    return 0;
}

static const void *member(const void *message, const struct wire_field *field)
{
    return (const uint8_t *)message + field->offset;
}

/* Bytes, texts and lists: how many there are. Numbers: 1 when not zero. */
static size_t member_count(const struct wire_field *field, const void *at)
{
    static const struct wire_id none;

    switch (field->kind) {
    case WIRE_KIND_U64:
        return *(const uint64_t *)at != 0;
    case WIRE_KIND_BOOL:
        return *(const bool *)at;
    case WIRE_KIND_ID:
        return memcmp(at, &none, sizeof(none)) != 0;
    case WIRE_KIND_TEXT:
        return ((const struct wire_text *)at)->size;
    case WIRE_KIND_BYTES:
        return ((const struct wire_bytes *)at)->size;
    case WIRE_KIND_U64S:
        return ((const struct wire_u64s *)at)->count;
    }
    NEVER("field kind is out of range");
}

static bool kind_has_limit(enum wire_kind kind)
{
    return kind == WIRE_KIND_TEXT || kind == WIRE_KIND_BYTES || kind == WIRE_KIND_U64S;
}

static int field_check(const struct wire_type *type, const struct wire_field *field, size_t count,
                       int code, struct err *err)
{
    if (count == 0 && field->required)
        return err_set(err, code, "%s.%s is missing", type->name, field->name);
    if (kind_has_limit(field->kind) && count > field->limit)
        return err_set(err, code, "%s.%s has %zu, the limit is %u", type->name, field->name, count,
                       field->limit);
    return 0;
}

static void pack_member(msgpack_packer *packer, const struct wire_field *field, const void *at)
{
    const struct wire_bytes *raw = at; /* struct wire_text has the same layout */
    const struct wire_u64s *list = at;

    switch (field->kind) {
    case WIRE_KIND_U64:
        (void)msgpack_pack_uint64(packer, *(const uint64_t *)at);
        break;
    case WIRE_KIND_BOOL:
        (void)msgpack_pack_true(packer);
        break;
    case WIRE_KIND_ID:
        (void)msgpack_pack_bin_with_body(packer, at, WIRE_ID_SIZE);
        break;
    case WIRE_KIND_TEXT:
        (void)msgpack_pack_str_with_body(packer, raw->bytes, raw->size);
        break;
    case WIRE_KIND_BYTES:
        (void)msgpack_pack_bin_with_body(packer, raw->bytes, raw->size);
        break;
    case WIRE_KIND_U64S:
        (void)msgpack_pack_array(packer, list->count);
        for (size_t i = 0; i < list->count; i++)
            (void)msgpack_pack_uint64(packer, list->values[i]);
        break;
    }
}

int wire_encode(const struct wire_type *type, const void *message, struct buf *buf, struct err *err)
{
    msgpack_packer packer;
    size_t present = 0;
    size_t before = buf->size;
    int r;

    for (size_t i = 0; i < type->field_count; i++) {
        size_t count = member_count(&type->fields[i], member(message, &type->fields[i]));

        r = field_check(type, &type->fields[i], count, ERR_RANGE, err);
        if (r < 0)
            return r;
        present += count > 0;
    }
    msgpack_packer_init(&packer, buf, buf_write);
    (void)msgpack_pack_array(&packer, 3);
    (void)msgpack_pack_uint32(&packer, type->version);
    (void)msgpack_pack_uint32(&packer, type->type);
    (void)msgpack_pack_map(&packer, present);
    for (size_t i = 0; i < type->field_count; i++) {
        const struct wire_field *field = &type->fields[i];
        const void *at = member(message, field);

        if (member_count(field, at) == 0)
            continue;
        (void)msgpack_pack_uint8(&packer, field->key);
        pack_member(&packer, field, at);
    }
    r = buf_check(buf, type->name, err);
    if (r < 0 && buf->size > before)
        buf->size = before;
    return r;
}

/* ---- decoding ---- */

/* Copies one value into the struct member; false when its type is not the field's. */
static bool unpack_member(msgpack_zone *zone, const struct wire_field *field,
                          const msgpack_object *value, void *at)
{
    uint64_t *list;

    switch (field->kind) {
    case WIRE_KIND_U64:
        *(uint64_t *)at = value->via.u64;
        return value->type == MSGPACK_OBJECT_POSITIVE_INTEGER;
    case WIRE_KIND_BOOL:
        *(bool *)at = value->type == MSGPACK_OBJECT_BOOLEAN && value->via.boolean;
        return value->type == MSGPACK_OBJECT_BOOLEAN;
    case WIRE_KIND_ID:
        if (value->type != MSGPACK_OBJECT_BIN || value->via.bin.size != WIRE_ID_SIZE)
            return false;
        memcpy(at, value->via.bin.ptr, WIRE_ID_SIZE);
        return true;
    case WIRE_KIND_TEXT:
        *(struct wire_text *)at = (struct wire_text){value->via.str.ptr, value->via.str.size};
        return value->type == MSGPACK_OBJECT_STR;
    case WIRE_KIND_BYTES:
        *(struct wire_bytes *)at = (struct wire_bytes){(const uint8_t *)value->via.bin.ptr,
                                                       value->via.bin.size};
        return value->type == MSGPACK_OBJECT_BIN;
    case WIRE_KIND_U64S:
        if (value->type != MSGPACK_OBJECT_ARRAY)
            return false;
        list = msgpack_zone_malloc(zone, (value->via.array.size + 1) * sizeof(*list));
        if (list == NULL)
            NEVER("memory is exhausted");
        for (uint32_t i = 0; i < value->via.array.size; i++) {
            if (value->via.array.ptr[i].type != MSGPACK_OBJECT_POSITIVE_INTEGER)
                return false;
            list[i] = value->via.array.ptr[i].via.u64;
        }
        *(struct wire_u64s *)at = (struct wire_u64s){list, value->via.array.size};
        return true;
    }
    NEVER("field kind is out of range");
}

static const struct wire_field *field_find(const struct wire_type *type, const msgpack_object *key)
{
    if (key->type != MSGPACK_OBJECT_POSITIVE_INTEGER)
        return NULL;
    for (size_t i = 0; i < type->field_count; i++) {
        if (type->fields[i].key == key->via.u64)
            return &type->fields[i];
    }
    return NULL;
}

static int unpack_fields(struct wire_decoder *decoder, const struct wire_type *type,
                         const msgpack_object_map *map, void *message, struct err *err)
{
    for (uint32_t i = 0; i < map->size; i++) {
        const struct wire_field *field = field_find(type, &map->ptr[i].key);

        if (field == NULL)
            continue; /* written by a newer program */
        if (!unpack_member(&decoder->zone, field, &map->ptr[i].val,
                           (uint8_t *)message + field->offset))
            return err_set(err, ERR_MALFORMED, "%s.%s has a wrong type", type->name, field->name);
    }
    for (size_t i = 0; i < type->field_count; i++) {
        size_t count = member_count(&type->fields[i], member(message, &type->fields[i]));
        int r = field_check(type, &type->fields[i], count, ERR_MALFORMED, err);

        if (r < 0)
            return r;
    }
    return 0;
}

/* Reads a small unsigned integer at *at and steps over it; false when there is none. */
static bool head_number(const uint8_t **at, const uint8_t *end, uint32_t *ret_number)
{
    size_t size;

    if (*at == end)
        return false;
    if (**at < 0x80) {
        *ret_number = *(*at)++;
        return true;
    }
    if (**at < 0xcc || **at > 0xce)
        return false;
    size = (size_t)1 << (**at - 0xcc);
    if ((size_t)(end - *at) < size + 1)
        return false;
    *ret_number = (uint32_t)walk_number(*at + 1, size);
    *at += size + 1;
    return true;
}

static int head_read(const void *bytes, size_t size, uint32_t *ret_version, uint32_t *ret_type,
                     struct err *err)
{
    const uint8_t *at = bytes, *end = at + size;

    if (size < 4 || *at++ != 0x93 || !head_number(&at, end, ret_version) ||
        !head_number(&at, end, ret_type))
        return err_set(err, ERR_MALFORMED, "message does not start with [version, type, …");
    return 0;
}

int wire_peek_type(const void *bytes, size_t size, uint32_t *ret_type, struct err *err)
{
    uint32_t version, type;
    int r = head_read(bytes, size, &version, &type, err);

    if (r == 0)
        *ret_type = type;
    return r;
}

int wire_decode(struct wire_decoder *decoder, const struct wire_type *type, const void *bytes,
                size_t size, void *ret_message, struct err *err)
{
    msgpack_object object;
    uint32_t version, number;
    size_t offset = 0;
    int r;

    r = head_read(bytes, size, &version, &number, err);
    if (r == 0)
        r = wire_walk(bytes, size, err);
    if (r < 0)
        return r;
    if (version > type->version)
        return err_set(err, ERR_UNSUPPORTED, "%s has version %u, this program knows up to %u",
                       type->name, version, type->version);
    if (number != type->type)
        return err_set(err, ERR_MALFORMED, "message has type %u, not %u (%s)", number, type->type,
                       type->name);
    msgpack_zone_clear(&decoder->zone);
    if (msgpack_unpack(bytes, size, &offset, &decoder->zone, &object) != MSGPACK_UNPACK_SUCCESS ||
        object.via.array.ptr[2].type != MSGPACK_OBJECT_MAP)
        return err_set(err, ERR_MALFORMED, "%s has no map of fields", type->name);
    memset(ret_message, 0, type->struct_size);
    return unpack_fields(decoder, type, &object.via.array.ptr[2].via.map, ret_message, err);
}

bool wire_text_equal(struct wire_text text, const char *c_string)
{
    return text.size == strlen(c_string) &&
           (text.size == 0 || memcmp(text.text, c_string, text.size) == 0);
}

char *wire_text_dup(struct wire_text text)
{
    char *copy = xmalloc(text.size + 1);

    if (text.size > 0)
        memcpy(copy, text.text, text.size);
    copy[text.size] = '\0';
    return copy;
}
