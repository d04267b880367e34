/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Happy path: lock, read the table `migration`, apply what is missing, make the partitions of the
 * days ahead, unlock (by closing the session).
 *
 * Failures: a migration that fails is rolled back and named; those before it stay applied. The
 * lock goes with the session, also when this program is killed.
 */

#include "migrations/migrate.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "brokers/pg.h"

#define DIGEST_SIZE crypto_hash_sha256_BYTES
#define APPLIED_MAX 10000

/* Any number, as long as it is always the same. */
#define LOCK_SQL                                                                                   \
    "SET lock_timeout = '10min'; SELECT pg_advisory_lock(4851712031982); SET lock_timeout = 0"

PG_STATEMENT(migration_list, "SELECT number, name, digest, applied_at, took_ms FROM migration "
                             "ORDER BY number");
PG_STATEMENT(migration_insert, "INSERT INTO migration (number, name, digest, took_ms) "
                               "VALUES ($1, $2, $3, $4)");
PG_STATEMENT(migration_exists, "SELECT to_regclass('headrace.migration') IS NOT NULL");
PG_STATEMENT(partitions_make, "SELECT partitions_make(now())");

static const char *const prepare_sql = "CREATE SCHEMA IF NOT EXISTS headrace;"
                                       "CREATE TABLE IF NOT EXISTS headrace.migration ("
                                       " number integer PRIMARY KEY,"
                                       " name text NOT NULL,"
                                       " digest bytea NOT NULL,"
                                       " took_ms integer NOT NULL,"
                                       " applied_at timestamptz NOT NULL DEFAULT now());";

struct migrate {
    struct pg_session *session;
    enum migrate_mode mode;
    struct pg_answer applied; /* rows of migration_list; none when the table does not exist */
    size_t applied_count;
    migrate_visit_fn *visit;
    void *opaque;
};

static void migration_digest(const struct migration *migration, uint8_t to[DIGEST_SIZE])
{
    (void)crypto_hash_sha256(to, (const uint8_t *)migration->sql, strlen(migration->sql));
}

static int migrate_query(struct migrate *migrate, const struct pg_statement *statement,
                         struct pg_answer *ret_answer, struct err *err)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, statement);
    return pg_session_run(migrate->session, &batch, ret_answer, err);
}

/* Reads what was applied. The list is empty when nothing ever was. */
static int migrate_read(struct migrate *migrate, struct err *err)
{
    struct pg_answer exists;
    bool found;
    int r = migrate_query(migrate, &migration_exists, &exists, err);

    if (r < 0)
        return r;
    found = pg_bool(&exists, 0, 0, 0);
    pg_answer_done(&exists);
    if (!found)
        return 0;
    r = migrate_query(migrate, &migration_list, &migrate->applied, err);
    if (r < 0)
        return r;
    migrate->applied_count = pg_row_count(&migrate->applied, 0);
    if (migrate->applied_count > APPLIED_MAX)
        return err_set(err, ERR_MISMATCH, "table headrace.migration has %zu rows",
                       migrate->applied_count);
    return 0;
}

/* What was applied has to be the beginning of what we have. */
static int migrate_compare(const struct migrate *migrate, struct err *err)
{
    for (size_t i = 0; i < migrate->applied_count; i++) {
        const struct pg_answer *applied = &migrate->applied;
        const char *name = pg_c(applied, 0, i, 1);
        struct wire_bytes digest = pg_bytes(applied, 0, i, 2);
        uint8_t ours[DIGEST_SIZE];

        if (i >= migration_count)
            return err_set(err, ERR_MISMATCH,
                           "the database has migration '%s', this program ends with '%s': it is "
                           "too old for this database",
                           name, migrations[migration_count - 1].name);
        if (pg_u64(applied, 0, i, 0) != migrations[i].number)
            return err_set(err, ERR_MISMATCH, "the database has migration '%s' where ours is '%s'",
                           name, migrations[i].name);
        migration_digest(&migrations[i], ours);
        if (digest.size != DIGEST_SIZE || memcmp(digest.bytes, ours, DIGEST_SIZE) != 0)
            return err_set(err, ERR_MISMATCH,
                           "migration '%s' was applied with another text than this program has",
                           name);
    }
    return 0;
}

