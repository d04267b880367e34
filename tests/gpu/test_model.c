/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: whole models answer on a device as on the CPU, within 1e-4 in f32, and in bf16 within 1e-2
 * where weights were trained, in either slot, with two batches out, and alike to the bit whether a
 * pass is launched for the first time, captured, or launched as a graph. Method: the small models
 * of tests/data of every family and head, MiniLM where it was fetched; fresh random ids and
 * lengths; rows are NaN before.
 *
 * Weights that are random make of bf16's roundings what trained ones do not: the CPU's own bf16
 * moves the small models' answers by up to 0.06. Labels of few texts may all be near 0, so theirs
 * are compared beside 1.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <unistd.h>

#include "tests/gpu/device.h"
#include "workers/engines/encoder/encoder_texts.h"
#include "workers/engines/encoder_cuda/bert_cuda.h"

#define TEXTS 12u
#define TOKENS_MAX 1024u
#define APART_F32 1e-4
#define APART_BF16 1e-2
#define APART_BF16_RANDOM 0.2 /* weights */

struct model {
    struct encoder_config config;
    struct bert *cpu;
    struct bert_cuda *cuda;
    const char *dir; /* borrowed */
    double apart_max;
};

struct sample {
    uint32_t ids[TOKENS_MAX], offsets[TEXTS + 1], seconds[TEXTS];
    struct bert_batch batch;
    size_t row_count;
    float *want, *got;
};

static void fill_facts(struct device_facts *facts)
{
    struct cudaDeviceProp properties;
    size_t free_size, size;

    MUST(cudaGetDeviceProperties(&properties, 0));
    MUST(cudaMemGetInfo(&free_size, &size));
    facts->free_size = free_size;
    facts->memory_size = size;
    mem_copy_text(facts->name, properties.name);
}

/* False: this model is not computed in bf16. */
static bool open_model(struct model *model, const char *dir, bool bf16, double apart_max)
{
    OWNED(mem_free) char *path = xasprintf("%s/model.safetensors", dir);
    OWNED(safetensors_close) struct safetensors *one = NULL;
    OWNED(safetensors_close) struct safetensors *other = NULL;
    const struct bert_options options = {.thread_count = 2, .token_count_max = TOKENS_MAX};
    struct device_facts facts = {.device_count = 1};
    const struct bert_cuda_options cuda = {
        .facts = &facts, .bf16 = bf16, .token_count_max = TOKENS_MAX, .text_count_max = TEXTS};
    struct err err = {.text = ""};

    *model = (struct model){.dir = dir, .apart_max = apart_max};
    assert_int_equal(encoder_config_read(dir, &model->config, &err), 0);
    if (bert_cuda_check(&model->config, bf16, &err) < 0) {
        (void)printf("%s: %s\n", dir, err.text);
        return false;
    }
    fill_facts(&facts);
    if (safetensors_open(path, &one, &err) < 0 || safetensors_open(path, &other, &err) < 0 ||
        bert_open(&model->config, &one, &options, &model->cpu, &err) < 0 ||
        bert_cuda_open(&model->config, &other, &cuda, &model->cuda, &err) < 0)
        fail_msg("%s: %s", dir, err.text);
    return true;
}

static void model_done(struct model *model)
{
    bert_cuda_close(&model->cuda);
    bert_close(&model->cpu);
}

static void make_sample(const struct model *model, struct sample *sample)
{
    const struct encoder_config *config = &model->config;
    const uint32_t length_max = TOKENS_MAX / TEXTS < config->token_count_max
                                    ? TOKENS_MAX / TEXTS
                                    : config->token_count_max;
    const uint32_t least = config->head == ENCODER_HEAD_CLASSIFY ? TEXTS / 2 : 1;
    const uint32_t texts = least + device_random_below(TEXTS - least + 1);
    struct err err;
    uint32_t at = 0;

    for (uint32_t i = 0; i < texts; i++) {
        const uint32_t count = 2 + device_random_below(length_max - 1);

        sample->seconds[i] = device_random_below(2) * (count / 2);
        for (uint32_t t = 0; t < count; t++)
            sample->ids[at + t] = device_random_below(config->vocab_count);
        at += count;
        sample->offsets[i + 1] = at;
    }
    sample->batch = (struct bert_batch){sample->ids, sample->offsets, texts, sample->seconds};
    sample->row_count = config->head == ENCODER_HEAD_TOKENS ? at : texts;
    sample->row_count *= encoder_config_width(config);
    sample->want = xcalloc(sample->row_count, sizeof(float));
    sample->got = xcalloc(sample->row_count, sizeof(float));
    memset(sample->got, DEVICE_POISON, sample->row_count * sizeof(float));
    assert_int_equal(bert_run(model->cpu, &sample->batch, sample->want, &err), 0);
}

