/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: ids of files come back as they went out, and what an upload's fields say is taken or
 * refused by name. Method: rows. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "producers/gateway_file.h"

static void test_ids(void **state)
{
    static const char *const bad[] = {"",
                                      "file-",
                                      "file-12",
                                      "batch_019ab2c47d517c1180005d1f0a6c9e42",
                                      "file-019ab2c47d517c1180005d1f0a6c9e4x",
                                      "file-019ab2c4-7d51-7c11-8000-5d1f0a6c9e42"};
    char text[OPENAI_ID_SIZE];
    struct wire_id id;
    struct err err;

    (void)state;
    assert_int_equal(file_id_parse("file-019ab2c47d517c1180005d1f0a6c9e42", &id, &err), 0);
    openai_id_format(FILE_ID_PREFIX, &id, text);
    assert_string_equal(text, "file-019ab2c47d517c1180005d1f0a6c9e42");
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_int_equal(file_id_parse(bad[i], &id, &err), ERR_NOT_FOUND);
}

static int take(struct file_fields *fields, const char *name, const char *filename,
                const char *value, uint64_t offset, struct err *err)
{
    const struct http_form_piece piece = {.name = name,
                                          .filename = filename,
                                          .offset = offset,
                                          .bytes = value,
                                          .size = strlen(value)};
    bool is_file = false;
    int r = file_fields_take(fields, &piece, &is_file, err);

    assert_int_equal(is_file, strcmp(name, "file") == 0);
    return r;
}

static void test_pieces(void **state)
{
    struct file_fields fields = {0};
    uint64_t expiry_s;
    struct err err;

    (void)state;
    assert_int_equal(take(&fields, "file", "a.jsonl", "", 0, &err), 0);
    assert_int_equal(take(&fields, "file", "a.jsonl", "{}", 0, &err), 0);
    assert_int_equal(take(&fields, "file", "a.jsonl", "{}", 2, &err), 0);
    assert_int_equal(take(&fields, "purpose", NULL, "bat", 0, &err), 0);
    assert_int_equal(take(&fields, "purpose", NULL, "ch", 3, &err), 0);
    assert_int_equal(take(&fields, "other", NULL, "x", 0, &err), 0);
    assert_int_equal(file_fields_check(&fields, &expiry_s, &err), 0);
    assert_string_equal(fields.filename, "a.jsonl");
    assert_int_equal(fields.file_size, 4);
    assert_int_equal(expiry_s, 0);
    assert_int_equal(take(&fields, "file", "b.jsonl", "{}", 0, &err), ERR_MALFORMED);
    assert_int_equal(take(&(struct file_fields){0}, "file", "a\nb", "{}", 0, &err), ERR_MALFORMED);
    assert_int_equal(take(&(struct file_fields){0}, "file", NULL, "{}", 0, &err), ERR_MALFORMED);
}

static void test_checks(void **state)
{
    static const struct {
        const char *purpose, *anchor, *seconds;
        int want;
        uint64_t expiry_s;
    } rows[] = {
        {"batch", "", "", 0, 0},
        {"fine-tune", "created_at", "3600", 0, 3600},
        {"batch", "created_at", "2592000", 0, 2592000},
        {"batch", "created_at", "2592001", ERR_RANGE, 0},
        {"batch", "created_at", "3599", ERR_RANGE, 0},
        {"batch", "created_at", "", ERR_RANGE, 0},
        {"batch", "", "3600", ERR_RANGE, 0},
        {"batch", "created_at", "3600x", ERR_RANGE, 0},
        {"batch", "created_at", "99999999999999", ERR_RANGE, 0},
        {"Batch", "", "", ERR_RANGE, 0},
        {"batch_output", "", "", ERR_RANGE, 0},
    };
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct file_fields fields = {.has_file = true, .has_purpose = true};
        uint64_t expiry_s;

        mem_copy_text(fields.purpose, rows[i].purpose);
        mem_copy_text(fields.anchor, rows[i].anchor);
        mem_copy_text(fields.seconds, rows[i].seconds);
        assert_int_equal(file_fields_check(&fields, &expiry_s, &err), rows[i].want);
        if (rows[i].want == 0)
            assert_int_equal(expiry_s, rows[i].expiry_s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_checks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
