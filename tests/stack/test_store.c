/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: the ledger's promises at a real server. Only the newest epoch writes; a row is written by
 * the token that may; a bad row is found and named; cursors only move forward; what was not
 * published is found again. What gets lost on the way: test_store_lost.c.
 * Method: tests/lib/postgres.sh starts a server; each test begins with an empty ledger. Nothing
 * sleeps: a second session looks.
 */

#include "tests/stack/store_world.h"

static void test_first_takeover(void **state)
{
    struct world *world = *state;

    take_over(world);
    assert_true(world->epoch >= 57000000); /* seconds since 2025 */
    assert_int_equal(world->takeover->intake_floor, -1);
    assert_int_equal(world->takeover->outcome_floor, -1);
    assert_int_equal(world->takeover->row_count, 0);
    assert_int_equal(world->takeover->lane_count, 0);
    assert_int_equal(world->takeover->unpublished_count, 0);
}

static void test_the_epoch_only_rises(void **state)
{
    struct world *world = *state;
    uint32_t before;

    take_over(world);
    before = world->epoch;
    take_over(world);
    assert_true(world->epoch > before);
    script(world, "UPDATE shard SET epoch = 2000000000"); /* a clock that was wrong once */
    take_over(world);
    assert_int_equal(world->epoch, 2000000001);
}

static void spec_check(const struct job_spec *spec, const struct job_spec *wanted)
{
    assert_true(spec->seq == 1 && spec->accepted_us == wanted->accepted_us);
    assert_true(spec->start_deadline_us == wanted->start_deadline_us);
    assert_true(spec->total_deadline_us == wanted->total_deadline_us);
    assert_int_equal(spec->rank, JOB_RANK_PRIORITY_1);
    assert_int_equal(spec->slot_count, 2);
    assert_memory_equal(&spec->submit.id, &wanted->submit.id, WIRE_ID_SIZE);
    assert_true(wire_text_equal(spec->submit.tenant, "acme"));
    assert_true(wire_text_equal(spec->submit.environment, "production"));
    assert_true(wire_text_equal(spec->submit.pool, "pool-d1"));
    assert_true(wire_text_equal(spec->submit.webhook_url, "https://example.org/hook"));
    assert_true(wire_text_equal(spec->submit.idempotency_key, "key-1"));
    assert_true(wire_text_equal(spec->submit.gateway, "g1"));
    assert_true(wire_text_equal(spec->submit.key_prefix, "hr_abc"));
    assert_true(wire_text_equal(spec->submit.input_type, "image/png"));
    assert_true(wire_text_equal(spec->submit.route, "POST /v1/x?y=%20"));
    assert_true(spec->submit.stream);
    assert_int_equal(spec->submit.trace.size, 55);
    assert_int_equal(spec->submit.input.size, 13);
    assert_memory_equal(spec->submit.input.bytes, "{\"input\":\"x\"}", 13);
    assert_memory_equal(spec->submit.input_digest.bytes, digest, 32);
    assert_int_equal(spec->submit.max_attempts, 3);
    assert_int_equal(spec->submit.run_limit_ms, 60000);
    assert_true(spec->submit.received_us == ACCEPTED_US - 5);
}