static int migration_record(struct migrate *migrate, const struct migration *migration,
                            uint64_t took_ms, struct err *err)
{
    struct pg_batch *batch = pg_batch_new();
    struct pg_answer answer;
    uint8_t digest[DIGEST_SIZE];
    int r;

    migration_digest(migration, digest);
    pg_add(batch, &migration_insert);
    pg_bind_i32(batch, (int32_t)migration->number);
    pg_bind_c(batch, migration->name);
    pg_bind_bytes(batch, (struct wire_bytes){digest, DIGEST_SIZE});
    pg_bind_i32(batch, (int32_t)took_ms);
    r = pg_session_run(migrate->session, &batch, &answer, err);
    if (r == 0)
        pg_answer_done(&answer);
    return r;
}

static int migration_apply(struct migrate *migrate, const struct migration *migration,
                           struct migrate_row *row, struct err *err)
{
    uint64_t begin_ms = clock_mono_ms();
    struct err ignored;
    int r = 0;

    if (migrate->mode == MIGRATE_APPLY)
        r = pg_session_script(migrate->session, "BEGIN", err);
    if (r == 0)
        r = pg_session_script(migrate->session, migration->sql, err);
    if (r == 0)
        r = migration_record(migrate, migration, clock_mono_ms() - begin_ms, err);
    if (r == 0 && migrate->mode == MIGRATE_APPLY)
        r = pg_session_script(migrate->session, "COMMIT", err);
    if (r < 0) {
        if (pg_session_script(migrate->session, "ROLLBACK", &ignored) < 0)
            return err_wrap(err, "%s; migration", ignored.text);
        return err_wrap(err, "migration %04u_%s", migration->number, migration->name);
    }
    row->applied = true;
    row->now = true;
    row->applied_us = clock_wall_us();
    row->took_ms = (uint32_t)(clock_mono_ms() - begin_ms);
    return 0;
}

static int migrate_each(struct migrate *migrate, struct err *err)
{
    for (size_t i = 0; i < migration_count; i++) {
        struct migrate_row row = {.migration = &migrations[i]};
        int r = 0;

        if (i < migrate->applied_count) {
            row.applied = true;
            row.applied_us = pg_time_us(&migrate->applied, 0, i, 3);
            row.took_ms = (uint32_t)pg_u64(&migrate->applied, 0, i, 4);
        } else if (migrate->mode != MIGRATE_STATUS) {
            r = migration_apply(migrate, &migrations[i], &row, err);
        }
        if (r < 0)
            return r;
        if (migrate->visit != NULL)
            migrate->visit(migrate->opaque, &row);
    }
    return 0;
}

static int migrate_prepare(struct migrate *migrate, struct err *err)
{
    int r = pg_session_script(migrate->session, "SET statement_timeout = 0", err);

    if (r == 0 && migrate->mode != MIGRATE_STATUS &&
        (r = pg_session_script(migrate->session, LOCK_SQL, err)) < 0) {
        struct err why = *err;

        return err_set(err, why.code,
                       "who may migrate is told by the advisory lock 4851712031982; pg_locks says "
                       "which session has it: %s",
                       why.text);
    }
    if (r == 0 && migrate->mode == MIGRATE_DRY_RUN)
        r = pg_session_script(migrate->session, "BEGIN", err);
    if (r == 0 && migrate->mode != MIGRATE_STATUS)
        r = pg_session_script(migrate->session, prepare_sql, err);
    return r;
}

static int migrate_all(struct migrate *migrate, struct err *err)
{
    struct pg_answer answer;
    int r = migrate_prepare(migrate, err);

    if (r == 0)
        r = migrate_read(migrate, err);
    if (r == 0)
        r = migrate_compare(migrate, err);
    if (r == 0)
        r = migrate_each(migrate, err);
    if (r < 0 || migrate->mode == MIGRATE_STATUS)
        return r;
    r = migrate_query(migrate, &partitions_make, &answer, err);
    if (r < 0)
        return err_wrap(err, "partitions of the days ahead");
    pg_answer_done(&answer);
    if (migrate->mode == MIGRATE_DRY_RUN)
        r = pg_session_script(migrate->session, "ROLLBACK", err);
    return r;
}

int migrate_run(const char *url, enum migrate_mode mode, migrate_visit_fn *visit, void *opaque,
                struct err *err)
{
    const struct pg_options options = {
        .url = url, .application = "headrace migrate", .connect_timeout_ms = 10000};
    struct migrate migrate = {.mode = mode, .visit = visit, .opaque = opaque};
    int r = pg_session_open(&options, &migrate.session, err);

    if (r < 0)
        return r;
    r = migrate_all(&migrate, err);
    if (migrate.applied.result != NULL)
        pg_answer_done(&migrate.applied);
    pg_session_close(&migrate.session);
    return r;
}
