/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: the owner's rules about workers: credit, leases, deaths, lost Attempts, run limits. */

#include "tests/unit/owner_talk.h"

static void test_credit_is_cumulative_and_never_passed(void **state)
{
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    for (uint8_t n = 1; n <= 5; n++)
        say_submit(&talk, n);
    want_nothing(&talk);
    say_heartbeat(&talk, "w1", 2, 0, 0, NULL, 0);
    want(&talk, OWNER_TODO_ATTEMPT);
    want(&talk, OWNER_TODO_ATTEMPT);
    want_nothing(&talk);
    say_heartbeat(&talk, "w1", 2, 0, 0, NULL, 0); /* said twice: nothing new */
    want_nothing(&talk);
    say_heartbeat(&talk, "w1", 3, 0, 0, NULL, 0);
    want(&talk, OWNER_TODO_ATTEMPT);
    want_nothing(&talk);
    talk_end(&talk);
}

static void test_a_run_that_nobody_ends_is_ended(void **state)
{
    struct held held = {.job = job_named(1)};
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 1, 0, 0, NULL, 0);
    held.token = run_one(&talk, 1);
    pass_ms(&talk, 110);
    (void)commit_one(&talk);
    for (int i = 0; i < 91; i++) {
        say_heartbeat(&talk, "w1", 1, 1, 2, &held, 1);
        pass_ms(&talk, 1000);
        while (next_todo(&talk)) {
            if (talk.todo.type != OWNER_TODO_FLUSH)
                continue;
            if (talk.todo.flush->job_count > 0) {
                assert_int_equal(talk.todo.flush->jobs[0].error_class, ERROR_CLASS_MODEL_TIMEOUT);
                talk_end(&talk);
                return;
            }
            commit(&talk, talk.todo.flush, 0);
        }
    }
    fail_msg("the run limit and its grace have passed");
}

/* Kafka has what the worker said, and does not give it yet. */
static void test_no_run_is_ended_while_its_end_may_be_on_its_way(void **state)
{
    struct held held = {.job = job_named(1)};
    struct flush_job row;
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 1, 0, 0, NULL, 0);
    held.token = run_one(&talk, 1);
    pass_ms(&talk, 110);
    (void)commit_one(&talk);
    for (int i = 0; i < 200; i++) { /* outcome is not read to its end */
        talk.now_us += 1000000;
        if (i == 150) /* for a moment it is, with another worker's words */
            owner_on_outcome_end(talk.owner, talk.now_us);
        owner_tick(talk.owner, talk.now_us, talk.now_us);
        while (next_todo(&talk)) {
            if (talk.todo.type != OWNER_TODO_FLUSH)
                continue;
            assert_int_equal(talk.todo.flush->job_count, 0);
            commit(&talk, talk.todo.flush, 0);
        }
    }
    say_finished(&talk, 1, held.token, ERROR_CLASS_NONE);
    row = commit_one(&talk);
    assert_int_equal(row.state, JOB_SUCCEEDED);
    talk_end(&talk);
}

/* The clock of a worker is an hour behind: its run is not over for that. */
static void test_a_workers_clock_ends_no_run(void **state)
{
    struct held held = {.job = job_named(1)};
    struct message_started started = {.job = job_named(1), .worker = WIRE_TEXT_OF("w1")};
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 1, 0, 0, NULL, 0);
    held.token = started.token = run_one(&talk, 1);
    started.started_us = 1;
    say_outcome(&talk, MESSAGE_STARTED, &started);
    pass_ms(&talk, 110);
    assert_int_equal(commit_one(&talk).started_us, 1); /* as it says */
    for (int i = 0; i < 85; i++) {
        say_heartbeat(&talk, "w1", 1, 1, 2, &held, 1);
        pass_ms(&talk, 1000);
        while (next_todo(&talk)) {
            if (talk.todo.type == OWNER_TODO_FLUSH)
                commit(&talk, talk.todo.flush, 1);
        }
    }
    assert_int_equal(owner_stats(talk.owner).running, 1);
    talk_end(&talk);
}