static void test_everything_of_a_row_comes_back(void **state)
{
    struct world *world = *state;
    struct job_spec *specs[2];
    struct flush_job jobs[2];
    struct flush_attempt attempt;
    struct flush flush;
    struct flush_ask ask;
    const struct ledger_row *row;

    take_over(world);
    specs[0] = spec_of(world, 1, "acme", false);
    specs[1] = spec_of(world, 2, "acme", true);
    jobs[0] = job_of(specs[0], JOB_QUEUED);
    jobs[0].attempt_count = 2;
    jobs[0].fence = TOKEN_MAKE(world->epoch, 7);
    jobs[0].user_failures = 1;
    jobs[0].oom_failures = 2;
    jobs[0].lost_failures = 3;
    jobs[0].due_us = ACCEPTED_US + 77;
    jobs[1] = job_of(specs[1], JOB_IN_PROGRESS);
    jobs[1].attempt_count = 1;
    jobs[1].token = TOKEN_MAKE(world->epoch, 8);
    attempt = (struct flush_attempt){.job = id_of(1),
                                     .round = 1,
                                     .number = 2,
                                     .token = TOKEN_MAKE(world->epoch, 7),
                                     .boot = 99,
                                     .worker = T("w1"),
                                     .device = T("cpu"),
                                     .error_message = T("broken \xff\0 text"),
                                     .dispatched_us = ACCEPTED_US,
                                     .started_us = ACCEPTED_US + 1,
                                     .ended_us = ACCEPTED_US + 2,
                                     .error_class = ERROR_CLASS_OOM,
                                     .batch_count = 4};
    flush = flush_of(world, 1, jobs, 2);
    flush.attempts = &attempt;
    flush.attempt_count = 1;
    send_flush(world, &flush, &ask);
    hear(world);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    assert_true(world->applied[0] && world->applied[1]);
    expect(world, "SELECT error_message || number || batch_count FROM attempt", "broken ?? text24");

    take_over(world);
    assert_int_equal(world->takeover->intake_floor, 11);
    assert_int_equal(world->takeover->outcome_floor, 21);
    assert_int_equal(world->takeover->row_count, 2);
    assert_int_equal(world->takeover->lane_count, 0);
    row = &world->takeover->rows[0];
    assert_int_equal(row->state, JOB_QUEUED);
    assert_int_equal(row->attempt_count, 2);
    assert_true(row->fence == jobs[0].fence);
    assert_true(row->token == 0);
    assert_int_equal(row->user_failures, 1);
    assert_int_equal(row->oom_failures, 2);
    assert_int_equal(row->lost_failures, 3);
    assert_true(row->due_us == ACCEPTED_US + 77);
    assert_int_equal(world->takeover->rows[1].state, JOB_IN_PROGRESS);
    assert_true(world->takeover->rows[1].token == jobs[1].token);
    assert_int_equal(world->takeover->rows[1].spec->rank, JOB_RANK_SYNC);
    spec_check(row->spec, specs[0]);
    job_spec_unref(&specs[0]);
    job_spec_unref(&specs[1]);
}

/* GUARD epoch: what a zombie sends after the raise is refused, and writes nothing. */
static void test_a_stale_owner_writes_nothing(void **state)
{
    struct world *world = *state;
    struct store *zombie = world->store;
    struct job_spec *spec;
    struct flush_job job;
    uint32_t stale;

    take_over(world);
    stale = world->epoch;
    world->store = open_store(world);
    take_over(world);
    assert_true(world->epoch > stale);
    spec = spec_of(world, 1, "acme", false);
    job = job_of(spec, JOB_SUCCEEDED);
    {
        struct store *current = world->store;
        uint32_t epoch = world->epoch;

        world->store = zombie;
        world->epoch = stale;
        flush_now(world, 1, &job, 1);
        assert_int_equal(world->verdict, FLUSH_STALE);
        expect(world, "SELECT count(*)::text FROM job", "0");
        expect(world, "SELECT count(*)::text FROM flush", "0");
        store_close(&world->store);
        world->store = current;
        world->epoch = epoch;
    }
    flush_now(world, 1, &job, 1);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    job_spec_unref(&spec);
}

static void test_insert_of_a_known_job_is_not_applied(void **state)
{
    struct world *world = *state;
    struct job_spec *specs[2];
    struct flush_job jobs[2];

    take_over(world);
    specs[0] = spec_of(world, 1, "acme", false);
    specs[1] = spec_of(world, 2, "acme", false);
    jobs[0] = job_of(specs[0], JOB_SUCCEEDED);
    flush_now(world, 1, jobs, 1);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    jobs[0].output = B("another");
    jobs[1] = job_of(specs[1], JOB_SUCCEEDED);
    flush_now(world, 2, jobs, 2);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    assert_false(world->applied[0]);
    assert_true(world->applied[1]);
    expect(world,
           "SELECT string_agg(convert_from(output, 'UTF8'), ' ' ORDER BY job_id) "
           "FROM job_result",
           "{\"data\":[1]} {\"data\":[1]}");
    job_spec_unref(&specs[0]);
    job_spec_unref(&specs[1]);
}

