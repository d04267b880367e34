/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: each kind of model directory gets its engine, one that fits none is told what was looked
 * for, and headrace.json is refused by key, value and limit. Method: rows of files and texts. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "schema/model_plan.h"

#define BERT "{\"model_type\": \"bert\"}"
#define HEAD(name) "{\"model_type\": \"bert\", \"architectures\": [\"" name "\"]}"
#define BERT_FILES "model.safetensors vocab.txt"

static void facts_of(const char *files, const char *config, const char *ours,
                     struct model_facts *facts)
{
    *facts = (struct model_facts){.config_json = (char *)config, .headrace_json = (char *)ours};
    while (*files != '\0') {
        size_t size = strcspn(files, " ");
        char path[64] = "";

        assert_true(size < sizeof(path));
        memcpy(path, files, size);
        model_facts_note(facts, path);
        files += size + strspn(files + size, " ");
    }
}

static const struct {
    const char *files, *config, *ours;
    int code;
    const char *want; /* the engine, or a word of the refusal */
} rows[] = {
    {BERT_FILES, BERT, NULL, 0, "encoder"},
    {BERT_FILES, "{\"architectures\":[\"BertModel\"]}", NULL, 0, "encoder"},
    {BERT_FILES " onnx/model.onnx", BERT, NULL, 0, "encoder"},
    {BERT_FILES, NULL, NULL, ERR_UNSUPPORTED,
     "'bert|roberta|xlm-roberta|distilbert|mpnet|modernbert|nomic_bert' (missing)"},
    {BERT_FILES, "{\"model_type\":\"roberta\"}", NULL, 0, "encoder"},
    {BERT_FILES, "{\"architectures\":[\"DistilBertForTokenClassification\"]}", NULL, 0, "encoder"},
    {"vocab.txt", BERT, NULL, ERR_UNSUPPORTED, "*.safetensors (missing)"},
    {"adapter_config.json adapter_model.safetensors", NULL, NULL, ERR_UNSUPPORTED,
     "a LoRA adapter, and no engine here loads one"},
    {"adapter_config.json adapter_model.safetensors vocab.txt", BERT, NULL, ERR_UNSUPPORTED,
     "Merge it (in peft: merge_and_unload())"},
    {"adapter_config.json " BERT_FILES, BERT, NULL, 0, "encoder"},
    {"sub/model.safetensors vocab.txt", BERT, NULL, ERR_UNSUPPORTED, "*.safetensors (missing)"},
    {"model.safetensors", BERT, NULL, ERR_UNSUPPORTED, "tokenizer.json (missing)"},
    {BERT_FILES, "{\"model_type\":\"gpt2\"}", NULL, ERR_UNSUPPORTED, "it says 'gpt2'"},
    {BERT_FILES, "{\"architectures\":[\"GPT2Model\"]}", NULL, ERR_UNSUPPORTED,
     "it says 'GPT2Model'"},
    {BERT_FILES, HEAD("BertForSequenceClassification"), NULL, 0, "encoder"},
    {BERT_FILES, HEAD("BertForTokenClassification"), NULL, 0, "encoder"},
    {BERT_FILES, HEAD("BertForMaskedLM"), NULL, 0,
     "encoder"}, /* the engine looks for modules.json */
    {BERT_FILES, HEAD("BertForQuestionAnswering"), NULL, ERR_UNSUPPORTED,
     "it says 'BertForQuestionAnswering'; the encoder has Model, ForSequenceClassification and "
     "ForTokenClassification of bert, roberta, xlm-roberta, distilbert, "
     "mpnet"},
    {BERT_FILES, HEAD("BertForQuestionAnswering"), "{\"engine\":\"encoder\"}", ERR_UNSUPPORTED,
     "it says 'BertForQuestionAnswering'"},
    {BERT_FILES " model.onnx", HEAD("BertForQuestionAnswering"), NULL, 0, "onnx"},
    {BERT_FILES, "{", NULL, ERR_UNSUPPORTED, "of another kind"},
    {"weights.gguf", NULL, NULL, ERR_UNSUPPORTED, "*.gguf is there"},
    {"readme.md", NULL, NULL, ERR_UNSUPPORTED, "single *.onnx"},
    {"model.onnx", NULL, NULL, 0, "onnx"},
    {"rec.onnx", NULL, NULL, 0, "onnx"},
    {"deep/er/model.onnx", NULL, NULL, ERR_UNSUPPORTED, "onnx/model.onnx (missing)"},
    {"onnx/model.onnx vocab.txt", BERT, NULL, 0, "onnx"},
    {"a.onnx b.onnx", NULL, NULL, ERR_UNSUPPORTED, "2 files *.onnx"},
    {"a.onnx b.onnx", NULL, "{\"settings\":{\"file\":\"b.onnx\"}}", 0, "onnx"},
    {"a.onnx", NULL, "{\"settings\":{\"file\":7}}", ERR_RANGE, "settings.file"},
    {BERT_FILES " onnx/model.onnx", BERT, "{\"engine\":\"onnx\"}", 0, "onnx"},
    {"x", NULL, "{\"engine\":\"sim\"}", 0, "sim"},
    {"x", NULL, "{\"engine\":\"encoder\"}", ERR_UNSUPPORTED, "config.json"},
    {"x", NULL, "{\"engine\":\"onnx\"}", ERR_UNSUPPORTED, "model.onnx"},
    {"x", NULL, "{\"engine\":\"warp\"}", ERR_UNSUPPORTED, "warp"},
    {"x", NULL, "{\"engine\":7}", ERR_RANGE, "engine"},
    {"x", NULL, "{\"engine\":\"sim\",\"slots\":0}", ERR_RANGE, "slots is 0"},
    {"x", NULL, "{\"engine\":\"sim\",\"slots\":2049}", ERR_RANGE, "1 to 2048"},
    {"x", NULL, "{\"engine\":\"sim\",\"replicas\":\"1\"}", ERR_RANGE, "replicas is no integer"},
    {"x", NULL, "{\"engine\":\"sim\",\"warm\":17}", ERR_RANGE, "warm is 17"},
    {"x", NULL, "{\"engine\":\"sim\",\"settings\":[]}", ERR_MALFORMED, "settings"},
    {"x", NULL, "{\"engine\":\"sim\",\"color\":1}", ERR_RANGE, "'color' is unknown"},
    {"x", NULL, "[]", ERR_MALFORMED, "no object"},
    {"x", NULL, "{", ERR_MALFORMED, "line 1"},
    {"a.onnx", NULL, "{\"batching\":{\"max_items\":8}}", 0, "onnx"},
    {"a.onnx", NULL, "{\"batching\":{\"max_items\":0}}", ERR_RANGE, "max_items is 0"},
    {"a.onnx", NULL, "{\"batching\":{\"max_items\":2049}}", ERR_RANGE, "1 to 2048"},
    {"a.onnx", NULL, "{\"batching\":{\"max_tokens\":65537}}", ERR_RANGE, "1 to 65536"},
    {"a.onnx", NULL, "{\"batching\":{\"max_wait_ms\":1001}}", ERR_RANGE, "0 to 1000"},
    {"a.onnx", NULL, "{\"batching\":{\"wait\":1}}", ERR_RANGE, "batching 'wait' is unknown"},
    {"a.onnx", NULL, "{\"batching\":3}", ERR_MALFORMED, "batching"},
    {"a.onnx", NULL, "{\"batching\":{},\"settings\":{\"batching\":{}}}", ERR_MISMATCH, "both"},
    {"x", NULL, "{\"engine\":\"sim\",\"batching\":{}}", ERR_UNSUPPORTED, "sim has none"},
};

