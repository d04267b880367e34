/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Finds and opens an engine plugin by name: <name>.so in the plugin folder, which is the --engines
 * setting, else, seen from the binary, ../lib/headrace/engines (an installation) or ../lib/engines
 * (a build tree). A device other than the CPU may have a plugin of its own, <name>_cuda.so, so that
 * nothing else needs its libraries; where there is none, the engine's is asked and says what it
 * has. A plugin of another ABI is refused by name. A plugin that was opened stays open: libraries
 * that it brings along (OpenMP, CUDA) do not survive dlclose(3).
 *
 * Thread: any.   Tests: tests/unit/test_sim_engine.c, test_host_c.c
 */

#include "base/err.h"
#include "workers/engine.h"

#define HOST_PLUGIN_PATH_SIZE 4096
#define HOST_PLUGIN_NAME_MAX 64

/* folder NULL or "": as above. device as engine.h has it; NULL: "cpu". ERR_RANGE: no name of an
 * engine. ERR_NOT_FOUND: no such file, and where it was looked for. ERR_DEPENDENCY: it is there but
 * cannot be used, and why. */
int host_plugin_open(const char *folder, const char *name, const char *device,
                     const struct engine_api **ret_api, struct err *err) MUST_CHECK;

/* Where plugins are; `to` is terminated. */
int host_plugin_folder(const char *folder, char to[HOST_PLUGIN_PATH_SIZE],
                       struct err *err) MUST_CHECK;
