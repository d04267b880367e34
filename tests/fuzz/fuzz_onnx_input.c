/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Any bytes as the model_input of tensors: refused with a text, or tensors that have the bytes that
 * their shapes say, of a model with every type; what was taken can be said again.
 */

#include <stdint.h>

#include "base/assert.h"
#include "workers/engines/onnx/onnx_input.h"
#include "workers/engines/onnx/onnx_output.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static const struct onnx_model model = {
    .input_count = 4,
    .output_count = 4,
    .inputs = {{.name = "x", .type = ONNX_FLOAT32, .has_shape = true, .rank = 2, .dims = {-1, 2}},
               {.name = "n", .type = ONNX_INT16},
               {.name = "b", .type = ONNX_BOOL},
               {.name = "h", .type = ONNX_FLOAT16}},
    .outputs = {{.name = "x"}, {.name = "n"}, {.name = "b"}, {.name = "h"}},
};
static const bool offered[ONNX_OUTPUT_COUNT_MAX] = {true, true, true, true};

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    OWNED(onnx_input_done) struct onnx_input input = {.base64 = false};
    OWNED(buf_done) struct buf to = BUF_WITH_LIMIT(1u << 20);
    struct err err = {0};
    uint64_t count;

    if (onnx_input_parse(&model, offered, bytes, size, &input, &err) < 0) {
        assert(err.text[0] != '\0' && err_class(err.code) == ERR_CLASS_REJECT);
        return 0;
    }
    for (uint32_t i = 0; i < model.input_count; i++) {
        const struct onnx_tensor *tensor = &input.tensors[i];

        assert(onnx_shape_count(tensor->dims, tensor->rank, &count) && count > 0);
        assert(tensor->size == count * onnx_type_size(tensor->type));
    }
    (void)(onnx_output_write(&model, input.tensors, input.wanted, input.base64, &to, &err) < 0);
    return 0;
}
