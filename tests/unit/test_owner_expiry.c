/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: jobs that are not in memory expire in time, once, whatever else happens to them meanwhile.
 * Method: a window of one job, so that the second waits in the ledger. */

#include "tests/unit/owner_talk.h"

#define LIMIT_MS 300

static void submit_limited(struct talk *talk, uint8_t n, uint64_t queue_ms)
{
    struct message_submit submit = submit_of(n);

    submit.queue_limit_ms = queue_ms;
    say_intake(talk, MESSAGE_SUBMIT, &submit);
}

/* Carries out what the time brings; nothing is due. */
static void settle(struct talk *talk)
{
    while (next_todo(talk)) {
        if (talk->todo.type == OWNER_TODO_FLUSH)
            commit(talk, talk->todo.flush, ~0u);
    }
}

/* Jobs 1 to count are written; those behind the first are rows only. */
static void begin_spilled(struct talk *talk, uint8_t count, uint64_t queue_ms)
{
    struct owner_options options = owner_options_default;

    options.window_jobs = 2;
    talk_begin_with(talk, options,
                    (struct ledger_takeover){.intake_floor = -1, .outcome_floor = -1},
                    (struct owner_ends){0});
    say_submit(talk, 1);
    for (uint8_t n = 2; n <= count; n++)
        submit_limited(talk, n, queue_ms);
    settle(talk);
    pass_ms(talk, 110);
    settle(talk);
    assert_int_equal(owner_stats(talk->owner).waiting_in_memory, 1);
}

static struct ledger_row limited_row(struct talk *talk, uint8_t n, uint64_t queue_ms)
{
    struct wire_decoder *decoder = wire_decoder_new();
    struct message_submit submit = submit_of(n);
    struct ledger_row row = {.state = JOB_QUEUED};
    OWNED(buf_done) struct buf buf = BUF_WITH_LIMIT(1 << 16);
    struct err err;

    (void)talk;
    submit.queue_limit_ms = queue_ms;
    submit.input = (struct wire_bytes){0};
    assert_int_equal(message_encode(MESSAGE_SUBMIT, &submit, &buf, &err), 0);
    assert_int_equal(job_spec_new(decoder, buf.bytes, buf.size, n - 1u, START_US, &row.spec, &err),
                     0);
    wire_decoder_free(&decoder);
    return row;
}

/* The next DUE; other to-dos that the time brings are carried out or left out. */
static struct owner_todo want_due(struct talk *talk)
{
    for (;;) {
        assert_true(owner_next_todo(talk->owner, &talk->todo));
        if (talk->todo.type == OWNER_TODO_DUE)
            return talk->todo;
        if (talk->todo.type == OWNER_TODO_FLUSH)
            commit(talk, talk->todo.flush, ~0u);
    }
}

/* True when one is asked for. */
static bool asks_due(struct talk *talk)
{
    while (owner_next_todo(talk->owner, &talk->todo)) {
        if (talk->todo.type == OWNER_TODO_DUE)
            return true;
        if (talk->todo.type == OWNER_TODO_FLUSH)
            commit(talk, talk->todo.flush, ~0u);
    }
    return false;
}

static struct flush_job want_expired(struct talk *talk, uint8_t n)
{
    struct wire_id id = job_named(n);

    for (;;) {
        assert_true(owner_next_todo(talk->owner, &talk->todo));
        if (talk->todo.type == OWNER_TODO_FLUSH && talk->todo.flush->job_count > 0)
            break;
        if (talk->todo.type == OWNER_TODO_FLUSH)
            commit(talk, talk->todo.flush, 0);
    }
    assert_int_equal(talk->todo.flush->job_count, 1);
    assert_memory_equal(&talk->todo.flush->jobs[0].spec->submit.id, &id, sizeof(id));
    assert_int_equal(talk->todo.flush->jobs[0].action, FLUSH_UPDATE);
    assert_int_equal(talk->todo.flush->jobs[0].state, JOB_EXPIRED);
    return talk->todo.flush->jobs[0];
}

