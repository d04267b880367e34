/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: an archive that could write outside of its directory, that lies about itself or fits no
 * engine is refused by name; one that a person would make is taken. Method: archives made here. */

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
    struct archive_facts facts;
    struct archive_plan plan;
    struct err err;

    (void)state;
    for (int zstd = 0; zstd < 2; zstd++) {
        make(entries, COUNT_OF(entries), zstd == 1);
        assert_int_equal(gateway_archive_look(path, SIZE_MAX_HERE, &facts, &err), 0);
        assert_int_equal(facts.file_count, 4);
        assert_int_equal(facts.safetensors_count, 1);
        assert_int_equal(facts.content_size, strlen(BERT) + 2 + sizeof(WEIGHTS) - 1 + 6);
        assert_string_equal(facts.config_json, BERT);
        assert_int_equal(gateway_archive_plan(&facts, &plan, &err), 0);
        assert_string_equal(plan.engine, "encoder");
        assert_string_equal(plan.device, "cpu");
        assert_string_equal(plan.settings, "{}");
        gateway_archive_plan_done(&plan);
        gateway_archive_facts_done(&facts);
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
        struct archive_facts facts;
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
    struct archive_facts facts;
    struct err err;

    (void)state;
    make(entries, 1, true);
    assert_int_equal(gateway_archive_look(path, SIZE_MAX_HERE, &facts, &err), ERR_TOO_BIG);
    assert_int_equal(gateway_archive_look(path, SIZE_MAX_HERE + 1, &facts, &err), 0);
    gateway_archive_facts_done(&facts);
    free(zeros);
}

static void test_cut_off(void **state)
{
    char *zeros = xcalloc(1, 50000);
    const struct entry entries[] = {{"a", zeros, 50000, NULL}};
    struct archive_facts facts;
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

static const struct {
    const char *config, *ours;
    bool weights, tokenizer;
    int code;
    const char *want; /* the engine, or a word of the refusal */
} plans[] = {
    {BERT, NULL, true, true, 0, "encoder"},
    {"{\"architectures\":[\"BertModel\"]}", NULL, true, true, 0, "encoder"},
    {NULL, NULL, true, true, ERR_UNSUPPORTED, "no config.json"},
    {BERT, NULL, false, true, ERR_UNSUPPORTED, "no a file *.safetensors"},
    {BERT, NULL, true, false, ERR_UNSUPPORTED, "no vocab.txt"},
    {"{\"model_type\":\"gpt2\"}", NULL, true, true, ERR_UNSUPPORTED, "model_type"},
    {"{", NULL, true, true, ERR_UNSUPPORTED, "model_type"},
    {NULL, "{\"engine\":\"sim\"}", false, false, 0, "sim"},
    {NULL, "{\"engine\":\"encoder\"}", false, false, ERR_UNSUPPORTED, "config.json"},
    {NULL, "{\"engine\":\"warp\"}", false, false, ERR_UNSUPPORTED, "warp"},
    {NULL, "{\"engine\":7}", false, false, ERR_RANGE, "engine"},
    {NULL, "{\"engine\":\"sim\",\"slots\":0}", false, false, ERR_RANGE, "slots"},
    {NULL, "{\"engine\":\"sim\",\"slots\":2049}", false, false, ERR_RANGE, "2048"},
    {NULL, "{\"engine\":\"sim\",\"replicas\":\"1\"}", false, false, ERR_RANGE, "replicas"},
    {NULL, "{\"engine\":\"sim\",\"settings\":[]}", false, false, ERR_MALFORMED, "settings"},
    {NULL, "{\"engine\":\"sim\",\"color\":1}", false, false, ERR_RANGE, "color"},
    {NULL, "[]", false, false, ERR_MALFORMED, "no object"},
    {NULL, "{", false, false, ERR_MALFORMED, "line 1"},
};

static void test_plans(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(plans); i++) {
        const struct archive_facts facts = {.file_count = 3,
                                            .safetensors_count = plans[i].weights ? 1 : 0,
                                            .config_json = (char *)plans[i].config,
                                            .headrace_json = (char *)plans[i].ours,
                                            .has_tokenizer = plans[i].tokenizer};
        struct archive_plan plan = {.settings = NULL};
        struct err err = {0};
        int r = gateway_archive_plan(&facts, &plan, &err);

        if (r != plans[i].code || strstr(r == 0 ? plan.engine : err.text, plans[i].want) == NULL)
            fail_msg("row %zu: %d %s", i, r, err.text);
        gateway_archive_plan_done(&plan);
    }
}

static void test_settings(void **state)
{
    const struct archive_facts facts = {
        .file_count = 1,
        .headrace_json =
            (char *)"{\"engine\":\"sim\",\"slots\":3,\"replicas\":2,\"device\":\"cuda\","
                    "\"settings\":{\"fail\":0.5}}"};
    struct archive_plan plan;
    struct err err;

    (void)state;
    assert_int_equal(gateway_archive_plan(&facts, &plan, &err), 0);
    assert_int_equal(plan.slot_count, 3);
    assert_int_equal(plan.replica_count, 2);
    assert_string_equal(plan.device, "cuda");
    assert_string_equal(plan.settings, "{\"fail\":0.5}");
    gateway_archive_plan_done(&plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_directory), cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_too_big),         cmocka_unit_test(test_cut_off),
        cmocka_unit_test(test_plans),           cmocka_unit_test(test_settings),
    };

    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