static void sample_done(struct sample *sample)
{
    free(sample->want);
    free(sample->got);
}

static void check_close(const struct model *model, const struct sample *sample)
{
    const bool has_labels = model->config.head != ENCODER_HEAD_EMBED;
    double off = 0, all = has_labels ? (double)sample->row_count : 0;

    for (size_t i = 0; i < sample->row_count; i++) {
        const double got = (double)sample->got[i], want = (double)sample->want[i];

        off += (got - want) * (got - want);
        all += want * want;
    }
    if (!(sqrt(off / all) <= model->apart_max)) /* a NaN too */
        fail_msg("%s: relative error %g, over %g", model->dir, sqrt(off / all), model->apart_max);
}

static void finish(struct model *model, uint32_t slot, struct sample *sample)
{
    uint32_t pad_count;
    struct err err;

    if (bert_cuda_finish(model->cuda, slot, sample->got, &pad_count, &err) < 0)
        fail_msg("%s", err.text);
    assert_true(pad_count < TOKENS_MAX);
    check_close(model, sample);
}

static void start(struct model *model, uint32_t slot, struct sample *sample)
{
    struct err err;

    if (bert_cuda_start(model->cuda, slot, &sample->batch, &err) < 0)
        fail_msg("%s", err.text);
}

/* Launched, captured, and twice as a graph, in both slots; then two samples out at once. */
static void check_model(struct model *model)
{
    OWNED(sample_done) struct sample one = {.want = NULL}, two = {.want = NULL};
    OWNED(mem_free) float *first = NULL;

    make_sample(model, &one);
    make_sample(model, &two);
    for (uint32_t i = 0; i < 8; i++) {
        start(model, i % 2, &one);
        finish(model, i % 2, &one);
        if (first == NULL) {
            first = xcalloc(one.row_count, sizeof(float));
            memcpy(first, one.got, one.row_count * sizeof(float));
        }
        assert_memory_equal(one.got, first, one.row_count * sizeof(float));
        memset(one.got, DEVICE_POISON, one.row_count * sizeof(float));
    }
    for (uint32_t i = 0; i < 6; i++) {
        start(model, 0, &one);
        start(model, 1, &two);
        finish(model, 0, &one);
        finish(model, 1, &two);
    }
}

static const char *const dirs[] = {
    "bert-classify",     "bert-embed",       "bert-multi",          "bert-rerank",
    "bert-tokens",       "distilbert-embed", "distilbert-classify", "distilbert-rerank",
    "distilbert-tokens", "mpnet-embed",      "mpnet-rerank",        "roberta-classify",
    "roberta-embed",     "roberta-rerank",   "roberta-tokens",      "xlm-embed",
    "xlm-rerank",
};

static void test_small_models(void **state)
{
    uint32_t checked = 0;

    (void)state;
    for (size_t i = 0; i < 2 * COUNT_OF(dirs); i++) {
        OWNED(mem_free) char *dir = xasprintf("tests/data/encoder/kinds/%s", dirs[i / 2]);
        OWNED(model_done) struct model model;

        if (!open_model(&model, dir, i % 2 == 1, i % 2 == 1 ? APART_BF16_RANDOM : APART_F32))
            continue;
        for (uint32_t k = 0; k < 4; k++)
            check_model(&model);
        checked++;
    }
    (void)printf("%u models and types\n", checked);
    assert_true(checked >= COUNT_OF(dirs)); /* all of them in f32 */
}

static void test_minilm(void **state)
{
    const char *deps = getenv("HEADRACE_DEPS");
    OWNED(mem_free)
    char *dir = xasprintf("%s/models/all-MiniLM-L6-v2", deps != NULL ? deps : ".headrace/deps");

    (void)state;
    if (access(dir, R_OK) < 0)
        skip();
    for (uint32_t i = 0; i < 2; i++) {
        OWNED(model_done) struct model model;

        assert_true(open_model(&model, dir, i == 1, i == 1 ? APART_BF16 : APART_F32));
        for (uint32_t k = 0; k < 8; k++)
            check_model(&model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_models),
        cmocka_unit_test(test_minilm),
    };

    device_begin();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
