/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: how many jobs of a tenant or a key run at a time is exact, whoever started them; who is at
 * its limit is in nobody's way; limits change while jobs run. */

#include "tests/unit/owner_talk.h"

static void say_job(struct talk *talk, uint8_t n, const char *tenant, const char *key)
{
    struct message_submit submit = submit_of(n);

    submit.tenant = WIRE_TEXT_OF(tenant);
    submit.key_prefix = WIRE_TEXT_OF(key);
    say_intake(talk, MESSAGE_SUBMIT, &submit);
}

static void limit(struct talk *talk, enum owner_party kind, const char *name, uint64_t running_max)
{
    const struct owner_limit limits[] = {
        {.kind = kind, .name = WIRE_TEXT_OF(name), .running_max = running_max}};

    owner_on_limits(talk->owner, limits, 1);
}

/* The next to-do is the Attempt of that job. */
static uint64_t want_attempt(struct talk *talk, uint8_t n)
{
    struct wire_id id = job_named(n);
    uint64_t token;

    want(talk, OWNER_TODO_ATTEMPT);
    assert_memory_equal(&talk->todo.attempt.message.job, &id, sizeof(id));
    token = talk->todo.attempt.message.token;
    owner_on_attempt_reported(talk->owner, token, n);
    return token;
}

static void finish(struct talk *talk, uint8_t n, uint64_t token)
{
    say_finished(talk, n, token, ERROR_CLASS_NONE);
}

static uint64_t running(const struct talk *talk, enum owner_party kind, const char *name)
{
    return owner_running(talk->owner, kind, WIRE_TEXT_OF(name));
}

static void test_a_tenant_at_its_limit_waits_alone(void **state)
{
    struct talk talk;
    uint64_t first;

    (void)state;
    talk_begin(&talk);
    limit(&talk, OWNER_PARTY_TENANT, "a", 2);
    say_heartbeat(&talk, "w1", 9, 0, 0, NULL, 0);
    for (uint8_t n = 1; n <= 4; n++)
        say_job(&talk, n, "a", "k");
    say_job(&talk, 5, "b", "k2");
    first = want_attempt(&talk, 1);
    (void)want_attempt(&talk, 5); /* b was served less; then a again, up to its limit */
    (void)want_attempt(&talk, 2);
    want_nothing(&talk);
    assert_int_equal(running(&talk, OWNER_PARTY_TENANT, "a"), 2);
    finish(&talk, 1, first);
    (void)want_attempt(&talk, 3);
    assert_int_equal(running(&talk, OWNER_PARTY_TENANT, "a"), 2);
    want_flush(&talk, 1);
    talk_end(&talk);
}

static void test_a_key_at_its_limit_leaves_its_tenant_alone(void **state)
{
    struct talk talk;
    uint64_t first;

    (void)state;
    talk_begin(&talk);
    limit(&talk, OWNER_PARTY_KEY, "slow", 1);
    say_heartbeat(&talk, "w1", 9, 0, 0, NULL, 0);
    say_job(&talk, 1, "a", "slow");
    say_job(&talk, 2, "a", "slow");
    say_job(&talk, 3, "a", "other");
    say_job(&talk, 4, "a", "");
    first = want_attempt(&talk, 1);
    (void)want_attempt(&talk, 3);
    (void)want_attempt(&talk, 4);
    want_nothing(&talk);
    finish(&talk, 1, first);
    (void)want_attempt(&talk, 2);
    assert_int_equal(running(&talk, OWNER_PARTY_KEY, "slow"), 1);
    assert_int_equal(running(&talk, OWNER_PARTY_TENANT, "a"), 3);
    talk_end(&talk);
}

static void test_limits_change_at_any_time(void **state)
{
    struct talk talk;
    uint64_t tokens[4];

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 9, 0, 0, NULL, 0);
    for (uint8_t n = 1; n <= 2; n++) {
        say_job(&talk, n, "a", "k");
        tokens[n] = want_attempt(&talk, n);
    }
    limit(&talk, OWNER_PARTY_TENANT, "a", 1); /* lowered: what runs goes on, nothing follows */
    say_job(&talk, 3, "a", "k");
    want_nothing(&talk);
    finish(&talk, 1, tokens[1]);
    want_flush(&talk, 1);
    want_nothing(&talk);
    limit(&talk, OWNER_PARTY_TENANT, "a", 0); /* nothing at all */
    finish(&talk, 2, tokens[2]);
    want_nothing(&talk);
    limit(&talk, OWNER_PARTY_TENANT, "b", 1); /* a has none any more */
    (void)want_attempt(&talk, 3);
    talk_end(&talk);
}

