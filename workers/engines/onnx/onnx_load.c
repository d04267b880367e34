/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Opens a model directory for the onnx engine: what it is (probe), and ready to run (load).
 *
 * Happy path of a load: settings; the file walked and checked without ONNX Runtime; the library;
 * the session; what is offered, joined and understood as text; one run of a short text.
 *
 * Failures name the file and the value; nothing of a failed load stays behind but the library.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "workers/engines/onnx/onnx_int.h"
#include "workers/engines/onnx/onnx_output.h"
#include "workers/engines/onnx/onnx_settings.h"

#define SCORE_EXACT 80u /* the encoder's own engine serves its models faster */

/* ---- what the model is ---- */

static bool has_file(const char *dir, const char *name)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", dir, name);

    return access(path, R_OK) == 0;
}

/* An output that can only be the vectors of texts or of their tokens. */
static bool says_text(const struct onnx_model *model)
{
    static const char *const names[] = {"sentence_embedding", "last_hidden_state",
                                        "token_embeddings"};

    for (uint32_t i = 0; i < model->output_count; i++) {
        for (size_t n = 0; n < COUNT_OF(names); n++) {
            if (strcmp(model->outputs[i].name, names[n]) == 0)
                return true;
        }
    }
    return false;
}

static int choose_task(const char *dir, const struct onnx_model *model, enum onnx_wish wish,
                       bool *ret_text, struct err *err)
{
    struct err why;

    *ret_text = false;
    if (wish == ONNX_FIRST)
        return 0;
    if (wish == ONNX_SECOND) {
        *ret_text = true;
        return onnx_text_check(model, err);
    }
    *ret_text = (has_file(dir, "tokenizer.json") || has_file(dir, "vocab.txt")) &&
                says_text(model) && onnx_text_check(model, &why) == 0;
    return 0;
}

static bool is_free(const struct onnx_spec *spec)
{
    return spec->has_shape && spec->rank > 0 && spec->dims[0] < 0;
}

static bool says_batch(const char *name)
{
    return strncasecmp(name, "batch", 5) == 0 || strcasecmp(name, "n") == 0 ||
           strcasecmp(name, "b") == 0 || strcasecmp(name, "bs") == 0;
}

/* A free first axis may be a length, so unasked it has to be called a batch everywhere. */
static bool joins_by_name(const struct onnx_model *model, const bool *offered)
{
    const char *name = model->input_count > 0 ? model->inputs[0].first_symbol : "";
    bool joins = says_batch(name);

    for (uint32_t i = 0; i < model->input_count; i++)
        joins = joins && is_free(&model->inputs[i]) &&
                strcmp(model->inputs[i].first_symbol, name) == 0;
    for (uint32_t i = 0; i < model->output_count; i++)
        joins = joins && (!offered[i] || (is_free(&model->outputs[i]) &&
                                          strcmp(model->outputs[i].first_symbol, name) == 0));
    return joins;
}

static int choose_joining(const struct onnx_model *model, const bool *offered, enum onnx_wish wish,
                          bool *ret_on, struct err *err)
{
    *ret_on = wish == ONNX_FIRST || (wish == ONNX_AUTO && joins_by_name(model, offered));
    if (wish == ONNX_FIRST && model->input_count == 0)
        return err_set(err, ERR_UNSUPPORTED, "setting 'join' is 'on', and the model has no inputs");
    for (uint32_t i = 0; wish == ONNX_FIRST && i < model->input_count; i++) {
        char shape[ONNX_SHAPE_TEXT_SIZE];

        if (is_free(&model->inputs[i]))
            continue;
        onnx_shape_text(model->inputs[i].dims, model->inputs[i].rank, shape);
        return err_set(err, ERR_UNSUPPORTED,
                       "setting 'join' is 'on', and input '%.80s' of %s has no free first axis",
                       model->inputs[i].name, shape);
    }
    return 0;
}

static int offer(const struct onnx_model *model, const char *name, bool *offered, struct err *err)
{
    for (uint32_t i = 0; i < model->output_count; i++) {
        if (strcmp(model->outputs[i].name, name) == 0) {
            offered[i] = true;
            return 0;
        }
    }
    return err_set(err, ERR_MISMATCH, "setting 'outputs' names '%.80s', which the model has not",
                   name);
}

/* The outputs that there are for requests, and that all tensors are of types that are served. */
static int choose_outputs(const struct onnx_model *model, const json_t *names, bool *offered,
                          struct err *err)
{
    const json_t *name;
    size_t at;

