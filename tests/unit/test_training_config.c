/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: each key of a training job is honoured, noted or refused by name, with the defaults of the
 * truss_train package. Method: rows of documents. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "schema/training_config.h"

#define ID "0199a000-0000-7000-8000-000000000000"
#define LEAST "image: {base_image: none}, runtime: {start_commands: [run]}"
#define JOB(more) "name: p\njob: {" LEAST ", " more "}\n"
#define RUN(more)                                                                                  \
    "name: p\njob: {image: {base_image: none}, runtime: {start_commands: [run], " more "}}\n"

static int read_yaml(const char *text, struct training_config *config, char *project,
                     struct err *err)
{
    *config = (struct training_config){0};
    return training_config_yaml("config.yaml", text, strlen(text), project, config, err);
}

static const json_t *value_at(const json_t *root, const char *path)
{
    char name[64];

    for (; *path != '\0'; path += *path == '.') {
        size_t size = strcspn(path, ".");

        (void)snprintf(name, sizeof(name), "%.*s", (int)size, path);
        root = json_object_get(root, name);
        path += size;
    }
    return root;
}

/* Nothing but what must be there: the defaults of definitions.py. */
static void test_defaults(void **state)
{
    static const struct {
        const char *path, *json;
    } rows[] = {
        {"compute.node_count", "1"},
        {"compute.cpu_count", "1"},
        {"compute.memory", "\"2Gi\""},
        {"compute.accelerator", "null"},
        {"compute.availability_model", "\"dedicated\""},
        {"runtime.environment_variables", "{}"},
        {"runtime.cache_config", "null"},
        {"runtime.checkpointing_config.enabled", "false"},
        {"runtime.checkpointing_config.checkpoint_path", "null"},
        {"runtime.checkpointing_config.volume_size_gib", "null"},
        {"runtime.load_checkpoint_config", "null"},
        {"interactive_session", "null"},
        {"name", "null"},
        {"priority", "null"},
        {"workspace", "null"},
        {"weights", "[]"},
        {"enable_baseten_workdir", "true"},
    };
    OWNED(training_config_done) struct training_config config;
    char project[TRAINING_NAME_SIZE];
    struct err err;

    (void)state;
    assert_int_equal(read_yaml("name: p\njob: {" LEAST "}\n", &config, project, &err), 0);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        json_t *want = json_loads(rows[i].json, JSON_DECODE_ANY, NULL);

        if (!json_equal(want, value_at(config.config, rows[i].path)))
            fail_msg("%s", rows[i].path);
        json_decref(want);
    }
    assert_string_equal(project, "p");
    assert_int_equal(config.node_count, 1);
    assert_int_equal(config.memory_size, 2ll << 30);
    assert_int_equal(json_array_size(config.warnings), 0);
}

/* What is left out by a client of the API differs in one default. */
static void test_the_api_has_another_default(void **state)
{
    const struct training_origin origin = {"training_job", false};
    json_t *job = json_loads(
        "{\"image\":{\"base_image\":\"x\"},\"runtime\":{\"start_commands\":[\"a\"]}}", 0, NULL);
    OWNED(training_config_done) struct training_config config = {0};
    struct err err;

    (void)state;
    assert_int_equal(training_config_job(&origin, job, &config, &err), 0);
    assert_true(json_is_false(json_object_get(config.config, "enable_baseten_workdir")));
    json_decref(job);
}

static void test_figures_are_lifted(void **state)
{
    OWNED(training_config_done) struct training_config config;
    char project[TRAINING_NAME_SIZE];
    struct err err;
    int r = read_yaml(
        JOB("name: n 1, priority: -7, compute: {node_count: 2, cpu_count: 8, memory: 1.5G, "
            "accelerator: {accelerator: H100, count: 4}}, workspace: {archive: "
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef}"),
        &config, project, &err);

    (void)state;
    assert_int_equal(r, 0);
    assert_int_equal(config.node_count, 2);
    assert_int_equal(config.cpu_count, 8);
    assert_int_equal(config.gpu_count, 4);
    assert_string_equal(config.gpu_type, "H100");
    assert_int_equal(config.memory_size, 1500000000);
    assert_int_equal(config.priority, -7);
    assert_string_equal(config.name, "n 1");
    assert_int_equal(strlen(config.archive), 64);
}

