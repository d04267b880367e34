/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Any bytes as a safetensors file: refused with a text, or every tensor of it can be read whole.
 * A refused file must leave nothing behind (the leak checker looks), an accepted one is searched
 * by each of its own names.
 */

#include <stdint.h>
#include <stdlib.h>

#include "base/assert.h"
#include "workers/engines/encoder/safetensors.h"

#define ELEMENTS_AT_ONCE 64u

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void read_all(const struct safetensors_tensor *tensor)
{
    float values[ELEMENTS_AT_ONCE];
    struct err err;

    for (uint64_t at = 0; at < tensor->element_count; at += ELEMENTS_AT_ONCE) {
        uint64_t left = tensor->element_count - at;
        uint64_t count = left < ELEMENTS_AT_ONCE ? left : ELEMENTS_AT_ONCE;

        if (safetensors_read_f32(tensor, at, count, values, &err) < 0) {
            assert(tensor->dtype == SAFETENSORS_OTHER && err.text[0] != '\0');
            return;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    OWNED(safetensors_close) struct safetensors *file = NULL;
    struct err err = {0};

    if (safetensors_parse(bytes, size, &file, &err) < 0) {
        assert(file == NULL && err.text[0] != '\0');
        return 0;
    }
    for (size_t i = 0; i < safetensors_count(file); i++) {
        const struct safetensors_tensor *tensor = safetensors_at(file, i);

        assert(tensor->size == 0 ||
               (tensor->bytes >= bytes && tensor->size <= (size_t)(bytes + size - tensor->bytes)));
        assert(safetensors_find(file, tensor->name) == tensor);
        read_all(tensor);
    }
    return 0;
}
