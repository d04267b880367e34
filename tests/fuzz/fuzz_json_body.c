/* SPDX-License-Identifier: Apache-2.0 */

/* Any bytes: fields lie inside the input, and each raw slice parses again on its own. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/json_fast.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void field_check(struct json_fast *outer, const struct json_field *field, size_t size)
{
    struct json_fast *inner;
    const char *text;
    size_t text_size;
    int64_t number;
    struct err err;

    assert(field->raw_start < size && field->raw_size > 0);
    assert(field->raw_size <= size - field->raw_start);
    assert(strlen(field->key) == field->key_size);
    if (json_fast_string(outer, field, &text, &text_size, &err) == 0)
        assert(text[text_size] == '\0');
    (void)!json_fast_int64(outer, field, &number, &err);
    if (field->type != JSON_TYPE_OBJECT)
        return;
    inner = json_fast_new();
    (void)!json_fast_parse(inner, field->raw, field->raw_size, false, &err);
    json_fast_free(&inner);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct json_fast *parser = json_fast_new();
    struct json_field field;
    struct err err;

    if (json_fast_parse(parser, bytes, size, false, &err) == 0) {
        while (json_fast_next(parser, &field))
            field_check(parser, &field, size);
    }
    json_fast_free(&parser);
    return 0;
}
