/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/devices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

#define NEVER_MS UINT64_MAX

const struct devices_options devices_options_default = {
    .fault_max = 3,
    .window_ms = 600000,
    .quarantine_ms = 60000,
    .quarantine_ms_max = 3600000,
};

struct device {
    struct device_info info;
    enum device_state state;
    uint64_t base_size;                   /* of its memory, used by others */
    bool base_is_sure;                    /* nobody of ours was there then */
    uint64_t fault_ms[DEVICE_FAULTS_MAX]; /* the latest that count */
    uint32_t fault_count;
    uint64_t faults[DEVICE_FAULT_COUNT];
    uint32_t quarantine_count, level; /* level: how often in a row */
    uint64_t until_ms, state_ms, last_fault_ms;
    bool listed, probing;
    char why[DEVICE_TEXT_SIZE];
};

struct holder {
    char name[DEVICE_HOLDER_SIZE], group[DEVICE_HOLDER_SIZE];
    struct device_placement placement;
    bool whole;
    bool loaded; /* it has what was promised to it */
    bool told;   /* to leave */
    bool spare;  /* gives way to who is none */
    bool away;   /* of a spare, within devices_reclaim(): as if it had gone */
};

struct devices {
    struct devices_options options;
    uint64_t now_ms;
    struct device *devices;
    size_t count;
    struct holder *holders;
    size_t holder_count;
    char why_none[DEVICE_TEXT_SIZE];
    char why_silent[DEVICE_TEXT_SIZE]; /* "": the driver answers */
    struct devices_todo *todos;
    size_t todo_first, todo_count, todo_room;
};

const char *device_state_name(enum device_state state)
{
    static const char *const names[] = {
        [DEVICE_WELL] = "well",
        [DEVICE_PROBATION] = "probation",
        [DEVICE_QUARANTINED] = "quarantined",
        [DEVICE_GONE] = "gone",
    };

    return names[state];
}

const char *device_fault_name(enum device_fault fault)
{
    static const char *const names[] = {
        [DEVICE_FAULT_CONTEXT] = "context",
        [DEVICE_FAULT_HANG] = "hang",
        [DEVICE_FAULT_XID] = "xid",
        [DEVICE_FAULT_OOM] = "oom",
    };

    return names[fault];
}

/* ---- to-dos ---- */

/* device: NULL for all. */
static struct devices_todo *todo_add(struct devices *devices, enum devices_todo_type type,
                                     const struct device *device)
{
    struct devices_todo *todo;

    if (devices->todo_first == devices->todo_count)
        devices->todo_first = devices->todo_count = 0;
    if (devices->todo_count == devices->todo_room) {
        devices->todo_room = devices->todo_room == 0 ? 16 : devices->todo_room * 2;
        devices->todos = xrealloc(devices->todos, devices->todo_room, sizeof(*devices->todos));
    }
    todo = &devices->todos[devices->todo_count++];
    *todo = (struct devices_todo){.type = type};
    if (device == NULL)
        return todo;
    mem_copy_text(todo->uuid, device->info.uuid);
    mem_copy_text(todo->why, device->why);
    return todo;
}

bool devices_next_todo(struct devices *devices, struct devices_todo *ret_todo)
{
    if (devices->todo_first == devices->todo_count)
        return false;
    *ret_todo = devices->todos[devices->todo_first++];
    return true;
}

/* ---- finding ---- */

static struct device *device_find(const struct devices *devices, const char *uuid)
{
    for (size_t i = 0; i < devices->count; i++) {
        if (strcmp(devices->devices[i].info.uuid, uuid) == 0)
            return &devices->devices[i];
    }
    return NULL;
}

static struct holder *holder_find(const struct devices *devices, const char *name)
{
    for (size_t i = 0; i < devices->holder_count; i++) {
        if (strcmp(devices->holders[i].name, name) == 0)
            return &devices->holders[i];
    }
    return NULL;
}

static bool placement_has(const struct device_placement *placement, const char *uuid)
{
    for (uint32_t i = 0; i < placement->count; i++) {
        if (strcmp(placement->uuids[i], uuid) == 0)
            return true;
    }
    return false;
}

struct use {
    uint64_t reserved_size;
    uint32_t holder_count;
    bool whole, has_group;
    bool away; /* somebody is left out: what the driver sees in use is not what would be */
};

