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

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "workers/engines/encoder/encoder_int.h"
#include "workers/engines/encoder/encoder_json.h"
#include "workers/engines/encoder/gemm.h"
#include "workers/engines/encoder/team.h"

#define SETTINGS_SIZE_MAX 65536u
#define SCORE_EXACT 100u
#define THREAD_COUNT_DEFAULT_MAX 64u

/* Multiplications and additions a second and thread that a default batch reckons with, and how
 * long it may take: a fraction of a lease, for the host serves its socket between batches. */
#define ASSUMED_OPS 1e11
#define BATCH_SECONDS 0.25

struct model_files {
    struct encoder_config config;
    struct wordpiece *pieces;
    struct safetensors *weights;
};

static void model_files_done(struct model_files *files)
{
    wordpiece_free(&files->pieces);
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
        r = wordpiece_open(dir, &files.pieces, err);
    if (r == 0)
        r = safetensors_open(path, &files.weights, err);
    if (r == 0)
        r = bert_check(&files.config, files.weights, err);
    if (r < 0)
        return r;
    if (wordpiece_id_count(files.pieces) > files.config.vocab_count)
        return err_set(err, ERR_MISMATCH,
                       "the tokenizer has ids up to %u, config.json vocab_size "
                       "is %u",
                       wordpiece_id_count(files.pieces) - 1, files.config.vocab_count);
    *ret_files = files;
    files = (struct model_files){0};
    return 0;
}

int encoder_probe(const char *dir, struct engine_probe *ret_probe, struct err *err)
{
    OWNED(model_files_done) struct model_files files = {0};
    struct engine_probe probe = {.task = "embed"};
    struct err why;

    if (access(dir, R_OK | X_OK) < 0)
        return err_set_errno(err, ERR_IO, "read '%s'", dir);
    if (open_files(dir, &files, &why) < 0) {
        mem_copy_text(probe.text, why.text);
        *ret_probe = probe;
        return 0;
    }
    probe.score = SCORE_EXACT;
    probe.host_size = encoder_config_weight_count(&files.config) * sizeof(float);
    probe.token_count_max = files.config.token_count_max;
    (void)snprintf(probe.text, sizeof(probe.text), "BertModel, %u layers of %u, %s pooling%s",
                   files.config.layer_count, files.config.hidden,
                   encoder_pooling_name(files.config.pooling),
                   files.config.normalize ? ", normalized" : "");
    *ret_probe = probe;
    return 0;
}

static int read_settings(const char *text, bool *ret_bf16, struct err *err)
{
    OWNED(encoder_json_free) json_t *json = NULL;
    const char *key, *dtype = "f32";
    json_error_t json_err;
    const json_t *value;
    int r;

    *ret_bf16 = false;
    if (text == NULL)
        return 0;
    if (strlen(text) > SETTINGS_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "settings have %zu bytes, limit %u", strlen(text),
                       SETTINGS_SIZE_MAX);
    json = json_loads(text, JSON_REJECT_DUPLICATES, &json_err);
    if (!json_is_object(json))
        return err_set(err, ERR_USAGE, "settings are not a JSON object");
    json_object_foreach(json, key, value)
    {
        if (strcmp(key, "dtype") != 0)
            return err_set(err, ERR_USAGE, "setting '%.60s' is unknown, the encoder has 'dtype'",
                           key);
    }
    r = encoder_json_get_text(json, "dtype", &dtype, err);
    if (r < 0)
        return r;
    if (strcmp(dtype, "f32") != 0 && strcmp(dtype, "bf16") != 0 && strcmp(dtype, "auto") != 0)
        return err_set(err, ERR_USAGE, "setting 'dtype' is '%.40s', allowed are f32, bf16 and auto",
                       dtype);
    *ret_bf16 = strcmp(dtype, "bf16") == 0 || (dtype[0] == 'a' && gemm_has_fast_bf16());
    return 0;
}

