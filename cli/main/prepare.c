/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/main/prepare.h"

#include <signal.h>
#include <sys/resource.h>

#include "brokers/fault.h"

#define FILES_MAX 65536

/* Connections, streams and models' answers have a descriptor each; the usual soft limit of 1,024 is
 * for programs that select(2). */
static void raise_file_limit(void)
{
    struct rlimit files;

    if (getrlimit(RLIMIT_NOFILE, &files) < 0 || files.rlim_cur >= FILES_MAX)
        return;
    files.rlim_cur = files.rlim_max < FILES_MAX ? files.rlim_max : FILES_MAX;
    (void)setrlimit(RLIMIT_NOFILE, &files);
}

void main_prepare(void)
{
    (void)signal(SIGPIPE, SIG_IGN); /* sockets are written to after their peers are gone */
    raise_file_limit();
    fault_open();
}
