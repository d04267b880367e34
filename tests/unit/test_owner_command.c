/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what commands do, and when they are acknowledged: in the flush of their effect, once.
 * Replays are new rounds in a new place; kill switches hold what waits. Whole worlds are in
 * tests/sim. */

#include "tests/unit/owner_talk.h"

static struct ledger_command command_of(uint64_t id, enum command_kind kind, uint8_t n)
{
    return (struct ledger_command){.id = id, .kind = kind, .job = job_named(n), .round = 1};
}

/* The first to-do of a living owner is to read the commands; it is answered with these. */
static void give_commands(struct talk *talk, const struct ledger_command *commands, size_t count)
{
    want(talk, OWNER_TODO_COMMANDS);
    owner_on_commands(talk->owner, commands, count, true);
}

static void more_commands(struct talk *talk, const struct ledger_command *commands, size_t count)
{
    owner_on_command_notice(talk->owner);
    give_commands(talk, commands, count);
}

static void begin_idle(struct talk *talk)
{
    talk_begin(talk);
    give_commands(talk, NULL, 0);
}

/* A job that has a row and waits. */
static void submit_waiting(struct talk *talk, uint8_t n)
{
    say_submit(talk, n);
    pass_ms(talk, 110);
    assert_int_equal(commit_one(talk).action, FLUSH_INSERT);
}

/* The answer to a lookup of job n. */
static void answer_lookup(struct talk *talk, uint8_t n, enum job_state state, uint32_t round,
                          uint64_t fence)
{
    struct ledger_row row = row_of(talk, n, state, 0, fence, 1);

    want(talk, OWNER_TODO_LOOKUP);
    assert_int_equal(talk->todo.lookup.id_count, 1);
    row.spec->round = round;
    owner_on_lookup(talk->owner, &row, 1);
}

static void say_place(struct talk *talk, uint64_t command, uint8_t n, uint32_t round,
                      uint32_t priority)
{
    struct message_place place = {
        .id = job_named(n), .command = command, .round = round, .priority = priority};

    say_intake(talk, MESSAGE_PLACE, &place);
}

static void want_ack(struct talk *talk, uint64_t command, bool applied, const char *reason)
{
    want(talk, OWNER_TODO_FLUSH);
    while (talk->todo.flush->job_count + talk->todo.flush->command_count == 0) {
        commit(talk, talk->todo.flush, 0);
        want(talk, OWNER_TODO_FLUSH);
    }
    assert_int_equal(talk->todo.flush->command_count, 1);
    assert_int_equal(talk->todo.flush->commands[0].id, command);
    assert_int_equal(talk->todo.flush->commands[0].applied, applied);
    assert_string_equal(talk->todo.flush->commands[0].reason, reason);
}

static void test_a_cancel_is_acknowledged_in_its_flush(void **state)
{
    const struct ledger_command command = command_of(7, COMMAND_CANCEL, 1);
    struct talk talk;

    (void)state;
    begin_idle(&talk);
    submit_waiting(&talk, 1);
    more_commands(&talk, &command, 1);
    want_ack(&talk, 7, true, "");
    assert_int_equal(talk.todo.flush->job_count, 1);
    assert_int_equal(talk.todo.flush->jobs[0].state, JOB_CANCELED);
    assert_int_equal(talk.todo.flush->command_floor, 8);
    commit(&talk, talk.todo.flush, 1);
    want(&talk, OWNER_TODO_PUBLISH);
    talk_end(&talk);
}

static void test_a_cancel_of_a_running_job_ends_its_token(void **state)
{
    const struct ledger_command command = command_of(7, COMMAND_CANCEL, 1);
    struct talk talk;
    uint64_t token;

    (void)state;
    begin_idle(&talk);
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    token = run_one(&talk, 1);
    pass_ms(&talk, 110);
    (void)commit_one(&talk);
    more_commands(&talk, &command, 1);
    want_ack(&talk, 7, true, "");
    commit(&talk, talk.todo.flush, 1);
    want(&talk, OWNER_TODO_REVOKE);
    assert_int_equal(talk.todo.revoke.message.token, token);
    talk_end(&talk);
}

