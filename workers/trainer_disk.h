/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * How much disk a node has filled.
 *
 * To know it is to walk its folder, which takes the longer the more files there are. So walks are
 * a share of the time, TRAINER_WALK_SHARE of a core, and a minute apart at most; a folder of some
 * hundred files is walked at each look. Between two walks the free room of the file system is
 * asked: when it has become less by what the node may still fill, the node may be who did it, and
 * is walked at once. What gives no sign there (others have freed as much meanwhile, a copy that
 * shares its blocks) is found with the next walk.
 *
 * Thread: libuv's pool; a walk blocks.   Tests: tests/unit/test_trainer_disk.c
 */

#include <stdbool.h>
#include <stdint.h>

#define TRAINER_WALK_SHARE 5000u /* a walk is followed by as many times what it took */
#define TRAINER_WALK_US_MOST 60000000u

struct trainer_disk {
    uint64_t size;      /* as walked last */
    uint64_t free_size; /* of the file system, before that walk */
    uint64_t next_us;   /* when the next one is due; 0: there was none */
    bool walked;        /* by the last look */
};

/* How long not to walk after a walk that took cpu_us of CPU. */
uint64_t trainer_walk_rest_us(uint64_t cpu_us);

/* Whether a node that may fill limit is to be walked now, with that much room in its file system.
 */
bool trainer_disk_is_due(const struct trainer_disk *disk, uint64_t free_size, uint64_t limit,
                         uint64_t now_us);

/* Now on clock_mono_us(). */
void trainer_disk_look(struct trainer_disk *disk, const char *folder, uint64_t limit,
                       uint64_t now_us);