static void test_nothing_runs_before_limits_are_known(void **state)
{
    struct owner_options options = owner_options_default;
    struct talk talk;

    (void)state;
    options.await_limits = true;
    talk_begin_with(&talk, options,
                    (struct ledger_takeover){.intake_floor = -1, .outcome_floor = -1},
                    (struct owner_ends){0});
    say_heartbeat(&talk, "w1", 9, 0, 0, NULL, 0);
    say_job(&talk, 1, "a", "k");
    want_nothing(&talk);
    owner_on_limits(talk.owner, NULL, 0);
    (void)want_attempt(&talk, 1);
    talk_end(&talk);
}

/* One job of the tenant ran when the old owner died: its token counts before anybody is heard. */
static void test_what_a_takeover_adopts_counts(void **state)
{
    uint64_t old = TOKEN_MAKE(EPOCH - 1, 9);
    struct ledger_row row;
    struct talk talk = {0};

    (void)state;
    row = row_of(&talk, 1, JOB_IN_PROGRESS, old, 0, 1);
    talk_begin_with(&talk, owner_options_default,
                    (struct ledger_takeover){
                        .intake_floor = 2, .outcome_floor = -1, .rows = &row, .row_count = 1},
                    (struct owner_ends){.intake_end = 2});
    limit(&talk, OWNER_PARTY_TENANT, "t1", 1);
    assert_int_equal(running(&talk, OWNER_PARTY_TENANT, "t1"), 1);
    say_heartbeat(&talk, "w1", 9, 0, 0, NULL, 0);
    say_submit(&talk, 2);
    want_nothing(&talk);
    finish(&talk, 1, old);
    want(&talk, OWNER_TODO_ATTEMPT);
    assert_int_equal(running(&talk, OWNER_PARTY_TENANT, "t1"), 1);
    talk_end(&talk);
}

static void test_who_is_held_back_still_expires_and_cancels(void **state)
{
    struct message_submit submit = submit_of(1);
    struct flush_job row;
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    limit(&talk, OWNER_PARTY_TENANT, "t1", 0);
    say_heartbeat(&talk, "w1", 9, 0, 0, NULL, 0);
    submit.queue_limit_ms = 20;
    say_intake(&talk, MESSAGE_SUBMIT, &submit);
    say_submit(&talk, 2);
    want_nothing(&talk);
    say_cancel(&talk, 2);
    row = commit_one(&talk);
    assert_int_equal(row.state, JOB_CANCELED);
    want(&talk, OWNER_TODO_VERDICT);
    want(&talk, OWNER_TODO_PUBLISH);
    pass_ms(&talk, 30);
    row = commit_one(&talk);
    assert_int_equal(row.state, JOB_EXPIRED);
    talk_end(&talk);
}

/* A tenant with far more than the window holds: a newcomer's job is the next one. */
static void test_a_backlog_delays_nobody_else(void **state)
{
    struct owner_options options = owner_options_default;
    struct talk talk;
    uint64_t token;

    (void)state;
    options.window_jobs = 8;
    options.flush_jobs = 8;
    talk_begin_with(&talk, options,
                    (struct ledger_takeover){.intake_floor = -1, .outcome_floor = -1},
                    (struct owner_ends){0});
    say_heartbeat(&talk, "w1", 1, 0, 0, NULL, 0);
    for (uint8_t n = 1; n <= 40; n++)
        say_job(&talk, n, "a", "k");
    token = want_attempt(&talk, 1);
    pass_ms(&talk, 110);
    while (owner_next_todo(talk.owner, &talk.todo)) { /* rows and loads, but no Attempt */
        assert_int_not_equal(talk.todo.type, OWNER_TODO_ATTEMPT);
        if (talk.todo.type == OWNER_TODO_FLUSH)
            commit(&talk, talk.todo.flush, 0xff);
    }
    assert_true(owner_stats(talk.owner).waiting_in_memory < 8);
    say_job(&talk, 41, "b", "k2");
    finish(&talk, 1, token);
    say_heartbeat(&talk, "w1", 2, 1, 9, NULL, 0);
    for (;;) {
        assert_true(owner_next_todo(talk.owner, &talk.todo));
        if (talk.todo.type == OWNER_TODO_ATTEMPT)
            break;
    }
    assert_true(wire_text_equal(talk.todo.attempt.message.tenant, "b"));
    talk_end(&talk);
}

