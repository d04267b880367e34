/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_route.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/assert.h"

#define SEGMENTS_MAX (HTTP_PATH_SEGMENTS_MAX + 2)
#define HOST_PREFIX_SIZE 6 /* of model- and chain- */
#define ANY_METHOD "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
#define HOST_SEGMENTS 2 /* that stand for the host */

static const struct {
    const char *name, *method, *pattern;
    enum route_access access;
} routes[ROUTE_COUNT] = {
    [ROUTE_NONE] = {"NONE", "", "", ROUTE_ACCESS_PUBLIC},
    [ROUTE_WRONG_METHOD] = {"WRONG_METHOD", "", "", ROUTE_ACCESS_PUBLIC},
#define ROUTE(name, method, pattern, access)                                                       \
    [ROUTE_##name] = {#name, method, pattern, ROUTE_ACCESS_##access},
#include "producers/gateway_routes.def"
#undef ROUTE
};

struct path {
    const char *segments[SEGMENTS_MAX];
    size_t count, at;
    bool from_host;
};

/* Takes the segments of {t}; on a host of a model there may be none. */
static bool take_target(struct path *path, struct route_match *match)
{
    const char *word = path->at < path->count ? path->segments[path->at] : "";
    const char *next = path->at + 1 < path->count ? path->segments[path->at + 1] : NULL;

    if (strcmp(word, "production") == 0) {
        match->target = ROUTE_TARGET_ENVIRONMENT;
        match->target_name = word;
        path->at++;
        return true;
    }
    if (strcmp(word, "development") == 0) {
        match->target = ROUTE_TARGET_DEVELOPMENT;
        path->at++;
        return true;
    }
    if (strcmp(word, "environments") == 0 || strcmp(word, "deployment") == 0) {
        match->target = word[0] == 'e' ? ROUTE_TARGET_ENVIRONMENT : ROUTE_TARGET_DEPLOYMENT;
        match->target_name = next;
        path->at += 2;
        return next != NULL;
    }
    return path->from_host;
}

static bool take_word(struct path *path, const char *word, size_t word_size,
                      struct route_match *match)
{
    const char *segment = path->at < path->count ? path->segments[path->at] : NULL;

    if (word_size == 3 && memcmp(word, "{t}", 3) == 0)
        return take_target(path, match);
    if (word_size == 3 && memcmp(word, "{*}", 3) == 0) {
        match->rest_skip = path->at - (path->from_host ? HOST_SEGMENTS : 0);
        path->at = path->count;
        return true;
    }
    if (segment == NULL)
        return false;
    path->at++;
    if (word[0] != '{')
        return strlen(segment) == word_size && memcmp(segment, word, word_size) == 0;
    if (word_size == 3 && word[1] == 'm')
        match->model = segment;
    else
        match->param = segment;
    return true;
}

static bool matches(const char *pattern, struct path *path, struct route_match *match)
{
    path->at = 0;
    while (*pattern != '\0') {
        size_t size = strcspn(pattern, "/");

        if (!take_word(path, pattern, size, match))
            return false;
        pattern += size + (pattern[size] == '/');
    }
    return path->at == path->count;
}

/* "model-abc.example.com:8080" with the base domain example.com gives "abc", and the word that
 * begins its paths; NULL: it is no such host. */
static const char *host_split(const char *host, const char *base_domain, char to[ROUTE_HOST_SIZE])
{
    size_t label_size, domain_size = strlen(base_domain);
    const char *rest, *kind = "model";

    if (host == NULL || domain_size == 0)
        return NULL;
    if (strncasecmp(host, "chain-", HOST_PREFIX_SIZE) == 0)
        kind = "chain";
    else if (strncasecmp(host, "model-", HOST_PREFIX_SIZE) != 0)
        return NULL;
    host += HOST_PREFIX_SIZE;
    label_size = strcspn(host, ".");
    rest = host + label_size;
    if (label_size == 0 || label_size >= ROUTE_HOST_SIZE || *rest != '.' ||
        strncasecmp(rest + 1, base_domain, domain_size) != 0)
        return NULL;
    rest += 1 + domain_size;
    if (*rest == '.')
        rest++;
    if (*rest != '\0' && *rest != ':')
        return NULL;
    for (size_t i = 0; i < label_size; i++)
        to[i] = (char)tolower((unsigned char)host[i]);
    to[label_size] = '\0';
    return kind;
}

/* Those of a model's own routes; TRACE and CONNECT are between a client and its proxies. */
static bool takes_method(enum route route, const char *method)
{
    static const char any[] = ANY_METHOD;
    const char *found = strstr(any, method);
    size_t size = strlen(method);

    if (routes[route].method[0] != '*')
        return strcmp(method, routes[route].method) == 0;
    return found != NULL && size > 2 && (found == any || found[-1] == ' ') &&
           (found[size] == ',' || found[size] == '\0');
}

static void allow_add(struct route_match *match, const char *method)
{
    size_t used = strlen(match->allow);

    (void)snprintf(match->allow + used, sizeof(match->allow) - used, "%s%s", used > 0 ? ", " : "",
                   method);
}

/* Patterns of plain words, or those with parameters. */
static enum route find_among(bool plain, const char *method, struct path *path,
                             struct route_match *match)
{
    enum route found = ROUTE_NONE;

    for (enum route route = ROUTE_WRONG_METHOD + 1; route < ROUTE_COUNT; route++) {
        struct route_match tried = {0};

        if ((strchr(routes[route].pattern, '{') == NULL) != plain ||
            !matches(routes[route].pattern, path, &tried))
            continue;
        if (!takes_method(route, method)) {
            allow_add(match, routes[route].method[0] == '*' ? ANY_METHOD : routes[route].method);
            found = ROUTE_WRONG_METHOD;
            continue;
        }
        match->model = tried.model;
        match->target = tried.target;
        match->target_name = tried.target_name;
        match->param = tried.param;
        match->rest_skip = tried.rest_skip;
        return route;
    }
    return found;
}

/* A path that is spelled out in the table is no parameter of another one. */
static enum route find_in_table(const char *method, struct path *path, struct route_match *match)
{
    enum route found = find_among(true, method, path, match);

    return found != ROUTE_NONE ? found : find_among(false, method, path, match);
}

void route_find(const char *method, const char *host, const char *base_domain,
                const struct http_target *target, struct route_match *ret_match)
{
    struct path path = {.count = target->segment_count};
    const char *kind;

    *ret_match = (struct route_match){0};
    if (strcmp(method, "HEAD") == 0)
        method = "GET";
    for (size_t i = 0; i < path.count; i++)
        path.segments[i] = target->segments[i];
    ret_match->route = find_in_table(method, &path, ret_match);
    kind = host_split(host, base_domain, ret_match->host_model);
    if (ret_match->route != ROUTE_NONE || kind == NULL)
        return;
    path = (struct path){.segments = {kind, ret_match->host_model},
                         .count = target->segment_count + HOST_SEGMENTS,
                         .from_host = true};
    for (size_t i = 0; i < target->segment_count; i++)
        path.segments[i + HOST_SEGMENTS] = target->segments[i];
    ret_match->route = find_in_table(method, &path, ret_match);
    ret_match->from_host = true;
}

const char *route_name(enum route route)
{
    assert(route < ROUTE_COUNT);
    return routes[route].name;
}

enum route_access route_access(enum route route)
{
    assert(route < ROUTE_COUNT);
    return routes[route].access;
}

bool route_is_async(enum route route)
{
    return route == ROUTE_SUBMIT || route == ROUTE_ASYNC_RUN_REMOTE;
}

bool route_is_openai(enum route route)
{
    static const char files[] = "v1/files", batches[] = "v1/batches";

    assert(route < ROUTE_COUNT);
    return strncmp(routes[route].pattern, files, sizeof(files) - 1) == 0 ||
           strncmp(routes[route].pattern, batches, sizeof(batches) - 1) == 0;
}

bool route_is_of_chains(enum route route)
{
    return route == ROUTE_RUN_REMOTE || route == ROUTE_ASYNC_RUN_REMOTE ||
           route == ROUTE_QUEUE_OF_CHAIN || route == ROUTE_WEBSOCKET_OF_CHAIN;
}

bool route_is_open_to(enum route route, enum api_key_role role)
{
    switch (route_access(route)) {
    case ROUTE_ACCESS_PUBLIC:
        return true;
    case ROUTE_ACCESS_METRICS:
        return role != API_KEY_ROLE_PREDICT;
    case ROUTE_ACCESS_PREDICT:
        return role != API_KEY_ROLE_METRICS;
    case ROUTE_ACCESS_MANAGE:
        return role == API_KEY_ROLE_ADMIN;
    }
    NEVER("access is a column of our own table");
}