    for (uint32_t i = 0; names == NULL && i < model->output_count; i++)
        offered[i] = true;
    json_array_foreach(names, at, name)
    {
        int r = offer(model, json_string_value(name), offered, err);

        if (r < 0)
            return r;
    }
    for (uint32_t i = 0; i < model->output_count; i++) {
        const struct onnx_spec *spec = &model->outputs[i];

        if (offered[i] && onnx_type_size(spec->type) == 0)
            return err_set(err, ERR_UNSUPPORTED,
                           "output '%.80s' is %s; the setting 'outputs' can name the others",
                           spec->name, onnx_type_name(spec->type));
    }
    for (uint32_t i = 0; i < model->input_count; i++) {
        const struct onnx_spec *spec = &model->inputs[i];

        if (onnx_type_size(spec->type) == 0)
            return err_set(err, ERR_UNSUPPORTED, "input '%.80s' is %s, which is not served",
                           spec->name, onnx_type_name(spec->type));
    }
    return 0;
}

/* ---- probe ---- */

/* "x float32 [?,3,48,?]" and so on, cut at the end. */
static void list_specs(const struct onnx_spec *specs, uint32_t count, char *to, size_t to_size)
{
    size_t size = 0;

    to[0] = '\0';
    for (uint32_t i = 0; i < count && size < to_size; i++) {
        char shape[ONNX_SHAPE_TEXT_SIZE] = "of any shape";

        if (specs[i].has_shape)
            onnx_shape_text(specs[i].dims, specs[i].rank, shape);
        size += (size_t)snprintf(to + size, to_size - size, "%s%.40s %s %s", i > 0 ? ", " : "",
                                 specs[i].name, onnx_type_name(specs[i].type), shape);
    }
}

static int probe_dir(const char *dir, struct engine_probe *probe, struct err *err)
{
    OWNED(onnx_settings_done) struct onnx_settings settings = {.json = NULL};
    OWNED(mem_free) struct onnx_model *model = NULL;
    bool offered[ONNX_OUTPUT_COUNT_MAX] = {false}, text;
    char inputs[200], outputs[160];
    int r;

    r = onnx_settings_read(dir, NULL, &settings, err);
    if (r == 0)
        r = onnx_file_read(dir, settings.file, &model, err);
    if (r == 0)
        r = choose_outputs(model, NULL, offered, err);
    if (r == 0)
        r = choose_task(dir, model, ONNX_AUTO, &text, err);
    if (r == 0 && text)
        r = onnx_text_token_max(dir, model, &probe->token_count_max, err);
    if (r < 0)
        return r;
    mem_copy_text(probe->task, text ? "embed" : "tensor");
    probe->host_size = model->weight_size;
    list_specs(model->inputs, model->input_count, inputs, sizeof(inputs));
    list_specs(model->outputs, model->output_count, outputs, sizeof(outputs));
    (void)snprintf(probe->text, sizeof(probe->text), "%.60s: opset %llu, %s to %s", settings.file,
                   (unsigned long long)model->opset, inputs, outputs);
    return 0;
}

int onnx_probe(const char *dir, struct engine_probe *ret_probe, struct err *err)
{
    struct engine_probe probe = {.task = "tensor"};
    struct err why;

    if (access(dir, R_OK | X_OK) < 0)
        return err_set_errno(err, ERR_IO, "read '%s'", dir);
    if (probe_dir(dir, &probe, &why) < 0)
        mem_copy_text(probe.text, why.text);
    else
        probe.score = SCORE_EXACT;
    *ret_probe = probe;
    return 0;
}

/* ---- load ---- */

static int tell_progress(const struct engine *engine, uint64_t done_size, struct err *err)
{
    if (!engine->sink.progress(engine->sink.opaque, done_size, engine->model->weight_size))
        return err_set(err, ERR_CANCELED, "loading was stopped");
    return 0;
}

static int open_session(struct engine *engine, const struct engine_load *load,
                        const struct onnx_settings *settings, uint32_t *ret_thread_count,
                        struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", load->dir, settings->file);
    struct onnx_ort_options options = {.device = load->device};
    int r;

    r = encoder_thread_count(load, ONNX_THREAD_COUNT_MAX, &options.thread_count, err);
    if (settings->thread_count > 0)
        options.thread_count = settings->thread_count;
    if (r == 0)
        r = onnx_ort_open(&engine->ort, err);
    if (r == 0)
        r = tell_progress(engine, 0, err);
    if (r == 0)
        r = onnx_session_open(engine->ort, path, &options, &engine->session, err);
    if (r == 0)
        r = tell_progress(engine, engine->model->weight_size, err);
    *ret_thread_count = options.thread_count;
    return r;
}

