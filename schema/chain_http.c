/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/chain_http.h"

#include <string.h>
#include <strings.h>

#include "base/buf.h"
#include "schema/chain_jq.h"

#define HEADER_NAME_MAX 64

static int read_method(const json_t *value, const char *where, struct chain_http *http,
                       struct err *err)
{
    static const char *const methods[] = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"};

    for (size_t i = 0; json_is_string(value) && i < COUNT_OF(methods); i++) {
        if (strcmp(json_string_value(value), methods[i]) != 0)
            continue;
        http->method = methods[i];
        return 0;
    }
    return err_set(err, ERR_RANGE,
                   "step %s: http.method must be GET, HEAD, POST, PUT, PATCH or DELETE", where);
}

/* How much of it is scheme and host in plain text; 0: templates may make them. */
static size_t plain_host_size(const char *url)
{
    const char *host = strncmp(url, "https://", 8) == 0  ? url + 8
                       : strncmp(url, "http://", 7) == 0 ? url + 7
                                                         : NULL;
    size_t size = host == NULL ? 0 : strcspn(host, "/?#{}\\@");

    return size > 0 && host[size] == '/' ? (size_t)(host - url) + size + 1 : 0;
}

static int read_url(const json_t *value, const char *where, struct chain_http *http,
                    struct err *err)
{
    const char *url = json_string_value(value);

    if (url == NULL || url[0] == '\0')
        return err_set(err, ERR_MALFORMED, "step %s: http.url must be a text", where);
    if (strncmp(url, "{{", 2) != 0 && !chain_jq_is_expression(url) &&
        strncmp(url, "http://", 7) != 0 && strncmp(url, "https://", 8) != 0)
        return err_set(err, ERR_RANGE, "step %s: http.url must begin with http:// or https://",
                       where);
    http->host_size = plain_host_size(url);
    return 0;
}

static bool is_header_name(const char *name)
{
    static const char *const ours[] = {"host",    "content-length", "transfer-encoding",
                                       "te",      "connection",     "expect",
                                       "upgrade", "trailer",        "keep-alive"};
    size_t size = strlen(name);

    for (size_t i = 0; i < COUNT_OF(ours); i++) {
        if (strcasecmp(name, ours[i]) == 0)
            return false;
    }
    return size > 0 && size <= HEADER_NAME_MAX &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == size;
}

static bool is_plain(const json_t *value)
{
    const char *text = json_string_value(value);

    return text != NULL && strstr(text, "{{") == NULL && !chain_jq_is_expression(text);
}

static int read_header(const char *name, const json_t *value, const char *where,
                       const struct chain_http *http, struct err *err)
{
    const json_t *prefix = json_object_get(value, "prefix");

    if (!is_header_name(name))
        return err_set(err, ERR_RANGE,
                       "step %s: http.headers: '%.80s' must be the name of a header, of 1 to %d "
                       "bytes, and none that HTTP itself sets",
                       where, name, HEADER_NAME_MAX);
    if (json_is_string(value))
        return 0;
    if (!is_plain(json_object_get(value, "secret")) || (prefix != NULL && !is_plain(prefix)) ||
        json_object_size(value) != (prefix == NULL ? 1 : 2))
        return err_set(err, ERR_MALFORMED,
                       "step %s: http.headers.%s must be a text, or {secret: NAME, prefix: text} "
                       "without templates",
                       where, name);
    if (http->host_size == 0)
        return err_set(err, ERR_MISMATCH,
                       "step %s: http.headers.%s is a secret, so http.url must say scheme, host "
                       "and the / behind it in plain text",
                       where, name);
    return 0;
}

static int read_headers(const json_t *headers, const char *where, const struct chain_http *http,
                        struct err *err)
{
    const char *name;
    json_t *value;

    if (headers != NULL &&
        (!json_is_object(headers) || json_object_size(headers) > CHAIN_HTTP_HEADERS_MAX))
        return err_set(err, ERR_RANGE, "step %s: http.headers must be an object of up to %d", where,
                       CHAIN_HTTP_HEADERS_MAX);
    json_object_foreach((json_t *)headers, name, value)
    {
        if (read_header(name, value, where, http, err) < 0)
            return err->code;
    }
    return 0;
}

