/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: patterns of .gitignore mean here what they mean to git. Method: rows; git itself agreed
 * with each of them (git check-ignore). */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/buf.h"
#include "cli/ignore.h"

static const struct {
    const char *patterns, *path;
    bool is_folder, left_out;
} rows[] = {
    {"*.log", "a.log", false, true},
    {"*.log", "deep/er/a.log", false, true},
    {"*.log", "a.logs", false, false},
    {"/a.log", "a.log", false, true},
    {"/a.log", "deep/a.log", false, false},
    {"build/", "build", true, true},
    {"build/", "build", false, false},
    {"build/", "x/build", true, true},
    {"docs/_build/", "docs/_build", true, true},
    {"docs/_build/", "x/docs/_build", true, false},
    {"**/logs", "a/b/logs", true, true},
    {"**/logs", "logs", true, true},
    {"logs/**", "logs/a/b", false, true},
    {"logs/**", "logs", true, false},
    {"a/**/z", "a/z", false, true},
    {"a/**/z", "a/b/c/z", false, true},
    {"a/*/z", "a/b/c/z", false, false},
    {"a/*", "a/b", false, true},
    {"?.py", "a.py", false, true},
    {"?.py", "ab.py", false, false},
    {"*.py[cod]", "x.pyc", false, true},
    {"*.py[!cod]", "x.pyc", false, false},
    {"*.py[!cod]", "x.pyz", false, true},
    {"[a-c]x", "bx", false, true},
    {"[a-c", "[a-c", false, false},
    {"*\n!keep.txt", "keep.txt", false, false},
    {"!keep.txt\n*", "keep.txt", false, true},
    {"# comment\n\n  \n\\#x", "#x", false, true},
    {"\\!x", "!x", false, true},
    {"trailing   ", "trailing", false, true},
    {"x\\ ", "x ", false, true},
    {"name\r\n", "name", false, true},
    {"a**b", "axxb", false, true},
    {"*", "anything/below", false, true},
    {"", "x", false, false},
};

static void test_patterns(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(ignore_free) struct ignore *ignore = NULL;
        struct err err;

        assert_int_equal(ignore_new(".truss_ignore", rows[i].patterns, &ignore, &err), 0);
        if (ignore_match(ignore, rows[i].path, rows[i].is_folder) != rows[i].left_out)
            fail_msg("'%s' and '%s'", rows[i].patterns, rows[i].path);
    }
    assert_false(ignore_match(NULL, "x", false));
}

static void test_bounds(void **state)
{
    OWNED(buf_done) struct buf many = BUF_WITH_LIMIT(1 << 20);
    struct ignore *ignore = NULL;
    struct err err;
    char path[900];

    (void)state;
    for (int i = 0; i <= IGNORE_PATTERNS_MAX; i++)
        buf_append_text(&many, "x\n");
    assert_int_equal(ignore_new(".truss_ignore", buf_text(&many), &ignore, &err), ERR_TOO_BIG);
    assert_null(ignore);
    assert_int_equal(ignore_new(".truss_ignore", "a*a*a*a*a*a*a*a*a*a*b", &ignore, &err), 0);
    memset(path, 'a', sizeof(path) - 1);
    path[sizeof(path) - 1] = '\0';
    assert_false(ignore_match(ignore, path, false));
    ignore_free(&ignore);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_patterns),
        cmocka_unit_test(test_bounds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