static void test_a_lease_lapses_only_while_outcome_is_read(void **state)
{
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 1, 0, 0, NULL, 0);
    (void)run_one(&talk, 1);
    pass_ms(&talk, 110);
    (void)commit_one(&talk);
    for (int i = 0; i < 1000; i++) { /* 10 s without the end of outcome */
        talk.now_us += 10000;
        owner_tick(talk.owner, talk.now_us, talk.now_us);
    }
    assert_int_equal(owner_stats(talk.owner).lost, 0);
    pass_ms(&talk, 4100);
    assert_int_equal(owner_stats(talk.owner).lost, 1);
    assert_int_equal(owner_stats(talk.owner).workers, 0);
    talk_end(&talk);
}

static void test_a_gap_in_our_own_loop_restarts_the_leases(void **state)
{
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 1, 0, 0, NULL, 0);
    want_nothing(&talk);
    pass_ms(&talk, 3900);
    talk.now_us += 600000;
    owner_tick(talk.owner, talk.now_us, talk.now_us);
    pass_ms(&talk, 3900);
    assert_int_equal(owner_stats(talk.owner).workers, 1);
    pass_ms(&talk, 200);
    assert_int_equal(owner_stats(talk.owner).workers, 0);
    talk_end(&talk);
}

static void test_a_mass_lapse_is_our_own_fault_once(void **state)
{
    static const char *const names[] = {"w1", "w2", "w3", "w4"};
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    for (size_t i = 0; i < COUNT_OF(names); i++)
        say_heartbeat(&talk, names[i], 1, 0, 0, NULL, 0);
    want_nothing(&talk);
    pass_ms(&talk, 4100);
    assert_int_equal(owner_stats(talk.owner).workers, 4);
    pass_ms(&talk, 4100);
    assert_int_equal(owner_stats(talk.owner).workers, 0);
    talk_end(&talk);
}

static void say_beat_of(struct talk *talk, const char *worker, const char *machine)
{
    struct message_heartbeat beat = {.worker = WIRE_TEXT_OF(worker),
                                     .boot = 1,
                                     .pool = WIRE_TEXT_OF("p"),
                                     .slots = 4,
                                     .granted = 1,
                                     .host = WIRE_TEXT_OF(machine),
                                     .device = WIRE_TEXT_OF("cuda:1")};

    say_outcome(talk, MESSAGE_HEARTBEAT, &beat);
}

/* Four of six lapse together; while the others are heard and those were all of one machine, that
 * machine is gone, and no second lease is waited for. */
static void test_a_machine_that_vanishes_is_not_our_own_fault(void **state)
{
    static const char *const names[] = {"w1", "w2", "w3", "w4"};
    static const struct {
        const char *what, *machine, *other;
        bool heard;
        uint64_t workers;
    } rows[] = {
        {"one machine of two", "m1", "m2", true, 2},
        {"its workers are known to be of no machine", "", "m2", true, 6},
        {"others of that machine are heard", "m1", "m1", true, 6},
        {"nobody is heard", "m1", "m2", false, 6},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct talk talk;

        talk_begin(&talk);
        for (size_t n = 0; n < COUNT_OF(names); n++)
            say_beat_of(&talk, names[n], rows[i].machine);
        say_beat_of(&talk, "w5", rows[i].other);
        say_beat_of(&talk, "w6", rows[i].other);
        want_nothing(&talk);
        for (int n = 0; n < 41; n++) {
            pass_ms(&talk, 100);
            if (!rows[i].heard)
                continue;
            say_beat_of(&talk, "w5", rows[i].other);
            say_beat_of(&talk, "w6", rows[i].other);
        }
        if (owner_stats(talk.owner).workers != rows[i].workers)
            fail_msg("%s: %u workers", rows[i].what, owner_stats(talk.owner).workers);
        talk_end(&talk);
    }
}

/* The log of a lost attempt says where it ran and how that ended. */
static void test_a_lost_attempt_names_device_and_reason(void **state)
{
    struct message_gone gone = {
        .worker = WIRE_TEXT_OF("w1"), .boot = 1, .reason = WIRE_TEXT_OF("was killed by signal 9")};
    struct talk talk;
    uint64_t token;

    (void)state;
    talk_begin(&talk);
    say_beat_of(&talk, "w1", "m1");
    token = run_one(&talk, 1);
    say_outcome(&talk, MESSAGE_GONE, &gone);
    want_flush(&talk, 1);
    assert_int_equal(talk.todo.flush->attempt_count, 1);
    assert_int_equal(talk.todo.flush->attempts[0].token, token);
    assert_true(wire_text_equal(talk.todo.flush->attempts[0].device, "cuda:1"));
    assert_true(wire_text_equal(talk.todo.flush->attempts[0].error_message,
                                "its worker's process has ended: was killed by signal 9"));
    commit(&talk, talk.todo.flush, 1);
    say_heartbeat(&talk, "w2", 1, 0, 0, NULL, 0);
    want(&talk, OWNER_TODO_REVOKE);
    want(&talk, OWNER_TODO_ATTEMPT);
    pass_ms(&talk, 110);
    want_flush(&talk, 1); /* the worker that the text belonged to is forgotten */
    assert_true(
        wire_text_equal(talk.todo.flush->jobs[0].error_message, "its worker's process has ended"));
    talk_end(&talk);
}

