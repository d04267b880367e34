/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: only what is declared becomes a file, which nobody else can read; what has no value is
 * named; nothing stays behind. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <jansson.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/wire.h"
#include "workers/secret_files.h"

static char *file_text(const char *folder, const char *name)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", folder, name);
    char text[64] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return NULL;
    assert_true(read(fd, text, sizeof(text) - 1) >= 0);
    (void)close(fd);
    return xstrdup(text);
}

static void check_text(const char *folder, const char *name, const char *want)
{
    OWNED(mem_free) char *text = file_text(folder, name);

    assert_non_null(text);
    assert_string_equal(text, want);
}

static int write_all(const char *folder, const char *declared, const char *values, char **missing,
                     struct err *err)
{
    json_t *names = json_loads(declared, 0, NULL);
    struct wire_bytes given = {(const uint8_t *)values, strlen(values)};
    int r = secret_files_write(folder, names, given, missing, err);

    json_decref(names);
    return r;
}

static void test_files(void **state)
{
    OWNED(mem_free) char *folder = NULL, *missing = NULL, *path = NULL;
    struct stat about;
    struct err err;

    (void)state;
    assert_int_equal(secret_files_folder_make(&folder, &err), 0);
    assert_int_equal(stat(folder, &about), 0);
    assert_int_equal(about.st_mode & 0777u, 0700);
    assert_int_equal(write_all(folder, "{\"a\":null,\"b\":\"plain\",\"c\":null,\"d\":null}",
                               "{\"a\":\"one\\n\",\"stranger\":\"x\"}", &missing, &err),
                     0);
    check_text(folder, "a", "one\n");
    check_text(folder, "b", "plain");
    assert_null(file_text(folder, "stranger"));
    assert_string_equal(missing, "c, d");
    mem_free(&missing);
    path = xasprintf("%s/a", folder);
    assert_int_equal(stat(path, &about), 0);
    assert_int_equal(about.st_mode & 0777u, 0400);
    /* The next start of the same host. */
    assert_int_equal(write_all(folder, "{\"a\":null}", "{\"a\":\"two\"}", &missing, &err), 0);
    check_text(folder, "a", "two");
    assert_null(missing);
    secret_files_remove(folder);
    assert_int_not_equal(stat(folder, &about), 0);
}

static void test_what_is_left_of_the_dead_goes(void **state)
{
    static const char left[] = "/dev/shm/headrace-secrets-2147483646-abcdef";
    OWNED(mem_free) char *folder = NULL, *missing = NULL;
    struct stat about;
    struct err err;

    (void)state;
    assert_int_equal(write_all(left, "{\"a\":\"x\"}", "{}", &missing, &err), 0);
    assert_int_equal(secret_files_folder_make(&folder, &err), 0);
    assert_int_not_equal(stat(left, &about), 0);
    assert_int_equal(stat(folder, &about), 0);
    secret_files_remove(folder);
}

static void test_a_folder_that_cannot_be_had(void **state)
{
    OWNED(mem_free) char *missing = NULL;
    struct err err;

    (void)state;
    assert_int_equal(write_all("/proc/none", "{\"a\":\"x\"}", "{}", &missing, &err), ERR_IO);
    assert_non_null(strstr(err.text, "/proc/none"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_what_is_left_of_the_dead_goes),
        cmocka_unit_test(test_a_folder_that_cannot_be_had),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
