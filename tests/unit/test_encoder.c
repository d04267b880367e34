/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: the engine keeps the contract of engine.h: one final event a request whatever happens,
 * vectors that are right whatever shares their batch, failures of a load by name.
 * Method: the tiny model (3 layers; F32, F16 and BF16) driven as host-c drives it; its vectors
 * against a forward pass written down plainly in double.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/encoder_drive.h"
#include "workers/engines/encoder/encoder.h"
#include "workers/engines/encoder/encoder_config.h"
#include "workers/engines/encoder/encoder_json.h"
#include "workers/engines/encoder/gemm.h"
#include "workers/engines/encoder/safetensors.h"
#include "workers/engines/encoder/wordpiece.h"

#define TINY "tests/data/encoder/tiny"
#define HIDDEN 32u
#define INTERMEDIATE 64u
#define HEADS 4u
#define LAYERS 3u
#define LENGTH 48u

/* --- the model once more, plainly ------------------------------------------------------- */

struct plain {
    struct safetensors *file;
    struct wordpiece *pieces;
};

static void plain_done(struct plain *plain)
{
    safetensors_close(&plain->file);
    wordpiece_free(&plain->pieces);
}

static void plain_open(struct plain *plain)
{
    struct err err = {0};

    if (safetensors_open(TINY "/model.safetensors", &plain->file, &err) < 0 ||
        wordpiece_open(TINY, &plain->pieces, &err) < 0)
        fail_msg("%s", err.text);
}

static double weight(const struct plain *plain, const char *name, uint64_t index)
{
    const struct safetensors_tensor *tensor = safetensors_find(plain->file, name);
    float value = 0;
    struct err err;

    assert_non_null(tensor);
    assert_int_equal(safetensors_read_f32(tensor, index, 1, &value, &err), 0);
    return (double)value;
}

/* Looked up once a matrix, not once a number: this is called for every token of every text. */
static const struct safetensors_tensor *layer_tensor(const struct plain *plain, uint32_t layer,
                                                     const char *name, const char *part)
{
    OWNED(mem_free) char *full = xasprintf("encoder.layer.%u.%s.%s", layer, name, part);
    const struct safetensors_tensor *tensor = safetensors_find(plain->file, full);

    assert_non_null(tensor);
    return tensor;
}

/* y[out] = W x + b */
static void linear(const struct plain *plain, uint32_t layer, const char *name, const double *x,
                   uint32_t in, double *y, uint32_t out)
{
    const struct safetensors_tensor *matrix = layer_tensor(plain, layer, name, "weight");
    const struct safetensors_tensor *bias = layer_tensor(plain, layer, name, "bias");
    float row[INTERMEDIATE], first;
    struct err err;

    assert_true(in <= INTERMEDIATE);
    for (uint32_t o = 0; o < out; o++) {
        assert_int_equal(safetensors_read_f32(bias, o, 1, &first, &err), 0);
        assert_int_equal(safetensors_read_f32(matrix, (uint64_t)o * in, in, row, &err), 0);
        y[o] = (double)first;
        for (uint32_t i = 0; i < in; i++)
            y[o] += (double)row[i] * x[i];
    }
}

static void normalize(const struct plain *plain, const char *name, double *x)
{
    OWNED(mem_free) char *gain = xasprintf("%s.weight", name);
    OWNED(mem_free) char *bias = xasprintf("%s.bias", name);
    double mean = 0, square = 0;

    for (uint32_t i = 0; i < HIDDEN; i++)
        mean += x[i] / HIDDEN;
    for (uint32_t i = 0; i < HIDDEN; i++)
        square += (x[i] - mean) * (x[i] - mean) / HIDDEN;
    for (uint32_t i = 0; i < HIDDEN; i++)
        x[i] = (x[i] - mean) / sqrt(square + 1e-12) * weight(plain, gain, i) +
               weight(plain, bias, i);
}

