/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: a model directory is read as its own files say, and one that would be served wrongly is
 * refused with file, key and value.
 * Method: the tiny model's files with one thing changed a row.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "workers/engines/encoder/encoder_config.h"
#include "workers/engines/encoder/encoder_json.h"

#define TINY "tests/data/encoder/tiny"

static const char *const files[] = {"config.json", "modules.json", "1_Pooling/config.json",
                                    "sentence_bert_config.json", "tokenizer_config.json"};

static const struct {
    const char *file;
    const char *key;  /* "": the whole file */
    const char *json; /* NULL: the file is not there */
    int code;
    const char *text;
} rows[] = {
    {"config.json", "", NULL, ERR_NOT_FOUND, "config.json"},
    {"config.json", "", "[]", ERR_UNSUPPORTED, "architectures[0] is '(none)'"},
    {"config.json", "architectures", "[\"BertForMaskedLM\"]", 0, ""},
    {"config.json", "architectures", "[\"BartModel\"]", ERR_UNSUPPORTED,
     "config.json: architectures[0] is 'BartModel', the encoder has Model, "
     "ForSequenceClassification and ForTokenClassification of Bert, Roberta, XLMRoberta, "
     "DistilBert"},
    {"config.json", "model_type", "\"roberta\"", ERR_UNSUPPORTED, "model_type is 'roberta'"},
    {"config.json", "position_embedding_type", "\"relative_key\"", ERR_UNSUPPORTED,
     "position_embedding_type is 'relative_key'"},
    {"config.json", "is_decoder", "true", ERR_UNSUPPORTED, "is_decoder is true"},
    {"config.json", "hidden_act", "\"silu\"", ERR_UNSUPPORTED, "hidden_act is 'silu'"},
    {"config.json", "hidden_size", "33", ERR_MISMATCH,
     "33 is no multiple of num_attention_heads 4"},
    {"config.json", "hidden_size", "100000", ERR_RANGE,
     "'hidden_size' is 100000, allowed are 1 to 8192"},
    {"config.json", "hidden_size", "\"32\"", ERR_MALFORMED, "'hidden_size' is no whole number"},
    {"config.json", "num_hidden_layers", "0", ERR_RANGE, "'num_hidden_layers' is 0"},
    {"config.json", "max_position_embeddings", "1", ERR_RANGE, "max_position_embeddings is 1"},
    {"config.json", "layer_norm_eps", "-1", ERR_RANGE, "layer_norm_eps"},
    {"sentence_bert_config.json", "max_seq_length", "1", ERR_RANGE, "'max_seq_length' is less"},
    {"modules.json", "", "{\"a\":", ERR_MALFORMED, "'modules.json' is not JSON: line 1"},
    {"modules.json", "", "[]", ERR_UNSUPPORTED, "modules.json: 0 modules"},
    {"modules.json", "",
     "[{\"type\":\"x.Transformer\",\"path\":\"\"},{\"type\":\"x.Pooling\","
     "\"path\":\"1_Pooling\"},{\"type\":\"x.Dense\",\"path\":\"2_Dense\"}]",
     ERR_UNSUPPORTED, "module 2 is 'Dense' in '2_Dense'"},
    {"modules.json", "",
     "[{\"type\":\"x.Transformer\",\"path\":\"\"},{\"type\":\"x.Pooling\","
     "\"path\":\"../../etc\"}]",
     ERR_UNSUPPORTED, "module 1 is 'Pooling' in '../../etc'"},
    {"1_Pooling/config.json", "", NULL, ERR_NOT_FOUND, "1_Pooling/config.json"},
    {"1_Pooling/config.json", "pooling_mode_max_tokens", "true", ERR_UNSUPPORTED,
     "pooling_mode_max_tokens is true, the encoder has mean and cls"},
    {"1_Pooling/config.json", "pooling_mode_cls_token", "true", ERR_UNSUPPORTED,
     "both pooling of mean and cls"},
    {"1_Pooling/config.json", "pooling_mode_mean_tokens", "false", ERR_UNSUPPORTED, "neither"},
};

