/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: an archive is unpacked whole or not at all, stays inside its folder, and counts only with
 * the right digest. Method: archives made here with libarchive, good ones and hostile ones. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <archive.h>
#include <archive_entry.h>
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "workers/agent_unpack.h"

#define ARCHIVE_SIZE (1u << 20)

struct item {
    const char *path, *content;
    unsigned type;    /* 0: a file */
    const char *link; /* target of a symbolic or hard one */
    bool hard;
};

struct world {
    char cache[64];
    char digest[65];
    int fd;
};

/* An unnamed file with the archive, and its digest. */
static void world_pack(struct world *world, const struct item *items, size_t item_count)
{
    OWNED(mem_free) char *bytes = xmalloc(ARCHIVE_SIZE);
    struct archive *archive = archive_write_new();
    uint8_t digest[EVP_MAX_MD_SIZE];
    size_t used = 0;

    assert_int_equal(archive_write_set_format_pax_restricted(archive), ARCHIVE_OK);
    assert_int_equal(archive_write_add_filter_zstd(archive), ARCHIVE_OK);
    assert_int_equal(archive_write_open_memory(archive, bytes, ARCHIVE_SIZE, &used), ARCHIVE_OK);
    for (size_t i = 0; i < item_count; i++) {
        struct archive_entry *entry = archive_entry_new();
        size_t size = items[i].content == NULL ? 0 : strlen(items[i].content);

        archive_entry_set_pathname(entry, items[i].path);
        archive_entry_set_filetype(entry, items[i].type == 0 ? AE_IFREG : items[i].type);
        archive_entry_set_perm(entry, strcmp(items[i].path, "empty") == 0 ? 04666 : 04777);
        archive_entry_set_size(entry, (la_int64_t)size);
        if (items[i].link != NULL && items[i].hard)
            archive_entry_set_hardlink(entry, items[i].link);
        else if (items[i].link != NULL)
            archive_entry_set_symlink(entry, items[i].link);
        assert_int_equal(archive_write_header(archive, entry), ARCHIVE_OK);
        if (size > 0)
            assert_int_equal(archive_write_data(archive, items[i].content, size), size);
        archive_entry_free(entry);
    }
    assert_int_equal(archive_write_close(archive), ARCHIVE_OK);
    (void)archive_write_free(archive);
    assert_int_equal(EVP_Digest(bytes, used, digest, NULL, EVP_sha256(), NULL), 1);
    for (int i = 0; i < 32; i++)
        (void)snprintf(world->digest + 2 * i, 3, "%02x", digest[i]);
    world->fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    assert_int_equal(write(world->fd, bytes, used), used);
    assert_int_equal(lseek(world->fd, 0, SEEK_SET), 0);
}

static int world_open(void **state)
{
    static struct world world;

    world = (struct world){.cache = "/tmp/test-unpack-XXXXXX", .fd = -1};
    *state = &world;
    return mkdtemp(world.cache) == NULL ? -1 : 0;
}

static int world_close(void **state)
{
    struct world *world = *state;
    struct err err;

    if (world->fd >= 0)
        (void)close(world->fd);
    return agent_remove_tree(world->cache, &err);
}

static int entries_of(const char *folder)
{
    DIR *dir = opendir(folder);
    int count = 0;

    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    (void)closedir(dir);
    return count;
}

static void test_good_archive(void **state)
{
    static const struct item items[] = {
        {"config.json", "{}", 0, NULL, false},
        {"1_Pooling", NULL, AE_IFDIR, NULL, false},
        {"1_Pooling/config.json", "{\"a\":1}", 0, NULL, false},
        {"./deep/er/file", "x", 0, NULL, false},
        {"empty", NULL, 0, NULL, false},
    };
    struct world *world = *state;
    OWNED(mem_free) char *folder = NULL;
    OWNED(mem_free) char *again = NULL;
    OWNED(mem_free) char *path = NULL;
    struct stat about;
    struct err err;

    world_pack(world, items, COUNT_OF(items));
    assert_null(agent_unpacked(world->cache, world->digest));
    assert_int_equal(agent_unpack(world->fd, world->digest, world->cache, 1 << 20, &folder, &err),
                     0);
    again = agent_unpacked(world->cache, world->digest);
    assert_string_equal(again, folder);
    path = xasprintf("%s/1_Pooling/config.json", folder);
    assert_int_equal(stat(path, &about), 0);
    assert_int_equal(about.st_size, 7);
    assert_int_equal(about.st_mode & 07777,
                     0755); /* a program; the rest is ours, not the archive's */
    mem_free(&path);
    path = xasprintf("%s/empty", folder);
    assert_int_equal(stat(path, &about), 0);
    assert_int_equal(about.st_mode & 07777, 0644);
    assert_int_equal(entries_of(folder), 4);
    assert_int_equal(entries_of(world->cache), 1);
}

