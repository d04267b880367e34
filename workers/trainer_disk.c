/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/trainer_disk.h"

#include <fts.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/clock.h"
#include "base/mem.h"

static uint64_t tree_size(const char *path)
{
    OWNED(mem_free) char *root = xstrdup(path);
    char *roots[] = {root, NULL};
    FTS *tree = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    uint64_t size = 0;
    FTSENT *entry;

    while (tree != NULL && (entry = fts_read(tree)) != NULL) {
        if (entry->fts_info == FTS_F)
            size += (uint64_t)entry->fts_statp->st_blocks * 512;
    }
    if (tree != NULL)
        (void)fts_close(tree);
    return size;
}

/* Of the file system; 0: it does not say. */
static uint64_t room_of(const char *path)
{
    struct statvfs about;

    return statvfs(path, &about) < 0 ? 0 : (uint64_t)about.f_bfree * about.f_frsize;
}

uint64_t trainer_walk_rest_us(uint64_t cpu_us)
{
    return cpu_us < TRAINER_WALK_US_MOST / TRAINER_WALK_SHARE ? cpu_us * TRAINER_WALK_SHARE
                                                              : TRAINER_WALK_US_MOST;
}

bool trainer_disk_is_due(const struct trainer_disk *disk, uint64_t free_size, uint64_t limit,
                         uint64_t now_us)
{
    uint64_t room = limit > disk->size ? limit - disk->size : 0;

    return now_us >= disk->next_us ||
           (free_size < disk->free_size && disk->free_size - free_size >= room);
}

void trainer_disk_look(struct trainer_disk *disk, const char *folder, uint64_t limit,
                       uint64_t now_us)
{
    uint64_t free_size = room_of(folder), began_us;

    disk->walked = trainer_disk_is_due(disk, free_size, limit, now_us);
    if (!disk->walked)
        return;
    began_us = clock_thread_us();
    disk->free_size = free_size;
    disk->size = tree_size(folder);
    disk->next_us = now_us + trainer_walk_rest_us(clock_thread_us() - began_us);
}
