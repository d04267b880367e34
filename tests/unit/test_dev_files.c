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
        cmocka_unit_test(test_taken_port_is_not_picked),
        cmocka_unit_test(test_program_find),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
