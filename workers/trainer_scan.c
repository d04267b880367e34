/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/trainer_scan.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

#define READ_SIZE (1u << 20)
#define JSON_SIZE_MAX (16u << 20)

static bool ends_with(const char *text, const char *end)
{
    size_t size = strlen(text), end_size = strlen(end);

    return size >= end_size && strcmp(text + size - end_size, end) == 0;
}

bool trainer_scan_is_being_written(const char *name)
{
    return name[0] == '.' || strncmp(name, "tmp", 3) == 0 || ends_with(name, ".tmp") ||
           ends_with(name, ".part") || ends_with(name, ".incomplete");
}

/* FNV-1a over what a change of content, or of the set of files, changes. */
static void mark_add(uint64_t *mark, const void *bytes, size_t size)
{
    const uint8_t *at = bytes;

    for (size_t i = 0; i < size; i++)
        *mark = (*mark ^ at[i]) * 0x100000001b3u;
}

/* Files may come in any order, so their marks are added up. */
static uint64_t file_mark(const char *path, const struct stat *about)
{
    uint64_t mark = 0xcbf29ce484222325u;

    mark_add(&mark, path, strlen(path) + 1);
    mark_add(&mark, &about->st_size, sizeof(about->st_size));
    mark_add(&mark, &about->st_mtim, sizeof(about->st_mtim));
    mark_add(&mark, &about->st_ino, sizeof(about->st_ino));
    return mark;
}

/* ---- indices of shards ---- */

static json_t *json_of_file(const char *path)
{
    struct stat about;

    if (stat(path, &about) < 0 || about.st_size > JSON_SIZE_MAX)
        return NULL;
    return json_load_file(path, 0, NULL);
}

/* All shards that the index names are beside it. */
static bool index_is_whole(const char *path)
{
    json_t *index = json_of_file(path), *value;
    const char *name;
    bool whole = index != NULL;

    json_object_foreach(json_object_get(index, "weight_map"), name, value)
    {
        const char *shard = json_string_value(value);
        OWNED(mem_free)
        char *beside = xasprintf("%.*s/%s", (int)(strrchr(path, '/') - path), path,
                                 shard == NULL ? "?" : shard);

        if (access(beside, F_OK) < 0)
            whole = false;
    }
    json_decref(index);
    return whole;
}

/* ---- a checkpoint ---- */

typedef void scan_each(void *opaque, const char *path, const char *below, const struct stat *about);

/* Regular files below, with their path from the checkpoint on; of a file itself: its name. */
static void walk(const char *folder, const char *name, scan_each *each, void *opaque)
{
    OWNED(mem_free) char *root = xasprintf("%s/%s", folder, name);
    char *roots[] = {root, NULL};
    FTS *tree = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    size_t root_size = strlen(root);
    FTSENT *entry;

    while (tree != NULL && (entry = fts_read(tree)) != NULL) {
        const char *below = entry->fts_path + root_size;

        if (entry->fts_info == FTS_F)
            each(opaque, entry->fts_path, below[0] == '/' ? below + 1 : name, entry->fts_statp);
    }
    if (tree != NULL)
        (void)fts_close(tree);
}

static void look_each(void *opaque, const char *path, const char *below, const struct stat *about)
{
    struct scan_entry *entry = opaque;
    const char *slash = strrchr(below, '/');

    entry->mark += file_mark(below, about);
    entry->size += (uint64_t)about->st_size;
    entry->file_count++;
    if (trainer_scan_is_being_written(slash == NULL ? below : slash + 1) ||
        (ends_with(below, ".index.json") && !index_is_whole(path)))
        entry->complete = false;
}

static void entry_look(const char *folder, struct scan_entry *entry)
{
    entry->complete = true;
    walk(folder, entry->name, look_each, entry);
    if (entry->file_count == 0)
        entry->complete = false;
}

