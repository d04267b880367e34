/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: the owner's rules about jobs and flushes, one a test: what runs ahead of its row, what a
 * failure costs, what is refused, when it stops. Whole worlds with faults are in tests/sim. */

#include "tests/unit/owner_talk.h"

static void test_a_job_is_dispatched_ahead_and_written_once(void **state)
{
    struct talk talk;
    uint64_t token;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    token = run_one(&talk, 1);
    assert_int_equal(token, TOKEN_MAKE(EPOCH, 1));
    assert_true(wire_text_equal(talk.todo.attempt.message.worker, "w1"));
    want_nothing(&talk);

    say_finished(&talk, 1, token, ERROR_CLASS_NONE);
    want_flush(&talk, 1);
    assert_int_equal(talk.todo.flush->jobs[0].action, FLUSH_INSERT);
    assert_int_equal(talk.todo.flush->jobs[0].state, JOB_SUCCEEDED);
    assert_int_equal(talk.todo.flush->jobs[0].final_token, token);
    assert_int_equal(talk.todo.flush->attempt_count, 1);
    assert_int_equal(talk.todo.flush->intake_floor, 1);
    assert_int_equal(talk.todo.flush->outcome_floor, 2);
    want_nothing(&talk);

    commit(&talk, talk.todo.flush, 1);
    want(&talk, OWNER_TODO_PUBLISH);
    assert_int_equal(talk.todo.publish.final_count, 1);
    assert_int_equal(talk.todo.publish.finals[0].completed.state, JOB_SUCCEEDED);
    assert_memory_equal(talk.todo.publish.finals[0].completed.output.bytes, "42", 2);
    owner_on_published(talk.owner, 1);
    want_nothing(&talk);
    pass_ms(&talk, 1000);
    want_flush(&talk, 0);
    assert_int_equal(talk.todo.flush->published_number, 1);
    assert_int_equal(talk.todo.flush->published_epoch, EPOCH);
    talk_end(&talk);
}

static void test_a_long_job_gets_its_row_after_the_row_delay(void **state)
{
    struct flush_job row;
    struct talk talk;
    uint64_t token;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    token = run_one(&talk, 1);
    pass_ms(&talk, 90);
    want_nothing(&talk);
    pass_ms(&talk, 20);
    row = commit_one(&talk);
    assert_int_equal(row.action, FLUSH_INSERT);
    assert_int_equal(row.state, JOB_IN_PROGRESS);
    assert_int_equal(row.token, token);
    say_finished(&talk, 1, token, ERROR_CLASS_NONE);
    row = commit_one(&talk);
    assert_int_equal(row.action, FLUSH_UPDATE);
    assert_int_equal(row.state, JOB_SUCCEEDED);
    assert_int_equal(row.fence, token);
    want(&talk, OWNER_TODO_PUBLISH);
    talk_end(&talk);
}

static void test_a_retry_waits_for_the_flush_and_its_delay(void **state)
{
    struct flush_job row;
    struct talk talk;
    uint64_t token;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    token = run_one(&talk, 1);
    say_finished(&talk, 1, token, ERROR_CLASS_MODEL_ERROR);
    want_flush(&talk, 1);
    row = talk.todo.flush->jobs[0];
    assert_int_equal(row.state, JOB_QUEUED);
    assert_int_equal(row.user_failures, 1);
    assert_int_equal(row.fence, token);
    assert_true(row.due_us >= START_US + 500000 && row.due_us <= START_US + 1000000);
    pass_ms(&talk, 2000); /* longer than any delay: the flush is what it waits for */
    want(&talk, OWNER_TODO_INTAKE_PAUSE);
    want_nothing(&talk);
    owner_on_flush(talk.owner, &(struct flush_result){.verdict = FLUSH_COMMITTED,
                                                      .number = 1,
                                                      .applied = (const bool[]){true}});
    want(&talk, OWNER_TODO_ATTEMPT);
    assert_int_equal(talk.todo.attempt.message.number, 2);
    assert_true(talk.todo.attempt.message.token > token);
    talk_end(&talk);
}

/* What a model asks for counts when it is longer than the backoff, up to a minute. */
/* A caller waits: the model is tried again only while it cannot take the call, and what it says to
 * a failure is kept. */
