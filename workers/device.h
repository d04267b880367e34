/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a GPU is to us, what a model needs of one, and what the driver's error numbers mean.
 *
 * A slice (MIG) is a device of its own: it has its own UUID, memory and process. A GPU that is cut
 * into slices is none: nothing may run on the whole of it.
 *
 * Pure.   Thread: any.   Tests: tests/unit/test_device.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "schema/gpu_need.h"

#define DEVICES_MAX 64 /* of a machine, slices counted */
#define DEVICE_UUID_SIZE 96
#define DEVICE_NAME_SIZE 96
#define DEVICE_NO_SLICE UINT32_MAX

struct device_info {
    char uuid[DEVICE_UUID_SIZE];   /* GPU-…; of a slice MIG-… */
    char parent[DEVICE_UUID_SIZE]; /* of a slice: its GPU; "": it is no slice */
    char name[DEVICE_NAME_SIZE];   /* as the driver says: "NVIDIA H100 80GB HBM3 MIG 3g.40gb" */
    uint32_t index;                /* of the GPU as nvidia-smi counts */
    uint32_t gpu_instance, compute_instance; /* of a slice, else DEVICE_NO_SLICE */
    uint32_t major, minor;                   /* compute capability */
    uint64_t total_size, used_size;          /* memory; used by whomever */
    uint64_t ecc_count;                      /* uncorrected errors since the driver was loaded */
    uint32_t utilization_percent;
    bool sliced; /* a GPU that is cut: only its slices are devices */
    bool repair; /* its memory waits for a reset to be repaired */
};

/* Those of `infos` that a process with CUDA_VISIBLE_DEVICES=value sees, in its order, as the CUDA
 * programming guide has it: indices as nvidia-smi counts, UUIDs or so much of one that only one
 * device begins like it, MIG-GPU-<uuid>/<gpu instance>/<compute instance>; what comes behind the
 * first that is none is not seen; "" sees nothing, NULL all. Where CUDA takes one slice of a cut
 * GPU, we list all of them, for each process of ours is given one. A device that is named twice
 * counts as none: the guide is silent. bad: what was none, "" if all were some. `to` has room for
 * DEVICES_MAX. Returns how many. */
size_t device_visible(const char *value, const struct device_info *infos, size_t info_count,
                      struct device_info *to, char bad[DEVICE_UUID_SIZE]);

/* ---- what a model needs ---- */

/* Whether it could be given to such a model if it were empty and well; else why says what is amiss:
 * "too old: needs compute capability 8.0, …". */
enum device_misfit {
    DEVICE_FITS,
    DEVICE_OTHER_KIND,
    DEVICE_TOO_OLD,
    DEVICE_TOO_SMALL,
};
enum device_misfit device_fits(const struct device_info *info, const struct gpu_need *need);

/* ---- Xids ---- */

enum device_xid_class {
    DEVICE_XID_APPLICATION, /* what runs there is at fault, or hit alone: the device is well */
    DEVICE_XID_NOTED,       /* nothing to do by itself */
    DEVICE_XID_HARDWARE,    /* a fault of the device: counts */
    DEVICE_XID_LOST,        /* nothing on it can go on before a reset */
};

/* Numbers that are in no list count as HARDWARE. text: what NVIDIA calls it. */
enum device_xid_class device_xid_class(uint64_t xid, const char **ret_text);
const char *device_xid_class_name(enum device_xid_class class);
