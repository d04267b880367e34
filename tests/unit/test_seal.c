/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a sealed secret opens with its key in its place, and nowhere else. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/seal.h"

#define SECRET "whsec_something"

static char folder[] = "/tmp/headrace-seal-XXXXXX";

static char *path_of(const char *name)
{
    return xasprintf("%s/%s", folder, name);
}

static int group_setup(void **state)
{
    (void)state;
    return mkdtemp(folder) == NULL;
}

static int group_teardown(void **state)
{
    static const char *const names[] = {"one", "two", "open", "short"};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        OWNED(mem_free) char *path = path_of(names[i]);

        (void)unlink(path);
    }
    return rmdir(folder);
}

static struct seal_key *key_make(const char *name)
{
    OWNED(mem_free) char *path = path_of(name);
    struct seal_key *key = NULL;
    struct err err;

    assert_int_equal(seal_key_make(path, &err), 0);
    assert_int_equal(seal_key_make(path, &err), ERR_CONFLICT);
    assert_int_equal(seal_key_open(path, &key, &err), 0);
    return key;
}

static void test_opens_only_in_its_place(void **state)
{
    OWNED(seal_key_close) struct seal_key *one = key_make("one");
    OWNED(seal_key_close) struct seal_key *two = key_make("two");
    OWNED(buf_done) struct buf sealed = BUF_WITH_LIMIT(1000);
    OWNED(buf_done) struct buf secret = BUF_WITH_LIMIT(1000);
    struct err err;

    (void)state;
    seal_close(one, "row 1", SECRET, strlen(SECRET), &sealed);
    assert_null(memmem(sealed.bytes, sealed.size, SECRET, strlen(SECRET)));
    assert_int_equal(seal_open(one, "row 1", sealed.bytes, sealed.size, &secret, &err), 0);
    assert_string_equal(buf_text(&secret), SECRET);
    buf_clear(&secret);
    assert_int_equal(seal_open(one, "row 2", sealed.bytes, sealed.size, &secret, &err),
                     ERR_MISMATCH);
    assert_int_equal(seal_open(two, "row 1", sealed.bytes, sealed.size, &secret, &err),
                     ERR_MISMATCH);
    for (size_t i = 0; i < sealed.size; i++) {
        sealed.bytes[i] ^= 1;
        assert_int_not_equal(seal_open(one, "row 1", sealed.bytes, sealed.size, &secret, &err), 0);
        sealed.bytes[i] ^= 1;
    }
    assert_int_equal(seal_open(one, "row 1", sealed.bytes, 10, &secret, &err), ERR_MALFORMED);
    assert_int_equal(secret.size, 0);
}

static void test_key_files_are_checked(void **state)
{
    OWNED(mem_free) char *open_path = path_of("open");
    OWNED(mem_free) char *short_path = path_of("short");
    struct seal_key *key = NULL;
    struct err err;
    FILE *file;

    (void)state;
    assert_int_equal(seal_key_open(open_path, &key, &err), ERR_USAGE);
    assert_int_equal(seal_key_make(open_path, &err), 0);
    assert_int_equal(chmod(open_path, 0644), 0);
    assert_int_equal(seal_key_open(open_path, &key, &err), ERR_USAGE);
    assert_non_null(strstr(err.text, "chmod 600"));
    file = fopen(short_path, "w");
    assert_non_null(file);
    (void)fputs("abcd\n", file);
    (void)fclose(file);
    assert_int_equal(chmod(short_path, 0600), 0);
    assert_int_equal(seal_key_open(short_path, &key, &err), ERR_USAGE);
    assert_null(key);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_opens_only_in_its_place),
        cmocka_unit_test(test_key_files_are_checked),
    };

    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