static void test_a_sync_call_gets_what_its_model_says(void **state)
{
    struct message_submit submit = submit_of(1);
    struct message_finished finished = {.job = job_named(1),
                                        .worker = WIRE_TEXT_OF("w1"),
                                        .boot = 1,
                                        .error_class = ERROR_CLASS_MODEL_UNAVAILABLE,
                                        .output = {(const uint8_t *)"no", 2},
                                        .output_size = 2,
                                        .output_type = WIRE_TEXT_OF("text/plain"),
                                        .http_status = 503,
                                        .started_us = START_US,
                                        .finished_us = START_US};
    struct flush_job row;
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    submit.sync = submit.stream = true;
    submit.max_attempts = 5;
    submit.route = WIRE_TEXT_OF("POST /v1/x");
    submit.input_type = WIRE_TEXT_OF("image/png");
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    say_intake(&talk, MESSAGE_SUBMIT, &submit);
    want(&talk, OWNER_TODO_ATTEMPT);
    assert_true(wire_text_equal(talk.todo.attempt.message.route, "POST /v1/x"));
    assert_true(wire_text_equal(talk.todo.attempt.message.input_type, "image/png"));
    assert_true(wire_text_equal(talk.todo.attempt.message.gateway, "gw"));
    assert_true(talk.todo.attempt.message.stream);
    finished.token = talk.todo.attempt.message.token;
    say_outcome(&talk, MESSAGE_FINISHED, &finished);
    row = commit_one(&talk);
    assert_int_equal(row.state, JOB_QUEUED);
    assert_int_equal(row.http_status, 0);
    pass_ms(&talk, 1100);
    want(&talk, OWNER_TODO_ATTEMPT);
    finished.token = talk.todo.attempt.message.token;
    finished.error_class = ERROR_CLASS_MODEL_ERROR;
    finished.http_status = 500;
    say_outcome(&talk, MESSAGE_FINISHED, &finished);
    row = commit_one(&talk);
    assert_int_equal(row.state, JOB_FAILED);
    want(&talk, OWNER_TODO_PUBLISH);
    assert_true(wire_text_equal(talk.todo.publish.finals[0].completed.output_type, "text/plain"));
    assert_int_equal(talk.todo.publish.finals[0].completed.output.size, 2);
    assert_int_equal(talk.todo.publish.finals[0].completed.http_status, 500);
    talk_end(&talk);
}

static void test_retry_after_is_honoured_and_bounded(void **state)
{
    static const struct {
        uint64_t retry_after_ms, least_ms, most_ms;
    } rows[] = {{0, 500, 1000}, {100, 500, 1000}, {20000, 20000, 20000}, {3600000, 60000, 60000}};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct message_finished finished = {.job = job_named(1),
                                            .worker = WIRE_TEXT_OF("w1"),
                                            .boot = 1,
                                            .error_class = ERROR_CLASS_MODEL_UNAVAILABLE,
                                            .retry_after_ms = rows[i].retry_after_ms};
        struct flush_job row;
        struct talk talk;

        talk_begin(&talk);
        say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
        finished.token = run_one(&talk, 1);
        say_outcome(&talk, MESSAGE_FINISHED, &finished);
        row = commit_one(&talk);
        assert_in_range(row.due_us, START_US + rows[i].least_ms * 1000,
                        START_US + rows[i].most_ms * 1000);
        talk_end(&talk);
    }
}

static void test_budgets_end_a_job(void **state)
{
    static const struct {
        enum error_class class;
        int tries;
        enum error_class why;
    } rows[] = {
        {ERROR_CLASS_BAD_INPUT, 1, ERROR_CLASS_BAD_INPUT},
        {ERROR_CLASS_MODEL_ERROR, 3, ERROR_CLASS_MODEL_ERROR},
        {ERROR_CLASS_OOM, JOB_OOM_ATTEMPTS_MAX, ERROR_CLASS_OOM},
        {ERROR_CLASS_LOST_WORKER, JOB_LOST_ATTEMPTS_MAX, ERROR_CLASS_LOST_WORKER},
        {ERROR_CLASS_DEVICE_FAULT, JOB_LOST_ATTEMPTS_MAX, ERROR_CLASS_DEVICE_FAULT},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct flush_job row = {0};
        struct talk talk;

        talk_begin(&talk);
        say_heartbeat(&talk, "w1", 99, 0, 0, NULL, 0);
        say_submit(&talk, 1);
        for (int n = 1; n <= rows[i].tries; n++) {
            want(&talk, OWNER_TODO_ATTEMPT);
            if (rows[i].class == ERROR_CLASS_OOM)
                assert_int_equal(talk.todo.attempt.message.alone, n > 1);
            say_finished(&talk, 1, talk.todo.attempt.message.token, rows[i].class);
            row = commit_one(&talk);
            if (n < rows[i].tries) {
                assert_int_equal(row.state, JOB_QUEUED);
                pass_until(&talk, row.due_us);
            }
        }
        assert_int_equal(row.state, JOB_FAILED);
        assert_int_equal(row.error_class, rows[i].why);
        assert_int_equal(row.attempt_count, rows[i].tries);
        want(&talk, OWNER_TODO_PUBLISH);
        talk_end(&talk);
    }
}

