/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Opens a model directory for the encoder: what it is (probe), and ready to run (load).
 *
 * Happy path of a load: settings; configuration; tokenizer; weights mapped, compared with the
 * configuration, packed; one short text run, so that the first job meets warm memory.
 *
 * Failures name the file and the value; nothing of a failed load stays behind.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "workers/engines/encoder/encoder_int.h"
#include "workers/engines/encoder/encoder_json.h"

#define SCORE_EXACT 100u

struct model_files {
    struct encoder_config config;
    struct encoder_labels labels;
    struct tokenizer *tokenizer;
    struct safetensors *weights;
};

static void model_files_done(struct model_files *files)
{
    tokenizer_free(&files->tokenizer);
    encoder_labels_done(&files->labels);
    safetensors_close(&files->weights);
}

/* Everything that can be wrong with a directory, but for the numbers in the weights. */
static int open_files(const char *dir, struct model_files *ret_files, struct err *err)
{
    OWNED(model_files_done) struct model_files files = {0};
    OWNED(mem_free) char *path = xasprintf("%s/model.safetensors", dir);
    int r;

    r = encoder_config_read(dir, &files.config, err);
    if (r == 0)
        r = encoder_labels_read(dir, &files.config, &files.labels, err);
    if (r == 0)
        r = tokenizer_open(dir, &files.tokenizer, err);
    if (r == 0)
        r = safetensors_open(path, &files.weights, err);
    if (r == 0)
        r = bert_check(&files.config, files.weights, err);
    if (r < 0)
        return r;
    if (tokenizer_id_count(files.tokenizer) > files.config.vocab_count)
        return err_set(err, ERR_MISMATCH,
                       "the tokenizer has ids up to %u, config.json vocab_size "
                       "is %u",
                       tokenizer_id_count(files.tokenizer) - 1, files.config.vocab_count);
    *ret_files = files;
    files = (struct model_files){0};
    return 0;
}

/* "BertModel, 6 layers of 384, mean pooling, normalized" */
static void describe_model(const struct encoder_config *config, char *to, size_t to_size)
{
    char name[64], end[64];

    if (config->head == ENCODER_HEAD_EMBED)
        (void)snprintf(end, sizeof(end), "%s pooling%s", encoder_pooling_name(config->pooling),
                       config->normalize ? ", normalized" : "");
    else
        (void)snprintf(end, sizeof(end), "%u label%s", config->label_count,
                       config->label_count == 1 ? "" : "s");
    (void)snprintf(to, to_size, "%s, %u layers of %u, %s", encoder_architecture_name(config, name),
                   config->layer_count, config->hidden, end);
}

int encoder_probe(const char *dir, struct engine_probe *ret_probe, struct err *err)
{
    OWNED(model_files_done) struct model_files files = {0};
    struct engine_probe probe = {.score = 0};
    struct err why;

    if (access(dir, R_OK | X_OK) < 0)
        return err_set_errno(err, ERR_IO, "read '%s'", dir);
    if (open_files(dir, &files, &why) < 0) {
        mem_copy_text(probe.text, why.text);
        *ret_probe = probe;
        return 0;
    }
    probe.score = SCORE_EXACT;
    mem_copy_text(probe.task, encoder_task_name(&files.config));
    probe.host_size = encoder_config_weight_count(&files.config) * sizeof(float);
    probe.token_count_max = files.config.token_count_max;
    describe_model(&files.config, probe.text, sizeof(probe.text));
    *ret_probe = probe;
    return 0;
}

static int check_keys(json_t *settings, struct err *err)
{
    const json_t *value;
    const char *key;

    json_object_foreach(settings, key, value)
    {
        if (strcmp(key, "dtype") != 0 && strcmp(key, "batching") != 0)
            return err_set(err, ERR_USAGE,
                           "setting '%.60s' is unknown, the encoder has 'dtype' and 'batching'",
                           key);
    }
    return 0;
}