/* GUARD fence < token, and: final stays final. */
static void test_guards_of_updates(void **state)
{
    struct world *world = *state;
    static const struct {
        const char *what;
        uint32_t fence_before; /* n of the row's fence */
        enum job_state before;
        enum job_state after;
        uint32_t final_token, fence; /* n of the update's */
        bool applied;
    } table[] = {
        {"its token finishes it", 4, JOB_IN_PROGRESS, JOB_SUCCEEDED, 5, 5, true},
        {"an ended token does not", 5, JOB_IN_PROGRESS, JOB_SUCCEEDED, 5, 5, false},
        {"an older token does not", 5, JOB_QUEUED, JOB_SUCCEEDED, 4, 5, false},
        {"canceled without a token", 5, JOB_QUEUED, JOB_CANCELED, 0, 5, true},
        {"succeeded is not canceled", 5, JOB_SUCCEEDED, JOB_CANCELED, 0, 5, false},
        {"canceled does not succeed", 5, JOB_CANCELED, JOB_SUCCEEDED, 6, 6, false},
        {"failed does not run", 5, JOB_FAILED, JOB_IN_PROGRESS, 0, 5, false},
        {"back to waiting", 4, JOB_IN_PROGRESS, JOB_QUEUED, 0, 5, true},
        {"the fence does not fall", 6, JOB_IN_PROGRESS, JOB_QUEUED, 0, 5, false},
    };
    struct job_spec *specs[COUNT_OF(table)];
    struct flush_job jobs[COUNT_OF(table)];

    take_over(world);
    for (uint32_t i = 0; i < COUNT_OF(table); i++) {
        specs[i] = spec_of(world, i, "acme", false);
        jobs[i] = job_of(specs[i], table[i].before);
        jobs[i].attempt_count = 1;
        jobs[i].fence = TOKEN_MAKE(world->epoch, table[i].fence_before);
    }
    flush_now(world, 1, jobs, COUNT_OF(table));
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    for (uint32_t i = 0; i < COUNT_OF(table); i++) {
        jobs[i].action = FLUSH_UPDATE;
        jobs[i].state = table[i].after;
        jobs[i].fence = TOKEN_MAKE(world->epoch, table[i].fence);
        jobs[i].final_token = table[i].final_token == 0
                                  ? 0
                                  : TOKEN_MAKE(world->epoch, table[i].final_token);
        jobs[i].output = B("second");
        jobs[i].output_size = 6;
    }
    flush_now(world, 2, jobs, COUNT_OF(table));
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        if (world->applied[i] != table[i].applied)
            fail_msg("%s: applied is %d", table[i].what, world->applied[i]);
    }
    /* One result by the update that was applied, one by the row that was inserted as final. */
    expect(world,
           "SELECT string_agg(convert_from(output, 'UTF8'), ' ' ORDER BY job_id) "
           "FROM job_result",
           "second {\"data\":[1]}");
    for (size_t i = 0; i < COUNT_OF(table); i++)
        job_spec_unref(&specs[i]);
}

