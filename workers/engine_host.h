/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which program a worker starts for an engine: the table of workers/engine_hosts.def and the
 * command line behind each of its kinds.
 *
 *     plugins   headrace host-c FOLDER
 *     python    python3 FOLDER/host_py headrace confine …     and it becomes
 *               headrace confine … -- ENVIRONMENT/bin/python FOLDER/host_py --loaded
 *     chain     headrace host-chain
 *     training  headrace host-training
 *     server    headrace confine … -- headrace host-server LEVEL
 *
 * Only finds; it starts nothing. Each of them speaks frames on descriptor 3 (workers/frame.h).
 * Thread: any.   Tests: tests/unit/test_engine_host.c
 */

#include <stdint.h>

#include "base/err.h"
#include "workers/confine.h"

#define ENGINE_HOST_ARGS_MAX 32

enum engine_host_kind {
    ENGINE_HOST_C, /* plugins */
    ENGINE_HOST_PY,
    ENGINE_HOST_SERVER,
    ENGINE_HOST_CHAIN,
    ENGINE_HOST_TRAINING, /* of a trainer */
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

struct engine_confine {
    enum confine_level level;            /* as confine_level_find() found it; not tried again */
    const char *dir;                     /* of the model */
    const char *read;                    /* what else may be read, with colons between */
    const char *group;                   /* of its cgroup */
    const char *settings_json;           /* of the engine: `network` and `image` in it are heeded */
    const char *gateway;                 /* URL whose port a chainlet may connect to; "": none */
    uint64_t memory_size, process_count; /* 0: no limit */
    unsigned nice;
};

/* Puts a host of user code under `headrace confine`; a plugin's is left as it is. */
void engine_host_confine(struct engine_host *host, const struct engine_confine *how);

/* What the code may reach of the network: "none", "out" or "host", as of `headrace confine`. */
const char *engine_host_network(enum engine_host_kind kind, enum confine_level level,
                                const char *settings_json);

/* The running binary, by its real name; after an upgrade in its place that is the new one. */
int engine_host_binary(char *to, size_t to_size, struct err *err) MUST_CHECK;

/* Its folder, without a slash at its end. */
int engine_host_binary_folder(char *to, size_t to_size, struct err *err) MUST_CHECK;

/* The program of that name in PATH, the caller's to free; NULL: there is none. */
char *engine_host_program(const char *name);
