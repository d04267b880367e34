/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: the newest lines of a host are found in a log that others write to as well, and fit. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "workers/host_tail.h"

static void test_lines(void **state)
{
    static const struct {
        const char *bytes, *wanted;
        size_t room;
    } rows[] = {
        {"", "", 100},
        {"one\n", "one", 100},
        {"one\ntwo", "one | two", 100},
        {"one\n\n\ntwo\n", "one | two", 100},
        {"{\"levelname\":\"INFO\",\"message\":\"l\u00e4uft\\nweiter\"}\n", "l\u00e4uft weiter",
         100},
        {"{\"program\":\"worker\",\"event\":\"x\",\"message\":\"ours\"}\nlast\n", "last", 100},
        {"{\"program\":\"confine\",\"event\":\"failed\",\"error\":\"no bwrap\"}\n", "no bwrap",
         100},
        {"{\"program\":\"host-c\",\"event\":\"loaded\"}\n", "", 100},
        {"{\"some\":\"data\"}\n", "{\"some\":\"data\"}", 100},
        {"{broken\n", "{broken", 100},
        {"\x01\xff\tx\n", "???x", 100},
        {"first\nsecond\nthird\n", "second | third", 18},
        {"first\nsecond\n", "", 5},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char got[100];

        memset(got, 'x', sizeof(got));
        host_tail_text(rows[i].bytes, strlen(rows[i].bytes), got, rows[i].room);
        assert_string_equal(got, rows[i].wanted);
    }
}

static void test_long_lines_are_cut_between_characters(void **state)
{
    char bytes[1001], got[400];

    (void)state;
    memset(bytes, 'a', 1000);
    bytes[1000] = '\n';
    host_tail_text(bytes, sizeof(bytes), got, sizeof(got));
    assert_int_equal(strlen(got), 239);
    (void)snprintf(bytes, sizeof(bytes), "{\"message\":\"%0238d\u00e4\"}", 0);
    host_tail_text(bytes, strlen(bytes), got, sizeof(got));
    assert_int_equal(strlen(got), 238); /* half of the last one would fit */
}

static void test_only_what_came_since(void **state)
{
    FILE *file = tmpfile();
    int fd = fileno(file), ends[2];
    uint64_t begin;
    char got[100];

    (void)state;
    assert_int_equal(write(fd, "before\n", 7), 7);
    begin = host_tail_begin(fd);
    assert_int_equal(begin, 7);
    host_tail_read(fd, begin, got, sizeof(got));
    assert_string_equal(got, "");
    assert_int_equal(write(fd, "since\n", 6), 6);
    host_tail_read(fd, begin, got, sizeof(got));
    assert_string_equal(got, "since");
    assert_int_equal(ftruncate(fd, 3), 0); /* a log that is begun anew */
    host_tail_read(fd, begin, got, sizeof(got));
    assert_string_equal(got, "bef");
    (void)fclose(file);

    assert_int_equal(pipe(ends), 0);
    assert_int_equal(host_tail_begin(ends[1]), 0);
    host_tail_read(ends[1], 0, got, sizeof(got));
    assert_string_equal(got, "");
    (void)close(ends[0]);
    (void)close(ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_long_lines_are_cut_between_characters),
        cmocka_unit_test(test_only_what_came_since),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