/* Counters equal the sums over the rows (PROTOCOL, invariant 18). */
static void test_queue_deltas(void **state)
{
    static const char sums[] =
        "SELECT string_agg(concat_ws(',', rank || ':' || w, r, d, b), ' ' ORDER BY rank) FROM "
        "(SELECT rank, sum(waiting) AS w, sum(running) AS r, sum(delayed) AS d, sum(bytes) AS b "
        "FROM queue_delta GROUP BY rank) x";
    struct world *world = *state;
    struct job_spec *specs[6];
    struct flush_job jobs[6];

    take_over(world);
    for (uint32_t i = 0; i < 6; i++) {
        specs[i] = spec_of(world, i, "acme", i == 0);
        jobs[i] = job_of(specs[i], i < 4 ? JOB_QUEUED : JOB_SUCCEEDED);
    }
    flush_now(world, 1, jobs, 6);
    flush_now(world, 2, jobs, 6); /* a repeat changes nothing */
    for (uint32_t i = 0; i < 4; i++) {
        jobs[i].action = FLUSH_UPDATE;
        jobs[i].state = i < 2 ? JOB_IN_PROGRESS : JOB_CANCELED;
        jobs[i].attempt_count = i < 2;
        jobs[i].token = TOKEN_MAKE(world->epoch, i + 1);
    }
    flush_now(world, 3, jobs, 3);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    expect(world, sums, "0:0,1,0,13 2:1,1,0,26");
    jobs[1].state = JOB_QUEUED; /* a retry that is not due, and then one that has ended */
    jobs[1].due_us = ACCEPTED_US + 5000000;
    jobs[1].fence = jobs[1].token;
    flush_now(world, 4, jobs + 1, 1);
    expect(world, sums, "0:0,1,0,13 2:2,0,1,26");
    jobs[1].state = JOB_EXPIRED;
    jobs[1].due_us = 0;
    flush_now(world, 5, jobs + 1, 1);
    expect(world, sums, "0:0,1,0,13 2:1,0,0,13");
    for (size_t i = 0; i < 6; i++)
        job_spec_unref(&specs[i]);
}

#define HOUR_US 3600000000u
#define HOURS                                                                                      \
    "SELECT string_agg(concat_ws(',', to_char(hour, 'HH24'), tenant || '/' || model || '/' || "    \
    "deployment, state, error_class, jobs, attempts, round(wait_seconds::numeric, 3), "            \
    "round(run_seconds::numeric, 3)), ' ' ORDER BY hour, tenant COLLATE \"C\", state) FROM "       \
    "job_hour"

/* What becomes final is added up by hour and end, once, also of a broker that does not tell. */
static void test_hours(void **state)
{
    struct world *world = *state;
    struct job_spec *specs[6];
    struct flush_job jobs[6];

    take_over(world);
    for (uint32_t i = 0; i < 6; i++) {
        specs[i] = spec_of(world, i, i == 4 ? "b\xff" : "acme", false);
        jobs[i] = job_of(specs[i], i == 5 ? JOB_QUEUED : JOB_SUCCEEDED);
        jobs[i].attempt_count = i + 1;
        jobs[i].started_us = ACCEPTED_US + i + 500000;
        jobs[i].state_us = ACCEPTED_US + i + 2500000 + (i == 3 ? HOUR_US : 0);
    }
    jobs[2].state = JOB_FAILED;
    jobs[2].error_class = jobs[4].error_class = ERROR_CLASS_UNSTORABLE;
    jobs[4].state = JOB_FAILED;
    flush_now(world, 1, jobs, 6);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    expect(world, "SELECT hours_fill()", "1");
    expect(world, HOURS,
           "00,acme/minilm/d1,3,0,2,3,1.000,4.000 00,acme/minilm/d1,4,13,1,3,0.500,2.000 "
           "00,b?/minilm/d1,4,13,1,5,0.500,2.000 01,acme/minilm/d1,3,0,1,4,0.500,3602.000");
    expect(world, "SELECT hours_fill()", "0");
    jobs[5].action = FLUSH_UPDATE;
    jobs[5].state = JOB_CANCELED;
    jobs[5].started_us = 0;
    jobs[5].state_us = ACCEPTED_US + 5 + 1000000;
    flush_now(world, 2, jobs + 5, 1);
    script(world, "UPDATE job SET started_at = NULL WHERE state = 6; UPDATE flush SET end_names = "
                  "NULL, end_numbers = NULL WHERE number = 2");
    expect(world, "SELECT hours_fill(true)", "1");
    expect(world,
           "SELECT concat_ws(',', jobs, attempts, wait_seconds, run_seconds) FROM job_hour "
           "WHERE state = 6",
           "1,6,1,0");
    for (size_t i = 0; i < 6; i++)
        job_spec_unref(&specs[i]);
}

