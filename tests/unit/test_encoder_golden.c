/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: MiniLM gives the reference implementation's tokens and vectors, whatever the text.
 * Method: 200 texts (scripts, emoji, control characters, too long, empty) whose ids and vectors
 * tests/data/encoder/make_reference.py took from transformers in float64. Ids equal exactly;
 * cosine 0.9999 in f32, 0.999 in bf16; in batches of one text and of thousands of tokens, on one
 * thread and on three.
 *
 * The model is not in the tree: HEADRACE_MODEL_MINILM names its directory, or scripts/model has
 * put it into .headrace. Without it the test is skipped, and says so.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <unistd.h>

#include "tests/unit/encoder_drive.h"
#include "workers/engines/encoder/encoder.h"
#include "workers/engines/encoder/encoder_json.h"
#include "workers/engines/encoder/gemm.h"
#include "workers/engines/encoder/wordpiece.h"

#define DATA "tests/data/encoder/minilm"
#define TEXT_COUNT 200u
#define DIMENSION_COUNT 384u
#define TOKEN_COUNT_MAX 256u
#define SKIPPED 77

static struct {
    const char *model_dir;
    json_t *texts;
    uint16_t *tokens;
    uint8_t *truncated;
    float *vectors;
    size_t tokens_size;
} golden;

static const char *find_model(void)
{
    const char *dir = getenv("HEADRACE_MODEL_MINILM");

    if (dir == NULL)
        dir = ".headrace/deps/models/all-MiniLM-L6-v2";
    return access(dir, R_OK | X_OK) == 0 ? dir : NULL;
}

static void *read_data(const char *name, size_t *ret_size)
{
    char *bytes = NULL;
    struct err err;

    assert_int_equal(encoder_json_read_bytes(DATA, name, 1u << 20, &bytes, ret_size, &err), 0);
    return bytes;
}

static int read_golden(void **state)
{
    struct err err;
    size_t size;

    (void)state;
    assert_int_equal(encoder_json_read(DATA, "texts.json", 1u << 20, &golden.texts, &err), 0);
    assert_int_equal(json_array_size(golden.texts), TEXT_COUNT);
    golden.tokens = read_data("tokens.u16", &golden.tokens_size);
    golden.truncated = read_data("truncated.u8", &size);
    assert_int_equal(size, TEXT_COUNT);
    golden.vectors = read_data("vectors.f32", &size);
    assert_int_equal(size, TEXT_COUNT * DIMENSION_COUNT * sizeof(float));
    return 0;
}

static int free_golden(void **state)
{
    (void)state;
    json_decref(golden.texts);
    free(golden.tokens);
    free(golden.truncated);
    free(golden.vectors);
    return 0;
}

static void test_tokens_equal_the_reference(void **state)
{
    OWNED(wordpiece_free) struct wordpiece *pieces = NULL;
    const uint16_t *want = golden.tokens;
    uint32_t wrong_count = 0;
    struct err err;

    (void)state;
    assert_int_equal(wordpiece_open(golden.model_dir, &pieces, &err), 0);
    for (uint32_t i = 0; i < TEXT_COUNT; i++) {
        const json_t *text = json_array_get(golden.texts, i);
        uint32_t ids[TOKEN_COUNT_MAX], count;
        bool truncated, same;

        count = wordpiece_encode(pieces, json_string_value(text), json_string_length(text), ids,
                                 TOKEN_COUNT_MAX, &truncated);
        same = count == want[0] && truncated == golden.truncated[i];
        for (uint32_t j = 0; same && j < count; j++)
            same = ids[j] == want[1 + j];
        if (!same) {
            wrong_count++;
            (void)printf("text %u: %u ids, want %u, truncated %d, want %d: %.60s\n", i, count,
                         want[0], truncated, golden.truncated[i], json_string_value(text));
        }
        want += 1 + want[0];
    }
    assert_ptr_equal(want, golden.tokens + golden.tokens_size / sizeof(uint16_t));
    assert_int_equal(wrong_count, 0);
}

