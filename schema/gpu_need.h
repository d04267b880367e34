/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a deployment needs of a GPU: checked by whoever takes a push, kept by the agent that places
 * it.
 *
 *     headrace.json: {"device": "cuda", "resources": {"accelerator": "H100:2",
 *                     "accelerator_memory": "20GiB", "compute_capability": "8.0"}}
 *     config.yaml:   resources: {accelerator: H100:2}
 *
 * Pure, but for memory.   Thread: any.   Tests: tests/unit/test_gpu_need.c
 */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define DEVICE_KIND_SIZE 32
#define DEVICE_TEXT_SIZE 400
#define DEVICE_COUNT_MAX 16 /* that one worker may have */
#define DEVICE_ANY UINT32_MAX

struct gpu_need {
    char kind[DEVICE_KIND_SIZE]; /* "H100", "A100_40GB"; "": any */
    uint32_t count;              /* of devices, at least 1 */
    uint32_t index;              /* the GPU of that number; DEVICE_ANY */
    uint32_t major, minor;       /* compute capability, at least; 0.0: any */
    uint64_t memory_size;        /* of each device; 0: all of it, with nobody beside */
};

/* "cuda" or "cuda:N": such a deployment is placed. */
bool gpu_is_wanted(const char *device);

/* From a deployment's device and the "resources" of its config (may be NULL). Nothing said: one
 * device, whole. ERR_RANGE names key, value and what is allowed. */
int gpu_need_parse(const char *device, const json_t *resources, struct gpu_need *ret_need,
                   struct err *err) MUST_CHECK;

/* "2 H100 with 20.0 GiB each", "a device" */
void gpu_need_describe(const struct gpu_need *need, char to[DEVICE_TEXT_SIZE]);

/* "20.0 GiB" */
#define DEVICE_SIZE_TEXT 24
const char *gpu_size_text(uint64_t size, char to[DEVICE_SIZE_TEXT]);
