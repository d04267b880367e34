/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: the engine keeps the contract of engine.h with ONNX Runtime behind it: one final event a
 * request, answers that do not depend on who shares the run, failures of a load by name.
 * Method: small models whose answers a person can work out, driven as host-c drives an engine.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "tests/unit/onnx_world.h"

static void submit_how(struct drive *drive, const char *input, struct engine_req req,
                       uint64_t now_us)
{
    struct err err;

    req.input = input;
    req.input_size = strlen(input);
    assert_int_equal(drive->api->submit(drive->engine, &req, now_us, &err), 0);
}

/* ---- answers ---- */

static void test_answers_one_by_one(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    json_t *output;

    (void)state;
    onnx_load_model(&drive, "add", NULL);
    assert_string_equal(drive.info.task, "tensor");
    assert_true(drive.progress_done == drive.progress_total);
    drive_submit(&drive, 1, "{\"inputs\":{\"a\":[[1,2.5]],\"b\":[[10,-1]]}}");
    (void)drive_run(&drive, 2);
    onnx_expect(&drive, 1, "sum", "[[11,1.5]]");
    onnx_expect(&drive, 1, "product", "[[10,-2.5]]");
    output = json_object_get(json_object_get(drive_final(&drive, 1)->output, "outputs"), "sum");
    assert_string_equal(json_string_value(json_object_get(output, "dtype")), "float32");
    assert_int_equal(json_integer_value(json_array_get(json_object_get(output, "shape"), 1)), 2);
}

static void test_all_types_there_and_back(void **state)
{
    static const struct {
        const char *name, *data;
    } rows[] = {
        {"f32", "[[0.1,-3e38]]"},
        {"f64", "[[0.1,-1e300]]"},
        {"f16", "[[0.5,-65504.0]]"},
        {"bool", "[[true,false]]"},
        {"i8", "[[127,-128]]"},
        {"i16", "[[32767,-32768]]"},
        {"i32", "[[2147483647,-2147483648]]"},
        {"i64", "[[9223372036854775807,-9223372036854775808]]"},
        {"u8", "[[255,0]]"},
        {"u16", "[[65535,0]]"},
        {"u32", "[[4294967295,0]]"},
        {"u64", "[[1,0]]"},
    };
    OWNED(drive_done) struct drive drive = {0};
    struct buf input = BUF_WITH_LIMIT(4096);

    (void)state;
    onnx_load_model(&drive, "types", NULL);
    for (int base64 = 0; base64 < 2; base64++) {
        buf_clear(&input);
        buf_printf(&input, "{\"encoding\":\"%s\",\"inputs\":{", base64 ? "base64" : "list");
        for (size_t i = 0; i < COUNT_OF(rows); i++)
            buf_printf(&input, "%s\"%s\":%s", i > 0 ? "," : "", rows[i].name, rows[i].data);
        buf_append_text(&input, "}}");
        drive_submit(&drive, 1 + (uint64_t)base64, buf_text(&input));
        (void)drive_run(&drive, 2);
    }
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(mem_free) char *name = xasprintf("%s_out", rows[i].name);
        char *got = onnx_data(&drive, 1, name);
        json_t *a = json_loads(got, 0, NULL), *b = json_loads(rows[i].data, 0, NULL);

        for (size_t at = 0; at < 2; at++) {
            json_t *x = json_array_get(json_array_get(a, 0), at);
            json_t *y = json_array_get(json_array_get(b, 0), at);

            if (json_is_number(y) ? fabs(json_number_value(x) - json_number_value(y)) >
                                        1e-7 * fabs(json_number_value(y))
                                  : !json_equal(x, y))
                fail_msg("%s: %s, not %s", name, got, rows[i].data);
        }
        json_decref(a);
        json_decref(b);
        free(got);
    }
    onnx_expect(&drive, 2, "u32_out", "\"/////wAAAAA=\"");
    onnx_expect(&drive, 2, "bool_out", "\"AQA=\"");
    onnx_expect(&drive, 2, "f16_out", "\"ADj/+w==\"");
    buf_done(&input);
}

/* ---- joining ---- */