/* The row may have been there before; only its insert tells. */
static void test_a_command_waits_for_the_row(void **state)
{
    const struct ledger_command command = command_of(7, COMMAND_CANCEL, 1);
    struct talk talk;

    (void)state;
    begin_idle(&talk);
    say_submit(&talk, 1);
    more_commands(&talk, &command, 1);
    want_nothing(&talk);
    pass_ms(&talk, 110);
    want_flush(&talk, 1);
    assert_int_equal(talk.todo.flush->command_count, 0);
    assert_int_equal(talk.todo.flush->command_floor, 7);
    commit(&talk, talk.todo.flush, 1);
    want_ack(&talk, 7, true, "");
    assert_int_equal(talk.todo.flush->jobs[0].action, FLUSH_UPDATE);
    assert_int_equal(talk.todo.flush->jobs[0].state, JOB_CANCELED);
    talk_end(&talk);
}

static void test_what_cannot_be_canceled_is_refused_by_name(void **state)
{
    const struct ledger_command commands[] = {command_of(7, COMMAND_CANCEL, 1)};
    struct talk talk;

    (void)state;
    begin_idle(&talk);
    more_commands(&talk, commands, 1);
    answer_lookup(&talk, 1, JOB_SUCCEEDED, 1, 5);
    want_ack(&talk, 7, false, "the job is SUCCEEDED already");
    assert_int_equal(talk.todo.flush->job_count, 0);
    commit(&talk, talk.todo.flush, 0);
    want_nothing(&talk);
    talk_end(&talk);
}

static void test_a_command_for_nobody_is_refused(void **state)
{
    const struct ledger_command command = command_of(7, COMMAND_CANCEL, 1);
    struct talk talk;

    (void)state;
    begin_idle(&talk);
    more_commands(&talk, &command, 1);
    want(&talk, OWNER_TODO_LOOKUP);
    owner_on_lookup(talk.owner, NULL, 0);
    want_ack(&talk, 7, false, "there is no such job");
    talk_end(&talk);
}

static void test_a_replay_is_the_next_round_in_a_new_place(void **state)
{
    const struct ledger_command command = command_of(9, COMMAND_REPLAY, 1);
    struct flush_job row;
    struct talk talk;

    (void)state;
    begin_idle(&talk);
    more_commands(&talk, &command, 1);
    want(&talk, OWNER_TODO_PLACE);
    assert_int_equal(talk.todo.place.command, 9);
    assert_int_equal(talk.todo.place.round, 1);
    owner_on_place_reported(talk.owner, 9, true);
    talk.intake = 40;
    talk.now_us += 5000000;
    owner_tick(talk.owner, talk.now_us, talk.now_us);
    say_place(&talk, 9, 1, 1, 0);
    answer_lookup(&talk, 1, JOB_FAILED, 1, 5);
    want_ack(&talk, 9, true, "");
    assert_int_equal(talk.todo.flush->commands[0].round, 2);
    assert_int_equal(talk.todo.flush->job_count, 1);
    row = talk.todo.flush->jobs[0];
    assert_int_equal(row.action, FLUSH_REPLAY);
    assert_int_equal(row.state, JOB_QUEUED);
    assert_int_equal(row.spec->round, 2);
    assert_int_equal(row.spec->seq, 40);
    assert_int_equal(row.attempt_count, 0);
    assert_int_equal(row.user_failures + row.oom_failures + row.lost_failures, 0);
    assert_int_equal(row.spec->accepted_us, START_US);
    assert_int_equal(row.spec->queued_us, talk.now_us);
    assert_int_equal(row.spec->start_deadline_us, talk.now_us + 600000000);

    /* Not before its row, and with a token above the old fence. */
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    want_nothing(&talk);
    commit(&talk, talk.todo.flush, 1);
    want(&talk, OWNER_TODO_ATTEMPT);
    assert_int_equal(talk.todo.attempt.message.number, 1);
    assert_int_equal(talk.todo.attempt.round, 2);
    assert_true(talk.todo.attempt.message.token > 5);
    say_finished(&talk, 1, talk.todo.attempt.message.token, ERROR_CLASS_NONE);
    row = commit_one(&talk);
    assert_int_equal(row.action, FLUSH_UPDATE);
    want(&talk, OWNER_TODO_PUBLISH);
    assert_int_equal(talk.todo.publish.finals[0].completed.round, 2);
    assert_int_equal(talk.todo.publish.finals[0].completed.accepted_us, START_US);
    talk_end(&talk);
}

