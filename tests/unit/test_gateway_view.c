/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: states, deliveries and errors in the words that clients know, and no 404 for an id that may
 * still be on its way. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "producers/gateway_view.h"
#include "schema/job_id.h"
#include "schema/message.h"

static void test_words(void **state)
{
    static const struct {
        enum job_state state;
        bool has_webhook;
        enum view_delivery delivery;
        const char *status, *webhook;
    } rows[] = {
        {JOB_QUEUED, false, VIEW_DELIVERY_NONE, "QUEUED", "NO_WEBHOOK_PROVIDED"},
        {JOB_IN_PROGRESS, true, VIEW_DELIVERY_NONE, "IN_PROGRESS", "PENDING"},
        {JOB_SUCCEEDED, true, VIEW_DELIVERY_NONE, "SUCCEEDED", "PENDING"},
        {JOB_SUCCEEDED, true, VIEW_DELIVERY_PENDING, "SUCCEEDED", "PENDING"},
        {JOB_SUCCEEDED, true, VIEW_DELIVERY_SUCCEEDED, "SUCCEEDED", "SUCCEEDED"},
        {JOB_SUCCEEDED, true, VIEW_DELIVERY_FAILED, "WEBHOOK_FAILED", "FAILED"},
        {JOB_FAILED, true, VIEW_DELIVERY_FAILED, "FAILED", "FAILED"},
        {JOB_CANCELED, true, VIEW_DELIVERY_CANCELED, "CANCELED", "CANCELED"},
        {JOB_EXPIRED, false, VIEW_DELIVERY_NONE, "EXPIRED", "NO_WEBHOOK_PROVIDED"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct job_view view = {.state = rows[i].state,
                                      .has_webhook = rows[i].has_webhook,
                                      .delivery = rows[i].delivery};

        assert_string_equal(view_status(&view), rows[i].status);
        assert_string_equal(view_webhook_status(&view), rows[i].webhook);
    }
}

static void test_json(void **state)
{
    struct buf to = BUF_WITH_LIMIT(4096);
    struct message_completed completed = {
        .id = {{0x01, 0x9b, 0, 0, 0, 0, 0x70, 0, 0x80}},
        .state = JOB_FAILED,
        .error_class = ERROR_CLASS_BAD_INPUT,
        .error_message = WIRE_TEXT_OF("no \"text\""),
        .model = WIRE_TEXT_OF("m1"),
        .deployment = WIRE_TEXT_OF("d1"),
        .accepted_us = 1700000000000000,
        .finished_us = 1700000000250000,
        .attempts = 1,
    };
    struct job_view view = view_of_completed(&completed);

    (void)state;
    view_append_json(&view, &to);
    assert_string_equal(
        buf_text(&to),
        "{\"request_id\":\"019b0000-0000-7000-8000-000000000000\",\"model_id\":\"m1\","
        "\"model_name\":\"\",\"deployment_id\":\"d1\",\"environment\":\"\",\"status\":\"FAILED\","
        "\"webhook_status\":\"NO_WEBHOOK_PROVIDED\","
        "\"created_at\":\"2023-11-14T22:13:20.000000+00:00\","
        "\"status_at\":\"2023-11-14T22:13:20.250000+00:00\",\"attempts\":1,"
        "\"errors\":[{\"code\":\"MODEL_INVALID_INPUT\",\"message\":\"no \\\"text\\\"\"}]}");
    buf_clear(&to);
    view_append_failure(&view, &to);
    assert_non_null(strstr(buf_text(&to), "\"error_code\":\"application_error\""));
    assert_non_null(strstr(buf_text(&to), "\"detail\":\"no \\\"text\\\"\""));
    buf_clear(&to);
    view = view_of_queued(&completed.id);
    view_append_json(&view, &to);
    assert_non_null(strstr(buf_text(&to), "\"status\":\"QUEUED\""));
    assert_non_null(strstr(buf_text(&to), "\"errors\":[]"));
    buf_done(&to);
}

/* Why it ended, in a word and in a sentence, and what was paid. */
static void test_detail(void **state)
{
    static const struct {
        enum job_state state;
        enum error_class class;
        const char *reason, *because;
    } rows[] = {
        {JOB_QUEUED, ERROR_CLASS_MODEL_ERROR, "null", "null"},
        {JOB_SUCCEEDED, ERROR_CLASS_NONE, "null", "null"},
        {JOB_FAILED, ERROR_CLASS_MODEL_TIMEOUT, "\"attempts_used\"", "\"the model failed it"},
        {JOB_FAILED, ERROR_CLASS_OOM, "\"out_of_memory\"", "\"it ran out of memory"},
        {JOB_FAILED, ERROR_CLASS_LOST_WORKER, "\"poison\"", "\"its attempts lost their worker"},
        {JOB_FAILED, ERROR_CLASS_DEVICE_FAULT, "\"poison\"", "\"its attempts lost their worker"},
        {JOB_FAILED, ERROR_CLASS_BAD_INPUT, "\"bad_input\"", "\"of an error that no retry"},
        {JOB_EXPIRED, ERROR_CLASS_EXPIRED, "null", "\"one of its deadlines passed\""},
        {JOB_CANCELED, ERROR_CLASS_CANCELED, "null", "\"it was canceled\""},
    };
    struct view_detail detail = {.round = 2,
                                 .user_failures = 1,
                                 .max_attempts = 3,
                                 .lost_failures = 4,
                                 .start_deadline_us = 1700000000000000,
                                 .attempt_log = WIRE_TEXT_OF("[{\"number\":1}]")};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct buf to = BUF_WITH_LIMIT(10000);
        struct job_view view = {.state = rows[i].state, .error_class = rows[i].class};
        OWNED(mem_free)
        char *words = xasprintf("\"reason\":%s,\"ended_because\":%s", rows[i].reason,
                                rows[i].because);

        view_append_detail(&view, &detail, &to);
        if (strstr(buf_text(&to), words) == NULL)
            fail_msg("%s is not in %s", words, buf_text(&to));
        assert_non_null(strstr(buf_text(&to),
                               "\"round\":2,\"budgets\":{\"model_errors\":{\"used\":1,\"limit\":3},"
                               "\"out_of_memory\":{\"used\":0,\"limit\":3},"
                               "\"lost_workers\":{\"used\":4,\"limit\":5}}"));
        assert_non_null(strstr(buf_text(&to), "\"retry_at\":null,\"start_deadline_at\":\"2023-11"));
        assert_non_null(strstr(buf_text(&to), "\"attempt_log\":[{\"number\":1}]}"));
        buf_done(&to);
    }
}

