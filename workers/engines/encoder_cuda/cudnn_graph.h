/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * cuDNN's graph API in plain C: tensors and one operation become a graph, a graph becomes a plan.
 *
 *     cudnn_device_new_json()  or  cudnn_device_new()          what is compiled for
 *     cudnn_graph_new() -> cudnn_graph_tensor()… -> cudnn_graph_operation()
 *         -> cudnn_graph_plan()                                first engine that compiles
 *     cudnn_plan_text() -> disk -> cudnn_plan_new_text()       the same, without compiling
 *     cudnn_plan_run()
 *
 * Everything up to running needs no device: a graph is compiled for the properties of one, which
 * may come from a file. So what is compiled in a test is what is compiled on the device.
 *
 * Failures say which descriptor and which attribute cuDNN refused, and its own last words. Codes:
 * ERR_UNSUPPORTED (a graph that it does not compute, or calls wrong), ERR_MEMORY, ERR_DEVICE
 * (lost), ERR_DEPENDENCY (the library itself: parts missing, another version).
 *
 * Thread: one.   Tests: tests/cuda/test_attention_plans.c
 * Source: cudnn_graph.h of cuDNN 9.15 or later; https://docs.nvidia.com/deeplearning/cudnn
 */

#include <cudnn_graph.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* What cuDNN's status means to us; text is the start of the message. */
int cudnn_fail(struct err *err, cudnnStatus_t status, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* ERR_DEPENDENCY: older than what this file asks of it. */
int cudnn_check_version(struct err *err) MUST_CHECK;

/* Loads NVRTC and its builtins for cuDNN, which opens NVRTC by name when it compiles, as NVRTC does
 * its builtins: without a path of its own to look in, so that they are found only where they are
 * loaded already. What is not there is cuDNN's to say. Stays loaded. */
void cudnn_load_compiler(void);

/* Properties of a device. */
struct cudnn_device;
int cudnn_device_new_json(const char *json, struct cudnn_device **ret_device,
                          struct err *err) MUST_CHECK;
/* Of the handle's device. */
int cudnn_device_new(cudnnHandle_t handle, struct cudnn_device **ret_device,
                     struct err *err) MUST_CHECK;
void cudnn_device_free(struct cudnn_device **device_p);
/* JSON, borrowed from the device. */
const char *cudnn_device_text(const struct cudnn_device *device);

/* One graph: at most CUDNN_GRAPH_PART_MAX descriptors, freed with it. */
#define CUDNN_GRAPH_PART_MAX 24
struct cudnn_graph;
typedef cudnnBackendDescriptor_t cudnn_part; /* of a graph, which owns it */

struct cudnn_tensor {
    const char *name; /* for messages; static storage */
    int64_t uid;
    cudnnDataType_t type;
    int64_t dims[4], strides[4]; /* strides in elements */
    cudnn_part offsets; /* where each of dims[0] begins, in elements; NULL: by strides[0] */
    bool by_value;      /* one number, on the host */
};

struct cudnn_link {
    cudnnBackendAttributeName_t attribute;
    const char *name; /* of the attribute */
    cudnn_part part;
};
#define CUDNN_LINK(attribute, part) ((struct cudnn_link){(attribute), #attribute, (part)})

struct cudnn_graph *cudnn_graph_new(void);
void cudnn_graph_free(struct cudnn_graph **graph_p);
int cudnn_graph_tensor(struct cudnn_graph *graph, const struct cudnn_tensor *tensor,
                       cudnn_part *ret_part, struct err *err) MUST_CHECK;
/* Adds the graph's only operation and closes the graph. */
int cudnn_graph_operation(struct cudnn_graph *graph, cudnnBackendDescriptorType_t type,
                          const char *name, const struct cudnn_link *links, uint32_t link_count,
                          struct err *err) MUST_CHECK;

/* How many engine configurations cuDNN has for the closed graph, best first; nothing is compiled.
 * ERR_UNSUPPORTED: none. */
int cudnn_graph_count_configs(struct cudnn_graph *graph, const struct cudnn_device *device,
                              uint32_t *ret_count, struct err *err) MUST_CHECK;

struct cudnn_plan;
/* Compiles the first configuration that can be; ERR_UNSUPPORTED has the last one's words. */
int cudnn_graph_plan(struct cudnn_graph *graph, const struct cudnn_device *device,
                     struct cudnn_plan **ret_plan, struct err *err) MUST_CHECK;
/* From cudnn_plan_text() of the same cuDNN for such a device. */
int cudnn_plan_new_text(const char *text, const struct cudnn_device *device,
                        struct cudnn_plan **ret_plan, struct err *err) MUST_CHECK;
void cudnn_plan_free(struct cudnn_plan **plan_p);
/* JSON, the caller frees it. */
int cudnn_plan_text(const struct cudnn_plan *plan, char **ret_text, struct err *err) MUST_CHECK;
size_t cudnn_plan_workspace_size(const struct cudnn_plan *plan);

/* Puts the plan on the handle's stream. Tensor uids[i] is at pointers[i]: device memory, or, by
 * value, the host's. Which pointers these are is kept for CUDNN_PLAN_PACK_MAX sets of them, so that
 * a run with pointers that were met before allocates nothing. */
#define CUDNN_PLAN_POINTER_MAX 12
#define CUDNN_PLAN_PACK_MAX 8
struct cudnn_pointers {
    uint32_t count;
    int64_t uids[CUDNN_PLAN_POINTER_MAX];
    void *pointers[CUDNN_PLAN_POINTER_MAX];
    void *workspace;
};
int cudnn_plan_run(struct cudnn_plan *plan, cudnnHandle_t handle,
                   const struct cudnn_pointers *pointers, struct err *err) MUST_CHECK;
