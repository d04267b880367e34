/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: schema/<noun>.sql shows the tables as the migrations make them (D1); the names that SQL
 * gives to states and error classes are those of the .def tables (D2); everything in headrace_v1
 * has a comment, its role can read that and nothing else, and no column of it changes or goes.
 * Method: a server of its own (tests/lib/postgres.sh); the catalog's telling of both ways is
 * compared line by line.
 */

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>

#include "migrations/migrate.h"
#include "schema/job.h"
#include "tests/stack/postgres_test.h"

#define FILES_MAX 64
#define FILE_SIZE_MAX 65536

/* One line for each column, constraint, index, partition key and option of a table. */
static const char *const describe_sql =
    "WITH t AS (SELECT c.* FROM pg_class c WHERE c.relnamespace = 'headrace'::regnamespace "
    "AND c.relkind IN ('r', 'p') AND c.relname !~ '_[0-9]{8}$' AND c.relname <> 'migration'), "
    "lines AS ("
    "SELECT concat_ws(' ', t.relname, a.attname, format_type(a.atttypid, a.atttypmod), "
    "a.attnotnull, a.attidentity, pg_get_expr(d.adbin, d.adrelid)) AS line FROM t "
    "JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped "
    "LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = a.attnum "
    "UNION ALL SELECT concat_ws(' ', t.relname, k.conname, pg_get_constraintdef(k.oid)) FROM t "
    "JOIN pg_constraint k ON k.conrelid = t.oid "
    "UNION ALL SELECT pg_get_indexdef(i.indexrelid) FROM t JOIN pg_index i ON i.indrelid = t.oid "
    "UNION ALL SELECT concat_ws(' ', t.relname, pg_get_partkeydef(t.oid), "
    "pg_get_expr(t.relpartbound, t.oid), t.reloptions::text) FROM t) "
    "SELECT line FROM lines ORDER BY line COLLATE \"C\"";

struct telling {
    struct pg_answer answer;
    size_t count;
};

static struct telling telling_read(struct pg_session *session)
{
    struct telling telling;
    struct err err = {0};

    if (pg_session_query(session, describe_sql, &telling.answer, &err) < 0)
        fail_msg("%s", err.text);
    telling.count = pg_row_count(&telling.answer, 0);
    assert_true(telling.count > 200);
    return telling;
}

static const char *telling_line(const struct telling *telling, size_t index)
{
    return index < telling->count ? pg_c(&telling->answer, 0, index, 0) : "(the end)";
}

static char *file_read(const char *name)
{
    char path[300], *text = xcalloc(1, FILE_SIZE_MAX);
    FILE *file;
    size_t size;

    (void)snprintf(path, sizeof(path), "schema/%s", name);
    file = fopen(path, "r");
    if (file == NULL)
        fail_msg("%s cannot be read", path);
    size = fread(text, 1, FILE_SIZE_MAX, file);
    assert_true(size < FILE_SIZE_MAX);
    (void)fclose(file);
    return text;
}

static size_t files_list(char names[FILES_MAX][256])
{
    DIR *dir = opendir("schema");
    const struct dirent *entry;
    size_t count = 0;

    assert_non_null(dir);
    while ((entry = readdir(dir)) != NULL) {
        size_t size = strlen(entry->d_name);

        if (size < 5 || strcmp(entry->d_name + size - 4, ".sql") != 0)
            continue;
        assert_true(count < FILES_MAX);
        mem_copy_text(names[count++], entry->d_name);
    }
    (void)closedir(dir);
    return count;
}

/* Runs the files in whatever order their references allow: each round runs what it can. */
static void files_run(struct pg_session *session)
{
    char names[FILES_MAX][256];
    bool ran[FILES_MAX] = {false};
    size_t count = files_list(names), left = count, before;
    struct err err = {0};

    assert_true(count > 10);
    do {
        before = left;
        for (size_t i = 0; i < count; i++) {
            OWNED(mem_free) char *sql = NULL;

            if (ran[i])
                continue;
            sql = file_read(names[i]);
            if (pg_session_script(session, sql, &err) == 0) {
                ran[i] = true;
                left--;
            }
        }
    } while (left > 0 && left < before);
    if (left > 0)
        fail_msg("schema/: %s", err.text);
}

