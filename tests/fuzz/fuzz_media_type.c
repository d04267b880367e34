/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: whatever stands in Content-Type or Accept is read within its bounds; what passes the check
 * cannot end a header; bytes of any type become one JSON value. */

#include <jansson.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"
#include "schema/media_type.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* One value, and nothing behind it. Numbers that jansson has no room for are not its to judge. */
static void value_check(const struct buf *text)
{
    json_error_t why;
    json_t *value = json_loadb((const char *)text->bytes, text->size,
                               JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);

    assert(value != NULL || json_error_code(&why) == json_error_numeric_overflow ||
           json_error_code(&why) == json_error_stack_overflow);
    json_decref(value);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static const char *const types[] = {"image/png", "application/json"};
    OWNED(mem_free) char *text = xmalloc(size + 1);
    OWNED(buf_done) struct buf to = BUF_WITH_LIMIT(16 * (size + 64));
    struct err err;

    if (size > 0)
        memcpy(text, bytes, size);
    text[size] = '\0';
    if (media_type_check((struct wire_text){text, size}, &err) == 0) {
        assert(strpbrk(text, "\r\n") == NULL && strlen(text) == size);
        (void)media_type_is((struct wire_text){text, size}, MEDIA_TYPE_JSON);
    }
    (void)media_type_listed(text, MEDIA_TYPE_JSON);
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        buf_clear(&to);
        media_append_value(&to, WIRE_TEXT_OF(types[i]), (struct wire_bytes){bytes, size});
        value_check(&to);
    }
    return 0;
}
