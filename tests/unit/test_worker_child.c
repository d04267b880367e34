/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a child is told about once, with how it ended; it gets the descriptors it was promised and
 * no others; somebody else's process is watched, and a pid that was used again is not. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/loop.h"
#include "workers/child.h"

#define WAIT_MS 20000

struct world {
    struct loop *loop;
    struct child *child;
    struct child_end end;
    int ends;
    bool done;
};

static int world_open(void **state)
{
    static struct world world;
    struct err err;

    world = (struct world){0};
    *state = &world;
    return loop_open(&world.loop, &err);
}

static int world_close(void **state)
{
    struct world *world = *state;

    child_free(&world->child);
    loop_close(&world->loop);
    return 0;
}

static void on_end(void *opaque, const struct child_end *end)
{
    struct world *world = opaque;

    world->end = *end;
    world->ends++;
    world->done = true;
}

static void start(struct world *world, const char *script, struct child_spawn spawn)
{
    char *const argv[] = {"sh", "-c", (char *)script, NULL};
    struct err err;

    spawn.path = "/bin/sh";
    spawn.argv = argv;
    assert_int_equal(child_start(world->loop, &spawn, on_end, world, &world->child, &err), 0);
}

static const struct child_spawn plain = {.stdout_fd = -1, .stderr_fd = -1, .extra_fd = -1};

static void test_ends(void **state)
{
    static const struct {
        const char *script, *text;
        int exit_code, signal;
    } rows[] = {
        {"exit 0", "exited with code 0", 0, 0},
        {"exit 7", "exited with code 7", 7, 0},
        {"kill -9 $$", "was killed by signal 9 (Killed)", 0, 9},
    };
    struct world *world = *state;

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        world->done = false;
        start(world, rows[i].script, plain);
        assert_true(loop_run_until(world->loop, &world->done, WAIT_MS));
        assert_true(world->end.known);
        assert_string_equal(world->end.text, rows[i].text);
        assert_int_equal(world->end.exit_code, rows[i].exit_code);
        assert_int_equal(world->end.signal, rows[i].signal);
        child_signal(world->child, SIGTERM); /* nobody there any more: nothing */
        child_free(&world->child);
    }
    assert_int_equal(world->ends, COUNT_OF(rows));
}

static void test_signal(void **state)
{
    struct world *world = *state;

    start(world, "exec sleep 100", plain); /* no orphan that holds our output */
    child_signal(world->child, SIGTERM);
    assert_true(loop_run_until(world->loop, &world->done, WAIT_MS));
    assert_int_equal(world->end.signal, SIGTERM);
}

static void test_descriptors(void **state)
{
    struct world *world = *state;
    struct child_spawn spawn = plain;
    char said[256] = "";
    int pipes[2], extra[2];
    ssize_t size;

    assert_int_equal(pipe2(pipes, 0), 0); /* not even close-on-exec: it is closed all the same */
    assert_int_equal(pipe2(extra, O_CLOEXEC), 0);
    assert_int_equal(write(extra[1], "hello\n", 6), 6);
    spawn.stdout_fd = pipes[1];
    spawn.extra_fd = extra[0];
    /* Only built-ins look: a command substitution would open a descriptor of its own. */
    start(world,
          "read word <&3; for fd in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$fd ] && "
          "open=$open$fd; done; echo $word $open",
          spawn);
    assert_true(loop_run_until(world->loop, &world->done, WAIT_MS));
    size = read(pipes[0], said, sizeof(said) - 1);
    assert_true(size > 0);
    assert_string_equal(said, "hello 0123\n");
    for (int i = 0; i < 2; i++) {
        (void)close(pipes[i]);
        (void)close(extra[i]);
    }
}

static void test_exec_that_fails(void **state)
{
    struct world *world = *state;
    struct child_spawn spawn = plain;
    char *const argv[] = {"x", NULL};
    struct err err;

    spawn.path = "/no/such/program";
    spawn.argv = argv;
    assert_int_equal(child_start(world->loop, &spawn, on_end, world, &world->child, &err),
                     ERR_DEPENDENCY);
    assert_string_equal(err.text, "start /no/such/program: No such file or directory");
}

static void test_watches_a_process_of_somebody_else(void **state)
{
    struct world *world = *state;
    pid_t pid = fork();
    uint64_t ticks;
    struct err err;

    if (pid == 0) {
        (void)pause();
        _exit(0);
    }
    ticks = child_start_ticks(pid);
    assert_true(ticks > 0);
    assert_int_equal(child_watch(world->loop, pid, ticks + 1, on_end, world, &world->child, &err),
                     ERR_NOT_FOUND);
    assert_int_equal(child_watch(world->loop, pid, ticks, on_end, world, &world->child, &err), 0);
    child_signal(world->child, SIGKILL);
    assert_true(loop_run_until(world->loop, &world->done, WAIT_MS));
    assert_false(world->end.known);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(child_start_ticks(pid), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_ends, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_signal, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_descriptors, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_exec_that_fails, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_watches_a_process_of_somebody_else, world_open,
                                        world_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
