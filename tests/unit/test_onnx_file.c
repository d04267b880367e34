/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: what a file declares is read without ONNX Runtime, and no cut or flipped byte of it leads
 * outside of its bytes. Method: the models of tests/data/onnx, whole, at every length, and with
 * every byte changed; address sanitizer is the judge.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "workers/engines/onnx/onnx_file.h"

#define DATA "tests/data/onnx/"

static void test_declared(void **state)
{
    OWNED(mem_free) struct onnx_model *model = NULL;
    struct err err = {0};

    (void)state;
    if (onnx_file_read(DATA "add", "model.onnx", &model, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(model->ir_version, 8);
    assert_int_equal(model->opset, 13);
    assert_string_equal(model->producer, "headrace");
    assert_int_equal(model->input_count, 2);
    assert_int_equal(model->output_count, 2);
    assert_int_equal(model->node_count, 2);
    assert_string_equal(model->inputs[1].name, "b");
    assert_int_equal(model->inputs[1].type, ONNX_FLOAT32);
    assert_string_equal(model->inputs[1].first_symbol, "batch");
    assert_true(model->inputs[1].rank == 2 && model->inputs[1].dims[0] == -1);
    assert_string_equal(model->outputs[1].name, "product");
}

static void test_weights(void **state)
{
    OWNED(mem_free) struct onnx_model *here = NULL;
    OWNED(mem_free) struct onnx_model *outside = NULL;
    struct err err = {0};

    (void)state;
    assert_int_equal(onnx_file_read(DATA "texts", "onnx/model.onnx", &here, &err), 0);
    assert_int_equal(here->weight_size, 8000);
    assert_int_equal(onnx_file_read(DATA "weights", "model.onnx", &outside, &err), 0);
    assert_int_equal(outside->weight_size, 8);
}

static void test_paths(void **state)
{
    static const char *const good[] = {"a", "a/b.bin", "..a/b..", "a..b"};
    static const char *const bad[] = {"", "/a", "..", "a/..", "../a", "a/../b", "a\\b"};
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(good); i++)
        assert_int_equal(onnx_file_path_check("path", good[i], &err), 0);
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_int_equal(onnx_file_path_check("path", bad[i], &err), ERR_RANGE);
}

static uint8_t *read_whole(const char *path, size_t *ret_size)
{
    FILE *file = fopen(path, "rbe");
    uint8_t *bytes = xmalloc(16384);

    assert_non_null(file);
    *ret_size = fread(bytes, 1, 16384, file);
    (void)fclose(file);
    return bytes;
}

/* A copy of its own, so that one byte too far is seen. */
static int parse(const uint8_t *bytes, size_t size, struct onnx_model *model)
{
    OWNED(mem_free) uint8_t *copy = xmemdup(bytes, size > 0 ? size : 1);
    struct err err = {0};
    int r = onnx_file_parse(DATA "weights", copy, size, model, &err);

    if (r < 0)
        assert_true(err.text[0] != '\0' && err_class(r) == ERR_CLASS_REJECT);
    else
        assert_true(model->output_count >= 1 && model->input_count <= ONNX_INPUT_COUNT_MAX);
    return r;
}

static void test_cut_and_changed(void **state)
{
    static const char *const files[] = {DATA "add/model.onnx", DATA "types/types.onnx",
                                        DATA "weights/model.onnx", DATA "lists/model.onnx"};
    OWNED(mem_free) struct onnx_model *model = xcalloc(1, sizeof(*model));

    (void)state;
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        size_t size, good = 0;
        OWNED(mem_free) uint8_t *bytes = read_whole(files[i], &size);

        assert_int_equal(parse(bytes, size, model), 0);
        for (size_t cut = 0; cut < size; cut++)
            good += parse(bytes, cut, model) == 0;
        assert_true(good <= 1); /* without its last field, the opset, it is a file too */
        for (size_t at = 0; at < size; at++) {
            for (unsigned bit = 0; bit < 8; bit++) {
                bytes[at] ^= (uint8_t)(1u << bit);
                (void)parse(bytes, size, model);
                bytes[at] ^= (uint8_t)(1u << bit);
            }
        }
    }
}

/* Graphs in attributes of nodes in graphs: a stack is not to be had for a kilobyte of input. */
static void test_nested_graphs(void **state)
{
    OWNED(mem_free) struct onnx_model *model = xcalloc(1, sizeof(*model));
    uint8_t bytes[4096], *at = bytes + sizeof(bytes);
    static const uint8_t tags[] = {5 << 3 | 2, 1 << 3 | 2, 6 << 3 | 2}; /* attribute, node, graph */
    struct err err = {0};

    (void)state;
    for (int i = 0; i < 300; i++) {
        size_t size = (size_t)(bytes + sizeof(bytes) - at);

        at -= 3;
        at[0] = i == 299 ? 7 << 3 | 2 : tags[i % 3];
        at[1] = (uint8_t)((size & 0x7f) | 0x80);
        at[2] = (uint8_t)(size >> 7);
    }
    *--at = 8; /* ir_version 8 */
    *--at = 1 << 3;
    assert_int_equal(onnx_file_parse(DATA, at, (size_t)(bytes + sizeof(bytes) - at), model, &err),
                     ERR_TOO_BIG);
    assert_non_null(strstr(err.text, "nested deeper"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_declared),      cmocka_unit_test(test_weights),
        cmocka_unit_test(test_paths),         cmocka_unit_test(test_cut_and_changed),
        cmocka_unit_test(test_nested_graphs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