uint64_t trainer_scan_mark(const char *folder, const char *name)
{
    struct scan_entry entry = {0};

    mem_copy_text(entry.name, name);
    entry_look(folder, &entry);
    return entry.mark;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool is_known(const struct scan_known *known, const char *name)
{
    return known->count > 0 &&
           bsearch(&name, known->names, known->count, sizeof(*known->names), by_name) != NULL;
}

static struct scan_entry *entry_add(struct scan *scan, const char *name)
{
    struct scan_entry *entry;

    if (scan->count == scan->room) {
        scan->room = scan->room == 0 ? 16 : scan->room * 2;
        scan->entries = xrealloc(scan->entries, scan->room, sizeof(*scan->entries));
    }
    entry = &scan->entries[scan->count++];
    *entry = (struct scan_entry){.complete = false};
    mem_copy_text(entry->name, name);
    return entry;
}

int trainer_scan_folder(const char *folder, const struct scan_known *known, struct scan *ret_scan,
                        struct err *err)
{
    DIR *dir = opendir(folder);
    struct scan scan = {0};
    struct dirent *found;

    if (dir == NULL && errno != ENOENT)
        return err_set_errno(err, ERR_IO, "read folder %s", folder);
    while (dir != NULL && (found = readdir(dir)) != NULL && scan.count < SCAN_ENTRIES_MAX) {
        struct scan_entry *entry;

        if (trainer_scan_is_being_written(found->d_name) ||
            strlen(found->d_name) >= SCAN_NAME_SIZE ||
            (found->d_type != DT_DIR && found->d_type != DT_REG))
            continue;
        entry = entry_add(&scan, found->d_name);
        entry->passed_over = is_known(known, found->d_name);
        if (!entry->passed_over)
            entry_look(folder, entry);
    }
    if (dir != NULL)
        (void)closedir(dir);
    *ret_scan = scan;
    return 0;
}

void trainer_scan_done(struct scan *scan)
{
    mem_free(&scan->entries);
    scan->count = scan->room = 0;
}

/* ---- digests ---- */

static void read_each(void *opaque, const char *path, const char *below, const struct stat *about)
{
    struct scan_files *files = opaque;

    (void)path;
    files->mark += file_mark(below, about);
    files->size += (uint64_t)about->st_size;
    if (files->count == files->room) {
        files->room = files->room == 0 ? 32 : files->room * 2;
        files->files = xrealloc(files->files, files->room, sizeof(*files->files));
    }
    files->files[files->count++] = (struct scan_file){
        .path = xstrdup(below), .size = (uint64_t)about->st_size, .mode = about->st_mode & 0777};
}

static int file_digest(const char *path, struct scan_file *file, char *block, struct err *err)
{
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW), r = 0;
    uint64_t total = 0;
    ssize_t size = -1;

    if (hash == NULL || EVP_DigestInit_ex(hash, EVP_sha256(), NULL) != 1)
        r = err_set(err, ERR_INTERNAL, "SHA-256 is not to be had");
    else if (fd < 0)
        r = err_set_errno(err, ERR_NOT_FOUND, "open %s", path);
    if (fd >= 0)
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    while (r == 0 && (size = read(fd, block, READ_SIZE)) > 0) {
        (void)EVP_DigestUpdate(hash, block, (size_t)size);
        total += (uint64_t)size;
    }
    if (r == 0 && size < 0)
        r = err_set_errno(err, ERR_IO, "read %s", path);
    if (r == 0 && total != file->size)
        r = err_set(err, ERR_CONFLICT, "%s has changed while it was read", path);
    if (r == 0)
        (void)EVP_DigestFinal_ex(hash, file->digest, NULL);
    if (fd >= 0)
        (void)close(fd);
    EVP_MD_CTX_free(hash);
    return r;
}

static char *path_of(const char *folder, const char *name, const char *below)
{
    OWNED(mem_free) char *root = xasprintf("%s/%s", folder, name);
    struct stat about;

    if (stat(root, &about) == 0 && S_ISREG(about.st_mode))
        return TAKE(root);
    return xasprintf("%s/%s", root, below);
}

int trainer_scan_read(const char *folder, const char *name, struct scan_files *ret_files,
                      struct err *err)
{
    OWNED(mem_free) char *block = xmalloc(READ_SIZE);
    OWNED(mem_free) char *adapter = xasprintf("%s/%s/adapter_config.json", folder, name);
    struct scan_files files = {0};
    json_t *config;
    int r = 0;

    walk(folder, name, read_each, &files);
    if (files.count > SCAN_FILES_MAX)
        r = err_set(err, ERR_TOO_BIG, "checkpoint '%s' has %zu files, %d are allowed", name,
                    files.count, SCAN_FILES_MAX);
    for (size_t i = 0; i < files.count && r == 0; i++) {
        OWNED(mem_free) char *path = path_of(folder, name, files.files[i].path);

        r = file_digest(path, &files.files[i], block, err);
    }
    config = r == 0 ? json_of_file(adapter) : NULL;
    if (json_is_object(config))
        files.adapter = json_dumps(config, JSON_COMPACT);
    json_decref(config);
    if (r < 0) {
        trainer_scan_files_done(&files);
        return r;
    }
    *ret_files = files;
    return 0;
}

void trainer_scan_files_done(struct scan_files *files)
{
    for (size_t i = 0; i < files->count; i++)
        free(files->files[i].path);
    mem_free(&files->files);
    mem_free(&files->adapter);
    files->count = files->room = 0;
}
