/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Looks at the GPUs of this machine without ever waiting for them.
 *
 * A GPU that is ill may keep whoever asks its driver for minutes, or for ever, in the kernel, where
 * not even SIGKILL ends the wait. So all questions to the driver are asked by a process of their
 * own, `headrace host-devices`, that has nothing of ours but one end of a socket:
 *
 *     we                           host-devices
 *     look ──────────────────────▶ nvml_inventory()
 *     on_devices() ◀────────────── what there is, or why nothing could be asked
 *     on_xid() ◀────────────────── Xids, as they come
 *     no answer for timeout_ms: on_silent(), once until it answers again
 *     no answer for five times that more: SIGKILL, and the next look asks by a new process
 *
 * There is never more than one such process: one that SIGKILL does not end is waited for, and when
 * the driver lets go of it the next look asks anew. A driver that ends the process that asks it is
 * silent, too. Xids that come while there is no process are not told.
 *
 * Thread: the loop's.   Tests: tests/unit/test_device_watch.c, with tests/unit/nvml_fake.c
 */

#include "workers/nvml.h"

struct device_watch;
struct loop;

/* All that there is; why: of none. */
struct device_list {
    size_t count;
    struct nvml_versions versions;
    char why[DEVICE_TEXT_SIZE];
    struct device_info infos[DEVICES_MAX];
};

struct device_watch_options {
    const char *library; /* for nvml_load() */
    uint64_t first_ms;   /* the limit of the first look … */
    uint64_t timeout_ms; /* … and of all others */
};

struct device_watch_calls {
    void (*on_devices)(void *opaque, const struct device_list *list);
    void (*on_silent)(void *opaque,
                      const char *why); /* "the NVIDIA driver does not answer since …" */
    void (*on_xid)(void *opaque, const char *uuid, uint64_t xid);
};

struct device_watch *device_watch_open(struct loop *loop,
                                       const struct device_watch_options *options,
                                       const struct device_watch_calls *calls, void *opaque);

/* Kills the process and does not wait for its end. Not from a call. */
void device_watch_close(struct device_watch **watch_p);

/* Asks; exactly one on_devices() answers, or none ever. False: it waits for an answer, or for the
 * end of a process, still. */
bool device_watch_look(struct device_watch *watch);

/* ---- between the two ---- */

/* `look` is any packet of one byte. One packet each, as long as what is used of it. */
struct device_packet {
    enum {
        DEVICE_PACKET_LIST,
        DEVICE_PACKET_XID,
    } kind;
    union {
        struct device_list list;
        struct nvml_xid xid;
    };
};
#define DEVICE_PACKET_SIZE(field)                                                                  \
    (offsetof(struct device_packet, field) + sizeof(((struct device_packet *)0)->field))

/* The process: argv[1] is the library. Returns its exit code. Tests are this program, too. */
int host_devices_main(int argc, char **argv);