static const struct {
    const char *yaml;
    const char *word; /* of the error; NULL: accepted, with… */
    const char *warning;
    int code;
} rows[] = {
    {RUN("enable_cache: true"), NULL, "runtime.cache_config.enable_legacy_hf_mount", 0},
    {RUN("environment_variables: {BT_NUM_GPUS: 1}"), NULL, "environment_variables.BT_NUM_GPUS", 0},
    {JOB("compute: {availability_model: spot}"), NULL, "availability_model", 0},
    {JOB("compute: {accelerator: 'L4:2'}"), NULL, NULL, 0},
    {RUN("environment_variables: {A: {name: hf_access_token}, B: 1, C: true}"), NULL, NULL, 0},
    {RUN("load_checkpoint_config: {enabled: true}"), NULL, NULL, 0},
    {RUN("load_checkpoint_config: {enabled: true, checkpoints: [{job_id: " ID
         ", checkpoint_name: b}]}"),
     NULL, NULL, 0},
    {"name: p\njob: {image: {base_image: none}, runtime: {start_commands: [\"a\\nb\"]}}", NULL,
     NULL, 0},
    {"name: p\njob: {image: {base_image: x}, runtime: {start_commands: [a]}}", NULL,
     "image.base_image: a trainer that has neither Docker nor Podman", 0},
    {JOB("enable_baseten_workdir: true"), NULL, NULL, 0},
    {JOB("enable_baseten_workdir: false"), NULL, "enable_baseten_workdir: commands begin", 0},
    {RUN("checkpointing_config: {checkpoint_path: /mnt/c}"), NULL, "checkpoint_path", 0},
    {RUN("checkpointing_config: {volume_size_gib: 9}"), NULL, "volume_size_gib", 0},
    {RUN("load_checkpoint_config: {download_folder: /mnt/l}"), NULL, "download_folder", 0},
    {RUN("load_checkpoint_config: {download_folder: /tmp/loaded_checkpoints}"), NULL, NULL, 0},

    {"a: [", "config.yaml: line", NULL, ERR_MALFORMED},
    {"- a", "config.yaml is no mapping", NULL, ERR_MALFORMED},
    {"job: {" LEAST "}", "name is missing", NULL, ERR_RANGE},
    {"name: p", "job is missing", NULL, ERR_RANGE},
    {"name: p\njob: 3", "config.yaml: job: this is no mapping", NULL, ERR_MALFORMED},
    {"name: a/b\njob: {" LEAST "}", "name is 'a/b'", NULL, ERR_RANGE},
    {"name: p\nteam_name: t\njob: {" LEAST "}", "team_name is not honoured", NULL, ERR_UNSUPPORTED},
    {"name: p\nowner: t\njob: {" LEAST "}", "there is no key 'owner'", NULL, ERR_RANGE},
    {"name: p\njob: {runtime: {start_commands: [a]}}", "image.base_image is missing", NULL,
     ERR_RANGE},
    {"name: p\njob: {image: {base_image: x}}", "runtime.start_commands is empty", NULL, ERR_RANGE},
    {JOB("computer: 1"), "config.yaml: job: there is no key 'computer'", NULL, ERR_RANGE},
    {JOB("compute: {node_count: 0}"), "compute.node_count is 0; it must be 1 to 64", NULL,
     ERR_RANGE},
    {JOB("compute: {node_count: many}"), "compute.node_count must be a whole number", NULL,
     ERR_RANGE},
    {JOB("compute: {memory: lots}"), "compute: memory is 'lots'", NULL, ERR_RANGE},
    {JOB("compute: {memory: 99Ti}"), "an amount of 1Mi to 64Ti", NULL, ERR_RANGE},
    {JOB("compute: {accelerator: P100}"), "compute.accelerator must be one of", NULL, ERR_RANGE},
    {JOB("compute: {accelerator: {accelerator: H100, count: 0}}"), "a count of 1 to 99", NULL,
     ERR_RANGE},
    {JOB("compute: {accelerator: {accelerator: H100, size: 1}}"), "other keys", NULL, ERR_RANGE},
    {JOB("compute: {availability_model: cheap}"), "one of dedicated, spot", NULL, ERR_RANGE},
    {JOB("interactive_session: {trigger: on_startup}"), "interactive_session is not honoured", NULL,
     ERR_UNSUPPORTED},
    {JOB("weights: [{source: a}]"), "weights is not honoured", NULL, ERR_UNSUPPORTED},
    {JOB("image: {base_image: x, docker_auth: {registry: r}}"), "twice", NULL, ERR_MALFORMED},
    {JOB("priority: high"), "priority must be a whole number", NULL, ERR_RANGE},
    {JOB("workspace: {archive: 12}"), "workspace.archive must be a text", NULL, ERR_RANGE},
    {JOB("workspace: {archive: '12'}"), "a SHA-256 in 64 hex digits", NULL, ERR_RANGE},
    {JOB("headrace: {time_limit_seconds: 0}"), "it must be 1 to 31536000", NULL, ERR_RANGE},
    {RUN("artifacts: [{s3_bucket: a, s3_key: b}]"), "/v1/training_archives", NULL, ERR_UNSUPPORTED},
    {RUN("enable_cache: true, cache_config: {enabled: true}"), "exclude each other", NULL,
     ERR_MISMATCH},
    {RUN("environment_variables: {A: [1]}"), "'A' is no name with a text", NULL, ERR_RANGE},
    {RUN("environment_variables: {A: {name: a/b}}"), "'A' is no name with a text", NULL, ERR_RANGE},
    {RUN("checkpointing_config: {checkpoint_path: rel}"), "must be an absolute path", NULL,
     ERR_RANGE},
    {RUN("checkpointing_config: {checkpoint_path: /a/../b}"), "without '..'", NULL, ERR_RANGE},
    {RUN("checkpointing_config: {volume_size_gib: 0}"), "volume_size_gib is 0", NULL, ERR_RANGE},
    {RUN("load_checkpoint_config: {checkpoints: [{run_id: a, checkpoint_name: b}]}"),
     "no runs of loops", NULL, ERR_UNSUPPORTED},
    {RUN("load_checkpoint_config: {checkpoints: [{checkpoint_name: b}]}"),
     "checkpoints[0].job_id is missing", NULL, ERR_RANGE},
    {RUN("load_checkpoint_config: {checkpoints: [{job_id: best}]}"), "checkpoints[0].job_id", NULL,
     ERR_MALFORMED},
    {RUN("load_checkpoint_config: {checkpoints: [{typ: best}]}"), "checkpoints[0].typ is 'best'",
     NULL, ERR_RANGE},
    {RUN("load_checkpoint_config: {checkpoints: [{jobid: best}]}"), "there is no key 'jobid'", NULL,
     ERR_RANGE},
    {RUN("load_checkpoint_config: {enabled: true, checkpoints: []}"), "checkpoints has 0 entries",
     NULL, ERR_RANGE},
};

