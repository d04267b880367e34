/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: each family with each head answers its routes as the reference implementation does, field
 * by field, whatever shares its batch.
 * Method: small models with random weights and the answers that tests/data/encoder/make_kinds.py
 * took from transformers in float64; each asked alone, all in one batch, and in batches of one
 * text, on one thread and on three. Numbers to 1e-4, everything else exactly.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "tests/unit/encoder_drive.h"
#include "workers/engines/encoder/encoder.h"
#include "workers/engines/encoder/encoder_json.h"

#define KINDS "tests/data/encoder/kinds"
#define TOLERANCE 1e-4
#define LENGTH 24u

static const struct {
    const char *name, *task, *text;
} kinds[] = {
    {"bert-embed", "embed", "BertModel, 2 layers of 16, mean pooling"},
    {"bert-rerank", "rerank", "BertForSequenceClassification, 2 layers of 16, 1 label"},
    {"bert-classify", "classify", "BertForSequenceClassification, 2 layers of 16, 4 labels"},
    {"bert-multi", "classify", "BertForSequenceClassification, 2 layers of 16, 3 labels"},
    {"bert-tokens", "classify_tokens", "BertForTokenClassification, 2 layers of 16, 6 labels"},
    {"distilbert-embed", "embed", "DistilBertModel, 2 layers of 16, mean pooling"},
    {"distilbert-rerank", "rerank", "DistilBertForSequenceClassification, 2 layers of 16, 1 label"},
    {"distilbert-classify", "classify",
     "DistilBertForSequenceClassification, 2 layers of 16, 4 labels"},
    {"distilbert-tokens", "classify_tokens",
     "DistilBertForTokenClassification, 2 layers of 16, 6 labels"},
    {"modernbert-embed", "embed", "ModernBertModel, 4 layers of 16, mean pooling"},
    {"modernbert-rerank", "rerank", "ModernBertForSequenceClassification, 4 layers of 16, 1 label"},
    {"modernbert-classify", "classify",
     "ModernBertForSequenceClassification, 4 layers of 16, 4 labels"},
    {"modernbert-tokens", "classify_tokens",
     "ModernBertForTokenClassification, 4 layers of 16, 6 labels"},
    {"mpnet-embed", "embed", "MPNetModel, 2 layers of 16, mean pooling"},
    {"mpnet-rerank", "rerank", "MPNetForSequenceClassification, 2 layers of 16, 1 label"},
    {"nomic-embed", "embed", "NomicBertModel, 4 layers of 16, mean pooling"},
    {"nomic-bias", "embed", "NomicBertModel, 4 layers of 16, mean pooling"},
    {"nomic-rerank", "rerank", "NomicBertForSequenceClassification, 4 layers of 16, 1 label"},
    {"nomic-classify", "classify", "NomicBertForSequenceClassification, 4 layers of 16, 4 labels"},
    {"nomic-tokens", "classify_tokens",
     "NomicBertForTokenClassification, 4 layers of 16, 6 labels"},
    {"xlm-embed", "embed", "XLMRobertaModel, 2 layers of 16, mean pooling"},
    {"xlm-rerank", "rerank", "XLMRobertaForSequenceClassification, 2 layers of 16, 1 label"},
    {"roberta-embed", "embed", "RobertaModel, 2 layers of 16, mean pooling"},
    {"roberta-rerank", "rerank", "RobertaForSequenceClassification, 2 layers of 16, 1 label"},
    {"roberta-classify", "classify", "RobertaForSequenceClassification, 2 layers of 16, 4 labels"},
    {"roberta-tokens", "classify_tokens",
     "RobertaForTokenClassification, 2 layers of 16, 6 labels"},
};

/* Where the two differ, as a path; empty: nowhere. */
static bool same(const json_t *got, const json_t *want, char *path, size_t path_size)
{
    const size_t size = strlen(path);
    const json_t *value;
    const char *key;
    size_t i;

    if (json_is_number(want) && json_is_number(got))
        return fabs(json_number_value(got) - json_number_value(want)) <= TOLERANCE;
    if (got == NULL || json_typeof(got) != json_typeof(want))
        return false;
    if (json_is_string(want))
        return strcmp(json_string_value(got), json_string_value(want)) == 0;
    if (json_is_array(want)) {
        json_array_foreach(want, i, value)
        {
            (void)snprintf(path + size, path_size - size, "[%zu]", i);
            if (!same(json_array_get(got, i), value, path, path_size))
                return false;
        }
    }
    json_object_foreach((json_t *)want, key, value)
    {
        (void)snprintf(path + size, path_size - size, ".%s", key);
        if (!same(json_object_get(got, key), value, path, path_size))
            return false;
    }
    path[size] = '\0';
    return json_is_array(want) ? json_array_size(got) == json_array_size(want)
                               : json_object_size(got) == json_object_size(want);
}

static void submit(struct drive *drive, uint64_t id, const json_t *golden)
{
    OWNED(mem_free) char *input = json_dumps(json_object_get(golden, "body"), 0);
    OWNED(mem_free)
    char *route = xasprintf("POST %s", json_string_value(json_object_get(golden, "route")));
    const struct engine_req req = {
        .id = id, .input = input, .input_size = strlen(input), .route = route};
    struct err err;

    assert_int_equal(encoder_api.submit(drive->engine, &req, 1, &err), 0);
}

