/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Many jobs at once, from the command line: what would happen first, then a question (--yes answers
 * it), then page by page, then what came of it.
 *
 *     headrace jobs replay --where 'model=llama error_class=oom accepted_after=2026-11-01'
 * --dry-run headrace jobs cancel --where 'tag=exp-7' --yes
 *
 * --where is a list of key=value with blanks between; a status may be a list, FAILED,EXPIRED.
 *
 * Exit codes: 0 all were applied (or a dry run), 1 wrong use, or nobody said yes, 2 the platform
 * refused, 3 some jobs were refused, 4 nothing matches.
 *
 * Thread: the only one of a command.   Tests: tests/stack/test_commands.py
 */

#include "cli/verb.h"

#define BULK_SETTINGS                                                                              \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(where, "",                                                                      \
                   "key=value …: status, error_class, model, deployment, environment, "          \
                   "pool, worker, tag, accepted_after, accepted_before")                           \
    SETTING_BOOL(all, false, "every job that the action is for, instead of --where")               \
    SETTING_BOOL(dry_run, false, "only say how many, and show some")                               \
    SETTING_BOOL(yes, false, "do not ask")                                                         \
    SETTING_DURATION(wait, "60s", "0s", "1d", "how long to wait for what came of it")              \
    SETTING_INT(to, 0, 0, 2, "jobs priority: the new one; lower runs first")

struct bulk_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    BULK_SETTINGS
#include "base/settings_end.def"
};

bool bulk_has_filter(const struct bulk_settings *settings);

/* action: "cancel", "replay" or "priority"; the operands are request ids. */
int bulk_run(const struct client *client, const char *action, const struct bulk_settings *settings,
             char **operands, int operand_count);

/* The JSON of a --where. ERR_USAGE says what cannot be read. */
int bulk_read_where(const char *where, json_t **ret_filter, struct err *err) MUST_CHECK;
