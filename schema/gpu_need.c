/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/gpu_need.h"

#include <stdio.h>
#include <string.h>

#include "base/settings.h"

#define GIB ((double)(1u << 30))
#define INDEX_MAX 255

const char *gpu_size_text(uint64_t size, char to[DEVICE_SIZE_TEXT])
{
    (void)snprintf(to, DEVICE_SIZE_TEXT, "%.1f GiB", (double)size / GIB);
    return to;
}

bool gpu_is_wanted(const char *device)
{
    return strcmp(device, "cuda") == 0 || strncmp(device, "cuda:", 5) == 0;
}

/* "H100", "A10G:2" */
static int need_accelerator(const char *text, struct gpu_need *need, struct err *err)
{
    size_t size = strcspn(text, ":");
    int64_t count = 1;

    if (text[size] != '\0' && settings_parse_int("N", text + size + 1, &count, err) < 0)
        count = 0;
    if (size == 0 || size >= sizeof(need->kind) || count < 1 || count > DEVICE_COUNT_MAX)
        return err_set(err, ERR_RANGE,
                       "resources.accelerator is '%.60s'; it must be TYPE or TYPE:N with N of 1 "
                       "to %d",
                       text, DEVICE_COUNT_MAX);
    memcpy(need->kind, text, size);
    need->kind[size] = '\0';
    need->count = (uint32_t)count;
    return 0;
}

static int need_memory(const char *text, struct gpu_need *need, struct err *err)
{
    if (settings_parse_bytes("accelerator_memory", text, &need->memory_size, err) < 0 ||
        need->memory_size == 0)
        return err_set(err, ERR_RANGE,
                       "resources.accelerator_memory is '%.60s'; it must be a size, for example "
                       "20GiB",
                       text);
    return 0;
}

static int need_capability(const char *text, struct gpu_need *need, struct err *err)
{
    char rest;

    if (sscanf(text, "%2u.%1u%c", &need->major, &need->minor, &rest) != 2) /* NOLINT */
        return err_set(err, ERR_RANGE,
                       "resources.compute_capability is '%.60s'; it must be MAJOR.MINOR, for "
                       "example 8.0",
                       text);
    return 0;
}

static int need_device(const char *device, struct gpu_need *need, struct err *err)
{
    int64_t number;

    if (device[4] == '\0')
        return 0;
    if (settings_parse_int("device", device + 5, &number, err) < 0 || number < 0 ||
        number > INDEX_MAX)
        return err_set(err, ERR_RANGE,
                       "device is '%.40s'; it must be cuda or cuda:N with N of 0 to %d", device,
                       INDEX_MAX);
    need->index = (uint32_t)number;
    return 0;
}

int gpu_need_parse(const char *device, const json_t *resources, struct gpu_need *ret_need,
                   struct err *err)
{
    static const struct {
        const char *key;
        int (*take)(const char *text, struct gpu_need *need, struct err *err);
    } keys[] = {{"accelerator", need_accelerator},
                {"accelerator_memory", need_memory},
                {"compute_capability", need_capability}};
    int r = 0;

    *ret_need = (struct gpu_need){.count = 1, .index = DEVICE_ANY};
    if (gpu_is_wanted(device))
        r = need_device(device, ret_need, err);
    for (size_t i = 0; r == 0 && i < COUNT_OF(keys); i++) {
        const json_t *value = json_object_get(resources, keys[i].key);
        const char *text = json_string_value(value);

        if (text != NULL && text[0] != '\0')
            r = keys[i].take(text, ret_need, err);
        else if (value != NULL && text == NULL && !json_is_null(value))
            r = err_set(err, ERR_RANGE, "resources.%s must be a text", keys[i].key);
    }
    if (r == 0 && ret_need->index != DEVICE_ANY && ret_need->count > 1)
        r = err_set(err, ERR_RANGE,
                    "device is '%.40s', which is one device, and resources.accelerator asks for %u",
                    device, ret_need->count);
    return r;
}

void gpu_need_describe(const struct gpu_need *need, char to[DEVICE_TEXT_SIZE])
{
    char size[DEVICE_SIZE_TEXT];
    int n;

    if (need->index != DEVICE_ANY)
        n = snprintf(to, DEVICE_TEXT_SIZE, "GPU %u%s%s", need->index,
                     need->kind[0] != '\0' ? ", " : "", need->kind);
    else if (need->count > 1)
        n = snprintf(to, DEVICE_TEXT_SIZE, "%u %s", need->count,
                     need->kind[0] != '\0' ? need->kind : "devices");
    else
        n = snprintf(to, DEVICE_TEXT_SIZE, "%s", need->kind[0] != '\0' ? need->kind : "a device");
    if (need->memory_size > 0)
        n += snprintf(to + n, DEVICE_TEXT_SIZE - (size_t)n, " with %s%s",
                      gpu_size_text(need->memory_size, size), need->count > 1 ? " each" : "");
    if (need->major > 0)
        (void)snprintf(to + n, DEVICE_TEXT_SIZE - (size_t)n, " of compute capability %u.%u",
                       need->major, need->minor);
}
