/* SPDX-License-Identifier: Apache-2.0 */

/*
 * `headrace host-c`: started by a worker, never by a person; its socket is descriptor 3. See
 * host_c.h. Hidden: it is in no list of commands.
 */

#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "workers/host_c.h"

#define HOST_SOCKET_FD 3

int host_c_main(int argc, char **argv)
{
    const struct log_options options = {.program = "host-c", .level = LOG_LEVEL_INFO};
    const struct rlimit no_core = {0, 0};
    struct err err;

    /* The worker drains us by frames; a Ctrl-C meant for the whole terminal must not reach us. */
    (void)signal(SIGINT, SIG_IGN);
    (void)signal(SIGTERM, SIG_IGN);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)setrlimit(RLIMIT_CORE, &no_core);
    if (log_open(&options, &err) < 0 || write(HOST_SOCKET_FD, "", 0) < 0) {
        log_error("host_start_failed", LOG_STR("error", "only a worker starts host-c"));
        return 1;
    }
    return host_c_serve(HOST_SOCKET_FD, argc > 1 ? argv[1] : NULL);
}
