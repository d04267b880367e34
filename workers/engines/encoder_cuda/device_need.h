/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Whether this machine has the device that a load asks for, and the sentence that names what is
 * missing where it has not. There is no falling back: a load that asks for a device gets it or
 * fails.
 *
 * Pure: facts in, a verdict out. encoder_cuda.c gathers the facts.
 * Thread: any.   Tests: tests/cuda/test_device_need.c
 */

#include <stdint.h>

#include "base/err.h"

#define DEVICE_NAME_SIZE 64
#define DEVICE_CAPABILITY_MIN 80u /* 10 * major + minor: bf16 in tensor cores */
#define DEVICE_ORDINAL_MAX 1023u

/* What was found out, in this order; what comes behind a thing that is missing is 0. */
struct device_facts {
    int runtime_version; /* CUDA_VERSION as CUDA writes it: 13000 is 13.0 */
    int driver_version;  /* the newest that the driver knows; 0: no driver */
    uint32_t device_count;
    const char *visible; /* CUDA_VISIBLE_DEVICES; NULL: not set */
    uint32_t capability; /* of the device that is asked for; 10 * major + minor */
    char name[DEVICE_NAME_SIZE];
    uint64_t memory_size, free_size;
};

/* "cuda" is "cuda:0", the first that CUDA_VISIBLE_DEVICES leaves. ERR_UNSUPPORTED: another kind of
 * device. ERR_RANGE: its number is none, or over DEVICE_ORDINAL_MAX. */
int device_need_parse(const char *device, uint32_t *ret_ordinal, struct err *err) MUST_CHECK;

/* ERR_UNSUPPORTED: no driver; one too old for the runtime; no such device; one too old. */
int device_need_check(const struct device_facts *facts, uint32_t ordinal,
                      struct err *err) MUST_CHECK;

/* ERR_UNSUPPORTED: it would not fit an empty device. ERR_MEMORY: others have what is missing. */
int device_need_memory(const struct device_facts *facts, uint64_t need_size,
                       struct err *err) MUST_CHECK;