static void test_requests_are_joined(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    struct engine_stats stats;

    (void)state;
    onnx_load_model(&drive, "add", NULL);
    drive_submit(&drive, 1, "{\"inputs\":{\"a\":[[1,1]],\"b\":[[2,2]]}}");
    drive_submit(&drive, 2, "{\"inputs\":{\"a\":[[1,1,1]],\"b\":[[4,4,4]]}}");
    drive_submit(&drive, 3,
                 "{\"inputs\":{\"a\":[[3,3],[4,4]],\"b\":[[1,2],[3,4]]},\"outputs\":[\"sum\"]}");
    drive_submit(&drive, 4, "{\"inputs\":{\"a\":[[7,7]],\"b\":[[2,2]]},\"outputs\":[\"product\"]}");
    assert_int_equal(drive_run(&drive, 2), 2);
    onnx_expect(&drive, 1, "sum", "[[3,3]]");
    onnx_expect(&drive, 1, "product", "[[2,2]]");
    onnx_expect(&drive, 3, "sum", "[[4,5],[7,8]]");
    onnx_expect(&drive, 4, "product", "[[14,14]]");
    onnx_expect(&drive, 2, "sum", "[[5,5,5]]");
    assert_int_equal(drive_final(&drive, 1)->batch_req_count, 3);
    assert_int_equal(drive_final(&drive, 2)->batch_req_count, 1);
    assert_null(
        json_object_get(json_object_get(drive_final(&drive, 3)->output, "outputs"), "product"));
    drive.api->stats(drive.engine, &stats);
    assert_int_equal(stats.step_count, 2);
    assert_int_equal(stats.step_token_count, 5); /* rows */
}

static void test_rows_of_one_request_agree(void **state)
{
    OWNED(drive_done) struct drive drive = {0};

    (void)state;
    onnx_load_model(&drive, "add", NULL);
    drive_submit(&drive, 1, "{\"inputs\":{\"a\":[[1,1]],\"b\":[[1,1],[2,2]]}}");
    assert_int_equal(drive_final(&drive, 1)->error, ENGINE_ERROR_BAD_INPUT);
    assert_non_null(strstr(drive_final(&drive, 1)->text, "inputs.b has 2 rows, inputs.a has 1"));
}

/* A first axis that is no batch is only joined by order, and then the answer is another one. */
static void test_a_length_is_no_batch(void **state)
{
    static const char first[] = "{\"inputs\":{\"x\":[1,2]}}", second[] = "{\"inputs\":{\"x\":[5]}}";
    OWNED(drive_done) struct drive apart = {0};
    OWNED(drive_done) struct drive joined = {0};

    (void)state;
    onnx_load_model(&apart, "running_sum", NULL);
    drive_submit(&apart, 1, first);
    drive_submit(&apart, 2, second);
    assert_int_equal(drive_run(&apart, 2), 2);
    onnx_expect(&apart, 1, "y", "[1,3]");
    onnx_expect(&apart, 2, "y", "[5]");

    onnx_load_model(&joined, "running_sum", "{\"join\":\"on\"}");
    drive_submit(&joined, 1, first);
    drive_submit(&joined, 2, second);
    assert_int_equal(drive_run(&joined, 2), 1);
    onnx_expect(&joined, 2, "y", "[8]");
}

static void test_a_model_that_does_not_keep_its_batch(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    OWNED(drive_done) struct drive apart = {0};

    (void)state;
    onnx_load_model(&drive, "liar", NULL);
    drive_submit(&drive, 1, "{\"inputs\":{\"x\":[[3]]}}");
    drive_submit(&drive, 2, "{\"inputs\":{\"x\":[[4]]}}");
    (void)drive_run(&drive, 2);
    assert_int_equal(drive_final(&drive, 1)->error, ENGINE_ERROR_MODEL_ERROR);
    assert_non_null(strstr(drive_final(&drive, 2)->text, "\"join\": \"off\""));

    onnx_load_model(&apart, "liar", "{\"join\":\"off\"}");
    drive_submit(&apart, 1, "{\"inputs\":{\"x\":[[3]]}}");
    drive_submit(&apart, 2, "{\"inputs\":{\"x\":[[4]]}}");
    assert_int_equal(drive_run(&apart, 2), 2);
    onnx_expect(&apart, 1, "y", "[[3]]");
    onnx_expect(&apart, 2, "y", "[[4]]");
}