static void test_bad_archives(void **state)
{
    static const struct {
        const char *what;
        struct item items[2];
        size_t item_count;
        int want;
        const char *holds;
    } rows[] = {
        {"absolute", {{"/etc/x", "x", 0, NULL, false}}, 1, ERR_MALFORMED, "absolute path"},
        {"upwards", {{"../x", "x", 0, NULL, false}}, 1, ERR_MALFORMED, "leaves its folder"},
        {"upwards inside",
         {{"a/../../x", "x", 0, NULL, false}},
         1,
         ERR_MALFORMED,
         "leaves its folder"},
        {"link", {{"a", NULL, AE_IFLNK, "/etc", false}}, 1, ERR_MALFORMED, "neither a file"},
        {"through a link",
         {{"a", NULL, AE_IFLNK, "/tmp", false}, {"a/x", "x", 0, NULL, false}},
         2,
         ERR_MALFORMED,
         "neither a file"},
        {"hard link",
         {{"a", "x", 0, NULL, false}, {"b", NULL, 0, "a", true}},
         2,
         ERR_MALFORMED,
         "neither a file"},
        {"device", {{"a", NULL, AE_IFIFO, NULL, false}}, 1, ERR_MALFORMED, "neither a file"},
        {"one name twice",
         {{"a", "x", 0, NULL, false}, {"a", "y", 0, NULL, false}},
         2,
         ERR_MALFORMED,
         "make 'a'"},
        {"too much", {{"a", "0123456789abcdef0", 0, NULL, false}}, 1, ERR_TOO_BIG, "over 16 bytes"},
    };
    struct world *world = *state;

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(mem_free) char *folder = NULL;
        struct err err = {0};
        int r;

        world_pack(world, rows[i].items, rows[i].item_count);
        r = agent_unpack(world->fd, world->digest, world->cache, 16, &folder, &err);
        if (r != rows[i].want || strstr(err.text, rows[i].holds) == NULL)
            fail_msg("%s: %d, %s", rows[i].what, r, err.text);
        assert_null(folder);
        assert_int_equal(entries_of(world->cache), 0); /* nothing is left behind */
        (void)close(world->fd);
    }
    world->fd = -1;
}

static void test_wrong_digest_and_damage(void **state)
{
    static const struct item items[] = {{"config.json", "{}", 0, NULL, false}};
    struct world *world = *state;
    OWNED(mem_free) char *folder = NULL;
    struct err err;
    off_t size;

    world_pack(world, items, COUNT_OF(items));
    world->digest[0] = world->digest[0] == '0' ? '1' : '0';
    assert_int_equal(agent_unpack(world->fd, world->digest, world->cache, 100, &folder, &err),
                     ERR_MISMATCH);
    assert_int_equal(entries_of(world->cache), 0);

    size = lseek(world->fd, 0, SEEK_END);
    assert_int_equal(ftruncate(world->fd, size / 2), 0);
    assert_int_equal(lseek(world->fd, 0, SEEK_SET), 0);
    assert_true(agent_unpack(world->fd, world->digest, world->cache, 100, &folder, &err) < 0);
    assert_int_equal(entries_of(world->cache), 0);
    assert_int_equal(agent_unpack(world->fd, "../../x", world->cache, 100, &folder, &err),
                     ERR_RANGE);
}

static void test_sweep(void **state)
{
    static const char digit[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde";
    struct world *world = *state;
    OWNED(mem_free) char *kept = xasprintf("%s/%s1", world->cache, digit);
    OWNED(mem_free) char *old = xasprintf("%s/%s2", world->cache, digit);
    OWNED(mem_free) char *half = xasprintf("%s/.0123456789abcdef.XYZXYZ", world->cache);
    OWNED(mem_free) char *foreign = xasprintf("%s/notes", world->cache);
    const char *const digests[] = {strrchr(kept, '/') + 1};

    assert_int_equal(
        mkdir(kept, 0755) + mkdir(old, 0755) + mkdir(half, 0755) + mkdir(foreign, 0755), 0);
    assert_int_equal(agent_sweep_mark(world->cache, digests, 1, false), 1);
    assert_int_equal(access(old, F_OK), -1); /* out of the way at once */
    assert_int_equal(entries_of(world->cache), 4);
    agent_sweep_remove(world->cache);
    assert_int_equal(entries_of(world->cache), 3);
    assert_int_equal(agent_sweep_mark(world->cache, digests, 1, true), 1);
    agent_sweep_remove(world->cache);
    assert_int_equal(access(kept, F_OK) + access(foreign, F_OK), 0);
    assert_int_equal(entries_of(world->cache), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_good_archive, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_bad_archives, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_wrong_digest_and_damage, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_sweep, world_open, world_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