static struct use use_of(const struct devices *devices, const struct device *device,
                         const char *group)
{
    struct use use = {0};

    for (size_t i = 0; i < devices->holder_count; i++) {
        const struct holder *holder = &devices->holders[i];

        if (!placement_has(&holder->placement, device->info.uuid))
            continue;
        use.away = use.away || holder->away;
        if (holder->away)
            continue;
        use.reserved_size += holder->placement.memory_size;
        use.holder_count++;
        use.whole = use.whole || holder->whole;
        use.has_group = use.has_group || strcmp(holder->group, group) == 0;
    }
    return use;
}

/* Both what was promised and what is in use count: a model that is still loading uses little, one
 * that takes more than it said uses more. */
static uint64_t free_of(const struct device *device, const struct use *use)
{
    uint64_t total_size = device->info.total_size, taken_size = use->reserved_size;
    uint64_t used_size = device->info.used_size;

    taken_size += device->base_size;
    if (taken_size < used_size && !use->away)
        taken_size = used_size;
    return use->whole || taken_size >= total_size ? 0 : total_size - taken_size;
}

/* ---- health ---- */

static void device_drain(struct devices *devices, struct device *device, bool hopeless)
{
    for (size_t i = 0; i < devices->holder_count; i++) {
        struct holder *holder = &devices->holders[i];
        struct devices_todo *todo;

        if (holder->told || !placement_has(&holder->placement, device->info.uuid))
            continue;
        holder->told = true;
        todo = todo_add(devices, DEVICES_TODO_DRAIN, device);
        mem_copy_text(todo->holder, holder->name);
        todo->hopeless = hopeless;
    }
}

static void device_enter(struct devices *devices, struct device *device, enum device_state state,
                         const char *why)
{
    device->state = state;
    device->state_ms = devices->now_ms;
    device->probing = false;
    mem_copy_text(device->why, why);
    (void)todo_add(devices, DEVICES_TODO_TELL, device);
}

static void device_quarantine(struct devices *devices, struct device *device, bool hopeless,
                              const char *why)
{
    uint64_t out_ms = devices->options.quarantine_ms;

    for (uint32_t i = 0; i < device->level && out_ms < devices->options.quarantine_ms_max; i++)
        out_ms *= 2;
    if (out_ms > devices->options.quarantine_ms_max)
        out_ms = devices->options.quarantine_ms_max;
    device->level++;
    device->quarantine_count++;
    device->fault_count = 0;
    device->until_ms = devices->now_ms + out_ms;
    device_enter(devices, device, DEVICE_QUARANTINED, why);
    device_drain(devices, device, hopeless);
}

/* One more that counts: how many there were within the window. */
static uint32_t fault_note(const struct devices *devices, struct device *device)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < device->fault_count; i++) {
        if (devices->now_ms - device->fault_ms[i] < devices->options.window_ms)
            device->fault_ms[kept++] = device->fault_ms[i];
    }
    if (kept == DEVICE_FAULTS_MAX) {
        memmove(device->fault_ms, device->fault_ms + 1, (kept - 1) * sizeof(device->fault_ms[0]));
        kept--;
    }
    device->fault_ms[kept++] = devices->now_ms;
    device->fault_count = kept;
    device->last_fault_ms = devices->now_ms;
    return kept;
}

/* lost: no count is needed. */
static void device_fault(struct devices *devices, struct device *device, bool lost, const char *why)
{
    char text[DEVICE_TEXT_SIZE];
    uint32_t count;

    if (device->state == DEVICE_QUARANTINED || device->state == DEVICE_GONE) {
        device_drain(devices, device, true); /* who is still there */
        return;
    }
    count = fault_note(devices, device);
    if (!lost && device->state == DEVICE_WELL && count < devices->options.fault_max)
        return;
    if (lost || device->state == DEVICE_PROBATION)
        mem_copy_text(text, why);
    else
        (void)snprintf(text, sizeof(text), "%u faults within %llu s, the last: %.300s", count,
                       (unsigned long long)(devices->options.window_ms / 1000), why);
    device_quarantine(devices, device, lost, text);
}

void devices_on_fault(struct devices *devices, const char *uuid, enum device_fault fault,
                      uint64_t xid, const char *why)
{
    const char *text;
    enum device_xid_class class = fault == DEVICE_FAULT_XID ? device_xid_class(xid, &text)
                                                            : DEVICE_XID_HARDWARE;

    assert(fault < DEVICE_FAULT_COUNT);
    for (size_t i = 0; i < devices->count; i++) {
        struct device *device = &devices->devices[i];

        if (uuid[0] == '\0' ||
            (strcmp(device->info.uuid, uuid) != 0 && strcmp(device->info.parent, uuid) != 0))
            continue;
        device->faults[fault]++;
        if (fault == DEVICE_FAULT_OOM || class == DEVICE_XID_APPLICATION ||
            class == DEVICE_XID_NOTED)
            continue;
        device_fault(devices, device, class == DEVICE_XID_LOST, why);
    }
}