struct plain_state {
    uint32_t count;
    double x[LENGTH][HIDDEN], q[LENGTH][HIDDEN], k[LENGTH][HIDDEN], v[LENGTH][HIDDEN];
};

static void plain_attend(const struct plain_state *s, uint32_t t, double *context)
{
    const uint32_t size = HIDDEN / HEADS;

    for (uint32_t h = 0; h < HEADS; h++) {
        double shares[LENGTH], sum = 0;

        for (uint32_t i = 0; i < s->count; i++) {
            shares[i] = 0;
            for (uint32_t d = h * size; d < (h + 1) * size; d++)
                shares[i] += s->q[t][d] * s->k[i][d] / sqrt(size);
            shares[i] = exp(shares[i]);
            sum += shares[i];
        }
        for (uint32_t d = h * size; d < (h + 1) * size; d++) {
            context[d] = 0;
            for (uint32_t i = 0; i < s->count; i++)
                context[d] += shares[i] / sum * s->v[i][d];
        }
    }
}

static void plain_layer(const struct plain *plain, uint32_t layer, struct plain_state *s)
{
    OWNED(mem_free)
    char *attended = xasprintf("encoder.layer.%u.attention.output.LayerNorm", layer);
    OWNED(mem_free) char *done = xasprintf("encoder.layer.%u.output.LayerNorm", layer);
    double context[HIDDEN], out[HIDDEN], up[INTERMEDIATE];

    for (uint32_t t = 0; t < s->count; t++) {
        linear(plain, layer, "attention.self.query", s->x[t], HIDDEN, s->q[t], HIDDEN);
        linear(plain, layer, "attention.self.key", s->x[t], HIDDEN, s->k[t], HIDDEN);
        linear(plain, layer, "attention.self.value", s->x[t], HIDDEN, s->v[t], HIDDEN);
    }
    for (uint32_t t = 0; t < s->count; t++) {
        plain_attend(s, t, context);
        linear(plain, layer, "attention.output.dense", context, HIDDEN, out, HIDDEN);
        for (uint32_t i = 0; i < HIDDEN; i++)
            s->x[t][i] += out[i];
        normalize(plain, attended, s->x[t]);
        linear(plain, layer, "intermediate.dense", s->x[t], HIDDEN, up, INTERMEDIATE);
        for (uint32_t i = 0; i < INTERMEDIATE; i++)
            up[i] *= 0.5 * (1 + erf(up[i] / sqrt(2)));
        linear(plain, layer, "output.dense", up, INTERMEDIATE, out, HIDDEN);
        for (uint32_t i = 0; i < HIDDEN; i++)
            s->x[t][i] += out[i];
        normalize(plain, done, s->x[t]);
    }
}

static void plain_embed(const struct plain *plain, const char *text, double *vector)
{
    struct plain_state *s = xcalloc(1, sizeof(*s));
    uint32_t ids[LENGTH];
    double square = 0;
    bool truncated;

    s->count = wordpiece_encode(plain->pieces, text, strlen(text), ids, LENGTH, &truncated);
    for (uint32_t t = 0; t < s->count; t++) {
        for (uint32_t i = 0; i < HIDDEN; i++)
            s->x[t][i] = weight(plain, "embeddings.word_embeddings.weight", ids[t] * HIDDEN + i) +
                         weight(plain, "embeddings.position_embeddings.weight", t * HIDDEN + i) +
                         weight(plain, "embeddings.token_type_embeddings.weight", i);
        normalize(plain, "embeddings.LayerNorm", s->x[t]);
    }
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        plain_layer(plain, layer, s);
    memset(vector, 0, HIDDEN * sizeof(*vector));
    for (uint32_t t = 0; t < s->count; t++) {
        for (uint32_t i = 0; i < HIDDEN; i++)
            vector[i] += s->x[t][i] / s->count;
    }
    for (uint32_t i = 0; i < HIDDEN; i++)
        square += vector[i] * vector[i];
    for (uint32_t i = 0; i < HIDDEN; i++)
        vector[i] /= sqrt(square);
    free(s);
}

