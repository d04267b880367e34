/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Takes the target of a request apart. Pure: bytes in, parts out.
 *
 * Escapes are decoded inside a segment, after the path was split at its slashes, so that %2F can
 * never make a segment more; a segment that decodes to something with a slash, to `.` or `..`, is
 * refused, because whoever joins segments again (a file store, a proxy) would read it differently.
 */

#include <string.h>

#include "base/http_server.h"

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static bool utf8_is_valid(const unsigned char *text)
{
    while (*text != '\0') {
        unsigned char lead = *text++;
        int more = lead < 0x80 ? 0 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
        uint32_t code = more == 0 ? lead : lead & (0x3fu >> more);
        static const uint32_t lowest[] = {0, 0x80, 0x800, 0x10000};

        if ((lead >= 0x80 && lead < 0xc2) || lead > 0xf4)
            return false;
        for (int i = 0; i < more; i++, text++) {
            if ((*text & 0xc0) != 0x80)
                return false;
            code = code << 6 | (*text & 0x3fu);
        }
        if (code < lowest[more] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
            return false;
    }
    return true;
}

/* Decodes text in place; plus_is_space for queries. */
static int decode(char *text, bool plus_is_space, struct err *err)
{
    char *to = text;

    for (const char *from = text; *from != '\0'; from++) {
        unsigned char c = (unsigned char)*from;

        if (c == '%') {
            int high = hex_value(from[1]);
            int low = high < 0 ? -1 : hex_value(from[2]);

            if (low < 0)
                return err_set(err, ERR_MALFORMED, "request target has '%%' without two digits");
            c = (unsigned char)(high * 16 + low);
            from += 2;
        } else if (c == '+' && plus_is_space) {
            c = ' ';
        }
        if (c < ' ' || c == 0x7f)
            return err_set(err, ERR_MALFORMED, "request target has control character 0x%02x", c);
        *to++ = (char)c;
    }
    *to = '\0';
    if (!utf8_is_valid((const unsigned char *)text))
        return err_set(err, ERR_MALFORMED, "request target is not UTF-8");
    return 0;
}

static int target_add_segment(struct http_target *target, char *segment, struct err *err)
{
    int r;

    if (*segment == '\0')
        return err_set(err, ERR_MALFORMED, "path has an empty segment");
    if (target->segment_count == HTTP_PATH_SEGMENTS_MAX)
        return err_set(err, ERR_TOO_BIG, "path has more than %d segments", HTTP_PATH_SEGMENTS_MAX);
    r = decode(segment, false, err);
    if (r < 0)
        return r;
    if (strcmp(segment, ".") == 0 || strcmp(segment, "..") == 0)
        return err_set(err, ERR_MALFORMED, "path has a segment '%s'", segment);
    if (strpbrk(segment, "/\\") != NULL)
        return err_set(err, ERR_MALFORMED, "path has a segment with a slash in it");
    target->segments[target->segment_count++] = segment;
    return 0;
}

static int target_split_path(struct http_target *target, char *path, struct err *err)
{
    char *segment = path + 1, *end;
    int r;

    if (*path != '/')
        return err_set(err, ERR_MALFORMED, "request target does not begin with '/'");
    while (*segment != '\0') {
        end = strchrnul(segment, '/');
        target->trailing_slash = *end == '/' && end[1] == '\0';
        if (*end == '/')
            *end++ = '\0';
        r = target_add_segment(target, segment, err);
        if (r < 0)
            return r;
        segment = end;
    }
    return 0;
}

static int target_split_query(struct http_target *target, char *query, struct err *err)
{
    char *field = query, *end, *value;
    int r;

    while (*field != '\0') {
        end = strchrnul(field, '&');
        if (*end == '&')
            *end++ = '\0';
        if (*field != '\0') {
            if (target->field_count == HTTP_QUERY_FIELDS_MAX)
                return err_set(err, ERR_TOO_BIG, "query has more than %d fields",
                               HTTP_QUERY_FIELDS_MAX);
            value = strchrnul(field, '=');
            if (*value == '=')
                *value++ = '\0';
            if ((r = decode(field, true, err)) < 0 || (r = decode(value, true, err)) < 0)
                return r;
            target->fields[target->field_count].name = field;
            target->fields[target->field_count].value = value;
            target->field_count++;
        }
        field = end;
    }
    return 0;
}

/* "http://host/path" may be sent to any server (RFC 9112, 3.2.2): the path alone counts. */
static const char *skip_authority(const char *target)
{
    const char *start = strstr(target, "://");
    const char *path;

    if (*target == '/' || start == NULL || start > strpbrk(target, "/?"))
        return target;
    path = strpbrk(start + 3, "/?");
    return path == NULL || *path == '?' ? "/" : path;
}

int http_target_parse(const char *text, struct http_target *ret_target, struct err *err)
{
    struct http_target *target = ret_target;
    const char *from = skip_authority(text);
    size_t size = strlen(from);
    char *query;
    int r;

    target->segment_count = target->field_count = 0;
    target->trailing_slash = false;
    if (size > HTTP_TARGET_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "request target has %zu bytes, the limit is %d", size,
                       HTTP_TARGET_SIZE_MAX);
    memcpy(target->text, from, size + 1);
    query = strchr(target->text, '?');
    if (query != NULL)
        *query++ = '\0';
    r = target_split_path(target, target->text, err);
    if (r == 0 && query != NULL)
        r = target_split_query(target, query, err);
    return r;
}

const char *http_target_query(const struct http_target *target, const char *name)
{
    for (size_t i = 0; i < target->field_count; i++) {
        if (strcmp(target->fields[i].name, name) == 0)
            return target->fields[i].value;
    }
    return NULL;
}
