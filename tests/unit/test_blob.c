/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what was put comes back whole, a failed or dropped write leaves nothing behind, and no key
 * leads out of the directory. Method: the real adapter in a directory of its own. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/loop.h"
#include "brokers/blob.h"
#include "schema/job_id.h"

#define WAIT_MS 5000

struct world {
    struct loop *loop;
    struct blob_store *store;
    char path[64];
    bool done;
    int code, fd;
    uint64_t size;
    struct buf bytes;
    struct blob_list list;
};

static int world_open(void **state)
{
    static struct world world;
    struct err err;

    world = (struct world){.path = "/tmp/test_blob_XXXXXX", .bytes = BUF_WITH_LIMIT(1u << 20)};
    *state = &world;
    if (mkdtemp(world.path) == NULL || loop_open(&world.loop, &err) < 0)
        return -1;
    return blob_store_open(world.loop, world.path, &world.store, &err);
}

static int world_close(void **state)
{
    struct world *world = *state;
    char command[128];

    blob_store_close(&world->store);
    loop_close(&world->loop);
    buf_done(&world->bytes);
    blob_list_done(&world->list);
    (void)snprintf(command, sizeof(command), "rm -rf %s", world->path);
    return system(command); /* NOLINT: a test's own directory */
}

static void on_done(void *opaque, const struct err *err)
{
    struct world *world = opaque;

    world->code = err->code;
    world->done = true;
}

static void on_bytes(void *opaque, struct buf *bytes, const struct err *err)
{
    struct world *world = opaque;

    buf_done(&world->bytes);
    buf_move(&world->bytes, bytes);
    on_done(opaque, err);
}

static void on_file(void *opaque, int fd, uint64_t size, const struct err *err)
{
    struct world *world = opaque;

    world->fd = fd;
    world->size = size;
    on_done(opaque, err);
}

static int wait_code(struct world *world)
{
    bool in_time = loop_run_until(world->loop, &world->done, WAIT_MS);

    assert_true(in_time);
    world->done = false;
    return world->code;
}

static int file_count(const struct world *world, const char *folder)
{
    char path[128];
    DIR *list;
    struct dirent *entry;
    int count = 0;

    (void)snprintf(path, sizeof(path), "%s/%s", world->path, folder);
    list = opendir(path);
    assert_non_null(list);
    while ((entry = readdir(list)) != NULL)
        count += entry->d_name[0] != '.';
    (void)closedir(list);
    return count;
}

static int put(struct world *world, const char *key, const char *text)
{
    struct buf bytes = BUF_WITH_LIMIT(1u << 20);
    struct err err;
    int r;

    buf_append_text(&bytes, text);
    r = blob_put(world->store, key, &bytes, on_done, world, &err);
    return r < 0 ? r : wait_code(world);
}

static int get(struct world *world, const char *key, size_t limit)
{
    struct err err;
    int r = blob_get(world->store, key, limit, on_bytes, world, &err);

    return r < 0 ? r : wait_code(world);
}

static void test_put_get(void **state)
{
    struct world *world = *state;

    assert_int_equal(put(world, "jobs/2026-01-31/x/input", "water"), 0);
    assert_int_equal(put(world, "top", ""), 0);
    assert_int_equal(file_count(world, "tmp"), 0);

    assert_int_equal(get(world, "jobs/2026-01-31/x/input", 5), 0);
    assert_int_equal(world->bytes.size, 5);
    assert_memory_equal(world->bytes.bytes, "water\0\0\0", 8);
    assert_int_equal(get(world, "top", 0), 0);
    assert_int_equal(world->bytes.size, 0);

    assert_int_equal(get(world, "jobs/2026-01-31/x/input", 4), ERR_TOO_BIG);
    assert_int_equal(get(world, "jobs/2026-01-31/y/input", 5), ERR_NOT_FOUND);
    assert_int_equal(get(world, "jobs/2026-01-31", 5), ERR_NOT_FOUND);
}

static void test_put_replaces(void **state)
{
    struct world *world = *state;

    assert_int_equal(put(world, "a/b", "one"), 0);
    assert_int_equal(put(world, "a/b", "two"), 0);
    assert_int_equal(get(world, "a/b", 100), 0);
    assert_memory_equal(world->bytes.bytes, "two", 3);
    assert_int_equal(file_count(world, "a"), 1);
}

static void test_open_remove(void **state)
{
    struct world *world = *state;
    char text[8];
    struct err err;

    assert_int_equal(put(world, "a/b", "water"), 0);
    assert_int_equal(blob_open(world->store, "a/b", on_file, world, &err), 0);
    assert_int_equal(wait_code(world), 0);
    assert_int_equal(world->size, 5);
    assert_int_equal(read(world->fd, text, sizeof(text)), 5);
    (void)close(world->fd);

    for (int i = 0; i < 2; i++) {
        assert_int_equal(blob_remove(world->store, "a/b", on_done, world, &err), 0);
        assert_int_equal(wait_code(world), 0);
    }
    assert_int_equal(blob_open(world->store, "a/b", on_file, world, &err), 0);
    assert_int_equal(wait_code(world), ERR_NOT_FOUND);
    assert_int_equal(world->fd, -1);
}

