/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/host_plugin.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "workers/engine_host.h"

static bool plugin_name_ok(const char *name)
{
    size_t size = strlen(name);

    return size > 0 && size <= HOST_PLUGIN_NAME_MAX &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == size;
}

int host_plugin_folder(const char *folder, char to[HOST_PLUGIN_PATH_SIZE], struct err *err)
{
    static const char *const beside[] = {"../lib/headrace/engines", "../lib/engines"};
    char binary[HOST_PLUGIN_PATH_SIZE], path[HOST_PLUGIN_PATH_SIZE];
    int r;

    if (folder != NULL && folder[0] != '\0') {
        mem_copy_text_at(to, HOST_PLUGIN_PATH_SIZE, folder);
        return 0;
    }
    r = engine_host_binary_folder(binary, sizeof(binary), err);
    for (size_t i = 0; r == 0 && i < COUNT_OF(beside); i++) {
        int n = snprintf(to, HOST_PLUGIN_PATH_SIZE, "%s/%s", binary, beside[i]);
        int m = snprintf(path, sizeof(path), "%.*s/sim.so", HOST_PLUGIN_PATH_SIZE - 20, to);

        /* The simulator is built with every binary, so it marks the folder. */
        if (n < HOST_PLUGIN_PATH_SIZE && m > 0 && access(path, R_OK) == 0)
            return 0;
    }
    if (r < 0)
        return r;
    return err_set(err, ERR_NOT_FOUND,
                   "engine plugins are neither in ../lib/headrace/engines nor in "
                   "../lib/engines of %s; name their folder with --engines",
                   binary);
}

/* The plugin of that device, else the one for all. */
static char *find_plugin(const char *where, const char *name, const char *device)
{
    char *path;

    if (device != NULL && (strcmp(device, "cuda") == 0 || strncmp(device, "cuda:", 5) == 0)) {
        path = xasprintf("%s/%s_cuda.so", where, name);
        if (access(path, F_OK) == 0)
            return path;
        free(path);
    }
    return xasprintf("%s/%s.so", where, name);
}

int host_plugin_open(const char *folder, const char *name, const char *device,
                     const struct engine_api **ret_api, struct err *err)
{
    const struct engine_api *(*entry)(void);
    const struct engine_api *api;
    char where[HOST_PLUGIN_PATH_SIZE];
    OWNED(mem_free) char *path = NULL;
    void *handle;
    int r;

    if (!plugin_name_ok(name))
        return err_set(err, ERR_RANGE, "engine '%.80s' is not 1 to %d of a-z 0-9 _", name,
                       HOST_PLUGIN_NAME_MAX);
    r = host_plugin_folder(folder, where, err);
    if (r < 0)
        return r;
    path = find_plugin(where, name, device);
    if (access(path, R_OK) < 0)
        return err_set_errno(err, ERR_NOT_FOUND, "engine '%s': %s", name, path);
    handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL)
        return err_set(err, ERR_DEPENDENCY, "engine '%s': %s", name, dlerror());
    *(void **)&entry = dlsym(handle, ENGINE_SYMBOL);
    if (entry == NULL)
        return err_set(err, ERR_DEPENDENCY, "engine '%s': %s has no %s()", name, path,
                       ENGINE_SYMBOL);
    api = entry();
    if (api->abi != ENGINE_ABI)
        return err_set(err, ERR_DEPENDENCY, "engine '%s': %s has ABI %u, this host speaks %u", name,
                       path, api->abi, ENGINE_ABI);
    *ret_api = api;
    return 0;
}
