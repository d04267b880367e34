/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: states, error classes and the backoff between tries are what the tables say. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "schema/job.h"

static void test_final_states(void **state)
{
    static const struct {
        enum job_state state;
        bool final;
        const char *name;
    } rows[] = {
        {JOB_QUEUED, false, "QUEUED"},      {JOB_IN_PROGRESS, false, "IN_PROGRESS"},
        {JOB_SUCCEEDED, true, "SUCCEEDED"}, {JOB_FAILED, true, "FAILED"},
        {JOB_EXPIRED, true, "EXPIRED"},     {JOB_CANCELED, true, "CANCELED"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        assert_true(job_state_known(rows[i].state));
        assert_int_equal(job_state_final(rows[i].state), rows[i].final);
        assert_string_equal(job_state_name(rows[i].state), rows[i].name);
    }
    assert_false(job_state_known(0));
    assert_false(job_state_known(COUNT_OF(rows) + 1));
}

static void test_error_classes(void **state)
{
    static const struct {
        enum error_class class;
        enum error_budget budget;
        bool final;
        int http;
    } rows[] = {
        {ERROR_CLASS_BAD_INPUT, ERROR_BUDGET_NONE, true, 422},
        {ERROR_CLASS_MODEL_ERROR, ERROR_BUDGET_USER, false, 500},
        {ERROR_CLASS_MODEL_UNAVAILABLE, ERROR_BUDGET_USER, false, 503},
        {ERROR_CLASS_OOM, ERROR_BUDGET_OOM, false, 500},
        {ERROR_CLASS_DEVICE_FAULT, ERROR_BUDGET_LOST, false, 500},
        {ERROR_CLASS_LOST_WORKER, ERROR_BUDGET_LOST, false, 500},
        {ERROR_CLASS_HANDED_BACK, ERROR_BUDGET_NONE, false, 503},
        {ERROR_CLASS_UNSTORABLE, ERROR_BUDGET_NONE, true, 500},
        {ERROR_CLASS_INPUT_LOST, ERROR_BUDGET_LOST, false, 500},
        {ERROR_CLASS_STEP_FAILED, ERROR_BUDGET_NONE, true, 500},
        {ERROR_CLASS_LOST_COORDINATOR, ERROR_BUDGET_NONE, false, 500},
        {ERROR_CLASS_RUN_STUCK, ERROR_BUDGET_NONE, true, 500},
        {ERROR_CLASS_TRAINING_FAILED, ERROR_BUDGET_NONE, true, 500},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        assert_int_equal(error_class_budget(rows[i].class), rows[i].budget);
        assert_int_equal(error_class_final(rows[i].class), rows[i].final);
        assert_int_equal(error_class_http(rows[i].class), rows[i].http);
    }
    for (uint64_t class = 0; class < ERROR_CLASS_COUNT; class ++) {
        assert_true(error_class_known(class));
        assert_non_null(error_class_name((enum error_class) class));
        assert_non_null(error_class_wire((enum error_class) class));
    }
    assert_false(error_class_known(ERROR_CLASS_COUNT));
    assert_string_equal(error_class_name(ERROR_CLASS_OOM), "OOM");
    assert_string_equal(error_class_wire(ERROR_CLASS_BAD_INPUT), "MODEL_INVALID_INPUT");
}

static void test_backoff(void **state)
{
    static const struct {
        uint64_t initial_ms, max_ms;
        uint32_t failures;
        double jitter;
        uint64_t want_ms;
    } rows[] = {
        /* the first delay, at both ends of the jitter */
        {1000, 5000, 1, 0.0, 500},
        {1000, 5000, 1, 0.999999, 999},
        /* doubled */
        {1000, 5000, 2, 0.0, 1000},
        {1000, 5000, 3, 0.5, 3000},
        /* capped */
        {1000, 5000, 4, 0.0, 2500},
        {1000, 5000, 4000000000u, 0.0, 2500},
        {10000, 5000, 1, 0.0, 2500},
        /* none */
        {0, 5000, 7, 0.9, 0},
        {1000, 0, 1, 0.9, 0},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        assert_int_equal(
            job_backoff_ms(rows[i].initial_ms, rows[i].max_ms, rows[i].failures, rows[i].jitter),
            rows[i].want_ms);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_final_states),
        cmocka_unit_test(test_error_classes),
        cmocka_unit_test(test_backoff),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
