/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/limits.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct rule {
    const char *name, *sentence;
    bool on[2]; /* by enum limit_on */
    bool whole;
    double lowest, highest;
} rules[LIMIT_COUNT] = {
#define LIMIT(name, on_tenant, on_key, lowest, highest, whole, sentence)                           \
    [LIMIT_##name] = {#name, sentence, {on_tenant, on_key}, whole, lowest, highest},
#include "schema/limits.def"
#undef LIMIT
};

const char *limit_name(enum limit limit)
{
    return rules[limit].name;
}

bool limit_is_on(enum limit limit, enum limit_on on)
{
    return rules[limit].on[on];
}

int limit_find(const char *name, enum limit_on on, enum limit *ret_limit, struct err *err)
{
    char names[200];
    size_t size = 0;

    for (enum limit limit = 0; limit < LIMIT_COUNT; limit++) {
        if (!rules[limit].on[on])
            continue;
        if (strcmp(rules[limit].name, name) == 0) {
            *ret_limit = limit;
            return 0;
        }
        size += (size_t)snprintf(names + size, sizeof(names) - size, "%s%s", size == 0 ? "" : ", ",
                                 rules[limit].name);
    }
    return err_set(err, ERR_RANGE, "there is no limit '%.40s' on %s; there are %s", name,
                   on == LIMIT_ON_KEY ? "an API key" : "a tenant", names);
}

int limit_check(enum limit limit, double value, struct err *err)
{
    const struct rule *rule = &rules[limit];

    if (value >= rule->lowest && value <= rule->highest && (!rule->whole || value == floor(value)))
        return 0;
    return err_set(err, ERR_RANGE, "%s is %.15g; it must be a %snumber of %.15g to %.15g: %s",
                   rule->name, value, rule->whole ? "whole " : "", rule->lowest, rule->highest,
                   rule->sentence);
}

void limits_set(struct limits *limits, enum limit limit, double value)
{
    struct err err;

    if (limit_check(limit, value, &err) < 0)
        return;
    limits->set |= 1u << limit;
    limits->values[limit] = value;
}

double limits_get(const struct limits *limits, enum limit limit, double otherwise)
{
    return limits_has(limits, limit) ? limits->values[limit] : otherwise;
}