static double cosine(const json_t *got, const float *want)
{
    double dot = 0, got_square = 0, want_square = 0;

    assert_int_equal(json_array_size(got), DIMENSION_COUNT);
    for (uint32_t i = 0; i < DIMENSION_COUNT; i++) {
        double g = json_number_value(json_array_get(got, i)), w = (double)want[i];

        dot += g * w;
        got_square += g * g;
        want_square += w * w;
    }
    assert_true(fabs(sqrt(got_square) - 1) < 1e-4);
    return dot / sqrt(got_square * want_square);
}

static void check_answer(const json_t *output, uint32_t first, uint32_t count, double *min,
                         double *sum)
{
    const json_t *data = json_object_get(output, "data");

    assert_int_equal(json_array_size(data), count);
    for (uint32_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(data, i);
        double c = cosine(json_object_get(item, "embedding"),
                          golden.vectors + (size_t)(first + i) * DIMENSION_COUNT);

        assert_int_equal(json_integer_value(json_object_get(item, "index")), i);
        assert_int_equal(json_is_true(json_array_get(json_object_get(output, "truncated"), i)),
                         golden.truncated[first + i]);
        *sum += c;
        if (c < *min)
            *min = c;
    }
}

static void compare_vectors(const struct engine_load *load, uint32_t texts_per_req, double limit)
{
    struct drive drive = {0};
    double min = 1, sum = 0;
    struct err err = {0};
    int r;

    r = drive_load(&drive, &encoder_api, load, &err);
    if (r < 0)
        fail_msg("load: %s", err.text);
    for (uint32_t first = 0; first < TEXT_COUNT; first += texts_per_req) {
        OWNED(encoder_json_free) json_t *texts = json_array();
        OWNED(encoder_json_free) json_t *body = json_object();
        OWNED(mem_free) char *input = NULL;

        for (uint32_t i = 0; i < texts_per_req; i++)
            (void)json_array_append(texts, json_array_get(golden.texts, first + i));
        (void)json_object_set(body, "input", texts);
        input = json_dumps(body, 0);
        drive_submit(&drive, first + 1, input);
        (void)drive_run(&drive, 1);
        assert_int_equal(drive_final(&drive, first + 1)->type, ENGINE_EVENT_OUTPUT);
        check_answer(drive_final(&drive, first + 1)->output, first, texts_per_req, &min, &sum);
        drive_clear(&drive);
    }
    (void)printf("%u texts a request, %s: cosine min %.8f mean %.8f\n", texts_per_req,
                 drive.info.detail, min, sum / TEXT_COUNT);
    drive_done(&drive);
    assert_true(min >= limit);
}

static void test_f32_vectors_one_by_one(void **state)
{
    (void)state;
    compare_vectors(&(struct engine_load){.dir = golden.model_dir, .thread_count = 1}, 1, 0.9999);
}

static void test_f32_vectors_in_batches(void **state)
{
    (void)state;
    compare_vectors(&(struct engine_load){.dir = golden.model_dir, .thread_count = 3}, TEXT_COUNT,
                    0.9999);
}

static void test_bf16_vectors(void **state)
{
    (void)state;
    if (!gemm_has_bf16()) {
        (void)printf("SKIPPED: this CPU has no bf16 products (oneDNN runs %s)\n", gemm_isa_name());
        skip();
    }
    compare_vectors(&(struct engine_load){.dir = golden.model_dir,
                                          .thread_count = 2,
                                          .settings_json = "{\"dtype\":\"bf16\"}"},
                    TEXT_COUNT, 0.999);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens_equal_the_reference),
        cmocka_unit_test(test_f32_vectors_one_by_one),
        cmocka_unit_test(test_f32_vectors_in_batches),
        cmocka_unit_test(test_bf16_vectors),
    };

    golden.model_dir = find_model();
    if (golden.model_dir == NULL) {
        (void)printf(
            "SKIPPED: no MiniLM. Run scripts/model/fetch, or set HEADRACE_MODEL_MINILM.\n");
        return SKIPPED;
    }
    return cmocka_run_group_tests(tests, read_golden, free_golden);
}