static void test_a_second_copy_of_a_place_does_nothing(void **state)
{
    static const struct {
        enum job_state state;
        uint32_t round;
        const char *why;
    } rows[] = {
        {JOB_FAILED, 2, "that round was replayed already"},
        {JOB_SUCCEEDED, 1, "the job is SUCCEEDED already"},
        {JOB_CANCELED, 1, "the job is CANCELED already"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct talk talk;

        begin_idle(&talk);
        say_place(&talk, 9, 1, 1, 0);
        answer_lookup(&talk, 1, rows[i].state, rows[i].round, 5);
        want_ack(&talk, 9, false, rows[i].why);
        assert_int_equal(talk.todo.flush->job_count, 0);
        talk_end(&talk);
    }
}

/* A takeover reads a Cancel again whose verdict was told of the round before. */
static void test_a_cancel_from_before_a_replay_leaves_its_round_alone(void **state)
{
    struct ledger_row row;
    struct talk talk;

    (void)state;
    for (int after = 0; after < 2; after++) {
        begin_idle(&talk);
        say_cancel(&talk, 1);
        want(&talk, OWNER_TODO_LOOKUP);
        row = row_of(&talk, 1, JOB_QUEUED, 0, TOKEN_MAKE(1, 4), 1);
        row.spec->round = 2;
        row.spec->queued_us = after ? talk.now_us - 1000 : talk.now_us + 1000;
        owner_on_lookup(talk.owner, &row, 1);
        if (after) {
            assert_int_equal(commit_one(&talk).state, JOB_CANCELED);
            want(&talk, OWNER_TODO_VERDICT);
        } else {
            want(&talk, OWNER_TODO_VERDICT);
        }
        assert_int_equal(talk.todo.verdict.message.canceled, after);
        talk_end(&talk);
    }
}

static void test_a_replay_without_its_input_is_refused(void **state)
{
    struct ledger_row row;
    struct talk talk;

    (void)state;
    begin_idle(&talk);
    say_place(&talk, 9, 1, 1, 0);
    want(&talk, OWNER_TODO_LOOKUP);
    row = row_of(&talk, 1, JOB_FAILED, 0, 5, 1);
    row.spec->submit.input = (struct wire_bytes){0};
    owner_on_lookup(talk.owner, &row, 1);
    want_ack(&talk, 9, false, "the input of the job is gone");
    talk_end(&talk);
}

/* What a takeover publishes again it makes from the row: the old round must be told before. */
static void test_a_replay_waits_until_its_end_was_published(void **state)
{
    struct talk talk;
    uint64_t token, number;

    (void)state;
    begin_idle(&talk);
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    token = run_one(&talk, 1);
    say_finished(&talk, 1, token, ERROR_CLASS_BAD_INPUT);
    assert_int_equal(commit_one(&talk).state, JOB_FAILED);
    want(&talk, OWNER_TODO_PUBLISH);
    number = talk.todo.publish.flush_number;
    say_place(&talk, 9, 1, 1, 0);
    answer_lookup(&talk, 1, JOB_FAILED, 1, token);
    want_nothing(&talk);
    owner_on_published(talk.owner, number);
    answer_lookup(&talk, 1, JOB_FAILED, 1, token);
    want_ack(&talk, 9, true, "");
    assert_int_equal(talk.todo.flush->jobs[0].action, FLUSH_REPLAY);
    talk_end(&talk);
}

/* What lies behind the Place is of the round that it begins, however long that has to wait. */
static void test_a_cancel_behind_a_replay_waits_with_it(void **state)
{
    struct talk talk;
    uint64_t token, number;

    (void)state;
    begin_idle(&talk);
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    token = run_one(&talk, 1);
    say_finished(&talk, 1, token, ERROR_CLASS_BAD_INPUT);
    assert_int_equal(commit_one(&talk).state, JOB_FAILED);
    want(&talk, OWNER_TODO_PUBLISH);
    number = talk.todo.publish.flush_number;
    say_place(&talk, 9, 1, 1, 0);
    answer_lookup(&talk, 1, JOB_FAILED, 1, token);
    say_cancel(&talk, 1);
    answer_lookup(&talk, 1, JOB_FAILED, 1, token);
    want_nothing(&talk); /* no verdict yet */
    owner_on_published(talk.owner, number);
    want(&talk, OWNER_TODO_LOOKUP);
    assert_int_equal(talk.todo.lookup.id_count, 2); /* the Place's and the Cancel's */
    {
        struct ledger_row row = row_of(&talk, 1, JOB_FAILED, 0, token, 1);

        owner_on_lookup(talk.owner, &row, 1);
    }
    want_ack(&talk, 9, true, "");
    assert_int_equal(talk.todo.flush->jobs[0].action, FLUSH_REPLAY);
    commit(&talk, talk.todo.flush, 1);
    assert_int_equal(commit_one(&talk).state, JOB_CANCELED);
    want(&talk, OWNER_TODO_VERDICT);
    assert_true(talk.todo.verdict.message.canceled);
    talk_end(&talk);
}

/* The row of the Cancel was asked for before the replay might go on, and is answered behind that.
 */
static void test_a_cancel_that_is_looked_up_meanwhile_waits_too(void **state)
{
    struct ledger_row row;
    struct talk talk;
    uint64_t token, number;

    (void)state;
    begin_idle(&talk);
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    token = run_one(&talk, 1);
    say_finished(&talk, 1, token, ERROR_CLASS_BAD_INPUT);
    assert_int_equal(commit_one(&talk).state, JOB_FAILED);
    want(&talk, OWNER_TODO_PUBLISH);
    number = talk.todo.publish.flush_number;
    say_place(&talk, 9, 1, 1, 0);
    answer_lookup(&talk, 1, JOB_FAILED, 1, token);
    say_cancel(&talk, 1);
    want(&talk, OWNER_TODO_LOOKUP);
    owner_on_published(talk.owner, number);
    row = row_of(&talk, 1, JOB_FAILED, 0, token, 1);
    owner_on_lookup(talk.owner, &row, 1);
    want(&talk, OWNER_TODO_LOOKUP); /* of both, and no verdict yet */
    assert_int_equal(talk.todo.lookup.id_count, 2);
    row = row_of(&talk, 1, JOB_FAILED, 0, token, 1);
    owner_on_lookup(talk.owner, &row, 1);
    want_ack(&talk, 9, true, "");
    commit(&talk, talk.todo.flush, 1);
    assert_int_equal(commit_one(&talk).state, JOB_CANCELED);
    want(&talk, OWNER_TODO_VERDICT);
    assert_true(talk.todo.verdict.message.canceled);
    talk_end(&talk);
}

static void test_a_place_that_kafka_refused_is_sent_again(void **state)
{
    const struct ledger_command command = command_of(9, COMMAND_REPLAY, 1);
    struct talk talk;

    (void)state;
    begin_idle(&talk);
    more_commands(&talk, &command, 1);
    want(&talk, OWNER_TODO_PLACE);
    owner_on_place_reported(talk.owner, 9, false);
    want_nothing(&talk);
    pass_ms(&talk, 1000);
    want(&talk, OWNER_TODO_PLACE);
    owner_on_place_reported(talk.owner, 9, true);
    want(&talk, OWNER_TODO_FLUSH);
    assert_int_equal(talk.todo.flush->command_floor, 9);
    commit(&talk, talk.todo.flush, 0);
    pass_ms(&talk, 1000);
    want(&talk, OWNER_TODO_FLUSH);
    assert_int_equal(talk.todo.flush->command_floor, 10); /* intake has it from now on */
    assert_int_equal(talk.todo.flush->command_count, 0);
    talk_end(&talk);
}

static void test_priority_moves_a_waiting_job(void **state)
{
    struct flush_job row;
    struct talk talk;

    (void)state;
    begin_idle(&talk);
    submit_waiting(&talk, 1);
    submit_waiting(&talk, 2);
    say_place(&talk, 9, 1, 0, 2);
    want_ack(&talk, 9, true, "");
    row = talk.todo.flush->jobs[0];
    assert_int_equal(row.action, FLUSH_UPDATE);
    assert_true(row.placed);
    assert_int_equal(row.spec->rank, JOB_RANK_PRIORITY_2);
    assert_int_equal(row.spec->seq, 2);
    assert_int_equal(row.spec->start_deadline_us, START_US + 600000000);
    commit(&talk, talk.todo.flush, 1);
    say_heartbeat(&talk, "w1", 1, 0, 0, NULL, 0);
    want(&talk, OWNER_TODO_ATTEMPT); /* the other one overtakes it */
    assert_memory_equal(talk.todo.attempt.message.job.bytes, job_named(2).bytes, WIRE_ID_SIZE);
    talk_end(&talk);
}

static void say_put_off(struct talk *talk, uint8_t n, uint64_t token, uint64_t delay_ms)
{
    struct message_finished finished = {.job = job_named(n),
                                        .token = token,
                                        .worker = WIRE_TEXT_OF("w1"),
                                        .boot = 1,
                                        .error_class = ERROR_CLASS_HANDED_BACK,
                                        .retry_after_ms = delay_ms,
                                        .started_us = talk->now_us,
                                        .finished_us = talk->now_us};

    say_outcome(talk, MESSAGE_FINISHED, &finished);
}

static void want_put_off(struct talk *talk, uint64_t due_us)
{
    struct flush_job row = commit_one(talk);

    assert_int_equal(row.state, JOB_QUEUED);
    assert_int_equal(row.due_us, due_us);
    assert_int_equal(row.user_failures + row.lost_failures + row.oom_failures, 0);
}

static void test_what_is_put_off_begins_at_its_time(void **state)
{
    const uint64_t hour_ms = 3600000;
    struct talk talk;
    uint64_t token;

    (void)state;
    begin_idle(&talk);
    say_heartbeat(&talk, "w1", 99, 0, 0, NULL, 0);
    token = run_one(&talk, 1);
    say_put_off(&talk, 1, token, hour_ms);
    want_put_off(&talk, START_US + hour_ms * 1000);
    talk.now_us += (hour_ms - 50) * 1000; /* past its start deadline */
    pass_until(&talk, START_US + (hour_ms - 20) * 1000);
    while (next_todo(&talk)) {
        assert_int_not_equal(talk.todo.type, OWNER_TODO_ATTEMPT);
        if (talk.todo.type == OWNER_TODO_FLUSH)
            commit(&talk, talk.todo.flush, 0);
    }
    pass_until(&talk, START_US + hour_ms * 1000);
    want(&talk, OWNER_TODO_ATTEMPT);
    assert_true(talk.todo.attempt.message.token > token);
    assert_int_equal(talk.todo.attempt.message.number, 2);
    talk_end(&talk);
}

static void test_what_is_put_off_is_woken(void **state)
{
    const struct ledger_command command = command_of(7, COMMAND_WAKE, 1);
    struct talk talk;

    (void)state;
    begin_idle(&talk);
    say_heartbeat(&talk, "w1", 99, 0, 0, NULL, 0);
    say_put_off(&talk, 1, run_one(&talk, 1), 3600000);
    want_put_off(&talk, START_US + 3600000000);
    want_nothing(&talk);
    more_commands(&talk, &command, 1);
    want(&talk, OWNER_TODO_ATTEMPT);
    want_ack(&talk, 7, true, "");
    assert_int_equal(talk.todo.flush->jobs[0].due_us, 0);
    talk_end(&talk);
}

/* The word is given while the attempt that is about to be put off still runs, or is not written. */
static void test_a_wake_that_comes_early_counts(void **state)
{
    const struct ledger_command commands[] = {command_of(7, COMMAND_WAKE, 1),
                                              command_of(8, COMMAND_WAKE, 1)};
    const struct flush *flush;
    struct talk talk;
    uint64_t token;

    (void)state;
    begin_idle(&talk);
    say_heartbeat(&talk, "w1", 99, 0, 0, NULL, 0);
    token = run_one(&talk, 1);
    pass_ms(&talk, 110);
    (void)commit_one(&talk);
    more_commands(&talk, &commands[0], 1);
    want_ack(&talk, 7, true, "");
    commit(&talk, talk.todo.flush, 0);
    say_put_off(&talk, 1, token, 3600000);
    want_put_off(&talk, 0);
    want(&talk, OWNER_TODO_ATTEMPT);
    token = talk.todo.attempt.message.token;
    owner_on_attempt_reported(talk.owner, token, 2);
    say_put_off(&talk, 1, token, 3600000);
    want_flush(&talk, 1);
    flush = talk.todo.flush;
    more_commands(&talk, &commands[1], 1);
    commit(&talk, flush, 1);
    want_ack(&talk, 8, true, "");
    commit(&talk, talk.todo.flush, 1);
    want(&talk, OWNER_TODO_ATTEMPT);
    talk_end(&talk);
}

/* The owner that was woken is dead, and its command is done: nobody would wake the run again. */
static void test_what_an_earlier_owner_began_is_not_put_off(void **state)
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
    say_heartbeat(&talk, "w1", 99, 1, 3, &held, 1);
    want_nothing(&talk);
    say_put_off(&talk, 1, token, 3600000);
    want_put_off(&talk, 0);
    want(&talk, OWNER_TODO_ATTEMPT);
    token = talk.todo.attempt.message.token;
    owner_on_attempt_reported(talk.owner, token, 2);
    say_put_off(&talk, 1, token, 3600000);
    want_put_off(&talk, START_US + 3600000000); /* this one was its own */
    talk_end(&talk);
}