static void test_upload(void **state)
{
    static const uint8_t want[] = {0xa0, 0x9d, 0x5e, 0x23}; /* of "headrace" */
    struct world *world = *state;
    struct blob_upload *upload = NULL;
    uint8_t digest[BLOB_DIGEST_SIZE];
    char key[BLOB_KEY_SIZE];
    const char *parts[] = {"head", "race"};
    struct err err;

    assert_int_equal(blob_upload_new(world->store, &upload, &err), 0);
    for (size_t i = 0; i < 2; i++) {
        struct buf bytes = BUF_WITH_LIMIT(100);

        buf_append_text(&bytes, parts[i]);
        assert_int_equal(blob_upload_write(upload, &bytes, on_done, world, &err), 0);
        assert_int_equal(wait_code(world), 0);
    }
    assert_int_equal(blob_upload_size(upload), 8);
    assert_int_equal(access(blob_upload_path(upload), R_OK), 0);
    blob_upload_digest(upload, digest);
    assert_memory_equal(digest, want, sizeof(want));
    blob_key_archive(digest, key);
    assert_int_equal(blob_upload_end(upload, key, on_done, world, &err), 0);
    assert_int_equal(wait_code(world), 0);
    blob_upload_free(&upload);
    assert_int_equal(get(world, key, 100), 0);
    assert_memory_equal(world->bytes.bytes, "headrace", 8);
    assert_int_equal(file_count(world, "tmp"), 0);
}

static void test_upload_dropped(void **state)
{
    struct world *world = *state;
    struct blob_upload *upload = NULL;
    struct buf bytes = BUF_WITH_LIMIT(100);
    struct err err;

    assert_int_equal(blob_upload_new(world->store, &upload, &err), 0);
    blob_upload_free(&upload);
    assert_int_equal(file_count(world, "tmp"), 0);

    assert_int_equal(blob_upload_new(world->store, &upload, &err), 0);
    buf_append_text(&bytes, "half");
    assert_int_equal(blob_upload_write(upload, &bytes, on_done, world, &err), 0);
    blob_upload_free(&upload); /* while the write is under way: its answer is dropped */
    assert_int_equal(put(world, "a", "b"), 0);
    assert_false(world->done);
    blob_store_close(&world->store);
    loop_run(world->loop);
    assert_int_equal(file_count(world, "tmp"), 0);
}

static void test_close_drops_answers(void **state)
{
    struct world *world = *state;
    struct buf bytes = BUF_WITH_LIMIT(100);
    struct err err;

    buf_append_text(&bytes, "water");
    assert_int_equal(blob_put(world->store, "a", &bytes, on_done, world, &err), 0);
    blob_store_close(&world->store);
    loop_run(world->loop);
    assert_false(world->done);
}

static void test_keys(void **state)
{
    static const char *const bad[] = {"",     "/a", "a/",  "a//b", "../a", "a/../b",
                                      "a/.b", ".a", "a b", "a\nb", "a\\b", "\xc3\xa4"};
    static const char *const good[] = {"a", "a.b", "jobs/2026-01-31/0-9_Z/input", "a..b"};
    struct world *world = *state;
    const uint8_t entropy[JOB_ID_RANDOM_SIZE] = {1, 2, 3, 4, 5, 6, 7, 8};
    struct wire_id id = job_id_make(5, 1769817600000, entropy); /* 2026-01-31T00:00:00Z */
    char key[BLOB_KEY_SIZE], id_text[JOB_ID_TEXT_SIZE], want[BLOB_KEY_SIZE], longest[200];
    struct err err;

    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_int_equal(blob_key_check(bad[i], &err), ERR_MALFORMED);
    for (size_t i = 0; i < COUNT_OF(good); i++)
        assert_int_equal(blob_key_check(good[i], &err), 0);
    memset(longest, 'a', sizeof(longest));
    longest[BLOB_KEY_SIZE] = '\0';
    assert_int_equal(blob_key_check(longest, &err), ERR_MALFORMED);
    longest[BLOB_KEY_SIZE - 1] = '\0';
    assert_int_equal(blob_key_check(longest, &err), 0);
    assert_int_equal(put(world, "../a", "b"), ERR_MALFORMED);
    assert_int_equal(get(world, "../a", 1), ERR_MALFORMED);

    job_id_format(&id, id_text);
    blob_key_input(&id, key);
    (void)snprintf(want, sizeof(want), "jobs/2026-01-31/%s/input", id_text);
    assert_string_equal(key, want);
    blob_key_output(&id, 0xabc, key);
    (void)snprintf(want, sizeof(want), "jobs/2026-01-31/%s/0000000000000abc", id_text);
    assert_string_equal(key, want);
    assert_int_equal(blob_key_check(key, &err), 0);
}

