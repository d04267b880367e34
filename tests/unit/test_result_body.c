/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: the body has Baseten's fields, whatever the model and its errors say. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <string.h>

#include "schema/job.h"
#include "schema/result_body.h"

static struct message_completed completed_make(void)
{
    return (struct message_completed){
        .id = {{0x01, 0x9a, [6] = 0x70, [8] = 0x80, [15] = 7}},
        .round = 2,
        .tenant = WIRE_TEXT_OF("default"),
        .model = WIRE_TEXT_OF("minilm"),
        .deployment = WIRE_TEXT_OF("d\"1"),
        .state = JOB_SUCCEEDED,
        .finished_us = 1700000000123456,
    };
}

static json_t *body_parse(const struct message_completed *completed, const char *output)
{
    OWNED(buf_done) struct buf body = BUF_WITH_LIMIT(10000);
    struct wire_bytes bytes = {(const uint8_t *)output, strlen(output)};
    struct err err;
    json_t *json;

    assert_int_equal(result_body_write(completed, bytes, &body, &err), 0);
    json = json_loadb(buf_text(&body), body.size, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(json);
    return json;
}

static void test_success(void **state)
{
    struct message_completed completed = completed_make();
    json_t *json = body_parse(&completed, "{\"x\":[1,2]}");

    (void)state;
    assert_string_equal(json_string_value(json_object_get(json, "request_id")),
                        "019a0000-0000-7000-8000-000000000007");
    assert_string_equal(json_string_value(json_object_get(json, "deployment_id")), "d\"1");
    assert_string_equal(json_string_value(json_object_get(json, "type")),
                        "async_request_completed");
    assert_string_equal(json_string_value(json_object_get(json, "time")),
                        "2023-11-14T22:13:20.123456+00:00");
    assert_int_equal(json_array_size(json_object_get(json, "errors")), 0);
    assert_int_equal(json_integer_value(json_object_get(json, "round")), completed.round);
    assert_int_equal(json_array_size(json_object_get(json_object_get(json, "data"), "x")), 2);
    json_decref(json);
}

static void test_failure_carries_code_and_message(void **state)
{
    struct message_completed completed = completed_make();
    json_t *json, *first;

    (void)state;
    completed.state = JOB_FAILED;
    completed.error_class = ERROR_CLASS_MODEL_ERROR;
    completed.error_message = WIRE_TEXT_OF("line 1\n\"quoted\" \x01");
    json = body_parse(&completed, "");
    assert_true(json_is_null(json_object_get(json, "data")));
    first = json_array_get(json_object_get(json, "errors"), 0);
    assert_string_equal(json_string_value(json_object_get(first, "code")), "MODEL_PREDICT_ERROR");
    assert_string_equal(json_string_value(json_object_get(first, "message")),
                        "line 1\n\"quoted\" \x01");
    json_decref(json);
}

static void test_text_that_is_no_utf8_is_refused(void **state)
{
    struct message_completed completed = completed_make();
    OWNED(buf_done) struct buf body = BUF_WITH_LIMIT(10000);
    struct err err;

    (void)state;
    completed.model = WIRE_TEXT_OF("\xff\xfe");
    assert_int_equal(result_body_write(&completed, (struct wire_bytes){0}, &body, &err),
                     ERR_MALFORMED);
    assert_string_equal(err.text, "model_id is not UTF-8");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_success),
        cmocka_unit_test(test_failure_carries_code_and_message),
        cmocka_unit_test(test_text_that_is_no_utf8_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
