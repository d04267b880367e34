/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/push_archive.h"

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/ignore.h"

#define PART_SIZE (256u * 1024)
#define IGNORE_FILE ".truss_ignore"

/* What is being written, and where it came from. */
struct packer {
    struct archive *archive;   /* NULL: nothing is written, only looked at */
    struct model_facts *facts; /* NULL: nobody wants them */
    const char *folder;
    const struct push_sources *sources; /* NULL: the folder, and all of it */
    struct ignore *ignore;
    uint64_t file_count, content_size, left_out_count;
    int depth;
};

static void packer_archive_free(struct archive **archive_p)
{
    if (*archive_p != NULL)
        (void)archive_write_free(*archive_p);
    *archive_p = NULL;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

static int archive_failed(struct packer *packer, const char *path, struct err *err)
{
    return err_set(err, ERR_IO, "packing '%s': %s", path, archive_error_string(packer->archive));
}

static int pack_content(struct packer *packer, int fd, const char *path, uint64_t size,
                        struct err *err)
{
    OWNED(mem_free) char *part = xmalloc(PART_SIZE);
    uint64_t done = 0;
    ssize_t n;

    while ((n = read(fd, part, PART_SIZE)) > 0) {
        if (archive_write_data(packer->archive, part, (size_t)n) != n)
            return archive_failed(packer, path, err);
        done += (uint64_t)n;
    }
    if (n < 0)
        return err_set_errno(err, ERR_IO, "reading '%s'", path);
    if (done != size)
        return err_set(err, ERR_CONFLICT, "'%s' changed while it was packed", path);
    packer->content_size += done;
    if (packer->sources != NULL && packer->sources->content_size_max > 0 &&
        packer->content_size > packer->sources->content_size_max)
        return err_set(err, ERR_TOO_BIG, "'%s' has more than %llu bytes; at '%s' it was enough",
                       packer->folder, (unsigned long long)packer->sources->content_size_max, path);
    return 0;
}

static int pack_header(struct packer *packer, const char *path, mode_t mode, uint64_t size,
                       struct err *err)
{
    struct archive_entry *entry = archive_entry_new();
    int r;

    archive_entry_set_pathname_utf8(entry, path);
    archive_entry_set_filetype(entry, mode & S_IFMT);
    archive_entry_set_perm(entry, S_ISDIR(mode) || (mode & 0100) ? 0755 : 0644);
    archive_entry_set_size(entry, (la_int64_t)size);
    r = archive_write_header(packer->archive, entry);
    archive_entry_free(entry);
    return r == ARCHIVE_OK ? 0 : archive_failed(packer, path, err);
}

/* The text of a file that decides over the engine. */
static int look_at_text(struct packer *packer, int fd, const char *path, uint64_t size,
                        struct err *err)
{
    char **keep = model_facts_text(packer->facts, path);
    OWNED(mem_free) char *text = NULL;

    model_facts_note(packer->facts, path);
    packer->facts->content_size += size;
    if (keep == NULL || *keep != NULL)
        return 0;
    if (size > MODEL_TEXT_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "'%s' has %llu bytes, limit %u", path,
                       (unsigned long long)size, MODEL_TEXT_SIZE_MAX);
    text = xcalloc(1, size + 1);
    if (pread(fd, text, size, 0) != (ssize_t)size)
        return err_set(err, ERR_IO, "'%s' became shorter while it was read", path);
    *keep = TAKE(text);
    return 0;
}

static int pack_folder(struct packer *packer, const char *path, struct err *err);

/* path is relative to the folder that is pushed. */
static int pack_entry(struct packer *packer, const char *path, struct err *err)
{
    OWNED(mem_free) char *full = xasprintf("%s/%s", packer->folder, path);
    /* O_NONBLOCK: to open a pipe waits for its writer. It means nothing to a file. */
    OWNED(close_fd) int fd = open(full, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    struct stat info;
    int r = 0;

    if (fd < 0)
        return err_set_errno(err, ERR_USAGE, "'%s' (links are not followed)", full);
    if (fstat(fd, &info) != 0)
        return err_set_errno(err, ERR_IO, "'%s'", full);
    if (S_ISDIR(info.st_mode))
        return pack_folder(packer, path, err);
    if (!S_ISREG(info.st_mode))
        return err_set(err, ERR_USAGE, "'%s' is neither a file nor a directory", full);
    if (++packer->file_count > PUSH_FILES_MAX)
        return err_set(err, ERR_TOO_BIG, "more than %d files in '%s'", PUSH_FILES_MAX,
                       packer->folder);
    if (packer->facts != NULL)
        r = look_at_text(packer, fd, path, (uint64_t)info.st_size, err);
    if (r < 0 || packer->archive == NULL)
        return r;
    r = pack_header(packer, path, info.st_mode, (uint64_t)info.st_size, err);
    return r < 0 ? r : pack_content(packer, fd, path, (uint64_t)info.st_size, err);
}

/* What .truss_ignore leaves out, or what nobody wants without one. */
static int packer_read_ignore(struct packer *packer, struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/" IGNORE_FILE, packer->folder);
    OWNED(close_fd) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    OWNED(mem_free) char *text = xcalloc(1, IGNORE_SIZE_MAX + 2);
    size_t size = 0;
    ssize_t n;

    if (fd < 0)
        return ignore_new(IGNORE_FILE, "__pycache__/\n*.py[cod]\n", &packer->ignore, err);
    while ((n = read(fd, text + size, IGNORE_SIZE_MAX + 1 - size)) > 0)
        size += (size_t)n;
    if (n < 0)
        return err_set_errno(err, ERR_IO, "reading '%s'", path);
    return ignore_new(IGNORE_FILE, text, &packer->ignore, err);
}

static bool is_excluded(const struct packer *packer, const char *path)
{
    for (size_t i = 0; packer->sources != NULL && i < packer->sources->exclude_count; i++) {
        if (strcmp(packer->sources->excludes[i], path) == 0)
            return true;
    }
    return false;
}

static int visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.'; /* .git and .cache are nobody's model */
}

static int pack_folder(struct packer *packer, const char *path, struct err *err)
{
    OWNED(mem_free) char *full = xasprintf("%s%s%s", packer->folder, *path ? "/" : "", path);
    struct dirent **entries = NULL;
    int count, r = 0;

    if (packer->depth == PUSH_DEPTH_MAX)
        return err_set(err, ERR_TOO_BIG, "'%s' is nested deeper than %d", full, PUSH_DEPTH_MAX);
    count = scandir(full, &entries, visible, alphasort);
    if (count < 0)
        return err_set_errno(err, ERR_USAGE, "directory '%s'", full);
    packer->depth++;
    for (int i = 0; i < count; i++) {
        if (r == 0) {
            OWNED(mem_free)
            char *inner = xasprintf("%s%s%s", path, *path ? "/" : "", entries[i]->d_name);

            if (is_excluded(packer, inner) ||
                ignore_match(packer->ignore, inner, entries[i]->d_type == DT_DIR))
                packer->left_out_count++;
            else
                r = pack_entry(packer, inner, err);
        }
        free(entries[i]);
    }
    free(entries);
    packer->depth--;
    return r;
}

/* Folders from elsewhere, each as if it stood at the top. */
static int pack_externals(struct packer *packer, struct err *err)
{
    const struct push_sources *sources = packer->sources;
    const char *folder = packer->folder;
    int r = 0;

    for (size_t i = 0; sources != NULL && i < sources->external_count && r == 0; i++) {
        OWNED(mem_free) char *above = xstrdup(sources->externals[i]);
        char *name = strrchr(above, '/');
        OWNED(mem_free) char *inside = NULL;

        *name++ = '\0';
        inside = xasprintf("%s/%s", folder, name);
        for (size_t k = 0; k < i && r == 0; k++) {
            if (strcmp(strrchr(sources->externals[k], '/') + 1, name) == 0)
                r = err_set(err, ERR_USAGE, "two external folders have the name '%s'", name);
        }
        if (r == 0 && access(inside, F_OK) == 0 && !is_excluded(packer, name))
            r = err_set(err, ERR_USAGE,
                        "'%s' has something named '%s', as the external folder '%s'", folder, name,
                        sources->externals[i]);
        packer->folder = above;
        packer->sources = &(const struct push_sources){
            .content_size_max = sources->content_size_max};
        if (r == 0)
            r = pack_entry(packer, name, err);
        packer->folder = folder;
        packer->sources = sources;
    }
    return r;
}

/* SHA-256 of the whole file, which is left at its start. */
static int digest_file(int fd, struct push_archive *archive, struct err *err)
{
    OWNED(mem_free) uint8_t *part = xmalloc(PART_SIZE);
    crypto_hash_sha256_state state;
    uint8_t digest[crypto_hash_sha256_BYTES];
    ssize_t n;

    if (lseek(fd, 0, SEEK_SET) != 0)
        return err_set_errno(err, ERR_IO, "archive");
    (void)crypto_hash_sha256_init(&state);
    while ((n = read(fd, part, PART_SIZE)) > 0) {
        (void)crypto_hash_sha256_update(&state, part, (size_t)n);
        archive->size += (uint64_t)n;
    }
    if (n < 0 || lseek(fd, 0, SEEK_SET) != 0)
        return err_set_errno(err, ERR_IO, "archive");
    (void)crypto_hash_sha256_final(&state, digest);
    (void)sodium_bin2hex(archive->digest, sizeof(archive->digest), digest, sizeof(digest));
    return 0;
}

static int packer_run(struct packer *packer, int fd, struct err *err)
{
    int r;

    if (archive_write_set_format_pax_restricted(packer->archive) != ARCHIVE_OK ||
        archive_write_add_filter_zstd(packer->archive) != ARCHIVE_OK ||
        archive_write_set_options(packer->archive, "zstd:compression-level=1") != ARCHIVE_OK ||
        archive_write_open_fd(packer->archive, fd) != ARCHIVE_OK)
        return archive_failed(packer, packer->folder, err);
    r = packer_read_ignore(packer, err);
    if (r == 0)
        r = pack_folder(packer, "", err);
    if (r == 0)
        r = pack_externals(packer, err);
    if (r < 0)
        return r;
    if (packer->file_count == 0)
        return err_set(err, ERR_USAGE, "there is no file in '%s'", packer->folder);
    if (archive_write_close(packer->archive) != ARCHIVE_OK)
        return archive_failed(packer, packer->folder, err);
    return 0;
}

int push_archive_make(const char *folder, struct push_archive *ret_archive, struct err *err)
{
    return push_archive_make_of(folder, NULL, ret_archive, err);
}

int push_archive_make_of(const char *folder, const struct push_sources *sources,
                         struct push_archive *ret_archive, struct err *err)
{
    const char *temporary = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp";
    OWNED(close_fd) int fd = open(temporary, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    OWNED(packer_archive_free) struct archive *archive = archive_write_new();
    struct packer packer = {.archive = archive, .folder = folder, .sources = sources};
    struct push_archive made = {0};
    int r;

    if (fd < 0)
        return err_set_errno(err, ERR_IO, "a temporary file in '%s'", temporary);
    r = packer_run(&packer, fd, err);
    ignore_free(&packer.ignore);
    if (r == 0)
        r = digest_file(fd, &made, err);
    if (r < 0)
        return r;
    made.fd = fd;
    made.file_count = packer.file_count;
    made.content_size = packer.content_size;
    made.left_out_count = packer.left_out_count;
    fd = -1;
    *ret_archive = made;
    return 0;
}

int push_archive_look(const char *folder, struct model_facts *ret_facts, struct err *err)
{
    OWNED(model_facts_done) struct model_facts facts = {.file_count = 0};
    struct packer packer = {.facts = &facts, .folder = folder};
    int r = packer_read_ignore(&packer, err);

    if (r == 0)
        r = pack_folder(&packer, "", err);
    ignore_free(&packer.ignore);
    if (r < 0)
        return r;
    if (facts.file_count == 0)
        return err_set(err, ERR_USAGE, "there is no file in '%s'", folder);
    *ret_facts = facts;
    facts = (struct model_facts){.file_count = 0};
    return 0;
}
