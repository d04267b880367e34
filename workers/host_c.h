/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * host-c: the process that runs one engine plugin for one worker.
 *
 * Happy path: HELLO; LOAD opens the plugin and loads the model (EVT LOADING on the way); READY
 * grants credit; then a loop: read frames -> submit and cancel -> step -> write events. DRAIN
 * finishes what is there, BYE, exit code 0.
 *
 * Failures: a request's failure is its EVT ERROR. A failed load is a BYE with the reason (final:
 * the same would happen again) and exit code 2. An engine that can no longer step is a BYE of class
 * device_fault and exit code 3. A worker that breaks the protocol or takes more than its credit:
 * BYE, exit code 3. A crash is what it is; only this process dies.
 *
 * Shutdown: the host ends when its socket closes, and is killed by the kernel when the worker dies,
 * so that it never outlives the worker, not even hanging in an engine.
 *
 * Thread: one.   Tests: tests/unit/test_host_c.c, test_worker_main.c
 */

#include "base/err.h"

/* Serves until BYE; fd is the socket, taken. Returns the exit code of the process. */
int host_c_serve(int fd, const char *engines_folder);

/* The program: `headrace host-c [FOLDER OF PLUGINS]`. */
int host_c_main(int argc, char **argv);
