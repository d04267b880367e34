/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which files of a directory are left out: patterns in the syntax of .gitignore.
 *
 *     # comment     *.log     /only/at/the/top     folder/     a/(two stars)/z     !but-this
 *
 * The last pattern that matches decides. A folder that is left out is not looked into, so nothing
 * in it can be taken back. Bounded: IGNORE_SIZE_MAX bytes, IGNORE_PATTERNS_MAX patterns.
 *
 * Pure, but for memory. Source: git-scm.com/docs/gitignore. Thread: its owner's.
 * Tests: tests/unit/test_ignore.c
 */

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#define IGNORE_SIZE_MAX (64u << 10)
#define IGNORE_PATTERNS_MAX 1000
#define IGNORE_STEPS_MAX 100000 /* of one match: a pattern of many stars matches nothing then */

struct ignore;

/* The patterns of a text; `what` names it in errors. */
int ignore_new(const char *what, const char *text, struct ignore **ret_ignore,
               struct err *err) MUST_CHECK;
void ignore_free(struct ignore **ignore_p);

/* Whether a path below the directory is left out. NULL leaves nothing out. */
bool ignore_match(const struct ignore *ignore, const char *path, bool is_folder);
