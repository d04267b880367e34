/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: a tensor that is handed out lies inside the file, and a header that lies is refused with a
 * text that names the tensor, the value and the limit.
 * Method: one row a lie; headers in the text, data of a given size behind them.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "workers/engines/encoder/safetensors.h"

#define TINY "tests/data/encoder/tiny/model.safetensors"

static void make_file(struct buf *file, const char *header, size_t header_size, size_t data_size)
{
    for (unsigned i = 0; i < 8; i++)
        buf_append_byte(file, (uint8_t)((uint64_t)header_size >> (8 * i)));
    buf_append_text(file, header);
    for (size_t i = 0; i < data_size; i++)
        buf_append_byte(file, (uint8_t)i);
}

#define A4 "\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}"

static const struct {
    const char *what;
    const char *header;
    size_t data_size;
    int code;
    const char *text; /* must be in the error's */
} rows[] = {
    {"one matrix", "{" A4 "}", 16, 0, NULL},
    {"metadata is no tensor", "{\"__metadata__\":{\"format\":\"pt\"}," A4 "}", 16, 0, NULL},
    {"padded with spaces", "{" A4 "}     ", 16, 0, NULL},
    {"nothing in it", "{}", 0, 0, NULL},
    {"a scalar", "{\"s\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, 0, NULL},
    {"an empty tensor", "{\"e\":{\"dtype\":\"F16\",\"shape\":[0,7],\"data_offsets\":[0,0]}}", 0, 0,
     NULL},
    {"no object", "[1]", 0, ERR_MALFORMED, "does not begin with '{'"},
    {"no JSON", "{\"a\":", 0, ERR_MALFORMED, "not JSON at byte"},
    {"a name twice", "{" A4 "," A4 "}", 16, ERR_MALFORMED, "duplicate"},
    {"entry is no object", "{\"a\":5}", 0, ERR_MALFORMED, "tensor 'a': its entry is not an object"},
    {"unknown dtype", "{\"a\":{\"dtype\":\"Q4\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     ERR_MALFORMED, "tensor 'a': dtype 'Q4'"},
    {"no shape", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, ERR_MALFORMED,
     "shape is not an array"},
    {"negative size", "{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4,
     ERR_MALFORMED, "shape[0] is not a size"},
    {"fractional size", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", 4,
     ERR_MALFORMED, "shape[0] is not a size"},
    {"too many dimensions",
     "{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
     ERR_RANGE, "shape has 9 dimensions, limit 8"},
    {"more than 2^64 elements",
     "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,2],\"data_offsets\":[0,4]}}", 4,
     ERR_RANGE, "more elements than 2^64"},
    {"more than 2^64 bytes",
     "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0,
     ERR_MISMATCH, "data_offsets hold 0 bytes"},
    {"a size past 2^63",
     "{\"a\":{\"dtype\":\"F32\",\"shape\":[9223372036854775808],"
     "\"data_offsets\":[0,4]}}",
     4, ERR_MALFORMED, "not JSON"},
    {"end past the file", "{\"a\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[0,32]}}", 16,
     ERR_RANGE, "[0, 32] leave the file's 16 bytes"},
    {"begin past end", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,4]}}", 16,
     ERR_RANGE, "[8, 4] leave"},
    {"negative offset", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 16,
     ERR_MALFORMED, "not a pair of offsets"},
    {"three offsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 16,
     ERR_MALFORMED, "not a pair of offsets"},
    {"shape and bytes differ", "{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,16]}}",
     16, ERR_MISMATCH, "hold 16 bytes, shape and dtype want 3 elements of 4 bytes"},
    {"overlap",
     "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
     "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
     12, ERR_MISMATCH, "tensor 'b': its data overlaps that of tensor 'a'"},
    {"one range, two names",
     "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
     "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
     4, ERR_MISMATCH, "overlaps"},
    {"a hole",
     "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
     "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}",
     12, ERR_MISMATCH, "tensor 'b': 4 bytes before it belong to none"},
    {"a tail", "{" A4 "}", 20, ERR_MISMATCH, "4 bytes at the end of the file"},
};

static void test_headers(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(buf_done) struct buf bytes = BUF_WITH_LIMIT(65536);
        OWNED(safetensors_close) struct safetensors *file = NULL;
        struct err err = {0};
        int r;

        make_file(&bytes, rows[i].header, strlen(rows[i].header), rows[i].data_size);
        r = safetensors_parse(bytes.bytes, bytes.size, &file, &err);
        if (r != rows[i].code || (r < 0 && strstr(err.text, rows[i].text) == NULL))
            fail_msg("%s: %s (%s), want %s", rows[i].what, err_name(r), err.text,
                     err_name(rows[i].code));
    }
}

