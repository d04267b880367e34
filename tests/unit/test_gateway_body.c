/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: every field of a submit has its default, its range and its refusal, which names the field,
 * the value and the limit; what is unknown is taken and named. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "producers/gateway_body.h"

static int group_setup(void **state)
{
    *state = body_reader_new();
    return 0;
}

static int group_teardown(void **state)
{
    body_reader_free((struct body_reader **)state);
    return 0;
}

static int read_text(void *reader, const char *text, struct submit_body *body, struct err *err)
{
    return body_read_submit(reader, text, strlen(text), false, false, body, err);
}

static void test_defaults(void **state)
{
    struct submit_body body;
    struct err err;

    assert_int_equal(read_text(*state, "{\"model_input\": { \"a\" : 1 } }", &body, &err), 0);
    assert_int_equal(body.input_size, 11);
    assert_memory_equal(body.input, "{ \"a\" : 1 }", 11);
    assert_null(body.webhook_url);
    assert_int_equal(body.priority, 0);
    assert_int_equal(body.queue_limit_s, 600);
    assert_int_equal(body.max_attempts, 3);
    assert_int_equal(body.initial_delay_ms, 1000);
    assert_int_equal(body.max_delay_ms, 5000);
    assert_int_equal(body.warning_count, 0);
    assert_int_equal(body.warnings.size, 0);
    submit_body_done(&body);
}

static void test_all_fields(void **state)
{
    struct submit_body body;
    struct err err;

    assert_int_equal(read_text(*state,
                               "{\"webhook_endpoint\":\"https://example.com/x?y=1\","
                               "\"priority\":2,\"max_time_in_queue_seconds\":259200,"
                               "\"inference_retry_config\":{\"max_attempts\":10,"
                               "\"initial_delay_ms\":0,\"max_delay_ms\":60000},"
                               "\"model_input\":{}}",
                               &body, &err),
                     0);
    assert_string_equal(body.webhook_url, "https://example.com/x?y=1");
    assert_int_equal(body.priority, 2);
    assert_int_equal(body.queue_limit_s, 259200);
    assert_int_equal(body.max_attempts, 10);
    assert_int_equal(body.initial_delay_ms, 0);
    assert_int_equal(body.max_delay_ms, 60000);
    submit_body_done(&body);
}

static void test_null_is_absent(void **state)
{
    struct submit_body body;
    struct err err;

    assert_int_equal(read_text(*state,
                               "{\"model_input\":{},\"webhook_endpoint\":null,\"priority\":null,"
                               "\"max_time_in_queue_seconds\":null,"
                               "\"inference_retry_config\":{\"max_attempts\":null}}",
                               &body, &err),
                     0);
    assert_int_equal(body.queue_limit_s, 600);
    assert_int_equal(body.max_attempts, 3);
    submit_body_done(&body);
    assert_int_equal(
        read_text(*state, "{\"model_input\":{},\"inference_retry_config\":null}", &body, &err), 0);
    submit_body_done(&body);
}

/* Each refusal names what is wrong: the words must all be in the text. */
static const struct {
    const char *body;
    int code;
    const char *words[3];
} refusals[] = {
    {"", ERR_MALFORMED, {"body"}},
    {"{", ERR_MALFORMED, {"body"}},
    {"[]", ERR_MALFORMED, {"body"}},
    {"{} x", ERR_MALFORMED, {"body"}},
    {"{\"model_input\":{},\"model_input\":{}}", ERR_MALFORMED, {"body"}},
    {"{\"model_input\":{\"a\":\"\xff\"}}", ERR_MALFORMED, {"body"}},
    {"{}", ERR_MALFORMED, {"model_input", "missing"}},
    {"{\"model_input\":null}", ERR_MALFORMED, {"model_input", "null", "object"}},
    {"{\"model_input\":\"x\"}", ERR_MALFORMED, {"model_input", "string", "object"}},
    {"{\"model_input\":{},\"priority\":3}", ERR_RANGE, {"priority", "3", "0 to 2"}},
    {"{\"model_input\":{},\"priority\":-1}", ERR_RANGE, {"priority", "-1", "0 to 2"}},
    {"{\"model_input\":{},\"priority\":\"1\"}", ERR_MALFORMED, {"priority", "string", "0 to 2"}},
    {"{\"model_input\":{},\"priority\":1.5}", ERR_MALFORMED, {"priority", "1.5", "0 to 2"}},
    {"{\"model_input\":{},\"priority\":true}", ERR_MALFORMED, {"priority", "bool"}},
    {"{\"model_input\":{},\"priority\":99999999999999999999}",
     ERR_RANGE,
     {"priority", "99999999999999999999", "0 to 2"}},
    {"{\"model_input\":{},\"max_time_in_queue_seconds\":9}",
     ERR_RANGE,
     {"max_time_in_queue_seconds", "9", "10 to 259200"}},
    {"{\"model_input\":{},\"max_time_in_queue_seconds\":259201}",
     ERR_RANGE,
     {"max_time_in_queue_seconds", "259201", "10 to 259200"}},
    {"{\"model_input\":{},\"inference_retry_config\":[]}",
     ERR_MALFORMED,
     {"inference_retry_config", "array", "object"}},
    {"{\"model_input\":{},\"inference_retry_config\":{\"max_attempts\":0}}",
     ERR_RANGE,
     {"inference_retry_config.max_attempts", "0", "1 to 10"}},
    {"{\"model_input\":{},\"inference_retry_config\":{\"max_attempts\":11}}",
     ERR_RANGE,
     {"inference_retry_config.max_attempts", "11", "1 to 10"}},
    {"{\"model_input\":{},\"inference_retry_config\":{\"initial_delay_ms\":10001}}",
     ERR_RANGE,
     {"initial_delay_ms", "10001", "0 to 10000"}},
    {"{\"model_input\":{},\"inference_retry_config\":{\"max_delay_ms\":60001}}",
     ERR_RANGE,
     {"max_delay_ms", "60001", "0 to 60000"}},
    {"{\"model_input\":{},\"webhook_endpoint\":7}", ERR_MALFORMED, {"webhook_endpoint", "number"}},
    {"{\"model_input\":{},\"webhook_endpoint\":\"\"}", ERR_RANGE, {"webhook_endpoint"}},
    {"{\"model_input\":{},\"webhook_endpoint\":\"http://example.com\"}",
     ERR_RANGE,
     {"webhook_endpoint", "http://example.com", "https"}},
    {"{\"model_input\":{},\"webhook_endpoint\":\"a\\u0000b\"}",
     ERR_MALFORMED,
     {"webhook_endpoint"}},
};