static void test_what_is_handed_back_costs_nothing(void **state)
{
    struct flush_job row;
    struct talk talk;
    uint64_t token;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    token = run_one(&talk, 1);
    say_finished(&talk, 1, token, ERROR_CLASS_HANDED_BACK);
    row = commit_one(&talk);
    assert_int_equal(row.state, JOB_QUEUED);
    assert_int_equal(row.user_failures + row.oom_failures + row.lost_failures, 0);
    want(&talk, OWNER_TODO_ATTEMPT);
    talk_end(&talk);
}

static void test_a_token_that_is_over_changes_nothing(void **state)
{
    struct talk talk;
    uint64_t token;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    token = run_one(&talk, 1);
    say_finished(&talk, 1, token, ERROR_CLASS_HANDED_BACK);
    (void)commit_one(&talk);
    want(&talk, OWNER_TODO_ATTEMPT);
    say_finished(&talk, 1, token, ERROR_CLASS_NONE);
    want_nothing(&talk);
    assert_int_equal(owner_stats(talk.owner).fenced, 1);
    talk_end(&talk);
}

static void test_a_repeated_submit_is_inserted_before_it_runs(void **state)
{
    struct message_submit submit = submit_of(1);
    struct talk talk;

    (void)state;
    for (unsigned applied = 0; applied < 2; applied++) {
        talk_begin(&talk);
        say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
        submit.repeat = true;
        say_intake(&talk, MESSAGE_SUBMIT, &submit);
        want_flush(&talk, 1);
        assert_int_equal(talk.todo.flush->jobs[0].state, JOB_QUEUED);
        want_nothing(&talk);
        commit(&talk, talk.todo.flush, applied);
        if (applied)
            want(&talk, OWNER_TODO_ATTEMPT);
        want_nothing(&talk);
        assert_int_equal(owner_stats(talk.owner).duplicate_records, 1 - applied);
        talk_end(&talk);
    }
}

static void test_a_second_submit_of_one_id_is_dropped(void **state)
{
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_submit(&talk, 1);
    say_submit(&talk, 1);
    assert_int_equal(owner_stats(talk.owner).duplicate_records, 1);
    assert_int_equal(owner_stats(talk.owner).waiting_in_memory, 1);
    talk_end(&talk);
}

static void test_garbage_is_kept_aside_before_the_floor_passes(void **state)
{
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    owner_on_intake(talk.owner, talk.intake++, talk.now_us, "\xc1oops", 5);
    want(&talk, OWNER_TODO_DEAD);
    assert_int_equal(talk.todo.dead.offset, 0);
    assert_memory_equal(talk.todo.dead.bytes, "\xc1oops", 5);
    assert_non_null(talk.todo.dead.why);
    want_nothing(&talk);
    pass_ms(&talk, 1000);
    want_flush(&talk, 0);
    assert_int_equal(talk.todo.flush->intake_floor, 1);
    talk_end(&talk);
}

static void test_another_shards_job_is_kept_aside(void **state)
{
    struct message_submit submit = submit_of(1);
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    submit.id = job_id_make(SHARD + 1, START_US / 1000, (const uint8_t[8]){1});
    say_intake(&talk, MESSAGE_SUBMIT, &submit);
    want(&talk, OWNER_TODO_DEAD);
    talk_end(&talk);
}

static void test_a_newer_version_stops_the_shard(void **state)
{
    static const uint8_t newer[] = {0x93, 99, 1, 0x80};
    struct talk talk;

    (void)state;
    for (int topic = 0; topic < 2; topic++) {
        talk_begin(&talk);
        if (topic == 0)
            owner_on_intake(talk.owner, 0, talk.now_us, newer, sizeof(newer));
        else
            owner_on_outcome(talk.owner, 0, newer, sizeof(newer));
        want(&talk, OWNER_TODO_STOP);
        assert_int_equal(talk.todo.stop.code, ERR_UNSUPPORTED);
        say_submit(&talk, 1);
        want_nothing(&talk);
        talk_end(&talk);
    }
}

