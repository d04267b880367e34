/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: the owner's rules about what it did not begin itself: cancels of any state, takeovers,
 * results of earlier owners, the outbox, and jobs that left memory. */

#include "tests/unit/owner_talk.h"

static void test_a_waiting_job_is_canceled_and_told_after_the_flush(void **state)
{
    struct flush_job row;
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_submit(&talk, 1);
    say_cancel(&talk, 1);
    row = commit_one(&talk);
    assert_int_equal(row.state, JOB_CANCELED);
    assert_int_equal(row.action, FLUSH_INSERT);
    want(&talk, OWNER_TODO_VERDICT);
    assert_true(talk.todo.verdict.message.canceled);
    assert_int_equal(talk.todo.verdict.message.request, 5);
    assert_true(wire_text_equal(talk.todo.verdict.gateway, "gw"));
    want(&talk, OWNER_TODO_PUBLISH);
    talk_end(&talk);
}

static void test_a_running_job_is_revoked_after_the_flush(void **state)
{
    struct talk talk;
    uint64_t token;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    token = run_one(&talk, 1);
    say_cancel(&talk, 1);
    want_flush(&talk, 1);
    want_nothing(&talk);
    say_finished(&talk, 1, token, ERROR_CLASS_NONE); /* too late: it is decided */
    commit(&talk, &(struct flush){.number = 1}, 1);
    want(&talk, OWNER_TODO_VERDICT);
    assert_true(talk.todo.verdict.message.canceled);
    want(&talk, OWNER_TODO_REVOKE);
    assert_int_equal(talk.todo.revoke.message.token, token);
    want(&talk, OWNER_TODO_PUBLISH);
    assert_int_equal(talk.todo.publish.finals[0].completed.state, JOB_CANCELED);
    talk_end(&talk);
}

static void test_a_finished_job_is_not_canceled(void **state)
{
    struct talk talk;
    uint64_t token;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    token = run_one(&talk, 1);
    say_finished(&talk, 1, token, ERROR_CLASS_NONE);
    want_flush(&talk, 1);
    say_cancel(&talk, 1);
    want_nothing(&talk);
    commit(&talk, &(struct flush){.number = 1}, 1);
    want(&talk, OWNER_TODO_VERDICT);
    assert_false(talk.todo.verdict.message.canceled);
    want(&talk, OWNER_TODO_PUBLISH);
    talk_end(&talk);
}

static void test_a_cancel_of_an_unknown_job_is_looked_up(void **state)
{
    static const struct {
        bool found;
        enum job_state state;
        bool canceled;
    } rows[] = {
        {false, JOB_QUEUED, false},
        {true, JOB_SUCCEEDED, false},
        {true, JOB_CANCELED, true}, /* perhaps by this request, before a crash */
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct ledger_row row;
        struct talk talk;

        talk_begin(&talk);
        say_cancel(&talk, 1);
        want(&talk, OWNER_TODO_LOOKUP);
        assert_int_equal(talk.todo.lookup.id_count, 1);
        want_nothing(&talk);
        row = rows[i].found ? row_of(&talk, 1, rows[i].state, 0, 9, 1) : (struct ledger_row){0};
        owner_on_lookup(talk.owner, &row, rows[i].found ? 1 : 0);
        want(&talk, OWNER_TODO_VERDICT);
        assert_int_equal(talk.todo.verdict.message.canceled, rows[i].canceled);
        talk_end(&talk);
    }
}

static void test_a_spilled_job_is_canceled_by_its_row(void **state)
{
    struct ledger_row row;
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_cancel(&talk, 1);
    want(&talk, OWNER_TODO_LOOKUP);
    row = row_of(&talk, 1, JOB_QUEUED, 0, 0, 0);
    owner_on_lookup(talk.owner, &row, 1);
    want_flush(&talk, 1);
    assert_int_equal(talk.todo.flush->jobs[0].action, FLUSH_UPDATE);
    assert_int_equal(talk.todo.flush->jobs[0].state, JOB_CANCELED);
    commit(&talk, talk.todo.flush, 1);
    want(&talk, OWNER_TODO_VERDICT);
    assert_true(talk.todo.verdict.message.canceled);
    talk_end(&talk);
}