static void test_refusals(void **state)
{
    for (size_t i = 0; i < COUNT_OF(refusals); i++) {
        struct submit_body body;
        struct err err;
        int r = read_text(*state, refusals[i].body, &body, &err);

        if (r != refusals[i].code)
            fail_msg("row %zu: %s: %d %s", i, refusals[i].body, r, r < 0 ? err.text : "");
        for (size_t w = 0; w < COUNT_OF(refusals[i].words); w++) {
            if (refusals[i].words[w] != NULL && strstr(err.text, refusals[i].words[w]) == NULL)
                fail_msg("row %zu: '%s' does not say '%s'", i, err.text, refusals[i].words[w]);
        }
    }
}

static void test_warnings(void **state)
{
    struct submit_body body;
    struct err err;

    assert_int_equal(read_text(*state,
                               "{\"a\\\"b\":1,\"model_input\":{\"deep\":1},"
                               "\"inference_retry_config\":{\"x\":{}}}",
                               &body, &err),
                     0);
    assert_int_equal(body.warning_count, 2);
    assert_string_equal(buf_text(&body.warnings),
                        "\"unknown field 'a\\\"b' is ignored\","
                        "\"unknown field 'inference_retry_config.x' is ignored\"");
    submit_body_done(&body);
}

static void test_many_warnings(void **state)
{
    struct buf text = BUF_WITH_LIMIT(1u << 16);
    struct submit_body body;
    struct err err;

    buf_append_text(&text, "{\"model_input\":{}");
    for (int i = 0; i < 100; i++)
        buf_printf(&text, ",\"\xc3\xa4%0100d\":0", i);
    buf_append_text(&text, "}");
    assert_int_equal(body_read_submit(*state, text.bytes, text.size, false, false, &body, &err), 0);
    assert_int_equal(body.warning_count, 100);
    assert_false(body.warnings.failed);
    assert_non_null(strstr(buf_text(&body.warnings), ",\"and 84 more unknown fields\""));
    submit_body_done(&body);
    buf_done(&text);
}

static void test_urls(void **state)
{
    static const struct {
        const char *url;
        bool loopback_http, ok;
    } rows[] = {
        {"https://example.com", false, true},
        {"https://example.com:8443/a?b#c", false, true},
        {"HTTPS://example.com/", false, true},
        {"http://localhost:9000/x", false, false},
        {"http://localhost:9000/x", true, true},
        {"http://127.0.0.1/x", true, true},
        {"http://[::1]:80/x", true, true},
        {"http://example.com/x", true, false},
        {"http://localhost.example.com/x", true, false},
        {"ftp://example.com/x", true, false},
        {"file:///etc/passwd", true, false},
        {"example.com", true, false},
        {"https://", true, false},
        {"/relative", true, false},
        {"https://exa mple.com/", true, false},
    };
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        int r = webhook_url_check(rows[i].url, rows[i].loopback_http, &err);

        if ((r == 0) != rows[i].ok)
            fail_msg("%s: %d", rows[i].url, r);
    }
}

static void test_strings(void **state)
{
    struct buf to = BUF_WITH_LIMIT(100);

    (void)state;
    json_append_string(&to, "a\"\\\n\x01\xc3\xa4", 7);
    assert_string_equal(buf_text(&to), "\"a\\\"\\\\\\n\\u0001\xc3\xa4\"");
    buf_done(&to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),       cmocka_unit_test(test_all_fields),
        cmocka_unit_test(test_null_is_absent), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_warnings),       cmocka_unit_test(test_many_warnings),
        cmocka_unit_test(test_urls),           cmocka_unit_test(test_strings),
    };

    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
