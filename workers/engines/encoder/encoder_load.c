/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Opens a model directory for the encoder: what it is (probe), and ready to run (load).
 *
 * Happy path of a load: settings; configuration; tokenizer; weights mapped, compared with the
 * configuration, packed; one short text run, so that the first job meets warm memory.
 *
 * Failures name the file and the value; nothing of a failed load stays behind. A device other
 * than the CPU is refused: this plugin has no other, and answering slower than asked would hide it.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "workers/engines/encoder/encoder_int.h"
#include "workers/engines/encoder/encoder_json.h"
#include "workers/engines/encoder/gemm.h"
#include "workers/engines/encoder/team.h"

#define SCORE_EXACT 100u

/* Multiplications and additions a second and thread that a default batch reckons with, and how
 * long it may take: a fraction of a lease, for the host serves its socket between batches. */
#define ASSUMED_OPS 1e11
#define BATCH_SECONDS 0.25

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

static int read_dtype(const json_t *settings, bool *ret_bf16, struct err *err)
{
    const char *dtype = "f32";
    int r;

    r = encoder_json_get_text(settings, "dtype", &dtype, err);
    if (r < 0)
        return r;
    if (strcmp(dtype, "f32") != 0 && strcmp(dtype, "bf16") != 0 && strcmp(dtype, "auto") != 0)
        return err_set(err, ERR_USAGE, "setting 'dtype' is '%.40s', allowed are f32, bf16 and auto",
                       dtype);
    *ret_bf16 = strcmp(dtype, "bf16") == 0 || (dtype[0] == 'a' && gemm_has_fast_bf16());
    return 0;
}

static uint32_t default_batch_tokens(const struct encoder_config *config, uint32_t thread_count)
{
    const double ops = 2.0 * (double)encoder_config_weight_count_per_token(config);
    const double tokens = ASSUMED_OPS * BATCH_SECONDS * thread_count / ops;

    if (tokens < config->token_count_max)
        return config->token_count_max;
    return tokens < ENCODER_BATCH_TOKEN_MAX / 4 ? (uint32_t)tokens : ENCODER_BATCH_TOKEN_MAX / 4;
}

static void describe(const struct engine *engine, const struct bert_options *options,
                     struct engine_info *info)
{
    const struct encoder_config *config = &engine->config;
    char model[160];

    *info = (struct engine_info){
        .req_count_max = encoder_texts_req_count_max(engine->texts),
        .token_count_max = config->token_count_max,
        .host_size = bert_memory_size(engine->bert),
    };
    mem_copy_text(info->task, encoder_task_name(config));
    describe_model(config, model, sizeof(model));
    (void)snprintf(info->detail, sizeof(info->detail),
                   "%s, %u tokens a text; %s, oneDNN %s, kernels %s, %u threads, %u tokens a batch",
                   model, config->token_count_max, options->bf16 ? "bf16" : "f32", gemm_isa_name(),
                   bert_kernel_name(engine->bert), options->thread_count, options->token_count_max);
}

static int check_device(const char *device, struct err *err)
{
    if (strcmp(device, "cpu") != 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "device is '%.40s'; this build of the encoder has "
                       "'cpu' only, and does not fall back to it unasked",
                       device);
    return 0;
}

static int run(void *self, const struct bert_batch *batch, float *rows, uint32_t *ret_pad_count,
               struct err *err)
{
    *ret_pad_count = bert_pad_count(batch->offsets[batch->text_count]);
    return bert_run(self, batch, rows, err);
}

/* From the files to an engine that has run once. */
static int open_model(struct engine *engine, const struct engine_load *load, const json_t *settings,
                      struct bert_options *options, struct err *err)
{
    OWNED(model_files_done) struct model_files files = {0};
    struct encoder_texts_options texts = {.labels = &files.labels};
    int r;

    r = open_files(load->dir, &files, err);
    if (r == 0)
        r = encoder_thread_count(load, TEAM_MEMBER_COUNT_MAX, &options->thread_count, err);
    if (r < 0)
        return r;
    engine->config = files.config;
    texts.head = files.config.head;
    texts.multi_label = files.config.multi_label;
    texts.width = encoder_config_width(&files.config);
    texts.token_count_max = files.config.token_count_max;
    r = encoder_texts_batching(load, settings, files.config.token_count_max,
                               default_batch_tokens(&files.config, options->thread_count),
                               &texts.batching, err);
    if (r < 0)
        return r;
    options->token_count_max = texts.batching.token_max;
    r = bert_open(&engine->config, &files.weights, options, &engine->bert, err);
    if (r < 0)
        return r;
    texts.runner = (struct encoder_runner){.run = run, .self = engine->bert};
    r = encoder_texts_new(load, &texts, &files.tokenizer, &engine->texts, err);
    return r < 0 ? r : encoder_texts_warm_up(engine->texts, err);
}

int encoder_load(const struct engine_load *load, struct engine **ret_engine,
                 struct engine_info *ret_info, struct err *err)
{
    OWNED(encoder_unload) struct engine *engine = xcalloc(1, sizeof(*engine));
    OWNED(encoder_json_free) json_t *settings = NULL;
    struct bert_options options = {.progress = load->sink.progress, .opaque = load->sink.opaque};
    int r;

    r = check_device(load->device, err);
    if (r == 0)
        r = encoder_json_read_settings(load->settings_json, &settings, err);
    if (r == 0)
        r = check_keys(settings, err);
    if (r == 0)
        r = read_dtype(settings, &options.bf16, err);
    if (r == 0)
        r = open_model(engine, load, settings, &options, err);
    if (r < 0)
        return r;
    describe(engine, &options, ret_info);
    *ret_engine = TAKE(engine);
    return 0;
}

void encoder_unload(struct engine **engine_p)
{
    struct engine *engine = TAKE(*engine_p);

    if (engine == NULL)
        return;
    encoder_texts_free(&engine->texts);
    bert_close(&engine->bert);
    free(engine);
}
