/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/device.h"

#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/settings.h"

#define GIB ((double)(1u << 30))
#define VISIBLE_SIZE_MAX 8192

/* ---- CUDA_VISIBLE_DEVICES ---- */

/* A GPU by its number, or all of its slices. */
static bool is_index(const char *word, uint32_t *ret_index)
{
    int64_t number;
    struct err err;

    if (!isdigit((unsigned char)word[0]) || settings_parse_int("index", word, &number, &err) < 0 ||
        number > INT32_MAX)
        return false;
    *ret_index = (uint32_t)number;
    return true;
}

/* MIG-GPU-<uuid>/<gpu instance>/<compute instance>, the form of drivers before R470. */
static bool is_old_slice(const struct device_info *info, const char *word)
{
    char name[DEVICE_UUID_SIZE + 32];

    if (info->parent[0] == '\0')
        return false;
    (void)snprintf(name, sizeof(name), "MIG-%s/%u/%u", info->parent, info->gpu_instance,
                   info->compute_instance);
    return strcmp(name, word) == 0;
}

/* Whether a word means this device, if it means only one. */
static bool is_named(const struct device_info *info, const char *word)
{
    size_t size = strlen(word);

    if (is_old_slice(info, word))
        return true;
    return size > strlen("GPU-") &&
           (strncmp(word, "GPU-", 4) == 0 || strncmp(word, "MIG-", 4) == 0) &&
           (strncmp(info->uuid, word, size) == 0 ||
            (info->parent[0] != '\0' && strncmp(info->parent, word, size) == 0));
}

/* The device that a found one belongs to as a whole: words name GPUs, whose slices go together. */
static const char *whole_of(const struct device_info *info, const char *word)
{
    return info->parent[0] != '\0' && strncmp(word, "MIG-", 4) != 0 ? info->parent : info->uuid;
}

static bool holds(const struct device_info *infos, size_t count, const char *uuid)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(infos[i].uuid, uuid) == 0)
            return true;
    }
    return false;
}

/* Adds what one word means. False: nothing, several things, or what was there already. */
static bool visible_add(const char *word, const struct device_info *infos, size_t info_count,
                        struct device_info *to, size_t *count)
{
    const char *whole = NULL;
    size_t before = *count;
    uint32_t index;
    bool by_index = is_index(word, &index);

    for (size_t i = 0; i < info_count && *count < DEVICES_MAX; i++) {
        const struct device_info *info = &infos[i];

        if (info->sliced || (by_index ? info->index != index : !is_named(info, word)))
            continue;
        if (holds(to, *count, info->uuid) ||
            (whole != NULL && strcmp(whole, whole_of(info, word)) != 0)) {
            *count = before;
            return false;
        }
        if (!by_index)
            whole = whole_of(info, word);
        to[(*count)++] = *info;
    }
    return *count > before;
}

static size_t visible_all(const struct device_info *infos, size_t info_count,
                          struct device_info *to)
{
    size_t count = 0;

    for (size_t i = 0; i < info_count && count < DEVICES_MAX; i++) {
        if (!infos[i].sliced)
            to[count++] = infos[i];
    }
    return count;
}

size_t device_visible(const char *value, const struct device_info *infos, size_t info_count,
                      struct device_info *to, char bad[DEVICE_UUID_SIZE])
{
    char text[VISIBLE_SIZE_MAX], *rest = text, *word;
    size_t count = 0;

    bad[0] = '\0';
    if (value == NULL)
        return visible_all(infos, info_count, to);
    mem_copy_text(text, value);
    if (text[strspn(text, " \t")] == '\0')
        return 0;
    while ((word = strsep(&rest, ",")) != NULL) {
        word += strspn(word, " \t");
        word[strcspn(word, " \t")] = '\0';
        if (!visible_add(word, infos, info_count, to, &count)) {
            mem_copy_text_at(bad, DEVICE_UUID_SIZE, word[0] != '\0' ? word : "an empty one");
            break;
        }
    }
    return count;
}

/* ---- what a model needs ---- */

const char *device_size_text(uint64_t size, char to[DEVICE_SIZE_TEXT])
{
    (void)snprintf(to, DEVICE_SIZE_TEXT, "%.1f GiB", (double)size / GIB);
    return to;
}

/* "H100", "A10G:2" */
static int need_accelerator(const char *text, struct device_need *need, struct err *err)
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

static int need_memory(const char *text, struct device_need *need, struct err *err)
{
    if (settings_parse_bytes("resources.accelerator_memory", text, &need->memory_size, err) < 0 ||
        need->memory_size == 0)
        return err_set(err, ERR_RANGE,
                       "resources.accelerator_memory is '%.60s'; it must be a size, for example "
                       "20GiB",
                       text);
    return 0;
}