static void test_rows(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(model_plan_done) struct model_plan plan = {.settings = NULL};
        struct model_facts facts;
        struct err err = {0};
        int r;

        facts_of(rows[i].files, rows[i].config, rows[i].ours, &facts);
        r = model_plan_make(&facts, &plan, &err);
        if (r != rows[i].code || strstr(r == 0 ? plan.engine : err.text, rows[i].want) == NULL)
            fail_msg("row %zu: %d %s", i, r, r == 0 ? plan.engine : err.text);
        if (r == 0 && plan.why[0] == '\0')
            fail_msg("row %zu: no word on why", i);
    }
}

static void test_values(void **state)
{
    OWNED(model_plan_done) struct model_plan plan = {.settings = NULL};
    struct model_facts facts;
    struct err err;

    (void)state;
    facts_of("x", NULL,
             "{\"engine\":\"sim\",\"slots\":3,\"replicas\":2,\"warm\":1,\"device\":\"cuda\","
             "\"settings\":{\"fail\":0.5}}",
             &facts);
    assert_int_equal(model_plan_make(&facts, &plan, &err), 0);
    assert_int_equal(plan.slot_count, 3);
    assert_int_equal(plan.replica_count, 2);
    assert_int_equal(plan.warm_count, 1);
    assert_string_equal(plan.device, "cuda");
    assert_string_equal(plan.settings, "{\"fail\":0.5}");
}

