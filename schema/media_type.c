/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/media_type.h"

#include <jansson.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/assert.h"
#include "base/json_fast.h"

/* The characters of a token in RFC 9110. */
static bool is_token_character(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

static size_t token_size(const char *text, size_t size)
{
    size_t n = 0;

    while (n < size && is_token_character(text[n]))
        n++;
    return n;
}

/* Bytes of "type/subtype" at the front; 0: there is none. */
static size_t name_size(const char *text, size_t size)
{
    size_t type = token_size(text, size), subtype;

    if (type == 0 || type == size || text[type] != '/')
        return 0;
    subtype = token_size(text + type + 1, size - type - 1);
    return subtype == 0 ? 0 : type + 1 + subtype;
}

static size_t skip_space(const char *text, size_t size)
{
    size_t n = 0;

    while (n < size && (text[n] == ' ' || text[n] == '\t'))
        n++;
    return n;
}

int media_type_check(struct wire_text type, struct err *err)
{
    size_t at;

    if (type.size == 0)
        return 0;
    if (type.size > MEDIA_TYPE_SIZE_MAX)
        return err_set(err, ERR_RANGE, "Content-Type has %zu bytes; at most %d are allowed",
                       type.size, MEDIA_TYPE_SIZE_MAX);
    at = name_size(type.text, type.size);
    if (at > 0)
        at += skip_space(type.text + at, type.size - at);
    if (at == 0 || (at < type.size && type.text[at] != ';'))
        return err_set(err, ERR_RANGE,
                       "Content-Type is '%.*s'; it must be type/subtype, with parameters behind ;",
                       (int)(type.size < 80 ? type.size : 80), type.text);
    for (; at < type.size; at++) {
        if (type.text[at] < 0x20 || type.text[at] > 0x7e)
            return err_set(err, ERR_RANGE,
                           "Content-Type has a character that is no printable "
                           "ASCII");
    }
    return 0;
}

bool media_type_is(struct wire_text type, const char *name)
{
    size_t size = name_size(type.text, type.size);

    if (type.size == 0)
        return strcmp(name, MEDIA_TYPE_JSON) == 0;
    return size == strlen(name) && strncasecmp(type.text, name, size) == 0;
}

/* "q=0", "q=0.000" among the parameters. */
static bool weight_is_zero(const char *text, size_t size)
{
    while (size > 0) {
        size_t at = 1 + skip_space(text + 1, size - 1), next = 1;

        while (next < size && text[next] != ';')
            next++;
        if (at + 3 <= next && (text[at] | 0x20) == 'q' && text[at + 1] == '=' &&
            text[at + 2] == '0')
            return strspn(text + at + 3, ".0") >= next - at - 3;
        text += next;
        size -= next;
    }
    return false;
}

bool media_type_listed(const char *list, const char *name)
{
    while (*list != '\0') {
        size_t size = strcspn(list, ","), at = skip_space(list, size);
        size_t named = name_size(list + at, size - at);
        const char *rest = list + at + named;

        if (named == strlen(name) && strncasecmp(list + at, name, named) == 0) {
            size_t left = size - at - named, space = skip_space(rest, left);

            if (left == space ||
                (rest[space] == ';' && !weight_is_zero(rest + space, left - space)))
                return true;
        }
        list += size + (list[size] == ',');
    }
    return false;
}

/* The bytes as a JSON string; NULL: they are no UTF-8. */
static char *string_of(struct wire_bytes bytes)
{
    json_t *value = json_stringn(bytes.size > 0 ? (const char *)bytes.bytes : "", bytes.size);
    char *text = value == NULL ? NULL : json_dumps(value, JSON_ENCODE_ANY);

    json_decref(value);
    return text;
}

static void append_base64(struct buf *to, struct wire_bytes bytes)
{
    size_t size = sodium_base64_encoded_len(bytes.size, sodium_base64_VARIANT_ORIGINAL);
    char *text = xmalloc(size);

    (void)sodium_bin2base64(text, size, bytes.bytes, bytes.size, sodium_base64_VARIANT_ORIGINAL);
    buf_append_text(to, "\"base64\":\"");
    buf_append_text(to, text);
    buf_append_byte(to, '"');
    free(text);
}

void media_append_member(struct buf *to, struct wire_bytes bytes)
{
    OWNED(mem_free) char *text = string_of(bytes);

    if (text == NULL) {
        append_base64(to, bytes);
        return;
    }
    buf_append_text(to, "\"text\":");
    buf_append_text(to, text);
}

static bool is_json(struct wire_bytes bytes)
{
    OWNED(json_fast_free) struct json_fast *parser = json_fast_new();
    struct err err;

    return json_fast_check(parser, bytes.bytes, bytes.size, false, &err) == 0;
}

void media_append_value(struct buf *to, struct wire_text type, struct wire_bytes bytes)
{
    OWNED(mem_free) char *text = NULL;

    if (media_type_is(type, MEDIA_TYPE_JSON)) {
        if (bytes.size == 0) {
            buf_append_text(to, "null");
            return;
        }
        if (is_json(bytes)) {
            buf_append(to, bytes.bytes, bytes.size);
            return;
        }
        type = WIRE_TEXT_OF(MEDIA_TYPE_JSON); /* also where it was left out */
    }
    text = string_of(bytes);
    if (text != NULL) {
        buf_append_text(to, text);
        return;
    }
    text = string_of((struct wire_bytes){(const uint8_t *)type.text, type.size});
    buf_append_text(to, "{\"content_type\":");
    buf_append_text(to, text == NULL ? "\"\"" : text);
    buf_append_byte(to, ',');
    append_base64(to, bytes);
    buf_append_byte(to, '}');
}
