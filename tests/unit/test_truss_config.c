/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: each key of a config.yaml is honoured, noted or refused by name; what is hostile is refused
 * within its bounds. Method: rows of documents. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "schema/truss_config.h"
#include "schema/truss_plan.h"
#include "schema/yaml_json.h"

#define SERVER                                                                                     \
    "docker_server:\n  start_command: serve --port 8000\n  server_port: 8000\n"                    \
    "  predict_endpoint: /predict\n  readiness_endpoint: /health\n  liveness_endpoint: /health\n"

#define JOB "0199a3f0-0000-7000-8000-000000000001"
#define CHECKPOINTS(reference) "training_checkpoints: {artifact_references: [" reference "]}"

/* ---- YAML ---- */

static const struct {
    const char *yaml, *json; /* NULL: refused, with `word` */
    const char *word;
} documents[] = {
    {"", "{}", NULL},
    {"# nothing\n", "{}", NULL},
    {"~", "{}", NULL},
    {"a: [1, -2, 0x1f, 010, 0b11, 1_000, +3, 08, 1e3]",
     "{\"a\":[1,-2,31,8,3,1000,3,\"08\",\"1e3\"]}", NULL},
    {"a: [1.5, .5, 1., -2.5e+3, .inf, 1.2.3]", "{\"a\":[1.5,0.5,1.0,-2500.0,\".inf\",\"1.2.3\"]}",
     NULL},
    {"a: [yes, off, True, ~, null, '', \"no\", 2026-01-02, 12:30]",
     "{\"a\":[true,false,true,null,null,\"\",\"no\",\"2026-01-02\",\"12:30\"]}", NULL},
    {"a: !!str 1\nb: ! 2\nc: !!int '3'", "{\"a\":\"1\",\"b\":\"2\",\"c\":3}", NULL},
    {"1: a\nyes: b", "{\"1\":\"a\",\"yes\":\"b\"}", NULL},
    {"a: &x {k: 1}\nb: *x\nc: {<<: *x, k: 2, l: 3}",
     "{\"a\":{\"k\":1},\"b\":{\"k\":1},\"c\":{\"k\":2,\"l\":3}}", NULL},
    {"a: |\n  two\n  lines\n", "{\"a\":\"two\\nlines\\n\"}", NULL},
    {"a: 99999999999999999999", "{\"a\":\"99999999999999999999\"}", NULL},
    {"a: 1\na: 2", NULL, "line 2: the key 'a' is there twice"},
    {"a: {b: 1, b: 2}", NULL, "the key 'b' is there twice"},
    {"a: *x", NULL, "nothing is called *x"},
    {"a: &x [*x]", NULL, "nothing is called *x"},
    {"a: !!python/object:os.system x", NULL, "the tag tag:yaml.org,2002:python/object"},
    {"a: !!binary aGk=", NULL, "is not allowed"},
    {"? [a]\n: b", NULL, "a key is no plain word"},
    {"a: 1\n---\nb: 2", NULL, "a second document begins"},
    {"a: [1", NULL, "config.yaml: line"},
    {"a: \"x\\0y\"", NULL, "a NUL byte"},
    {"a: \xff", NULL, "config.yaml: line"},
    {"a: {<<: 1}", NULL, "<< wants mappings"},
};

static void test_documents(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(documents); i++) {
        json_t *value = NULL;
        struct err err = {0};
        int r = yaml_json_parse("config.yaml", documents[i].yaml, strlen(documents[i].yaml), &value,
                                &err);
        char *text = json_dumps(value, JSON_COMPACT);

        if (documents[i].json == NULL) {
            assert_true(r < 0);
            if (strstr(err.text, documents[i].word) == NULL)
                fail_msg("%s: %s", documents[i].yaml, err.text);
        } else {
            if (r < 0)
                fail_msg("%s: %s", documents[i].yaml, err.text);
            assert_string_equal(text, documents[i].json);
        }
        free(text);
        json_decref(value);
    }
}

static int parse_buf(const struct buf *text, struct err *err)
{
    json_t *value = NULL;
    int r = yaml_json_parse("config.yaml", (const char *)text->bytes, text->size, &value, err);

    json_decref(value);
    return r;
}

