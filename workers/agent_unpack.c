/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/agent_unpack.h"

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define UNPACK_READ_SIZE (256u << 10)
#define UNPACK_DIGEST_SIZE 32
#define SWEEP_PREFIX ".sweep."

struct unpack {
    int fd, folder_fd;
    EVP_MD_CTX *hash;
    struct archive *archive;
    uint64_t content_size, content_size_max;
    uint32_t entry_count;
    uint8_t block[UNPACK_READ_SIZE];
};

static void unpack_free(struct unpack **unpack_p)
{
    struct unpack *unpack = TAKE(*unpack_p);

    if (unpack == NULL)
        return;
    if (unpack->archive != NULL)
        (void)archive_read_free(unpack->archive);
    if (unpack->folder_fd >= 0)
        (void)close(unpack->folder_fd);
    EVP_MD_CTX_free(unpack->hash);
    free(unpack);
}

/* libarchive's callback: the next block, hashed on its way. */
static la_ssize_t unpack_read(struct archive *archive, void *opaque, const void **ret_block)
{
    struct unpack *unpack = opaque;
    ssize_t size;

    do {
        size = read(unpack->fd, unpack->block, sizeof(unpack->block));
    } while (size < 0 && errno == EINTR);
    if (size < 0) {
        archive_set_error(archive, errno, "read: %s", strerror(errno));
        return -1;
    }
    if (EVP_DigestUpdate(unpack->hash, unpack->block, (size_t)size) != 1) {
        archive_set_error(archive, ENOMEM, "SHA-256 is not to be had");
        return -1;
    }
    *ret_block = unpack->block;
    return size;
}

/* ---- entries ---- */

static int path_check(const char *path, struct err *err)
{
    const char *at = path;

    if (path == NULL || path[0] == '\0' || strlen(path) > AGENT_UNPACK_PATH_MAX)
        return err_set(err, ERR_MALFORMED,
                       "the archive has an entry without a name, or with one "
                       "of over %d bytes",
                       AGENT_UNPACK_PATH_MAX);
    if (path[0] == '/')
        return err_set(err, ERR_MALFORMED, "the archive's entry '%.100s' has an absolute path",
                       path);
    for (; at != NULL; at = strchr(at, '/')) {
        at += *at == '/';
        if (strncmp(at, "..", 2) == 0 && (at[2] == '/' || at[2] == '\0'))
            return err_set(err, ERR_MALFORMED, "the archive's entry '%.100s' leaves its folder",
                           path);
    }
    return 0;
}

