/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which route a request means, and what it names: method, host and path in, route and parameters
 * out. Pure; the table is producers/gateway_routes.def.
 *
 * Thread: any.   Tests: tests/unit/test_gateway_route.c
 */

#include <stdbool.h>
#include <stddef.h>

#include "base/http_server.h"
#include "schema/api_key.h"

enum route {
    ROUTE_NONE,         /* no such path */
    ROUTE_WRONG_METHOD, /* the path is known: `allow` names the methods that it has */
#define ROUTE(name, method, pattern, access) ROUTE_##name,
#include "producers/gateway_routes.def"
#undef ROUTE
    ROUTE_COUNT,
};

enum route_access {
    ROUTE_ACCESS_PUBLIC,
    ROUTE_ACCESS_METRICS,
    ROUTE_ACCESS_PREDICT,
    ROUTE_ACCESS_MANAGE,
};

enum route_target {
    ROUTE_TARGET_NONE,        /* not said: the host's environment, or production */
    ROUTE_TARGET_ENVIRONMENT, /* target_name; "production" for its short form */
    ROUTE_TARGET_DEVELOPMENT,
    ROUTE_TARGET_DEPLOYMENT, /* target_name is an id or a name */
};

#define ROUTE_ALLOW_SIZE 48
#define ROUTE_HOST_SIZE 136

struct route_match { /* texts are borrowed from the target, or stand in host_model */
    enum route route;
    const char *model;                /* id or name; of a host: may have -<environment> behind it */
    bool from_host;                   /* model comes from the host */
    char host_model[ROUTE_HOST_SIZE]; /* what `model` then points at */
    enum route_target target;
    const char *target_name;
    const char *param; /* the last other {parameter}; NULL: none */
    size_t rest_skip;  /* of {*}: segments of the target in front of it */
    char allow[ROUTE_ALLOW_SIZE];
};

/* host may be NULL; base_domain "" switches the host form off. */
void route_find(const char *method, const char *host, const char *base_domain,
                const struct http_target *target, struct route_match *ret_match);

const char *route_name(enum route route); /* "submit": for metrics and logs; static storage */
enum route_access route_access(enum route route);
bool route_is_async(enum route route);     /* answered before the job is over */
bool route_is_openai(enum route route);    /* its errors have OpenAI's shape */
bool route_is_of_chains(enum route route); /* its {m} must be a chain */
bool route_is_open_to(enum route route, enum api_key_role role);
