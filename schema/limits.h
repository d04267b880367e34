/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Limits of tenants and API keys, as schema/limits.def lists them: names, ranges, values.
 *
 * Pure.   Thread: any.   Tests: tests/unit/test_limits.c
 */

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

enum limit {
#define LIMIT(name, on_tenant, on_key, lowest, highest, whole, sentence) LIMIT_##name,
#include "schema/limits.def"
#undef LIMIT
    LIMIT_COUNT
};

enum limit_on { LIMIT_ON_TENANT, LIMIT_ON_KEY };

struct limits {
    unsigned set; /* bits of enum limit */
    double values[LIMIT_COUNT];
};

const char *limit_name(enum limit limit); /* "waiting_jobs"; static storage */
bool limit_is_on(enum limit limit, enum limit_on on);

/* ERR_RANGE names the limit, or those that there are; the value, and its range. */
int limit_find(const char *name, enum limit_on on, enum limit *ret_limit,
               struct err *err) MUST_CHECK;
int limit_check(enum limit limit, double value, struct err *err) MUST_CHECK;

static inline bool limits_has(const struct limits *limits, enum limit limit)
{
    return (limits->set >> limit & 1) != 0;
}

/* A value that the table does not allow (somebody wrote it by hand) counts as not set. */
void limits_set(struct limits *limits, enum limit limit, double value);
double limits_get(const struct limits *limits, enum limit limit, double otherwise);
