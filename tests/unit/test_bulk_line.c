/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a line is taken or refused by a code and a sentence that name what is wrong; its job's id
 * is always the same; an outcome is one line of JSON, whatever the model said. Method: rows. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "producers/bulk_line.h"
#include "schema/job_id.h"

#define LINE_SIZE_MAX 2000

static char padded[LINE_SIZE_MAX + 64];
static const char *endpoint = "/v1/embeddings";

static int read_line(struct bulk_reader *reader, const char *text, struct bulk_line *ret_line,
                     char code[BULK_CODE_SIZE], struct err *err)
{
    memset(padded, 0, sizeof(padded));
    mem_copy_text(padded, text);
    code[0] = '\0';
    return bulk_line_read(reader, padded, strlen(padded), 42, endpoint, ret_line, code, err);
}

static void test_lines(void **state)
{
    static const struct {
        const char *text, *code, *says;
    } rows[] = {
        {"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/embeddings\",\"body\":{\"model\":"
         "\"m\",\"input\":[1,2]}}",
         "", ""},
        {"{}", "missing_required_parameter", "custom_id is missing"},
        {"{\"custom_id\":1}", "invalid_type", "custom_id"},
        {"{\"custom_id\":\"\"}", "invalid_custom_id", "0 bytes; it must have 1 to 512"},
        {"{\"custom_id\":\"a\"}", "missing_required_parameter", "method is missing"},
        {"{\"custom_id\":\"a\",\"method\":\"GET\"}", "invalid_method", "'GET'; it must be POST"},
        {"{\"custom_id\":\"a\",\"method\":\"POST\"}", "missing_required_parameter", "url"},
        {"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\"}",
         "mismatched_endpoint", "'/v1/completions'; the batch's endpoint is /v1/embeddings"},
        {"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/embeddings\"}",
         "missing_required_parameter", "body is missing"},
        {"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/embeddings\",\"body\":[]}",
         "invalid_type", "body is a array; it must be an object"},
        {"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/embeddings\",\"body\":{}}",
         "missing_required_parameter", "body: model is missing"},
        {"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/embeddings\",\"body\":{\"model\":"
         "\"\"}}",
         "model_not_found", "0 bytes"},
        {"{\"custom_id\":\"a\",\"custom_id\":\"b\"}", "invalid_json_line", ""},
        {"{\"custom_id\":\"a\"", "invalid_json_line", ""},
        {"{\"custom_id\":\"\xff\"}", "invalid_json_line", ""},
        {"[1]", "invalid_json_line", ""},
    };
    struct bulk_reader *reader = bulk_reader_new();
    struct bulk_line line;
    char code[BULK_CODE_SIZE];
    struct err err = {.text = ""};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        int r = read_line(reader, rows[i].text, &line, code, &err);

        if ((r == 0) != (rows[i].code[0] == '\0') || strcmp(code, rows[i].code) != 0 ||
            (r < 0 && strstr(err.text, rows[i].says) == NULL))
            fail_msg("row %zu: %d '%s' %s", i, r, code, err.text);
    }
    assert_int_equal(read_line(reader, rows[0].text, &line, code, &err), 0);
    assert_memory_equal(line.custom_id.text, "\"a\"", 3);
    assert_memory_equal(line.custom_id_plain.text, "a", line.custom_id_plain.size);
    assert_string_equal(line.model, "m");
    assert_memory_equal(line.body.text, "{\"model\":\"m\",\"input\":[1,2]}", line.body.size);
    bulk_reader_free(&reader);
}

static void test_lines_of_one_model(void **state)
{
    struct bulk_reader *reader = bulk_reader_new();
    struct bulk_line line;
    char code[BULK_CODE_SIZE];
    struct err err = {.text = ""};

    (void)state;
    endpoint = BULK_PREDICT;
    assert_int_equal(read_line(reader, "{\"model_input\":[1]}", &line, code, &err), 0);
    assert_memory_equal(line.custom_id.text, "\"42\"", line.custom_id.size);
    assert_memory_equal(line.custom_id_plain.text, "42", line.custom_id_plain.size);
    assert_memory_equal(line.body.text, "[1]", line.body.size);
    assert_string_equal(line.model, "");
    assert_int_equal(
        read_line(reader, "{\"custom_id\":\"a\",\"model_input\":null}", &line, code, &err), 0);
    assert_memory_equal(line.custom_id.text, "\"a\"", line.custom_id.size);
    assert_true(read_line(reader, "{\"custom_id\":\"a\"}", &line, code, &err) < 0);
    assert_string_equal(code, "missing_required_parameter");
    assert_true(read_line(reader, "{\"custom_id\":\"\",\"model_input\":1}", &line, code, &err) < 0);
    assert_string_equal(code, "invalid_custom_id");
    endpoint = "/v1/embeddings";
    bulk_reader_free(&reader);
}

static void test_jobs_of_lines(void **state)
{
    char text[JOB_ID_TEXT_SIZE];
    struct wire_id bulk, one, two;
    struct err err;

    (void)state;
    assert_int_equal(job_id_parse("019ab2c4-7d51-7c11-8000-5d1f0a6c9e42", &bulk, &err), 0);
    one = bulk_line_job(&bulk, 1, 5);
    two = bulk_line_job(&bulk, 2, 5);
    assert_false(job_id_equal(&one, &two));
    assert_int_equal(job_id_shard(&one), 5);
    assert_int_equal(job_id_time_ms(&one), job_id_time_ms(&bulk));
    job_id_format(&one, text);
    assert_string_equal(text, "019ab2c4-7d51-7c5a-8054-7f69954a3deb");
}

