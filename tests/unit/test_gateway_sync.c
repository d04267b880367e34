/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what a sync request asks for is read as it was meant, its route reaches the model as it was
 * sent, and each way to fail has its status. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/mem.h"
#include "producers/gateway_sync.h"
#include "schema/job.h"

static void test_routes(void **state)
{
    static const struct {
        const char *target;
        size_t skip;
        const char *want;
    } rows[] = {
        {"/model/m/production/sync/v1/x%20y?a=%2F&b", 4, "POST /v1/x%20y?a=%2F&b"},
        {"/model/m/production/sync/v1/", 4, "POST /v1/"},
        {"/model/m/production/sync", 4, "POST /"},
        {"/model/m/production/sync/", 4, "POST /"},
        {"/model/m/production/sync?x=1/2", 4, "POST /?x=1/2"},
        {"http://host:80/sync/v1", 1, "POST /v1"},
        {"/sync/a/b", 1, "POST /a/b"},
    };
    char to[SYNC_ROUTE_SIZE_MAX + 1], large[SYNC_ROUTE_SIZE_MAX + 10];
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        assert_int_equal(sync_route_write("POST", rows[i].target, rows[i].skip, to, &err), 0);
        assert_string_equal(to, rows[i].want);
    }
    memset(large, 'x', sizeof(large) - 1);
    large[0] = '/';
    large[sizeof(large) - 1] = '\0';
    assert_int_equal(sync_route_write("POST", large, 0, to, &err), ERR_RANGE);
}

static void test_failures(void **state)
{
    (void)state;
    assert_int_equal(sync_failure_of(JOB_FAILED, ERROR_CLASS_MODEL_ERROR).status, 500);
    assert_int_equal(sync_failure_of(JOB_FAILED, ERROR_CLASS_BAD_INPUT).status, 400);
    assert_int_equal(sync_failure_of(JOB_FAILED, ERROR_CLASS_LOST_WORKER).status, 502);
    assert_int_equal(sync_failure_of(JOB_FAILED, 4711).status, 502);
    assert_int_equal(sync_failure_of(JOB_EXPIRED, ERROR_CLASS_EXPIRED).status, 504);
    assert_int_equal(sync_failure_of(JOB_CANCELED, ERROR_CLASS_CANCELED).status, 502);
    for (int class = 1; error_class_known((uint64_t) class); class ++)
        assert_in_range(sync_failure_of(JOB_FAILED, (uint64_t) class).status, 400, 599);
}

static void test_streams(void **state)
{
    (void)state;
    assert_true(sync_wants_stream(NULL, NULL));
    assert_true(sync_wants_stream("*/*", "curl/8"));
    assert_false(sync_wants_stream("application/json", NULL));
    assert_false(sync_wants_stream("Application/JSON", "requests"));
    assert_true(sync_wants_stream("application/json, text/plain, */*", "axios/1.7"));
    assert_true(sync_wants_stream("application/json", "OpenAI/Python 1.2"));
    assert_true(sync_wants_stream("text/event-stream, application/json", NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_routes),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_streams),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