static void test_bombs(void **state)
{
    OWNED(buf_done) struct buf bomb = BUF_WITH_LIMIT(1 << 20);
    OWNED(buf_done) struct buf deep = BUF_WITH_LIMIT(1 << 20);
    OWNED(buf_done) struct buf large = BUF_WITH_LIMIT(1 << 20);
    struct err err;

    (void)state;
    buf_append_text(&bomb, "a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for (int i = 1; i < 12; i++) {
        buf_printf(&bomb, "a%d: &a%d [", i, i);
        for (int j = 0; j < 9; j++)
            buf_printf(&bomb, "*a%d,", i - 1);
        buf_append_text(&bomb, "]\n");
    }
    assert_int_equal(parse_buf(&bomb, &err), ERR_TOO_BIG);
    assert_non_null(strstr(err.text, "over 20000 values"));
    for (int i = 0; i < YAML_DEPTH_MAX + 1; i++)
        buf_append_text(&deep, "[");
    assert_int_equal(parse_buf(&deep, &err), ERR_TOO_BIG);
    assert_non_null(strstr(err.text, "nested deeper than 32"));
    for (size_t i = 0; i <= YAML_SIZE_MAX; i++)
        buf_append_text(&large, "#");
    assert_int_equal(parse_buf(&large, &err), ERR_TOO_BIG);
}

/* ---- keys ---- */

static const struct {
    const char *yaml;
    int code;
    const char *word; /* of the error, or of the warnings; NULL: there are none */
} configs[] = {
    {"", 0, NULL},
    {"model_name: Hello\nmodel_metadata: {tags: [openai-compatible]}", 0, NULL},
    {"resources: {cpu: 3, memory: 10Gi, use_gpu: true}", 0, "resources.cpu: not enforced"},
    {"resources: {cpu: 500m, accelerator: 'A10G:2'}", 0, "not enforced"},
    {"live_reload: true", 0, "live_reload: a deployment does not change"},
    {"environment_variables: {PORT: 1, A: 1.10, B: yes}", 0,
     "environment_variables.PORT: reserved"},
    {"model_cache: []\nweights: []\ntrt_llm: null\nexternal_data:", 0, NULL},
    {CHECKPOINTS("{training_job_id: " JOB ", paths: [rank-0/step-1/, 'rank-*/last/*']}"), 0, NULL},
    {"training_checkpoints: {}", 0, NULL},
    {CHECKPOINTS("{training_job_id: lqz4pw4, paths: [rank-0/a]}"), ERR_RANGE,
     "[0] must be a mapping of training_job_id"},
    {CHECKPOINTS("{training_job_id: " JOB ", path: [rank-0/a]}"), ERR_RANGE, "and paths"},
    {CHECKPOINTS("{training_job_id: " JOB ", paths: []}"), ERR_RANGE, "a list of 1 to 64"},
    {CHECKPOINTS("{training_job_id: " JOB ", paths: [rank-0/../x]}"), ERR_RANGE,
     "paths[0] is 'rank-0/../x'"},
    {CHECKPOINTS("{training_job_id: " JOB ", paths: [step-1]}"), ERR_RANGE, "like rank-0/"},
    {CHECKPOINTS("1, 2, 3, 4, 5, 6, 7, 8, 9"), ERR_RANGE, "has 9 entries; at most 8"},
    {"training_checkpoints: {download_folder: tmp}", ERR_RANGE, "must be an absolute path"},
    {"training_checkpoints: {download_folder: '/a:b'}", ERR_RANGE, "no ':', ';' or '='"},
    {"training_checkpoints: {loops_checkpoint_ids: [a]}", ERR_UNSUPPORTED, "there are no loops"},
    {"modelname: x", ERR_RANGE, "there is no key 'modelname'"},
    {"runtime: {predict_concurency: 2}", ERR_RANGE, "no key 'runtime.predict_concurency'"},
    {"runtime.predict_concurrency: 2", ERR_RANGE, "no key 'runtime.predict_concurrency'"},
    {"runtime: {predict_concurrency: 0}", ERR_RANGE, "is 0; it must be 1 to 2048"},
    {"runtime: {predict_concurrency: '4'}", ERR_RANGE,
     "predict_concurrency must be a whole number, not \"4\""},
    {"secrets: hunter2", ERR_RANGE, "secrets must be a mapping of names to texts or null"},
    {"runtime: {num_workers: 2}", ERR_RANGE, "is 2; it must be 1 to 1"},
    {"runtime: 7", ERR_RANGE, "runtime must be a mapping"},
    {"runtime: {transport: {kind: grpc}}", ERR_UNSUPPORTED, "only http and websocket are served"},
    {"runtime: {transport: {kind: websocket, ping_interval_seconds: 0.5}}", 0, NULL},
    {"runtime: {transport: {kind: websocket, ping_timeout_seconds: 0}}", ERR_RANGE,
     "a number over 0"},
    {"runtime: {is_websocket_endpoint: true}", 0, NULL},
    {SERVER "\nruntime: {transport: {kind: websocket, ping_timeout_seconds: 9}}", 0,
     "pings its clients itself"},
    {"runtime: {egress_restrictions: {ip_allow_list: []}}", ERR_UNSUPPORTED, "egress_restrictions"},
    {"runtime: {remote_ssh: {enabled: true}}", ERR_UNSUPPORTED, "no SSH"},
    {"runtime: {health_checks: {restart_threshold_seconds: 5}}", ERR_RANGE, "10 to 3000"},
    {"data_dir: ../../etc", ERR_RANGE, "data_dir is '../../etc'; it must be a path inside"},
    {"data_dir: /etc", ERR_RANGE, "data_dir is '/etc'"},
    {"model_module_dir: a//b", ERR_RANGE, "model_module_dir"},
    {"requirements: [a, 7]", ERR_RANGE, "requirements[1]"},
    {"requirements: [\"a\\nb\"]", ERR_RANGE, "a text of one line"},
    {"requirements: [a]\nrequirements_file: r.txt", ERR_MISMATCH, "exclude each other"},
    {"python_version: py38", ERR_RANGE, "one of py39, py310"},
    {"secrets: {'a b': null}", ERR_RANGE, "secrets: 'a b' is no name"},
    {"secrets: {..: null}", ERR_RANGE, "secrets: '..' is no name"},
    {"secrets: {a: [1]}", ERR_RANGE, "must be a text or null"},
    {"resources: {accelerator: M1}", ERR_RANGE, "resources.accelerator must be one of T4"},
    {"resources: {accelerator: 'T4:0'}", ERR_RANGE, "N of 1 to 99"},
    {"base_image: {image: nvidia/cuda}", ERR_UNSUPPORTED, "base_image is not honoured"},
    {"build_commands: [make]", ERR_UNSUPPORTED, "build_commands is not honoured: no image"},
    {"weights: [{source: 'hf://x'}]", ERR_UNSUPPORTED, "weights is not honoured: nothing is mirr"},
    {"trt_llm: {build: {}}", ERR_UNSUPPORTED, "trt_llm is not honoured"},
    {"build: {no_cache: true}", ERR_UNSUPPORTED, "build.no_cache"},
    {"- a", ERR_MALFORMED, "no mapping"},
    {SERVER, 0, NULL},
    {"docker_server: {start_command: x}", ERR_RANGE, "docker_server.server_port is missing"},
    {"docker_server: {start_command: x, server_port: 1, predict_endpoint: p}", ERR_RANGE,
     "begins with /"},
};