static void test_company_is_waited_for(void **state)
{
    static const char input[] = "{\"inputs\":{\"a\":[[1,1]],\"b\":[[2,2]]}}";
    OWNED(drive_done) struct drive drive = {0};
    uint64_t wake_us = 0;
    struct err err;

    (void)state;
    onnx_load_model(&drive, "add", "{\"batching\":{\"max_items\":2,\"max_wait_ms\":1}}");
    submit_how(&drive, input, (struct engine_req){.id = 1}, 5000);
    assert_int_equal(drive.api->step(drive.engine, 5000, &wake_us, &err), 0);
    assert_int_equal(wake_us, 6000);
    submit_how(&drive, input, (struct engine_req){.id = 2}, 5500);
    (void)drive_run(&drive, 5500);
    assert_int_equal(drive_final(&drive, 1)->batch_req_count, 2);
}

/* ---- failures of requests ---- */

static void test_failures(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    OWNED(drive_done) struct drive other = {0};

    (void)state;
    onnx_load_model(&drive, "strict", NULL);
    drive_submit(&drive, 1, "{\"inputs\":{\"x\":[1,2,3]}}");
    drive_submit(&drive, 2, "{\"inputs\":{\"x\":[1,2,3,4,5,6]}}");
    (void)drive_run(&drive, 2);
    assert_int_equal(drive_final(&drive, 1)->error, ENGINE_ERROR_MODEL_ERROR);
    assert_non_null(strstr(drive_final(&drive, 1)->text, "the model failed"));
    onnx_expect(&drive, 2, "y", "[[1,2,3],[4,5,6]]");

    onnx_load_model(&other, "root", NULL);
    drive_submit(&other, 1, "{\"inputs\":{\"x\":[4,-1]}}");
    drive_submit(&other, 2, "{\"inputs\":{\"x\":[-1]},\"encoding\":\"base64\"}");
    (void)drive_run(&other, 2);
    assert_int_equal(drive_final(&other, 1)->error, ENGINE_ERROR_MODEL_ERROR);
    assert_non_null(strstr(drive_final(&other, 1)->text, "element 1"));
    assert_int_equal(drive_final(&other, 2)->type, ENGINE_EVENT_OUTPUT);
}

static void test_cancel_expire_alone_full(void **state)
{
    static const char input[] = "{\"inputs\":{\"x\":[4]}}";
    OWNED(drive_done) struct drive drive = {0};
    const struct engine_load wish = {.dir = ONNX_DATA "root", .req_count_max = 4};
    struct engine_req more = {.id = 5, .input = input, .input_size = sizeof(input) - 1};
    struct err err = {0};

    (void)state;
    assert_int_equal(drive_load(&drive, &onnx_api, &wish, &err), 0);
    submit_how(&drive, input, (struct engine_req){.id = 1}, 1);
    submit_how(&drive, input, (struct engine_req){.id = 2, .deadline_us = 50}, 1);
    submit_how(&drive, input, (struct engine_req){.id = 3, .alone = true}, 1);
    submit_how(&drive, input, (struct engine_req){.id = 4}, 1);
    assert_int_equal(drive.api->submit(drive.engine, &more, 1, &err), ERR_FULL);
    assert_int_equal(drive.api->cancel(drive.engine, 4, &err), 0);
    assert_int_equal(drive.api->cancel(drive.engine, 77, &err), 0);
    more.route = "GET /health";
    assert_int_equal(drive.api->submit(drive.engine, &more, 1, &err), 0);
    assert_int_equal(drive_run(&drive, 51), 2);
    assert_int_equal(drive_final(&drive, 1)->batch_req_count, 1);
    assert_int_equal(drive_final(&drive, 2)->error, ENGINE_ERROR_EXPIRED);
    assert_int_equal(drive_final(&drive, 3)->type, ENGINE_EVENT_OUTPUT);
    assert_int_equal(drive_final(&drive, 4)->error, ENGINE_ERROR_CANCELED);
    assert_int_equal(drive_final(&drive, 5)->error, ENGINE_ERROR_BAD_INPUT);
}