static int set_limit(const char *what, uint32_t value, uint32_t otherwise, uint32_t max,
                     uint32_t *ret_value, struct err *err)
{
    if (value > max)
        return err_set(err, ERR_RANGE, "%s is %u, limit %u", what, value, max);
    *ret_value = value != 0 ? value : otherwise;
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

/* The CPUs that this process may run on: a container's share, not the machine's number. */
static uint32_t default_threads(void)
{
    cpu_set_t cpus;
    int count;

    if (sched_getaffinity(0, sizeof(cpus), &cpus) < 0)
        return 1;
    count = CPU_COUNT(&cpus);
    return count > (int)THREAD_COUNT_DEFAULT_MAX ? THREAD_COUNT_DEFAULT_MAX : (uint32_t)count;
}

static int set_limits(struct engine *engine, const struct engine_load *load,
                      uint32_t *ret_thread_count, struct err *err)
{
    uint32_t thread_count = 0;
    int r;

    r = set_limit("thread_count", load->thread_count, default_threads(), TEAM_MEMBER_COUNT_MAX,
                  &thread_count, err);
    if (r == 0)
        r = set_limit("req_count_max", load->req_count_max, ENCODER_REQ_COUNT_DEFAULT,
                      ENCODER_REQ_COUNT_MAX, &engine->req_count_max, err);
    if (r == 0)
        r = set_limit("input_size_max", load->input_size_max, ENCODER_INPUT_SIZE_DEFAULT,
                      ENCODER_INPUT_SIZE_MAX, &engine->input_size_max, err);
    if (r == 0)
        r = set_limit("batch_token_max", load->batch_token_max,
                      default_batch_tokens(&engine->config, thread_count), ENCODER_BATCH_TOKEN_MAX,
                      &engine->batch_token_max, err);
    if (r < 0)
        return r;
    if (engine->batch_token_max < engine->config.token_count_max)
        return err_set(err, ERR_RANGE,
                       "batch_token_max is %u, less than the %u tokens that one "
                       "text may have",
                       engine->batch_token_max, engine->config.token_count_max);
    *ret_thread_count = thread_count;
    return 0;
}

static void alloc_batch(struct engine *engine)
{
    const size_t count = engine->batch_token_max;

    engine->picks = xcalloc(count, sizeof(*engine->picks));
    engine->ids = xcalloc(count, sizeof(*engine->ids));
    engine->offsets = xcalloc(count + 1, sizeof(*engine->offsets));
    /* A text has [CLS] and [SEP] at least. */
    engine->vectors = xcalloc((count / 2 + 1) * engine->config.hidden, sizeof(float));
    engine->out = BUF_WITH_LIMIT(2ull * ENCODER_OUTPUT_SIZE_MAX);
}

static int warm_up(struct engine *engine, struct err *err)
{
    const uint32_t offsets[] = {0, 2};
    const struct bert_batch batch = {engine->ids, offsets, 1};

    return bert_run(engine->bert, &batch, engine->vectors, err);
}

static void describe(const struct engine *engine, bool bf16, uint32_t thread_count,
                     struct engine_info *info)
{
    const struct encoder_config *config = &engine->config;

    *info = (struct engine_info){
        .task = "embed",
        .req_count_max = engine->req_count_max,
        .token_count_max = config->token_count_max,
        .host_size = bert_memory_size(engine->bert),
    };
    (void)snprintf(info->detail, sizeof(info->detail),
                   "BertModel %u layers of %u, %s pooling%s, %u tokens a text; %s, oneDNN %s, "
                   "kernels %s, %u threads, %u tokens a batch",
                   config->layer_count, config->hidden, encoder_pooling_name(config->pooling),
                   config->normalize ? ", normalized" : "", config->token_count_max,
                   bf16 ? "bf16" : "f32", gemm_isa_name(), bert_kernel_name(engine->bert),
                   thread_count, engine->batch_token_max);
}

static char *quote_model(const char *model)
{
    OWNED(encoder_json_free) json_t *name = json_string(model);

    return name != NULL ? json_dumps(name, JSON_ENCODE_ANY) : NULL;
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

int encoder_load(const struct engine_load *load, struct engine **ret_engine,
                 struct engine_info *ret_info, struct err *err)
{
    OWNED(encoder_unload) struct engine *engine = xcalloc(1, sizeof(*engine));
    OWNED(model_files_done) struct model_files files = {0};
    struct bert_options options = {.progress = load->sink.progress, .opaque = load->sink.opaque};
    int r;

    engine->sink = load->sink;
    r = check_device(load->device, err);
    if (r == 0)
        r = read_settings(load->settings_json, &options.bf16, err);
    if (r == 0)
        r = open_files(load->dir, &files, err);
    if (r < 0)
        return r;
    engine->config = files.config;
    engine->pieces = TAKE(files.pieces);
    engine->model_json = quote_model(load->model);
    if (engine->model_json == NULL)
        return err_set(err, ERR_MALFORMED, "the model's name is not UTF-8");
    r = set_limits(engine, load, &options.thread_count, err);
    if (r < 0)
        return r;
    options.token_count_max = engine->batch_token_max;
    r = bert_open(&engine->config, &files.weights, &options, &engine->bert, err);
    if (r < 0)
        return r;
    alloc_batch(engine);
    r = warm_up(engine, err);
    if (r < 0)
        return r;
    describe(engine, options.bf16, options.thread_count, ret_info);
    *ret_engine = TAKE(engine);
    return 0;
}

void encoder_unload(struct engine **engine_p)
{
    struct engine *engine = TAKE(*engine_p);

    if (engine == NULL)
        return;
    encoder_queue_done(&engine->queue);
    bert_close(&engine->bert);
    wordpiece_free(&engine->pieces);
    buf_done(&engine->out);
    free(engine->vectors);
    free(engine->offsets);
    free(engine->ids);
    free(engine->picks);
    free(engine->model_json);
    free(engine);
}