static void test_keys(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(configs); i++) {
        OWNED(truss_config_done) struct truss_config config = {0};
        struct err err = {0};
        int r = truss_config_parse(configs[i].yaml, strlen(configs[i].yaml), &config, &err);
        char *warnings = json_dumps(config.warnings, JSON_COMPACT);

        if (r != configs[i].code)
            fail_msg("%s: %s", configs[i].yaml, r < 0 ? err.text : "accepted");
        if (r == 0 && configs[i].word == NULL)
            assert_string_equal(warnings, "[]");
        else if (strstr(r == 0 ? warnings : err.text, configs[i].word) == NULL)
            fail_msg("%s: %s", configs[i].yaml, r == 0 ? warnings : err.text);
        free(warnings);
    }
}

static const char *text_at(const json_t *map, const char *a, const char *b)
{
    return json_string_value(json_object_get(json_object_get(map, a), b));
}

static void test_values_are_what_python_makes_of_them(void **state)
{
    static const char yaml[] = "environment_variables: {A: 1.10, B: yes, C: 0x10, D: '007'}\n"
                               "resources: {cpu: 3, accelerator: T4}\nsecrets: {hf: null, x: y}\n";
    OWNED(truss_config_done) struct truss_config config = {0};
    struct err err;

    (void)state;
    assert_int_equal(truss_config_parse(yaml, strlen(yaml), &config, &err), 0);
    assert_string_equal(text_at(config.config, "environment_variables", "A"), "1.1");
    assert_string_equal(text_at(config.config, "environment_variables", "B"), "true");
    assert_string_equal(text_at(config.config, "environment_variables", "C"), "16");
    assert_string_equal(text_at(config.config, "environment_variables", "D"), "007");
    assert_string_equal(text_at(config.config, "resources", "cpu"), "3");
    assert_string_equal(text_at(config.config, "resources", "memory"), "2Gi");
    assert_true(json_is_null(json_object_get(json_object_get(config.config, "secrets"), "hf")));
    assert_true(config.accelerator);
    assert_int_equal(config.concurrency, 1);
    assert_int_equal(json_array_size(config.warnings), 2); /* cpu is not enforced, x is open */
    assert_non_null(strstr(json_string_value(json_array_get(config.warnings, 1)),
                           "secrets.x: its value stands in the file"));
    assert_null(strstr(json_string_value(json_array_get(config.warnings, 1)), "y;"));
}