static int read_statuses(const json_t *value, const char *where, struct chain_http *http,
                         struct err *err)
{
    json_t *status;
    size_t i;

    if (json_array_size(value) == 0 || json_array_size(value) > CHAIN_HTTP_STATUSES_MAX)
        return err_set(err, ERR_RANGE, "step %s: http.statuses must be a list of 1 to %d", where,
                       CHAIN_HTTP_STATUSES_MAX);
    json_array_foreach(value, i, status)
    {
        json_int_t number = json_integer_value(status);

        if (!json_is_integer(status) || number < 200 || number > 599)
            return err_set(err, ERR_RANGE, "step %s: http.statuses.%zu must be 200 to 599", where,
                           i);
        http->statuses[http->status_count++] = (uint16_t)number;
    }
    return 0;
}

static int read_max(const json_t *value, const char *where, struct chain_http *http,
                    struct err *err)
{
    json_int_t number = json_integer_value(value);

    if (!json_is_integer(value) || number < 1 || number > CHAIN_HTTP_BYTES_MAX)
        return err_set(err, ERR_RANGE, "step %s: http.max_bytes must be 1 to %u", where,
                       CHAIN_HTTP_BYTES_MAX);
    http->answer_max = (uint32_t)number;
    return 0;
}

static int read_key(const char *key, const json_t *value, const char *where,
                    struct chain_http *http, struct err *err)
{
    if (strcmp(key, "method") == 0)
        return read_method(value, where, http, err);
    if (strcmp(key, "statuses") == 0)
        return read_statuses(value, where, http, err);
    if (strcmp(key, "max_bytes") == 0)
        return read_max(value, where, http, err);
    if (strcmp(key, "url") == 0 || strcmp(key, "headers") == 0 || strcmp(key, "body") == 0)
        return 0;
    return err_set(err, ERR_UNSUPPORTED,
                   "step %s: http has no key '%.60s'; there are method, url, headers, body, "
                   "statuses and max_bytes",
                   where, key);
}

int chain_http_read(const json_t *json, const char *where, struct chain_http *ret_http,
                    struct err *err)
{
    bool has_body = json_object_get(json, "body") != NULL;
    const char *key;
    json_t *value;
    int r = 0;

    *ret_http = (struct chain_http){.answer_max = CHAIN_HTTP_BYTES_DEFAULT,
                                    .method = has_body ? "POST" : "GET"};
    if (!json_is_object(json))
        return err_set(err, ERR_MALFORMED, "step %s: http must be an object", where);
    json_object_foreach((json_t *)json, key, value)
    {
        r = read_key(key, value, where, ret_http, err);
        if (r < 0)
            return r;
    }
    r = read_url(json_object_get(json, "url"), where, ret_http, err);
    if (r == 0)
        r = read_headers(json_object_get(json, "headers"), where, ret_http, err);
    if (r == 0 && has_body &&
        (strcmp(ret_http->method, "GET") == 0 || strcmp(ret_http->method, "HEAD") == 0))
        r = err_set(err, ERR_MISMATCH, "step %s: http.body has no meaning with %s", where,
                    ret_http->method);
    return r;
}

int chain_http_check_secrets(const json_t *json, const char *where, const json_t *secrets,
                             struct err *err)
{
    const char *name;
    json_t *value;

    json_object_foreach(json_object_get(json, "headers"), name, value)
    {
        const json_t *secret = json_object_get(value, "secret"), *one;
        bool found = secret == NULL;
        size_t i;

        json_array_foreach(secrets, i, one)
        {
            found = found || json_equal(one, secret);
        }
        if (!found)
            return err_set(err, ERR_RANGE,
                           "step %s: http.headers.%s: the chain's secrets do not name '%.80s'",
                           where, name, json_string_value(secret));
    }
    return 0;
}

bool chain_http_takes(const struct chain_http *http, int status)
{
    for (size_t i = 0; i < http->status_count; i++) {
        if (http->statuses[i] == status)
            return true;
    }
    return http->status_count == 0 && status >= 200 && status <= 299;
}
