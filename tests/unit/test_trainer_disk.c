/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: a node that fills more than it may is found with the next look, however long a walk of its
 * folder takes, and a folder that takes long is not walked all the time.
 * Method: rows of what is known and what is seen; a folder in /tmp.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "workers/agent_unpack.h"
#include "workers/trainer_disk.h"

#define GIB (1ull << 30)

/* Walked at 0 with 100 GiB free and found to be 4 GiB; to be walked again at 10. */
static const struct {
    const char *what;
    uint64_t free_size, limit, now_us;
    bool due;
} rows[] = {
    {"nothing has changed", 100 * GIB, 10 * GIB, 9, false},
    {"it is time", 100 * GIB, 10 * GIB, 10, true},
    {"there is more room", 200 * GIB, 10 * GIB, 9, false},
    {"less than it may fill is gone", 95 * GIB, 10 * GIB, 9, false},
    {"all that it may fill is gone", 94 * GIB, 10 * GIB, 9, true},
    {"more than that", 1 * GIB, 10 * GIB, 9, true},
    {"the same with a large limit", 1 * GIB, 1000 * GIB, 9, false},
    {"it was at its limit, and a block is gone", 100 * GIB - 4096, 4 * GIB, 9, true},
    {"it was at its limit, and nothing is gone", 100 * GIB, 4 * GIB, 9, false},
    {"it was above a limit that is new", 100 * GIB - 1, GIB, 9, true},
    {"there is no limit left", 100 * GIB - 1, 0, 9, true},
};

static void test_when(void **state)
{
    const struct trainer_disk walked = {
        .size = 4 * GIB, .free_size = 100 * GIB, .next_us = 10, .walked = true};
    const struct trainer_disk never = {.size = 0};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (trainer_disk_is_due(&walked, rows[i].free_size, rows[i].limit, rows[i].now_us) !=
            rows[i].due)
            fail_msg("%s", rows[i].what);
    }
    assert_true(trainer_disk_is_due(&never, GIB, GIB, 1));
}

/* A share of the time, and a minute at most. */
static void test_rest(void **state)
{
    (void)state;
    assert_int_equal(trainer_walk_rest_us(0), 0);
    assert_int_equal(trainer_walk_rest_us(200), 200 * TRAINER_WALK_SHARE);
    assert_int_equal(trainer_walk_rest_us(60000000), TRAINER_WALK_US_MOST);
    assert_int_equal(trainer_walk_rest_us(UINT64_MAX), TRAINER_WALK_US_MOST);
    for (uint64_t us = 1; us < 100000; us += 7)
        assert_true(trainer_walk_rest_us(us) >= trainer_walk_rest_us(us - 1));
}

static void fill(const char *folder, const char *name, size_t size)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", folder, name);
    OWNED(mem_free) char *bytes = xcalloc(size, 1);
    FILE *file = fopen(path, "we");

    assert_non_null(file);
    memset(bytes, 'x', size);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fflush(file), 0);
    assert_int_equal(fsync(fileno(file)), 0); /* its blocks are counted from now on */
    assert_int_equal(fclose(file), 0);
}

static void test_a_folder_that_grows(void **state)
{
    char folder[] = "/tmp/headrace-disk-XXXXXX";
    struct trainer_disk disk = {.size = 0};
    struct err err;

    (void)state;
    assert_non_null(mkdtemp(folder));
    fill(folder, "a", 1u << 20);
    trainer_disk_look(&disk, folder, 8u << 20, 1000);
    assert_true(disk.walked);
    assert_in_range(disk.size, 1u << 20, 2u << 20);
    /* It took no time to speak of; from here on it is as if it had. */
    disk.next_us = 1000000;
    disk.free_size = UINT64_MAX;
    disk.size = 0;
    fill(folder, "b", 2u << 20);
    trainer_disk_look(&disk, folder, UINT64_MAX, 2000);
    assert_false(disk.walked);
    assert_int_equal(disk.size, 0);
    trainer_disk_look(&disk, folder, 1u << 20, 3000);
    assert_true(disk.walked);
    assert_in_range(disk.size, 3u << 20, 4u << 20);
    assert_true(disk.free_size < UINT64_MAX);
    assert_int_equal(agent_remove_tree(folder, &err), 0);
    trainer_disk_look(&disk, folder, 1u << 20, 100000000);
    assert_true(disk.walked);
    assert_int_equal(disk.size, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_when),
        cmocka_unit_test(test_rest),
        cmocka_unit_test(test_a_folder_that_grows),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
