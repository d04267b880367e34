/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * ONNX Runtime behind five calls. The shared library is opened when a model is loaded, never
 * linked: HEADRACE_ONNXRUNTIME names its file, else it is libonnxruntime.so.1 beside the plugin,
 * else what the system's linker finds. Versions from 1.18 on will do.
 *
 * Everything runs on the CPU provider, and that is checked: where the library can tell (from 1.24
 * on), each part of the graph must be on it.
 *
 * Errors: ERR_DEPENDENCY for the library; ERR_UNSUPPORTED, ERR_MALFORMED and ERR_MEMORY for a
 * model, with the library's own text.
 *
 * Thread: one.   Tests: tests/unit/test_onnx.c
 */

#include "workers/engines/onnx/onnx_file.h"

struct onnx_ort;     /* the library and its environment */
struct onnx_session; /* a model that is ready to run */

struct onnx_ort_options {
    const char *device;
    uint32_t thread_count;
};

int onnx_ort_open(struct onnx_ort **ret_ort, struct err *err) MUST_CHECK;
void onnx_ort_close(struct onnx_ort **ort_p);
const char *onnx_ort_version(const struct onnx_ort *ort); /* "1.32.0" */

/* path: of the file; external data is found beside it. */
int onnx_session_open(struct onnx_ort *ort, const char *path,
                      const struct onnx_ort_options *options, struct onnx_session **ret_session,
                      struct err *err) MUST_CHECK;
void onnx_session_close(struct onnx_session **session_p);

/* Outputs of one run; the tensors' data is the library's, until onnx_results_done(). */
struct onnx_results {
    struct onnx_ort *ort;
    uint32_t count;
    struct onnx_tensor tensors[ONNX_OUTPUT_COUNT_MAX];
    void *values[ONNX_OUTPUT_COUNT_MAX];
};

/* Inputs in the model's order; of the outputs those that are wanted, the others stay empty.
 * ERR_MEMORY: it did not fit. ERR_UNSUPPORTED: the model failed, and how. */
int onnx_session_run(struct onnx_session *session, const struct onnx_model *model,
                     const struct onnx_tensor *inputs, const bool *wanted,
                     struct onnx_results *ret_results, struct err *err) MUST_CHECK;
void onnx_results_done(struct onnx_results *results);
