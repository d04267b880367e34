/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Refuses requests that two programs could read in two ways (request smuggling, RFC 9112 section
 * 11.2), before anything of them is used.
 *
 * The library hands out headers as C strings cut at the first NUL, accepts lines that end in a bare
 * LF, joins folded lines, and takes a line that starts with NUL for the end of the headers. None of
 * that can be seen in the values. It can be seen in their addresses: the library parses in place
 * and only replaces separators by NUL, so in an honest request each header starts where the one
 * before it ended plus CRLF, and the last one ends CRLF CRLF before the body. Newer versions of the
 * library (after 0.9.75) are strict themselves and need not keep this layout.
 */

#include <string.h>
#include <strings.h>

#include "base/assert.h"
#include "base/http_server_int.h"

struct guard {
    const char *cursor; /* where the next header has to start */
    bool torn;          /* it started elsewhere */
    bool misnamed;      /* a name is no token (RFC 9110, 5.6.2), for instance ends in a space */
    int length_count, coding_count, host_count;
    const char *coding, *host, *expect;
};

static bool text_is(const char *text, size_t size, const char *name)
{
    return strlen(name) == size && strncasecmp(text, name, size) == 0;
}

static bool name_is_token(const char *name, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        char c = name[i];

        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              (c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL)))
            return false;
    }
    return size > 0;
}

static enum MHD_Result guard_header(void *cls, enum MHD_ValueKind kind, const char *key,
                                    size_t key_size, const char *value, size_t value_size)
{
    struct guard *guard = cls;

    (void)kind;
    if (value == NULL)
        value = "";
    if (key != guard->cursor || value[value_size] != '\0' || value[value_size + 1] != '\0')
        guard->torn = true;
    guard->cursor = value + value_size + 2;
    if (!name_is_token(key, key_size))
        guard->misnamed = true;
    if (text_is(key, key_size, "Content-Length"))
        guard->length_count++;
    else if (text_is(key, key_size, "Transfer-Encoding")) {
        guard->coding_count++;
        guard->coding = value;
    } else if (text_is(key, key_size, "Host")) {
        guard->host_count++;
        guard->host = value;
    } else if (text_is(key, key_size, "Expect"))
        guard->expect = value;
    return MHD_YES;
}

static bool host_is_sane(const char *host)
{
    for (const char *c = host; *c != '\0'; c++) {
        if (*c <= ' ' || *c == 0x7f || strchr("/\\@?#,<>\"", *c) != NULL)
            return false;
    }
    return true;
}

/* True when request line and headers lie in the library's buffer the way that honest ones do. */
static bool guard_layout_is_sane(const struct http_request *request, const struct guard *guard,
                                 const char *method, const char *version)
{
#if MHD_VERSION < 0x00097600
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(
        request->connection->mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);

    if (info == NULL || guard->torn || version[8] != '\0' || version[9] != '\0')
        return false;
    return request->target_at + request->target_size + 1 == version &&
           guard->cursor + 2 == method + info->header_size;
#else
    (void)request, (void)guard, (void)method, (void)version;
    return true;
#endif
}

static int guard_body_length(struct http_request *request, const struct guard *guard,
                             const char *version, const char **ret_text)
{
    const char *text;

    if (guard->coding_count > 0 && guard->length_count > 0) {
        *ret_text = "request has both Content-Length and Transfer-Encoding";
        return 400;
    }
    if (guard->coding_count > 1 || guard->length_count > 1) {
        *ret_text = "header that gives the body's length is repeated";
        return 400;
    }
    if (guard->coding_count == 1) {
        if (strcmp(version, "HTTP/1.1") != 0) {
            *ret_text = "Transfer-Encoding needs HTTP/1.1";
            return 400;
        }
        if (strcasecmp(guard->coding, "chunked") != 0) {
            *ret_text = "Transfer-Encoding is not 'chunked', the only one supported";
            return 501;
        }
        request->has_body = true;
        request->announced_size = UINT64_MAX;
        return 0;
    }
    text = MHD_lookup_connection_value(request->connection->mhd, MHD_HEADER_KIND, "Content-Length");
    for (const char *c = text; c != NULL && *c >= '0' && *c <= '9'; c++)
        request->announced_size = request->announced_size * 10 + (uint64_t)(*c - '0');
    request->has_body = request->announced_size > 0; /* the library has checked its form */
    return 0;
}

int guard_check(struct http_request *request, const char *version, const char **ret_text)
{
    struct guard guard = {.cursor = version + 10};
    struct MHD_Connection *mhd = request->connection->mhd;
    const char *method = request->target_at - strlen(request->method) - 1;

    *ret_text = NULL;
    (void)MHD_get_connection_values_n(mhd, MHD_HEADER_KIND, guard_header, &guard);
    request->expects_continue = guard.expect != NULL;
    if (!guard_layout_is_sane(request, &guard, method, version)) {
        *ret_text = "request has a NUL, a folded line, a bare line feed or a stray space";
        return 400;
    }
    if (guard.misnamed) {
        *ret_text = "request has a header whose name is no token";
        return 400;
    }
    if (guard.host_count > 1 || (guard.host != NULL && !host_is_sane(guard.host))) {
        *ret_text = "Host is repeated or malformed";
        return 400;
    }
    if (request->target_size > HTTP_TARGET_SIZE_MAX) {
        *ret_text = "request target is over 8192 bytes";
        return 414;
    }
    return guard_body_length(request, &guard, version, ret_text);
}
