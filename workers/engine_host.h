/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which program a worker starts for an engine: the table of workers/engine_hosts.def and the
 * command line behind each of its kinds.
 *
 *     plugins   headrace host-c FOLDER
 *     python    python3 FOLDER/host_py
 *     server    headrace host-server
 *
 * Only finds; it starts nothing. Each of them speaks frames on descriptor 3 (workers/frame.h).
 * Thread: any.   Tests: tests/unit/test_engine_host.c
 */

#include "base/err.h"

#define ENGINE_HOST_ARGS_MAX 8

enum engine_host_kind {
    ENGINE_HOST_C, /* plugins */
    ENGINE_HOST_PY,
    ENGINE_HOST_SERVER,
};

struct engine_host {
    enum engine_host_kind kind;
    char *path;                           /* for execve(2) */
    char *argv[ENGINE_HOST_ARGS_MAX + 1]; /* ends in NULL */
};

enum engine_host_kind engine_host_kind(const char *engine);

/* engines_folder "": the plugins beside the binary. ERR_DEPENDENCY: the program or what it needs is
 * not on this machine; the text says what was looked for and where. Free with engine_host_done().
 */
int engine_host_find(const char *engine, const char *engines_folder, struct engine_host *ret_host,
                     struct err *err) MUST_CHECK;
void engine_host_done(struct engine_host *host);

/* The folder of the running binary, without a slash at its end. */
int engine_host_binary_folder(char *to, size_t to_size, struct err *err) MUST_CHECK;