/* --- the engine against it -------------------------------------------------------------- */

#define LONG_TEXT                                                                                  \
    "the cat sat on the mat the cat sat on the mat the cat sat on the mat the cat sat on the mat " \
    "the cat sat on the mat the cat sat on the mat the cat sat on the mat the cat sat on the mat"

static const char *const texts[] = {
    "the quick brown fox jumps over the lazy dog",
    "",
    "water wheel",
    "a kafka queue keeps the request until the worker has taken it, and loses none",
    "x",
    LONG_TEXT,
};

static const json_t *embedding(const struct drive_event *event, uint32_t index)
{
    const json_t *data = json_object_get(event->output, "data");

    return json_object_get(json_array_get(data, index), "embedding");
}

static double largest_difference(const json_t *got, const double *want)
{
    double difference = 0;

    assert_int_equal(json_array_size(got), HIDDEN);
    for (uint32_t i = 0; i < HIDDEN; i++)
        difference = fmax(difference, fabs(json_number_value(json_array_get(got, i)) - want[i]));
    return difference;
}

static char *body_of(const char *const *list, uint32_t count)
{
    OWNED(encoder_json_free) json_t *body = json_object();
    json_t *array = json_array();

    for (uint32_t i = 0; i < count; i++)
        (void)json_array_append_new(array, json_string(list[i]));
    (void)json_object_set_new(body, "input", array);
    return json_dumps(body, 0);
}

static void load_tiny(struct drive *drive, const struct engine_load *wish)
{
    struct engine_load load = *wish;
    struct err err = {0};

    load.dir = TINY;
    if (drive_load(drive, &encoder_api, &load, &err) < 0)
        fail_msg("%s", err.text);
}

static void check_vectors(const struct engine_load *wish, double tolerance)
{
    OWNED(plain_done) struct plain plain = {0};
    OWNED(mem_free) char *input = body_of(texts, COUNT_OF(texts));
    OWNED(drive_done) struct drive drive = {0};
    const struct drive_event *event;
    double want[HIDDEN];

    plain_open(&plain);
    load_tiny(&drive, wish);
    drive_submit(&drive, 1, input);
    (void)drive_run(&drive, 1);
    event = drive_final(&drive, 1);
    assert_int_equal(event->type, ENGINE_EVENT_OUTPUT);
    for (uint32_t i = 0; i < COUNT_OF(texts); i++) {
        plain_embed(&plain, texts[i], want);
        if (largest_difference(embedding(event, i), want) > tolerance)
            fail_msg("%s: text %u differs by %g", drive.info.detail, i,
                     largest_difference(embedding(event, i), want));
    }
    (void)printf("%s\n", drive.info.detail);
}

static void test_vectors_are_right_on_any_number_of_threads(void **state)
{
    (void)state;
    check_vectors(&(struct engine_load){.thread_count = 1}, 2e-6);
    check_vectors(&(struct engine_load){.thread_count = 4}, 2e-6);
    check_vectors(&(struct engine_load){.thread_count = 1, .batch_token_max = LENGTH}, 2e-6);
}

static void test_bf16_is_close(void **state)
{
    (void)state;
    if (!gemm_has_bf16()) {
        (void)printf("SKIPPED: this CPU has no bf16 products\n");
        skip();
    }
    check_vectors(&(struct engine_load){.thread_count = 2, .settings_json = "{\"dtype\":\"bf16\"}"},
                  0.02);
}