static int need_capability(const char *text, struct device_need *need, struct err *err)
{
    char rest;

    if (sscanf(text, "%2u.%1u%c", &need->major, &need->minor, &rest) != 2) /* NOLINT */
        return err_set(err, ERR_RANGE,
                       "resources.compute_capability is '%.60s'; it must be MAJOR.MINOR, for "
                       "example 8.0",
                       text);
    return 0;
}

int device_need_parse(const char *config_json, struct device_need *ret_need, struct err *err)
{
    static const struct {
        const char *key;
        int (*take)(const char *text, struct device_need *need, struct err *err);
    } keys[] = {{"accelerator", need_accelerator},
                {"accelerator_memory", need_memory},
                {"compute_capability", need_capability}};
    json_t *root = json_loads(config_json, 0, NULL);
    json_t *own = json_object_get(root, "resources");
    json_t *truss = json_object_get(json_object_get(root, "truss"), "resources");
    int r = 0;

    *ret_need = (struct device_need){.count = 1};
    for (size_t i = 0; r == 0 && i < COUNT_OF(keys); i++) {
        const json_t *value = json_object_get(own, keys[i].key);
        const char *text;

        if (value == NULL)
            value = json_object_get(truss, keys[i].key);
        text = json_string_value(value);
        if (text != NULL && text[0] != '\0')
            r = keys[i].take(text, ret_need, err);
        else if (value != NULL && text == NULL && !json_is_null(value))
            r = err_set(err, ERR_RANGE, "resources.%s must be a text", keys[i].key);
    }
    json_decref(root);
    return r;
}

void device_need_describe(const struct device_need *need, char to[DEVICE_TEXT_SIZE])
{
    char size[DEVICE_SIZE_TEXT];
    int n;

    if (need->count > 1)
        n = snprintf(to, DEVICE_TEXT_SIZE, "%u %s", need->count,
                     need->kind[0] != '\0' ? need->kind : "devices");
    else
        n = snprintf(to, DEVICE_TEXT_SIZE, "%s", need->kind[0] != '\0' ? need->kind : "a device");
    if (need->memory_size > 0)
        n += snprintf(to + n, DEVICE_TEXT_SIZE - (size_t)n, " with %s%s",
                      device_size_text(need->memory_size, size), need->count > 1 ? " each" : "");
    if (need->major > 0)
        (void)snprintf(to + n, DEVICE_TEXT_SIZE - (size_t)n, " of compute capability %u.%u",
                       need->major, need->minor);
}

/* A word of a name: "H100" is one of "NVIDIA H100 80GB HBM3", and "L4" is none of "NVIDIA L40S". */
static bool has_word(const char *name, const char *word, size_t size)
{
    for (const char *at = name; *at != '\0'; at++) {
        bool begins = at == name || !isalnum((unsigned char)at[-1]);

        if (begins && strncasecmp(at, word, size) == 0 && !isalnum((unsigned char)at[size]))
            return true;
    }
    return false;
}

/* "A100_40GB": an A100, or a slice of one, of about that memory; "RTX_PRO_6000": all three words.
 */
static bool is_kind(const struct device_info *info, const char *kind)
{
    while (*kind != '\0') {
        size_t size = strcspn(kind, "_");
        unsigned gib;
        int end = 0;

        (void)sscanf(kind, "%3uGB%n", &gib, &end); /* NOLINT */
        if (end > 0 && (size_t)end == size) {
            double has = (double)info->total_size / GIB;

            if (has < 0.85 * gib || has > 1.1 * gib)
                return false;
        } else if (!has_word(info->name, kind, size)) {
            return false;
        }
        kind += size;
        kind += *kind == '_';
    }
    return true;
}

enum device_misfit device_fits(const struct device_info *info, const struct device_need *need)
{
    if (!is_kind(info, need->kind))
        return DEVICE_OTHER_KIND;
    if (info->major < need->major || (info->major == need->major && info->minor < need->minor))
        return DEVICE_TOO_OLD;
    return info->total_size < need->memory_size ? DEVICE_TOO_SMALL : DEVICE_FITS;
}

/* ---- Xids ---- */

enum device_xid_class device_xid_class(uint64_t xid, const char **ret_text)
{
    static const struct {
        uint64_t first, last;
        enum device_xid_class class;
        const char *text;
    } xids[] = {
#define XID(first, last, class, text) {first, last, DEVICE_XID_##class, text},
#include "workers/device_xids.def"
#undef XID
    };

    for (size_t i = 0; i < COUNT_OF(xids); i++) {
        if (xid < xids[i].first || xid > xids[i].last)
            continue;
        *ret_text = xids[i].text;
        return xids[i].class;
    }
    *ret_text = "not in our list";
    return DEVICE_XID_HARDWARE;
}

const char *device_xid_class_name(enum device_xid_class class)
{
    static const char *const names[] = {
        [DEVICE_XID_APPLICATION] = "application",
        [DEVICE_XID_NOTED] = "noted",
        [DEVICE_XID_HARDWARE] = "hardware",
        [DEVICE_XID_LOST] = "lost",
    };

    return names[class];
}