static void test_a_server_is_lifted(void **state)
{
    static const char yaml[] = SERVER
        "environment_variables: {PORT: 1, A: b}\nsecrets: {hf: null}\n"
        "runtime: {health_checks: {startup_threshold_seconds: 60}}\n";
    OWNED(truss_config_done) struct truss_config config = {0};
    char *text;
    struct err err;

    (void)state;
    assert_int_equal(truss_config_parse(yaml, strlen(yaml), &config, &err), 0);
    text = json_dumps(config.server, JSON_COMPACT | JSON_SORT_KEYS);
    assert_string_equal(
        text,
        "{\"environment_variables\":{\"A\":\"b\"},\"liveness_endpoint\":"
        "\"/health\",\"predict_endpoint\":\"/predict\",\"readiness_endpoint\""
        ":\"/health\",\"secrets\":{\"hf\":null},\"server_port\":8000,\"start_command\":\"serve "
        "--port "
        "8000\",\"startup_threshold_seconds\":60}");
    free(text);
}

/* ---- the plan ---- */

static void test_plans(void **state)
{
    static const struct {
        const char *yaml, *ours;
        bool has_model;
        const char *engine, *device, *word;
        uint32_t slots;
    } rows[] = {
        {"model_name: x", NULL, true, "python", "cpu", NULL, 1},
        {"runtime: {predict_concurrency: 7}", NULL, true, "python", "cpu", NULL, 7},
        {"resources: {accelerator: T4}", NULL, true, "python", "cuda", NULL, 1},
        {"resources: {accelerator: T4}", "{\"device\":\"cpu\",\"slots\":3}", true, "python", "cpu",
         NULL, 3},
        {"model_name: Web-1\n" SERVER, NULL, false, "server", "cpu", NULL, 8},
        {"model_name: x", "{\"settings\":{\"python\":\"exact\"}}", true, "python", "cpu", NULL, 1},
        {"model_name: x", "{\"settings\":{\"python\":\"any\"}}", true, NULL, NULL, "exact", 0},
        {"model_name: x", "{\"settings\":{\"pyton\":\"exact\"}}", true, NULL, NULL, "unknown", 0},
        {"model_name: x", "{\"engine\":\"python\"}", false, NULL, NULL, "neither model/model.py",
         0},
        {"model_name: x", NULL, false, NULL, NULL, "no engine for these", 0},
        {SERVER, "{\"engine\":\"python\"}", true, NULL, NULL, "config.yaml is of a server", 0},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct model_facts facts = {.config_yaml = (char *)rows[i].yaml,
                                    .headrace_json = (char *)rows[i].ours,
                                    .has_model_py = rows[i].has_model,
                                    .file_count = 2};
        OWNED(model_plan_done) struct model_plan plan = {.settings = NULL};
        struct err err = {0};
        int r = model_plan_make(&facts, &plan, &err);

        if (rows[i].engine == NULL) {
            assert_true(r < 0);
            if (strstr(err.text, rows[i].word) == NULL)
                fail_msg("%s: %s", rows[i].yaml, err.text);
            continue;
        }
        if (r < 0)
            fail_msg("%s: %s", rows[i].yaml, err.text);
        assert_string_equal(plan.engine, rows[i].engine);
        assert_string_equal(plan.device, rows[i].device);
        assert_int_equal(plan.slot_count, rows[i].slots);
        if (strncmp(rows[i].yaml, "model_name: ", 12) != 0)
            assert_null(plan.name);
        else
            assert_int_equal(strncmp(plan.name, rows[i].yaml + 12, strlen(plan.name)), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_documents),
        cmocka_unit_test(test_bombs),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_values_are_what_python_makes_of_them),
        cmocka_unit_test(test_a_server_is_lifted),
        cmocka_unit_test(test_plans),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