/* ---- texts ---- */

/* Vectors of the tiny graph are (mean of the ids, 1): padding that counted would show. */
static void test_texts(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    static const char *const inputs[] = {
        "{\"input\":\"the\"}",
        "{\"input\":[\"the the the the the the the the the the the the the the the the\"]}",
        "{\"input\":\"the the\"}",
    };
    double means[COUNT_OF(inputs)];

    (void)state;
    onnx_load_model(&drive, "texts", NULL);
    assert_string_equal(drive.info.task, "embed");
    for (uint64_t i = 0; i < COUNT_OF(inputs); i++) {
        drive_submit(&drive, 1, inputs[i]);
        (void)drive_run(&drive, 2);
        means[i] = json_number_value(json_array_get(
            json_object_get(
                json_array_get(json_object_get(drive_final(&drive, 1)->output, "data"), 0),
                "embedding"),
            0));
        drive_clear(&drive);
    }
    assert_true(means[0] > 0 && means[1] != means[0]);
    for (uint64_t i = 0; i < COUNT_OF(inputs); i++)
        drive_submit(&drive, 10 + i, inputs[i]);
    assert_int_equal(drive_run(&drive, 2), 1);
    for (uint64_t i = 0; i < COUNT_OF(inputs); i++) {
        const json_t *row = json_array_get(
            json_object_get(drive_final(&drive, 10 + i)->output, "data"), 0);
        const json_t *vector = json_object_get(row, "embedding");

        assert_true(json_number_value(json_array_get(vector, 0)) == means[i]);
        assert_true(json_number_value(json_array_get(vector, 1)) == 1);
    }
}

static void test_texts_as_tensors(void **state)
{
    OWNED(drive_done) struct drive drive = {0};

    (void)state;
    onnx_load_model(&drive, "texts", "{\"task\":\"tensor\"}");
    assert_string_equal(drive.info.task, "tensor");
    drive_submit(&drive, 1, "{\"inputs\":{\"input_ids\":[[7]],\"attention_mask\":[[1]]}}");
    (void)drive_run(&drive, 2);
    onnx_expect(&drive, 1, "last_hidden_state", "[[[7,1]]]");
}

static void test_external_weights(void **state)
{
    OWNED(drive_done) struct drive drive = {0};

    (void)state;
    onnx_load_model(&drive, "weights", NULL);
    drive_submit(&drive, 1, "{\"inputs\":{\"x\":[[1,2]]}}");
    (void)drive_run(&drive, 2);
    onnx_expect(&drive, 1, "y", "[[10,200]]");
}

/* ---- loads that fail ---- */

