/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Entry point of headrace-host: what a worker starts and a model waits for, and nothing else, so
 * that no library of stores and HTTP is loaded with it: loading those takes longer than all that
 * such a process does until it runs. Its commands are those of the one binary, under the same
 * names.
 */

#include <stdio.h>
#include <string.h>

#include "cli/main/prepare.h"
#include "workers/confine.h"
#include "workers/host_c.h"

int main(int argc, char **argv)
{
    main_prepare();
    if (argc > 1 && strcmp(argv[1], "host-c") == 0)
        return host_c_main(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "confine") == 0)
        return confine_main(argc - 1, argv + 1);
    (void)fputs("headrace-host: `headrace` starts this by itself\n", stderr);
    return 1;
}