static void test_a_stale_owner_stops(void **state)
{
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_submit(&talk, 1);
    say_cancel(&talk, 1);
    want_flush(&talk, 1);
    owner_on_flush(talk.owner, &(struct flush_result){.verdict = FLUSH_STALE, .number = 1});
    want(&talk, OWNER_TODO_STOP);
    assert_int_equal(talk.todo.stop.code, ERR_STALE);
    want_nothing(&talk);
    talk_end(&talk);
}

static void test_an_unwritten_flush_is_sent_again(void **state)
{
    const struct flush *flush;
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_submit(&talk, 1);
    say_cancel(&talk, 1);
    want_flush(&talk, 1);
    flush = talk.todo.flush;
    owner_on_flush(talk.owner, &(struct flush_result){.verdict = FLUSH_RETRY, .number = 1});
    want(&talk, OWNER_TODO_FLUSH);
    assert_ptr_equal(talk.todo.flush, flush);
    assert_int_equal(flush->number, 1);
    talk_end(&talk);
}

static void test_a_busy_ledger_is_written_in_larger_flushes(void **state)
{
    struct owner_options options = owner_options_default;
    struct talk talk;
    uint64_t tokens[4];

    (void)state;
    options.flush_busy_jobs = 1;
    options.flush_gap_us = 50000;
    options.flush_full_jobs = 2;
    talk_begin_with(&talk, options,
                    (struct ledger_takeover){.intake_floor = -1, .outcome_floor = -1},
                    (struct owner_ends){0});
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    for (uint8_t n = 0; n < 4; n++)
        tokens[n] = run_one(&talk, n);
    say_finished(&talk, 0, tokens[0], ERROR_CLASS_NONE);
    (void)commit_one(&talk); /* the first one waits for nobody */
    want(&talk, OWNER_TODO_PUBLISH);

    say_finished(&talk, 1, tokens[1], ERROR_CLASS_NONE);
    want_nothing(&talk);
    pass_ms(&talk, 40);
    want_nothing(&talk);
    assert_int_equal(owner_next_due_us(talk.owner), START_US + 50000);
    pass_ms(&talk, 10);
    (void)commit_one(&talk);
    want(&talk, OWNER_TODO_PUBLISH);

    say_finished(&talk, 2, tokens[2], ERROR_CLASS_NONE);
    want_nothing(&talk);
    say_finished(&talk, 3, tokens[3], ERROR_CLASS_NONE);
    want_flush(&talk, 2); /* it is full */
    talk_end(&talk);
}

static void test_a_refused_row_fails_its_job_in_the_same_flush(void **state)
{
    struct flush_result refused = {.verdict = FLUSH_REFUSED,
                                   .number = 1,
                                   .refused_index = 0,
                                   .refused_why = "invalid byte sequence"};
    struct talk talk;
    uint64_t token;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    token = run_one(&talk, 1);
    say_finished(&talk, 1, token, ERROR_CLASS_NONE);
    want_flush(&talk, 1);
    owner_on_flush(talk.owner, &refused);
    want_flush(&talk, 1);
    assert_int_equal(talk.todo.flush->number, 1);
    assert_int_equal(talk.todo.flush->jobs[0].state, JOB_FAILED);
    assert_int_equal(talk.todo.flush->jobs[0].error_class, ERROR_CLASS_UNSTORABLE);
    assert_int_equal(talk.todo.flush->jobs[0].output.size, 0);
    assert_int_equal(talk.todo.flush->jobs[0].fence, token);

    owner_on_flush(talk.owner, &refused); /* then it is the Submit that cannot be stored */
    want(&talk, OWNER_TODO_DEAD);
    assert_int_equal(talk.todo.dead.offset, 0);
    want_flush(&talk, 0);
    assert_int_equal(talk.todo.flush->intake_floor, 1);
    talk_end(&talk);
}

