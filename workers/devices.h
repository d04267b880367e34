/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The devices of a machine: which worker may use which, and which are not to be used for a while.
 *
 *                      inventory -> WELL <------------ steady for window_ms
 *                                    | ^                    |
 *    fault_max in window_ms, or one  | '-------- PROBATION -' (one fault: out again)
 *    Xid that nothing survives       v                ^
 *                               QUARANTINED - time -> PROBE: it answers; else out again, longer
 *
 * Rules
 * - What is promised of a device is never more than it has, less what others had of it while it was
 *   empty. A model gets the device that is left with the least (best fit), the lowest number first.
 * - A worker has one device, or as many whole ones as it asks for. Of one deployment a device runs
 *   one worker: two would halve its time and double its memory.
 * - A device that is out drains its workers: they are told to go, and are placed elsewhere as if
 *   they had never been here. What they hold of it is free once they have ended.
 * - A spare holds what it has like anybody else, and is asked to go where that makes room for one
 *   that is none: devices_reclaim().
 * - A device that the driver no longer lists is GONE; when it is listed again it has to pass a
 * probe.
 * - While the driver does not answer nobody is placed, and nobody is refused for good; who is
 * placed stays.
 * - Out for quarantine_ms, doubled each time up to quarantine_ms_max; back to the start after
 *   quarantine_ms_max without a fault.
 *
 * Pure: events in, to-dos out of devices_next_todo(), until it is empty after each event; no I/O,
 * no clock. Bounded: DEVICES_MAX, DEVICE_HOLDERS_MAX.
 *
 * Thread: its owner's; no locks.   Tests: tests/unit/test_devices.c
 */

#include "workers/device.h"

#define DEVICE_HOLDERS_MAX 1024
#define DEVICE_HOLDER_SIZE 65
#define DEVICE_FAULTS_MAX 16
#define DEVICES_RECLAIM_MAX 64

struct devices;

struct devices_options {
    uint32_t fault_max; /* so many faults … */
    uint64_t window_ms; /* … within this: quarantine */
    uint64_t quarantine_ms, quarantine_ms_max;
};
extern const struct devices_options devices_options_default;

enum device_state {
    DEVICE_WELL,
    DEVICE_PROBATION, /* used again; one fault is enough */
    DEVICE_QUARANTINED,
    DEVICE_GONE,
};
const char *device_state_name(enum device_state state); /* "well" … */

enum device_fault {
    DEVICE_FAULT_CONTEXT, /* a worker left: its context is lost */
    DEVICE_FAULT_HANG,    /* what ran there did not obey and was killed */
    DEVICE_FAULT_XID,
    DEVICE_FAULT_OOM, /* no fault of the device: counted only */
    DEVICE_FAULT_COUNT,
};
const char *device_fault_name(enum device_fault fault);

struct devices *devices_new(const struct devices_options *options);
void devices_free(struct devices **devices_p);

/* ---- events ---- */

void devices_tick(struct devices *devices, uint64_t now_ms);

/* All that are there and that we may use, at the start and from then on now and then. why_none: why
 * there are none, for refusals. */
void devices_on_inventory(struct devices *devices, const struct device_info *infos, size_t count,
                          const char *why_none);

/* The driver does not answer, until the next inventory. why: since when, for those who wait. */
void devices_on_silent(struct devices *devices, const char *why);

/* xid: its number for DEVICE_FAULT_XID. uuid: of a device, or of a GPU whose slices all have it.
 * why: one line. Unknown uuids are no fault: the device may not be ours. */
void devices_on_fault(struct devices *devices, const char *uuid, enum device_fault fault,
                      uint64_t xid, const char *why);

/* The same by who has the device; on the first one of several. */
void devices_on_holder_fault(struct devices *devices, const char *holder, enum device_fault fault,
                             const char *why);

/* Answer of PROBE. */
void devices_on_probed(struct devices *devices, const char *uuid, bool well, const char *why);

/* ---- placing ---- */

struct device_placement {
    char uuids[DEVICE_COUNT_MAX][DEVICE_UUID_SIZE];
    uint32_t count;
    uint64_t memory_size; /* promised, of each */
};

/* Whether it would be placed now. group: the deployment. Errors as devices_place(). */
int devices_check(const struct devices *devices, const char *group, const struct gpu_need *need,
                  struct err *err) MUST_CHECK;

/* Reserves for a holder (a worker); one that is placed already gets the same again.
 * ERR_UNSUPPORTED: these devices never will do; ERR_FULL: not now. The text says what was asked for
 * and what there is. */
int devices_place(struct devices *devices, const char *holder, const char *group,
                  const struct gpu_need *need, struct device_placement *ret_placement,
                  struct err *err) MUST_CHECK;

/* A worker that has run on these devices since before we were. What it has is promised to it, even
 * where that is more than there is. */
void devices_adopt(struct devices *devices, const char *holder, const char *group,
                   const struct device_placement *placement);

/* It has loaded its model: what it was promised is in use from now on. */
void devices_on_loaded(struct devices *devices, const char *holder);

void devices_release(struct devices *devices, const char *holder);

/* Whether it gives way to others; nobody does at first. */
void devices_set_spare(struct devices *devices, const char *holder, bool is_spare);

/* Which spares of other groups have to go for it to be placed; on the devices that it gets then
 * none of them could stay. The names of up to DEVICES_RECLAIM_MAX; 0: it has room, or spares are
 * not what is in its way. */
size_t devices_reclaim(struct devices *devices, const char *group, const struct gpu_need *need,
                       char ret_holders[DEVICES_RECLAIM_MAX][DEVICE_HOLDER_SIZE]);

/* Where a holder is. False: nowhere. */
bool devices_placed(const struct devices *devices, const char *holder,
                    struct device_placement *ret_placement);

/* ---- to-dos ---- */

enum devices_todo_type {
    DEVICES_TODO_DRAIN, /* the holder must leave; hopeless: nothing of it can still end well */
    DEVICES_TODO_PROBE, /* look whether it answers; devices_on_probed() */
    DEVICES_TODO_TELL,  /* its state has changed, or that of all */
};

struct devices_todo {
    enum devices_todo_type type;
    char uuid[DEVICE_UUID_SIZE];
    char holder[DEVICE_HOLDER_SIZE]; /* DRAIN */
    bool hopeless;
    char why[DEVICE_TEXT_SIZE];
};

bool devices_next_todo(struct devices *devices, struct devices_todo *ret_todo);
uint64_t
devices_due_ms(const struct devices *devices); /* UINT64_MAX: not before something happens */

/* ---- looking ---- */

struct device_view {
    const struct device_info *info; /* valid until the next inventory */
    enum device_state state;
    bool silent; /* the driver does not answer: all that is known of it is old */
    uint64_t reserved_size,
        free_size; /* free: that could be promised now, were it well; 0 while silent */
    uint32_t holder_count, quarantine_count;
    uint64_t faults[DEVICE_FAULT_COUNT];
    uint64_t until_ms; /* QUARANTINED */
    const char *why;   /* why nobody is placed on it; "": they are */
};

/* index from 0. False: there is none of that index. */
bool devices_view(const struct devices *devices, size_t index, struct device_view *ret_view);
