/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: migrations apply once, also when two run at once; a dry run changes nothing; what was
 * applied with another text is refused; the database's CHECKs say what the .def tables say; days
 * are made, filled from DEFAULT, and dropped without losing a straggler.
 * Method: a server of its own (tests/lib/postgres.sh); each test begins with an empty database.
 */

#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "migrations/migrate.h"
#include "schema/job.h"
#include "tests/stack/postgres_test.h"

struct seen {
    size_t rows, applied, now;
};

static void on_row(void *opaque, const struct migrate_row *row)
{
    struct seen *seen = opaque;

    seen->rows++;
    seen->applied += row->applied;
    seen->now += row->now;
}

static struct seen migrate(enum migrate_mode mode)
{
    struct seen seen = {0};
    struct err err = {0};

    if (migrate_run(looker_url(), mode, on_row, &seen, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(seen.rows, migration_count);
    return seen;
}

static int setup(void **state)
{
    (void)state;
    script_once("DROP SCHEMA IF EXISTS headrace, headrace_v1, headrace_tenant_v1 CASCADE");
    return 0;
}

static void test_applies_once(void **state)
{
    (void)state;
    assert_int_equal(migrate(MIGRATE_STATUS).applied, 0);
    assert_int_equal(migrate(MIGRATE_APPLY).now, migration_count);
    assert_int_equal(migrate(MIGRATE_APPLY).now, 0);
    assert_int_equal(migrate(MIGRATE_STATUS).applied, migration_count);
}

static void test_dry_run_changes_nothing(void **state)
{
    (void)state;
    assert_int_equal(migrate(MIGRATE_DRY_RUN).now, migration_count);
    expect_once("SELECT (to_regclass('headrace.job') IS NULL)::text", "true");
}

static void test_two_at_once(void **state)
{
    pid_t children[4];

    (void)state;
    for (size_t i = 0; i < COUNT_OF(children); i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i] == 0) {
            struct err err = {0};
            int r = migrate_run(looker_url(), MIGRATE_APPLY, NULL, NULL, &err);

            _exit(r == 0 ? 0 : 1);
        }
    }
    for (size_t i = 0; i < COUNT_OF(children); i++) {
        int status;

        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_int_equal(status, 0);
    }
    assert_int_equal(migrate(MIGRATE_STATUS).applied, migration_count);
}

static void test_another_text_is_refused(void **state)
{
    struct err err = {0};

    (void)state;
    (void)migrate(MIGRATE_APPLY);
    script_once("UPDATE headrace.migration SET digest = sha256('x') WHERE number = 2");
    assert_int_equal(migrate_run(looker_url(), MIGRATE_APPLY, NULL, NULL, &err), ERR_MISMATCH);
    assert_non_null(strstr(err.text, migrations[1].name));
}

static void test_a_newer_database_is_refused(void **state)
{
    struct err err = {0};

    (void)state;
    (void)migrate(MIGRATE_APPLY);
    script_once("INSERT INTO headrace.migration SELECT max(number) + 1, 'later', sha256('x'), 0 "
                "FROM headrace.migration");
    assert_int_equal(migrate_run(looker_url(), MIGRATE_APPLY, NULL, NULL, &err), ERR_MISMATCH);
    assert_non_null(strstr(err.text, "too old"));
}

static void check_values(const char *constraint, const char *wanted)
{
    char *sql = xasprintf("SELECT string_agg(m[1], ',' ORDER BY m[1]::int) FROM pg_constraint c, "
                          "regexp_matches(pg_get_constraintdef(c.oid), '([0-9]+)', 'g') m WHERE "
                          "c.conname = '%s' AND c.conparentid = 0 AND c.connamespace = "
                          "'headrace'::regnamespace AND c.conislocal AND c.coninhcount = 0",
                          constraint);

    expect_once(sql, wanted);
    mem_free(&sql);
}

