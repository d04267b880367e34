/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: every line is one JSON object whatever its fields hold, and never longer than its limit. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

static json_t *line_parse(const struct log_field *fields)
{
    char line[LOG_LINE_MAX];
    size_t size = log_format_line(LOG_FORMAT_JSON, LOG_LEVEL_WARN, 1700000000123456, "test",
                                  "something", fields, line, sizeof(line));
    json_t *json;

    assert_true(size <= sizeof(line));
    assert_int_equal(line[size - 1], '\n');
    assert_null(memchr(line, '\n', size - 1));
    json = json_loadb(line, size, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(json);
    return json;
}

static void test_fields(void **state)
{
    static const uint8_t bytes[] = {0xde, 0xad};
    const struct log_field fields[] = {
        LOG_STR("text", "a \"b\"\\\n\x01 ü \xff"),
        LOG_I64("less", -5),
        LOG_U64("more", UINT64_MAX / 2),
        LOG_DOUBLE("real", 0.25),
        LOG_DOUBLE("nan", NAN),
        LOG_BOOL("yes", true),
        LOG_HEX("hex", bytes, sizeof(bytes)),
        LOG_STR("none", NULL),
        LOG_END,
    };
    json_t *json = line_parse(fields);

    (void)state;
    assert_string_equal(json_string_value(json_object_get(json, "text")),
                        "a \"b\"\\\n\x01 ü \xef\xbf\xbd");
    assert_int_equal(json_integer_value(json_object_get(json, "less")), -5);
    assert_true(json_real_value(json_object_get(json, "real")) == 0.25);
    assert_true(json_is_null(json_object_get(json, "nan")));
    assert_true(json_is_null(json_object_get(json, "none")));
    assert_string_equal(json_string_value(json_object_get(json, "hex")), "dead");
    assert_string_equal(json_string_value(json_object_get(json, "level")), "warn");
    assert_string_equal(json_string_value(json_object_get(json, "ts")),
                        "2023-11-14T22:13:20.123456+00:00");
    json_decref(json);
}

static void test_long_strings_and_lines_are_cut(void **state)
{
    char longer[2 * LOG_STRING_MAX];
    struct log_field fields[12];
    json_t *json;

    (void)state;
    memset(longer, '"', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    for (size_t i = 0; i < 11; i++) {
        static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"};

        fields[i] = LOG_STR(names[i], longer);
    }
    fields[11] = LOG_END;
    json = line_parse(fields);
    assert_true(json_is_true(json_object_get(json, "truncated")));
    assert_non_null(json_object_get(json, "a"));
    assert_null(json_object_get(json, "k"));
    json_decref(json);
}

static void test_human_form(void **state)
{
    const struct log_field fields[] = {LOG_STR("job", "j1"), LOG_STR("why", "two words"), LOG_END};
    char line[LOG_LINE_MAX];
    size_t size = log_format_line(LOG_FORMAT_HUMAN, LOG_LEVEL_INFO, 1700000000123456, "broker",
                                  "event", fields, line, sizeof(line));

    (void)state;
    line[size] = '\0';
    assert_string_equal(line, "22:13:20.123 info  broker event job=j1 why=\"two words\"\n");
}

static void test_file_is_opened_again_after_rotation(void **state)
{
    char path[] = "/tmp/headrace-log-XXXXXX";
    int fd = mkstemp(path);
    const struct log_options options = {.program = "test", .path = path};
    char rotated[64], byte;
    struct err err;

    (void)state;
    (void)close(fd);
    (void)snprintf(rotated, sizeof(rotated), "%s.1", path);
    assert_int_equal(log_open(&options, &err), 0);
    log_info("first");
    assert_int_equal(rename(path, rotated), 0);
    assert_int_equal(log_reopen(&err), 0);
    log_info("second", LOG_U64("n", 2));
    log_close();
    fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(read(fd, &byte, 1), 1);
    (void)close(fd);
    (void)unlink(path);
    (void)unlink(rotated);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_long_strings_and_lines_are_cut),
        cmocka_unit_test(test_human_form),
        cmocka_unit_test(test_file_is_opened_again_after_rotation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
