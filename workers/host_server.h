/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * host-server: the process that runs one HTTP server of a user's for one worker, and talks to it.
 *
 *     worker                    host-server                       the user's server
 *       LOAD     ------>          /bin/sh -c start_command ------>  starts
 *                                 GET readiness_endpoint … ------>  503 … 200
 *                <------ READY
 *       REQ      ------>          POST predict_endpoint    ------>
 *                <------ EVT      TOKENS …, OUTPUT         <------  200, in pieces
 *       CANCEL   ------>          closes the connection
 *       DRAIN    ------>          SIGTERM, then SIGKILL    ------>  ends
 *                <------ BYE
 *
 * Happy path: as above; at most as many requests at once as the deployment has slots, each on a
 * kept connection.
 *
 * Failures: an answer that is no 2xx is an EVT ERROR with the class of its status, and carries
 * status, type and body as they came. A server that ends, that does not become ready in time or
 * that is not alive any more is killed, and a BYE tells its end and its own last lines; the worker
 * starts host and server again.
 *
 * Bounded: an answer by answer_size_max (it is kept in a memfd, once), what was read and not yet
 * taken by the worker by HOST_SERVER_UNSENT_MAX (the server is held up then), its log by
 * workers/server_log.h.
 *
 * Shutdown: the server's process group is killed when the socket closes; what is left of it when
 * this process itself is killed, workers/confine.h sees to.
 *
 * Thread: one loop.   Tests: tests/unit/test_host_server.c, tests/stack/test_server.py
 */

#include "workers/confine.h"

#define HOST_SERVER_UNSENT_MAX (1u << 20)

/* Serves until BYE; fd is the socket, taken; isolation is what this process runs under. Returns the
 * exit code of the process. */
int host_server_serve(int fd, enum confine_level isolation);

/* The program: `headrace host-server [LEVEL]`. */
int host_server_main(int argc, char **argv);
