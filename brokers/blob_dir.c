/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/blob_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"

#define TMP_AGE_S_MAX 3600
#define DIR_MODE 0750
#define ADOPT_TRIES 3
#define LIST_DEPTH_MAX 4
#define NAMES_MAX 4000000 /* of one folder */

struct blob_dir {
    char *path, *tmp_path;
    int fd; /* of path */
};

static int io_code(int e)
{
    return e == ENOENT ? ERR_NOT_FOUND : ERR_IO;
}

/* A full disk is no fault of ours or of a request: the same works once there is room. */
static int write_code(int e)
{
    return e == ENOSPC || e == EDQUOT ? ERR_FULL : ERR_IO;
}

/* Removes what crashed writers left; files that are being written now are younger. */
static void sweep_tmp(struct blob_dir *dir)
{
    DIR *list = opendir(dir->tmp_path);
    time_t now_s = (time_t)(clock_wall_ms() / 1000);
    struct dirent *entry;
    struct stat st;

    if (list == NULL)
        return;
    while ((entry = readdir(list)) != NULL) {
        if (entry->d_name[0] == '.')
            continue;
        if (fstatat(dirfd(list), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            now_s - st.st_mtime > TMP_AGE_S_MAX)
            (void)unlinkat(dirfd(list), entry->d_name, 0);
    }
    (void)closedir(list);
}

/* Makes path and its parents. */
static int make_path(const char *path, struct err *err)
{
    OWNED(mem_free) char *part = xstrdup(path);

    for (char *at = part + 1;; at++) {
        char was = *at;

        if (was != '/' && was != '\0')
            continue;
        *at = '\0';
        if (mkdir(part, DIR_MODE) < 0 && errno != EEXIST)
            return err_set_errno(err, ERR_IO, "make directory '%s'", part);
        *at = was;
        if (was == '\0')
            return 0;
    }
}

int blob_dir_open(const char *path, struct blob_dir **ret_dir, struct err *err)
{
    OWNED(blob_dir_close) struct blob_dir *dir = xcalloc(1, sizeof(*dir));
    int r;

    dir->fd = -1;
    if (path[0] != '/')
        return err_set(err, ERR_USAGE, "blob directory '%s' is not an absolute path", path);
    dir->path = xstrdup(path);
    dir->tmp_path = xasprintf("%s/tmp", path);
    r = make_path(dir->tmp_path, err);
    if (r < 0)
        return r;
    dir->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir->fd < 0)
        return err_set_errno(err, ERR_IO, "open blob directory '%s'", path);
    sweep_tmp(dir);
    *ret_dir = TAKE(dir);
    return 0;
}

void blob_dir_close(struct blob_dir **dir_p)
{
    struct blob_dir *dir = TAKE(*dir_p);

    if (dir == NULL)
        return;
    if (dir->fd >= 0)
        (void)close(dir->fd);
    free(dir->path);
    free(dir->tmp_path);
    free(dir);
}

int blob_dir_make_file(struct blob_dir *dir, int *ret_fd, char **ret_path, struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/blob-XXXXXX", dir->tmp_path);
    int fd = mkostemp(path, O_CLOEXEC);

    if (fd < 0)
        return err_set_errno(err, write_code(errno), "make a file in '%s'", dir->tmp_path);
    (void)fchmod(fd, 0640);
    *ret_fd = fd;
    *ret_path = TAKE(path);
    return 0;
}

int blob_dir_write(int fd, const void *bytes, size_t size, struct err *err)
{
    const char *at = bytes;

    while (size > 0) {
        ssize_t n = write(fd, at, size);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set_errno(err, write_code(errno), "write %zu bytes of a blob", size);
        at += n;
        size -= (size_t)n;
    }
    return 0;
}