static void test_unknown_ids(void **state)
{
#define NOW_MS 1700000000000ull
    static const struct {
        const char *what;
        uint64_t id_ms, floor_ms;
        bool want;
    } rows[] = {
        {"newer than the floor", NOW_MS, NOW_MS - 1000, true},
        {"as old as the floor", NOW_MS - 1000, NOW_MS - 1000, true},
        {"appended late, while Kafka stood still", NOW_MS - 30000, NOW_MS - 1000, true},
        {"promised as late as can be, with clocks as wrong", NOW_MS - 421000, NOW_MS - 1000, true},
        {"older by more", NOW_MS - 421001, NOW_MS - 1000, false},
        {"from the future, a little", NOW_MS + 60000, NOW_MS - 1000, true},
        {"from the future, much", NOW_MS + 120001, NOW_MS - 1000, false},
        {"nothing was written yet", NOW_MS - 60000, 0, true},
        {"nothing was written yet, and older than Kafka keeps", 1000, 0, false},
    };
    const uint8_t entropy[JOB_ID_RANDOM_SIZE] = {0};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct wire_id id = job_id_make(0, rows[i].id_ms, entropy);

        if (view_may_be_queued(&id, rows[i].floor_ms * 1000, NOW_MS * 1000) != rows[i].want)
            fail_msg("%s", rows[i].what);
    }
}

/* A job is never promised so late that its id could be taken for that of none. */
static void test_what_may_be_promised_may_be_queued(void **state)
{
    const uint8_t entropy[JOB_ID_RANDOM_SIZE] = {0};

    (void)state;
    for (uint64_t age_ms = 0; age_ms <= 600000; age_ms += 500) {
        struct wire_id id = job_id_make(0, NOW_MS - age_ms, entropy);
        bool may = view_may_be_promised(&id, NOW_MS * 1000);

        assert_int_equal(may, age_ms * 1000 <= VIEW_PROMISE_US_MAX);
        if (may) /* with an owner whose clock is a minute ahead */
            assert_true(view_may_be_queued(&id, (NOW_MS + 60000) * 1000, NOW_MS * 1000));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_detail),
        cmocka_unit_test(test_unknown_ids),
        cmocka_unit_test(test_what_may_be_promised_may_be_queued),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