static void test_a_wake_of_what_is_over_is_refused(void **state)
{
    const struct ledger_command command = command_of(7, COMMAND_WAKE, 1);
    struct talk talk;

    (void)state;
    begin_idle(&talk);
    more_commands(&talk, &command, 1);
    answer_lookup(&talk, 1, JOB_SUCCEEDED, 1, 5);
    want_ack(&talk, 7, false, "the job is SUCCEEDED already");
    talk_end(&talk);
}

static void test_commands_are_asked_for_again_and_bounded(void **state)
{
    struct owner_options options = owner_options_default;
    struct ledger_command commands[2] = {command_of(3, COMMAND_REPLAY, 1),
                                         command_of(5, COMMAND_REPLAY, 2)};
    struct talk talk;

    (void)state;
    options.commands = 2;
    talk_begin_with(
        &talk, options,
        (struct ledger_takeover){.intake_floor = -1, .outcome_floor = -1, .command_floor = 3},
        (struct owner_ends){0});
    want(&talk, OWNER_TODO_COMMANDS);
    assert_int_equal(talk.todo.commands.from, 3);
    assert_int_equal(talk.todo.commands.limit, 2);
    owner_on_commands(talk.owner, commands, 2, false);
    want(&talk, OWNER_TODO_PLACE);
    want(&talk, OWNER_TODO_PLACE);
    want_nothing(&talk); /* as many as may be in memory */
    owner_on_place_reported(talk.owner, 3, true);
    want(&talk, OWNER_TODO_COMMANDS);
    assert_int_equal(talk.todo.commands.from, 6);
    assert_int_equal(talk.todo.commands.limit, 1);
    owner_on_commands(talk.owner, NULL, 0, true);
    pass_ms(&talk, 5000);
    want(&talk, OWNER_TODO_COMMANDS); /* without a notice, slowly */
    talk_end(&talk);
}

