/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_archive.h"

#include <archive.h>
#include <archive_entry.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"

#define BLOCK_SIZE (256u * 1024)
#define SAFETENSORS_HEAD_SIZE 9 /* length of the header, and its first byte */
#define SAFETENSORS_HEADER_MAX (100u << 20)

struct looker {
    struct archive *archive;
    struct model_facts *facts;
    uint64_t content_size_max;
    char **paths;
    size_t path_count;
};

static void looker_done(struct looker *looker)
{
    if (looker->archive != NULL)
        (void)archive_read_free(looker->archive);
    for (size_t i = 0; i < looker->path_count; i++)
        free(looker->paths[i]);
    free(looker->paths);
}

int gateway_archive_path_check(const char *path, struct err *err)
{
    size_t size = strlen(path);
    int depth = 0;

    if (size == 0 || size > ARCHIVE_PATH_SIZE_MAX)
        return err_set(err, ERR_MALFORMED,
                       "a path in the archive has %zu bytes; 1 to %d are allowed", size,
                       ARCHIVE_PATH_SIZE_MAX);
    for (size_t i = 0; i < size; i++) {
        if ((unsigned char)path[i] < 0x20 || path[i] == '\\' || path[i] == 0x7f)
            return err_set(err, ERR_MALFORMED, "a path in the archive has the byte 0x%02x at %zu",
                           (unsigned char)path[i], i);
    }
    if (path[0] == '/')
        return err_set(err, ERR_MALFORMED, "'%.200s' in the archive is an absolute path", path);
    for (const char *at = path; *at != '\0';) {
        size_t part = strcspn(at, "/");

        if (part == 0 || (part <= 2 && strncmp(at, "..", part) == 0))
            return err_set(err, ERR_MALFORMED,
                           "'%.200s' in the archive has an empty part, '.' or '..'", path);
        if (part > 255 || ++depth > ARCHIVE_DEPTH_MAX)
            return err_set(err, ERR_MALFORMED,
                           "'%.200s' in the archive is deeper than %d or has a name over 255 bytes",
                           path, ARCHIVE_DEPTH_MAX);
        at += part;
        if (*at == '/' && at[1] != '\0')
            at++;
        else if (*at == '/')
            break; /* a directory's own slash */
    }
    return 0;
}

static int read_failed(struct looker *looker, const char *path, struct err *err)
{
    const char *why = archive_error_string(looker->archive);

    return err_set(err, ERR_MALFORMED, "the archive cannot be read%s%.200s: %s",
                   path == NULL ? "" : " at ", path == NULL ? "" : path,
                   why == NULL ? "no tar, or cut off" : why);
}

static bool ends_in(const char *text, const char *end)
{
    size_t text_size = strlen(text), end_size = strlen(end);

    return text_size >= end_size && strcmp(text + text_size - end_size, end) == 0;
}

/* Eight bytes little-endian, then that many bytes of JSON. */
static int check_safetensors(const char *path, const uint8_t *head, size_t head_size, uint64_t size,
                             struct err *err)
{
    uint64_t header = 0;

    for (size_t i = 0; i < 8 && i < head_size; i++)
        header |= (uint64_t)head[i] << (8 * i);
    if (size < SAFETENSORS_HEAD_SIZE || header < 2 || header > SAFETENSORS_HEADER_MAX ||
        header > size - 8 || head[8] != '{')
        return err_set(err, ERR_MALFORMED,
                       "'%.200s' is no safetensors file: its header says %llu bytes, the file has "
                       "%llu, and headers have 2 to %u",
                       path, (unsigned long long)header, (unsigned long long)size,
                       SAFETENSORS_HEADER_MAX);
    return 0;
}

/* Reads the content to its end; keeps the first bytes, and all of it into `keep` when not NULL. */
static int read_content(struct looker *looker, const char *path, uint64_t size, struct buf *keep,
                        uint8_t head[SAFETENSORS_HEAD_SIZE], struct err *err)
{
    OWNED(mem_free) uint8_t *block = xmalloc(BLOCK_SIZE);
    uint64_t done = 0;
    la_ssize_t n;

    while ((n = archive_read_data(looker->archive, block, BLOCK_SIZE)) > 0) {
        for (size_t i = 0; i < (size_t)n && done + i < SAFETENSORS_HEAD_SIZE; i++)
            head[done + i] = block[i];
        if (keep != NULL)
            buf_append(keep, block, (size_t)n);
        done += (uint64_t)n;
        looker->facts->content_size += (uint64_t)n;
        if (looker->facts->content_size > looker->content_size_max)
            return err_set(err, ERR_TOO_BIG,
                           "the archive has more than %llu bytes unpacked (unpacked-max)",
                           (unsigned long long)looker->content_size_max);
    }
    if (n < 0 || done != size)
        return read_failed(looker, path, err);
    return keep == NULL ? 0 : buf_check(keep, path, err);
}