void devices_on_holder_fault(struct devices *devices, const char *name, enum device_fault fault,
                             const char *why)
{
    const struct holder *holder = holder_find(devices, name);

    if (holder != NULL)
        devices_on_fault(devices, holder->placement.uuids[0], fault, 0, why);
}

void devices_on_probed(struct devices *devices, const char *uuid, bool well, const char *why)
{
    struct device *device = device_find(devices, uuid);

    if (device == NULL || device->state != DEVICE_QUARANTINED || !device->probing)
        return;
    if (well)
        device_enter(devices, device, DEVICE_PROBATION, "");
    else
        device_quarantine(devices, device, true, why);
}

void devices_tick(struct devices *devices, uint64_t now_ms)
{
    const struct devices_options *options = &devices->options;

    devices->now_ms = now_ms;
    for (size_t i = 0; i < devices->count; i++) {
        struct device *device = &devices->devices[i];

        if (device->state == DEVICE_QUARANTINED && !device->probing && device->until_ms <= now_ms) {
            device->probing = true;
            (void)todo_add(devices, DEVICES_TODO_PROBE, device);
        }
        if (device->state == DEVICE_PROBATION && now_ms - device->state_ms >= options->window_ms)
            device_enter(devices, device, DEVICE_WELL, "");
        if (device->state == DEVICE_WELL && device->level > 0 &&
            now_ms - device->last_fault_ms >= options->quarantine_ms_max)
            device->level = 0;
    }
}

uint64_t devices_due_ms(const struct devices *devices)
{
    uint64_t due_ms = NEVER_MS;

    for (size_t i = 0; i < devices->count; i++) {
        const struct device *device = &devices->devices[i];
        uint64_t at_ms = NEVER_MS;

        if (device->state == DEVICE_QUARANTINED && !device->probing)
            at_ms = device->until_ms;
        if (device->state == DEVICE_PROBATION)
            at_ms = device->state_ms + devices->options.window_ms;
        if (at_ms < due_ms)
            due_ms = at_ms;
    }
    return due_ms;
}

/* ---- inventory ---- */

/* What others have of it is seen while nobody of ours is there. At the first sight of it somebody
 * may be, of the agent before us: until it has been seen empty it is guessed by what ours should
 * have. */
static void base_learn(const struct devices *devices, struct device *device)
{
    uint64_t others_size = device->info.used_size, ours_size = 0;
    bool is_empty = true;

    for (size_t i = 0; i < devices->holder_count; i++) {
        const struct holder *holder = &devices->holders[i];

        if (!placement_has(&holder->placement, device->info.uuid))
            continue;
        is_empty = false;
        if (holder->loaded)
            ours_size += holder->whole ? others_size : holder->placement.memory_size;
    }
    others_size -= ours_size < others_size ? ours_size : others_size;
    if (is_empty || (!device->base_is_sure && others_size < device->base_size))
        device->base_size = others_size;
    device->base_is_sure = device->base_is_sure || is_empty;
}

static void device_take(struct devices *devices, const struct device_info *info)
{
    struct device *device = device_find(devices, info->uuid);

    if (device == NULL) {
        if (devices->count == DEVICES_MAX)
            return;
        device = &devices->devices[devices->count++];
        *device = (struct device){.state = DEVICE_WELL};
        device->info = *info;
        device->base_size = info->used_size;
        device->listed = true;
        (void)todo_add(devices, DEVICES_TODO_TELL, device);
        return;
    }
    device->info = *info;
    device->listed = true;
    base_learn(devices, device);
    if (device->state == DEVICE_GONE) {
        device->until_ms = devices->now_ms;
        device_enter(devices, device, DEVICE_QUARANTINED, "it was gone");
    }
}

void devices_on_inventory(struct devices *devices, const struct device_info *infos, size_t count,
                          const char *why_none)
{
    mem_copy_text(devices->why_none, why_none);
    if (devices->why_silent[0] != '\0')
        (void)todo_add(devices, DEVICES_TODO_TELL, NULL);
    devices->why_silent[0] = '\0';
    for (size_t i = 0; i < devices->count; i++)
        devices->devices[i].listed = false;
    for (size_t i = 0; i < count; i++)
        device_take(devices, &infos[i]);
    for (size_t i = 0; i < devices->count; i++) {
        struct device *device = &devices->devices[i];

        if (device->listed || device->state == DEVICE_GONE)
            continue;
        device_enter(devices, device, DEVICE_GONE, "the driver does not list it any more");
        device_drain(devices, device, true);
    }
}

