/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: the settings of the `server` engine are taken as documented, and what is wrong in them is
 * refused by name. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "schema/server_config.h"

#define NEEDED "\"predict_endpoint\":\"/p\",\"readiness_endpoint\":\"/r\""
#define WHOLE "\"start_command\":\"run {port} {port}\"," NEEDED

static void test_defaults(void **state)
{
    OWNED(server_config_done) struct server_config config = {0};
    OWNED(mem_free) char *command = NULL;
    struct err err;

    (void)state;
    assert_int_equal(server_config_parse("{" WHOLE "}", &config, &err), 0);
    assert_string_equal(config.predict_endpoint, "/p");
    assert_string_equal(config.readiness_endpoint, "/r");
    assert_string_equal(config.liveness_endpoint, "/r");
    assert_int_equal(config.port, 0);
    assert_int_equal(config.startup_ms, 1800000);
    assert_int_equal(config.probe_ms, 10000);
    assert_int_equal(config.answer_size_max, SERVER_ANSWER_SIZE_MAX);
    assert_null(config.env[0]);
    assert_false(config.network_out);
    command = server_config_command(&config, 8123);
    assert_string_equal(command, "run 8123 8123");
}

static void test_everything(void **state)
{
    OWNED(server_config_done) struct server_config config = {0};
    struct err err;

    (void)state;
    assert_int_equal(server_config_parse(
                         "{" WHOLE ",\"server_port\":8000,\"liveness_endpoint\":\"/l?x=1\","
                         "\"environment_variables\":{\"A\":\"1\",\"B\":\"\"},\"network\":\"out\","
                         "\"startup_threshold_seconds\":10,\"stop_traffic_threshold_seconds\":20,"
                         "\"restart_threshold_seconds\":30,\"probe_seconds\":0.5,"
                         "\"stop_seconds\":0,\"answer_size_max\":4096,"
                         "\"secrets\":{\"hf\":null,\"x\":\"y\"}}",
                         &config, &err),
                     0);
    assert_int_equal(config.port, 8000);
    assert_string_equal(config.liveness_endpoint, "/l?x=1");
    assert_string_equal(config.env[0], "A=1");
    assert_string_equal(config.env[1], "B=");
    assert_null(config.env[2]);
    assert_true(config.network_out);
    assert_int_equal(config.startup_ms, 10000);
    assert_int_equal(config.stop_traffic_ms, 20000);
    assert_int_equal(config.restart_ms, 30000);
    assert_int_equal(config.probe_ms, 500);
    assert_int_equal(config.stop_ms, 0);
    assert_int_equal(config.answer_size_max, 4096);
    assert_int_equal(json_object_size(config.secrets), 2);
}

static void test_refusals(void **state)
{
    static const struct {
        const char *json, *holds;
    } rows[] = {
        {"[]", "no object"},
        {"{", "line 1"},
        {"{" WHOLE "," WHOLE "}", "duplicate"},
        {"{" NEEDED "}", "start_command is missing"},
        {"{\"start_command\":\"x\",\"readiness_endpoint\":\"/r\"}", "predict_endpoint is missing"},
        {"{\"start_command\":\"x\",\"predict_endpoint\":\"/p\"}", "readiness_endpoint is missing"},
        {"{" WHOLE ",\"start_comand\":\"x\"}", "'start_comand' is no setting"},
        {"{\"start_command\":3," NEEDED "}", "start_command must be a string"},
        {"{\"start_command\":\"\"," NEEDED "}", "start_command must be a string of 1 to"},
        {"{" WHOLE ",\"server_port\":65536}", "server_port must be an integer from 0 to 65535"},
        {"{" WHOLE ",\"server_port\":\"80\"}", "server_port must be an integer"},
        {"{" WHOLE ",\"liveness_endpoint\":\"l\"}", "liveness_endpoint is 'l'"},
        {"{" WHOLE ",\"liveness_endpoint\":\"/a b\"}", "no spaces"},
        {"{" WHOLE ",\"startup_threshold_seconds\":0.5}", "from 1 to 3000"},
        {"{" WHOLE ",\"restart_threshold_seconds\":3001}", "from 0 to 3000"},
        {"{" WHOLE ",\"environment_variables\":[]}", "must be an object"},
        {"{" WHOLE ",\"environment_variables\":{\"A\":1}}", "'A' is no name with a text"},
        {"{" WHOLE ",\"environment_variables\":{\"A=B\":\"1\"}}", "'A=B' is no name"},
        {"{" WHOLE ",\"environment_variables\":{\"PORT\":\"1\"}}", "PORT is set to server_port"},
        {"{" WHOLE ",\"network\":\"all\"}", "network must be"},
        {"{" WHOLE ",\"answer_size_max\":1}", "answer_size_max must be an integer from 1024"},
        {"{" WHOLE ",\"secrets\":[\"a\"]}", "secrets must be an object"},
        {"{" WHOLE ",\"secrets\":{\"a\":1}}", "'a' must be a text or null"},
        {"{" WHOLE ",\"secrets\":{\"a/b\":null}}", "secrets: 'a/b' is no name"},
        {"{" WHOLE ",\"run_as_user_id\":1}", "run_as_user_id needs an image"},
        {"{" WHOLE ",\"image\":\"i\"}", "an image needs the server_port"},
        {"{" WHOLE ",\"image\":\"--privileged\",\"server_port\":8000}", "no image begins with -"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct server_config config = {0};
        struct err err;

        assert_true(server_config_parse(rows[i].json, &config, &err) < 0);
        if (strstr(err.text, rows[i].holds) == NULL)
            fail_msg("%s: '%s' does not hold '%s'", rows[i].json, err.text, rows[i].holds);
        assert_null(config.start_command);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_everything),
        cmocka_unit_test(test_refusals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