/* The word of whoever pushes counts before that of headrace.json. */
static void test_device(void **state)
{
    static const struct {
        const char *asked, *ours, *want; /* the device, or a part of the error */
        int code;
    } cases[] = {
        {"cuda", "{\"engine\":\"sim\"}", "cuda", 0},
        {"cpu", "{\"engine\":\"sim\",\"device\":\"cuda\"}", "cpu", 0},
        {"", "{\"engine\":\"sim\",\"device\":\"cuda:3\"}", "cuda:3", 0},
        {"", "{\"engine\":\"sim\"}", "cpu", 0},
        {"gpu", "{\"engine\":\"sim\"}", "device is 'gpu'; it must be cpu, cuda or cuda:N",
         ERR_RANGE},
        {"", "{\"engine\":\"sim\",\"device\":\"tpu\"}", "headrace.json: device is 'tpu'",
         ERR_RANGE},
        {"cuda:x", "{\"engine\":\"sim\"}", "'cuda:x'; it must be cuda or", ERR_RANGE},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        OWNED(model_plan_done) struct model_plan plan = {.settings = NULL};
        struct model_facts facts;
        struct err err = {0};
        int r;

        facts_of("x", NULL, cases[i].ours, &facts);
        mem_copy_text(facts.device, cases[i].asked);
        r = model_plan_make(&facts, &plan, &err);
        if (r != cases[i].code || strstr(r == 0 ? plan.device : err.text, cases[i].want) == NULL)
            fail_msg("case %zu: %d %s", i, r, r == 0 ? plan.device : err.text);
    }
}