static void test_a_dead_worker_costs_the_lost_budget(void **state)
{
    struct message_gone gone = {.worker = WIRE_TEXT_OF("w1"), .boot = 1};
    struct held held = {.job = job_named(1)};
    struct flush_job row;
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 1, 0, 0, NULL, 0);
    held.token = run_one(&talk, 1);
    say_heartbeat(&talk, "w1", 1, 1, 2, &held, 1);
    say_outcome(&talk, MESSAGE_GONE, &gone);
    row = commit_one(&talk);
    assert_int_equal(row.state, JOB_QUEUED);
    assert_int_equal(row.lost_failures, 1);
    assert_int_equal(owner_stats(talk.owner).workers, 0);
    say_heartbeat(&talk, "w1", 9, 1, 2, NULL, 0); /* was still under way */
    assert_int_equal(owner_stats(talk.owner).workers, 0);
    talk_end(&talk);
}

/* Does all that is to be done; of one job. The class is of its attempt that ended. */
static unsigned settle(struct talk *talk, struct flush_job *ret_row, uint64_t *ret_class)
{
    unsigned attempts = 0;

    while (next_todo(talk)) {
        const struct flush *flush = talk->todo.flush;

        attempts += talk->todo.type == OWNER_TODO_ATTEMPT;
        if (talk->todo.type != OWNER_TODO_FLUSH)
            continue;
        if (flush->job_count > 0)
            *ret_row = flush->jobs[0];
        if (flush->attempt_count > 0)
            *ret_class = (uint64_t)flush->attempts[0].error_class;
        commit(talk, flush, 1);
    }
    return attempts;
}

/* What a Finished grants is used at once; but only a heartbeat tells a new owner what was sent
 * before it. */
static void test_a_finished_carries_credit(void **state)
{
    struct message_finished finished = {.job = job_named(1),
                                        .worker = WIRE_TEXT_OF("w1"),
                                        .boot = 1,
                                        .granted = 2,
                                        .output = {(const uint8_t *)"42", 2}};
    struct talk talk;
    int attempts = 0;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 1, 0, 0, NULL, 0);
    finished.token = run_one(&talk, 1);
    say_submit(&talk, 2);
    want_nothing(&talk); /* it has no slot */
    say_outcome(&talk, MESSAGE_FINISHED, &finished);
    while (next_todo(&talk))
        attempts += talk.todo.type == OWNER_TODO_ATTEMPT;
    assert_int_equal(attempts, 1);
    talk_end(&talk);

    talk_begin(&talk);
    say_submit(&talk, 1);
    say_outcome(&talk, MESSAGE_FINISHED, &finished);
    while (next_todo(&talk))
        attempts += talk.todo.type == OWNER_TODO_ATTEMPT;
    assert_int_equal(attempts, 1);
    talk_end(&talk);
}

/* A run of a chain goes on where its coordinator was lost, however often. */
static void test_a_dead_coordinator_costs_nothing(void **state)
{
    struct message_heartbeat beat = {.worker = WIRE_TEXT_OF("w1"),
                                     .pool = WIRE_TEXT_OF("p"),
                                     .slots = 4,
                                     .granted = 4,
                                     .resumes = true};
    struct message_gone gone = {.worker = WIRE_TEXT_OF("w1")};
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_submit(&talk, 1);
    for (uint64_t boot = 1; boot <= 2 * JOB_LOST_ATTEMPTS_MAX; boot++) {
        struct flush_job row = {0};
        uint64_t class = 0;

        beat.boot = gone.boot = boot;
        say_outcome(&talk, MESSAGE_HEARTBEAT, &beat);
        assert_int_equal(settle(&talk, &row, &class), 1);
        say_outcome(&talk, MESSAGE_GONE, &gone);
        for (int i = 0; i < 60; i++) { /* it waits longer each time */
            (void)settle(&talk, &row, &class);
            pass_ms(&talk, 100);
        }
        assert_int_equal(class, ERROR_CLASS_LOST_COORDINATOR);
        assert_int_equal(row.state, JOB_QUEUED);
        assert_int_equal(row.lost_failures, 0);
    }
    talk_end(&talk);
}