/* A job of any value at all is stored or refused, but never takes others with it. */
static void test_halving_finds_the_row(void **state)
{
    struct world *world = *state;
    enum { COUNT = 37 };
    static const size_t bad_rows[] = {0, 1, 17, 35, 36};
    struct job_spec *specs[COUNT];
    struct flush_job jobs[COUNT];

    take_over(world);
    for (uint32_t i = 0; i < COUNT; i++) {
        specs[i] = spec_of(world, i, "acme", false);
        jobs[i] = job_of(specs[i], JOB_QUEUED);
    }
    for (size_t b = 0; b < COUNT_OF(bad_rows); b++) {
        struct job_spec *bad = specs[bad_rows[b]];
        struct wire_text good = bad->submit.model;

        bad->submit.model = T("a NUL \0 in it");
        flush_now(world, 1, jobs, COUNT);
        assert_int_equal(world->verdict, FLUSH_REFUSED);
        assert_int_equal(world->refused_index, bad_rows[b]);
        if (strstr(world->why, "(22021)") == NULL)
            fail_msg("%s", world->why);
        expect(world, "SELECT count(*)::text FROM job", "0");
        bad->submit.model = good;
    }
    /* As its owner sends it again: failed, and stored. */
    specs[5]->submit.model = T("\xff NUL \0");
    specs[5]->submit.received_us = INT64_MAX / 2;
    specs[5]->submit.input_digest.size = 5;
    jobs[5].state = JOB_FAILED;
    jobs[5].error_class = ERROR_CLASS_UNSTORABLE;
    flush_now(world, 1, jobs, COUNT);
    expect(world, "SELECT model FROM job WHERE state = 4", "? NUL ?");
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    expect(world, "SELECT count(*)::text FROM job", "37");
    for (size_t i = 0; i < COUNT; i++)
        job_spec_unref(&specs[i]);
}

/* Numbers of any size are stored, cut to what their column holds. */
/* GUARD chain: a standby that lacks the newest flush has lost its rows too; the owner that wrote
 * them must begin anew, from the offsets that went back with them. */
static void test_a_flush_follows_the_one_before_it(void **state)
{
    struct world *world = *state;
    struct job_spec *spec;
    struct flush_job job;

    take_over(world);
    spec = spec_of(world, 1, "acme", false);
    job = job_of(spec, JOB_SUCCEEDED);
    flush_now(world, 1, NULL, 0);
    flush_now(world, 2, NULL, 0);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    script(world, "DELETE FROM flush WHERE number = 2"); /* as the failover did */
    flush_now(world, 3, &job, 1);
    assert_int_equal(world->verdict, FLUSH_STALE);
    expect(world, "SELECT count(*)::text FROM job", "0");
    expect(world, "SELECT count(*) || ' ' || max(number) FROM flush", "1 1");
    take_over(world);
    assert_int_equal(world->takeover->intake_floor, 11);
    job_spec_unref(&spec);
}

static void test_numbers_over_their_column(void **state)
{
    struct world *world = *state;
    struct job_spec *spec;
    struct flush_job job;

    take_over(world);
    spec = spec_of(world, 1, "acme", false);
    spec->submit.max_attempts = UINT64_MAX;
    spec->submit.max_delay_ms = UINT64_MAX;
    spec->submit.input_size = UINT64_MAX;
    job = job_of(spec, JOB_QUEUED);
    job.attempt_count = UINT32_MAX;
    flush_now(world, 1, &job, 1);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    expect(world,
           "SELECT concat_ws(' ', max_attempts, max_delay_ms, input_size, attempt_count) "
           "FROM job",
           "32767 2147483647 9223372036854775807 32767");
    job_spec_unref(&spec);
}

/* An id whose day has no partition goes to DEFAULT. */
static void test_any_day(void **state)
{
    struct world *world = *state;
    struct job_spec *spec;
    struct flush_job job;

    take_over(world);
    spec = spec_of(world, 1, "acme", false);
    memset(spec->submit.id.bytes, 0xff, 6);
    job = job_of(spec, JOB_QUEUED);
    flush_now(world, 1, &job, 1);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    expect(world, "SELECT count(*)::text FROM job_default", "1");
    job.action = FLUSH_UPDATE;
    job.state = JOB_CANCELED;
    flush_now(world, 2, &job, 1);
    assert_true(world->applied[0]);
    job_spec_unref(&spec);
}