static void test_schema_files_equal_the_migrations(void **state)
{
    struct pg_session *session = looker_open();
    struct telling migrated, written;
    struct err err = {0};

    (void)state;
    if (migrate_run(looker_url(), MIGRATE_APPLY, NULL, NULL, &err) < 0)
        fail_msg("%s", err.text);
    migrated = telling_read(session);
    looker_script(session, "DROP SCHEMA headrace_tenant_v1, headrace_v1, headrace CASCADE");
    looker_script(session, "CREATE SCHEMA headrace");
    files_run(session);
    written = telling_read(session);
    for (size_t i = 0; i < migrated.count || i < written.count; i++) {
        if (strcmp(telling_line(&migrated, i), telling_line(&written, i)) != 0)
            fail_msg("migrations/: %s\nschema/: %s", telling_line(&migrated, i),
                     telling_line(&written, i));
    }
    pg_answer_done(&migrated.answer);
    pg_answer_done(&written.answer);
    looker_script(session, "DROP SCHEMA headrace CASCADE");
    pg_session_close(&session);
}

static int setup_migrated(void **state)
{
    struct err err = {0};

    (void)state;
    if (migrate_run(looker_url(), MIGRATE_APPLY, NULL, NULL, &err) < 0)
        fail_msg("%s", err.text);
    return 0;
}

static void expect_name(struct pg_session *session, const char *function, int number,
                        const char *wanted)
{
    char *sql = xasprintf("SELECT headrace.%s(%d::smallint)", function, number);

    looker_expect(session, sql, wanted);
    mem_free(&sql);
}

