/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a child is started as asked, its end is told, and a failed start names the step. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/dev_files.h"
#include "cli/dev_process.h"

enum { WAIT_MS = 10000, LOG_SIZE_MAX = 4096 };

static char directory[] = "/tmp/headrace-test-XXXXXX";
static char *log_path;

static int setup(void **state)
{
    (void)state;
    if (mkdtemp(directory) == NULL)
        return -1;
    log_path = xasprintf("%s/log", directory);
    return 0;
}

static int teardown(void **state)
{
    struct err err;

    (void)state;
    mem_free(&log_path);
    return dev_dir_remove(directory, &err);
}

/* Starts `sh -c script`. */
static int start(struct dev_process *process, const char *script, enum dev_identity identity,
                 struct err *err)
{
    OWNED(mem_free) char *text = xstrdup(script);
    char shell[] = "sh";
    char flag[] = "-c";
    char *argv[] = {shell, flag, text, NULL};
    char path[] = "PATH=/usr/bin:/bin";
    char *env[] = {path, NULL};
    const struct dev_spawn spawn = {
        .program = "/bin/sh",
        .argv = argv,
        .env = env,
        .log_path = log_path,
        .directory = directory,
        .identity = identity,
        .uid = 7,
        .gid = 8,
        .death_signal = SIGKILL,
    };

    *process = DEV_PROCESS_NONE;
    return dev_process_start(process, &spawn, err);
}

static void wait_end(struct dev_process *process)
{
    struct pollfd ended = {.fd = process->pidfd, .events = POLLIN};

    assert_int_equal(poll(&ended, 1, WAIT_MS), 1);
    assert_true(dev_process_reap(process));
}

static void test_output_and_exit_code(void **state)
{
    OWNED(mem_free) char *text = NULL;
    struct dev_process process;
    struct err err;
    char how[96];

    (void)state;
    assert_int_equal(start(&process, "pwd; echo told >&2; exit 7", DEV_IDENTITY_SAME, &err), 0);
    wait_end(&process);
    dev_process_describe_end(&process, how, sizeof(how));
    assert_string_equal(how, "exited with code 7");
    assert_int_equal(dev_file_read(log_path, LOG_SIZE_MAX, &text, &err), 0);
    assert_non_null(strstr(text, directory));
    assert_non_null(strstr(text, "told\n"));
}

static void test_signal_is_told(void **state)
{
    struct dev_process process;
    struct err err;
    char how[96];

    (void)state;
    assert_int_equal(start(&process, "exec sleep 1000", DEV_IDENTITY_SAME, &err), 0);
    assert_int_not_equal(process.start_ticks, 0); /* it lives until it is told */
    assert_false(dev_process_reap(&process));
    dev_process_signal(&process, SIGKILL);
    wait_end(&process);
    dev_process_describe_end(&process, how, sizeof(how));
    assert_string_equal(how, "was killed by signal 9 (Killed)");
    assert_int_equal(process.pid, 0);
}

static void test_program_that_is_not_there(void **state)
{
    char name[] = "nothing";
    char *argv[] = {name, NULL};
    char *env[] = {NULL};
    const struct dev_spawn spawn = {.program = "/nonexistent/nothing",
                                    .argv = argv,
                                    .env = env,
                                    .log_path = log_path,
                                    .directory = directory,
                                    .death_signal = SIGKILL};
    struct dev_process process = DEV_PROCESS_NONE;
    struct err err;

    (void)state;
    assert_int_equal(dev_process_start(&process, &spawn, &err), ERR_DEPENDENCY);
    assert_string_equal(err.text, "start /nonexistent/nothing: exec: No such file or directory");
    assert_int_equal(process.pid, 0);
}

static void test_namespace_maps_us(void **state)
{
    OWNED(mem_free) char *text = NULL;
    struct dev_process process;
    struct err err;

    (void)state;
    if (!dev_process_can_map_user())
        skip();
    assert_int_equal(start(&process, "id -u > id; id -g >> id", DEV_IDENTITY_NAMESPACE, &err), 0);
    wait_end(&process);
    OWNED(mem_free) char *path = xasprintf("%s/id", directory);
    assert_int_equal(dev_file_read(path, LOG_SIZE_MAX, &text, &err), 0);
    assert_string_equal(text, "7\n8\n");
}

/* The grandchild is started by a child of ours that is killed; the kernel must kill it too. */
static void test_child_dies_with_its_parent(void **state)
{
    OWNED(mem_free) char *text = NULL;
    OWNED(mem_free) char *path = xasprintf("%s/pid", directory);
    struct dev_process process;
    struct err err;
    pid_t parent = fork();
    pid_t child;
    uint64_t start_ticks;

    (void)state;
    if (parent == 0) {
        (void)start(&process, "echo $$ > pid.new; mv pid.new pid; exec sleep 1000",
                    DEV_IDENTITY_SAME, &err);
        for (;;)
            (void)pause();
    }
    while (dev_file_read(path, LOG_SIZE_MAX, &text, &err) < 0)
        (void)poll(NULL, 0, 5);
    child = (pid_t)strtoul(text, NULL, 10);
    start_ticks = dev_process_start_ticks(child);
    assert_int_not_equal(start_ticks, 0);
    assert_int_equal(kill(parent, SIGKILL), 0);
    for (int i = 0; i < WAIT_MS / 5 && dev_process_start_ticks(child) == start_ticks; i++)
        (void)poll(NULL, 0, 5);
    assert_int_not_equal(dev_process_start_ticks(child), start_ticks);
}

static void test_start_ticks_of_nobody(void **state)
{
    (void)state;
    assert_int_equal(dev_process_start_ticks(0x7ffffff0), 0);
    assert_int_not_equal(dev_process_start_ticks(getpid()), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_output_and_exit_code),
        cmocka_unit_test(test_signal_is_told),
        cmocka_unit_test(test_program_that_is_not_there),
        cmocka_unit_test(test_namespace_maps_us),
        cmocka_unit_test(test_child_dies_with_its_parent),
        cmocka_unit_test(test_start_ticks_of_nobody),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