static void test_a_spilled_job_expires_when_it_is_due(void **state)
{
    struct owner_todo due;
    struct ledger_row row;
    struct talk talk;

    (void)state;
    begin_spilled(&talk, 3, LIMIT_MS);
    pass_ms(&talk, 250);
    due = want_due(&talk);
    assert_true(due.due.cursor.upto_us >= START_US + LIMIT_MS * 1000);
    row = limited_row(&talk, 2, LIMIT_MS);
    owner_on_due(talk.owner, &due.due.cursor, &row, 1, true);
    (void)want_expired(&talk, 2);
    commit(&talk, talk.todo.flush, 1);
    want(&talk, OWNER_TODO_PUBLISH);
    assert_int_equal(talk.todo.publish.finals[0].completed.state, JOB_EXPIRED);
    assert_int_equal(owner_stats(talk.owner).waiting_in_memory, 1);
    talk_end(&talk);
}

static void test_the_cursor_only_moves_forward(void **state)
{
    struct owner_todo due;
    struct ledger_row row;
    uint64_t upto_us;
    struct talk talk;

    (void)state;
    begin_spilled(&talk, 4, LIMIT_MS);
    pass_ms(&talk, 250);
    due = want_due(&talk);
    row = limited_row(&talk, 2, LIMIT_MS);
    owner_on_due(talk.owner, &due.due.cursor, &row, 1, false); /* there is more */
    due = want_due(&talk);                                     /* at once */
    assert_int_equal(due.due.cursor.after_us, START_US + LIMIT_MS * 1000);
    assert_int_equal(due.due.cursor.after_seq, 1);
    upto_us = due.due.cursor.upto_us;
    owner_on_due(talk.owner, &due.due.cursor, NULL, 0, true);
    assert_false(asks_due(&talk)); /* not before 100 ms have passed */
    pass_ms(&talk, 110);
    due = want_due(&talk);
    assert_int_equal(due.due.cursor.after_us, upto_us);
    assert_int_equal(due.due.cursor.after_seq, INT64_MAX);
    talk_end(&talk);
}

/* A cancel loads the row; then it is due as well. One of them ends the job, and only once. */
static void test_a_job_that_came_into_memory_is_left_to_its_timer(void **state)
{
    struct owner_todo due;
    struct ledger_row row;
    struct talk talk;

    (void)state;
    begin_spilled(&talk, 2, LIMIT_MS);
    pass_ms(&talk, 250);
    due = want_due(&talk);
    say_cancel(&talk, 2);
    do {
        assert_true(next_todo(&talk));
    } while (talk.todo.type != OWNER_TODO_LOOKUP);
    row = limited_row(&talk, 2, LIMIT_MS);
    owner_on_due(talk.owner, &due.due.cursor, &row, 1, true);
    row = limited_row(&talk, 2, LIMIT_MS); /* it was asked for behind it, before the flush */
    owner_on_lookup(talk.owner, &row, 1);
    (void)want_expired(&talk, 2);
    commit(&talk, talk.todo.flush, 1);
    want(&talk, OWNER_TODO_VERDICT);
    assert_false(talk.todo.verdict.message.canceled);
    want(&talk, OWNER_TODO_PUBLISH);
    talk_end(&talk);
}

/* Its insert comes back when it is overdue: forgotten now, it would lie behind the cursor. */
static void test_a_job_that_is_due_is_not_forgotten(void **state)
{
    struct flush_job row;
    struct talk talk;

    (void)state;
    begin_spilled(&talk, 2, 600000);
    submit_limited(&talk, 3, 150);
    settle(&talk);
    pass_ms(&talk, 110);
    do {
        assert_true(next_todo(&talk));
    } while (talk.todo.type != OWNER_TODO_FLUSH || talk.todo.flush->job_count == 0);
    talk.now_us += 200000; /* the commit takes long, and the loop stood still */
    owner_tick(talk.owner, talk.now_us, talk.now_us);
    commit(&talk, talk.todo.flush, 1);
    row = want_expired(&talk, 3);
    assert_int_equal(row.error_class, ERROR_CLASS_EXPIRED);
    talk_end(&talk);
}