void devices_on_silent(struct devices *devices, const char *why)
{
    assert(why[0] != '\0');
    mem_copy_text(devices->why_silent, why);
    (void)todo_add(devices, DEVICES_TODO_TELL, NULL);
}

/* ---- placing ---- */

/* How near a device came: what the refusal tells of. */
enum near {
    NEAR_NONE,
    NEAR_KIND,
    NEAR_OLD,
    NEAR_SMALL, /* never */
    NEAR_OUT,   /* from here on: not now */
    NEAR_FULL,
    NEAR_TAKEN, /* by a worker of the same deployment */
    NEAR_FITS,
};

static enum near device_near(const struct devices *devices, const struct device *device,
                             const char *group, const struct gpu_need *need)
{
    static const enum near misfits[] = {[DEVICE_FITS] = NEAR_FITS,
                                        [DEVICE_OTHER_KIND] = NEAR_KIND,
                                        [DEVICE_TOO_OLD] = NEAR_OLD,
                                        [DEVICE_TOO_SMALL] = NEAR_SMALL};
    enum near near = misfits[device_fits(&device->info, need)];
    const struct use use = use_of(devices, device, group);

    if (near != NEAR_FITS)
        return near;
    if (device->state == DEVICE_QUARANTINED || device->state == DEVICE_GONE)
        return NEAR_OUT;
    if (use.has_group)
        return NEAR_TAKEN;
    if (need->memory_size == 0)
        return use.holder_count > 0 ? NEAR_FULL : NEAR_FITS;
    return free_of(device, &use) < need->memory_size ? NEAR_FULL : NEAR_FITS;
}

static int refuse_device(const struct devices *devices, const struct device *device,
                         const struct gpu_need *need, enum near near, struct err *err)
{
    char needs[DEVICE_SIZE_TEXT], has[DEVICE_SIZE_TEXT], total[DEVICE_SIZE_TEXT];
    char asked[DEVICE_TEXT_SIZE];
    const struct device_info *info = &device->info;
    const struct use use = use_of(devices, device, "");

    (void)gpu_size_text(need->memory_size, needs);
    (void)gpu_size_text(free_of(device, &use), has);
    (void)gpu_size_text(info->total_size, total);
    switch (near) {
    case NEAR_NONE:
    case NEAR_FITS:
    case NEAR_KIND:
        gpu_need_describe(need, asked);
        return err_set(err, ERR_UNSUPPORTED,
                       "no device: needs %s, and this machine has %s (GPU %u)", asked, info->name,
                       info->index);
    case NEAR_OLD:
        return err_set(err, ERR_UNSUPPORTED,
                       "too old: needs compute capability %u.%u, %s (%s) has %u.%u", need->major,
                       need->minor, info->name, info->uuid, info->major, info->minor);
    case NEAR_SMALL:
        return err_set(err, ERR_UNSUPPORTED, "too small: needs %s, %s (%s) has %s free of %s",
                       needs, info->name, info->uuid, has, total);
    case NEAR_OUT:
        return err_set(err, ERR_FULL, "%s (%s) is %s: %.200s", info->name, info->uuid,
                       device_state_name(device->state), device->why);
    case NEAR_TAKEN:
        return err_set(err, ERR_FULL, "taken: %s (%s) runs a worker of this deployment already",
                       info->name, info->uuid);
    case NEAR_FULL:
        break;
    }
    if (need->memory_size == 0)
        return err_set(err, ERR_FULL,
                       "taken: needs all of a device, and %s (%s) has %u workers, with %s free of "
                       "%s",
                       info->name, info->uuid, use.holder_count, has, total);
    return err_set(err, ERR_FULL, "too small: needs %s, %s (%s) has %s free of %s", needs,
                   info->name, info->uuid, has, total);
}

static int refuse(const struct devices *devices, const struct gpu_need *need,
                  const struct device *nearest, enum near near, uint32_t fitting, uint32_t possible,
                  struct err *err)
{
    char asked[DEVICE_TEXT_SIZE];