static void test_answer_has_openai_shape(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    const struct drive_event *event;
    const json_t *usage;

    (void)state;
    load_tiny(&drive, &(struct engine_load){.model = "org/\"tiny\"", .thread_count = 1});
    drive_submit(&drive, 7, "{\"input\":\"water wheel\",\"colour\":\"blue\"}");
    assert_int_equal(drive.event_count, 1);
    assert_int_equal(drive.events[0].type, ENGINE_EVENT_ACCEPTED);
    assert_int_equal(drive.events[0].req_id, 7);
    (void)drive_run(&drive, 1);
    event = drive_final(&drive, 7);
    assert_int_equal(event->token_count, 4);
    assert_int_equal(event->batch_req_count, 1);
    usage = json_object_get(event->output, "usage");
    assert_string_equal(json_string_value(json_object_get(event->output, "object")), "list");
    assert_string_equal(json_string_value(json_object_get(event->output, "model")), "org/\"tiny\"");
    assert_int_equal(json_integer_value(json_object_get(usage, "prompt_tokens")), 4);
    assert_int_equal(json_integer_value(json_object_get(usage, "total_tokens")), 4);
    assert_true(json_is_false(json_array_get(json_object_get(event->output, "truncated"), 0)));
    assert_string_equal(
        json_string_value(json_array_get(json_object_get(event->output, "warnings"), 0)),
        "unknown field 'colour' is ignored");
}

static void test_requests_share_batches_by_tokens(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    struct engine_stats stats;

    (void)state;
    load_tiny(&drive, &(struct engine_load){.thread_count = 1, .batch_token_max = LENGTH});
    for (uint64_t id = 1; id <= 30; id++)
        drive_submit(&drive, id, "{\"input\":\"water\"}"); /* three tokens each */
    assert_int_equal(drive_run(&drive, 1), 2);
    for (uint64_t id = 1; id <= 30; id++)
        assert_int_equal(drive_final(&drive, id)->batch_req_count, id <= 16 ? 16 : 14);
    encoder_api.stats(drive.engine, &stats);
    assert_int_equal(stats.step_count, 2);
    assert_int_equal(stats.step_req_count, 30);
    assert_int_equal(stats.step_token_count, 90);
    assert_int_equal(stats.step_pad_count, 6);
    assert_int_equal(stats.output_count, 30);
    assert_int_equal(stats.queue_req_count, 0);
}

static void submit_alone(struct drive *drive, uint64_t id)
{
    const struct engine_req req = {
        .id = id, .input = "{\"input\":[\"a\",\"b\"]}", .input_size = 19, .alone = true};
    struct err err;

    assert_int_equal(encoder_api.submit(drive->engine, &req, 1, &err), 0);
}

static void test_alone_is_alone(void **state)
{
    OWNED(drive_done) struct drive drive = {0};

    (void)state;
    load_tiny(&drive, &(struct engine_load){.thread_count = 1});
    drive_submit(&drive, 1, "{\"input\":\"a\"}");
    submit_alone(&drive, 2);
    drive_submit(&drive, 3, "{\"input\":\"a\"}");
    assert_int_equal(drive_run(&drive, 1), 3);
    for (uint64_t id = 1; id <= 3; id++)
        assert_int_equal(drive_final(&drive, id)->batch_req_count, 1);
}

static void test_truncation_is_shown_or_refused(void **state)
{
    OWNED(mem_free) char *input = NULL, *strict = NULL;
    OWNED(drive_done) struct drive drive = {0};
    const char *list[] = {"water", LONG_TEXT};
    const json_t *truncated;

    (void)state;
    load_tiny(&drive, &(struct engine_load){.thread_count = 1});
    input = body_of(list, 2);
    drive_submit(&drive, 1, input);
    (void)drive_run(&drive, 1);
    truncated = json_object_get(drive_final(&drive, 1)->output, "truncated");
    assert_true(json_is_false(json_array_get(truncated, 0)));
    assert_true(json_is_true(json_array_get(truncated, 1)));
    assert_int_equal(drive_final(&drive, 1)->token_count, 3 + LENGTH);
    strict = xasprintf("{\"truncate\":false,%s", input + 1);
    drive_submit(&drive, 2, strict);
    assert_int_equal(drive_final(&drive, 2)->error, ENGINE_ERROR_BAD_INPUT);
    assert_string_equal(drive_final(&drive, 2)->text,
                        "input[1] has more tokens than the model's limit of 48, and truncate is "
                        "false");
}

