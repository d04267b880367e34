/* SPDX-License-Identifier: Apache-2.0 */

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "producers/gateway.h"
#include "producers/gateway_sync.h"
#include "producers/gateway_websocket.h"
#include "schema/job.h"

/* ---- what a failure looks like ---- */

static const struct {
    enum error_class class;
    struct sync_failure failure;
} failures[] = {
    {ERROR_CLASS_BAD_INPUT, {400, "client_error", "700"}},
    {ERROR_CLASS_MODEL_ERROR, {500, "application_error", "600"}},
    {ERROR_CLASS_MODEL_UNAVAILABLE, {503, "model_unavailable", "600"}},
    {ERROR_CLASS_MODEL_TIMEOUT, {504, "timeout", "600"}},
    {ERROR_CLASS_MODEL_NOT_READY, {503, "model_not_ready", "600"}},
    {ERROR_CLASS_MODEL_MISSING, {404, "model_does_not_exist", "700"}},
    {ERROR_CLASS_OOM, {500, "application_error", "600"}},
    {ERROR_CLASS_UNSTORABLE, {500, "internal_baseten_error", "500"}},
};

struct sync_failure sync_failure_of(uint64_t state, uint64_t error_class)
{
    if (state == JOB_EXPIRED)
        return (struct sync_failure){504, "timeout", NULL};
    if (state == JOB_CANCELED)
        return (struct sync_failure){502, "client_error", NULL};
    for (size_t i = 0; i < COUNT_OF(failures); i++) {
        if (failures[i].class == error_class)
            return failures[i].failure;
    }
    return (struct sync_failure){502, "internal_baseten_error", "500"}; /* its worker was lost */
}

/* ---- headers ---- */

bool sync_wants_stream(const char *accept, const char *user_agent)
{
    if (accept == NULL || strchr(accept, ',') != NULL ||
        !media_type_listed(accept, MEDIA_TYPE_JSON))
        return true;
    return user_agent != NULL && strcasestr(user_agent, "openai") != NULL;
}

static int timeout_read(const struct call *call, uint64_t *ret_timeout_ms, struct err *err)
{
    const char *text = http_request_header(call->request, "Request-Timeout-Ms");
    uint64_t most = call->gateway->settings.sync_timeout_ms, number = 0;
    size_t digits = text == NULL ? 0 : strspn(text, "0123456789");

    *ret_timeout_ms = most;
    if (text == NULL)
        return 0;
    for (size_t i = 0; i < digits && i < 18; i++)
        number = 10 * number + (uint64_t)(text[i] - '0');
    if (digits == 0 || digits > 18 || text[digits] != '\0' || number == 0)
        return err_set(err, ERR_RANGE,
                       "Request-Timeout-Ms is '%.40s'; it must be a number of milliseconds from 1",
                       text);
    if (number < most)
        *ret_timeout_ms = number;
    return 0;
}

static const char *skip_authority(const char *target)
{
    const char *slashes = strstr(target, "://");
    const char *path;

    if (target[0] == '/' || slashes == NULL)
        return target;
    path = strchr(slashes + 3, '/');
    return path == NULL ? "/" : path;
}

int sync_route_write(const char *method, const char *target, size_t skip,
                     char to[SYNC_ROUTE_SIZE_MAX + 1], struct err *err)
{
    const char *at = skip_authority(target);
    int size;

    for (size_t i = 0; i < skip && *at == '/'; i++)
        at += 1 + strcspn(at + 1, "/?#");
    size = snprintf(to, SYNC_ROUTE_SIZE_MAX + 1, "%s %s%s", method, *at == '/' ? "" : "/", at);
    if (size > SYNC_ROUTE_SIZE_MAX)
        return err_set(err, ERR_RANGE, "the route has %d bytes; at most %d are allowed", size,
                       SYNC_ROUTE_SIZE_MAX);
    return 0;
}

/* What curl says of a body that it was told nothing about counts as nothing. */
static int type_read(const struct call *call, bool passthrough, char to[MEDIA_TYPE_SIZE_MAX + 1],
                     struct err *err)
{
    const char *text = http_request_header(call->request, "Content-Type");
    struct wire_text type = text == NULL ? (struct wire_text){NULL, 0} : WIRE_TEXT_OF(text);
    int r = media_type_check(type, err);

    to[0] = '\0';
    if (r < 0 || type.size == 0 || media_type_is(type, MEDIA_TYPE_JSON) ||
        (!passthrough && media_type_is(type, "application/x-www-form-urlencoded")))
        return r;
    (void)snprintf(to, MEDIA_TYPE_SIZE_MAX + 1, "%s", text);
    return 0;
}

/* "WEBSOCKET /v1/websocket?x=1", or the client's own path behind sync/. */
static int websocket_ask(const struct call *call, struct sync_ask *ask, struct err *err)
{
    bool own = call->match.route == ROUTE_PASSTHROUGH;
    const char *query = strchr(http_request_target(call->request), '?');
    int size, r = timeout_read(call, &ask->timeout_ms, err);

    if (r == 0 && own)
        r = sync_route_write(WEBSOCKET_METHOD, http_request_target(call->request),
                             call->match.rest_skip, ask->route, err);
    if (r < 0)
        return r;
    mem_copy_text(ask->type, WEBSOCKET_TYPE);
    if (!own) {
        size = snprintf(ask->route, sizeof(ask->route), "%s %s%s", WEBSOCKET_METHOD, WEBSOCKET_PATH,
                        query == NULL ? "" : query);
        if (size > SYNC_ROUTE_SIZE_MAX)
            return err_set(err, ERR_RANGE,
                           "the query makes a route of %d bytes; at most %d are "
                           "allowed",
                           size, SYNC_ROUTE_SIZE_MAX);
    }
    return websocket_new(call, &ask->websocket, err);
}

static bool says_stream(const char *input, size_t size)
{
    json_t *json = input == NULL ? NULL : json_loadb(input, size, JSON_DECODE_ANY, NULL);
    bool stream = json_is_true(json_object_get(json, "stream"));

    json_decref(json);
    return stream;
}

void sync_ask_step(const struct call *call, const char *input, size_t size, struct sync_ask *ask)
{
    const char *accept = http_request_header(call->request, "Accept");

    if (!ask->streams)
        return;
    ask->events = accept != NULL && media_type_listed(accept, MEDIA_TYPE_EVENTS);
    ask->of_step = ask->route[0] == '\0' && ask->websocket == NULL &&
                   (ask->events ||
                    (ask->stream && ask->type[0] == '\0' && says_stream(input, size)));
}

int sync_ask_read(const struct call *call, bool is_truss, struct sync_ask *ret_ask, struct err *err)
{
    const struct http_request *request = call->request;
    bool passthrough = call->match.route == ROUTE_PASSTHROUGH;
    int r;

    if (call->match.route == ROUTE_WEBSOCKET || call->match.route == ROUTE_WEBSOCKET_OF_CHAIN ||
        (passthrough && websocket_is_asked(call)))
        return websocket_ask(call, ret_ask, err);
    r = timeout_read(call, &ret_ask->timeout_ms, err);
    if (r == 0)
        r = type_read(call, passthrough, ret_ask->type, err);
    ret_ask->stream = strcmp(http_request_method(request), "HEAD") != 0 &&
                      ((passthrough && !is_truss) ||
                       sync_wants_stream(http_request_header(request, "Accept"),
                                         http_request_header(request, "User-Agent")));
    ret_ask->route[0] = '\0';
    if (r == 0 && passthrough)
        r = sync_route_write(http_request_method(request), http_request_target(request),
                             call->match.rest_skip, ret_ask->route, err);
    return r;
}