    gpu_need_describe(need, asked);
    if (devices->count == 0)
        return err_set(err, ERR_UNSUPPORTED, "no device: needs %s, and %s", asked,
                       devices->why_none[0] != '\0' ? devices->why_none
                                                    : "this machine has no device");
    if (need->count > 1 && possible > 0)
        return err_set(err, possible < need->count ? ERR_UNSUPPORTED : ERR_FULL,
                       "too few: needs %s; this machine has %u like that, and %u of them free",
                       asked, possible, fitting);
    return refuse_device(devices, nearest, need, near, err);
}

static uint64_t room_of(const struct devices *devices, const struct device *device)
{
    const struct use use = use_of(devices, device, "");

    return free_of(device, &use);
}

/* Whether a is to be taken rather than b: what is left is less. */
static bool is_better(const struct devices *devices, const struct device *a, const struct device *b)
{
    uint64_t room_a = room_of(devices, a), room_b = room_of(devices, b);

    return room_a != room_b ? room_a < room_b : a->info.index < b->info.index;
}

/* Picks so many devices, best first. */
static int pick(const struct devices *devices, const char *group, const struct gpu_need *need,
                const struct device *picked[DEVICE_COUNT_MAX], struct err *err)
{
    const struct device *nearest = NULL;
    enum near near = NEAR_NONE;
    uint32_t count = 0, fitting = 0, possible = 0;

    assert(need->count >= 1 && need->count <= DEVICE_COUNT_MAX);
    if (devices->why_silent[0] != '\0') {
        char asked[DEVICE_TEXT_SIZE];

        gpu_need_describe(need, asked);
        return err_set(err, ERR_FULL, "no device now: needs %.200s, and %.200s", asked,
                       devices->why_silent);
    }
    for (size_t i = 0; i < devices->count; i++) {
        const struct device *device = &devices->devices[i];
        enum near this = device_near(devices, device, group, need);
        uint32_t at;

        possible += this > NEAR_SMALL;
        fitting += this == NEAR_FITS;
        if (this > near || (this == near && room_of(devices, device) > room_of(devices, nearest))) {
            near = this;
            nearest = device; /* of several as near, the one with most room */
        }
        if (this != NEAR_FITS)
            continue;
        for (at = count; at > 0 && is_better(devices, device, picked[at - 1]); at--) {
            if (at < need->count)
                picked[at] = picked[at - 1];
        }
        if (at < need->count) {
            picked[at] = device;
            count += count < need->count;
        }
    }
    if (count == need->count)
        return 0;
    return refuse(devices, need, nearest, near, fitting, possible, err);
}

int devices_check(const struct devices *devices, const char *group, const struct gpu_need *need,
                  struct err *err)
{
    const struct device *picked[DEVICE_COUNT_MAX];

    return pick(devices, group, need, picked, err);
}

static struct holder *holder_add(struct devices *devices, const char *name, const char *group)
{
    struct holder *holder = &devices->holders[devices->holder_count++];

    *holder = (struct holder){0};
    mem_copy_text(holder->name, name);
    mem_copy_text(holder->group, group);
    return holder;
}

int devices_place(struct devices *devices, const char *name, const char *group,
                  const struct gpu_need *need, struct device_placement *ret_placement,
                  struct err *err)
{
    const struct device *picked[DEVICE_COUNT_MAX];
    struct holder *holder;
    int r;

    if (devices_placed(devices, name, ret_placement))
        return 0;
    if (devices->holder_count == DEVICE_HOLDERS_MAX)
        return err_set(err, ERR_FULL, "%d workers have devices, the limit is %d",
                       DEVICE_HOLDERS_MAX, DEVICE_HOLDERS_MAX);
    r = pick(devices, group, need, picked, err);
    if (r < 0)
        return r;
    holder = holder_add(devices, name, group);
    holder->whole = need->memory_size == 0;
    holder->placement.count = need->count;
    holder->placement.memory_size = need->memory_size;
    for (uint32_t i = 0; i < need->count; i++) {
        mem_copy_text(holder->placement.uuids[i], picked[i]->info.uuid);
        assert(picked[i]->state == DEVICE_WELL || picked[i]->state == DEVICE_PROBATION);
    }
    *ret_placement = holder->placement;
    return 0;
}

void devices_adopt(struct devices *devices, const char *name, const char *group,
                   const struct device_placement *placement)
{
    struct holder *holder;
    struct device *device;

    if (holder_find(devices, name) != NULL || devices->holder_count == DEVICE_HOLDERS_MAX)
        return;
    holder = holder_add(devices, name, group);
    holder->placement = *placement;
    holder->whole = placement->memory_size == 0;
    holder->loaded = true;
    for (uint32_t i = 0; i < placement->count; i++) {
        device = device_find(devices, placement->uuids[i]);
        if (device != NULL)
            base_learn(devices, device);
    }
}

