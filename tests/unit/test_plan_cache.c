/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: a plan comes back byte for byte under the key that it was kept under and no other; damage
 * and foreign entries are errors, and the next put mends them; the bounds hold; writers in several
 * processes never show a reader half a plan.
 * Method: a directory of the test's own; files changed by hand; processes that write and read at
 * once.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "workers/engines/encoder_cuda/plan_cache.h"

static const struct plan_cache_key key = {"NVIDIA H200", "9.0", 91900, "sdpa [64,12,128,32]"};

struct world {
    char dir[64];
    struct plan_cache *cache;
    struct err err;
};

static int setup(void **state)
{
    struct world *world = xcalloc(1, sizeof(*world));

    (void)snprintf(world->dir, sizeof(world->dir), "/tmp/plan_cache.XXXXXX");
    if (!mkdtemp(world->dir) || plan_cache_open(world->dir, NULL, &world->cache, &world->err))
        return -1;
    *state = world;
    return 0;
}

static uint32_t each_file(const char *dir, void (*then)(const char *path))
{
    DIR *list = opendir(dir);
    uint32_t count = 0;

    assert_non_null(list);
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        char path[512];

        if (entry->d_name[0] == '.')
            continue;
        count++;
        (void)snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
        if (then)
            then(path);
    }
    (void)closedir(list);
    return count;
}

static void delete (const char *path)
{
    assert_int_equal(unlink(path), 0);
}

static int teardown(void **state)
{
    struct world *world = *state;

    plan_cache_close(&world->cache);
    (void)each_file(world->dir, delete);
    (void)rmdir(world->dir);
    free(world);
    return 0;
}

static void check_get(struct world *world, const struct plan_cache_key *at, const char *want)
{
    OWNED(mem_free) char *plan = NULL;

    if (plan_cache_get(world->cache, at, &plan, &world->err))
        fail_msg("%s", world->err.text);
    if (want)
        assert_string_equal(plan, want);
    else
        assert_null(plan);
}

static void put(struct world *world, const struct plan_cache_key *at, const char *plan)
{
    if (plan_cache_put(world->cache, at, plan, &world->err))
        fail_msg("%s", world->err.text);
}

static void test_kept(void **state)
{
    struct world *world = *state;
    const struct plan_cache_key others[] = {
        {"NVIDIA H100", "9.0", 91900, key.graph},
        {key.device, "10.0", 91900, key.graph},
        {key.device, "9.0", 91901, key.graph},
        {key.device, "9.0", 91900, "sdpa [64,12,128,64]"},
        {"NVIDIA H200\n9.0", "", 91900, key.graph},
    };

    check_get(world, &key, NULL);
    put(world, &key, "{\"plan\":\"\\u00e4\"}\nand more");
    check_get(world, &key, "{\"plan\":\"\\u00e4\"}\nand more");
    for (size_t i = 0; i < COUNT_OF(others); i++)
        check_get(world, &others[i], NULL);
    put(world, &key, "");
    check_get(world, &key, "");
    put(world, &key, "another");
    check_get(world, &key, "another");
    assert_int_equal(each_file(world->dir, NULL), 1);
}

static void test_reopened(void **state)
{
    struct world *world = *state;

    put(world, &key, "plan");
    plan_cache_close(&world->cache);
    assert_null(world->cache);
    assert_int_equal(plan_cache_open(world->dir, NULL, &world->cache, &world->err), 0);
    check_get(world, &key, "plan");
}

/* --- damage: each of these to the only file --- */

static void flip_last(const char *path)
{
    int fd = open(path, O_RDWR);

    assert_true(fd >= 0 && lseek(fd, -1, SEEK_END) > 0);
    assert_int_equal(write(fd, "X", 1), 1);
    (void)close(fd);
}

static void cut(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(truncate(path, st.st_size - 2), 0);
}

static void empty(const char *path)
{
    assert_int_equal(truncate(path, 0), 0);
}

static void grow_by_zeros(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(truncate(path, st.st_size + 8), 0);
}

static void grow_huge(const char *path)
{
    assert_int_equal(truncate(path, 1ll << 36), 0); /* sparse */
}

static void overwrite(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_TRUNC);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (int)strlen(text));
    (void)close(fd);
}