static void on_copied(void *opaque, uint64_t size, const uint8_t digest[BLOB_DIGEST_SIZE],
                      const struct err *err)
{
    struct world *world = opaque;

    world->size = size;
    world->fd = digest[0];
    on_done(opaque, err);
}

/* From one file to another through the store, with nothing in memory. */
static void test_files(void **state)
{
    static const char piece[4096] = "water";
    struct world *world = *state;
    char path[100], path_too[100];
    int from, to;
    struct err err;

    (void)snprintf(path, sizeof(path), "%s/from", world->path);
    (void)snprintf(path_too, sizeof(path_too), "%s/to", world->path);
    from = open(path, O_RDWR | O_CREAT, 0600);
    to = open(path_too, O_RDWR | O_CREAT, 0600);
    for (int i = 0; i < 256; i++)
        assert_int_equal(write(from, piece, sizeof(piece)), sizeof(piece));
    assert_int_equal(blob_put_file(world->store, "a/b/c", from, 1 << 20, on_done, world, &err), 0);
    (void)close(from); /* the store has its own */
    assert_int_equal(wait_code(world), 0);
    assert_int_equal(write(to, "old", 3), 3);
    assert_int_equal(blob_copy(world->store, "a/b/c", to, 1 << 20, on_copied, world, &err), 0);
    assert_int_equal(wait_code(world), 0);
    assert_int_equal(world->size, 1 << 20);
    assert_int_equal(lseek(to, 0, SEEK_END), 1 << 20);
    assert_int_equal(blob_copy(world->store, "a/b/c", to, 100, on_copied, world, &err), 0);
    assert_int_equal(wait_code(world), ERR_TOO_BIG);
    assert_int_equal(blob_copy(world->store, "a/none", to, 100, on_copied, world, &err), 0);
    assert_int_equal(wait_code(world), ERR_NOT_FOUND);
    (void)close(to);
}

static void on_list(void *opaque, struct blob_list *list, const struct err *err)
{
    struct world *world = opaque;

    blob_list_done(&world->list);
    world->list = *list;
    *list = (struct blob_list){0};
    on_done(opaque, err);
}

static int list(struct world *world, const char *after, uint32_t count_max, bool folders)
{
    const struct blob_listing listing = {
        .prefix = "jobs/", .after = after, .count_max = count_max, .folders = folders};
    struct err err;

    assert_int_equal(blob_list(world->store, &listing, on_list, world, &err), 0);
    return wait_code(world);
}

static void test_list(void **state)
{
    static const char *const keys[] = {"jobs/2026-01-30/a/input", "jobs/2026-01-31/a/0001",
                                       "jobs/2026-01-31/a/input", "jobs/2026-01-31/b/input",
                                       "jobs/2026-02-01/c/input"};
    struct world *world = *state;
    char after[BLOB_LIST_LAST_SIZE] = "";
    size_t seen = 0;
    struct err err;

    assert_int_equal(list(world, "", 10, false), 0);
    assert_int_equal(world->list.count, 0);
    for (size_t i = COUNT_OF(keys); i-- > 0;)
        assert_int_equal(put(world, keys[i], "water"), 0);
    assert_int_equal(put(world, "archives/x", "water"), 0);
    do {
        assert_int_equal(list(world, after, 2, false), 0);
        for (size_t i = 0; i < world->list.count; i++) {
            assert_string_equal(world->list.entries[i].key, keys[seen++]);
            assert_int_equal(world->list.entries[i].size, 5);
            assert_true(world->list.entries[i].modified_us > 1700000000000000);
        }
        mem_copy_text(after, world->list.last);
    } while (world->list.more);
    assert_int_equal(seen, COUNT_OF(keys));
    assert_int_equal(list(world, "jobs/2026-01-30", 10, true), 0);
    assert_int_equal(world->list.count, 2);
    assert_string_equal(world->list.entries[0].key, "jobs/2026-01-31");

    /* A removal takes emptied folders along, but not the first. */
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        assert_int_equal(blob_remove(world->store, keys[i], on_done, world, &err), 0);
        assert_int_equal(wait_code(world), 0);
    }
    assert_int_equal(file_count(world, "jobs"), 0);
    assert_int_equal(put(world, keys[0], "again"), 0);
}

static void test_open_refuses(void **state)
{
    struct world *world = *state;
    struct blob_store *store = NULL;
    struct err err;

    assert_int_equal(blob_store_open(world->loop, "ftp://bucket", &store, &err), ERR_UNSUPPORTED);
    assert_int_equal(blob_store_open(world->loop, "relative", &store, &err), ERR_USAGE);
    assert_int_equal(blob_store_open(world->loop, "file:///proc/nope", &store, &err), ERR_IO);
    assert_null(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_put_get, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_put_replaces, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_open_remove, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_upload, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_upload_dropped, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_close_drops_answers, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_keys, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_files, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_list, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_open_refuses, world_open, world_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