/* GUARD forward-only cursor: pages of a lane, in order of arrival; other lanes stay out. */
static void test_loads_move_forward(void **state)
{
    struct world *world = *state;
    struct job_spec *specs[30];
    struct flush_job jobs[30];
    struct ledger_lane lane = {0};
    uint64_t last = 0;
    size_t total = 0;

    take_over(world);
    for (uint32_t i = 0; i < 30; i++) {
        specs[i] = spec_of(world, i + 1, i % 3 == 0 ? "acme" : "zeta", false);
        jobs[i] = job_of(specs[i], JOB_QUEUED);
    }
    jobs[0].attempt_count = 1; /* no lane has it: it is loaded at takeover */
    flush_now(world, 1, jobs, 30);
    take_over(world);
    assert_int_equal(world->takeover->row_count, 1);
    assert_int_equal(world->takeover->lane_count, 2);
    assert_string_equal(world->takeover->lanes[0].tenant, "acme");
    assert_string_equal(world->takeover->lanes[1].tenant, "zeta");
    assert_string_equal(world->takeover->lanes[1].pool, "pool-d1");
    assert_int_equal(world->takeover->lanes[1].rank, JOB_RANK_PRIORITY_1);
    lane = world->takeover->lanes[1];
    do {
        world->done = false;
        store_load(world->store, SHARD, &lane, 6, on_rows, world);
        hear(world);
        assert_int_equal(world->err_code, 0);
        for (size_t i = 0; i < world->row_count; i++) {
            assert_true(world->rows[i].spec->seq > last);
            assert_true(wire_text_equal(world->rows[i].spec->submit.tenant, "zeta"));
            last = world->rows[i].spec->seq;
        }
        total += world->row_count;
        lane.after_seq = (int64_t)last;
    } while (!world->complete);
    assert_int_equal(total, 20);
    for (size_t i = 0; i < 30; i++)
        job_spec_unref(&specs[i]);
}

static size_t due_page(struct world *world, struct ledger_due *due, uint32_t limit)
{
    world->done = false;
    store_due(world->store, SHARD, due, limit, on_due, world);
    hear(world);
    assert_int_equal(world->err_code, 0);
    if (world->row_count > 0) {
        const struct job_spec *last = world->rows[world->row_count - 1].spec;

        due->after_us = last->start_deadline_us;
        due->after_seq = (int64_t)last->seq;
    }
    return world->row_count;
}

/* Pages of what is due, by the earlier deadline; what is not due, runs or is over stays out. */
static void test_what_is_due_comes_by_deadline(void **state)
{
    struct world *world = *state;
    struct ledger_due due = {.upto_us = ACCEPTED_US + 600000000 + 20};
    struct job_spec *specs[30];
    struct flush_job jobs[30];

    take_over(world);
    for (uint32_t i = 0; i < 30; i++) { /* job i + 1 is due at upto - 20 + i + 1 */
        specs[i] = spec_of(world, i + 1, i % 3 == 0 ? "acme" : "zeta", i % 2 == 0);
        jobs[i] = job_of(specs[i], i == 4 ? JOB_SUCCEEDED : i == 5 ? JOB_IN_PROGRESS : JOB_QUEUED);
    }
    flush_now(world, 1, jobs, 30);
    script(world, "UPDATE job SET total_deadline_at = start_deadline_at - interval '1 second' "
                  "WHERE seq = 30");
    assert_int_equal(due_page(world, &due, 6), 6);
    assert_int_equal(world->rows[0].spec->seq, 30); /* its other deadline is the earlier one */
    assert_int_equal(world->rows[1].spec->seq, 1);
    assert_int_equal(world->rows[5].spec->seq, 7);
    assert_int_equal(world->rows[5].spec->submit.input.size, 0);
    assert_true(
        wire_text_equal(world->rows[5].spec->submit.webhook_url, "https://example.org/hook"));
    assert_false(world->complete);
    script(world, "UPDATE job SET state = 6 WHERE seq = 8");
    assert_int_equal(due_page(world, &due, 20), 12);
    assert_int_equal(world->rows[0].spec->seq, 9);
    assert_int_equal(world->rows[11].spec->seq, 20);
    assert_true(world->complete);
    assert_int_equal(due_page(world, &due, 20), 0);
    for (size_t i = 0; i < 30; i++)
        job_spec_unref(&specs[i]);
}

