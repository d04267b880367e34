/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: lines of a server are kept whole, cut at their limit, and a flood of them costs neither
 * memory nor the newest ones. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/loop.h"
#include "workers/server_log.h"

struct world {
    struct loop *loop;
    struct server_log *log;
    int fd; /* the server's end */
};

static int world_open(void **state)
{
    static struct world world;
    struct err err;
    int fds[2];

    world = (struct world){0};
    *state = &world;
    log_set_level(LOG_LEVEL_OFF);
    if (pipe(fds) < 0 || loop_open(&world.loop, &err) < 0)
        return -1;
    world.fd = fds[1];
    return server_log_open(world.loop, fds[0], &world.log, &err);
}

static int world_close(void **state)
{
    struct world *world = *state;

    if (world->fd >= 0)
        (void)close(world->fd);
    server_log_close(&world->log);
    loop_close(&world->loop);
    return 0;
}

static void say(struct world *world, const char *text)
{
    assert_int_equal(write(world->fd, text, strlen(text)), (ssize_t)strlen(text));
}

static void test_last_lines(void **state)
{
    struct world *world = *state;
    char last[64];

    server_log_last(world->log, last, sizeof(last));
    assert_string_equal(last, "");
    say(world, "one\r\n\ntwo\nthr");
    server_log_finish(world->log);
    server_log_last(world->log, last, sizeof(last));
    assert_string_equal(last, "one | two | thr");
    server_log_last(world->log, last, 14);
    assert_string_equal(last, "two | thr");
    server_log_last(world->log, last, 4); /* the newest is cut rather than left out */
    assert_string_equal(last, "thr");
}

static void test_a_long_line_is_cut(void **state)
{
    struct world *world = *state;
    char line[3 * SERVER_LINE_MAX + 2], last[4 * SERVER_LINE_MAX];

    memset(line, 'x', sizeof(line) - 2);
    memcpy(line + sizeof(line) - 2, "\n", 2);
    say(world, line);
    say(world, "end\n");
    server_log_finish(world->log);
    server_log_last(world->log, last, sizeof(last));
    assert_int_equal(strlen(last), SERVER_LINE_MAX + strlen(" | end"));
}

static void test_a_flood_keeps_the_newest(void **state)
{
    struct world *world = *state;
    char last[256], line[32];
    bool never = false;

    for (int i = 0; i < 5000; i++) {
        (void)snprintf(line, sizeof(line), "line %d\n", i);
        say(world, line);
        if (i % 100 == 99)
            (void)loop_run_until(world->loop, &never, 1);
    }
    (void)close(world->fd);
    world->fd = -1;
    server_log_finish(world->log);
    server_log_last(world->log, last, sizeof(last));
    assert_non_null(strstr(last, "line 4998 | line 4999"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_last_lines, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_a_long_line_is_cut, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_a_flood_keeps_the_newest, world_open, world_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
