/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: flags win over the environment, which wins over the client file; a file that others may
 * read is refused. */

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

#include "cli/client.h"
#include "cli/list.h"

static char path[] = "/tmp/headrace-client-file-XXXXXX";

static int group_setup(void **state)
{
    static const char text[] = "{\"url\": \"http://file:1/\", \"api_key\": \"from-file\"}";
    int fd = mkstemp(path);

    (void)state;
    (void)unsetenv("HEADRACE_URL");
    (void)unsetenv("HEADRACE_API_KEY");
    (void)unsetenv("HEADRACE_CLIENT");
    if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        return -1;
    return close(fd);
}

static int group_teardown(void **state)
{
    (void)state;
    return unlink(path);
}

static void test_file_then_environment_then_flag(void **state)
{
    struct client client;
    struct err err;

    (void)state;
    assert_int_equal(client_open(NULL, NULL, path, &client, &err), 0);
    assert_string_equal(client.url, "http://file:1");
    assert_string_equal(client.api_key, "from-file");
    client_done(&client);
    (void)setenv("HEADRACE_URL", "http://environment:2", 1);
    assert_int_equal(client_open(NULL, "from-flag", path, &client, &err), 0);
    assert_string_equal(client.url, "http://environment:2");
    assert_string_equal(client.api_key, "from-flag");
    client_done(&client);
    assert_int_equal(client_open("http://flag:3", NULL, path, &client, &err), 0);
    assert_string_equal(client.url, "http://flag:3");
    client_done(&client);
    (void)unsetenv("HEADRACE_URL");
}

static void test_file_that_others_may_read(void **state)
{
    struct client client;
    struct err err;

    (void)state;
    assert_int_equal(chmod(path, 0644), 0);
    assert_int_equal(client_open(NULL, NULL, path, &client, &err), ERR_USAGE);
    assert_non_null(strstr(err.text, "chmod 600"));
    assert_int_equal(chmod(path, 0600), 0);
    assert_int_equal(client_open(NULL, NULL, "/nonexistent/file", &client, &err), ERR_USAGE);
}

static void test_paths_are_escaped(void **state)
{
    OWNED(mem_free) char *made = path_make("/v1/models/%/deployments/%", "a b/../c", "d?e=1");

    (void)state;
    assert_string_equal(made, "/v1/models/a%20b%2F..%2Fc/deployments/d%3Fe%3D1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file_then_environment_then_flag),
        cmocka_unit_test(test_file_that_others_may_read),
        cmocka_unit_test(test_paths_are_escaped),
    };

    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
