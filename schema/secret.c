/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/secret.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

int secret_name_check(const char *name, struct err *err)
{
    static const char good[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._";
    size_t size = strlen(name);

    if (size == 0 || size > SECRET_NAME_SIZE_MAX || strspn(name, good) != size)
        return err_set(err, ERR_RANGE,
                       "'%.60s' is no name of a secret: it must be 1 to %d of a-z A-Z 0-9 - . _",
                       name, SECRET_NAME_SIZE_MAX);
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return err_set(err, ERR_RANGE, "'%s' is no name of a secret: no file can be called so",
                       name);
    return 0;
}

void secret_context(const char *tenant, const char *name, char to[SECRET_CONTEXT_SIZE])
{
    (void)snprintf(to, SECRET_CONTEXT_SIZE, "secret %s/%s", tenant, name);
}

bool secrets_are_named(const char *settings_json)
{
    json_t *root = json_loads(settings_json, 0, NULL);
    bool named = json_object_size(json_object_get(root, "secrets")) > 0 ||
                 json_array_size(json_object_get(root, "secrets")) > 0 ||
                 json_object_size(json_object_get(json_object_get(root, "truss"), "secrets")) > 0;

    json_decref(root);
    return named;
}
