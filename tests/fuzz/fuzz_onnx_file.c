/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Any bytes as an ONNX file: refused with a text, or inputs and outputs whose names end and whose
 * axes are within their limits.
 */

#include <stdint.h>
#include <string.h>

#include "base/assert.h"
#include "workers/engines/onnx/onnx_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void check(const struct onnx_spec *spec)
{
    assert(memchr(spec->name, '\0', sizeof(spec->name)) != NULL);
    assert(memchr(spec->first_symbol, '\0', sizeof(spec->first_symbol)) != NULL);
    assert(spec->rank <= ONNX_RANK_MAX);
    for (uint32_t i = 0; i < spec->rank; i++)
        assert(spec->dims[i] == -1 || spec->dims[i] > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    OWNED(mem_free) struct onnx_model *model = xcalloc(1, sizeof(*model));
    struct err err = {0};

    if (onnx_file_parse("/nonexistent", bytes, size, model, &err) < 0) {
        assert(err.text[0] != '\0' && err_class(err.code) == ERR_CLASS_REJECT);
        return 0;
    }
    for (uint32_t i = 0; i < model->input_count; i++)
        check(&model->inputs[i]);
    for (uint32_t i = 0; i < model->output_count; i++)
        check(&model->outputs[i]);
    return 0;
}
