/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Any bytes as an encoder's model_input, of each route: refused with a text, or 1 to 2,048 texts
 * that can all be read, and warnings that are texts.
 */

#include <stdint.h>

#include "base/assert.h"
#include "workers/engines/encoder/encoder_input.h"

#define DIMENSIONS 384u

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void parse(const uint8_t *bytes, size_t size, enum encoder_route route)
{
    OWNED(encoder_input_done) struct encoder_input input = {0};
    struct err err = {0};
    size_t i, text_size;
    json_t *warning;

    if (encoder_input_parse(bytes, size, route, DIMENSIONS, &input, &err) < 0) {
        assert(err.text[0] != '\0' && err_class(err.code) == ERR_CLASS_REJECT);
        return;
    }
    assert(input.text_count >= 1 && input.text_count <= ENCODER_TEXT_COUNT_MAX);
    for (uint32_t t = 0; t < input.text_count; t++) {
        assert(encoder_input_text(&input, t, &text_size) != NULL && text_size <= size);
        assert(encoder_input_second(&input, t, &text_size) != NULL || text_size == 0);
        assert(route != ENCODER_ROUTE_RERANK ||
               encoder_input_second(&input, t, &text_size) != NULL);
    }
    json_array_foreach(input.warnings, i, warning) assert(json_is_string(warning));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    for (int route = 0; route < ENCODER_ROUTE_COUNT; route++)
        parse(bytes, size, (enum encoder_route)route);
    return 0;
}
