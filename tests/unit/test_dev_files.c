/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: small files are whole or old, log tails have the lines asked for, ports are free ones. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/settings.h"
#include "cli/dev_files.h"

static char directory[] = "/tmp/headrace-test-XXXXXX";

static int setup(void **state)
{
    (void)state;
    return mkdtemp(directory) == NULL ? -1 : 0;
}

static int teardown(void **state)
{
    struct err err;

    (void)state;
    return dev_dir_remove(directory, &err);
}

static void test_write_and_read(void **state)
{
    OWNED(mem_free) char *path = xasprintf("%s/a/b/file", directory);
    OWNED(mem_free) char *parent = xasprintf("%s/a/b", directory);
    OWNED(mem_free) char *text = NULL;
    struct stat info;
    struct err err;

    (void)state;
    assert_int_equal(dev_file_read(path, 100, &text, &err), ERR_NOT_FOUND);
    assert_int_equal(dev_file_write(path, "x", &err), ERR_IO);
    assert_int_equal(dev_dir_make(parent, &err), 0);
    assert_int_equal(dev_dir_make(parent, &err), 0);
    assert_int_equal(dev_file_write(path, "first", &err), 0);
    assert_int_equal(dev_file_write(path, "second", &err), 0);
    assert_int_equal(dev_file_read(path, 3, &text, &err), ERR_TOO_BIG);
    assert_int_equal(dev_file_read(path, 100, &text, &err), 0);
    assert_string_equal(text, "second");
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(dev_dir_remove(parent, &err), 0);
    assert_false(dev_file_exists(parent));
    assert_int_equal(dev_dir_remove(parent, &err), 0);
}

static void test_tail(void **state)
{
    static const struct {
        const char *text;
        int line_count;
        const char *tail;
    } rows[] = {
        {"", 3, ""},
        {"\n\n", 3, ""},
        {"one", 3, "> one\n"},
        {"one\ntwo\nthree\nfour\n", 2, "> three\n> four\n"},
        {"one\n\nthree\n", 3, "> one\n> \n> three\n"},
    };
    OWNED(mem_free) char *path = xasprintf("%s/log", directory);
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(mem_free) char *tail = NULL;

        assert_int_equal(dev_file_write(path, rows[i].text, &err), 0);
        tail = dev_file_tail(path, rows[i].line_count, "> ");
        assert_string_equal(tail, rows[i].tail);
    }
}

/* A server that says why it cannot start, and then ends in good order at length. */
static void test_lines_with_words(void **state)
{
    static const char *const words[] = {"failed to bind", " ERROR ", NULL};
    OWNED(mem_free) char *path = xasprintf("%s/long.log", directory);
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(1 << 20);
    OWNED(mem_free) char *both = NULL;
    OWNED(mem_free) char *one = NULL;
    OWNED(mem_free) char *later = NULL;
    off_t second;
    struct err err;

    (void)state;
    buf_printf(&text, "old ERROR of an earlier start\n");
    second = (off_t)strlen(buf_text(&text));
    buf_printf(&text, "an ERROR now\nSocket server Failed to BIND\n");
    for (int i = 0; i < 1000; i++)
        buf_printf(&text, "INFO the %dth part of an orderly end\n", i);
    assert_int_equal(dev_file_write(path, buf_text(&text), &err), 0);
    assert_int_equal(dev_file_size(path), strlen(buf_text(&text)));
    both = dev_file_lines_with(path, second, words, 5, "> ");
    assert_string_equal(both, "> an ERROR now\n> Socket server Failed to BIND\n");
    one = dev_file_lines_with(path, second, words, 1, "");
    assert_string_equal(one, "an ERROR now\n");
    later = dev_file_lines_with(path, second + 60, words, 5, "");
    assert_string_equal(later, "");
}

static void test_port_is_outside_the_range_of_outgoing_connections(void **state)
{
    OWNED(mem_free) char *range = NULL;
    uint16_t port = 0;
    int64_t first;
    struct err err;

    (void)state;
    assert_int_equal(dev_file_read("/proc/sys/net/ipv4/ip_local_port_range", 100, &range, &err), 0);
    range[strcspn(range, "\t ")] = '\0';
    assert_int_equal(settings_parse_int("range", range, &first, &err), 0);
    if (first < 20000)
        skip();
    for (int i = 0; i < 50; i++) {
        assert_int_equal(dev_port_pick(0, &port, &err), 0);
        assert_in_range(port, 16384, first - 1);
    }
}

static void test_taken_port_is_not_picked(void **state)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof(address);
    int taken = socket(AF_INET, SOCK_STREAM, 0);
    uint16_t port = 0;
    uint16_t again = 0;
    struct err err;

    (void)state;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(taken, (struct sockaddr *)&address, size), 0);
    assert_int_equal(listen(taken, 1), 0);
    assert_int_equal(getsockname(taken, (struct sockaddr *)&address, &size), 0);
    assert_true(dev_port_answers(ntohs(address.sin_port)));
    assert_int_equal(dev_port_pick(ntohs(address.sin_port), &port, &err), 0);
    assert_int_not_equal(port, ntohs(address.sin_port));
    assert_false(dev_port_answers(port));
    assert_int_equal(dev_port_pick(port, &again, &err), 0);
    assert_int_equal(again, port);
    (void)close(taken);
}

static void test_program_find(void **state)
{
    static const char *const extra[] = {"/bin", NULL};
    OWNED(mem_free) char *shell = dev_program_find("sh", extra);
    OWNED(mem_free) char *nothing = dev_program_find("no-such-program-here", extra);

    (void)state;
    assert_non_null(shell);
    assert_null(nothing);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_write_and_read),
        cmocka_unit_test(test_tail),
        cmocka_unit_test(test_lines_with_words),
        cmocka_unit_test(test_port_is_outside_the_range_of_outgoing_connections),
        cmocka_unit_test(test_taken_port_is_not_picked),
        cmocka_unit_test(test_program_find),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