static void no_json(const char *path)
{
    overwrite(path, "plan\nplan");
}

static void other_format(const char *path)
{
    overwrite(path, "{\"headrace_plan\":2}\nplan");
}

static void no_digest(const char *path)
{
    overwrite(path, "{\"headrace_plan\":1,\"device\":\"NVIDIA H200\",\"capability\":\"9.0\","
                    "\"library\":91900,\"graph\":\"sdpa [64,12,128,32]\"}\nplan");
}

static void other_device(const char *path)
{
    overwrite(path, "{\"headrace_plan\":1,\"device\":\"NVIDIA L4\",\"capability\":\"9.0\","
                    "\"library\":91900,\"graph\":\"sdpa [64,12,128,32]\"}\nplan");
}

static void link_away(const char *path)
{
    delete (path);
    assert_int_equal(symlink("/etc/passwd", path), 0);
}

static void test_damaged(void **state)
{
    static const struct {
        void (*damage)(const char *path);
        int code;
    } rows[] = {{flip_last, ERR_MALFORMED},    {cut, ERR_MALFORMED},
                {empty, ERR_MALFORMED},        {grow_by_zeros, ERR_MALFORMED},
                {grow_huge, ERR_MALFORMED},    {no_json, ERR_MALFORMED},
                {other_format, ERR_MALFORMED}, {no_digest, ERR_MALFORMED},
                {other_device, ERR_MISMATCH},  {link_away, ERR_IO}};
    struct world *world = *state;

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char *plan = NULL;

        put(world, &key, "plan of some length");
        assert_int_equal(each_file(world->dir, rows[i].damage), 1);
        if (plan_cache_get(world->cache, &key, &plan, &world->err) != rows[i].code)
            fail_msg("row %zu: %s, '%s'", i, err_name(world->err.code), plan ? plan : "-");
        assert_null(plan);
        put(world, &key, "made anew");
        check_get(world, &key, "made anew");
    }
}

static void test_limits(void **state)
{
    struct world *world = *state;
    OWNED(mem_free) char *big = xcalloc(PLAN_CACHE_PLAN_SIZE_MAX + 2, 1);
    struct plan_cache_key long_key = key;

    memset(big, 'p', PLAN_CACHE_PLAN_SIZE_MAX);
    put(world, &key, big);
    check_get(world, &key, big);
    big[PLAN_CACHE_PLAN_SIZE_MAX] = 'p';
    assert_int_equal(plan_cache_put(world->cache, &key, big, &world->err), ERR_TOO_BIG);
    assert_non_null(strstr(world->err.text, "8388609"));
    big[4096] = '\0';
    long_key.graph = big;
    put(world, &long_key, "plan");
    check_get(world, &long_key, "plan");
    big[4096] = 'p';
    big[4097] = '\0';
    assert_int_equal(plan_cache_put(world->cache, &long_key, "plan", &world->err), ERR_TOO_BIG);
}

/* Times of use, a second apart, oldest first: a file system's clock is too coarse for a loop. */
static void put_at(struct world *world, const char *graph, const char *plan, time_t used)
{
    const struct timespec times[2] = {{used, 0}, {used, 0}};
    struct plan_cache_key at = key;
    DIR *list;

    at.graph = graph;
    put(world, &at, plan);
    list = opendir(world->dir);
    assert_non_null(list);
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        struct stat st;

        assert_int_equal(fstatat(dirfd(list), entry->d_name, &st, 0), 0);
        if (S_ISREG(st.st_mode) && st.st_mtim.tv_sec > 1000000)
            assert_int_equal(utimensat(dirfd(list), entry->d_name, times, 0), 0);
    }
    (void)closedir(list);
}

static bool has(struct world *world, const char *graph)
{
    OWNED(mem_free) char *plan = NULL;
    struct plan_cache_key at = key;

    at.graph = graph;
    assert_int_equal(plan_cache_get(world->cache, &at, &plan, &world->err), 0);
    return plan != NULL;
}

