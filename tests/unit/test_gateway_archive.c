/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: an archive that could write outside of its directory, or that lies about itself
 * is refused by name; one that a person would make is taken. Method: archives made here. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <archive.h>
#include <archive_entry.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "producers/gateway_archive.h"

#define BERT "{\"model_type\": \"bert\"}"
#define WEIGHTS "\x02\0\0\0\0\0\0\0{}"
#define SIZE_MAX_HERE 100000

struct entry {
    const char *path, *content; /* content NULL: a directory */
    size_t size;                /* 0: of the text */
    const char *link;
};

static char path[] = "/tmp/test_gateway_archive_XXXXXX";

static int group_setup(void **state)
{
    int fd = mkstemp(path);

    (void)state;
    return fd < 0 ? -1 : close(fd);
}

static int group_teardown(void **state)
{
    (void)state;
    return unlink(path);
}

static void add_entry(struct archive *archive, const struct entry *entry)
{
    struct archive_entry *header = archive_entry_new();
    size_t size = entry->size > 0 || entry->content == NULL ? entry->size : strlen(entry->content);

    archive_entry_set_pathname(header, entry->path);
    archive_entry_set_perm(header, 0644);
    archive_entry_set_filetype(header, entry->content != NULL ? AE_IFREG : AE_IFDIR);
    if (entry->link != NULL) {
        archive_entry_set_filetype(header, AE_IFLNK);
        archive_entry_set_symlink(header, entry->link);
        size = 0;
    }
    archive_entry_set_size(header, (la_int64_t)size);
    assert_int_equal(archive_write_header(archive, header), ARCHIVE_OK);
    if (size > 0)
        assert_int_equal(archive_write_data(archive, entry->content, size), size);
    archive_entry_free(header);
}

static void make(const struct entry *entries, size_t count, bool zstd)
{
    struct archive *archive = archive_write_new();

    assert_int_equal(archive_write_set_format_pax_restricted(archive), ARCHIVE_OK);
    if (zstd)
        assert_int_equal(archive_write_add_filter_zstd(archive), ARCHIVE_OK);
    assert_int_equal(archive_write_open_filename(archive, path), ARCHIVE_OK);
    for (size_t i = 0; i < count && entries[i].path != NULL; i++)
        add_entry(archive, &entries[i]);
    assert_int_equal(archive_write_close(archive), ARCHIVE_OK);
    (void)archive_write_free(archive);
}

static void test_model_directory(void **state)
{
    static const struct entry entries[] = {
        {"./", NULL, 0, NULL},
        {"./config.json", BERT, 0, NULL},
        {"./1_Pooling/", NULL, 0, NULL},
        {"./1_Pooling/config.json", "{}", 0, NULL},
        {"./model.safetensors", WEIGHTS, sizeof(WEIGHTS) - 1, NULL},
        {"./vocab.txt", "[PAD]\n", 0, NULL},
    };
    struct model_facts facts;
    struct model_plan plan;
    struct err err;

    (void)state;
    for (int zstd = 0; zstd < 2; zstd++) {
        make(entries, COUNT_OF(entries), zstd == 1);
        assert_int_equal(gateway_archive_look(path, SIZE_MAX_HERE, &facts, &err), 0);
        assert_int_equal(facts.file_count, 4);
        assert_int_equal(facts.safetensors_count, 1);
        assert_int_equal(facts.content_size, strlen(BERT) + 2 + sizeof(WEIGHTS) - 1 + 6);
        assert_string_equal(facts.config_json, BERT);
        assert_int_equal(model_plan_make(&facts, &plan, &err), 0);
        assert_string_equal(plan.engine, "encoder");
        assert_string_equal(plan.device, "cpu");
        assert_string_equal(plan.settings, "{}");
        model_plan_done(&plan);
        model_facts_done(&facts);
    }
}

static const struct {
    const char *what;
    struct entry entries[3];
    int code;
    const char *word;
} hostile[] = {
    {"absolute", {{"/etc/passwd", "x", 0, NULL}}, ERR_MALFORMED, "absolute"},
    {"climbs", {{"a/../../b", "x", 0, NULL}}, ERR_MALFORMED, "'..'"},
    {"climbs at once", {{"../b", "x", 0, NULL}}, ERR_MALFORMED, "'..'"},
    {"backslash", {{"a\\b", "x", 0, NULL}}, ERR_MALFORMED, "0x5c"},
    {"link", {{"a", "", 0, "/etc/passwd"}}, ERR_MALFORMED, "neither a file"},
    {"twice", {{"a", "x", 0, NULL}, {"./a", "y", 0, NULL}}, ERR_MALFORMED, "twice"},
    {"deep",
     {{"1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17", "x", 0, NULL}},
     ERR_MALFORMED,
     "deeper than 16"},
    {"empty", {{NULL, NULL, 0, NULL}}, ERR_MALFORMED, "no files"},
    {"long header",
     {{"m.safetensors", "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, NULL}},
     ERR_MALFORMED,
     "safetensors"},
    {"short file", {{"m.safetensors", "\x02", 1, NULL}}, ERR_MALFORMED, "safetensors"},
    {"no object",
     {{"m.safetensors", "\x02\0\0\0\0\0\0\0[]", 10, NULL}},
     ERR_MALFORMED,
     "safetensors"},
};

static void test_hostile(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(hostile); i++) {
        struct model_facts facts;
        struct err err = {0};
        int r;

        make(hostile[i].entries, COUNT_OF(hostile[i].entries), false);
        r = gateway_archive_look(path, SIZE_MAX_HERE, &facts, &err);
        if (r != hostile[i].code || strstr(err.text, hostile[i].word) == NULL)
            fail_msg("%s: %d %s", hostile[i].what, r, err.text);
    }
}

static void test_too_big(void **state)
{
    char *zeros = xcalloc(1, SIZE_MAX_HERE + 1);
    const struct entry entries[] = {{"a", zeros, SIZE_MAX_HERE + 1, NULL}};
    struct model_facts facts;
    struct err err;

    (void)state;
    make(entries, 1, true);
    assert_int_equal(gateway_archive_look(path, SIZE_MAX_HERE, &facts, &err), ERR_TOO_BIG);
    assert_int_equal(gateway_archive_look(path, SIZE_MAX_HERE + 1, &facts, &err), 0);
    model_facts_done(&facts);
    free(zeros);
}

static void test_cut_off(void **state)
{
    char *zeros = xcalloc(1, 50000);
    const struct entry entries[] = {{"a", zeros, 50000, NULL}};
    struct model_facts facts;
    struct err err;

    (void)state;
    make(entries, 1, false);
    assert_int_equal(truncate(path, 20000), 0);
    assert_int_equal(gateway_archive_look(path, SIZE_MAX_HERE, &facts, &err), ERR_MALFORMED);
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(gateway_archive_look(path, SIZE_MAX_HERE, &facts, &err), ERR_MALFORMED);
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(gateway_archive_look(path, SIZE_MAX_HERE, &facts, &err), ERR_MALFORMED);
    free(zeros);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_directory),
        cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_too_big),
        cmocka_unit_test(test_cut_off),
    };

    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
