/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: the same files give the same archive, and what is no file of a model is refused by name. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <archive.h>
#include <archive_entry.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/push_archive.h"

struct place {
    char folder[64];
};

static void file_write(const struct place *place, const char *name, const char *text)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", place->folder, name);
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    (void)fputs(text, file);
    (void)fclose(file);
}

static int setup(void **state)
{
    struct place *place = xcalloc(1, sizeof(*place));
    OWNED(mem_free) char *inner = NULL;

    mem_copy_text(place->folder, "/tmp/headrace-push-XXXXXX");
    if (mkdtemp(place->folder) == NULL)
        return -1;
    inner = xasprintf("%s/1_Pooling", place->folder);
    if (mkdir(inner, 0755) != 0)
        return -1;
    file_write(place, "config.json", "{}");
    file_write(place, "1_Pooling/config.json", "{\"a\":1}");
    file_write(place, ".hidden", "not sent");
    *state = place;
    return 0;
}

static int teardown(void **state)
{
    struct place *place = *state;
    static const char *const names[] = {
        "config.json", "1_Pooling/config.json", ".hidden", "link", "pipe", "1_Pooling"};

    for (size_t i = 0; i < COUNT_OF(names); i++) {
        OWNED(mem_free) char *path = xasprintf("%s/%s", place->folder, names[i]);

        (void)remove(path);
    }
    (void)rmdir(place->folder);
    free(place);
    return 0;
}

static void test_same_files_same_digest(void **state)
{
    const struct place *place = *state;
    struct push_archive one, two;
    struct err err;

    assert_int_equal(push_archive_make(place->folder, &one, &err), 0);
    file_write(place, "config.json", "{}"); /* a newer time, the same bytes */
    assert_int_equal(push_archive_make(place->folder, &two, &err), 0);
    assert_string_equal(one.digest, two.digest);
    assert_int_equal(one.file_count, 2);
    assert_int_equal(one.content_size, 9);
    assert_int_equal(lseek(one.fd, 0, SEEK_END), (off_t)one.size);
    (void)close(one.fd);
    (void)close(two.fd);
}

static void test_archive_holds_the_files(void **state)
{
    static const char *const want[] = {"1_Pooling/config.json", "config.json"};
    const struct place *place = *state;
    struct archive *archive = archive_read_new();
    struct archive_entry *entry;
    struct push_archive made;
    struct err err;
    size_t i = 0;

    assert_int_equal(push_archive_make(place->folder, &made, &err), 0);
    (void)archive_read_support_filter_zstd(archive);
    (void)archive_read_support_format_tar(archive);
    assert_int_equal(archive_read_open_fd(archive, made.fd, 10240), ARCHIVE_OK);
    while (archive_read_next_header(archive, &entry) == ARCHIVE_OK) {
        assert_true(i < COUNT_OF(want));
        assert_string_equal(archive_entry_pathname(entry), want[i++]);
    }
    assert_int_equal(i, COUNT_OF(want));
    (void)archive_read_free(archive);
    (void)close(made.fd);
}

static void test_links_are_refused_by_name(void **state)
{
    const struct place *place = *state;
    OWNED(mem_free) char *link = xasprintf("%s/link", place->folder);
    struct push_archive made;
    struct err err;

    assert_int_equal(symlink("/etc/passwd", link), 0);
    assert_int_equal(push_archive_make(place->folder, &made, &err), ERR_USAGE);
    assert_non_null(strstr(err.text, "/link"));
    assert_int_equal(push_archive_make("/nonexistent", &made, &err), ERR_USAGE);
}

/* A pipe without a writer would hold up whoever opens it. */
static void test_pipes_are_refused_and_not_waited_for(void **state)
{
    const struct place *place = *state;
    OWNED(mem_free) char *pipe = xasprintf("%s/pipe", place->folder);
    struct push_archive made;
    struct err err;

    assert_int_equal(mkfifo(pipe, 0600), 0);
    assert_int_equal(push_archive_make(place->folder, &made, &err), ERR_USAGE);
    assert_non_null(strstr(err.text, "/pipe"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_same_files_same_digest, setup, teardown),
        cmocka_unit_test_setup_teardown(test_archive_holds_the_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_links_are_refused_by_name, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pipes_are_refused_and_not_waited_for, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
