/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/onnx/onnx_tensor.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    uint32_t type, size;
    const char *name;
} types[] = {
    {ONNX_FLOAT32, 4, "float32"}, {ONNX_UINT8, 1, "uint8"},     {ONNX_INT8, 1, "int8"},
    {ONNX_UINT16, 2, "uint16"},   {ONNX_INT16, 2, "int16"},     {ONNX_INT32, 4, "int32"},
    {ONNX_INT64, 8, "int64"},     {ONNX_STRING, 0, "string"},   {ONNX_BOOL, 1, "bool"},
    {ONNX_FLOAT16, 2, "float16"}, {ONNX_FLOAT64, 8, "float64"}, {ONNX_UINT32, 4, "uint32"},
    {ONNX_UINT64, 8, "uint64"},
};

uint32_t onnx_type_size(uint32_t type)
{
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        if (types[i].type == type)
            return types[i].size;
    }
    return 0;
}

const char *onnx_type_name(uint32_t type)
{
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        if (types[i].type == type)
            return types[i].name;
    }
    return type == 0 ? "no tensor" : "a type that is not served";
}

uint32_t onnx_type_find(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        if (strcmp(types[i].name, name) == 0)
            return types[i].type;
    }
    return 0;
}

bool onnx_shape_count(const int64_t *dims, uint32_t rank, uint64_t *ret_count)
{
    uint64_t count = 1;

    for (uint32_t i = 0; i < rank; i++) {
        if (dims[i] < 0 || (dims[i] > 0 && count > ONNX_ELEMENT_COUNT_MAX / (uint64_t)dims[i]))
            return false;
        count *= (uint64_t)dims[i];
    }
    *ret_count = count;
    return true;
}

void onnx_shape_text(const int64_t *dims, uint32_t rank, char to[ONNX_SHAPE_TEXT_SIZE])
{
    size_t size = 1;

    to[0] = '[';
    for (uint32_t i = 0; i < rank && size < ONNX_SHAPE_TEXT_SIZE - 24; i++) {
        const char *comma = i > 0 ? "," : "";
        int n = dims[i] < 0 ? snprintf(to + size, 24, "%s?", comma)
                            : snprintf(to + size, 24, "%s%lld", comma, (long long)dims[i]);

        size += (size_t)n;
    }
    to[size++] = ']';
    to[size] = '\0';
}

int onnx_tensor_alloc(struct onnx_tensor *tensor, const char *name, uint64_t size_max,
                      struct err *err)
{
    uint64_t count;

    if (!onnx_shape_count(tensor->dims, tensor->rank, &count) ||
        count > size_max / onnx_type_size(tensor->type)) {
        char shape[ONNX_SHAPE_TEXT_SIZE];

        onnx_shape_text(tensor->dims, tensor->rank, shape);
        return err_set(err, ERR_TOO_BIG,
                       "inputs.%.80s has shape %s of %s, over the limit of %llu bytes", name, shape,
                       onnx_type_name(tensor->type), (unsigned long long)size_max);
    }
    tensor->size = count * onnx_type_size(tensor->type);
    tensor->data = calloc(1, tensor->size > 0 ? tensor->size : 1);
    if (tensor->data == NULL)
        return err_set(err, ERR_MEMORY, "inputs.%.80s: no memory for %llu bytes", name,
                       (unsigned long long)tensor->size);
    return 0;
}

void onnx_tensor_done(struct onnx_tensor *tensor)
{
    free(tensor->data);
    tensor->data = NULL;
}

float onnx_half_to_float(uint16_t half)
{
    const uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
    float value;

    if (exponent == 31)
        value = fraction != 0 ? NAN : INFINITY;
    else if (exponent == 0)
        value = ldexpf((float)fraction, -24);
    else
        value = ldexpf((float)(fraction | 1024), (int)exponent - 25);
    return half >> 15 != 0 ? -value : value;
}

uint16_t onnx_float_to_half(float value)
{
    const uint16_t sign = signbit(value) ? 0x8000 : 0;
    const float size = fabsf(value);
    int exponent;
    float scaled;

    if (isnan(value))
        return 0x7e00;
    if (size == 0)
        return sign;
    if (size >= 65520.0f) /* rounds past the largest half */
        return sign | 0x7c00;
    (void)frexpf(size, &exponent);
    if (exponent < -13) /* below the least normal half: steps of 2^-24 */
        return sign | (uint16_t)lrintf(ldexpf(size, 24));
    scaled = rintf(ldexpf(size, 11 - exponent)); /* 1024 to 2048 */
    if (scaled == 2048.0f) {
        scaled = 1024.0f;
        exponent++;
    }
    return (uint16_t)(sign | (uint16_t)((exponent + 14) << 10) | ((uint16_t)scaled & 1023));
}