/* The numbers in SQL are those of the .def tables (D2). */
static void test_checks_equal_the_tables(void **state)
{
    struct buf states = BUF_WITH_LIMIT(1000), classes = BUF_WITH_LIMIT(1000);

    (void)state;
    (void)migrate(MIGRATE_APPLY);
#define JOB_STATE(name, number, final, meaning) buf_printf(&states, ",%d", number);
#include "schema/job_states.def"
#undef JOB_STATE
    buf_append_text(&classes, "0");
#define ERROR_CLASS(name, number, wire, http, budget, effect) buf_printf(&classes, ",%d", number);
#include "schema/error_classes.def"
#undef ERROR_CLASS
    check_values("job_state_check", buf_text(&states) + 1);
    check_values("job_error_class_check", buf_text(&classes));
    check_values("attempt_error_class_check", buf_text(&classes));
    buf_done(&states);
    buf_done(&classes);
}

static void test_ids_and_days(void **state)
{
    (void)state;
    (void)migrate(MIGRATE_APPLY);
    expect_once("SELECT headrace.day_id('2026-01-02')::text",
                "019b7c01-0400-0000-0000-000000000000");
    expect_once("SELECT headrace.id_time('019b7c01-0401-7abc-8000-000000000000')::text",
                "2026-01-02 00:00:00.001+00");
    expect_once("SELECT count(*)::text FROM pg_inherits WHERE inhparent = 'headrace.job'::regclass",
                "6");
    expect_once("SELECT headrace.partitions_make(now())::text", "0");
    /* The day changes: one more a table. */
    expect_once("SELECT headrace.partitions_make(now() + interval '1 day')::text", "11");
}

#define JOB_COLUMNS                                                                                \
    "id, accepted_at, received_at, start_deadline_at, state_at, seq, run_limit_ms, "               \
    "queue_limit_ms, shard, state, rank, max_attempts, tenant, model, deployment, pool, "          \
    "input_digest, attempt_count"

static void job_insert(const char *day, int state, int attempt_count)
{
    char *sql = xasprintf("INSERT INTO headrace.job (" JOB_COLUMNS ") VALUES (overlay(headrace."
                          "day_id('%s')::text placing '7abc-80%d%d' from 15 for 9)::uuid, '%s', "
                          "'%s', '%s', '%s', 1, 1000, 1000, 0, %d, 1, 3, 't', 'm', 'd', 'p', "
                          "sha256(''), %d)",
                          day, state, attempt_count, day, day, day, day, state, attempt_count);

    script_once(sql);
    mem_free(&sql);
}

/* A row whose day was missing goes to DEFAULT, and moves when the day is made. */
static void test_default_partition_is_emptied(void **state)
{
    (void)state;
    (void)migrate(MIGRATE_APPLY);
    job_insert("2026-01-02", 3, 1);
    job_insert("2026-01-03", 3, 1);
    expect_once("SELECT count(*)::text FROM headrace.job_default", "2");
    expect_once("SELECT headrace.partition_make('job', 'id', '2026-01-02')::text", "true");
    expect_once("SELECT count(*)::text FROM headrace.job_default", "1");
    expect_once("SELECT count(*)::text FROM headrace.job_20260102", "1");
    expect_once("SELECT count(*)::text FROM pg_index WHERE indrelid = "
                "'headrace.job_20260102'::regclass",
                "6");
}

/* Of the parent, of DEFAULT, of the days that were there and of one that is made. */
static void test_days_are_compressed_as_their_parent(void **state)
{
    (void)state;
    (void)migrate(MIGRATE_APPLY);
    expect_once("SELECT headrace.partition_make('job_result', 'job_id', '2026-01-02')::text",
                "true");
    expect_once("SELECT (count(*) > 15 AND bool_and(a.attcompression = CASE WHEN 'lz4' = ANY "
                "(s.enumvals) THEN 'l' ELSE '' END))::text FROM (VALUES ('job_input', 'input'), "
                "('job_result', 'output'), ('delivery', 'record')) k (parent, field), "
                "LATERAL pg_partition_tree(('headrace.' || k.parent)::regclass) t, pg_attribute a, "
                "pg_settings s WHERE a.attrelid = t.relid AND a.attname = k.field AND s.name = "
                "'default_toast_compression'",
                "true");
}

