/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * NVML, NVIDIA's management library, loaded when a program runs: the one place that knows it.
 *
 *     nvml_load(path)        once; without the library, or a driver, there are no devices
 *     nvml_inventory()       all GPUs and slices, as they are now
 *     nvml_xids_open()       Xids from now on, one by one from nvml_xid_wait()
 *
 * Functions that a driver is too old for are done without: what they would have told is 0.
 *
 * Any call may take long, or for ever, while a GPU is ill: not for a loop that others wait for. An
 * agent has them all in a process of their own (workers/device_watch.h).
 *
 * Thread: nvml_load() the first time and all of Xids from one thread; the others any (NVML has
 * locks of its own). Source: docs.nvidia.com/deploy/nvml-api. Tests: tests/unit/test_nvml.c, with
 * tests/unit/nvml_fake.c in place of the library
 */

#include "workers/device.h"

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

struct nvml_xid {
    char uuid[DEVICE_UUID_SIZE]; /* of the slice that it is told of, else of the GPU */
    uint64_t number;
};

/* Once, after an inventory: those of all GPUs that there are then. ERR_UNSUPPORTED: no device tells
 * of Xids. */
int nvml_xids_open(struct err *err) MUST_CHECK;

enum nvml_heard {
    NVML_XID,
    NVML_QUIET, /* none within timeout_ms */
    NVML_ILL,   /* at once: a GPU that is lost makes each wait fail; pause before the next */
};
enum nvml_heard nvml_xid_wait(uint32_t timeout_ms, struct nvml_xid *ret_xid);
