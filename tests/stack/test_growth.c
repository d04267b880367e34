/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: no table grows for ever. After ten days of work and the care that the broker takes of them,
 * each table has the rows of the days that are kept and no more, what is not over is still there,
 * and the blobs of a day are free to go only when nobody can need them.
 * Method: a server of its own (tests/lib/postgres.sh); ten days of rows with the times that they
 * would have, then the very statements of the broker. The tables come from the catalogue: whoever
 * adds one has to say here who empties it.
 */

#include "base/buf.h"
#include "migrations/migrate.h"
#include "tests/stack/postgres_test.h"

#define DAYS "10"
#define ROWS_A_DAY "100"

/* Rows of people's making, and of which there is one a shard. */
static const char settled[] =
    "'tenant', 'api_key', 'model', 'archive', 'deployment', "
    "'environment', 'environment_target', 'shard', 'switch', 'migration', 'pool_pace', 'secret', "
    "'sql_login', 'file', 'bulk', 'bulk_chunk', 'schedule', 'schedule_tick', 'topic_binding', "
    "'topic_position', 'care_lock', 'training_project', 'training_job', 'training_node', "
    "'training_trainer', "
    "'training_plan', 'training_event', 'training_checkpoint', 'training_file', 'training_log', "
    "'training_metric', 'training_archive', 'training_lineage', 'hour_mark'";