static void test_loads_that_are_refused(void **state)
{
    static const struct {
        const char *model, *settings;
        int code;
        const char *want;
    } rows[] = {
        {"hostile", NULL, ERR_UNSUPPORTED, "none is model.onnx"},
        {"hostile", "{\"file\":\"climbs.onnx\"}", ERR_RANGE, "'../weights/w.bin' is no path below"},
        {"hostile", "{\"file\":\"absolute.onnx\"}", ERR_RANGE, "/etc/passwd"},
        {"hostile", "{\"file\":\"absent.onnx\"}", ERR_NOT_FOUND, "nowhere.bin"},
        {"hostile", "{\"file\":\"beyond.onnx\"}", ERR_RANGE, "8 bytes at 4"},
        {"hostile", "{\"file\":\"huge_shape.onnx\"}", ERR_RANGE, "'w' has a shape of more than"},
        {"hostile", "{\"file\":\"short_raw.onnx\"}", ERR_MISMATCH, "'w' has 4 bytes"},
        {"hostile", "{\"file\":\"many_axes.onnx\"}", ERR_RANGE, "more than 8 axes"},
        {"hostile", "{\"file\":\"unknown_op.onnx\"}", ERR_UNSUPPORTED, "Nonsense"},
        {"hostile", "{\"file\":\"cut.onnx\"}", ERR_MALFORMED, "cut off or malformed at byte"},
        {"hostile", "{\"file\":\"text.onnx\"}", ERR_MALFORMED, "text.onnx"},
        {"hostile", "{\"file\":\"empty.onnx\"}", ERR_TOO_BIG, "0 bytes, allowed are 1 to"},
        {"hostile", "{\"file\":\"strings.onnx\"}", ERR_UNSUPPORTED, "string"},
        {"hostile", "{\"file\":\"gone.onnx\"}", ERR_NOT_FOUND, "gone.onnx"},
        {"hostile", "{\"file\":\"../add/model.onnx\"}", ERR_RANGE, "setting 'file'"},
        {"hostile", "{\"file\":7}", ERR_MALFORMED, "'file'"},
        {"add", "{\"colour\":1}", ERR_USAGE, "'colour' is unknown"},
        {"add", "{\"task\":\"speak\"}", ERR_USAGE, "allowed are auto, tensor and embed"},
        {"add", "{\"task\":\"embed\"}", ERR_UNSUPPORTED, "the model wants 'a'"},
        {"add", "{\"join\":\"maybe\"}", ERR_USAGE, "'join'"},
        {"fixed", "{\"join\":\"on\"}", ERR_UNSUPPORTED, "'x' of [1,3] has no free first axis"},
        {"add", "{\"threads\":65}", ERR_RANGE, "1 to 64"},
        {"add", "{\"outputs\":[\"none\"]}", ERR_MISMATCH, "'none'"},
        {"add", "{\"outputs\":[]}", ERR_USAGE, "'outputs'"},
        {"add", "{\"batching\":{\"max_items\":4096}}", ERR_RANGE, "1 to 2048"},
        {"lists", NULL, ERR_UNSUPPORTED, "output 'parts' is no tensor"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(drive_done) struct drive drive = {0};
        struct err err = {0};
        int r = onnx_try(&drive, rows[i].model, rows[i].settings, &err);

        if (r != rows[i].code || strstr(err.text, rows[i].want) == NULL)
            fail_msg("row %zu: %s (%s)", i, err_name(r), err.text);
        assert_null(drive.engine);
    }
}

/* No silent fallback: not to the CPU, and not to another library than the one that was named. */
static void test_no_fallback(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    struct engine_load wish = {.dir = ONNX_DATA "add", .device = "cuda"};
    OWNED(mem_free) char *library = xstrdup(getenv("HEADRACE_ONNXRUNTIME"));
    struct err err = {0};

    (void)state;
    assert_int_equal(drive_load(&drive, &onnx_api, &wish, &err), ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "'cuda'"));
    assert_non_null(strstr(err.text, "CPUExecutionProvider"));
    wish.device = "cpu";
    assert_int_equal(setenv("HEADRACE_ONNXRUNTIME", "/nowhere/lib.so", 1), 0);
    assert_int_equal(drive_load(&drive, &onnx_api, &wish, &err), ERR_DEPENDENCY);
    assert_non_null(strstr(err.text, "/nowhere/lib.so"));
    assert_int_equal(setenv("HEADRACE_ONNXRUNTIME", library, 1), 0);
}

static void test_an_output_can_be_left_out(void **state)
{
    OWNED(drive_done) struct drive drive = {0};

    (void)state;
    onnx_load_model(&drive, "lists", "{\"outputs\":[\"minus\"]}");
    drive_submit(&drive, 1, "{\"inputs\":{\"x\":[[1,2]]}}");
    drive_submit(&drive, 2, "{\"inputs\":{\"x\":[[1,2]]},\"outputs\":[\"parts\"]}");
    (void)drive_run(&drive, 2);
    onnx_expect(&drive, 1, "minus", "[[-1,-2]]");
    assert_int_equal(drive_final(&drive, 2)->error, ENGINE_ERROR_BAD_INPUT);
}

static void test_loading_can_be_stopped(void **state)
{
    OWNED(drive_done) struct drive drive = {.stop_loading = true};
    struct err err = {0};

    (void)state;
    assert_int_equal(onnx_try(&drive, "add", NULL, &err), ERR_CANCELED);
}