static int look_at_file(struct looker *looker, const char *path, uint64_t size, struct err *err)
{
    struct model_facts *facts = looker->facts;
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(MODEL_TEXT_SIZE_MAX);
    uint8_t head[SAFETENSORS_HEAD_SIZE] = {0};
    char **keep = model_facts_text(facts, path);
    int r;

    model_facts_note(facts, path);
    if (facts->file_count > ARCHIVE_FILES_MAX)
        return err_set(err, ERR_TOO_BIG, "the archive has more than %d files", ARCHIVE_FILES_MAX);
    r = read_content(looker, path, size, keep != NULL ? &text : NULL, head, err);
    if (r == 0 && ends_in(path, ".safetensors"))
        r = check_safetensors(path, head, sizeof(head), size, err);
    if (r == 0 && keep != NULL && *keep == NULL)
        *keep = xstrdup(buf_text(&text));
    return r;
}

static int look_at_entry(struct looker *looker, struct archive_entry *entry, struct err *err)
{
    const char *path = archive_entry_pathname_utf8(entry); /* whatever the locale */
    bool is_file = archive_entry_filetype(entry) == AE_IFREG;
    int r;

    if (path == NULL)
        return err_set(err, ERR_MALFORMED, "a path in the archive is not UTF-8");
    if (strcmp(path, ".") == 0 || strcmp(path, "./") == 0)
        return 0; /* what `tar c .` begins with */
    if (strncmp(path, "./", 2) == 0)
        path += 2;
    r = gateway_archive_path_check(path, err);
    if (r < 0)
        return r;
    if (archive_entry_hardlink(entry) != NULL || archive_entry_symlink(entry) != NULL ||
        (!is_file && archive_entry_filetype(entry) != AE_IFDIR))
        return err_set(err, ERR_MALFORMED,
                       "'%.200s' in the archive is neither a file nor a directory", path);
    if (looker->path_count >= 2 * ARCHIVE_FILES_MAX)
        return err_set(err, ERR_TOO_BIG, "the archive has more than %d entries",
                       2 * ARCHIVE_FILES_MAX);
    looker->paths = xrealloc(looker->paths, looker->path_count + 1, sizeof(*looker->paths));
    looker->paths[looker->path_count++] = xstrdup(path);
    return is_file ? look_at_file(looker, path, (uint64_t)archive_entry_size(entry), err) : 0;
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* What comes twice could be checked as one thing and unpacked as another. */
static int check_repeats(struct looker *looker, struct err *err)
{
    if (looker->path_count > 0)
        qsort(looker->paths, looker->path_count, sizeof(*looker->paths), compare_paths);
    for (size_t i = 1; i < looker->path_count; i++) {
        if (strcmp(looker->paths[i - 1], looker->paths[i]) == 0)
            return err_set(err, ERR_MALFORMED, "'%.200s' is in the archive twice",
                           looker->paths[i]);
    }
    return 0;
}

int gateway_archive_look(const char *path, uint64_t content_size_max, struct model_facts *ret_facts,
                         struct err *err)
{
    OWNED(model_facts_done) struct model_facts facts = {.file_count = 0};
    OWNED(looker_done)
    struct looker looker = {.facts = &facts, .content_size_max = content_size_max};
    struct archive_entry *entry;
    int next, r = 0;

    looker.archive = archive_read_new();
    if (looker.archive == NULL || archive_read_support_format_tar(looker.archive) != ARCHIVE_OK ||
        archive_read_support_filter_gzip(looker.archive) != ARCHIVE_OK ||
        archive_read_support_filter_zstd(looker.archive) != ARCHIVE_OK)
        return err_set(err, ERR_DEPENDENCY, "libarchive has no tar, gzip or zstd");
    if (archive_read_open_filename(looker.archive, path, BLOCK_SIZE) != ARCHIVE_OK)
        return read_failed(&looker, NULL, err);
    while ((next = archive_read_next_header(looker.archive, &entry)) == ARCHIVE_OK) {
        r = look_at_entry(&looker, entry, err);
        if (r < 0)
            return r;
    }
    if (next != ARCHIVE_EOF)
        return read_failed(&looker, NULL, err);
    r = check_repeats(&looker, err);
    if (r < 0)
        return r;
    if (facts.file_count == 0)
        return err_set(err, ERR_MALFORMED, "the archive has no files");
    *ret_facts = facts;
    facts = (struct model_facts){.file_count = 0};
    return 0;
}