static const char days_of_work[] =
    "SET search_path = headrace;"
    "INSERT INTO tenant (id, name) VALUES ('t', 't');"
    "INSERT INTO model (id, tenant, name) VALUES ('m', 't', 'm');"
    "INSERT INTO deployment (id, model_id, name, number, pool, shard, engine) VALUES "
    "('d', 'm', 'd', 1, 'p', 0, 'sim');"
    "INSERT INTO shard (id, epoch) VALUES (0, 1);"
    "SELECT partitions_make(now() - n * interval '1 day') FROM generate_series(0, " DAYS ") n;"
    "CREATE TEMP TABLE work AS SELECT n, at, (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint),"
    " 12, '0') || '7abc8000' || lpad(to_hex(n), 12, '0'))::uuid AS id FROM (SELECT d * 1000 + i AS "
    "n, now() - d * interval '1 day' AS at FROM generate_series(0, " DAYS
    ") d, generate_series(1, " ROWS_A_DAY ") i) w;"
    /* Of the oldest day, three are not over: one waits, one runs, one owes a delivery. */
    "INSERT INTO job (id, accepted_at, received_at, start_deadline_at, state_at, seq, run_limit_ms,"
    " queue_limit_ms, shard, state, rank, max_attempts, tenant, model, deployment, pool, "
    "input_digest, input_blob) SELECT id, at, at, at, at, n, 1, 1, 0, CASE n WHEN 10001 THEN 1 "
    "WHEN "
    "10002 THEN 2 WHEN 10003 THEN 3 ELSE 3 + n % 4 END, 1, 3, 't', 'm', 'd', 'p', sha256(''), 'x' "
    "FROM work;"
    "INSERT INTO gateway SELECT 'gw-' || n, 1, at FROM work WHERE n % 100 = 0;"
    "INSERT INTO job_input SELECT id, 'x' FROM work;"
    "INSERT INTO job_tag SELECT id, 'x' FROM work;"
    "INSERT INTO chain_run (run_id, deployment_id, token, depth, targets) SELECT id, 'd', 1, 0, "
    "'{}' "
    "FROM work;"
    "INSERT INTO chain_step SELECT id, 's', 0, 1, id FROM work;"
    "INSERT INTO chain_wait (run_id, step, round, approval, opened_at, due_at) SELECT id, 's', 1, "
    "true, at, at FROM work;"
    "INSERT INTO chain_cache (deployment_id, digest, job_id, stored_at) SELECT 'd', "
    "sha256(n::text::bytea), id, at FROM work;"
    "INSERT INTO chain_call (run_id, step, item, round, token, began_at) SELECT id, 's', 0, 1, 1, "
    "at FROM work;"
    "INSERT INTO planned (job_id, tenant, model, deployment, environment, key_prefix, run_at, "
    "record, canceled_at) SELECT id, 't', 'm', 'd', 'production', 'k', at, 'x', at FROM work;"
    "INSERT INTO topic_binding (id, tenant, name, topic, group_id, model, environment, format, "
    "max_attempts, queue_limit_ms, start_at, bad, created_by) VALUES ('b', 't', 'b', 'b', 'b', "
    "'m', "
    "'production', 'json', 1, 1, 'end', 'skip', 'a');"
    "INSERT INTO topic_position (binding_id, result, number, owner) VALUES ('b', false, 0, 'o');"
    "INSERT INTO topic_problem SELECT 'b', false, n::text, 'x', at FROM work;"
    "INSERT INTO topic_refusal SELECT 'b', 0, n, 'x', at FROM work;"
    "INSERT INTO topic_record SELECT id, 'b', 0, n FROM work;"
    "INSERT INTO job_result (job_id, round, token, output_size) SELECT id, 1, n, 1 FROM work;"
    "INSERT INTO attempt (job_id, token, boot, round, number, error_class, worker) "
    "SELECT id, n, 1, 1, 1, 0, 'w' FROM work;"
    "INSERT INTO delivery (job_id, round, shard, state, created_at, finished_at, tenant, model, "
    "url, webhook_id, record) SELECT id, 1, 0, CASE n WHEN 10003 THEN 1 ELSE 2 END, at, at, 't', "
    "'m', 'http://x', 'w', 'x' FROM work;"
    "INSERT INTO delivery_try (job_id, round, number, started_at, took_us) SELECT id, 1, 1, at, 1 "
    "FROM work;"
    "INSERT INTO flush (shard, epoch, number, at, intake_floor, outcome_floor, floor_at, "
    "published_epoch, published_number) SELECT 0, 1, 100000 - n, at, 1, 1, at, 1, 100000 - n - 3 "
    "FROM work;"
    "INSERT INTO command (shard, kind, job_id, asked_at) SELECT 0, 'cancel', id, at FROM work;"
    "INSERT INTO command_done (command_id, applied, epoch, number, done_at) SELECT id, true, 1, 1, "
    "asked_at FROM command WHERE id % 2 = 0;"
    "INSERT INTO job_hour SELECT at - interval '85 days', 't', 'm', n::text, 3, 0, 1, 1, 1, 1 FROM "
    "work;"
    "INSERT INTO queue_delta SELECT 0, 1, 'd', 'p', 1, 0, at - interval '1 minute' FROM work;"
    "INSERT INTO idempotency (tenant, key, job_id, fingerprint, deployment_id, created_at, "
    "expires_at) SELECT 't', n::text, id, sha256(''), 'd', at, at + interval '1 day' FROM work;"
    "INSERT INTO audit (at, tenant, actor, action, target) SELECT at, 't', 'a', 'X', 'x' FROM work;"
    "INSERT INTO replica (worker, deployment_id, pool, host, state, seen_at) SELECT 'w' || n, 'd', "
    "'p', 'h', 'STOPPED', at FROM work;"
    "SELECT device_tell('m' || n, jsonb_build_array(jsonb_build_object('uuid', 'GPU-' || n, "
    "'number', 0, 'name', 'x', 'capability', '8.0', 'memory_bytes', 1, 'used_bytes', 1, "
    "'promised_bytes', 1, 'free_bytes', 1, 'workers', 0, 'state', 'well', 'quarantines', 0, "
    "'context_faults', 0, 'hang_faults', 0, 'xid_faults', 0, 'oom_faults', 0, 'ecc_errors', 0))) "
    "FROM generate_series(1, 1000) n;"
    "UPDATE device SET seen_at = now() - interval '8 days';"
    "INSERT INTO webhook_secret (id, tenant, sealed, hint, retires_at) SELECT n::text, 't', 'x', "
    "'x', at FROM work;"
    "INSERT INTO webhook_endpoint (tenant, url, updated_at) SELECT 't', 'http://' || n, at FROM "
    "work;";