static void check(struct drive *drive, uint64_t id, const char *name, const json_t *golden)
{
    const struct drive_event *event = drive_final(drive, id);
    const json_t *got = event->output, *want = json_object_get(golden, "answer"), *item;
    OWNED(encoder_json_free) json_t *vectors = json_array();
    char path[160] = "";
    size_t i;

    if (event->type != ENGINE_EVENT_OUTPUT)
        fail_msg("%s, request %d: %s", name, (int)id, event->text);
    if (json_is_object(got)) {
        json_array_foreach(json_object_get(got, "data"), i, item)(void)
            json_array_append(vectors, json_object_get(item, "embedding"));
        got = vectors;
    }
    if (!same(got, want, path, sizeof(path)))
        fail_msg("%s, request %d differs at %s", name, (int)id, path);
}

static void open_kind(struct drive *drive, const char *name, uint32_t thread_count,
                      uint32_t batch_token_max)
{
    OWNED(mem_free) char *dir = xasprintf("%s/%s", KINDS, name);
    const struct engine_load load = {
        .dir = dir, .thread_count = thread_count, .batch_token_max = batch_token_max};
    struct err err = {0};

    if (drive_load(drive, &encoder_api, &load, &err) < 0)
        fail_msg("%s: %s", name, err.text);
}

static json_t *read_golden(const char *name)
{
    OWNED(mem_free) char *dir = xasprintf("%s/%s", KINDS, name);
    json_t *golden = NULL;
    struct err err;

    assert_int_equal(encoder_json_read(dir, "golden.json", 1u << 20, &golden, &err), 0);
    assert_true(json_array_size(golden) > 0);
    return golden;
}

static void check_kind(const char *name, uint32_t thread_count, uint32_t batch_token_max)
{
    OWNED(drive_done) struct drive drive = {0};
    OWNED(encoder_json_free) json_t *golden = read_golden(name);
    const json_t *one;
    size_t i;

    open_kind(&drive, name, thread_count, batch_token_max);
    json_array_foreach(golden, i, one)
    {
        submit(&drive, i + 1, one);
        (void)drive_run(&drive, 1);
        check(&drive, i + 1, name, one);
        drive_clear(&drive);
    }
    json_array_foreach(golden, i, one) submit(&drive, i + 1, one);
    (void)drive_run(&drive, 1);
    json_array_foreach(golden, i, one) check(&drive, i + 1, name, one);
}

static void test_answers_equal_the_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        check_kind(kinds[i].name, 1, 0);
        check_kind(kinds[i].name, 3, LENGTH);
    }
}

static void test_probe_names_them(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        OWNED(mem_free) char *dir = xasprintf("%s/%s", KINDS, kinds[i].name);
        struct engine_probe probe;
        struct err err;

        assert_int_equal(encoder_api.probe(dir, &probe, &err), 0);
        if (probe.score == 0 || strcmp(probe.task, kinds[i].task) != 0)
            fail_msg("%s: %u, %s, %s", kinds[i].name, probe.score, probe.task, probe.text);
        assert_string_equal(probe.text, kinds[i].text);
    }
}

/* A request without a route is answered as the model's own route. */
static void test_predict_means_the_models_route(void **state)
{
    static const struct {
        const char *name, *input;
    } rows[] = {
        {"bert-rerank", "{\"query\":\"water\",\"texts\":[\"wheel\"]}"},
        {"bert-classify", "{\"inputs\":\"water\"}"},
        {"bert-tokens", "{\"inputs\":\"water\"}"},
        {"bert-embed", "{\"input\":\"water\"}"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(drive_done) struct drive drive = {0};

        open_kind(&drive, rows[i].name, 1, 0);
        drive_submit(&drive, 1, rows[i].input);
        (void)drive_run(&drive, 1);
        assert_int_equal(drive_final(&drive, 1)->type, ENGINE_EVENT_OUTPUT);
    }
}

static void test_requests_that_are_refused(void **state)
{
    static const struct {
        const char *name, *route, *body, *text;
    } rows[] = {
        {"bert-embed", "/rerank", "{\"query\":\"a\",\"texts\":[\"b\"]}",
         "there is no route 'POST /rerank' of this model; there is POST /v1/embeddings"},
        {"bert-classify", "/rerank", "{\"query\":\"a\",\"texts\":[\"b\"]}",
         "there is no route 'POST /rerank' of this model; there is POST /predict"},
        {"bert-rerank", "/predict_tokens", "{\"inputs\":\"a\"}",
         "there is POST /rerank and POST /predict"},
        {"bert-tokens", "/v1/embeddings", "{\"input\":\"a\"}", "there is POST /predict_tokens"},
        {"bert-tokens", "/chat", "{\"input\":\"a\"}", "there is no route 'POST /chat'"},
        {"bert-classify", "/predict", "{\"input\":\"a\"}", "inputs is missing"},
        {"bert-classify", "/predict",
         "{\"inputs\":[[\"a\"],[\"a a a a a a a a a a a a\",\"b b b b b b b b b b b b\"]]}",
         "input[1] has more tokens than the model's limit of 24, and truncate is false"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(drive_done) struct drive drive = {0};
        OWNED(mem_free) char *route = xasprintf("POST %s", rows[i].route);
        const struct engine_req req = {
            .id = 1, .input = rows[i].body, .input_size = strlen(rows[i].body), .route = route};
        struct err err;

        open_kind(&drive, rows[i].name, 1, 0);
        assert_int_equal(encoder_api.submit(drive.engine, &req, 1, &err), 0);
        assert_int_equal(drive_final(&drive, 1)->error, ENGINE_ERROR_BAD_INPUT);
        if (strstr(drive_final(&drive, 1)->text, rows[i].text) == NULL)
            fail_msg("row %zu: %s", i, drive_final(&drive, 1)->text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers_equal_the_reference),
        cmocka_unit_test(test_probe_names_them),
        cmocka_unit_test(test_predict_means_the_models_route),
        cmocka_unit_test(test_requests_that_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
