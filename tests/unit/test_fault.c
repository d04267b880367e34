/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: an armed fault point stops one process once, and says which; one that is not armed, or not
 * enabled, does nothing. Method: children that go through a point; their parent waits for what
 * becomes of them. */

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "brokers/fault.h"

static char folder[] = "/tmp/headrace-fault.XXXXXX";

static char *path_of(const char *name)
{
    return xasprintf("%s/%s", folder, name);
}

static void arm(enum fault point)
{
    OWNED(mem_free) char *path = path_of(fault_name(point));
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    (void)fclose(file);
}

/* A child that goes through the point twice and ends. */
static pid_t child_start(enum fault point)
{
    pid_t pid = fork();

    if (pid == 0) {
        fault_point(point);
        fault_point(point);
        _exit(7);
    }
    return pid;
}

static int child_wait(pid_t pid)
{
    int status = 0;

    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    return status;
}

static void assert_passes(enum fault point)
{
    int status = child_wait(child_start(point));

    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

static void armed_point_stops_once(void **state)
{
    pid_t pid;
    OWNED(mem_free) char *armed = path_of("broker_committed");
    OWNED(mem_free) char *taken = NULL;
    OWNED(mem_free) char *name = NULL;
    int status;

    (void)state;
    assert_passes(FAULT_broker_committed);
    fault_set_directory(folder);
    assert_passes(FAULT_broker_committed);
    arm(FAULT_broker_committed);
    assert_passes(FAULT_broker_told); /* another point */
    pid = child_start(FAULT_broker_committed);
    status = child_wait(pid);
    assert_true(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    name = xasprintf("broker_committed.%d", (int)pid);
    taken = path_of(name);
    assert_int_equal(access(taken, F_OK), 0);
    assert_int_equal(access(armed, F_OK), -1);
    assert_passes(FAULT_broker_committed); /* nobody else, and not a second time */
    assert_int_equal(kill(pid, SIGCONT), 0);
    status = child_wait(pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    fault_set_directory(NULL);
    arm(FAULT_broker_committed);
    assert_passes(FAULT_broker_committed);
    assert_int_equal(unlink(taken) + unlink(armed) + rmdir(folder), 0);
}

static void every_point_has_its_program_in_its_name(void **state)
{
    static const char *const names[] = {
#define FAULT_POINT(name, program, text) #name, #program,
#include "brokers/fault_points.def"
#undef FAULT_POINT
    };

    (void)state;
    assert_int_equal(COUNT_OF(names), 2 * FAULT_COUNT);
    for (size_t i = 0; i < FAULT_COUNT; i++) {
        assert_string_equal(fault_name((enum fault)i), names[2 * i]);
        assert_int_equal(strncmp(names[2 * i], names[2 * i + 1], strlen(names[2 * i + 1])), 0);
    }
    assert_string_equal(fault_name(FAULT_COUNT), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(armed_point_stops_once),
        cmocka_unit_test(every_point_has_its_program_in_its_name),
    };

    if (mkdtemp(folder) == NULL)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
