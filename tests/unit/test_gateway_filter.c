/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a request for many jobs becomes checked values, or an error that names what is wrong; tags
 * and kill switches as the gateway reads them. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <string.h>

#include "producers/gateway_config.h"
#include "producers/gateway_filter.h"
#include "producers/gateway_tags.h"

#define ID "019ab2c4-7d51-7c11-8000-5d1f0a6c9e42"

static int read_text(const char *text, enum command_kind kind, struct job_request *ret,
                     struct err *err)
{
    json_t *body = json_loads(text, 0, NULL);
    int r;

    assert_non_null(body);
    r = job_request_read(body, kind, ret, err);
    json_decref(body);
    return r;
}

static void test_a_filter_becomes_values(void **state)
{
    struct job_request request;
    struct err err;

    (void)state;
    assert_int_equal(read_text("{\"filter\": {\"status\": [\"EXPIRED\"], \"error_class\": \"oom\", "
                               "\"model\": \"m\", \"tag\": \"a/b\", \"accepted_after\": "
                               "\"2026-01-01\"}, \"limit\": 7, \"dry_run\": true}",
                               COMMAND_REPLAY, &request, &err),
                     0);
    assert_true(request.filter.states[JOB_EXPIRED]);
    assert_false(request.filter.states[JOB_FAILED]);
    assert_int_equal(request.filter.error_class, ERROR_CLASS_OOM);
    assert_string_equal(request.filter.model, "m");
    assert_string_equal(request.filter.tag, "a/b");
    assert_string_equal(request.filter.pool, "");
    assert_int_equal(request.filter.after_us, 1767225600000000);
    assert_int_equal(request.limit, 7);
    assert_true(request.dry_run);
    assert_null(request.ids);
}

/* A bound before the first second of the clock is a bound. */
static void test_a_bound_long_ago_is_one(void **state)
{
    struct job_request request;
    struct err err;

    (void)state;
    assert_int_equal(
        read_text("{\"filter\": {\"accepted_before\": \"1969-12-31\"}, \"limit\": 2.0}",
                  COMMAND_CANCEL, &request, &err),
        0);
    assert_int_equal(request.filter.before_us, 1);
    assert_int_equal(request.limit, 2);
}

static void test_without_a_status_it_is_for_what_the_action_is_for(void **state)
{
    struct job_request request;
    struct err err;

    (void)state;
    assert_int_equal(read_text("{\"all\": true}", COMMAND_CANCEL, &request, &err), 0);
    assert_true(request.filter.states[JOB_QUEUED] && request.filter.states[JOB_IN_PROGRESS]);
    assert_false(request.filter.states[JOB_FAILED]);
    assert_int_equal(read_text("{\"all\": true}", COMMAND_REPLAY, &request, &err), 0);
    assert_true(request.filter.states[JOB_FAILED] && request.filter.states[JOB_EXPIRED]);
    assert_false(request.filter.states[JOB_QUEUED] || request.filter.states[JOB_CANCELED]);
    assert_int_equal(request.limit, FILTER_PAGE_MAX);
}

static void test_ids(void **state)
{
    struct job_request request;
    struct err err;

    (void)state;
    assert_int_equal(read_text("{\"request_ids\": [\"" ID "\"], \"cursor\": null}", COMMAND_CANCEL,
                               &request, &err),
                     0);
    assert_int_equal(request.id_count, 1);
    assert_false(request.has_cursor);
    job_request_done(&request);
}