static void test_bad_input_is_said_at_once(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    const struct engine_req large = {.id = 3, .input = "{\"input\":\"a\"}", .input_size = 101};
    struct err err;

    (void)state;
    load_tiny(&drive, &(struct engine_load){.thread_count = 1, .input_size_max = 100});
    drive_submit(&drive, 1, "{\"input\":7}");
    assert_int_equal(drive_final(&drive, 1)->error, ENGINE_ERROR_BAD_INPUT);
    drive_submit(&drive, 2, "{\"input\":\"a\",\"dimensions\":8}");
    assert_string_equal(drive_final(&drive, 2)->text,
                        "dimensions is 8, this model has 32 and cannot be cut");
    assert_int_equal(encoder_api.submit(drive.engine, &large, 1, &err), 0);
    assert_string_equal(drive_final(&drive, 3)->text, "model_input has 101 bytes, limit 100");
    assert_int_equal(drive_run(&drive, 1), 1);
    assert_int_equal(drive.event_count, 3);
}

static void test_cancel_and_deadline(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    const struct engine_req late = {
        .id = 2, .input = "{\"input\":\"a\"}", .input_size = 13, .deadline_us = 50};
    struct err err;

    (void)state;
    load_tiny(&drive, &(struct engine_load){.thread_count = 1});
    drive_submit(&drive, 1, "{\"input\":\"a\"}");
    assert_int_equal(encoder_api.submit(drive.engine, &late, 1, &err), 0);
    drive_submit(&drive, 3, "{\"input\":\"a\"}");
    assert_int_equal(encoder_api.cancel(drive.engine, 1, &err), 0);
    assert_int_equal(encoder_api.cancel(drive.engine, 99, &err), 0);
    (void)drive_run(&drive, 51);
    assert_int_equal(drive_final(&drive, 1)->error, ENGINE_ERROR_CANCELED);
    assert_int_equal(drive_final(&drive, 2)->error, ENGINE_ERROR_EXPIRED);
    assert_int_equal(drive_final(&drive, 3)->type, ENGINE_EVENT_OUTPUT);
}

static void test_cancel_between_batches_of_one_request(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    OWNED(mem_free) char *input = NULL;
    const char *list[] = {LONG_TEXT, LONG_TEXT, LONG_TEXT};
    uint64_t wake_us;
    struct err err;

    (void)state;
    load_tiny(&drive, &(struct engine_load){.thread_count = 1, .batch_token_max = LENGTH});
    input = body_of(list, 3);
    drive_submit(&drive, 1, input);
    assert_int_equal(encoder_api.step(drive.engine, 1, &wake_us, &err), 0);
    assert_int_equal(wake_us, 0);
    assert_int_equal(encoder_api.cancel(drive.engine, 1, &err), 0);
    assert_int_equal(drive_final(&drive, 1)->error, ENGINE_ERROR_CANCELED);
    assert_int_equal(drive_run(&drive, 1), 1);
    assert_int_equal(drive.event_count, 2);
}

static void test_more_than_it_holds_is_refused(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    const struct engine_req req = {.id = 9, .input = "{\"input\":\"a\"}", .input_size = 13};
    struct err err;

    (void)state;
    load_tiny(&drive, &(struct engine_load){.thread_count = 1, .req_count_max = 2});
    assert_int_equal(drive.info.req_count_max, 2);
    drive_submit(&drive, 1, "{\"input\":\"a\"}");
    drive_submit(&drive, 2, "{\"input\":\"a\"}");
    assert_int_equal(encoder_api.submit(drive.engine, &req, 1, &err), ERR_FULL);
    (void)drive_run(&drive, 1);
    assert_int_equal(encoder_api.submit(drive.engine, &req, 1, &err), 0);
    assert_int_equal(encoder_api.submit(drive.engine, &req, 1, &err), ERR_CONFLICT);
    assert_int_equal(drive.event_count, 5);
}

