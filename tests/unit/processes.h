/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Other processes as tests see them: whether one of that command line runs, and until it does not.
 * Include after cmocka.h. */

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

#define PROCESSES_TURNS 1000
#define PROCESSES_TURN_MS 20

static inline void wait_ms(int ms)
{
    (void)poll(NULL, 0, ms);
}

/* Whether a process runs `sleep` for that odd number of seconds, which marks it as a test's own. */
static inline bool sleeper_runs(const char *seconds)
{
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    bool found = false;

    while (!found && (entry = readdir(proc)) != NULL) {
        OWNED(mem_free) char *path = xasprintf("/proc/%s/cmdline", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        char text[64] = "";
        ssize_t size = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

        if (fd >= 0)
            (void)close(fd);
        found = size > 6 && strcmp(text, "sleep") == 0 && strcmp(text + 6, seconds) == 0;
    }
    (void)closedir(proc);
    return found;
}

static inline void want_sleeper(const char *seconds, bool wanted)
{
    for (int i = 0; i < PROCESSES_TURNS && sleeper_runs(seconds) != wanted; i++)
        wait_ms(PROCESSES_TURN_MS);
    assert_int_equal(sleeper_runs(seconds), wanted);
}