static void write_files(const char *dir, const char *changed, const char *key, const char *json)
{
    OWNED(mem_free) char *pooling = xasprintf("%s/1_Pooling", dir);

    (void)mkdir(pooling, 0700);
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        OWNED(mem_free) char *path = xasprintf("%s/%s", dir, files[i]);
        OWNED(encoder_json_free) json_t *value = NULL;
        struct err err;
        FILE *file;

        (void)unlink(path);
        if (strcmp(files[i], changed) == 0 && key[0] == '\0') {
            if (json == NULL)
                continue;
            file = fopen(path, "we");
            assert_non_null(file);
            assert_true(fputs(json, file) >= 0);
            assert_int_equal(fclose(file), 0);
            continue;
        }
        assert_int_equal(encoder_json_read(TINY, files[i], 65536, &value, &err), 0);
        if (strcmp(files[i], changed) == 0)
            (void)json_object_set_new(value, key, json_loads(json, JSON_DECODE_ANY, NULL));
        assert_int_equal(json_dump_file(value, path, 0), 0);
    }
}

static void remove_files(const char *dir)
{
    OWNED(mem_free) char *pooling = xasprintf("%s/1_Pooling", dir);

    for (size_t i = 0; i < COUNT_OF(files); i++) {
        OWNED(mem_free) char *path = xasprintf("%s/%s", dir, files[i]);

        (void)unlink(path);
    }
    assert_int_equal(rmdir(pooling), 0);
    assert_int_equal(rmdir(dir), 0);
}

static void test_refusals(void **state)
{
    char dir[] = "/tmp/encoder-XXXXXX";

    (void)state;
    assert_non_null(mkdtemp(dir));
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct encoder_config config;
        struct err err = {0};
        int r;

        write_files(dir, rows[i].file, rows[i].key, rows[i].json);
        r = encoder_config_read(dir, &config, &err);
        if (r != rows[i].code || strstr(err.text, rows[i].text) == NULL)
            fail_msg("%s %s = %s: %s (%s)", rows[i].file, rows[i].key,
                     rows[i].json != NULL ? rows[i].json : "(none)", err_name(r), err.text);
    }
    remove_files(dir);
}

#define MODERN                                                                                     \
    "{\"architectures\":[\"ModernBertModel\"],\"model_type\":\"modernbert\",\"num_hidden_"         \
    "layers\":4}"
#define NOMIC "{\"architectures\":[\"NomicBertModel\"],\"model_type\":\"nomic_bert\"}"
#define FIRST_NOMIC                                                                                \
    "{\"architectures\":[\"NomicBertModel\"],\"n_embd\":768,\"rotary_emb_fraction\":1.0,"          \
    "\"activation_function\":\"swiglu\",\"n_positions\":8192}"

/* Reads a directory with nothing but this config.json, one key of it changed. */
static int read_alone(const char *dir, const char *base, const char *key, const char *value,
                      struct encoder_config *config, struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/config.json", dir);
    OWNED(encoder_json_free) json_t *json = json_loads(base, 0, NULL);
    int r;

    if (key != NULL)
        (void)json_object_set_new(json, key, json_loads(value, JSON_DECODE_ANY, NULL));
    assert_int_equal(json_dump_file(json, path, 0), 0);
    r = encoder_config_read(dir, config, err);
    assert_int_equal(unlink(path), 0);
    return r;
}