static int read_dtype(const json_t *settings, enum encoder_dtype *ret_dtype, struct err *err)
{
    static const char *const names[] = {
        [ENCODER_DTYPE_AUTO] = "auto",
        [ENCODER_DTYPE_F32] = "f32",
        [ENCODER_DTYPE_BF16] = "bf16",
    };
    const char *dtype = NULL;
    int r;

    *ret_dtype = ENCODER_DTYPE_UNSET;
    r = encoder_json_get_text(settings, "dtype", &dtype, err);
    if (r < 0 || dtype == NULL)
        return r;
    for (uint32_t i = ENCODER_DTYPE_AUTO; i < COUNT_OF(names); i++) {
        if (strcmp(dtype, names[i]) == 0)
            *ret_dtype = (enum encoder_dtype)i;
    }
    if (*ret_dtype == ENCODER_DTYPE_UNSET)
        return err_set(err, ERR_USAGE, "setting 'dtype' is '%.40s', allowed are f32, bf16 and auto",
                       dtype);
    return 0;
}

static void describe(const struct engine *engine, uint32_t batch_token_max,
                     struct engine_info *info)
{
    const struct encoder_config *config = &engine->config;
    char model[160], backend[160];

    *info = (struct engine_info){
        .req_count_max = encoder_texts_req_count_max(engine->texts),
        .token_count_max = config->token_count_max,
        .host_size = engine->backend->host_size(engine->self),
        .dev_size = engine->backend->dev_size(engine->self),
    };
    mem_copy_text(info->task, encoder_task_name(config));
    describe_model(config, model, sizeof(model));
    engine->backend->describe(engine->self, backend, sizeof(backend));
    (void)snprintf(info->detail, sizeof(info->detail),
                   "%s, %u tokens a text; %s, %u tokens a batch", model, config->token_count_max,
                   backend, batch_token_max);
}

/* From the files to an engine that has run once. */
static int open_model(struct engine *engine, struct encoder_ask *ask, const json_t *settings,
                      struct err *err)
{
    OWNED(model_files_done) struct model_files files = {0};
    struct encoder_texts_options texts = {.labels = &files.labels};
    uint32_t token_max;
    int r;

    r = open_files(ask->load->dir, &files, err);
    if (r < 0)
        return r;
    engine->config = files.config;
    ask->config = &engine->config;
    texts.head = files.config.head;
    texts.multi_label = files.config.multi_label;
    texts.width = encoder_config_width(&files.config);
    texts.token_count_max = files.config.token_count_max;
    r = engine->backend->default_tokens(ask, &token_max, err);
    if (r == 0)
        r = encoder_texts_batching(ask->load, settings, files.config.token_count_max, token_max,
                                   &texts.batching, err);
    if (r < 0)
        return r;
    ask->token_count_max = texts.batching.token_max;
    ask->text_count_max = encoder_texts_count_max(&texts.batching);
    r = engine->backend->open(ask, &files.weights, &engine->self, &texts.runner, err);
    if (r == 0)
        r = encoder_texts_new(ask->load, &texts, &files.tokenizer, &engine->texts, err);
    return r < 0 ? r : encoder_texts_warm_up(engine->texts, err);
}

int encoder_load_on(const struct encoder_backend *backend, const struct engine_load *load,
                    struct engine **ret_engine, struct engine_info *ret_info, struct err *err)
{
    OWNED(encoder_unload) struct engine *engine = xcalloc(1, sizeof(*engine));
    OWNED(encoder_json_free) json_t *settings = NULL;
    struct encoder_ask ask = {.load = load};
    int r;

    engine->backend = backend;
    r = backend->check(load, err);
    if (r == 0)
        r = encoder_json_read_settings(load->settings_json, &settings, err);
    if (r == 0)
        r = check_keys(settings, err);
    if (r == 0)
        r = read_dtype(settings, &ask.dtype, err);
    if (r == 0)
        r = open_model(engine, &ask, settings, err);
    if (r < 0)
        return r;
    describe(engine, ask.token_count_max, ret_info);
    *ret_engine = TAKE(engine);
    return 0;
}

void encoder_unload(struct engine **engine_p)
{
    struct engine *engine = TAKE(*engine_p);

    if (engine == NULL)
        return;
    encoder_texts_free(&engine->texts);
    engine->backend->close(&engine->self);
    free(engine);
}
