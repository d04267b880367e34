/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: what a training job saves is told apart: finished, being written, changed since; digests
 * are those of the bytes.
 * Method: folders in /tmp, looked at as a trainer does.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "workers/agent_unpack.h"
#include "workers/trainer_scan.h"

static char folder[] = "/tmp/headrace-scan-XXXXXX";

static void write_file(const char *below, const char *text)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", folder, below);
    FILE *file;

    for (char *at = strchr(path + sizeof(folder), '/'); at != NULL; at = strchr(at + 1, '/')) {
        *at = '\0';
        (void)mkdir(path, 0700);
        *at = '/';
    }
    file = fopen(path, "we");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
}

/* complete: what it is to be; a name that is not to be seen: -1. */
static struct scan_entry look(const char *name, int complete)
{
    const struct scan_known none = {.count = 0};
    struct scan_entry found = {0};
    struct scan scan;
    struct err err;
    int is = -1;

    assert_int_equal(trainer_scan_folder(folder, &none, &scan, &err), 0);
    for (size_t i = 0; i < scan.count; i++) {
        if (strcmp(scan.entries[i].name, name) != 0)
            continue;
        found = scan.entries[i];
        is = found.complete;
    }
    trainer_scan_done(&scan);
    if (is != complete)
        fail_msg("%s: %d, want %d", name, is, complete);
    return found;
}

static void test_complete(void **state)
{
    struct scan_entry entry;

    (void)state;
    write_file("a/weights", "12345");
    write_file("a/deep/er", "1");
    entry = look("a", 1);
    assert_int_equal(entry.size, 6);
    assert_int_equal(entry.file_count, 2);
    write_file("a/deep/more.tmp", "");
    (void)look("a", 0);
    write_file("tmp-b/weights", "1");
    write_file(".c/weights", "1");
    write_file("d.tmp/weights", "1");
    (void)look("tmp-b", -1);
    (void)look(".c", -1);
    (void)look("d.tmp", -1);
    write_file("single.bin", "123");
    assert_int_equal(look("single.bin", 1).size, 3);
    write_file("empty/x.part", "");
    (void)look("empty", 0);
}

static void test_shards(void **state)
{
    (void)state;
    write_file("s/model.safetensors.index.json",
               "{\"weight_map\": {\"x\": \"one.safetensors\", \"y\": \"two.safetensors\"}}");
    write_file("s/one.safetensors", "1");
    (void)look("s", 0);
    write_file("s/two.safetensors", "2");
    (void)look("s", 1);
    write_file("s/model.safetensors.index.json", "{\"weight_map\": {\"x\": \"one.safe");
    (void)look("s", 0);
}

static void test_marks(void **state)
{
    uint64_t before, after;

    (void)state;
    write_file("m/a", "1");
    write_file("m/b", "2");
    before = look("m", 1).mark;
    assert_true(before == trainer_scan_mark(folder, "m"));
    write_file("m/b", "22");
    after = look("m", 1).mark;
    assert_true(after != before);
    write_file("m/c", "3");
    assert_true(look("m", 1).mark != after);
    assert_true(trainer_scan_mark(folder, "none") == 0);
}

/* What needs no look is there and not looked at; its neighbours are. */
static void test_known_names_are_passed_over(void **state)
{
    static const char *const names[] = {"k/none", "k1", "k3", "k4"};
    const struct scan_known known = {names, COUNT_OF(names)};
    struct scan scan;
    struct err err;
    size_t passed = 0, looked = 0;

    (void)state;
    write_file("k1/a", "1");
    write_file("k2/a", "1");
    write_file("k3", "1");
    write_file("k5", "1");
    assert_int_equal(trainer_scan_folder(folder, &known, &scan, &err), 0);
    for (size_t i = 0; i < scan.count; i++) {
        const struct scan_entry *entry = &scan.entries[i];
        bool is_known = strcmp(entry->name, "k1") == 0 || strcmp(entry->name, "k3") == 0;

        assert_int_equal(entry->passed_over, is_known);
        assert_int_equal(entry->file_count > 0, !is_known);
        assert_int_equal(entry->mark != 0, !is_known);
        passed += is_known;
        looked += strcmp(entry->name, "k2") == 0 || strcmp(entry->name, "k5") == 0;
    }
    assert_int_equal(passed, 2);
    assert_int_equal(looked, 2);
    trainer_scan_done(&scan);
}

static void test_digests(void **state)
{
    /* SHA-256 of "abc", of the standard */
    static const uint8_t abc[SCAN_DIGEST_SIZE] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea,
                                                  0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23,
                                                  0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c,
                                                  0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad};
    struct scan_files files;
    struct err err;

    (void)state;
    write_file("r/adapter_config.json", "{ \"r\": 16 }");
    write_file("r/deep/abc", "abc");
    assert_int_equal(trainer_scan_read(folder, "r", &files, &err), 0);
    assert_int_equal(files.count, 2);
    assert_string_equal(files.adapter, "{\"r\":16}");
    assert_true(files.mark == trainer_scan_mark(folder, "r"));
    for (size_t i = 0; i < files.count; i++) {
        if (strcmp(files.files[i].path, "deep/abc") == 0)
            assert_memory_equal(files.files[i].digest, abc, sizeof(abc));
    }
    trainer_scan_files_done(&files);
    write_file("one", "abc");
    assert_int_equal(trainer_scan_read(folder, "one", &files, &err), 0);
    assert_int_equal(files.count, 1);
    assert_string_equal(files.files[0].path, "one");
    assert_memory_equal(files.files[0].digest, abc, sizeof(abc));
    trainer_scan_files_done(&files);
}

static int make(void **state)
{
    (void)state;
    return mkdtemp(folder) == NULL;
}

static int drop(void **state)
{
    struct err err;

    (void)state;
    return agent_remove_tree(folder, &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_complete), cmocka_unit_test(test_shards),
        cmocka_unit_test(test_marks),    cmocka_unit_test(test_known_names_are_passed_over),
        cmocka_unit_test(test_digests),
    };

    return cmocka_run_group_tests(tests, make, drop);
}
