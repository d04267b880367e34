/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Brings the database to the schema that this program was built with: numbered files of
 * migrations/, forward only, each in a transaction of its own, embedded into the binary.
 *
 * Safe twice and by two at once: an advisory lock is held from the first look to the last commit.
 * A migration that was applied with another text is refused, and so is a database that has
 * migrations we do not know: it is newer than we are.
 *
 * Thread: any; waits.   Tests: tests/stack/test_migrate.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct migration {
    uint32_t number;
    const char *name;
    const char *sql;
};

/* In order of number. Made from the files by the build. */
extern const struct migration migrations[];
extern const size_t migration_count;

enum migrate_mode {
    MIGRATE_APPLY,
    MIGRATE_STATUS,  /* changes nothing */
    MIGRATE_DRY_RUN, /* applies what is missing, then rolls it back */
};

struct migrate_row {
    const struct migration *migration;
    bool applied;        /* is in the database, or, on a dry run, would be */
    bool now;            /* applied by this run */
    uint64_t applied_us; /* 0: it is not */
    uint32_t took_ms;
};
typedef void migrate_visit_fn(void *opaque, const struct migrate_row *row);

/* Visits each migration in order, after it was applied. ERR_MISMATCH: the database was migrated by
 * other files than ours; ERR_UNAVAILABLE: it cannot be reached. */
int migrate_run(const char *url, enum migrate_mode mode, migrate_visit_fn *visit, void *opaque,
                struct err *err) MUST_CHECK;
