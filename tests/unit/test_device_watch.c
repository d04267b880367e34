/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: whoever watches devices is never kept waiting by them: a driver that hangs, at the first
 * look or at a later one, is told of after the limit, once; it is asked anew and heals; what asks
 * it is killed when it takes too long, and started again when it crashes. Method: the process is
 * this program; tests/unit/nvml_fake.c, whose path is in HEADRACE_NVML_FAKE, hangs while a file is
 * there.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/loop.h"
#include "workers/device_watch.h"

#define LIMIT_MS 300
#define LONG_MS 20000

static char dir[] = "/tmp/headrace-watch.XXXXXX";

static void write_file(const char *name, const char *how, const char *text)
{
    char path[64];
    FILE *file;

    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    file = fopen(path, how);
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void remove_file(const char *name)
{
    char path[64];

    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    (void)unlink(path);
}

static int open_fake(void **state)
{
    (void)state;
    if (getenv("HEADRACE_NVML_FAKE") == NULL)
        return 0;
    assert_non_null(mkdtemp(dir));
    (void)setenv("HEADRACE_NVML_FAKE_DIR", dir, 1);
    write_file("gpus", "we", "gpu GPU-a 8 6 24564 300 42 3 0 NVIDIA_A10G\n");
    return 0;
}

static int close_fake(void **state)
{
    (void)state;
    if (getenv("HEADRACE_NVML_FAKE") == NULL)
        return 0;
    remove_file("gpus");
    remove_file("xids");
    return rmdir(dir);
}

struct world {
    struct loop *loop;
    struct device_watch *watch;
    uint32_t answers, silences, xids; /* heard, since they were waited for */
    bool heard;
    char uuid[DEVICE_UUID_SIZE], why[DEVICE_TEXT_SIZE], xid_uuid[DEVICE_UUID_SIZE];
    size_t count;
};

static void on_devices(void *opaque, const struct device_list *list)
{
    struct world *world = opaque;

    world->answers++;
    world->count = list->count;
    mem_copy_text(world->uuid, list->infos[0].uuid);
    mem_copy_text(world->why, list->why);
    world->heard = true;
}

static void on_silent(void *opaque, const char *why)
{
    struct world *world = opaque;

    world->silences++;
    mem_copy_text(world->why, why);
    world->heard = true;
}

static void on_xid(void *opaque, const char *uuid, uint64_t xid)
{
    struct world *world = opaque;

    world->xids++;
    mem_copy_text(world->xid_uuid, uuid);
    world->heard = xid == 79;
}

static void world_open(struct world *world, const char *library, uint64_t first_ms,
                       uint64_t timeout_ms)
{
    static const struct device_watch_calls calls = {on_devices, on_silent, on_xid};
    const struct device_watch_options options = {library, first_ms, timeout_ms};
    struct err err;

    *world = (struct world){.count = 0};
    assert_int_equal(loop_open(&world->loop, &err), 0);
    world->watch = device_watch_open(world->loop, &options, &calls, world);
}

static void world_close(struct world *world)
{
    device_watch_close(&world->watch);
    assert_null(world->watch);
    loop_close(&world->loop);
}

/* Until the next that is heard. */
static void world_hear(struct world *world)
{
    world->heard = false;
    assert_true(loop_run_until(world->loop, &world->heard, LONG_MS));
}

/* Looks, as an agent does again and again, until it is answered. */
static void world_heal(struct world *world)
{
    uint32_t before = world->answers;

    for (int i = 0; i < LONG_MS / 20 && world->answers == before; i++) {
        bool never = false;

        (void)device_watch_look(world->watch);
        (void)loop_run_until(world->loop, &never, 20);
    }
    assert_int_equal(world->answers, before + 1);
}

static void test_without_a_driver(void **state)
{
    struct world world;

    (void)state;
    world_open(&world, "/nowhere/" NVML_LIBRARY, LONG_MS, LONG_MS);
    assert_true(device_watch_look(world.watch));
    assert_false(device_watch_look(world.watch)); /* one at a time */
    world_hear(&world);
    assert_int_equal(world.answers, 1);
    assert_int_equal(world.count, 0);
    assert_string_equal(world.why, "this machine has no NVIDIA driver (/nowhere/" NVML_LIBRARY
                                   " cannot be loaded)");
    assert_true(device_watch_look(world.watch));
    world_close(&world); /* in the middle of a look */
}

static void test_looks_and_xids(void **state)
{
    const char *library = getenv("HEADRACE_NVML_FAKE");
    struct world world;

    (void)state;
    if (library == NULL)
        skip();
    world_open(&world, library, LONG_MS, LONG_MS);
    for (uint32_t i = 1; i <= 3; i++) {
        assert_true(device_watch_look(world.watch));
        world_hear(&world);
        assert_int_equal(world.answers, i);
        assert_string_equal(world.uuid, "GPU-a");
    }
    write_file("xids", "ae", "0 -1 -1 31\n0 -1 -1 79\n");
    world_hear(&world);
    assert_int_equal(world.xids, 2);
    assert_string_equal(world.xid_uuid, "GPU-a");
    assert_int_equal(world.silences, 0);
    world_close(&world);
}

/* At the very first look: told after the first limit, with since when; told once; then it heals. */
static void test_hangs_at_first(void **state)
{
    const char *library = getenv("HEADRACE_NVML_FAKE");
    struct world world;

    (void)state;
    if (library == NULL)
        skip();
    write_file("hang", "we", "");
    world_open(&world, library, LIMIT_MS, LONG_MS);
    assert_true(device_watch_look(world.watch));
    world_hear(&world);
    assert_int_equal(world.silences, 1);
    assert_memory_equal(world.why, "the NVIDIA driver does not answer since 20", 42);
    assert_int_equal(strlen(world.why), strlen("the NVIDIA driver does not answer since ") + 20);
    assert_int_equal(world.answers, 0);
    assert_false(device_watch_look(world.watch)); /* it is waited for still */
    remove_file("hang");
    world_hear(&world); /* the late answer is an answer */
    assert_int_equal(world.answers, 1);
    assert_int_equal(world.silences, 1);
    world_close(&world);
}

/* At a later look, for so long that what asks is killed, twice: told once, and it heals. */
static void test_hangs_later(void **state)
{
    const char *library = getenv("HEADRACE_NVML_FAKE");
    struct world world;

    (void)state;
    if (library == NULL)
        skip();
    world_open(&world, library, LONG_MS, LIMIT_MS / 3);
    world_heal(&world);
    write_file("hang", "we", "");
    for (int i = 0; i < 2; i++) {
        bool never = false;

        while (!device_watch_look(world.watch)) /* the one before is killed, and has ended */
            (void)loop_run_until(world.loop, &never, 20);
        (void)loop_run_until(world.loop, &never, LIMIT_MS / 3 * 6);
    }
    assert_int_equal(world.silences, 1);
    assert_int_equal(world.answers, 1);
    remove_file("hang");
    world_heal(&world);
    assert_int_equal(world.silences, 1);
    assert_string_equal(world.uuid, "GPU-a");
    write_file("hang", "we", ""); /* a second time is news again */
    while (!device_watch_look(world.watch))
        world_hear(&world);
    world_hear(&world);
    assert_int_equal(world.silences, 2);
    world_close(&world); /* while it hangs: nothing waits */
    remove_file("hang");
}

static void test_crashes(void **state)
{
    const char *library = getenv("HEADRACE_NVML_FAKE");
    struct world world;

    (void)state;
    if (library == NULL)
        skip();
    write_file("crash", "we", "");
    world_open(&world, library, LONG_MS, LONG_MS);
    for (int i = 0; i < 3; i++) {
        bool never = false;

        while (!device_watch_look(world.watch))
            (void)loop_run_until(world.loop, &never, 20);
    }
    assert_int_equal(world.silences, 1);
    assert_string_equal(world.why, "what asks the NVIDIA driver was killed by signal 6 (Aborted)");
    remove_file("crash");
    world_heal(&world);
    assert_string_equal(world.uuid, "GPU-a");
    world_close(&world);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_a_driver), cmocka_unit_test(test_looks_and_xids),
        cmocka_unit_test(test_hangs_at_first),   cmocka_unit_test(test_hangs_later),
        cmocka_unit_test(test_crashes),
    };

    if (argc > 1 && strcmp(argv[1], "host-devices") == 0)
        return host_devices_main(argc - 1, argv + 1);
    return cmocka_run_group_tests(tests, open_fake, close_fake);
}
