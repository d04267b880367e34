/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Compiled plans on disk, so that a start does not compile what an earlier one did.
 *
 * One file a plan, DIR/<SHA-256 of the key>.plan: a line of JSON (the key in clear, size and
 * SHA-256 of what follows), then the plan as it was given. A file is written beside its place and
 * renamed, so that several hosts share a directory without a lock: a reader sees a whole plan or
 * none, and of two writers the later one stays. An entry that is damaged, or another key's, is an
 * error of _get() and is replaced by the next _put().
 *
 * Bounded in entries and bytes: a _put() over a bound deletes what was used longest ago. It also
 * deletes parts of files that a killed host left, an hour after it did.
 *
 * Plans are code that runs on the device: the directory must be the user's own and writable by
 * nobody else. No CUDA in here, a plan is text.
 *
 * Thread: one a cache; any number of caches and processes on one directory.
 * Tests: tests/unit/test_plan_cache.c
 */

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define PLAN_CACHE_PLAN_SIZE_MAX (8u << 20) /* one plan */
#define PLAN_CACHE_ENTRY_MAX 512            /* defaults of the bounds */
#define PLAN_CACHE_SIZE_MAX (64ull << 20)

/* What a plan was compiled for; all of it counts. */
struct plan_cache_key {
    const char *device;     /* its name */
    const char *capability; /* "9.0" */
    uint64_t library;       /* version of what compiled it */
    const char *graph;      /* any text that says what it computes; 4,096 bytes at most */
};

struct plan_cache_bounds {
    uint32_t entry_max; /* 0: PLAN_CACHE_ENTRY_MAX */
    uint64_t size_max;  /* bytes of all files; 0: PLAN_CACHE_SIZE_MAX */
};

struct plan_cache;

/* Makes the directory, not its parents. ERR_FORBIDDEN: it is another user's, or others may write to
 * it; ERR_IO. */
int plan_cache_open(const char *dir, const struct plan_cache_bounds *bounds,
                    struct plan_cache **ret_cache, struct err *err) MUST_CHECK;
void plan_cache_close(struct plan_cache **cache_p);

/* *ret_plan: text, which the caller frees, or NULL: there is none. ERR_MALFORMED: the entry is
 * damaged; ERR_MISMATCH: it is another key's; ERR_IO. In each case the caller makes the plan anew.
 */
int plan_cache_get(struct plan_cache *cache, const struct plan_cache_key *key, char **ret_plan,
                   struct err *err) MUST_CHECK;

/* ERR_TOO_BIG: plan or graph over its limit; ERR_IO (the disk is full, the directory is gone). The
 * cache is as it was then, and the caller has its plan. */
int plan_cache_put(struct plan_cache *cache, const struct plan_cache_key *key, const char *plan,
                   struct err *err) MUST_CHECK;