/* What the engine is told: the file, whichever way it was found, and how to batch. */
static void test_onnx_settings(void **state)
{
    static const struct {
        const char *files, *ours, *settings;
    } cases[] = {
        {"model.onnx other.onnx", NULL, "{\"file\":\"model.onnx\"}"},
        {"other.onnx model.onnx", NULL, "{\"file\":\"model.onnx\"}"},
        {"onnx/model.onnx", NULL, "{\"file\":\"onnx/model.onnx\"}"},
        {"onnx/model.onnx rec.onnx", NULL, "{\"file\":\"rec.onnx\"}"},
        {"a.onnx", "{\"settings\":{\"file\":\"a.onnx\"},\"batching\":{\"max_wait_ms\":2}}",
         "{\"file\":\"a.onnx\",\"batching\":{\"max_wait_ms\":2}}"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        OWNED(model_plan_done) struct model_plan plan = {.settings = NULL};
        struct model_facts facts;
        struct err err;

        facts_of(cases[i].files, NULL, cases[i].ours, &facts);
        assert_int_equal(model_plan_make(&facts, &plan, &err), 0);
        assert_string_equal(plan.settings, cases[i].settings);
    }
}

/* They go with the settings, and make it a deployment for a GPU. */
static void test_resources(void **state)
{
    static const struct {
        const char *ours, *yaml, *device, *want; /* the settings, or a part of the error */
        int code;
    } cases[] = {
        {"{\"engine\":\"sim\",\"resources\":{\"accelerator\":\"H100\"}}", NULL, "cuda",
         "{\"resources\":{\"accelerator\":\"H100\"}}", 0},
        {"{\"engine\":\"sim\",\"device\":\"cuda:1\",\"resources\":{\"accelerator_memory\":\"2GiB\"}"
         "}",
         NULL, "cuda:1", "{\"resources\":{\"accelerator_memory\":\"2GiB\"}}", 0},
        {"{\"engine\":\"sim\",\"resources\":{\"accelerator_memory\":\"big\"}}", NULL, NULL,
         "resources.accelerator_memory is 'big'", ERR_RANGE},
        {"{\"engine\":\"sim\",\"resources\":{\"gpus\":1}}", NULL, NULL,
         "resources 'gpus' is unknown", ERR_RANGE},
        {"{\"engine\":\"sim\",\"resources\":7}", NULL, NULL, "resources is no object",
         ERR_MALFORMED},
        {"{\"engine\":\"sim\",\"device\":\"cpu\",\"resources\":{}}", NULL, NULL,
         "resources are of a GPU, and device is 'cpu'", ERR_MISMATCH},
        {"{\"engine\":\"sim\",\"settings\":{\"resources\":{}}}", NULL, NULL,
         "it belongs to the top", ERR_MISMATCH},
        {"{\"engine\":\"sim\",\"device\":\"cuda:x\"}", NULL, NULL, "'cuda:x'; it must be cuda or",
         ERR_RANGE},
        {NULL,
         "resources: {accelerator: 'A10G:2'}\ndocker_server: {start_command: x, "
         "server_port: 8000, predict_endpoint: /p, readiness_endpoint: /h, "
         "liveness_endpoint: /h}",
         "cuda", "\"resources\":{\"accelerator\":\"A10G:2\"}", 0},
        {"{\"resources\":{\"accelerator_memory\":\"2GiB\"}}",
         "resources: {accelerator: T4}\ndocker_server: {start_command: x, server_port: 8000, "
         "predict_endpoint: /p, readiness_endpoint: /h, liveness_endpoint: /h}",
         "cuda", "\"resources\":{\"accelerator_memory\":\"2GiB\",\"accelerator\":\"T4\"}", 0},
        {NULL,
         "resources: {accelerator: 'T4:20'}\ndocker_server: {start_command: x, server_port: "
         "8000, predict_endpoint: /p, readiness_endpoint: /h, liveness_endpoint: /h}",
         NULL, "N of 1 to 16", ERR_RANGE},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        OWNED(model_plan_done) struct model_plan plan = {.settings = NULL};
        struct model_facts facts;
        struct err err = {0};
        const char *got;

        facts_of("x", NULL, cases[i].ours, &facts);
        facts.config_yaml = (char *)cases[i].yaml;
        assert_int_equal(model_plan_make(&facts, &plan, &err), cases[i].code);
        got = cases[i].code == 0 ? plan.settings : err.text;
        if (strstr(got, cases[i].want) == NULL)
            fail_msg("row %zu: '%s' has no '%s'", i, got, cases[i].want);
        if (cases[i].code == 0)
            assert_string_equal(plan.device, cases[i].device);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),      cmocka_unit_test(test_values),
        cmocka_unit_test(test_device),    cmocka_unit_test(test_onnx_settings),
        cmocka_unit_test(test_resources),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