static void test_what_is_wrong_is_named(void **state)
{
    static const struct {
        const char *body, *why;
        enum command_kind kind;
    } rows[] = {
        {"{}", "which jobs", COMMAND_CANCEL},
        {"{\"filter\": {}}", "matches every job", COMMAND_CANCEL},
        {"{\"filter\": 1}", "must be an object", COMMAND_CANCEL},
        {"{\"filter\": {\"x\": 1}}", "filter.x is not known", COMMAND_CANCEL},
        {"{\"filter\": {\"model\": \"\"}}", "filter.model", COMMAND_CANCEL},
        {"{\"filter\": {\"status\": \"FAILED\"}}", "QUEUED or IN_PROGRESS", COMMAND_CANCEL},
        {"{\"filter\": {\"status\": []}}", "filter.status", COMMAND_REPLAY},
        {"{\"filter\": {\"status\": [7]}}", "filter.status", COMMAND_REPLAY},
        {"{\"filter\": {\"error_class\": 1}}", "filter.error_class", COMMAND_REPLAY},
        {"{\"filter\": {\"accepted_before\": 5}}", "accepted_before", COMMAND_REPLAY},
        {"{\"all\": 1}", "must be true", COMMAND_REPLAY},
        {"{\"all\": false, \"dry_run\": true}", "must be true", COMMAND_REPLAY},
        {"{\"all\": true, \"dryrun\": true}", "dryrun is not known", COMMAND_CANCEL},
        {"{\"all\": true, \"priority\": 1}", "priority is not known", COMMAND_CANCEL},
        {"{\"filter\": {\"model\": \"a b\"}}", "filter.model is 'a b'", COMMAND_CANCEL},
        {"{\"filter\": {\"tag\": \"a,b\"}}", "filter.tag", COMMAND_CANCEL},
        {"{\"all\": true, \"filter\": {\"model\": \"m\"}}", "not both", COMMAND_REPLAY},
        {"{\"all\": true, \"limit\": 1001}", "limit", COMMAND_REPLAY},
        {"{\"all\": true, \"limit\": 1.5}", "limit", COMMAND_REPLAY},
        {"{\"all\": true, \"dry_run\": \"yes\"}", "dry_run", COMMAND_REPLAY},
        {"{\"all\": true, \"cursor\": \"x\"}", "cursor", COMMAND_REPLAY},
        {"{\"all\": true}", "priority is missing", COMMAND_PRIORITY},
        {"{\"all\": true, \"priority\": 3}", "priority", COMMAND_PRIORITY},
        {"{\"request_ids\": []}", "1 to 1000", COMMAND_REPLAY},
        {"{\"request_ids\": [\"" ID "\", 5]}", "request_ids", COMMAND_REPLAY},
        {"{\"request_ids\": [\"" ID "\"], \"all\": true}", "not both", COMMAND_REPLAY},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct job_request request;
        struct err err;

        assert_true(read_text(rows[i].body, rows[i].kind, &request, &err) < 0);
        if (strstr(err.text, rows[i].why) == NULL)
            fail_msg("%s: %s", rows[i].body, err.text);
    }
}

static void test_tags(void **state)
{
    static const struct {
        const char *header, *tags; /* NULL: refused */
    } rows[] = {
        {NULL, ""},
        {"", ""},
        {" , ,", ""},
        {"b, a,b", "a,b"},
        {"team/a:1=x@y+z-_.", "team/a:1=x@y+z-_."},
        {"a b", NULL},
        {"ä", NULL},
        {"a'b", NULL},
        {"1,2,3,4,5,6,7,8", "1,2,3,4,5,6,7,8"},
        {"1,2,3,4,5,6,7,8,9", NULL},
        {"0123456789012345678901234567890123456789012345678901234567890123",
         "0123456789012345678901234567890123456789012345678901234567890123"},
        {"01234567890123456789012345678901234567890123456789012345678901234", NULL},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char tags[TAGS_SIZE];
        struct err err;
        int r = tags_read(rows[i].header, tags, &err);

        if ((r == 0) != (rows[i].tags != NULL))
            fail_msg("%s", rows[i].header);
        if (r == 0)
            assert_string_equal(tags, rows[i].tags);
    }
}

static void test_switches_of_a_submit(void **state)
{
    static const struct config_switch on[] = {
        {"t1", "model", "m1", "burns"}, {"t1", "tag", "blue", ""}, {"t2", "tenant", "t2", ""}};
    struct config *config = gateway_config_new();

    (void)state;
    for (size_t i = 0; i < COUNT_OF(on); i++)
        gateway_config_add_switch(config, &on[i]);
    gateway_config_seal(config);
    assert_string_equal(gateway_config_find_switch(config, "t1", "m1", "")->reason, "burns");
    assert_string_equal(gateway_config_find_switch(config, "t1", "m2", "azure,blue")->kind, "tag");
    assert_string_equal(gateway_config_find_switch(config, "t2", "m2", "")->kind, "tenant");
    assert_null(gateway_config_find_switch(config, "t1", "m2", "blu,blues"));
    assert_null(gateway_config_find_switch(config, "t3", "m1", "blue"));
    gateway_config_free(&config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_filter_becomes_values),
        cmocka_unit_test(test_a_bound_long_ago_is_one),
        cmocka_unit_test(test_without_a_status_it_is_for_what_the_action_is_for),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_what_is_wrong_is_named),
        cmocka_unit_test(test_tags),
        cmocka_unit_test(test_switches_of_a_submit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