static void test_turning_families_that_are_refused(void **state)
{
    static const struct {
        const char *base, *key, *json;
        int code;
        const char *text;
    } turning[] = {
        {MODERN, "hidden_activation", "\"silu\"", ERR_UNSUPPORTED, "hidden_activation is 'silu'"},
        {MODERN, "layer_types", "[\"full_attention\"]", ERR_MISMATCH,
         "layer_types has 1 entries, num_hidden_layers is 4"},
        {MODERN, "layer_types", "[\"full_attention\",\"chunked\",\"a\",\"b\"]", ERR_UNSUPPORTED,
         "layer_types[1] is 'chunked'"},
        {MODERN, "classifier_pooling", "\"max\"", ERR_UNSUPPORTED, "classifier_pooling is 'max'"},
        {MODERN, "classifier_activation", "\"tanh\"", ERR_UNSUPPORTED,
         "classifier_activation is 'tanh'"},
        {MODERN, "rope_scaling", "{\"type\":\"yarn\"}", ERR_UNSUPPORTED, "rope_scaling is set"},
        {MODERN, "rope_parameters", "{\"full_attention\":{\"rope_type\":\"yarn\"}}",
         ERR_UNSUPPORTED, "rope_parameters.full_attention: rope_type is 'yarn'"},
        {MODERN, "global_rope_theta", "0", ERR_RANGE, "global_rope_theta is none of 1 to 1e+12"},
        {MODERN, "local_attention", "1", ERR_RANGE, "'local_attention' is 1"},
        {MODERN, "hidden_size", "780", ERR_UNSUPPORTED, "a head of 65 numbers"},
        {MODERN, "norm_eps", "7", ERR_RANGE, "norm_eps is none of 0 to 1"},
        {NOMIC, "hidden_act", "\"tanh\"", ERR_UNSUPPORTED, "hidden_act is 'tanh'"},
        {NOMIC, "rope_parameters", "{\"rope_type\":\"linear\"}", ERR_UNSUPPORTED,
         "rope_type is 'linear', the encoder has default and dynamic"},
        {FIRST_NOMIC, "activation_function", "\"gelu\"", ERR_UNSUPPORTED,
         "activation_function is 'gelu'"},
        {FIRST_NOMIC, "prenorm", "true", ERR_UNSUPPORTED, "prenorm is true"},
        {FIRST_NOMIC, "causal", "true", ERR_UNSUPPORTED, "causal is true"},
        {FIRST_NOMIC, "use_rms_norm", "true", ERR_UNSUPPORTED, "use_rms_norm is true"},
        {FIRST_NOMIC, "moe_every_n_layers", "2", ERR_UNSUPPORTED,
         "moe_every_n_layers is 2, the encoder has no mixture of experts"},
        {FIRST_NOMIC, "rotary_emb_fraction", "0.5", ERR_UNSUPPORTED,
         "rotary_emb_fraction is not 1"},
        {FIRST_NOMIC, "rotary_emb_scale_base", "512", ERR_UNSUPPORTED,
         "rotary_emb_scale_base is set"},
        {FIRST_NOMIC, "n_inner", "\"wide\"", ERR_MALFORMED, "'n_inner' is no whole number"},
    };
    char dir[] = "/tmp/encoder-XXXXXX";

    (void)state;
    assert_non_null(mkdtemp(dir));
    for (size_t i = 0; i < COUNT_OF(turning); i++) {
        struct encoder_config config;
        struct err err = {0};
        const int r = read_alone(dir, turning[i].base, turning[i].key, turning[i].json, &config,
                                 &err);

        if (r != turning[i].code || strstr(err.text, turning[i].text) == NULL)
            fail_msg("%s = %s: %s (%s)", turning[i].key, turning[i].json, err_name(r), err.text);
    }
    assert_int_equal(rmdir(dir), 0);
}

static void test_turning_families(void **state)
{
    char dir[] = "/tmp/encoder-XXXXXX";
    struct encoder_config config;
    struct err err;

    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(read_alone(dir, MODERN, NULL, NULL, &config, &err), 0);
    assert_true(config.norm_first && config.gated && config.no_qkv_bias && config.no_norm_bias);
    assert_true(config.turn_base[0] == 160000.0f && config.turn_base[1] == 10000.0f);
    assert_int_equal(config.window, 64);
    assert_false(config.layer_is_local[0] || config.layer_is_local[3]);
    assert_true(config.layer_is_local[1] && config.layer_is_local[2]);
    assert_int_equal(config.token_count_max, 8192);
    assert_int_equal(read_alone(dir, MODERN, "rope_parameters",
                                "{\"full_attention\":{\"rope_theta\":7,\"rope_type\":\"default\"}}",
                                &config, &err),
                     0);
    assert_true(config.turn_base[0] == 7.0f && config.turn_base[1] == 10000.0f);
    assert_int_equal(read_alone(dir, NOMIC, NULL, NULL, &config, &err), 0);
    assert_true(config.gated && !config.norm_first && config.no_up_bias && !config.no_norm_bias);
    assert_true(config.turn_base[0] == 1000.0f && config.activation == ENCODER_SILU);
    assert_int_equal(read_alone(dir, FIRST_NOMIC, NULL, NULL, &config, &err), 0);
    assert_false(config.no_qkv_bias || config.no_up_bias || config.no_down_bias);
    assert_int_equal(config.token_count_max, 8192);
    /* Told to turn otherwise beyond what it was trained on, it is cut there. */
    assert_int_equal(read_alone(dir, FIRST_NOMIC, "rotary_scaling_factor", "2", &config, &err), 0);
    assert_int_equal(config.token_count_max, 2048);
    assert_int_equal(rmdir(dir), 0);
}

