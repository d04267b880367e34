/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A safetensors file, mapped and checked: names, types, shapes and bytes of its tensors.
 *
 *     u64 LE   header_size
 *     u8[]     header, one JSON object: name -> {"dtype", "shape", "data_offsets": [begin, end]},
 *              and "__metadata__" -> {text: text}; padded with spaces
 *     u8[]     data; offsets count from here
 *
 * The file comes from a user, so the header is hostile until proven otherwise: its size, the
 * number of tensors, their names, ranks, shapes and offsets are checked, tensors may neither
 * overlap nor leave holes, and the data must end where the file ends. A tensor that was handed
 * out lies inside the mapping. Weights are read on first touch, not here.
 *
 * A file that somebody truncates while it is mapped raises SIGBUS in this process: deployed
 * model directories do not change, and the engine host is a process of its own for such cases.
 *
 * Thread: any, once opened.   Tests: tests/unit/test_safetensors.c, tests/fuzz/fuzz_safetensors.c
 */

#include <stdint.h>

#include "base/err.h"

#define SAFETENSORS_HEADER_SIZE_MAX (16u << 20)
#define SAFETENSORS_TENSOR_COUNT_MAX 65536u
#define SAFETENSORS_NAME_SIZE_MAX 256u
#define SAFETENSORS_RANK_MAX 8u

enum safetensors_dtype {
    SAFETENSORS_F32,
    SAFETENSORS_F16,
    SAFETENSORS_BF16,
    SAFETENSORS_OTHER, /* listed in the format, of no use to us: I64 and so on */
};

struct safetensors_tensor {
    char *name;
    enum safetensors_dtype dtype;
    const char *dtype_name; /* as the format has it; static */
    uint32_t rank;
    uint64_t shape[SAFETENSORS_RANK_MAX];
    uint64_t element_count;
    const uint8_t *bytes; /* inside the mapping; any alignment */
    uint64_t size;
};

struct safetensors;

/* Maps the file. On failure the text names the path, the tensor, the value and the limit. */
int safetensors_open(const char *path, struct safetensors **ret_file, struct err *err) MUST_CHECK;

/* The same over bytes that the caller keeps alive and unchanged as long as the result. */
int safetensors_parse(const uint8_t *bytes, size_t size, struct safetensors **ret_file,
                      struct err *err) MUST_CHECK;

void safetensors_close(struct safetensors **file_p);

uint64_t safetensors_data_size(const struct safetensors *file);
size_t safetensors_count(const struct safetensors *file);
const struct safetensors_tensor *safetensors_at(const struct safetensors *file, size_t index);

/* NULL when there is none of that name. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name);

/* Writes `count` elements from `first` on as f32. ERR_UNSUPPORTED for other dtypes. The range
 * must lie inside the tensor. */
int safetensors_read_f32(const struct safetensors_tensor *tensor, uint64_t first, uint64_t count,
                         float *to, struct err *err) MUST_CHECK;