static void test_base64_is_the_same_vector(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    const char *text;

    (void)state;
    load_tiny(&drive, &(struct engine_load){.thread_count = 1});
    drive_submit(&drive, 1, "{\"input\":\"a\",\"encoding_format\":\"base64\"}");
    (void)drive_run(&drive, 1);
    text = json_string_value(embedding(drive_final(&drive, 1), 0));
    assert_non_null(text);
    assert_int_equal(strlen(text), (HIDDEN * 4 + 2) / 3 * 4);
}

static void test_loads_that_are_refused(void **state)
{
    static const struct {
        struct engine_load load;
        int code;
        const char *text;
    } rows[] = {
        {{.dir = TINY, .device = "cuda"}, ERR_UNSUPPORTED, "device is 'cuda'"},
        {{.dir = TINY, .settings_json = "{\"dtyp\":\"f32\"}"},
         ERR_USAGE,
         "setting 'dtyp' is unknown"},
        {{.dir = TINY, .settings_json = "{\"dtype\":\"fp8\"}"},
         ERR_USAGE,
         "setting 'dtype' is 'fp8', allowed are f32, bf16 and auto"},
        {{.dir = TINY, .settings_json = "{\"dtype\":8}"}, ERR_MALFORMED, "'dtype' is no text"},
        {{.dir = TINY, .settings_json = "f32"}, ERR_USAGE, "settings are not a JSON object"},
        {{.dir = TINY, .batch_token_max = 47}, ERR_RANGE, "is 47, less than the 48 tokens"},
        {{.dir = TINY, .batch_token_max = 1u << 30}, ERR_RANGE, "limit 65536"},
        {{.dir = TINY, .thread_count = 1000}, ERR_RANGE, "thread_count is 1000, limit 256"},
        {{.dir = TINY, .req_count_max = 5000}, ERR_RANGE, "req_count_max is 5000, limit 1024"},
        {{.dir = TINY, .model = "\xff"}, ERR_MALFORMED, "model's name is not UTF-8"},
        {{.dir = "tests/data"}, ERR_NOT_FOUND, "tests/data/config.json"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(drive_done) struct drive drive = {0};
        struct err err = {0};
        int r = drive_load(&drive, &encoder_api, &rows[i].load, &err);

        if (r != rows[i].code || strstr(err.text, rows[i].text) == NULL || drive.engine != NULL)
            fail_msg("row %zu: %s (%s)", i, err_name(r), err.text);
    }
}

static void test_loading_reports_and_stops(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    OWNED(drive_done) struct drive stopped = {.stop_loading = true};
    const struct engine_load load = {.dir = TINY, .thread_count = 1};
    struct err err = {0};

    (void)state;
    load_tiny(&drive, &load);
    assert_true(drive.progress_total > 0);
    assert_true(drive.progress_done <= drive.progress_total);
    assert_true(drive.progress_done > drive.progress_total / 2);
    assert_int_equal(drive_load(&stopped, &encoder_api, &load, &err), ERR_CANCELED);
    assert_null(stopped.engine);
}

static void copy_file(const char *dir, const char *name, const char *from, const char *to)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", dir, name);
    char *bytes = NULL, *at;
    size_t size;
    struct err err;
    FILE *file;

    assert_int_equal(encoder_json_read_bytes(TINY, name, 1u << 20, &bytes, &size, &err), 0);
    at = from != NULL ? memmem(bytes, size, from, strlen(from)) : NULL;
    if (from != NULL) {
        assert_non_null(at);
        assert_int_equal(strlen(from), strlen(to));
        memcpy(at, to, strlen(to));
    }
    file = fopen(path, "we");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
    free(bytes);
}

