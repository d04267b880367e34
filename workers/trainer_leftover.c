/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Folders of nodes that a trainer which was killed has left. They go, since their checkpoints are
 * in the store, but not before its processes have: a keeper takes up to five seconds for what it
 * kept, and a script that found its folders empty meanwhile would begin anew, and say so in what it
 * writes elsewhere. No placement ever has the folder of another, so nobody waits for it.
 */

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "workers/agent_unpack.h"
#include "workers/trainer_int.h"

#define PATIENCE_MS 10000
#define TURN_MS 20 /* one folder at a time, so that the loop goes on */

struct leftover {
    STAILQ_ENTRY(leftover) link;
    char *path;
};

struct trainer_leftovers {
    STAILQ_HEAD(, leftover) folders;
    struct loop_timer *timer;
};

static void leftover_pop(struct trainer_leftovers *leftovers)
{
    struct leftover *first = STAILQ_FIRST(&leftovers->folders);

    STAILQ_REMOVE_HEAD(&leftovers->folders, link);
    free(first->path);
    free(first);
}

static void leftovers_on_time(void *opaque)
{
    struct trainer_leftovers *leftovers = opaque;
    struct leftover *first = STAILQ_FIRST(&leftovers->folders);
    struct err err;

    if (agent_remove_tree(first->path, &err) < 0)
        log_warn("folder_stays", LOG_STR("folder", first->path), LOG_ERR(&err));
    leftover_pop(leftovers);
    if (!STAILQ_EMPTY(&leftovers->folders))
        loop_timer_start(leftovers->timer, TURN_MS, 0);
}

void trainer_leftovers_open(struct trainer *trainer)
{
    struct trainer_leftovers *leftovers = xcalloc(1, sizeof(*leftovers));
    DIR *folder = opendir(trainer->jobs_dir);
    struct dirent *entry;

    STAILQ_INIT(&leftovers->folders);
    leftovers->timer = loop_timer_new(trainer->loop, leftovers_on_time, leftovers);
    while (folder != NULL && (entry = readdir(folder)) != NULL) {
        struct leftover *one;

        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        one = xcalloc(1, sizeof(*one));
        one->path = xasprintf("%s/%s", trainer->jobs_dir, entry->d_name);
        STAILQ_INSERT_TAIL(&leftovers->folders, one, link);
    }
    if (folder != NULL)
        (void)closedir(folder);
    if (!STAILQ_EMPTY(&leftovers->folders))
        loop_timer_start(leftovers->timer, PATIENCE_MS, 0);
    trainer->leftovers = leftovers;
}

void trainer_leftovers_close(struct trainer *trainer)
{
    struct trainer_leftovers *leftovers = TAKE(trainer->leftovers);

    if (leftovers == NULL)
        return;
    while (!STAILQ_EMPTY(&leftovers->folders))
        leftover_pop(leftovers);
    loop_timer_free(&leftovers->timer);
    free(leftovers);
}