/* Nobody heard what it said at last, but its agent saw that it left: no job of it is to blame. */
static void test_a_worker_that_left_costs_nothing(void **state)
{
    struct message_gone gone = {.worker = WIRE_TEXT_OF("w1"),
                                .boot = 1,
                                .reason = WIRE_TEXT_OF("exited with code 3"),
                                .left = true};
    struct held held = {.job = job_named(1)};
    struct flush_job row;
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 1, 0, 0, NULL, 0);
    held.token = run_one(&talk, 1);
    say_heartbeat(&talk, "w1", 1, 1, 2, &held, 1);
    say_outcome(&talk, MESSAGE_GONE, &gone);
    want_flush(&talk, 1);
    assert_int_equal(talk.todo.flush->attempts[0].error_class, ERROR_CLASS_HANDED_BACK);
    assert_true(wire_text_equal(talk.todo.flush->attempts[0].error_message,
                                "its worker's process has ended: exited with code 3"));
    row = talk.todo.flush->jobs[0];
    assert_int_equal(row.state, JOB_QUEUED);
    assert_int_equal(row.lost_failures, 0);
    commit(&talk, talk.todo.flush, 1);
    say_finished(&talk, 1, held.token, ERROR_CLASS_HANDED_BACK); /* was still under way */
    assert_int_equal(owner_stats(talk.owner).fenced, 1);
    talk_end(&talk);
}

static void test_an_attempt_that_was_read_and_is_not_held_is_lost(void **state)
{
    struct flush_job row;
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 2, 0, 0, NULL, 0);
    (void)run_one(&talk, 1); /* reported at offset 1 */
    say_heartbeat(&talk, "w1", 2, 0, 1, NULL, 0);
    want_nothing(&talk);
    say_heartbeat(&talk, "w1", 2, 0, 2, NULL, 0);
    row = commit_one(&talk);
    assert_int_equal(row.state, JOB_QUEUED);
    assert_int_equal(row.lost_failures, 0);
    want(&talk, OWNER_TODO_REVOKE);
    want(&talk, OWNER_TODO_ATTEMPT);
    talk_end(&talk);
}

static void test_a_failed_produce_is_an_attempt_handed_back(void **state)
{
    struct talk talk;
    uint64_t token;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 2, 0, 0, NULL, 0);
    say_submit(&talk, 1);
    want(&talk, OWNER_TODO_ATTEMPT);
    token = talk.todo.attempt.message.token;
    owner_on_attempt_reported(talk.owner, token, -1);
    assert_int_equal(commit_one(&talk).fence, token);
    want(&talk, OWNER_TODO_REVOKE);
    want(&talk, OWNER_TODO_ATTEMPT);
    talk_end(&talk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_credit_is_cumulative_and_never_passed),
        cmocka_unit_test(test_a_run_that_nobody_ends_is_ended),
        cmocka_unit_test(test_no_run_is_ended_while_its_end_may_be_on_its_way),
        cmocka_unit_test(test_a_workers_clock_ends_no_run),
        cmocka_unit_test(test_a_lease_lapses_only_while_outcome_is_read),
        cmocka_unit_test(test_a_gap_in_our_own_loop_restarts_the_leases),
        cmocka_unit_test(test_a_mass_lapse_is_our_own_fault_once),
        cmocka_unit_test(test_a_machine_that_vanishes_is_not_our_own_fault),
        cmocka_unit_test(test_a_lost_attempt_names_device_and_reason),
        cmocka_unit_test(test_a_dead_worker_costs_the_lost_budget),
        cmocka_unit_test(test_a_finished_carries_credit),
        cmocka_unit_test(test_a_dead_coordinator_costs_nothing),
        cmocka_unit_test(test_a_worker_that_left_costs_nothing),
        cmocka_unit_test(test_an_attempt_that_was_read_and_is_not_held_is_lost),
        cmocka_unit_test(test_a_failed_produce_is_an_attempt_handed_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