static void test_probe(void **state)
{
    struct engine_probe probe;
    struct err err;

    (void)state;
    assert_int_equal(onnx_api.probe(ONNX_DATA "types", &probe, &err), 0);
    assert_true(probe.score > 0);
    assert_string_equal(probe.task, "tensor");
    assert_non_null(strstr(probe.text, "f32 float32 [?,2]"));
    assert_int_equal(onnx_api.probe(ONNX_DATA "texts", &probe, &err), 0);
    assert_string_equal(probe.task, "embed");
    assert_int_equal(probe.token_count_max, 64);
    assert_int_equal(onnx_api.probe(ONNX_DATA "hostile", &probe, &err), 0);
    assert_int_equal(probe.score, 0);
    assert_int_equal(onnx_api.probe("/nowhere", &probe, &err), ERR_IO);
}

static void write_positions(const char *dir, const char *config)
{
    OWNED(mem_free) char *path = xasprintf("%s/config.json", dir);
    FILE *file = fopen(path, "we");

    assert_non_null(file);
    assert_true(fputs(config, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

/* RoBERTa's first positions are its padding's: a longer text would leave the table. */
static void test_positions_of_padding_are_no_tokens(void **state)
{
    static const struct {
        const char *config;
        uint32_t token_count_max; /* 0: refused */
    } rows[] = {
        {"{\"model_type\":\"bert\",\"max_position_embeddings\":34}", 34},
        {"{\"model_type\":\"roberta\",\"max_position_embeddings\":34}", 32},
        {"{\"model_type\":\"xlm-roberta\",\"max_position_embeddings\":34,\"pad_token_id\":0}", 33},
        {"{\"model_type\":\"mpnet\",\"max_position_embeddings\":3}", 0},
    };
    static const char *const names[] = {"onnx", "vocab.txt"};
    OWNED(mem_free) char *cwd = getcwd(NULL, 0);
    char dir[] = "/tmp/onnx-XXXXXX";
    OWNED(mem_free) char *config = NULL;

    (void)state;
    assert_non_null(mkdtemp(dir));
    config = xasprintf("%s/config.json", dir);
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        OWNED(mem_free) char *from = xasprintf("%s/%stexts/%s", cwd, ONNX_DATA, names[i]);
        OWNED(mem_free) char *to = xasprintf("%s/%s", dir, names[i]);

        assert_int_equal(symlink(from, to), 0);
    }
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct engine_probe probe;
        struct err err;

        write_positions(dir, rows[i].config);
        assert_int_equal(onnx_api.probe(dir, &probe, &err), 0);
        if (probe.token_count_max != rows[i].token_count_max ||
            (probe.score > 0) != (rows[i].token_count_max > 0))
            fail_msg("row %zu: %u tokens, %s", i, probe.token_count_max, probe.text);
    }
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        OWNED(mem_free) char *to = xasprintf("%s/%s", dir, names[i]);

        assert_int_equal(unlink(to), 0);
    }
    assert_int_equal(unlink(config), 0);
    assert_int_equal(rmdir(dir), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers_one_by_one),
        cmocka_unit_test(test_all_types_there_and_back),
        cmocka_unit_test(test_requests_are_joined),
        cmocka_unit_test(test_rows_of_one_request_agree),
        cmocka_unit_test(test_a_length_is_no_batch),
        cmocka_unit_test(test_a_model_that_does_not_keep_its_batch),
        cmocka_unit_test(test_company_is_waited_for),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_cancel_expire_alone_full),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_texts_as_tensors),
        cmocka_unit_test(test_external_weights),
        cmocka_unit_test(test_loads_that_are_refused),
        cmocka_unit_test(test_no_fallback),
        cmocka_unit_test(test_an_output_can_be_left_out),
        cmocka_unit_test(test_loading_can_be_stopped),
        cmocka_unit_test(test_probe),
        cmocka_unit_test(test_positions_of_padding_are_no_tokens),
    };

    return onnx_world_open() ? cmocka_run_group_tests(tests, NULL, NULL) : 77;
}