void devices_on_loaded(struct devices *devices, const char *name)
{
    struct holder *holder = holder_find(devices, name);

    if (holder != NULL)
        holder->loaded = true;
}

void devices_release(struct devices *devices, const char *name)
{
    struct holder *holder = holder_find(devices, name);

    if (holder != NULL)
        *holder = devices->holders[--devices->holder_count];
}

void devices_set_spare(struct devices *devices, const char *name, bool is_spare)
{
    struct holder *holder = holder_find(devices, name);

    if (holder != NULL)
        holder->spare = is_spare;
}

static bool is_on_any(const struct holder *holder, const struct device *const *picked,
                      uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (placement_has(&holder->placement, picked[i]->info.uuid))
            return true;
    }
    return false;
}

static bool all_fit(const struct devices *devices, const char *group, const struct gpu_need *need,
                    const struct device *const *picked)
{
    for (uint32_t i = 0; i < need->count; i++) {
        if (device_near(devices, picked[i], group, need) != NEAR_FITS)
            return false;
    }
    return true;
}

/* All spares are thought away; on the devices that are picked then, each one that does no harm
 * is thought back. */
size_t devices_reclaim(struct devices *devices, const char *group, const struct gpu_need *need,
                       char ret_holders[DEVICES_RECLAIM_MAX][DEVICE_HOLDER_SIZE])
{
    const struct device *picked[DEVICE_COUNT_MAX];
    size_t count = 0;
    struct err err;
    bool fits;

    if (pick(devices, group, need, picked, &err) == 0)
        return 0;
    for (size_t i = 0; i < devices->holder_count; i++) {
        struct holder *holder = &devices->holders[i];

        holder->away = holder->spare && strcmp(holder->group, group) != 0;
    }
    fits = pick(devices, group, need, picked, &err) == 0;
    for (size_t i = 0; i < devices->holder_count; i++) {
        struct holder *holder = &devices->holders[i];

        if (!holder->away)
            continue;
        holder->away = false;
        if (!fits || count == DEVICES_RECLAIM_MAX || !is_on_any(holder, picked, need->count) ||
            all_fit(devices, group, need, picked))
            continue;
        holder->away = true;
        mem_copy_text_at(ret_holders[count++], DEVICE_HOLDER_SIZE, holder->name);
    }
    for (size_t i = 0; i < devices->holder_count; i++)
        devices->holders[i].away = false;
    return count;
}

bool devices_placed(const struct devices *devices, const char *name,
                    struct device_placement *ret_placement)
{
    const struct holder *holder = holder_find(devices, name);

    if (holder == NULL)
        return false;
    *ret_placement = holder->placement;
    return true;
}

/* ---- looking, life ---- */

bool devices_view(const struct devices *devices, size_t index, struct device_view *ret_view)
{
    const struct device *device;
    struct use use;
    bool is_silent;

    if (index >= devices->count)
        return false;
    device = &devices->devices[index];
    use = use_of(devices, device, "");
    is_silent = devices->why_silent[0] != '\0';
    *ret_view = (struct device_view){
        .info = &device->info,
        .state = device->state,
        .silent = is_silent,
        .reserved_size = use.whole ? device->info.total_size : use.reserved_size,
        .free_size = is_silent ? 0 : free_of(device, &use),
        .holder_count = use.holder_count,
        .quarantine_count = device->quarantine_count,
        .until_ms = device->until_ms,
        .why = is_silent && device->why[0] == '\0' ? devices->why_silent : device->why,
    };
    memcpy(ret_view->faults, device->faults, sizeof(ret_view->faults));
    return true;
}

struct devices *devices_new(const struct devices_options *options)
{
    struct devices *devices = xcalloc(1, sizeof(*devices));

    assert(options->fault_max >= 1 && options->fault_max <= DEVICE_FAULTS_MAX);
    devices->options = *options;
    devices->devices = xcalloc(DEVICES_MAX, sizeof(*devices->devices));
    devices->holders = xcalloc(DEVICE_HOLDERS_MAX, sizeof(*devices->holders));
    return devices;
}

void devices_free(struct devices **devices_p)
{
    struct devices *devices = TAKE(*devices_p);

    if (devices == NULL)
        return;
    free(devices->devices);
    free(devices->holders);
    free(devices->todos);
    free(devices);
}
