/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/secret_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/wire.h"

#define PREFIX "headrace-secrets-"

static int file_write(const char *folder, const char *name, const json_t *value, struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", folder, name);
    size_t size = json_string_length(value);
    ssize_t n = -1;
    int fd;

    (void)unlink(path); /* of an earlier start in the same folder; it cannot be written to */
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0400);
    if (fd >= 0) {
        n = write(fd, json_string_value(value), size);
        (void)close(fd);
    }
    if (n != (ssize_t)size)
        return err_set_errno(err, ERR_IO, "write the secret %s", path);
    return 0;
}

int secret_files_write(const char *folder, const json_t *declared, struct wire_bytes values,
                       char **ret_missing, struct err *err)
{
    json_t *given = json_loadb((const char *)values.bytes, values.size, 0, NULL), *fallback;
    OWNED(mem_free) char *missing = NULL;
    const char *name;
    int r = 0;

    if (mkdir(folder, 0700) < 0 && errno != EEXIST)
        r = err_set_errno(err, ERR_IO, "make the folder %s", folder);
    json_object_foreach((json_t *)declared, name, fallback)
    {
        const json_t *value = json_object_get(given, name);
        char *longer;

        value = json_is_string(value) ? value : fallback;
        if (json_is_string(value)) {
            r = r < 0 ? r : file_write(folder, name, value, err);
            continue;
        }
        longer = xasprintf("%s%s%s", missing == NULL ? "" : missing, missing == NULL ? "" : ", ",
                           name);
        mem_free(&missing);
        missing = longer;
    }
    json_decref(given);
    if (r == 0)
        *ret_missing = TAKE(missing);
    return r;
}

void secret_files_remove(const char *path)
{
    DIR *folder = opendir(path);
    const struct dirent *entry;

    if (folder == NULL)
        return;
    while ((entry = readdir(folder)) != NULL)
        (void)unlinkat(dirfd(folder), entry->d_name, 0);
    (void)closedir(folder);
    (void)rmdir(path);
}

/* Folders of processes that were killed. Those of other users cannot be removed, which is no harm.
 */
static void sweep(const char *above)
{
    DIR *memory = opendir(above);
    const struct dirent *entry;

    if (memory == NULL)
        return;
    while ((entry = readdir(memory)) != NULL) {
        const char *pid = entry->d_name + strlen(PREFIX);
        OWNED(mem_free) char *path = NULL, *process = NULL;

        if (strncmp(entry->d_name, PREFIX, strlen(PREFIX)) != 0)
            continue;
        path = xasprintf("%s/%s", above, entry->d_name);
        process = xasprintf("/proc/%.*s", (int)strcspn(pid, "-"), pid);
        if (access(process, F_OK) < 0)
            secret_files_remove(path);
    }
    (void)closedir(memory);
}

static bool is_in_memory(const char *folder)
{
    struct statfs about;

    return statfs(folder, &about) == 0 && about.f_type == TMPFS_MAGIC;
}

/* /dev/shm last: code that is confined for want of a sandbox (`basic`) may read there. */
int secret_files_folder_make(char **ret_folder, struct err *err)
{
    const char *const above[] = {getenv("RUNTIME_DIRECTORY"), getenv("XDG_RUNTIME_DIR"), "/run",
                                 "/dev/shm"};
    OWNED(mem_free) char *made = NULL;

    for (size_t i = 0; i < COUNT_OF(above); i++) {
        OWNED(mem_free) char *path = NULL;

        if (above[i] == NULL || !is_in_memory(above[i]))
            continue;
        sweep(above[i]);
        path = xasprintf("%s/%s%d-XXXXXX", above[i], PREFIX, (int)getpid());
        if (made == NULL && mkdtemp(path) != NULL)
            made = TAKE(path);
    }
    if (made == NULL)
        return err_set_errno(err, ERR_IO, "make a folder for secrets in /run or /dev/shm");
    *ret_folder = TAKE(made);
    return 0;
}