static void test_lookup_finds_all_states(void **state)
{
    struct world *world = *state;
    struct job_spec *specs[3];
    struct flush_job jobs[3];
    struct wire_id ids[4];

    take_over(world);
    for (uint32_t i = 0; i < 3; i++) {
        specs[i] = spec_of(world, i, "acme", false);
        jobs[i] = job_of(specs[i], i == 1 ? JOB_SUCCEEDED : JOB_QUEUED);
        ids[i] = specs[i]->submit.id;
    }
    ids[3] = id_of(1000);
    flush_now(world, 1, jobs, 3);
    world->done = false;
    store_lookup(world->store, ids, 4, on_rows, world);
    hear(world);
    assert_int_equal(world->err_code, 0);
    assert_int_equal(world->row_count, 3);
    world->done = false;
    store_lookup(world->store, ids, 0, on_rows, world);
    hear(world);
    assert_int_equal(world->row_count, 0);
    for (size_t i = 0; i < 3; i++)
        job_spec_unref(&specs[i]);
}

/* GUARD outbox: finals above the mark are found by the next owner, from the committed rows. */
static void test_unpublished_finals_are_found(void **state)
{
    struct world *world = *state;
    struct job_spec *specs[4];
    struct flush_job jobs[4];
    struct flush flush;
    struct flush_ask ask;
    const struct ledger_final *final;

    take_over(world);
    for (uint32_t i = 0; i < 4; i++) {
        specs[i] = spec_of(world, i, "acme", false);
        jobs[i] = job_of(specs[i], JOB_SUCCEEDED);
    }
    jobs[3].state = JOB_FAILED;
    jobs[3].error_class = ERROR_CLASS_MODEL_ERROR;
    jobs[3].error_message = T("it broke");
    jobs[3].output = B("no");
    jobs[3].output_size = 2;
    jobs[3].http_status = 503;
    jobs[3].attempt_count = 3;
    flush_now(world, 1, &jobs[0], 1);
    flush_now(world, 2, &jobs[1], 1);
    flush = flush_of(world, 3, &jobs[2], 2);
    flush.published_epoch = world->epoch;
    flush.published_number = 1;
    send_flush(world, &flush, &ask);
    hear(world);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    take_over(world);
    assert_int_equal(world->takeover->published_number, 1);
    assert_int_equal(world->takeover->unpublished_count, 3);
    final = &world->takeover->unpublished[0];
    assert_memory_equal(&final->completed.id, &specs[1]->submit.id, WIRE_ID_SIZE);
    assert_int_equal(final->completed.state, JOB_SUCCEEDED);
    assert_int_equal(final->completed.output.size, 12);
    assert_true(wire_text_equal(final->completed.output_type, "text/plain"));
    assert_int_equal(final->completed.http_status, 201);
    assert_true(wire_text_equal(final->gateway, "g1"));
    assert_true(wire_text_equal(final->completed.webhook_url, "https://example.org/hook"));
    assert_true(final->completed.accepted_us == specs[1]->accepted_us);
    assert_true(final->completed.finished_us == ACCEPTED_US + 1000);
    final = &world->takeover->unpublished[2];
    assert_int_equal(final->completed.state, JOB_FAILED);
    assert_int_equal(final->completed.error_class, ERROR_CLASS_MODEL_ERROR);
    assert_true(wire_text_equal(final->completed.error_message, "it broke"));
    assert_int_equal(final->completed.attempts, 3);
    assert_int_equal(final->completed.output.size, 2);
    assert_true(wire_text_equal(final->completed.output_type, "text/plain"));
    assert_int_equal(final->completed.http_status, 503);
    for (size_t i = 0; i < 4; i++)
        job_spec_unref(&specs[i]);
}