static void test_nothing_runs_far_ahead_of_the_ledger(void **state)
{
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 9, 0, 0, NULL, 0);
    (void)run_one(&talk, 1);
    pass_ms(&talk, 110);
    want_flush(&talk, 1); /* and no answer comes */
    say_submit(&talk, 2);
    want(&talk, OWNER_TODO_ATTEMPT);
    pass_ms(&talk, 1000);
    want(&talk, OWNER_TODO_INTAKE_PAUSE);
    say_submit(&talk, 3);
    want_nothing(&talk);
    commit(&talk, &(struct flush){.number = 1}, 1);
    want_flush(&talk, 1);
    commit(&talk, talk.todo.flush, 1);
    want(&talk, OWNER_TODO_ATTEMPT);
    want(&talk, OWNER_TODO_INTAKE_RESUME);
    talk_end(&talk);
}

static void test_a_start_deadline_expires_a_waiting_job(void **state)
{
    struct message_submit submit = submit_of(1);
    struct flush_job row;
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    submit.queue_limit_ms = 300;
    say_intake(&talk, MESSAGE_SUBMIT, &submit);
    want_nothing(&talk);
    pass_ms(&talk, 200);
    (void)commit_one(&talk);
    pass_ms(&talk, 120);
    row = commit_one(&talk);
    assert_int_equal(row.state, JOB_EXPIRED);
    assert_int_equal(row.error_class, ERROR_CLASS_EXPIRED);
    want(&talk, OWNER_TODO_PUBLISH);
    talk_end(&talk);
}

static void submit_of_tenant(struct talk *talk, uint8_t n, const char *tenant)
{
    struct message_submit submit = submit_of(n);

    submit.tenant = WIRE_TEXT_OF(tenant);
    say_intake(talk, MESSAGE_SUBMIT, &submit);
}

static uint64_t want_attempt_of(struct talk *talk, uint8_t n)
{
    struct wire_id id = job_named(n);

    want(talk, OWNER_TODO_ATTEMPT);
    assert_memory_equal(&talk->todo.attempt.message.job, &id, sizeof(id));
    return talk->todo.attempt.message.token;
}

/* A tenant with two delayed jobs gets no first attempt; another one does, and the retries do. */
static void test_a_tenant_at_its_cap_of_delayed_jobs_waits(void **state)
{
    struct owner_options options = owner_options_default;
    struct talk talk;

    (void)state;
    options.delayed_jobs = 2;
    talk_begin_with(&talk, options,
                    (struct ledger_takeover){.intake_floor = -1, .outcome_floor = -1},
                    (struct owner_ends){0});
    say_heartbeat(&talk, "w1", 99, 0, 0, NULL, 0);
    for (uint8_t n = 1; n <= 2; n++) {
        submit_of_tenant(&talk, n, "t1");
        say_finished(&talk, n, want_attempt_of(&talk, n), ERROR_CLASS_MODEL_ERROR);
        assert_int_equal(commit_one(&talk).state, JOB_QUEUED);
    }
    submit_of_tenant(&talk, 3, "t1");
    submit_of_tenant(&talk, 4, "t2");
    (void)want_attempt_of(&talk, 4);
    want_nothing(&talk);
    assert_int_equal(owner_stats(talk.owner).barred, 1);
    assert_int_equal(owner_stats(talk.owner).delayed, 2);
    pass_ms(&talk, 110);
    want_flush(&talk, 2); /* rows of 3 and 4 */
    commit(&talk, talk.todo.flush, 3);
    want_nothing(&talk);
    assert_int_equal(owner_stats(talk.owner).barred, 1);
    pass_until(&talk, talk.now_us + 1100000); /* both are due by now */
    want(&talk, OWNER_TODO_ATTEMPT);
    want(&talk, OWNER_TODO_ATTEMPT);
    (void)want_attempt_of(&talk, 3);
    assert_int_equal(owner_stats(talk.owner).barred, 0);
    talk_end(&talk);
}

static void test_what_is_barred_expires_and_is_canceled(void **state)
{
    struct owner_options options = owner_options_default;
    struct message_submit submit = submit_of(2);
    struct talk talk;

    (void)state;
    options.delayed_jobs = 1;
    talk_begin_with(&talk, options,
                    (struct ledger_takeover){.intake_floor = -1, .outcome_floor = -1},
                    (struct owner_ends){0});
    say_heartbeat(&talk, "w1", 99, 0, 0, NULL, 0);
    say_finished(&talk, 1, run_one(&talk, 1), ERROR_CLASS_MODEL_ERROR);
    (void)commit_one(&talk);
    submit.queue_limit_ms = 300;
    say_intake(&talk, MESSAGE_SUBMIT, &submit);
    say_submit(&talk, 3);
    want_nothing(&talk);
    assert_int_equal(owner_stats(talk.owner).barred, 2);
    say_cancel(&talk, 3);
    assert_int_equal(commit_one(&talk).state, JOB_CANCELED);
    want(&talk, OWNER_TODO_VERDICT);
    want(&talk, OWNER_TODO_PUBLISH);
    pass_ms(&talk, 310);
    assert_int_equal(commit_one(&talk).state, JOB_EXPIRED);
    assert_int_equal(owner_stats(talk.owner).barred, 0);
    talk_end(&talk);
}

