/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a path comes apart into exactly the segments that were sent, or is refused. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/http_server.h"

struct row {
    const char *target;
    int want;
    const char *segments[4];
};

static const struct row rows[] = {
    {"/", 0, {NULL}},
    {"/a", 0, {"a"}},
    {"/a/b%20c/d", 0, {"a", "b c", "d"}},
    {"/a/", 0, {"a"}},
    {"/a?x=1", 0, {"a"}},
    {"/%C3%A4", 0, {"\xc3\xa4"}},
    {"/...", 0, {"..."}},
    {"/a+b", 0, {"a+b"}},
    {"http://host/a/b", 0, {"a", "b"}},
    {"http://host", 0, {NULL}},
    {"http://host?x=1", 0, {NULL}},
    {"/redirect?to=http://x/y", 0, {"redirect"}},
    {"", ERR_MALFORMED, {NULL}},
    {"*", ERR_MALFORMED, {NULL}},
    {"a/b", ERR_MALFORMED, {NULL}},
    {"//", ERR_MALFORMED, {NULL}},
    {"/a//b", ERR_MALFORMED, {NULL}},
    {"/a/../b", ERR_MALFORMED, {NULL}},
    {"/a/%2e%2E/b", ERR_MALFORMED, {NULL}},
    {"/./a", ERR_MALFORMED, {NULL}},
    {"/a%2fb", ERR_MALFORMED, {NULL}},
    {"/a%5cb", ERR_MALFORMED, {NULL}},
    {"/a%00b", ERR_MALFORMED, {NULL}},
    {"/a%0ab", ERR_MALFORMED, {NULL}},
    {"/a%7f", ERR_MALFORMED, {NULL}},
    {"/a%zz", ERR_MALFORMED, {NULL}},
    {"/a%2", ERR_MALFORMED, {NULL}},
    {"/%ff", ERR_MALFORMED, {NULL}},
    {"/%c0%af", ERR_MALFORMED, {NULL}},
    {"/%ed%a0%80", ERR_MALFORMED, {NULL}},
    {"/%c3", ERR_MALFORMED, {NULL}},
    {"/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17", ERR_TOO_BIG, {NULL}},
    {"/a?x=%0d", ERR_MALFORMED, {NULL}},
};

static void test_paths(void **state)
{
    struct http_target target;
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        size_t count = 0;
        int r = http_target_parse(rows[i].target, &target, &err);

        if (r != rows[i].want)
            fail_msg("'%s': %d, wanted %d", rows[i].target, r, rows[i].want);
        if (r < 0)
            continue;
        while (count < 4 && rows[i].segments[count] != NULL) {
            assert_true(count < target.segment_count);
            assert_string_equal(target.segments[count], rows[i].segments[count]);
            count++;
        }
        assert_int_equal(target.segment_count, count);
        assert_int_equal(target.trailing_slash, strcmp(rows[i].target, "/a/") == 0);
    }
}

static void test_queries(void **state)
{
    struct http_target target;
    struct err err;
    char many[HTTP_TARGET_SIZE_MAX + 100];

    (void)state;
    assert_int_equal(http_target_parse("/?a=1&b=x+y%26z&&c&=q&a=2", &target, &err), 0);
    assert_int_equal(target.field_count, 5);
    assert_string_equal(http_target_query(&target, "a"), "1");
    assert_string_equal(http_target_query(&target, "b"), "x y&z");
    assert_string_equal(http_target_query(&target, "c"), "");
    assert_null(http_target_query(&target, "d"));

    memcpy(many, "/?", 2);
    for (int i = 0; i <= HTTP_QUERY_FIELDS_MAX; i++)
        memcpy(many + 2 + 2 * i, "a&", 3);
    assert_int_equal(http_target_parse(many, &target, &err), ERR_TOO_BIG);
    memset(many, 'a', sizeof(many) - 1);
    many[0] = '/';
    many[sizeof(many) - 1] = '\0';
    assert_int_equal(http_target_parse(many, &target, &err), ERR_TOO_BIG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paths),
        cmocka_unit_test(test_queries),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