static void test_a_day_is_dropped_without_its_live_rows(void **state)
{
    (void)state;
    (void)migrate(MIGRATE_APPLY);
    expect_once("SELECT headrace.partitions_make('2026-01-02')::text", "55");
    job_insert("2026-01-02", 1, 0); /* waits */
    job_insert("2026-01-02", 1, 2); /* waits for a retry */
    job_insert("2026-01-02", 2, 1); /* runs */
    job_insert("2026-01-02", 3, 1); /* over, but its webhook is not delivered */
    job_insert("2026-01-02", 4, 1); /* over */
    script_once(
        "INSERT INTO headrace.job_input SELECT id, 'x' FROM headrace.job;"
        "INSERT INTO headrace.job_result (job_id, round, token, output_size, output) "
        "SELECT id, 1, 1, 1, 'x' FROM headrace.job WHERE state = 3;"
        "INSERT INTO headrace.delivery (job_id, round, shard, state, tenant, model, url, "
        "webhook_id, record) SELECT id, 1, 0, CASE state WHEN 3 THEN 1 ELSE 2 END, 't', 'm', "
        "'http://x', 'w', 'x' FROM headrace.job WHERE state IN (3, 4);"
        "INSERT INTO headrace.shard (id, epoch) VALUES (0, 5), (1, 5);"
        "INSERT INTO headrace.flush (shard, epoch, number, at, intake_floor, outcome_floor, "
        "floor_at, published_epoch, published_number) SELECT s, 5, n, '2026-01-02', n, n, "
        "now(), 5, n - 3 FROM generate_series(0, 1) s, generate_series(1, 100) n;"
        "INSERT INTO headrace.flush (shard, epoch, number, intake_floor, outcome_floor, "
        "floor_at, published_epoch, published_number) VALUES (1, 5, 101, 1, 1, now(), 5, 100)");
    expect_once("SELECT headrace.retention_drop(interval '4 days')::text", "5");
    expect_once(
        "SELECT string_agg(state::text, ' ' ORDER BY state, attempt_count) FROM headrace.job",
        "1 1 2 3");
    expect_once("SELECT count(*)::text FROM headrace.job_default", "4");
    expect_once("SELECT count(*)::text FROM headrace.job_input", "4");
    expect_once("SELECT count(*)::text FROM headrace.delivery", "1");
    expect_once("SELECT count(*)::text FROM headrace.job_result", "1"); /* its webhook is owed */
    /* Shard 0: the newest and what is above its mark (98 … 100, and the mark itself); shard 1 has
     * gone on today, its mark stands at 100. */
    expect_once("SELECT string_agg(number::text, ' ' ORDER BY shard, number) FROM headrace.flush",
                "97 98 99 100 100 101");
    script_once("UPDATE headrace.job SET state = 4; UPDATE headrace.delivery SET state = 2");
    expect_once("SELECT headrace.retention_sweep(interval '1 day')::text", "4");
    expect_once("SELECT count(*)::text FROM headrace.job_input", "0");
}