static void test_header_lengths(void **state)
{
    OWNED(buf_done) struct buf cut = BUF_WITH_LIMIT(64);
    OWNED(buf_done) struct buf huge = BUF_WITH_LIMIT(64);
    OWNED(safetensors_close) struct safetensors *file = NULL;
    struct err err;

    (void)state;
    assert_int_equal(safetensors_parse((const uint8_t *)"1234567", 7, &file, &err), ERR_MALFORMED);
    assert_string_equal(err.text, "file has 7 bytes, a header length alone has 8");
    make_file(&cut, "{}", 3, 0);
    assert_int_equal(safetensors_parse(cut.bytes, cut.size, &file, &err), ERR_MALFORMED);
    assert_string_equal(err.text, "header length is 3 bytes, the file ends after 2");
    make_file(&huge, "{}", (size_t)1 << 62, 0);
    assert_int_equal(safetensors_parse(huge.bytes, huge.size, &file, &err), ERR_TOO_BIG);
    assert_string_equal(err.text, "header length is 4611686018427387904 bytes, limit 16777216");
}

static void test_long_names_are_refused(void **state)
{
    OWNED(buf_done) struct buf header = BUF_WITH_LIMIT(65536);
    OWNED(buf_done) struct buf bytes = BUF_WITH_LIMIT(65536);
    OWNED(safetensors_close) struct safetensors *file = NULL;
    struct err err;

    (void)state;
    buf_append_text(&header, "{\"");
    for (unsigned i = 0; i <= SAFETENSORS_NAME_SIZE_MAX; i++)
        buf_append_byte(&header, 'n');
    buf_append_text(&header, "\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}");
    make_file(&bytes, buf_text(&header), header.size, 4);
    assert_int_equal(safetensors_parse(bytes.bytes, bytes.size, &file, &err), ERR_RANGE);
    assert_non_null(strstr(err.text, "name has 257 bytes, limit 256"));
}

static float read_one(const struct safetensors_tensor *tensor, uint64_t index)
{
    float value = 0;
    struct err err;

    assert_int_equal(safetensors_read_f32(tensor, index, 1, &value, &err), 0);
    return value;
}

static void test_halves_become_floats(void **state)
{
    /* 1, -2, the largest, the smallest subnormal, infinity; then 1, -2.5 as BF16 */
    static const uint8_t data[] = {0x00, 0x3c, 0x00, 0xc0, 0xff, 0x7b, 0x01,
                                   0x00, 0x00, 0x7c, 0x80, 0x3f, 0x20, 0xc0};
    static const char header[] =
        "{\"half\":{\"dtype\":\"F16\",\"shape\":[5],\"data_offsets\":[0,10]},"
        "\"brain\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[10,14]}}";
    OWNED(buf_done) struct buf bytes = BUF_WITH_LIMIT(65536);
    OWNED(safetensors_close) struct safetensors *file = NULL;
    const struct safetensors_tensor *half, *brain;
    struct err err;

    (void)state;
    make_file(&bytes, header, sizeof(header) - 1, 0);
    buf_append(&bytes, data, sizeof(data));
    assert_int_equal(safetensors_parse(bytes.bytes, bytes.size, &file, &err), 0);
    half = safetensors_find(file, "half");
    brain = safetensors_find(file, "brain");
    assert_true(read_one(half, 0) == 1.0f);
    assert_true(read_one(half, 1) == -2.0f);
    assert_true(read_one(half, 2) == 65504.0f);
    assert_true(read_one(half, 3) == 0x1p-24f);
    assert_true(read_one(half, 4) > 1e38f);
    assert_true(read_one(brain, 0) == 1.0f);
    assert_true(read_one(brain, 1) == -2.5f);
    assert_null(safetensors_find(file, "hal"));
}

static void test_integers_are_listed_and_not_read(void **state)
{
    static const char header[] =
        "{\"ids\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}";
    OWNED(buf_done) struct buf bytes = BUF_WITH_LIMIT(65536);
    OWNED(safetensors_close) struct safetensors *file = NULL;
    float value;
    struct err err;

    (void)state;
    make_file(&bytes, header, sizeof(header) - 1, 8);
    assert_int_equal(safetensors_parse(bytes.bytes, bytes.size, &file, &err), 0);
    assert_int_equal(safetensors_read_f32(safetensors_at(file, 0), 0, 1, &value, &err),
                     ERR_UNSUPPORTED);
}

static void test_a_file_is_mapped(void **state)
{
    OWNED(safetensors_close) struct safetensors *file = NULL;
    const struct safetensors_tensor *words;
    struct err err;

    (void)state;
    assert_int_equal(safetensors_open(TINY, &file, &err), 0);
    words = safetensors_find(file, "embeddings.word_embeddings.weight");
    assert_non_null(words);
    assert_int_equal(words->rank, 2);
    assert_int_equal(words->shape[0], 1000);
    assert_int_equal(words->shape[1], 32);
    assert_int_equal(safetensors_open("tests/data", &file, &err), ERR_MALFORMED);
    assert_int_equal(safetensors_open("tests/data/none", &file, &err), ERR_IO);
    assert_non_null(strstr(err.text, "tests/data/none"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_header_lengths),
        cmocka_unit_test(test_long_names_are_refused),
        cmocka_unit_test(test_halves_become_floats),
        cmocka_unit_test(test_integers_are_listed_and_not_read),
        cmocka_unit_test(test_a_file_is_mapped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