/* Appends an outcome, and reads it back. */
static json_t *told(const struct bulk_outcome *outcome)
{
    struct bulk_reader *reader = bulk_reader_new();
    struct buf to = BUF_WITH_LIMIT(1 << 20);
    json_t *json;

    bulk_outcome_append(reader, outcome, &to);
    assert_int_equal(to.bytes[to.size - 1], '\n');
    assert_ptr_equal(memchr(to.bytes, '\n', to.size), to.bytes + to.size - 1);
    json = json_loadb((const char *)to.bytes, to.size, 0, NULL);
    if (json == NULL)
        fail_msg("no JSON: %s", buf_text(&to));
    buf_done(&to);
    bulk_reader_free(&reader);
    return json;
}

static const char *text_at(json_t *json, const char *one, const char *two)
{
    json_t *value = json_object_get(json, one);

    if (two != NULL)
        value = json_object_get(value, two);
    return json_is_string(value) ? json_string_value(value) : "(no text)";
}

static void test_outcomes(void **state)
{
    static const uint8_t pretty[] = "{\n  \"a\": [1,\r\n 2]\n}",
                         broken[] = "{\"a\": ", bytes[] = {0xff, 0xfe, 0x00};
    struct wire_id job = {{1}};
    struct bulk_outcome outcome = {.job = &job,
                                   .line = 7,
                                   .custom_id = WIRE_TEXT_OF("\"x\\n\""),
                                   .state = JOB_SUCCEEDED,
                                   .attempts = 1,
                                   .output = {pretty, sizeof(pretty) - 1},
                                   .output_is_json = true};
    json_t *json = told(&outcome);

    (void)state;
    assert_true(bulk_outcome_is_good(&outcome));
    assert_string_equal(text_at(json, "custom_id", NULL), "x\n");
    assert_true(json_is_null(json_object_get(json, "error")));
    assert_int_equal(json_array_size(json_object_get(
                         json_object_get(json_object_get(json, "response"), "body"), "a")),
                     2);
    json_decref(json);

    outcome.output = (struct wire_bytes){broken, sizeof(broken) - 1}; /* says JSON, and is none */
    json = told(&outcome);
    assert_string_equal(text_at(json_object_get(json, "response"), "body", NULL), "{\"a\": ");
    json_decref(json);

    outcome.output = (struct wire_bytes){bytes, sizeof(bytes)};
    outcome.output_is_json = false;
    json = told(&outcome);
    assert_string_equal(text_at(json_object_get(json, "response"), "body", "base64"), "//4A");
    json_decref(json);

    outcome = (struct bulk_outcome){.job = &job,
                                    .line = 8,
                                    .custom_id = WIRE_TEXT_OF("\"y\""),
                                    .state = JOB_FAILED,
                                    .class = ERROR_CLASS_MODEL_ERROR,
                                    .attempts = 3,
                                    .error_message = WIRE_TEXT_OF("it \"broke\"")};
    json = told(&outcome);
    assert_false(bulk_outcome_is_good(&outcome));
    assert_true(json_is_null(json_object_get(json, "response")));
    assert_string_equal(text_at(json, "error", "code"), "MODEL_PREDICT_ERROR");
    assert_string_equal(text_at(json, "error", "class"), "MODEL_ERROR");
    assert_string_equal(text_at(json, "error", "message"), "it \"broke\"");
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(json, "error"), "attempts")), 3);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(json, "error"), "line")),
                     8);
    json_decref(json);

    outcome = (struct bulk_outcome){
        .line = 9, .custom_id = WIRE_TEXT_OF("\"z\""), .never_run = "batch_expired"};
    json = told(&outcome);
    assert_false(bulk_outcome_is_good(&outcome));
    assert_string_equal(text_at(json, "id", NULL), "batch_req_line_9");
    assert_string_equal(text_at(json, "error", "code"), "batch_expired");
    json_decref(json);
}

/* A server's own refusal is an answer of the model, and no success of the line. */
static void test_status_of_a_server(void **state)
{
    static const uint8_t body[] = "{\"error\":\"no\"}";
    struct wire_id job = {{1}};
    const struct bulk_outcome outcome = {.job = &job,
                                         .custom_id = WIRE_TEXT_OF("\"x\""),
                                         .state = JOB_FAILED,
                                         .class = ERROR_CLASS_BAD_INPUT,
                                         .http_status = 422,
                                         .output = {body, sizeof(body) - 1},
                                         .output_is_json = true};
    json_t *json = told(&outcome);
    const json_t *response = json_object_get(json, "response");

    (void)state;
    assert_int_equal(json_integer_value(json_object_get(response, "status_code")), 422);
    assert_string_equal(text_at(json_object_get(response, "body"), "error", NULL), "no");
    json_decref(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_lines_of_one_model),
        cmocka_unit_test(test_jobs_of_lines),
        cmocka_unit_test(test_outcomes),
        cmocka_unit_test(test_status_of_a_server),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
