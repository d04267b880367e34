/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What an ONNX file says of itself, read without ONNX Runtime: the protobuf's lengths are walked,
 * weights are skipped over.
 *
 * For the probe; and so that a file which is cut off, or would read files outside of its directory,
 * or declares shapes that no machine holds, is refused by name before a library sees it.
 *
 * Thread: any.   Tests: tests/unit/test_onnx_file.c, tests/fuzz/fuzz_onnx_file.c
 */

#include "workers/engines/onnx/onnx_tensor.h"

#define ONNX_FILE_SIZE_MAX (2ull << 30) /* protobuf's own; larger weights are external */
#define ONNX_DEPTH_MAX 32               /* of graphs in attributes of nodes */

struct onnx_model {
    uint64_t ir_version, opset;
    char producer[64];
    uint32_t input_count, output_count;
    struct onnx_spec inputs[ONNX_INPUT_COUNT_MAX]; /* those that have to be given */
    struct onnx_spec outputs[ONNX_OUTPUT_COUNT_MAX];
    uint32_t node_count;
    uint64_t weight_size; /* bytes of all initializers, external ones included */
};

/* dir/file. ERR_NOT_FOUND; ERR_MALFORMED names the byte; ERR_RANGE and ERR_TOO_BIG the tensor, its
 * value and the limit; ERR_UNSUPPORTED what is not served. Free with mem_free(). */
int onnx_file_read(const char *dir, const char *file, struct onnx_model **ret_model,
                   struct err *err) MUST_CHECK;

/* From bytes in memory. dir: where external data must lie. */
int onnx_file_parse(const char *dir, const void *bytes, uint64_t size, struct onnx_model *ret_model,
                    struct err *err) MUST_CHECK;

/* ERR_RANGE unless the path stays below its directory: relative, and without '..'. */
int onnx_file_path_check(const char *what, const char *path, struct err *err) MUST_CHECK;