/* Makes the folders that the path goes through. */
static int folders_make(int folder_fd, const char *path, struct err *err)
{
    OWNED(mem_free) char *part = xstrdup(path);

    for (char *slash = strchr(part, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (part[0] != '\0' && mkdirat(folder_fd, part, 0755) < 0 && errno != EEXIST)
            return err_set_errno(err, ERR_IO, "make folder '%.100s'", part);
        *slash = '/';
    }
    return 0;
}

static int file_fill(struct unpack *unpack, const char *path, int fd, struct err *err)
{
    const void *block;
    size_t size;
    la_int64_t offset;
    int r;

    while ((r = archive_read_data_block(unpack->archive, &block, &size, &offset)) == ARCHIVE_OK) {
        const uint8_t *at = block;

        unpack->content_size += size;
        if (unpack->content_size > unpack->content_size_max ||
            (uint64_t)offset > unpack->content_size_max)
            return err_set(err, ERR_TOO_BIG, "the archive unpacks to over %llu bytes",
                           (unsigned long long)unpack->content_size_max);
        while (size > 0) {
            ssize_t n = pwrite(fd, at, size, offset);

            if (n < 0)
                return err_set_errno(err, ERR_IO, "write '%.100s'", path);
            at += n;
            offset += n;
            size -= (size_t)n;
        }
    }
    if (r != ARCHIVE_EOF)
        return err_set(err, ERR_MALFORMED, "the archive's entry '%.100s': %.200s", path,
                       archive_error_string(unpack->archive));
    return 0;
}

static int file_make(struct unpack *unpack, const char *path, mode_t mode, struct err *err)
{
    int fd, r;

    r = folders_make(unpack->folder_fd, path, err);
    if (r < 0)
        return r;
    /* No links are ever made here, so none can be walked through; O_EXCL refuses a second entry of
     * one name. */
    fd = openat(unpack->folder_fd, path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                mode);
    if (fd < 0)
        return err_set_errno(err, errno == EEXIST ? ERR_MALFORMED : ERR_IO, "make '%.100s'", path);
    r = file_fill(unpack, path, fd, err);
    if (close(fd) < 0 && r == 0)
        r = err_set_errno(err, ERR_IO, "write '%.100s'", path);
    return r;
}

static int entry_make(struct unpack *unpack, struct archive_entry *entry, struct err *err)
{
    const char *path = archive_entry_pathname(entry);
    /* Of its mode only whether it is a program: a server that is pushed can be started. */
    mode_t mode = archive_entry_perm(entry) & 0100 ? 0755 : 0644;
    int r;

    if (++unpack->entry_count > AGENT_UNPACK_FILES_MAX)
        return err_set(err, ERR_TOO_BIG, "the archive has over %d entries", AGENT_UNPACK_FILES_MAX);
    r = path_check(path, err);
    if (r < 0)
        return r;
    if (archive_entry_hardlink(entry) != NULL ||
        (archive_entry_filetype(entry) != AE_IFREG && archive_entry_filetype(entry) != AE_IFDIR))
        return err_set(err, ERR_MALFORMED,
                       "the archive's entry '%.100s' is neither a file nor a "
                       "folder",
                       path);
    if (archive_entry_filetype(entry) == AE_IFREG)
        return file_make(unpack, path, mode, err);
    r = folders_make(unpack->folder_fd, path, err);
    if (r == 0 && mkdirat(unpack->folder_fd, path, 0755) < 0 && errno != EEXIST)
        return err_set_errno(err, ERR_IO, "make folder '%.100s'", path);
    return r;
}

/* ---- the whole ---- */

static int unpack_entries(struct unpack *unpack, struct err *err)
{
    struct archive_entry *entry;
    const void *block;
    int r;

    while ((r = archive_read_next_header(unpack->archive, &entry)) == ARCHIVE_OK) {
        int made = entry_make(unpack, entry, err);

        if (made < 0)
            return made;
    }
    if (r != ARCHIVE_EOF)
        return err_set(err, ERR_MALFORMED, "the archive cannot be read: %.300s",
                       archive_error_string(unpack->archive));
    /* What follows the last entry belongs to the digest too. */
    while ((r = (int)unpack_read(unpack->archive, unpack, &block)) > 0)
        ;
    return r < 0 ? err_set(err, ERR_IO, "%.300s", archive_error_string(unpack->archive)) : 0;
}

static int unpack_check_digest(struct unpack *unpack, const char *digest, struct err *err)
{
    uint8_t found[EVP_MAX_MD_SIZE];
    char text[2 * UNPACK_DIGEST_SIZE + 1];

    if (EVP_DigestFinal_ex(unpack->hash, found, NULL) != 1)
        return err_set(err, ERR_INTERNAL, "SHA-256 is not to be had");
    for (int i = 0; i < UNPACK_DIGEST_SIZE; i++)
        (void)snprintf(text + 2 * i, 3, "%02x", found[i]);
    if (strcmp(text, digest) != 0)
        return err_set(err, ERR_MISMATCH, "the archive's SHA-256 is %s, it should be %s", text,
                       digest);
    return 0;
}

static int unpack_open(int fd, const char *folder, uint64_t content_size_max,
                       struct unpack **ret_unpack, struct err *err)
{
    OWNED(unpack_free) struct unpack *unpack = xcalloc(1, sizeof(*unpack));

    unpack->fd = fd;
    unpack->content_size_max = content_size_max;
    unpack->folder_fd = open(folder, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
    if (unpack->folder_fd < 0)
        return err_set_errno(err, ERR_IO, "open '%s'", folder);
    unpack->hash = EVP_MD_CTX_new();
    unpack->archive = archive_read_new();
    if (unpack->hash == NULL || unpack->archive == NULL ||
        EVP_DigestInit_ex(unpack->hash, EVP_sha256(), NULL) != 1)
        return err_set(err, ERR_MEMORY, "memory for unpacking is not to be had");
    (void)archive_read_support_format_tar(unpack->archive);
    (void)archive_read_support_filter_zstd(unpack->archive);
    (void)archive_read_support_filter_gzip(unpack->archive);
    if (archive_read_open(unpack->archive, unpack, NULL, unpack_read, NULL) != ARCHIVE_OK)
        return err_set(err, ERR_MALFORMED, "the archive cannot be read: %.300s",
                       archive_error_string(unpack->archive));
    *ret_unpack = TAKE(unpack);
    return 0;
}

static int unpack_into(int fd, const char *digest, const char *folder, uint64_t content_size_max,
                       struct err *err)
{
    OWNED(unpack_free) struct unpack *unpack = NULL;
    int r = unpack_open(fd, folder, content_size_max, &unpack, err);

    if (r == 0)
        r = unpack_entries(unpack, err);
    if (r == 0)
        r = unpack_check_digest(unpack, digest, err);
    return r;
}

char *agent_unpacked(const char *cache, const char *digest)
{
    OWNED(mem_free) char *folder = xasprintf("%s/%s", cache, digest);
    struct stat about;

    return stat(folder, &about) == 0 && S_ISDIR(about.st_mode) ? TAKE(folder) : NULL;
}

int agent_unpack(int fd, const char *digest, const char *cache, uint64_t content_size_max,
                 char **ret_folder, struct err *err)
{
    OWNED(mem_free) char *folder = xasprintf("%s/%s", cache, digest);
    OWNED(mem_free) char *beside = xasprintf("%s/.%.16s.XXXXXX", cache, digest);
    struct err ignored;
    int r;

    if (strlen(digest) != 2 * UNPACK_DIGEST_SIZE ||
        strspn(digest, "0123456789abcdef") != 2 * UNPACK_DIGEST_SIZE)
        return err_set(err, ERR_RANGE, "digest '%.80s' is not 64 hex digits", digest);
    if (mkdtemp(beside) == NULL || chmod(beside, 0755) < 0)
        return err_set_errno(err, ERR_IO, "make a folder in %s", cache);
    r = unpack_into(fd, digest, beside, content_size_max, err);
    if (r == 0 && rename(beside, folder) < 0 && errno != ENOTEMPTY && errno != EEXIST)
        r = err_set_errno(err, ERR_IO, "rename to %s", folder);
    if (access(beside, F_OK) == 0)
        (void)!agent_remove_tree(beside, &ignored); /* the failure before it is the news */
    if (r == 0)
        *ret_folder = TAKE(folder);
    return r;
}

static int tree_remove_one(const char *path, const struct stat *about, int type, struct FTW *at)
{
    (void)about;
    (void)type;
    (void)at;
    return remove(path);
}

int agent_remove_tree(const char *path, struct err *err)
{
    if (nftw(path, tree_remove_one, 32, FTW_DEPTH | FTW_PHYS) < 0 && errno != ENOENT)
        return err_set_errno(err, ERR_IO, "remove %s", path);
    return 0;
}

/* ---- sweeping ---- */

static bool is_kept(const char *name, const char *const *digests, size_t digest_count)
{
    for (size_t i = 0; i < digest_count; i++) {
        if (strcmp(name, digests[i]) == 0)
            return true;
    }
    return false;
}

/* True for folders that we made: a digest, or what an unpacking has left behind. */
static bool is_ours(const char *name, bool all)
{
    bool hidden = name[0] == '.' && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;

    return strspn(name, "0123456789abcdef") == 2 * UNPACK_DIGEST_SIZE || (hidden && all);
}

size_t agent_sweep_mark(const char *cache, const char *const *digests, size_t digest_count,
                        bool all)
{
    DIR *folder = opendir(cache);
    struct dirent *entry;
    size_t count = 0;

    if (folder == NULL)
        return 0;
    while ((entry = readdir(folder)) != NULL) {
        OWNED(mem_free) char *from = xasprintf("%s/%s", cache, entry->d_name);
        OWNED(mem_free) char *to = xasprintf("%s/" SWEEP_PREFIX "%s", cache, entry->d_name);

        if (strncmp(entry->d_name, SWEEP_PREFIX, strlen(SWEEP_PREFIX)) == 0)
            count++;
        else if (is_ours(entry->d_name, all) && !is_kept(entry->d_name, digests, digest_count) &&
                 rename(from, to) == 0)
            count++;
    }
    (void)closedir(folder);
    return count;
}

void agent_sweep_remove(const char *cache)
{
    DIR *folder = opendir(cache);
    struct dirent *entry;
    struct err ignored; /* what cannot be removed now is tried again with the next sweep */

    if (folder == NULL)
        return;
    while ((entry = readdir(folder)) != NULL) {
        OWNED(mem_free) char *path = xasprintf("%s/%s", cache, entry->d_name);

        if (strncmp(entry->d_name, SWEEP_PREFIX, strlen(SWEEP_PREFIX)) == 0)
            (void)!agent_remove_tree(path, &ignored);
    }
    (void)closedir(folder);
}