/* Syncs the directory that holds `key`, so that the entry survives a power loss. */
static int sync_parent(struct blob_dir *dir, const char *key, size_t parent_size, struct err *err)
{
    OWNED(mem_free) char *parent = xasprintf("%.*s", (int)parent_size, key);
    int fd = openat(dir->fd, parent_size > 0 ? parent : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = 0;

    if (fd < 0 || fsync(fd) < 0)
        r = err_set_errno(err, write_code(errno), "sync the directory of blob '%s'", key);
    if (fd >= 0)
        (void)close(fd);
    return r;
}

/* Makes the directories of a key. A directory that is new is synced into its own parent. */
static int make_parents(struct blob_dir *dir, const char *key, struct err *err)
{
    OWNED(mem_free) char *part = xstrdup(key);
    size_t parent_size = 0;
    int r;

    for (char *slash = strchr(part, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdirat(dir->fd, part, DIR_MODE) == 0) {
            r = sync_parent(dir, key, parent_size, err);
            if (r < 0)
                return r;
        } else if (errno != EEXIST) {
            return err_set_errno(err, write_code(errno), "make the directory '%s' of a blob", part);
        }
        *slash = '/';
        parent_size = (size_t)(slash - part);
    }
    return 0;
}

int blob_dir_adopt(struct blob_dir *dir, const char *key, int fd, const char *path, struct err *err)
{
    const char *slash = strrchr(key, '/');
    int r;

    if (fsync(fd) < 0)
        return err_set_errno(err, write_code(errno), "sync blob '%s'", key);
    /* A removal may take an emptied parent away between the two steps: then once more. */
    for (int i = 0; renameat(AT_FDCWD, path, dir->fd, key) < 0; i++) {
        if (errno != ENOENT || i == ADOPT_TRIES)
            return err_set_errno(err, write_code(errno), "rename to blob '%s'", key);
        r = make_parents(dir, key, err);
        if (r < 0)
            return r;
    }
    return sync_parent(dir, key, slash == NULL ? 0 : (size_t)(slash - key), err);
}

int blob_dir_put(struct blob_dir *dir, const char *key, const void *bytes, size_t size,
                 struct err *err)
{
    OWNED(mem_free) char *path = NULL;
    int fd, r;

    r = blob_dir_make_file(dir, &fd, &path, err);
    if (r < 0)
        return r;
    r = blob_dir_write(fd, bytes, size, err);
    if (r == 0)
        r = blob_dir_adopt(dir, key, fd, path, err);
    (void)close(fd);
    if (r < 0)
        (void)unlink(path);
    return r;
}

int blob_dir_read(struct blob_dir *dir, const char *key, int *ret_fd, uint64_t *ret_size,
                  struct err *err)
{
    int fd = openat(dir->fd, key, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;

    if (fd < 0)
        return err_set_errno(err, io_code(errno), "open blob '%s'", key);
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        (void)close(fd);
        return err_set(err, ERR_NOT_FOUND, "open blob '%s': it is no file", key);
    }
    *ret_fd = fd;
    *ret_size = (uint64_t)st.st_size;
    return 0;
}

int blob_dir_remove(struct blob_dir *dir, const char *key, struct err *err)
{
    OWNED(mem_free) char *parent = NULL;

    if (unlinkat(dir->fd, key, 0) < 0 && errno != ENOENT)
        return err_set_errno(err, ERR_IO, "remove blob '%s'", key);
    parent = xstrdup(key);
    for (char *slash; (slash = strrchr(parent, '/')) != NULL && slash != strchr(parent, '/');) {
        *slash = '\0';
        if (unlinkat(dir->fd, parent, AT_REMOVEDIR) < 0)
            break; /* it holds others, or somebody else was faster */
    }
    return 0;
}

/* ---- what is there ---- */

struct names {
    char **items;
    size_t count, room;
};

static void names_done(struct names *names)
{
    for (size_t i = 0; i < names->count; i++)
        free(names->items[i]);
    free(names->items);
}

static int name_order(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The names in one folder, sorted; none when it is not there. */
static int names_read(struct blob_dir *dir, const char *folder, struct names *names,
                      struct err *err)
{
    int fd = openat(dir->fd, folder[0] == '\0' ? "." : folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *stream = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *entry;

    if (stream == NULL) {
        int e = errno;

        if (fd >= 0)
            (void)close(fd);
        errno = e;
        return e == ENOENT || e == ENOTDIR
                   ? 0
                   : err_set_errno(err, ERR_IO, "read the folder '%s' of blobs", folder);
    }
    while ((entry = readdir(stream)) != NULL && names->count < NAMES_MAX) {
        if (entry->d_name[0] == '.')
            continue;
        if (names->count == names->room) {
            names->room = names->room == 0 ? 64 : 2 * names->room;
            names->items = xrealloc(names->items, names->room, sizeof(*names->items));
        }
        names->items[names->count++] = xstrdup(entry->d_name);
    }
    (void)closedir(stream);
    qsort(names->items, names->count, sizeof(*names->items), name_order);
    return 0;
}

static void list_take(const struct blob_listing *listing, struct blob_list *list, const char *key,
                      const struct stat *st)
{
    struct err bad;

    if (list->count == listing->count_max) {
        list->more = true;
        return;
    }
    mem_copy_text(list->last, key);
    if (blob_key_check(key, &bad) < 0)
        return;
    if (listing->folders)
        blob_list_add(list, key, 0, 0);
    else
        blob_list_add(list, key, (uint64_t)st->st_size,
                      (uint64_t)st->st_mtim.tv_sec * 1000000 +
                          (uint64_t)st->st_mtim.tv_nsec / 1000);
}

/* Whether keys below this folder can lie behind `after`. */
static bool folder_is_behind(const char *folder, const char *after)
{
    size_t size = strlen(folder);

    return strcmp(folder, after) > 0 || (strncmp(folder, after, size) == 0 && after[size] == '/');
}

/* The files below a folder in the order of their keys. That is the order of their names, because
 * days have one length, ids have one, and no file lies beside a folder. */
static int list_folder(struct blob_dir *dir, const struct blob_listing *listing, const char *folder,
                       int depth, struct blob_list *list, struct err *err)
{
    OWNED(names_done) struct names names = {0};
    int r = names_read(dir, folder, &names, err);

    for (size_t i = 0; r == 0 && i < names.count && !list->more; i++) {
        OWNED(mem_free)
        char *key = xasprintf("%s%s%s", folder, folder[0] == '\0' ? "" : "/", names.items[i]);
        struct stat st;

        if (fstatat(dir->fd, key, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue; /* gone meanwhile */
        if (S_ISREG(st.st_mode) && !listing->folders && strcmp(key, listing->after) > 0)
            list_take(listing, list, key, &st);
        else if (S_ISDIR(st.st_mode) && listing->folders && strcmp(key, listing->after) > 0)
            list_take(listing, list, key, &st);
        else if (S_ISDIR(st.st_mode) && !listing->folders && depth < LIST_DEPTH_MAX &&
                 folder_is_behind(key, listing->after))
            r = list_folder(dir, listing, key, depth + 1, list, err);
    }
    return r;
}

int blob_dir_list(struct blob_dir *dir, const struct blob_listing *listing, struct blob_list *list,
                  struct err *err)
{
    OWNED(mem_free) char *folder = xstrdup(listing->prefix);
    size_t size = strlen(folder);

    if (size > 0 && folder[size - 1] == '/')
        folder[size - 1] = '\0';
    return list_folder(dir, listing, folder, 0, list, err);
}