static void test_what_fills_masks_needs_modules(void **state)
{
    char dir[] = "/tmp/encoder-XXXXXX";
    OWNED(mem_free) char *modules = NULL;
    struct encoder_config config;
    struct err err = {0};

    (void)state;
    assert_non_null(mkdtemp(dir));
    modules = xasprintf("%s/modules.json", dir);
    write_files(dir, "config.json", "architectures", "[\"BertForMaskedLM\"]");
    assert_int_equal(encoder_config_read(dir, &config, &err), 0);
    assert_string_equal(encoder_task_name(&config), "embed");
    assert_int_equal(unlink(modules), 0);
    assert_int_equal(encoder_config_read(dir, &config, &err), ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "architectures[0] is 'BertForMaskedLM', which fills masks"));
    remove_files(dir);
}

static void read_changed(const char *file, const char *key, const char *json,
                         struct encoder_config *config)
{
    char dir[] = "/tmp/encoder-XXXXXX";
    struct err err = {0};
    int r;

    assert_non_null(mkdtemp(dir));
    write_files(dir, file, key, json);
    r = encoder_config_read(dir, config, &err);
    remove_files(dir);
    if (r < 0)
        fail_msg("%s", err.text);
}

static void test_the_files_decide(void **state)
{
    struct encoder_config config;

    (void)state;
    read_changed("", "", "", &config);
    assert_int_equal(config.layer_count, 3);
    assert_int_equal(config.hidden, 32);
    assert_int_equal(config.token_count_max, 48);
    assert_int_equal(config.pooling, ENCODER_POOL_MEAN);
    assert_true(config.normalize);
    read_changed("modules.json", "", NULL, &config);
    assert_int_equal(config.pooling, ENCODER_POOL_MEAN);
    assert_false(config.normalize);
    read_changed("1_Pooling/config.json", "",
                 "{\"pooling_mode_cls_token\":true,\"pooling_mode_mean_tokens\":false}", &config);
    assert_int_equal(config.pooling, ENCODER_POOL_CLS);
    read_changed("config.json", "hidden_act", "\"gelu_new\"", &config);
    assert_int_equal(config.activation, ENCODER_GELU_TANH);
}

static void test_the_shortest_length_rules(void **state)
{
    struct encoder_config config;

    (void)state;
    read_changed("sentence_bert_config.json", "", NULL, &config);
    assert_int_equal(config.token_count_max, 64); /* tokenizer_config.json */
    read_changed("sentence_bert_config.json", "max_seq_length", "100", &config);
    assert_int_equal(config.token_count_max, 64); /* no position is left past it */
    read_changed("sentence_bert_config.json", "max_seq_length", "null", &config);
    assert_int_equal(config.token_count_max, 64);
    read_changed("sentence_bert_config.json", "max_seq_length", "1e30", &config);
    assert_int_equal(config.token_count_max, 64);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_turning_families_that_are_refused),
        cmocka_unit_test(test_turning_families),
        cmocka_unit_test(test_what_fills_masks_needs_modules),
        cmocka_unit_test(test_the_files_decide),
        cmocka_unit_test(test_the_shortest_length_rules),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
