/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/fault.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/mem.h"

bool fault_enabled;
static const char *fault_directory;

static const char *const fault_names[] = {
#define FAULT_POINT(name, program, text) [FAULT_##name] = #name,
#include "brokers/fault_points.def"
#undef FAULT_POINT
};

const char *fault_name(enum fault point)
{
    return (size_t)point < COUNT_OF(fault_names) ? fault_names[point] : "?";
}

void fault_set_directory(const char *directory)
{
    fault_directory = directory;
    fault_enabled = directory != NULL;
}

void fault_open(void)
{
    const char *directory = getenv("HEADRACE_FAULT_DIR");

    if (directory == NULL || *directory == '\0')
        return;
    fault_set_directory(directory);
    (void)fprintf(stderr, "headrace: HEADRACE_FAULT_DIR is set: for tests, this process may stop "
                          "itself at a fault point\n");
}

void fault_stop(enum fault point)
{
    char armed[PATH_MAX], taken[PATH_MAX];

    (void)snprintf(armed, sizeof(armed), "%s/%s", fault_directory, fault_name(point));
    (void)snprintf(taken, sizeof(taken), "%s/%s.%d", fault_directory, fault_name(point),
                   (int)getpid());
    /* Only one of all processes that come here succeeds. */
    if (rename(armed, taken) == 0)
        (void)kill(getpid(), SIGSTOP);
}