static void test_a_switch_holds_what_waits(void **state)
{
    static const struct ledger_switch rows[] = {
        {SWITCH_TENANT, "t1", ""},
        {SWITCH_MODEL, "t1", "m"},
        {SWITCH_TAG, "t1", "blue"},
    };
    static const struct ledger_switch others[] = {
        {SWITCH_TENANT, "t2", ""}, {SWITCH_MODEL, "t2", "m"},  {SWITCH_MODEL, "t1", "n"},
        {SWITCH_TAG, "t1", "blu"}, {SWITCH_TAG, "t2", "blue"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct message_submit submit = submit_of(1);
        struct talk talk;

        begin_idle(&talk);
        owner_set_switches(talk.owner, &rows[i], 1);
        submit.tags = WIRE_TEXT_OF("azure,blue,cyan");
        say_intake(&talk, MESSAGE_SUBMIT, &submit);
        say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
        want_nothing(&talk);
        assert_int_equal(owner_stats(talk.owner).parked, 1);
        pass_ms(&talk, 110); /* its row is written all the same */
        assert_int_equal(commit_one(&talk).state, JOB_QUEUED);
        want_nothing(&talk);
        owner_set_switches(talk.owner, others, COUNT_OF(others));
        want(&talk, OWNER_TODO_ATTEMPT);
        assert_int_equal(owner_stats(talk.owner).parked, 0);
        talk_end(&talk);
    }
}

static void test_a_held_job_can_be_canceled_and_expires(void **state)
{
    const struct ledger_switch on = {SWITCH_TENANT, "t1", ""};
    struct talk talk;

    (void)state;
    begin_idle(&talk);
    owner_set_switches(talk.owner, &on, 1);
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    submit_waiting(&talk, 1);
    submit_waiting(&talk, 2);
    assert_int_equal(owner_stats(talk.owner).parked, 2);
    say_cancel(&talk, 1);
    assert_int_equal(commit_one(&talk).state, JOB_CANCELED);
    talk.now_us += 601000000;
    owner_on_outcome_end(talk.owner, talk.now_us);
    owner_tick(talk.owner, talk.now_us, talk.now_us);
    assert_int_equal(owner_stats(talk.owner).parked, 0);
    assert_int_equal(owner_stats(talk.owner).expired, 1);
    talk_end(&talk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_cancel_is_acknowledged_in_its_flush),
        cmocka_unit_test(test_a_cancel_of_a_running_job_ends_its_token),
        cmocka_unit_test(test_a_command_waits_for_the_row),
        cmocka_unit_test(test_what_cannot_be_canceled_is_refused_by_name),
        cmocka_unit_test(test_a_command_for_nobody_is_refused),
        cmocka_unit_test(test_a_replay_is_the_next_round_in_a_new_place),
        cmocka_unit_test(test_a_second_copy_of_a_place_does_nothing),
        cmocka_unit_test(test_a_cancel_from_before_a_replay_leaves_its_round_alone),
        cmocka_unit_test(test_a_replay_without_its_input_is_refused),
        cmocka_unit_test(test_a_replay_waits_until_its_end_was_published),
        cmocka_unit_test(test_a_cancel_behind_a_replay_waits_with_it),
        cmocka_unit_test(test_a_cancel_that_is_looked_up_meanwhile_waits_too),
        cmocka_unit_test(test_a_place_that_kafka_refused_is_sent_again),
        cmocka_unit_test(test_priority_moves_a_waiting_job),
        cmocka_unit_test(test_what_is_put_off_begins_at_its_time),
        cmocka_unit_test(test_what_is_put_off_is_woken),
        cmocka_unit_test(test_a_wake_that_comes_early_counts),
        cmocka_unit_test(test_what_an_earlier_owner_began_is_not_put_off),
        cmocka_unit_test(test_a_wake_of_what_is_over_is_refused),
        cmocka_unit_test(test_commands_are_asked_for_again_and_bounded),
        cmocka_unit_test(test_a_switch_holds_what_waits),
        cmocka_unit_test(test_a_held_job_can_be_canceled_and_expires),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
