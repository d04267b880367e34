/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what was packed comes back byte by byte; what is cut off, broken or too large is refused,
 * and a plain file is none. Method: libarchive packs, files without a name. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <archive.h>
#include <archive_entry.h>
#include <cmocka.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "producers/bulk_unpack.h"

#define FOLDER "/tmp"
#define TEXT_SIZE 700000

static char text[TEXT_SIZE];

static int file_of(const void *bytes, size_t size)
{
    int fd = open(FOLDER, O_TMPFILE | O_RDWR, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, size), size);
    return fd;
}

/* Packs the text; the file is the caller's. */
static int pack(int (*add_filter)(struct archive *archive))
{
    struct archive *archive = archive_write_new();
    struct archive_entry *entry = archive_entry_new();
    int fd = open(FOLDER, O_TMPFILE | O_RDWR, 0600);

    assert_true(fd >= 0);
    assert_int_equal(add_filter(archive), ARCHIVE_OK);
    assert_int_equal(archive_write_set_format_raw(archive), ARCHIVE_OK);
    assert_int_equal(archive_write_open_fd(archive, fd), ARCHIVE_OK);
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_pathname(entry, "lines");
    assert_int_equal(archive_write_header(archive, entry), ARCHIVE_OK);
    assert_int_equal(archive_write_data(archive, text, TEXT_SIZE), TEXT_SIZE);
    assert_int_equal(archive_write_close(archive), ARCHIVE_OK);
    (void)archive_write_free(archive);
    archive_entry_free(entry);
    return fd;
}

static void expect_text(int fd)
{
    static char back[TEXT_SIZE];
    uint64_t size = 0;
    int unpacked = -1;
    struct err err = {.text = ""};

    assert_true(bulk_is_packed(fd));
    if (bulk_unpack(fd, FOLDER, TEXT_SIZE, &unpacked, &size, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(size, TEXT_SIZE);
    assert_int_equal(pread(unpacked, back, TEXT_SIZE, 0), TEXT_SIZE);
    assert_memory_equal(back, text, TEXT_SIZE);
    (void)close(unpacked);
}

static void expect_refusal(int fd, uint64_t limit, int code, const char *says)
{
    uint64_t size;
    int unpacked;
    struct err err = {.text = ""};

    assert_int_equal(bulk_unpack(fd, FOLDER, limit, &unpacked, &size, &err), code);
    if (strstr(err.text, says) == NULL)
        fail_msg("%s", err.text);
}

static void test_one(int (*add_filter)(struct archive *archive))
{
    int fd = pack(add_filter);

    expect_text(fd);
    expect_refusal(fd, TEXT_SIZE - 1, ERR_TOO_BIG, "699999 bytes of unpacked-max");
    assert_int_equal(ftruncate(fd, lseek(fd, 0, SEEK_END) / 2), 0);
    expect_refusal(fd, TEXT_SIZE, ERR_MALFORMED, "broken or cut off");
    (void)close(fd);
}

static void test_gzip(void **state)
{
    (void)state;
    test_one(archive_write_add_filter_gzip);
}

static void test_zstd(void **state)
{
    (void)state;
    test_one(archive_write_add_filter_zstd);
}

static void test_not_packed(void **state)
{
    static const char broken[] = "\x1f\x8b\x08 and no more of it";
    int plain = file_of("{\"a\": 1}\n", 9), little = file_of("x", 1);
    int bad = file_of(broken, sizeof(broken));

    (void)state;
    assert_false(bulk_is_packed(plain));
    assert_false(bulk_is_packed(little));
    assert_true(bulk_is_packed(bad));
    expect_refusal(bad, TEXT_SIZE, ERR_MALFORMED, "broken or cut off");
    (void)close(plain);
    (void)close(little);
    (void)close(bad);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gzip),
        cmocka_unit_test(test_zstd),
        cmocka_unit_test(test_not_packed),
    };

    for (size_t i = 0; i < TEXT_SIZE; i++)
        text[i] = (char)('a' + (i * i / 7 + i % 251) % 26);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