static void test_rows(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(training_config_done) struct training_config config;
        char project[TRAINING_NAME_SIZE];
        struct err err = {.code = 0};
        int r = read_yaml(rows[i].yaml, &config, project, &err);
        const char *warning = json_string_value(json_array_get(config.warnings, 0));

        if (r != rows[i].code)
            fail_msg("row %zu: %s: %d, %s", i, rows[i].yaml, r, err.text);
        if (rows[i].word != NULL && strstr(err.text, rows[i].word) == NULL)
            fail_msg("row %zu: %s: %s", i, rows[i].yaml, err.text);
        if (r == 0 && (rows[i].warning != NULL) != (warning != NULL))
            fail_msg("row %zu: %s: warns '%s'", i, rows[i].yaml, warning);
        if (warning != NULL && strstr(warning, rows[i].warning) == NULL)
            fail_msg("row %zu: %s: warns '%s'", i, rows[i].yaml, warning);
    }
}

/* Every amount is a number, and nothing of ours is null. */
static void test_a_spec(void **state)
{
    static const char want[] =
        "{\"name\":\"n\",\"priority\":2,\"node_count\":1,\"cpu_count\":1,"
        "\"memory_bytes\":2147483648,\"accelerator\":\"L4\",\"gpu_count\":2,\"base_image\":\"x\","
        "\"start_commands\":[\"run\"],\"environment_variables\":{\"A\":\"1\",\"B\":{\"name\":\"s\"}"
        "},"
        "\"archive\":\"\",\"checkpointing\":{\"enabled\":true,\"path\":\"\",\"volume_bytes\":"
        "1073741824,"
        "\"keep\":3},\"load_checkpoint\":{\"enabled\":false},\"cache\":{\"enabled\":true},"
        "\"time_limit_seconds\":0,\"grace_seconds\":5,\"disk_bytes\":2147483648,\"max_attempts\":3,"
        "\"enable_baseten_workdir\":true}";
    OWNED(training_config_done) struct training_config config;
    char project[TRAINING_NAME_SIZE];
    struct err err;
    int r = read_yaml(
        "name: p\njob: {name: n, priority: 2, image: {base_image: x}, compute: {accelerator: "
        "L4:2}, "
        "headrace: {keep_checkpoints: 3, grace_seconds: 5, scratch_gib: 2, retries: 2}, runtime: "
        "{start_commands: [run], environment_variables: {A: 1, B: {name: s}}, cache_config: "
        "{enabled: true}, checkpointing_config: {enabled: true, volume_size_gib: 1}}}\n",
        &config, project, &err);
    json_t *spec, *wanted = json_loads(want, 0, NULL);

    (void)state;
    assert_int_equal(r, 0);
    spec = training_config_spec(&config);
    if (!json_equal(spec, wanted)) {
        char *text = json_dumps(spec, 0);

        fail_msg("%s", text);
    }
    json_decref(spec);
    json_decref(wanted);
}

static void test_amounts(void **state)
{
    static const struct {
        const char *text;
        uint64_t size; /* 0: refused */
    } amounts[] = {
        {"2Gi", 2ull << 30},
        {"1Mi", 1 << 20},
        {"512Mi", 512 << 20},
        {"1.5G", 1500000000},
        {"1048576", 1 << 20},
        {"64Ti", 64ull << 40},
        {"1Ki", 0},
        {"65Ti", 0},
        {"", 0},
        {"Gi", 0},
        {"-1Gi", 0},
        {"1e9", 0},
        {"2 Gi", 0},
        {"2Gi ", 0},
        {"nan", 0},
        {"0x10000000", 0},
        {"1..5G", 0},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(amounts); i++) {
        uint64_t size = 0;
        struct err err;
        int r = training_memory_parse(amounts[i].text, &size, &err);

        if ((r == 0) != (amounts[i].size > 0) || size != amounts[i].size)
            fail_msg("'%s': %d, %llu", amounts[i].text, r, (unsigned long long)size);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_the_api_has_another_default),
        cmocka_unit_test(test_figures_are_lifted),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_a_spec),
        cmocka_unit_test(test_amounts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