static void test_drain_writes_and_tells_all_that_is_known(void **state)
{
    struct talk talk;

    (void)state;
    talk_begin(&talk);
    say_submit(&talk, 1);
    owner_drain(talk.owner);
    assert_false(owner_drained(talk.owner));
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    want_flush(&talk, 1);
    want_nothing(&talk); /* no dispatch any more */
    commit(&talk, &(struct flush){.number = 1}, 1);
    want_nothing(&talk);
    assert_true(owner_drained(talk.owner));
    talk_end(&talk);
}

/* Nobody waits for a line of a bulk job: its row has four times as long to become needless. */
static void test_a_line_of_a_bulk_job_gets_its_row_later(void **state)
{
    struct message_submit submit = submit_of(1);
    struct flush_job row;
    struct talk talk;
    uint64_t token;

    (void)state;
    submit.priority = JOB_PRIORITY_BULK;
    talk_begin(&talk);
    say_heartbeat(&talk, "w1", 4, 0, 0, NULL, 0);
    say_intake(&talk, MESSAGE_SUBMIT, &submit);
    want(&talk, OWNER_TODO_ATTEMPT);
    token = talk.todo.attempt.message.token;
    owner_on_attempt_reported(talk.owner, token, 1);
    pass_ms(&talk, 390);
    want_nothing(&talk);
    pass_ms(&talk, 20);
    row = commit_one(&talk);
    assert_int_equal(row.action, FLUSH_INSERT);
    assert_int_equal(row.state, JOB_IN_PROGRESS);
    say_finished(&talk, 1, token, ERROR_CLASS_NONE);
    row = commit_one(&talk);
    assert_int_equal(row.action, FLUSH_UPDATE);
    want(&talk, OWNER_TODO_PUBLISH);
    assert_true(talk.todo.publish.finals[0].bulk);
    talk_end(&talk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_job_is_dispatched_ahead_and_written_once),
        cmocka_unit_test(test_a_long_job_gets_its_row_after_the_row_delay),
        cmocka_unit_test(test_a_line_of_a_bulk_job_gets_its_row_later),
        cmocka_unit_test(test_a_retry_waits_for_the_flush_and_its_delay),
        cmocka_unit_test(test_a_sync_call_gets_what_its_model_says),
        cmocka_unit_test(test_retry_after_is_honoured_and_bounded),
        cmocka_unit_test(test_budgets_end_a_job),
        cmocka_unit_test(test_what_is_handed_back_costs_nothing),
        cmocka_unit_test(test_a_token_that_is_over_changes_nothing),
        cmocka_unit_test(test_a_repeated_submit_is_inserted_before_it_runs),
        cmocka_unit_test(test_a_second_submit_of_one_id_is_dropped),
        cmocka_unit_test(test_garbage_is_kept_aside_before_the_floor_passes),
        cmocka_unit_test(test_another_shards_job_is_kept_aside),
        cmocka_unit_test(test_a_newer_version_stops_the_shard),
        cmocka_unit_test(test_a_stale_owner_stops),
        cmocka_unit_test(test_an_unwritten_flush_is_sent_again),
        cmocka_unit_test(test_a_busy_ledger_is_written_in_larger_flushes),
        cmocka_unit_test(test_a_refused_row_fails_its_job_in_the_same_flush),
        cmocka_unit_test(test_nothing_runs_far_ahead_of_the_ledger),
        cmocka_unit_test(test_a_start_deadline_expires_a_waiting_job),
        cmocka_unit_test(test_a_tenant_at_its_cap_of_delayed_jobs_waits),
        cmocka_unit_test(test_what_is_barred_expires_and_is_canceled),
        cmocka_unit_test(test_drain_writes_and_tells_all_that_is_known),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
