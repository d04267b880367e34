/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A tensor in main memory, and what a model declares of one.
 *
 * Type numbers are ONNX's own (TensorProto.DataType); ONNX Runtime's are the same.
 *
 * Thread: any.   Tests: tests/unit/test_onnx_input.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define ONNX_RANK_MAX 8u
#define ONNX_NAME_SIZE 256u
#define ONNX_INPUT_COUNT_MAX 32u
#define ONNX_OUTPUT_COUNT_MAX 64u
#define ONNX_ELEMENT_COUNT_MAX (1ull << 36)

enum onnx_type {
    ONNX_FLOAT32 = 1,
    ONNX_UINT8 = 2,
    ONNX_INT8 = 3,
    ONNX_UINT16 = 4,
    ONNX_INT16 = 5,
    ONNX_INT32 = 6,
    ONNX_INT64 = 7,
    ONNX_STRING = 8, /* known by name; not served */
    ONNX_BOOL = 9,
    ONNX_FLOAT16 = 10,
    ONNX_FLOAT64 = 11,
    ONNX_UINT32 = 12,
    ONNX_UINT64 = 13,
};

struct onnx_tensor {
    uint32_t type, rank;
    int64_t dims[ONNX_RANK_MAX];
    uint64_t size; /* bytes of data */
    void *data;
};

/* What a model says of an input or output. */
struct onnx_spec {
    char name[ONNX_NAME_SIZE];
    uint32_t type; /* 0: no tensor, but a sequence, a map or an optional */
    bool has_shape;
    uint32_t rank;
    int64_t dims[ONNX_RANK_MAX];       /* -1: any */
    char first_symbol[ONNX_NAME_SIZE]; /* the name of the first axis; "": it has none */
};

/* Bytes of an element; 0: not served. */
uint32_t onnx_type_size(uint32_t type);
const char *onnx_type_name(uint32_t type); /* "float32"; "type 27" for what has no name here */
uint32_t onnx_type_find(const char *name); /* 0: there is none */

/* The product of the dims. False: it is negative or over ONNX_ELEMENT_COUNT_MAX. */
bool onnx_shape_count(const int64_t *dims, uint32_t rank, uint64_t *ret_count);

/* "[1,3,48,?]" into a fixed array, cut at its end. */
#define ONNX_SHAPE_TEXT_SIZE 160
void onnx_shape_text(const int64_t *dims, uint32_t rank, char to[ONNX_SHAPE_TEXT_SIZE]);

/* Takes zeroed memory for tensor->type, rank and dims. ERR_TOO_BIG over size_max bytes. */
int onnx_tensor_alloc(struct onnx_tensor *tensor, const char *name, uint64_t size_max,
                      struct err *err) MUST_CHECK;
void onnx_tensor_done(struct onnx_tensor *tensor);

float onnx_half_to_float(uint16_t half);
uint16_t onnx_float_to_half(float value); /* to the nearest, ties to even */
