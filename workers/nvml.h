/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * NVML, NVIDIA's management library, loaded when a program runs: the one place that knows it.
 *
 *     nvml_load(path)        once; without the library, or a driver, there are no devices
 *     nvml_inventory()       all GPUs and slices, as they are now
 *     nvml_watch_open()      Xids, from a thread of their own, told on the loop's
 *
 * Functions that a driver is too old for are done without: what they would have told is 0.
 *
 * Thread: nvml_load() the first time from one thread; the others any (NVML has locks of its own),
 * and they may take long while a GPU is ill, so not the loop's. Source:
 * docs.nvidia.com/deploy/nvml-api. Tests: tests/unit/test_nvml.c, with tests/unit/nvml_fake.c in
 * place of the library
 */

#include "workers/device.h"

struct loop;

#define NVML_LIBRARY "libnvidia-ml.so.1"

/* Loads it from this path, by the first call; later ones say the same again. NULL: it works; else
 * why not, in a few words. */
const char *nvml_load(const char *path);

struct nvml_versions {
    char driver[32]; /* "550.54.15" */
    char cuda[16];   /* the newest that the driver takes: "12.4" */
};

/* Fills `to` (room for DEVICES_MAX), in the order of nvidia-smi, each GPU before its slices. A GPU
 * that does not answer is left out. Returns how many; 0 with a text in why: nothing could be asked.
 */
size_t nvml_inventory(struct device_info *to, struct nvml_versions *ret_versions,
                      char why[DEVICE_TEXT_SIZE]);

/* What the GPU of that number uses. False: it does not say. */
bool nvml_use(unsigned index, double *ret_utilization, uint64_t *ret_used_size);

/* ---- Xids ---- */

struct nvml_watch;

/* uuid: of the slice that it is told of, else of the GPU. Thread: the loop's. */
typedef void nvml_on_xid(void *opaque, const char *uuid, uint64_t xid);

/* Only after an inventory. ERR_UNSUPPORTED: no device tells of Xids. */
int nvml_watch_open(struct loop *loop, nvml_on_xid *on_xid, void *opaque,
                    struct nvml_watch **ret_watch, struct err *err) MUST_CHECK;

/* Waits for its thread: a quarter of a second. */
void nvml_watch_close(struct nvml_watch **watch_p);