static void test_bounded(void **state)
{
    struct world *world = *state;
    const struct plan_cache_bounds by_count = {.entry_max = 3};
    const struct plan_cache_bounds by_size = {.size_max = 25000};
    OWNED(mem_free) char *plan = xcalloc(10001, 1);

    memset(plan, 'p', 10000);
    plan_cache_close(&world->cache);
    assert_int_equal(plan_cache_open(world->dir, &by_count, &world->cache, &world->err), 0);
    put_at(world, "a", plan, 100);
    put_at(world, "b", plan, 200);
    put_at(world, "c", plan, 300);
    assert_true(has(world, "a")); /* used just now: b is the oldest */
    put_at(world, "d", plan, 400);
    assert_int_equal(each_file(world->dir, NULL), 3);
    assert_false(has(world, "b"));

    plan_cache_close(&world->cache);
    assert_int_equal(plan_cache_open(world->dir, &by_size, &world->cache, &world->err), 0);
    put_at(world, "e", plan, 500);
    assert_int_equal(each_file(world->dir, NULL), 2);
    assert_true(has(world, "e"));
}

/* An entry larger than all that may be kept is kept itself: the caller has use for it. */
static void test_newest_stays(void **state)
{
    struct world *world = *state;
    const struct plan_cache_bounds bounds = {.size_max = 10};

    plan_cache_close(&world->cache);
    assert_int_equal(plan_cache_open(world->dir, &bounds, &world->cache, &world->err), 0);
    put(world, &key, "longer than ten bytes");
    check_get(world, &key, "longer than ten bytes");
}

static void make_file(const char *dir, const char *name, time_t used)
{
    const struct timespec times[2] = {{used, 0}, {used, 0}};
    char path[256];
    int fd;

    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    if (used)
        assert_int_equal(futimens(fd, times), 0);
    (void)close(fd);
}

static void test_parts(void **state)
{
    struct world *world = *state;

    make_file(world->dir, "0123456789abcdef.part", 1000); /* of a host that was killed */
    make_file(world->dir, "fedcba9876543210.part", 0);    /* of one that is writing */
    make_file(world->dir, "notes.txt", 1000);             /* not ours */
    put(world, &key, "plan");
    assert_int_equal(each_file(world->dir, NULL), 3);
}

static void test_refused(void **state)
{
    struct world *world = *state;
    struct plan_cache *other = NULL;
    char path[256];

    (void)snprintf(path, sizeof(path), "%s/no/such", world->dir);
    assert_int_equal(plan_cache_open(path, NULL, &other, &world->err), ERR_IO);
    assert_int_equal(chmod(world->dir, 0777), 0);
    assert_int_equal(plan_cache_open(world->dir, NULL, &other, &world->err), ERR_FORBIDDEN);
    assert_non_null(strstr(world->err.text, world->dir));
    assert_int_equal(chmod(world->dir, 0700), 0);
    make_file(world->dir, "file", 0);
    (void)snprintf(path, sizeof(path), "%s/file", world->dir);
    assert_int_equal(plan_cache_open(path, NULL, &other, &world->err), ERR_IO);
    assert_null(other);
}

#define PROCESSES 4
#define ROUNDS 40

/* Writes its own plan and reads somebody's whole one, ROUNDS times. */
static int run_process(const char *dir, char letter)
{
    struct plan_cache *cache = NULL;
    char plan[20001] = "";
    struct err err;

    memset(plan, letter, sizeof(plan) - 1);
    if (plan_cache_open(dir, NULL, &cache, &err))
        return 1;
    for (int i = 0; i < ROUNDS; i++) {
        OWNED(mem_free) char *got = NULL;

        if (plan_cache_put(cache, &key, plan, &err) || plan_cache_get(cache, &key, &got, &err))
            return 2;
        if (!got || strlen(got) != sizeof(plan) - 1 ||
            strspn(got, (char[]){got[0], 0}) != strlen(got))
            return 3;
    }
    plan_cache_close(&cache);
    return 0;
}

static void test_processes(void **state)
{
    struct world *world = *state;
    pid_t pids[PROCESSES];

    for (int i = 0; i < PROCESSES; i++) {
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i] == 0)
            _exit(run_process(world->dir, (char)('a' + i)));
    }
    for (int i = 0; i < PROCESSES; i++) {
        int status;

        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_int_equal(status, 0);
    }
    assert_int_equal(each_file(world->dir, NULL), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reopened, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(test_newest_stays, setup, teardown),
        cmocka_unit_test_setup_teardown(test_parts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_processes, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