static void test_names_equal_the_tables(void **state)
{
    struct pg_session *session = looker_open();

    (void)state;
#define JOB_STATE(name, number, final, meaning)                                                    \
    expect_name(session, "state_name", number, job_state_name(JOB_##name));
#include "schema/job_states.def"
#undef JOB_STATE
    for (int class = 1; class < ERROR_CLASS_COUNT; class ++) {
        OWNED(mem_free) char *name = xstrdup(error_class_name((enum error_class) class));

        for (char *c = name; *c != '\0'; c++)
            *c = (char)tolower((unsigned char)*c);
        expect_name(session, "error_class_name", class, name);
        expect_name(session, "error_class_wire", class, error_class_wire((enum error_class) class));
    }
    for (int class = 1; class < ERROR_CLASS_COUNT; class ++)
        expect_name(session, "fail_reason", class, error_class_reason((enum error_class) class));
    expect_name(session, "error_class_name", 0, "");
    expect_name(session, "error_class_name", ERROR_CLASS_COUNT, "");
    expect_name(session, "rank_name", JOB_RANK_SYNC, "sync");
    expect_name(session, "rank_name", JOB_RANK_PRIORITY_2, "2");
    expect_name(session, "rank_name", JOB_RANK_BULK, "bulk");
    pg_session_close(&session);
}

static void test_everything_has_a_comment(void **state)
{
    struct pg_session *session = looker_open();

    (void)state;
    looker_expect(session,
                  "SELECT coalesce(string_agg(c.relname || '.' || a.attname, ', '), 'none') FROM "
                  "pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 WHERE "
                  "c.relnamespace = 'headrace_v1'::regnamespace AND c.relkind = 'v' AND "
                  "(obj_description(c.oid, 'pg_class') IS NULL OR "
                  "col_description(c.oid, a.attnum) IS NULL)",
                  "none");
    pg_session_close(&session);
}

static size_t lines_beginning(const char *text, const char *begin)
{
    OWNED(mem_free) char *line = xasprintf("\n%s", begin);
    size_t count = 0;

    for (const char *at = strstr(text, line); at != NULL; at = strstr(at + 1, line))
        count++;
    return count;
}

/* docs/sql.md says of each view and column what its comment says, and has no others. */
static void test_the_guide_is_not_stale(void **state)
{
    struct pg_session *session = looker_open();
    OWNED(mem_free) char *guide = file_read("../docs/sql.md");
    const char *views = strstr(guide, "\n## The views\n");
    struct pg_answer answer;
    struct err err = {0};

    (void)state;
    assert_non_null(views);
    if (pg_session_query(
            session,
            "SELECT '| `' || a.attname || '` | ' || format_type(a.atttypid, a.atttypmod) || ' | ' "
            "|| replace(col_description(c.oid, a.attnum), '|', '\\|') || ' |' FROM pg_class c "
            "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 WHERE "
            "c.relnamespace = 'headrace_v1'::regnamespace AND c.relkind = 'v' UNION ALL "
            "SELECT '### ' || relname || E'\n\n' || obj_description(oid, 'pg_class') FROM "
            "pg_class WHERE relnamespace = 'headrace_v1'::regnamespace AND relkind = 'v'",
            &answer, &err) < 0)
        fail_msg("%s", err.text);
    assert_true(pg_row_count(&answer, 0) > 100);
    for (size_t i = 0; i < pg_row_count(&answer, 0); i++) {
        if (strstr(views, pg_c(&answer, 0, i, 0)) == NULL)
            fail_msg("docs/sql.md lacks: %s", pg_c(&answer, 0, i, 0));
    }
    assert_int_equal(lines_beginning(views, "### ") + lines_beginning(views, "| `"),
                     pg_row_count(&answer, 0));
    pg_answer_done(&answer);
    pg_session_close(&session);
}

/* Columns of the views of a schema and its functions, one a line, as tests/data/sql/headrace_v1.txt
 * has them. */
#define CONTRACT(schema, but)                                                                      \
    "SELECT string_agg(line, E'\n' ORDER BY name, number) || E'\n' FROM (SELECT c.relname::text "  \
    "AS name, a.attnum AS number, concat_ws(' ', c.relname, a.attname, format_type(a.atttypid, "   \
    "a.atttypmod)) AS line FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND "         \
    "a.attnum > 0 WHERE c.relnamespace = '" schema "'::regnamespace AND c.relkind = 'v' " but      \
    " UNION ALL SELECT p.proname, 0, concat_ws(' ', p.proname || '(' || "                          \
    "pg_get_function_identity_arguments(p.oid) || ')', format_type(p.prorettype, NULL)) FROM "     \
    "pg_proc p WHERE p.pronamespace = '" schema "'::regnamespace) l"

/* The first line in which two texts differ, of the first; the caller frees. */
static char *line_differing(const char *text, const char *other)
{
    size_t begin = 0;

    for (size_t i = 0; text[i] == other[i] && text[i] != '\0'; i++) {
        if (text[i] == '\n')
            begin = i + 1;
    }
    return xasprintf("%.*s", (int)strcspn(text + begin, "\n"), text + begin);
}

static void test_columns_neither_change_nor_go(void **state)
{
    struct pg_session *session = looker_open();
    OWNED(mem_free) char *kept = file_read("../tests/data/sql/headrace_v1.txt");
    struct pg_answer now;

    (void)state;
    looker_query(session, CONTRACT("headrace_v1", ""), &now);
    if (strcmp(pg_c(&now, 0, 0, 0), kept) != 0) {
        OWNED(mem_free) char *is = line_differing(pg_c(&now, 0, 0, 0), kept);
        OWNED(mem_free) char *was = line_differing(kept, pg_c(&now, 0, 0, 0));

        fail_msg("tests/data/sql/headrace_v1.txt has '%s' where the views have '%s'. A column or "
                 "view that is new: add its line. One that changed or is gone: people's queries "
                 "break; leave it, and make another view or version",
                 was, is);
    }
    pg_answer_done(&now);
    pg_session_close(&session);
}

static void test_tenants_have_the_same_views(void **state)
{
    struct pg_session *session = looker_open();
    struct pg_answer all, twin;

    (void)state;
    looker_query(
        session,
        CONTRACT("headrace_v1", "AND c.relname NOT IN ('devices', 'shards', 'training_trainers')"),
        &all);
    looker_query(session, CONTRACT("headrace_tenant_v1", ""), &twin);
    if (strcmp(pg_c(&all, 0, 0, 0), pg_c(&twin, 0, 0, 0)) != 0) {
        OWNED(mem_free) char *lacks = line_differing(pg_c(&all, 0, 0, 0), pg_c(&twin, 0, 0, 0));

        fail_msg("headrace_tenant_v1 lacks '%s': a migration that makes or changes a view of "
                 "headrace_v1 ends with SELECT tenant_views(); a function gets a twin by hand",
                 lacks);
    }
    pg_answer_done(&all);
    pg_answer_done(&twin);
    pg_session_close(&session);
}

/* A job as views show it. */
#define JOB(n, state, error_class, webhook, delivery_state)                                        \
    "INSERT INTO job (id, accepted_at, received_at, start_deadline_at, state_at, seq, "            \
    "run_limit_ms, queue_limit_ms, shard, state, rank, max_attempts, tenant, model, deployment, "  \
    "pool, input_digest, error_class, webhook_url, trace) VALUES "                                 \
    "('019b7c01-0400-7000-8000-00000000000" #n                                                     \
    "', now(), now(), now(), now(), 1, 1, 1, 0, " #state                                           \
    ", 1, 3, 't', 'm', 'd', 'p', sha256(''), " #error_class ", " webhook                           \
    ", '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01');"                                \
    "INSERT INTO delivery (job_id, round, shard, state, tenant, model, url, webhook_id, record) "  \
    "SELECT '019b7c01-0400-7000-8000-00000000000" #n "', 1, 0, " #delivery_state                   \
    ", 't', 'm', 'u', 'w', '' WHERE " #delivery_state " > 0;"

static void test_status_as_clients_see_it(void **state)
{
    struct pg_session *session = looker_open();

    (void)state;
    looker_script(session, "TRUNCATE job, delivery;" JOB(1, 1, 0, "NULL", 0) JOB(2, 3, 0, "'u'", 0)
                               JOB(3, 3, 0, "'u'", 1) JOB(4, 3, 0, "'u'", 2) JOB(5, 3, 0, "'u'", 3)
                                   JOB(6, 4, 2, "'u'", 3) JOB(7, 6, 11, "'u'", 0));
    looker_expect(session,
                  "SELECT string_agg(concat_ws(':', status, webhook_status, error_code), ' ' "
                  "ORDER BY id) FROM headrace_v1.jobs",
                  "QUEUED:NO_WEBHOOK_PROVIDED SUCCEEDED:PENDING SUCCEEDED:PENDING "
                  "SUCCEEDED:SUCCEEDED WEBHOOK_FAILED:FAILED FAILED:FAILED:MODEL_PREDICT_ERROR "
                  "CANCELED:CANCELED:CANCELED");
    looker_expect(session, "SELECT trace_id FROM headrace_v1.jobs LIMIT 1",
                  "0af7651916cd43dd8448eb211c80319c");
    pg_session_close(&session);
}

/* Times of a step's job, in seconds from the run's beginning. */
#define STEP(n, step, item, accepted, started, ended)                                              \
    "INSERT INTO job (id, accepted_at, received_at, start_deadline_at, started_at, state_at, "     \
    "seq, "                                                                                        \
    "run_limit_ms, queue_limit_ms, shard, state, rank, max_attempts, tenant, model, deployment, "  \
    "pool, input_digest) SELECT '019b7c01-0400-7000-8000-0000000001" #n                            \
    "', t + interval '" #accepted " s', t, t, t + interval '" #started                             \
    " s', t + interval '" #ended                                                                   \
    " s', 1, 1, 1, 0, 3, 1, 3, 't', 'm', 'd', 'p', sha256('') FROM (VALUES "                       \
    "('2026-11-26 00:00:00+00'::timestamptz)) AS v (t);"                                           \
    "INSERT INTO chain_step VALUES ('019b7c01-0400-7000-8000-000000000100', '" #step "', " #item   \
    ", 1, '019b7c01-0400-7000-8000-0000000001" #n "');"

/* fork needs first too but is over sooner; last needs join, which has no job, and through it the
 * map. */
static void test_the_critical_path(void **state)
{
    struct pg_session *session = looker_open();

    (void)state;
    looker_script(
        session,
        "INSERT INTO tenant (id, name) VALUES ('t', 't');INSERT INTO model (id, tenant, name, "
        "deployment_count) VALUES ('chn', 't', 'c', 1);"
        "INSERT INTO deployment (id, model_id, name, number, pool, shard, engine, config, "
        "slot_count, replicas_min, replicas_max, replicas_wanted) VALUES ('chd', 'chn', "
        "'deployment-1', 1, 'chd', 0, 'chain', '{\"steps\": {"
        "\"first\": {\"model\": \"m\", \"input\": \"{{input}}\"}, "
        "\"map\": {\"model\": \"m\", \"map\": \"{{steps.first.output.x}}\", \"input\": 1}, "
        "\"fork\": {\"model\": \"m\", \"input\": [\"{{steps.first.output}}\"]}, "
        "\"join\": {\"model\": \"m\", \"when\": \"{{steps.map.output}}\", \"input\": 2}, "
        "\"last\": {\"model\": \"m\", \"needs\": [\"join\", \"fork\"], \"input\": "
        "\"steps.nobody.x\"}}}', "
        "1, 1, 1, 1);"
        "INSERT INTO job (id, accepted_at, received_at, start_deadline_at, state_at, seq, "
        "run_limit_ms, queue_limit_ms, shard, state, rank, max_attempts, tenant, model, "
        "deployment, pool, input_digest) VALUES ('019b7c01-0400-7000-8000-000000000100', "
        "'2026-11-26 00:00:00+00', now(), now(), now(), 1, 1, 1, 0, 3, 1, 3, 'default', 'chn', "
        "'chd', 'chd', sha256(''));"
        "INSERT INTO chain_run (run_id, deployment_id, token, depth, targets) VALUES "
        "('019b7c01-0400-7000-8000-000000000100', 'chd', 1, 0, '{}');" STEP(
            01, first, 0, 0.25, 0.5, 1) STEP(02, map, 0, 1.25, 1.5, 2) STEP(03, map, 1, 1.5, 2, 3)
            STEP(04, fork, 0, 1.25, 1.5, 2.5)
                STEP(05, last, 0, 3.125, 3.5, 4) "SET ROLE headrace_reader");
    looker_expect(session,
                  "SELECT string_agg(concat_ws(':', place, step, item, wait_seconds, "
                  "queue_seconds, run_seconds), ' ' ORDER BY place) FROM "
                  "headrace_v1.chain_critical_path WHERE run_id = "
                  "'019b7c01-0400-7000-8000-000000000100'",
                  "1:first:0:0.25:0.25:0.5 2:map:1:0.25:0.75:1 3:last:0:0.125:0.375:0.5");
    pg_session_close(&session);
}

static void test_the_reader_reads_views_only(void **state)
{
    static const char *const refused[] = {
        "SELECT * FROM headrace.job",
        "DELETE FROM headrace.job",
        "UPDATE headrace_v1.deliveries SET tenant = 'x'",
        "DELETE FROM headrace_v1.deliveries",
        "CREATE TABLE headrace_v1.x (x integer)",
        "DROP VIEW headrace_v1.jobs",
        "SELECT headrace.retention_drop('0 days')",
    };
    static const char *const views[] = {
        "jobs",           "results",     "attempts",          "deliveries", "queue_depth",
        "models",         "deployments", "workers",           "shards",     "environments",
        "delivery_tries", "audit",       "webhook_endpoints", "blobs"};
    struct pg_session *session = looker_open();
    struct pg_answer answer;
    struct err err = {0};

    (void)state;
    looker_script(session, "SET ROLE headrace_reader");
    for (size_t i = 0; i < COUNT_OF(refused); i++) {
        if (pg_session_query(session, refused[i], &answer, &err) != ERR_FORBIDDEN)
            fail_msg("%s: %s", refused[i], err.text);
    }
    for (size_t i = 0; i < COUNT_OF(views); i++) {
        char *sql = xasprintf("SELECT * FROM headrace_v1.%s", views[i]);

        if (pg_session_query(session, sql, &answer, &err) < 0)
            fail_msg("%s: %s", views[i], err.text);
        pg_answer_done(&answer);
        mem_free(&sql);
    }
    pg_session_close(&session);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_schema_files_equal_the_migrations),
        cmocka_unit_test_setup(test_names_equal_the_tables, setup_migrated),
        cmocka_unit_test_setup(test_everything_has_a_comment, setup_migrated),
        cmocka_unit_test_setup(test_the_guide_is_not_stale, setup_migrated),
        cmocka_unit_test_setup(test_columns_neither_change_nor_go, setup_migrated),
        cmocka_unit_test_setup(test_tenants_have_the_same_views, setup_migrated),
        cmocka_unit_test_setup(test_status_as_clients_see_it, setup_migrated),
        cmocka_unit_test_setup(test_the_critical_path, setup_migrated),
        cmocka_unit_test_setup(test_the_reader_reads_views_only, setup_migrated),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
