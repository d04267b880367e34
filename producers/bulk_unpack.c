/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/bulk_unpack.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define BLOCK_SIZE (256u << 10)

static void archive_done(struct archive **archive_p)
{
    if (*archive_p != NULL)
        (void)archive_read_free(*archive_p);
}

static void fd_done(int *fd_p)
{
    if (*fd_p >= 0)
        (void)close(*fd_p);
}

bool bulk_is_packed(int fd)
{
    uint8_t head[4] = {0};

    return pread(fd, head, sizeof(head), 0) == (ssize_t)sizeof(head) &&
           (memcmp(head, "\x1f\x8b", 2) == 0 || memcmp(head, "\x28\xb5\x2f\xfd", 4) == 0);
}

static int unpack_fail(struct archive *archive, struct err *err)
{
    const char *why = archive_error_string(archive);

    return err_set(err, ERR_MALFORMED, "the packed file is broken or cut off: %s",
                   why == NULL ? "it has nothing" : why);
}

static int unpack_open(struct archive *archive, int fd, struct err *err)
{
    struct archive_entry *entry;

    if (archive_read_support_filter_gzip(archive) != ARCHIVE_OK ||
        archive_read_support_filter_zstd(archive) != ARCHIVE_OK ||
        archive_read_support_format_raw(archive) != ARCHIVE_OK)
        return err_set(err, ERR_DEPENDENCY, "libarchive cannot unpack gzip or zstd here");
    if (lseek(fd, 0, SEEK_SET) < 0)
        return err_set_errno(err, ERR_IO, "read the input");
    if (archive_read_open_fd(archive, fd, BLOCK_SIZE) != ARCHIVE_OK ||
        archive_read_next_header(archive, &entry) != ARCHIVE_OK)
        return unpack_fail(archive, err);
    if (archive_filter_code(archive, 0) == ARCHIVE_FILTER_NONE)
        return err_set(
            err, ERR_MALFORMED,
            "the packed file is broken or cut off: it begins as gzip or zstd, and is none");
    return 0;
}

static int write_all(int fd, const char *bytes, size_t size, struct err *err)
{
    while (size > 0) {
        ssize_t n = write(fd, bytes, size);

        if (n < 0)
            return err_set_errno(err, ERR_IO, "write the unpacked input");
        bytes += n;
        size -= (size_t)n;
    }
    return 0;
}

int bulk_unpack(int fd, const char *folder, uint64_t limit, int *ret_fd, uint64_t *ret_size,
                struct err *err)
{
    OWNED(archive_done) struct archive *archive = archive_read_new();
    OWNED(fd_done) int to = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    OWNED(mem_free) char *block = xmalloc(BLOCK_SIZE);
    uint64_t size = 0;
    la_ssize_t n;
    int r;

    if (to < 0)
        return err_set_errno(err, ERR_IO, "make a file in %s", folder);
    r = unpack_open(archive, fd, err);
    while (r == 0 && (n = archive_read_data(archive, block, BLOCK_SIZE)) != 0) {
        if (n < 0)
            return unpack_fail(archive, err);
        size += (uint64_t)n;
        if (size > limit)
            return err_set(err, ERR_TOO_BIG,
                           "unpacked, it has more than the %llu bytes of "
                           "unpacked-max",
                           (unsigned long long)limit);
        r = write_all(to, block, (size_t)n, err);
    }
    if (r < 0)
        return r;
    *ret_fd = to;
    to = -1;
    *ret_size = size;
    return 0;
}
