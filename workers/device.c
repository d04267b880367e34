/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/device.h"

#include <ctype.h>
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

enum device_misfit device_fits(const struct device_info *info, const struct gpu_need *need)
{
    if (!is_kind(info, need->kind) || (need->index != DEVICE_ANY && need->index != info->index))
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