/* Four slots: a job of three waits for them, and smaller ones do not slip past it for ever. */
static void test_a_job_of_several_slots_waits_for_them(void **state)
{
    struct message_submit submit = submit_of(3);
    struct talk talk;
    uint64_t tokens[4];

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 9, 0, 0, NULL, 0);
    for (uint8_t n = 1; n <= 2; n++) {
        say_submit(&talk, n);
        tokens[n] = want_attempt(&talk, n);
    }
    submit.slot_count = 3;
    say_intake(&talk, MESSAGE_SUBMIT, &submit);
    say_submit(&talk, 4);
    want_nothing(&talk);
    finish(&talk, 1, tokens[1]);
    want(&talk, OWNER_TODO_ATTEMPT);
    assert_int_equal(talk.todo.attempt.message.slot_count, 3);
    want_flush(&talk, 1);
    want_nothing(&talk); /* 1 + 3 slots are taken */
    finish(&talk, 2, tokens[2]);
    want(&talk, OWNER_TODO_ATTEMPT);
    assert_int_equal(talk.todo.attempt.message.slot_count, 1);
    talk_end(&talk);
}

struct pace {
    int count;
    uint64_t service_us, slots;
};

static void pace_see(void *opaque, struct wire_text pool, uint64_t service_us, uint64_t slots)
{
    struct pace *pace = opaque;

    assert_true(wire_text_equal(pool, "p"));
    pace->count++;
    pace->service_us = service_us;
    pace->slots = slots;
}

/* Nothing is said about a pool before one of its jobs has ended; then what it took moves the mean.
 */
static void test_the_pace_of_a_pool(void **state)
{
    struct pace pace = {0};
    struct talk talk;
    uint64_t token;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 9, 0, 0, NULL, 0);
    say_submit(&talk, 1);
    token = want_attempt(&talk, 1);
    owner_each_pace(talk.owner, pace_see, &pace);
    assert_int_equal(pace.count, 0);
    pass_ms(&talk, 900);
    finish(&talk, 1, token);
    owner_each_pace(talk.owner, pace_see, &pace);
    assert_int_equal(pace.count, 1);
    assert_int_equal(pace.slots, 4);
    assert_int_equal(pace.service_us, (7 * 100000 + 900000) / 8);
    talk_end(&talk);
}

/* What it waited for in its worker is not what it took; a worker's clock cannot make it more. */
static void test_the_pace_is_that_of_the_slots(void **state)
{
    static const struct {
        uint64_t started_us, finished_us, want_us;
    } rows[] = {{5000000, 5100000, 100000}, {5000000, 9000000, 900000}, {5000000, 4000000, 900000}};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct message_finished finished = {.job = job_named(1),
                                            .worker = WIRE_TEXT_OF("w1"),
                                            .boot = 1,
                                            .output = {(const uint8_t *)"42", 2},
                                            .started_us = rows[i].started_us,
                                            .finished_us = rows[i].finished_us};
        struct pace pace = {0};
        struct talk talk;

        talk_begin(&talk);
        say_heartbeat(&talk, "w1", 9, 0, 0, NULL, 0);
        say_submit(&talk, 1);
        finished.token = want_attempt(&talk, 1);
        pass_ms(&talk, 900);
        say_outcome(&talk, MESSAGE_FINISHED, &finished);
        owner_each_pace(talk.owner, pace_see, &pace);
        assert_int_equal(pace.service_us, (7 * 100000 + rows[i].want_us) / 8);
        talk_end(&talk);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_tenant_at_its_limit_waits_alone),
        cmocka_unit_test(test_a_key_at_its_limit_leaves_its_tenant_alone),
        cmocka_unit_test(test_limits_change_at_any_time),
        cmocka_unit_test(test_nothing_runs_before_limits_are_known),
        cmocka_unit_test(test_what_a_takeover_adopts_counts),
        cmocka_unit_test(test_who_is_held_back_still_expires_and_cancels),
        cmocka_unit_test(test_a_backlog_delays_nobody_else),
        cmocka_unit_test(test_a_job_of_several_slots_waits_for_them),
        cmocka_unit_test(test_the_pace_of_a_pool),
        cmocka_unit_test(test_the_pace_is_that_of_the_slots),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