/* A run of a chain that waits for longer than finished jobs are kept is planned again from them. */
static void test_a_run_keeps_what_it_came_to(void **state)
{
    (void)state;
    (void)migrate(MIGRATE_APPLY);
    script_once("SELECT headrace.partitions_make('2026-01-01')");
    script_once("SELECT headrace.partitions_make('2026-01-02')");
    job_insert("2026-01-01", 3, 1); /* of another run, a day older, and taken over */
    job_insert("2026-01-02", 1, 3); /* the run */
    job_insert("2026-01-02", 3, 2); /* its step */
    job_insert("2026-01-02", 3, 3); /* of nobody */
    script_once(
        "INSERT INTO headrace.job_result (job_id, round, token, output_size, output) "
        "SELECT id, 1, 1, 1, 'x' FROM headrace.job WHERE state = 3;"
        "INSERT INTO headrace.chain_step (run_id, step, item, round, job_id) SELECT r.id, 'a', 0, "
        "1, j.id FROM headrace.job r, headrace.job j WHERE r.state = 1 AND j.attempt_count = 2;"
        "INSERT INTO headrace.chain_step (run_id, step, item, round, job_id, taken_at) SELECT "
        "r.id, "
        "'b', 0, 1, j.id, '2026-01-02' FROM headrace.job r, headrace.job j WHERE r.state = 1 AND "
        "j.attempt_count = 1;"
        "INSERT INTO headrace.chain_call (run_id, step, item, round, token, began_at) SELECT "
        "id, 'c', 0, 1, 1, '2026-01-02' FROM headrace.job WHERE state = 1;"
        "INSERT INTO headrace.chain_wait (run_id, step, round, approval, opened_at, due_at) "
        "SELECT id, x.step, 1, false, '2026-01-02', x.due FROM headrace.job, (VALUES ('long', "
        "now() + interval '1 day'), ('short', '2026-01-02')) x (step, due) WHERE state = 1");
    expect_once("SELECT headrace.retention_drop(interval '4 days')::text", "6");
    expect_once("SELECT string_agg(state::text, ' ' ORDER BY state) FROM headrace.job", "1 3 3");
    expect_once("SELECT count(*)::text FROM headrace.job_result r JOIN headrace.chain_step s "
                "USING (job_id)",
                "2");
    expect_once("SELECT headrace.retention_sweep(interval '1 day')::text", "1");
    expect_once("SELECT step FROM headrace.chain_wait", "long");
    expect_once("SELECT headrace.chain_call_sweep(interval '1 day')::text", "0");
    expect_once("SELECT count(*)::text FROM headrace.job", "3");
    script_once("UPDATE headrace.job SET state = 3");
    expect_once("SELECT headrace.chain_call_sweep(interval '1 day')::text", "1");
    expect_once("SELECT headrace.retention_sweep(interval '1 day')::text", "3");
}

static void test_queue_deltas_add_up(void **state)
{
    (void)state;
    (void)migrate(MIGRATE_APPLY);
    script_once("INSERT INTO headrace.queue_delta SELECT 0, 1, 'd' || n % 2, 'p', 1, -1, "
                "now() - interval '1 minute' FROM generate_series(1, 100) n;"
                "INSERT INTO headrace.queue_delta SELECT 0, 1, 'gone', 'p', n, 0, "
                "now() - interval '1 minute' FROM generate_series(-5, 5) n;"
                "INSERT INTO headrace.queue_delta VALUES (0, 1, 'd1', 'p', 7, 7, now())");
    expect_once("SELECT headrace.queue_compact()::text", "111");
    expect_once(
        "SELECT string_agg(deployment || waiting || running, ' ' ORDER BY deployment, waiting) "
        "FROM headrace.queue_delta",
        "d050-50 d177 d150-50");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_applies_once, setup),
        cmocka_unit_test_setup(test_dry_run_changes_nothing, setup),
        cmocka_unit_test_setup(test_two_at_once, setup),
        cmocka_unit_test_setup(test_another_text_is_refused, setup),
        cmocka_unit_test_setup(test_a_newer_database_is_refused, setup),
        cmocka_unit_test_setup(test_checks_equal_the_tables, setup),
        cmocka_unit_test_setup(test_ids_and_days, setup),
        cmocka_unit_test_setup(test_default_partition_is_emptied, setup),
        cmocka_unit_test_setup(test_days_are_compressed_as_their_parent, setup),
        cmocka_unit_test_setup(test_a_day_is_dropped_without_its_live_rows, setup),
        cmocka_unit_test_setup(test_a_run_keeps_what_it_came_to, setup),
        cmocka_unit_test_setup(test_queue_deltas_add_up, setup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
