/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: connections, commits and servers get lost, and the ledger's answers stay true: a flush
 * whose commit got lost is answered by what the ledger says, a takeover waits for the old owner's
 * open flush, or ends its session. Method: tests/lib/postgres.sh starts a server; a second session
 * holds locks and kills backends.
 */

#include <inttypes.h>
#include <signal.h>

#include "tests/stack/store_world.h"

static void backends_kill(struct world *world)
{
    script(world, "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                  "WHERE application_name LIKE 'headrace shard=3 %'");
}

/* The connection is lost before the commit: the same flush may be sent again. */
static void test_lost_before_the_commit(void **state)
{
    struct world *world = *state;
    struct job_spec *spec;
    struct flush_job job;
    struct flush flush;
    struct flush_ask ask;

    take_over(world);
    spec = spec_of(world, 1, "acme", false);
    job = job_of(spec, JOB_SUCCEEDED);
    flush = flush_of(world, 1, &job, 1);
    script(world, "BEGIN; LOCK TABLE flush IN ACCESS EXCLUSIVE MODE");
    send_flush(world, &flush, &ask);
    hear_nothing(world, 100);
    backends_kill(world);
    script(world, "ROLLBACK");
    hear(world);
    assert_int_equal(world->verdict, FLUSH_RETRY);
    expect(world, "SELECT count(*)::text FROM job", "0");
    flush_now(world, 1, &job, 1);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    assert_true(world->applied[0]);
    expect(world, "SELECT count(*)::text FROM flush", "1");
    job_spec_unref(&spec);
}

/* The commit happens, its answer is lost: a transaction that asks for a synchronous standby, which
 * is not there, waits in COMMIT after it has committed; there its backend is killed. */
static void test_lost_after_the_commit(void **state)
{
    struct world *world = *state;
    struct job_spec *specs[2];
    struct flush_job jobs[2];
    struct flush flush;
    struct flush_ask ask;

    take_over(world);
    for (uint32_t i = 0; i < 2; i++) {
        specs[i] = spec_of(world, i, "acme", false);
        jobs[i] = job_of(specs[i], JOB_SUCCEEDED);
    }
    flush_now(world, 1, jobs, 1); /* job 0 is final already: it will not be applied again */
    jobs[0].state_us += 5;
    flush = flush_of(world, 2, jobs, 2);
    script(world, "CREATE FUNCTION wait_in_commit() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
                  "PERFORM set_config('synchronous_commit', 'on', true); RETURN NULL; END$$");
    script(world, "CREATE TRIGGER wait_in_commit AFTER INSERT ON flush "
                  "FOR EACH STATEMENT EXECUTE FUNCTION wait_in_commit()");
    send_flush(world, &flush, &ask);
    for (int tries = 0;
         !looker_is_true(world->session, "SELECT count(*) = 1 FROM pg_stat_activity WHERE "
                                         "wait_event = 'SyncRep' AND application_name LIKE "
                                         "'headrace shard=3 %'");
         tries++) {
        assert_true(tries < PATIENCE_MS / 10);
        hear_nothing(world, 10);
    }
    backends_kill(world);
    script(world, "DROP FUNCTION wait_in_commit CASCADE");
    hear(world);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    assert_false(world->applied[0]);
    assert_true(world->applied[1]);
    expect(world, "SELECT count(*)::text FROM flush", "2");
    job_spec_unref(&specs[0]);
    job_spec_unref(&specs[1]);
}

/* The server itself goes down in mid-flush: whatever the verdict says is what the ledger has. */
static void test_the_server_crashes(void **state)
{
    struct world *world = *state;
    struct job_spec *specs[200];
    struct flush_job jobs[200];
    struct flush flush;
    struct flush_ask ask;
    struct pg_answer answer;
    int64_t pid;

    take_over(world);
    looker_query(world->session,
                 "SELECT pid::text FROM pg_stat_activity WHERE application_name LIKE "
                 "'headrace shard=3 %'",
                 &answer);
    assert_int_equal(sscanf(pg_c(&answer, 0, 0, 0), "%" SCNd64, &pid), 1);
    pg_answer_done(&answer);
    for (uint32_t i = 0; i < 200; i++) {
        specs[i] = spec_of(world, i, "acme", false);
        jobs[i] = job_of(specs[i], JOB_QUEUED);
    }
    flush = flush_of(world, 1, jobs, 200);
    send_flush(world, &flush, &ask);
    hear_nothing(world, 1);
    assert_int_equal(kill((pid_t)pid, SIGKILL), 0); /* the postmaster restarts all of them */
    hear(world);
    pg_session_close(&world->session);
    world->session = looker_open();
    if (world->verdict == FLUSH_RETRY) {
        expect(world, "SELECT count(*)::text FROM job", "0");
        flush_now(world, 1, jobs, 200);
    }
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    assert_true(world->applied[0] && world->applied[199]);
    expect(world, "SELECT count(*)::text FROM job", "200");
    expect(world, "SELECT count(*)::text FROM flush", "1");
    for (size_t i = 0; i < 200; i++)
        job_spec_unref(&specs[i]);
}

/* The raise waits for the open flush of the old owner, and then sees what it committed. */
static void test_takeover_waits_for_the_open_flush(void **state)
{
    struct world *world = *state;
    char *sql;

    take_over(world);
    sql = xasprintf("BEGIN; SELECT flush_guard(%d::smallint, %u);"
                    "INSERT INTO flush (shard, epoch, number, intake_floor, outcome_floor, "
                    "floor_at, published_epoch, published_number) "
                    "VALUES (%d, %u, 1, 500, 600, now(), 0, 0)",
                    SHARD, world->epoch, SHARD, world->epoch);
    script(world, sql);
    mem_free(&sql);
    world->done = false;
    store_takeover(world->store, SHARD, on_takeover, world);
    hear_nothing(world, 300);
    script(world, "COMMIT");
    hear(world);
    assert_int_equal(world->err_code, 0);
    assert_int_equal(world->takeover->intake_floor, 500);
    assert_int_equal(world->takeover->outcome_floor, 600);
}

/* An owner whose host is gone in mid-flush holds the row: its session is ended (PROTOCOL 6). */
static void test_takeover_ends_a_vanished_owner(void **state)
{
    struct world *world = *state;
    const struct pg_options options = {.url = looker_url(),
                                       .application = "headrace shard=3 epoch=5"};
    struct pg_session *vanished;
    struct err err = {0};
    char *sql;

    take_over(world);
    sql = xasprintf("BEGIN; SELECT flush_guard(%d::smallint, %u)", SHARD, world->epoch);
    assert_int_equal(pg_session_open(&options, &vanished, &err), 0);
    assert_int_equal(pg_session_script(vanished, sql, &err), 0);
    mem_free(&sql);
    take_over(world);
    assert_true(pg_session_script(vanished, "COMMIT", &err) < 0);
    pg_session_close(&vanished);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_lost_before_the_commit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lost_after_the_commit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_server_crashes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_takeover_waits_for_the_open_flush, setup, teardown),
        cmocka_unit_test_setup_teardown(test_takeover_ends_a_vanished_owner, setup, teardown),
    };

    return cmocka_run_group_tests(tests, group_setup, NULL);
}
