/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: defaults, environment and flags in that order, and errors that name setting and range. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/settings.h"

#define EXAMPLE                                                                                    \
    SETTING_STRING(listen, "127.0.0.1", "address")                                                 \
    SETTING_INT(port, 8080, 0, 65535, "port")                                                      \
    SETTING_DURATION(lease, "4s", "100ms", "1h", "lease")                                          \
    SETTING_BYTES(body_limit, "256KiB", "1KiB", "100MiB", "largest body")                          \
    SETTING_BOOL(strict, false, "strict")                                                          \
    SETTING_URL(database, "postgresql:///app", "database")                                         \
    SETTING_SECRET(api_key, "", "key")

struct example {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    EXAMPLE
#include "base/settings_end.def"
};

static const struct setting rows[] = {
#define SETTINGS_ROWS struct example
#include "base/settings_rows.def"
    EXAMPLE
#include "base/settings_end.def"
};

static const struct settings_program program = {
    .command = "example", .purpose = "Tests.", .rows = rows, .row_count = COUNT_OF(rows)};

static const struct settings_program with_operands = {.command = "example",
                                                      .purpose = "Tests.",
                                                      .operands = "WORD…",
                                                      .rows = rows,
                                                      .row_count = COUNT_OF(rows)};

/* Parses words that end in NULL. */
static int parse(const struct settings_program *which, struct example *values, int *ret_operand,
                 struct err *err, const char *const *words)
{
    char *argv[16] = {NULL};
    enum settings_outcome outcome;
    int argc = 0;

    memset(values, 0, sizeof(*values));
    while (words[argc] != NULL) {
        argv[argc] = (char *)(uintptr_t)words[argc];
        argc++;
    }
    return settings_parse(which, argc, argv, values, ret_operand, &outcome, err);
}

#define PARSE(values, err, ...)                                                                    \
    parse(&program, (values), NULL, (err), (const char *const[]){"example", ##__VA_ARGS__, NULL})

static void test_defaults(void **state)
{
    struct example values;
    struct err err;

    (void)state;
    assert_int_equal(PARSE(&values, &err), 0);
    assert_string_equal(values.listen, "127.0.0.1");
    assert_int_equal(values.port, 8080);
    assert_int_equal(values.lease_ms, 4000);
    assert_int_equal(values.body_limit_size, 256 * 1024);
    assert_false(values.strict);
    assert_string_equal(values.api_key, "");
    settings_free(&program, &values);
}

static void test_flags_win_over_environment(void **state)
{
    struct example values;
    struct err err;

    (void)state;
    assert_int_equal(setenv("HEADRACE_PORT", "81", 1), 0);
    assert_int_equal(setenv("HEADRACE_LEASE", "2m", 1), 0);
    assert_int_equal(setenv("HEADRACE_LISTEN", "", 1), 0);
    assert_int_equal(PARSE(&values, &err, "--port=82", "--strict", "--body-limit", "1MiB"), 0);
    assert_int_equal(values.port, 82);
    assert_int_equal(values.lease_ms, 120000);
    assert_string_equal(values.listen, "127.0.0.1");
    assert_true(values.strict);
    assert_int_equal(values.body_limit_size, 1 << 20);
    settings_free(&program, &values);
    (void)unsetenv("HEADRACE_PORT");
    (void)unsetenv("HEADRACE_LEASE");
    (void)unsetenv("HEADRACE_LISTEN");
}

static void test_errors_name_setting_and_range(void **state)
{
    static const struct {
        const char *flag, *says;
    } bad[] = {
        {"--port=65536", "port: 65536 is out of range, it must be 0 to 65535"},
        {"--port=8o", "'8o' is no integer"},
        {"--port= 8", "is no integer"},
        {"--lease=1d", "lease: 1d is out of range, it must be 100ms to 1h"},
        {"--lease=4 s", "is no duration"},
        {"--lease=99999999999999999999d", "is no duration"},
        {"--body-limit=1TB", "body_limit: 1TB is out of range, it must be 1KiB to 100MiB"},
        {"--body-limit=1XB", "'1XB' is no size"},
        {"--strict=maybe", "neither true nor false"},
        {"--database=localhost", "is no URL"},
        {"--nonsense", "'--nonsense' is not known"},
        {"word", "'word' is one word too many"},
        {"--api-key-file=/nonexistent", "No such file"},
    };
    struct example values;
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        assert_int_equal(PARSE(&values, &err, bad[i].flag), ERR_USAGE);
        if (strstr(err.text, bad[i].says) == NULL)
            fail_msg("%s: says '%s', want '%s'", bad[i].flag, err.text, bad[i].says);
    }
}

static void test_secret_comes_from_a_file(void **state)
{
    char path[] = "/tmp/headrace-settings-XXXXXX";
    int fd = mkstemp(path);
    OWNED(mem_free) char *flag = xasprintf("--api-key-file=%s", path);
    struct example values;
    struct err err;

    (void)state;
    assert_int_equal(write(fd, "s3cret\nrest\n", 12), 12);
    (void)close(fd);
    assert_int_equal(PARSE(&values, &err, flag), 0);
    assert_string_equal(values.api_key, "s3cret");
    settings_free(&program, &values);
    (void)unlink(path);
}

static void test_operands_are_left_to_the_caller(void **state)
{
    const char *words[] = {"example", "one", "--port=1", "two", NULL};
    struct example values;
    struct err err;
    int operand;

    (void)state;
    assert_int_equal(parse(&with_operands, &values, &operand, &err, words), 0);
    assert_int_equal(operand, 2); /* behind the options, which argp moves to the front */
    assert_int_equal(values.port, 1);
    settings_free(&with_operands, &values);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_flags_win_over_environment),
        cmocka_unit_test(test_errors_name_setting_and_range),
        cmocka_unit_test(test_secret_comes_from_a_file),
        cmocka_unit_test(test_operands_are_left_to_the_caller),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