/* After a takeover intake brings the Submit again: the row is there, due, and its insert is out. */
static void test_a_repeated_submit_of_a_due_row_expires(void **state)
{
    struct ledger_lane lanes[] = {
        {.pool = "p", .tenant = "t1", .rank = JOB_RANK_PRIORITY_0, .after_seq = -1}};
    struct ledger_takeover takeover = {
        .intake_floor = 1, .outcome_floor = -1, .lanes = lanes, .lane_count = 1};
    struct owner_todo due;
    struct ledger_row row;
    struct talk talk;

    (void)state;
    talk_begin_with(&talk, owner_options_default, takeover, (struct owner_ends){.intake_end = 2});
    pass_ms(&talk, 400);
    submit_limited(&talk, 2, LIMIT_MS); /* appended now, says Kafka: a copy */
    due = want_due(&talk);
    row = limited_row(&talk, 2, LIMIT_MS);
    owner_on_due(talk.owner, &due.due.cursor, &row, 1, true);
    do {
        assert_true(owner_next_todo(talk.owner, &talk.todo));
    } while (talk.todo.type != OWNER_TODO_FLUSH || talk.todo.flush->job_count == 0);
    assert_int_equal(talk.todo.flush->jobs[0].action, FLUSH_INSERT);
    commit(&talk, talk.todo.flush, 0); /* it was there before */
    (void)want_expired(&talk, 2);
    talk_end(&talk);
}

/* As above, but the job was replayed since: the fence of its row counts, or the end of the new
 * round would be refused by the ledger, and who cancels it be told "not canceled" while it waits.
 */
static void test_a_repeated_submit_of_a_due_round_has_its_fence(void **state)
{
    struct ledger_lane lanes[] = {
        {.pool = "p", .tenant = "t1", .rank = JOB_RANK_PRIORITY_0, .after_seq = -1}};
    struct ledger_takeover takeover = {
        .intake_floor = 1, .outcome_floor = -1, .lanes = lanes, .lane_count = 1};
    struct owner_todo due;
    struct flush_job ended;
    struct ledger_row row;
    struct talk talk;

    (void)state;
    talk_begin_with(&talk, owner_options_default, takeover, (struct owner_ends){.intake_end = 2});
    pass_ms(&talk, 400);
    submit_limited(&talk, 2, LIMIT_MS);
    due = want_due(&talk);
    row = limited_row(&talk, 2, LIMIT_MS);
    row.spec->round = 2;
    row.fence = TOKEN_MAKE(3, 7);
    owner_on_due(talk.owner, &due.due.cursor, &row, 1, true);
    do {
        assert_true(owner_next_todo(talk.owner, &talk.todo));
    } while (talk.todo.type != OWNER_TODO_FLUSH || talk.todo.flush->job_count == 0);
    commit(&talk, talk.todo.flush, 0);
    ended = want_expired(&talk, 2);
    assert_int_equal(ended.spec->round, 2);
    assert_true(ended.fence == TOKEN_MAKE(3, 7));
    talk_end(&talk);
}

static void test_nothing_is_asked_while_nothing_is_spilled(void **state)
{
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_submit(&talk, 1);
    pass_ms(&talk, 1000);
    assert_false(asks_due(&talk));
    talk_end(&talk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_spilled_job_expires_when_it_is_due),
        cmocka_unit_test(test_the_cursor_only_moves_forward),
        cmocka_unit_test(test_a_job_that_came_into_memory_is_left_to_its_timer),
        cmocka_unit_test(test_a_job_that_is_due_is_not_forgotten),
        cmocka_unit_test(test_a_repeated_submit_of_a_due_row_expires),
        cmocka_unit_test(test_a_repeated_submit_of_a_due_round_has_its_fence),
        cmocka_unit_test(test_nothing_is_asked_while_nothing_is_spilled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