static void test_a_strangers_cancel_does_nothing(void **state)
{
    struct message_cancel cancel = {
        .id = job_named(1), .tenant = WIRE_TEXT_OF("t2"), .gateway = WIRE_TEXT_OF("gw")};
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_submit(&talk, 1);
    say_intake(&talk, MESSAGE_CANCEL, &cancel);
    want(&talk, OWNER_TODO_VERDICT);
    assert_false(talk.todo.verdict.message.canceled);
    assert_int_equal(owner_stats(talk.owner).waiting_in_memory, 1);
    talk_end(&talk);
}

static void test_a_takeover_adopts_what_runs(void **state)
{
    uint64_t token = TOKEN_MAKE(EPOCH - 1, 4);
    struct ledger_takeover takeover = {.intake_floor = 5, .outcome_floor = 8, .row_count = 1};
    struct held held = {token, job_named(1)};
    struct ledger_row row;
    struct talk talk;

    (void)state;
    row = row_of(&talk, 1, JOB_IN_PROGRESS, token, 0, 1);
    takeover.rows = &row;
    talk_begin_with(&talk, owner_options_default, takeover,
                    (struct owner_ends){.intake_end = 5, .outcome_end = 9});
    want_nothing(&talk);
    say_heartbeat(&talk, "w1", 1, 1, 3, &held, 1);
    want_nothing(&talk);
    assert_true(owner_stats(talk.owner).live);
    assert_int_equal(owner_stats(talk.owner).running, 1);
    say_finished(&talk, 1, token, ERROR_CLASS_NONE);
    want_flush(&talk, 1);
    assert_int_equal(talk.todo.flush->jobs[0].action, FLUSH_UPDATE);
    assert_int_equal(talk.todo.flush->jobs[0].final_token, token);
    assert_int_equal(talk.todo.flush->jobs[0].attempt_count, 1);
    assert_int_equal(talk.todo.flush->outcome_floor, 10);
    talk_end(&talk);
}

/* The first owner died before any row: its Attempt runs, its Submit is read again. */
static void test_a_result_without_a_row_is_taken(void **state)
{
    struct ledger_takeover takeover = {.intake_floor = -1, .outcome_floor = -1};
    uint64_t token = TOKEN_MAKE(EPOCH - 1, 1);
    struct talk talk;

    (void)state;
    talk_begin_with(&talk, owner_options_default, takeover,
                    (struct owner_ends){.intake_end = 1, .outcome_end = 2});
    say_heartbeat(&talk, "w1", 4, 1, 1, NULL, 0);
    say_finished(&talk, 1, token, ERROR_CLASS_NONE);
    want(&talk, OWNER_TODO_LOOKUP);
    owner_on_lookup(talk.owner, NULL, 0); /* not there: perhaps in a part of intake still unread */
    say_submit(&talk, 1);
    want_flush(&talk, 1);
    assert_int_equal(talk.todo.flush->jobs[0].state, JOB_QUEUED);
    assert_int_equal(talk.todo.flush->outcome_floor, 1);
    commit(&talk, talk.todo.flush, 1);
    want_flush(&talk, 1);
    assert_int_equal(talk.todo.flush->jobs[0].state, JOB_SUCCEEDED);
    assert_int_equal(talk.todo.flush->jobs[0].final_token, token);
    assert_int_equal(talk.todo.flush->outcome_floor, 2);
    talk_end(&talk);
}

static void test_what_is_final_already_is_not_run_again(void **state)
{
    struct ledger_takeover takeover = {.intake_floor = 0, .outcome_floor = 0};
    struct wire_id second = job_named(2);
    struct talk talk;

    (void)state;
    talk_begin_with(&talk, owner_options_default, takeover, (struct owner_ends){.intake_end = 2});
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    say_submit(&talk, 1);
    say_submit(&talk, 2);
    want_flush(&talk, 2);
    commit(&talk, talk.todo.flush, 2); /* the first one has a row */
    want(&talk, OWNER_TODO_ATTEMPT);
    assert_true(job_id_equal(&talk.todo.attempt.message.job, &second));
    want_nothing(&talk);
    talk_end(&talk);
}