/* Inputs are kept while a job may still run, and of jobs that failed. */
static void test_inputs_that_are_kept(void **state)
{
    struct world *world = *state;
    static const enum job_state states[] = {JOB_QUEUED, JOB_IN_PROGRESS, JOB_SUCCEEDED,
                                            JOB_FAILED, JOB_EXPIRED,     JOB_CANCELED};
    struct job_spec *specs[COUNT_OF(states)];
    struct flush_job jobs[COUNT_OF(states)];

    take_over(world);
    for (uint32_t i = 0; i < COUNT_OF(states); i++) {
        specs[i] = spec_of(world, i, "acme", false);
        jobs[i] = job_of(specs[i], states[i]);
    }
    flush_now(world, 1, jobs, COUNT_OF(states));
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    expect(world,
           "SELECT string_agg(state::text, ' ' ORDER BY state) FROM job JOIN job_input ON "
           "job_id = id",
           "1 2 4 5");
    for (size_t i = 0; i < COUNT_OF(states); i++)
        job_spec_unref(&specs[i]);
}

/* A flush without jobs only tells that something was published. */
static void test_an_empty_flush(void **state)
{
    struct world *world = *state;

    take_over(world);
    flush_now(world, 1, NULL, 0);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    expect(world, "SELECT number || ' ' || intake_floor FROM flush", "1 11");
}

/* A full flush reaches its rows by indexes, in the partitions of their days only. */
static void test_a_full_flush(void **state)
{
    struct world *world = *state;
    struct job_spec **specs = xcalloc(FLUSH_JOBS_MAX, sizeof(*specs));
    struct flush_job *jobs = xcalloc(FLUSH_JOBS_MAX, sizeof(*jobs));

    take_over(world);
    for (uint32_t i = 0; i < FLUSH_JOBS_MAX; i++) {
        specs[i] = spec_of(world, i, "acme", false);
        jobs[i] = job_of(specs[i], JOB_QUEUED);
    }
    flush_now(world, 1, jobs, FLUSH_JOBS_MAX);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    for (uint32_t i = 0; i < FLUSH_JOBS_MAX; i++) {
        assert_true(world->applied[i]);
        jobs[i].action = FLUSH_UPDATE;
        jobs[i].state = JOB_SUCCEEDED;
        jobs[i].final_token = jobs[i].fence = TOKEN_MAKE(world->epoch, i + 1);
        jobs[i].output = B("yes");
    }
    flush_now(world, 2, jobs, FLUSH_JOBS_MAX);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
    for (uint32_t i = 0; i < FLUSH_JOBS_MAX; i++) {
        assert_true(world->applied[i]);
        job_spec_unref(&specs[i]);
    }
    expect(world, "SELECT count(*)::text FROM job_result WHERE output = 'yes'", "1000");
    mem_free(&specs);
    mem_free(&jobs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_first_takeover, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_epoch_only_rises, setup, teardown),
        cmocka_unit_test_setup_teardown(test_everything_of_a_row_comes_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_stale_owner_writes_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_insert_of_a_known_job_is_not_applied, setup, teardown),
        cmocka_unit_test_setup_teardown(test_guards_of_updates, setup, teardown),
        cmocka_unit_test_setup_teardown(test_queue_deltas, setup, teardown),
        cmocka_unit_test_setup_teardown(test_hours, setup, teardown),
        cmocka_unit_test_setup_teardown(test_halving_finds_the_row, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_flush_follows_the_one_before_it, setup, teardown),
        cmocka_unit_test_setup_teardown(test_numbers_over_their_column, setup, teardown),
        cmocka_unit_test_setup_teardown(test_any_day, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loads_move_forward, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_is_due_comes_by_deadline, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lookup_finds_all_states, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unpublished_finals_are_found, setup, teardown),
        cmocka_unit_test_setup_teardown(test_inputs_that_are_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(test_an_empty_flush, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_full_flush, setup, teardown),
    };

    return cmocka_run_group_tests(tests, group_setup, NULL);
}