/* What broker_ledger.c sends, with its defaults, but for audit: two days instead of 400. Gateways
 * that are no more are for the others to remove. */
static const char care[] =
    "SET search_path = headrace;"
    "SELECT partitions_make(now());"
    "SELECT retention_drop('4 days');"
    "SELECT flush_drop();"
    "SELECT retention_sweep('4 days') + retention_sweep_control('4 days', '2 days');"
    "SELECT queue_compact();"
    "SELECT hours_fill();"
    "SELECT chain_cache_sweep() + chain_call_sweep('4 days');"
    "SELECT count(*) FROM planned_claim(now(), 1000);"
    "SELECT sum(gateway_lost(boot, beat)) FROM gateway;"
    "SELECT device_tell('h', '[]');"; /* an agent's */

static void counts_keep(struct pg_session *session, const char *table)
{
    char *sql = xasprintf(
        "CREATE TABLE public.%s AS SELECT c.relname::text AS name, (xpath('/row/n/text()', "
        "query_to_xml('SELECT count(*) AS n FROM headrace.' || c.relname, false, true, '')))[1]"
        "::text::bigint AS count, (SELECT sum(pg_total_relation_size(p.relid)) FROM "
        "pg_partition_tree(c.oid) p)::bigint AS size FROM pg_class c WHERE c.relnamespace = "
        "'headrace'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition",
        table);

    looker_script(session, sql);
    mem_free(&sql);
}

static void test_every_table_shrinks(void **state)
{
    struct pg_session *session = looker_open();
    struct pg_answer answer;
    char *sql;

    (void)state;
    looker_script(session, days_of_work);
    counts_keep(session, "before");
    looker_script(session, care);
    counts_keep(session, "after");
    sql = xasprintf("SELECT coalesce(string_agg(format('%%s: %%s rows, then %%s', b.name, b.count, "
                    "a.count), '; ' ORDER BY b.name), '') FROM public.before b JOIN public.after a "
                    "USING (name) "
                    "WHERE b.name NOT IN (%s) AND (b.count = 0 OR a.count > "
                    "CASE b.name WHEN 'queue_delta' THEN 1 WHEN 'flush' THEN 203 ELSE 603 END)",
                    settled);
    looker_query(session, sql, &answer);
    if (pg_c(&answer, 0, 0, 0)[0] != '\0')
        fail_msg("who empties these? %s", pg_c(&answer, 0, 0, 0));
    pg_answer_done(&answer);
    mem_free(&sql);
    looker_query(session,
                 "SELECT string_agg(format('%s %s->%s', b.name, b.size / 1024, a.size / 1024), ' ' "
                 "ORDER BY b.name) FROM public.before b JOIN public.after a USING (name) WHERE "
                 "b.size > a.size",
                 &answer);
    print_message("KiB that went: %s\n", pg_c(&answer, 0, 0, 0));
    pg_answer_done(&answer);
    pg_session_close(&session);
}