static void test_the_outbox_is_published_again(void **state)
{
    struct ledger_final final = {.completed = {.id = job_named(1),
                                               .round = 1,
                                               .tenant = WIRE_TEXT_OF("t1"),
                                               .model = WIRE_TEXT_OF("m"),
                                               .deployment = WIRE_TEXT_OF("d"),
                                               .state = JOB_SUCCEEDED,
                                               .accepted_us = START_US,
                                               .finished_us = START_US},
                                 .gateway = WIRE_TEXT_OF("gw")};
    struct ledger_takeover takeover = {.intake_floor = 1,
                                       .outcome_floor = 1,
                                       .published_epoch = EPOCH - 2,
                                       .published_number = 17,
                                       .unpublished = &final,
                                       .unpublished_count = 1};
    struct talk talk;

    (void)state;
    talk_begin_with(&talk, owner_options_default, takeover,
                    (struct owner_ends){.intake_end = 1, .outcome_end = 1});
    final = (struct ledger_final){0}; /* the store's memory is gone */
    want(&talk, OWNER_TODO_PUBLISH);
    assert_int_equal(talk.todo.publish.flush_number, 0);
    assert_true(wire_text_equal(talk.todo.publish.finals[0].gateway, "gw"));
    assert_int_equal(talk.todo.publish.finals[0].completed.state, JOB_SUCCEEDED);
    say_heartbeat(&talk, "w1", 1, 0, 0, NULL, 0);
    pass_ms(&talk, 1000);
    want_flush(&talk, 0);
    assert_int_equal(talk.todo.flush->published_epoch, EPOCH - 2);
    assert_int_equal(talk.todo.flush->published_number, 17);
    commit(&talk, talk.todo.flush, 0);
    owner_on_published(talk.owner, 0);
    pass_ms(&talk, 1000);
    want_flush(&talk, 0);
    assert_int_equal(talk.todo.flush->published_epoch, EPOCH);
    talk_end(&talk);
}

static void test_a_full_window_spills_and_loads_forward(void **state)
{
    struct owner_options options = owner_options_default;
    struct ledger_row rows[2];
    struct talk talk;

    (void)state;
    options.window_jobs = 4;
    options.load_jobs = 2;
    talk_begin_with(&talk, options,
                    (struct ledger_takeover){.intake_floor = -1, .outcome_floor = -1},
                    (struct owner_ends){0});
    for (uint8_t n = 0; n < 6; n++)
        say_submit(&talk, n);
    want(&talk, OWNER_TODO_INTAKE_PAUSE); /* six changes are more than this window */
    pass_ms(&talk, 110);
    want_flush(&talk, 6);
    commit(&talk, talk.todo.flush, 63);
    want(&talk, OWNER_TODO_INTAKE_RESUME);
    assert_int_equal(owner_stats(talk.owner).waiting_in_memory, 2);
    want_nothing(&talk);

    say_heartbeat(&talk, "w1", 1, 0, 0, NULL, 0); /* room for one, so there is room to load */
    want(&talk, OWNER_TODO_ATTEMPT);
    want_nothing(&talk);
    say_heartbeat(&talk, "w1", 2, 0, 0, NULL, 0);
    want(&talk, OWNER_TODO_ATTEMPT);
    want(&talk, OWNER_TODO_LOAD);
    assert_int_equal(talk.todo.load.lane.after_seq, 1);
    assert_int_equal(talk.todo.load.limit, 2);
    rows[0] = row_of(&talk, 2, JOB_QUEUED, 0, 0, 0);
    rows[1] = row_of(&talk, 3, JOB_QUEUED, 0, 0, 0);
    owner_on_rows(talk.owner, &(struct ledger_lane){"p", "t1", JOB_RANK_PRIORITY_0, 1}, rows, 2,
                  false);
    assert_int_equal(owner_stats(talk.owner).waiting_in_memory, 2);
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    want(&talk, OWNER_TODO_ATTEMPT);
    want(&talk, OWNER_TODO_ATTEMPT);
    want(&talk, OWNER_TODO_INTAKE_PAUSE);
    want(&talk, OWNER_TODO_LOAD);
    assert_int_equal(talk.todo.load.lane.after_seq, 3);
    talk_end(&talk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_waiting_job_is_canceled_and_told_after_the_flush),
        cmocka_unit_test(test_a_running_job_is_revoked_after_the_flush),
        cmocka_unit_test(test_a_finished_job_is_not_canceled),
        cmocka_unit_test(test_a_cancel_of_an_unknown_job_is_looked_up),
        cmocka_unit_test(test_a_spilled_job_is_canceled_by_its_row),
        cmocka_unit_test(test_a_strangers_cancel_does_nothing),
        cmocka_unit_test(test_a_takeover_adopts_what_runs),
        cmocka_unit_test(test_a_result_without_a_row_is_taken),
        cmocka_unit_test(test_what_is_final_already_is_not_run_again),
        cmocka_unit_test(test_the_outbox_is_published_again),
        cmocka_unit_test(test_a_full_window_spills_and_loads_forward),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