static int open_tensors(struct engine *engine, const struct engine_load *load,
                        const struct onnx_settings *settings, struct err *err)
{
    struct onnx_joining *joining = &engine->joining;
    int r;

    joining->input_count = engine->model->input_count;
    joining->batching.item_max = ONNX_BATCH_ITEM_DEFAULT;
    r = choose_joining(engine->model, engine->offered, settings->join, &joining->on, err);
    if (r == 0)
        r = encoder_batching_read(settings->json, &joining->batching, err);
    if (r == 0)
        r = encoder_limits(load, &engine->req_count_max, &engine->input_size_max, err);
    if (r < 0)
        return r;
    joining->batching.token_max = 0;
    engine->run = xcalloc(engine->req_count_max, sizeof(struct onnx_req *));
    engine->out = BUF_WITH_LIMIT(ONNX_OUTPUT_SIZE_MAX);
    return 0;
}

static int open_texts(struct engine *engine, const struct engine_load *load,
                      const struct onnx_settings *settings, struct err *err)
{
    OWNED(tokenizer_free) struct tokenizer *tokenizer = NULL;
    struct encoder_texts_options options = {.width = 0};
    struct onnx_text_options text = {engine->session, engine->model, load->dir, 0};
    int r;

    r = onnx_text_token_max(load->dir, engine->model, &options.token_count_max, err);
    if (r == 0)
        r = tokenizer_open(load->dir, &tokenizer, err);
    if (r == 0)
        r = encoder_texts_batching(load, settings->json, options.token_count_max,
                                   options.token_count_max > ONNX_BATCH_TOKEN_DEFAULT
                                       ? options.token_count_max
                                       : ONNX_BATCH_TOKEN_DEFAULT,
                                   &options.batching, err);
    if (r < 0)
        return r;
    text.token_max = options.batching.token_max;
    r = onnx_text_open(&text, &engine->text, err);
    if (r < 0)
        return r;
    options.width = onnx_text_width(engine->text);
    options.runner = (struct encoder_runner){.run = onnx_text_run, .self = engine->text};
    return encoder_texts_new(load, &options, &tokenizer, &engine->texts, err);
}

static void describe(const struct engine *engine, const struct onnx_settings *settings,
                     uint32_t thread_count, struct engine_info *info)
{
    const struct onnx_model *model = engine->model;
    char what[240];

    *info = (struct engine_info){
        .task = "tensor", .req_count_max = engine->req_count_max, .host_size = model->weight_size};
    if (engine->texts == NULL) {
        list_specs(model->inputs, model->input_count, what, sizeof(what) - 60);
        (void)snprintf(what + strlen(what), 60, "; requests are %sjoined",
                       engine->joining.on ? "" : "not ");
    } else {
        mem_copy_text(info->task, "embed");
        info->req_count_max = encoder_texts_req_count_max(engine->texts);
        info->token_count_max = onnx_text_length(engine->text);
        (void)snprintf(what, sizeof(what), "vectors of %u, %s, %u tokens a text",
                       onnx_text_width(engine->text), onnx_text_pooling(engine->text),
                       info->token_count_max);
    }
    (void)snprintf(info->detail, sizeof(info->detail),
                   "%.60s, opset %llu, by %.40s: %s; ONNX Runtime %.20s on the CPU, %u threads",
                   settings->file, (unsigned long long)model->opset, model->producer, what,
                   onnx_ort_version(engine->ort), thread_count);
}

int onnx_load(const struct engine_load *load, struct engine **ret_engine,
              struct engine_info *ret_info, struct err *err)
{
    OWNED(onnx_unload) struct engine *engine = xcalloc(1, sizeof(*engine));
    OWNED(onnx_settings_done) struct onnx_settings settings = {.json = NULL};
    uint32_t thread_count = 0;
    bool text = false;
    int r;

    engine->sink = load->sink;
    onnx_queue_init(&engine->queue);
    r = onnx_settings_read(load->dir, load->settings_json, &settings, err);
    if (r == 0)
        r = onnx_file_read(load->dir, settings.file, &engine->model, err);
    if (r == 0)
        r = choose_outputs(engine->model, settings.outputs, engine->offered, err);
    if (r == 0)
        r = choose_task(load->dir, engine->model, settings.task, &text, err);
    if (r == 0)
        r = open_session(engine, load, &settings, &thread_count, err);
    if (r == 0)
        r = text ? open_texts(engine, load, &settings, err)
                 : open_tensors(engine, load, &settings, err);
    if (r < 0)
        return r;
    describe(engine, &settings, thread_count, ret_info);
    *ret_engine = TAKE(engine);
    return 0;
}

void onnx_unload(struct engine **engine_p)
{
    struct engine *engine = TAKE(*engine_p);

    if (engine == NULL)
        return;
    encoder_texts_free(&engine->texts);
    onnx_text_close(&engine->text);
    onnx_queue_done(&engine->queue);
    onnx_session_close(&engine->session);
    onnx_ort_close(&engine->ort);
    buf_done(&engine->out);
    free(engine->run);
    free(engine->model);
    free(engine);
}