/* A day is dropped, what was not over is in DEFAULT, whole, and goes once it is over and old. */
static void test_stragglers_outlive_their_day(void **state)
{
    struct pg_session *session = looker_open();

    (void)state;
    looker_expect(session,
                  "SELECT string_agg(concat_ws(':', j.state, i.input IS NOT NULL, r.token, "
                  "d.state, t.number), ' ' ORDER BY j.id) FROM headrace.job_default j "
                  "LEFT JOIN headrace.job_input i ON i.job_id = j.id "
                  "LEFT JOIN headrace.job_result r ON r.job_id = j.id "
                  "LEFT JOIN headrace.delivery d ON d.job_id = j.id "
                  "LEFT JOIN headrace.delivery_try t ON t.job_id = j.id",
                  "1:t:10001:2:1 2:t:10002:2:1 3:t:10003:1:1");
    looker_script(session, "UPDATE headrace.job_default SET state = 3, state_at = now()");
    looker_script(session, care);
    looker_expect(session, "SELECT count(*)::text FROM headrace.job_default", "3");
    looker_script(session, "UPDATE headrace.job_default SET state_at = now() - interval '5 days'");
    looker_script(session, care);
    looker_expect(session, "SELECT count(*)::text FROM headrace.job_default", "1"); /* it owes */
    looker_script(session, "UPDATE headrace.delivery SET state = 2 WHERE state = 1");
    looker_script(session, care);
    looker_expect(session,
                  "SELECT concat_ws(' ', (SELECT count(*) FROM headrace.job_default), "
                  "(SELECT count(*) FROM headrace.job_input_default), "
                  "(SELECT count(*) FROM headrace.delivery_default), "
                  "(SELECT count(*) FROM headrace.delivery_try_default))",
                  "0 0 0 0");
    pg_session_close(&session);
}

static void expect_days(struct pg_session *session, const char *want)
{
    looker_expect(session,
                  "SELECT count(*)::text FROM headrace.blob_days_over(ARRAY[(now() - interval '10 "
                  "days')::date, (now() - interval '9 days')::date, (now() - interval '1 day')::"
                  "date, '2020-01-01'], interval '4 days')",
                  want);
}

/* Dropped is not enough: every shard must have read its intake beyond the day. */
static void test_blobs_of_a_day(void **state)
{
    struct pg_session *session = looker_open();

    (void)state;
    expect_days(session, "3");
    looker_script(session, "INSERT INTO headrace.shard (id, epoch) VALUES (1, 1)");
    expect_days(session, "0"); /* nobody knows how far it has read */
    looker_script(session,
                  "INSERT INTO headrace.flush (shard, epoch, number, intake_floor, outcome_floor, "
                  "floor_at, published_epoch, published_number) VALUES (1, 1, 1, 0, 0, now() - "
                  "interval '9 days 12 hours', 1, 0)");
    expect_days(session, "1"); /* 2020 */
    looker_script(
        session,
        "INSERT INTO headrace.flush (shard, epoch, number, intake_floor, outcome_floor, "
        "floor_at, published_epoch, published_number) VALUES (1, 1, 2, 0, 0, now(), 1, 0)");
    expect_days(session, "3");
    pg_session_close(&session);
}

/* What is asked about a job's blobs: a delivery that has no row yet is owed all the same. */
static void test_facts_of_blobs(void **state)
{
    struct pg_session *session = looker_open();

    (void)state;
    looker_script(session,
                  "CREATE TABLE public.few AS SELECT id FROM headrace.job ORDER BY id DESC "
                  "LIMIT 3;"
                  "DELETE FROM headrace.delivery WHERE job_id IN (SELECT id FROM "
                  "public.few);"
                  "UPDATE headrace.job SET state = 3, webhook_url = 'http://x' WHERE id = "
                  "(SELECT max(id::text)::uuid FROM public.few);"
                  "UPDATE headrace.job SET state = 6, webhook_url = 'http://x' WHERE id = "
                  "(SELECT min(id::text)::uuid FROM public.few)");
    looker_expect(session,
                  "SELECT string_agg(delivery_open::text, ' ' ORDER BY id) FROM "
                  "headrace.blob_facts(ARRAY(SELECT id FROM public.few))",
                  "false false true");
    pg_session_close(&session);
}

static int setup(void **state)
{
    struct err err = {0};

    (void)state;
    script_once("DROP SCHEMA IF EXISTS headrace, headrace_v1, headrace_tenant_v1 CASCADE");
    return migrate_run(looker_url(), MIGRATE_APPLY, NULL, NULL, &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_table_shrinks), /* the others go on from what it leaves */
        cmocka_unit_test(test_stragglers_outlive_their_day),
        cmocka_unit_test(test_blobs_of_a_day),
        cmocka_unit_test(test_facts_of_blobs),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