/* A probe reads what push must know before it accepts a directory. */
static void test_probe(void **state)
{
    static const char *const names[] = {"config.json", "modules.json", "1_Pooling/config.json",
                                        "tokenizer.json", "model.safetensors"};
    static const struct {
        const char *name, *from, *to, *text;
    } rows[] = {
        {"", NULL, NULL, "BertModel, 3 layers of 32, mean pooling, normalized"},
        {"config.json", "BertModel", "BartModel", "architectures[0] is 'BartModel'"},
        {"config.json", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 9",
         "config.json describes a model of"},
        {"config.json", "\"intermediate_size\": 64", "\"intermediate_size\": 32",
         "tensor 'encoder.layer.0.intermediate.dense.weight' has shape [64, 32] of rank 2, "
         "config.json wants [32, 32]"},
        {"config.json", "\"vocab_size\": 1000", "\"vocab_size\": 999 ",
         "tensor 'embeddings.word_embeddings.weight' has shape [1000, 32]"},
        {"model.safetensors", "layer.2.output.dense.bias", "layer.2.outqut.dense.bias",
         "tensor 'encoder.layer.2.output.dense.bias' is missing"},
        {"model.safetensors", "\"F16\"", "\"I16\"", "dtype is I16, none of F32, F16, BF16"},
        {"model.safetensors", "layer.1.output.LayerNorm.weight", "layer.1.output.LayerNorm.weighs",
         "tensor 'encoder.layer.1.output.LayerNorm.weight' is missing"},
        {"model.safetensors", "{\"__meta", "[\"__meta", "header does not begin with '{'"},
        {"tokenizer.json", "WordPiece\", \"unk", "WordLevel\", \"unk", "model is 'WordLevel'"},
    };
    char dir[] = "/tmp/encoder-XXXXXX";
    OWNED(mem_free) char *pooling = NULL;
    struct engine_probe probe;
    struct err err;

    (void)state;
    assert_non_null(mkdtemp(dir));
    pooling = xasprintf("%s/1_Pooling", dir);
    assert_int_equal(mkdir(pooling, 0700), 0);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        for (size_t j = 0; j < COUNT_OF(names); j++) {
            bool changed = strcmp(rows[i].name, names[j]) == 0;

            copy_file(dir, names[j], changed ? rows[i].from : NULL, rows[i].to);
        }
        assert_int_equal(encoder_api.probe(dir, &probe, &err), 0);
        if (strstr(probe.text, rows[i].text) == NULL || (probe.score > 0) != (i == 0))
            fail_msg("row %zu: score %u, %s", i, probe.score, probe.text);
    }
    for (size_t j = 0; j < COUNT_OF(names); j++) {
        OWNED(mem_free) char *path = xasprintf("%s/%s", dir, names[j]);

        assert_int_equal(unlink(path), 0);
    }
    assert_int_equal(rmdir(pooling), 0);
    assert_int_equal(rmdir(dir), 0);
    assert_int_equal(encoder_api.probe(dir, &probe, &err), ERR_IO);
}

static void test_unload_drops_what_is_held(void **state)
{
    OWNED(drive_done) struct drive drive = {0};

    (void)state;
    load_tiny(&drive, &(struct engine_load){.thread_count = 2});
    drive_submit(&drive, 1, "{\"input\":\"a\"}");
    encoder_api.unload(&drive.engine);
    assert_null(drive.engine);
    encoder_api.unload(&drive.engine);
    assert_int_equal(drive.event_count, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors_are_right_on_any_number_of_threads),
        cmocka_unit_test(test_bf16_is_close),
        cmocka_unit_test(test_answer_has_openai_shape),
        cmocka_unit_test(test_requests_share_batches_by_tokens),
        cmocka_unit_test(test_alone_is_alone),
        cmocka_unit_test(test_truncation_is_shown_or_refused),
        cmocka_unit_test(test_bad_input_is_said_at_once),
        cmocka_unit_test(test_cancel_and_deadline),
        cmocka_unit_test(test_cancel_between_batches_of_one_request),
        cmocka_unit_test(test_more_than_it_holds_is_refused),
        cmocka_unit_test(test_base64_is_the_same_vector),
        cmocka_unit_test(test_loads_that_are_refused),
        cmocka_unit_test(test_loading_reports_and_stops),
        cmocka_unit_test(test_probe),
        cmocka_unit_test(test_unload_drops_what_is_held),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
