/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: whatever stands in Content-Type or Accept is read within its bounds; what passes the check
 * cannot end a header; bytes of any type become one JSON value. */

#include <jansson.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"
#include "schema/media_type.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    OWNED(mem_free) char *text = xmalloc(size + 1);
    OWNED(buf_done) struct buf to = BUF_WITH_LIMIT(16 * (size + 64));
    json_t *value;
    struct err err;

    if (size > 0)
        memcpy(text, bytes, size);
    text[size] = '\0';
    if (media_type_check((struct wire_text){text, size}, &err) == 0) {
        assert(strpbrk(text, "\r\n") == NULL && strlen(text) == size);
        (void)media_type_is((struct wire_text){text, size}, MEDIA_TYPE_JSON);
    }
    (void)media_type_listed(text, MEDIA_TYPE_JSON);
    media_append_value(&to, WIRE_TEXT_OF("image/png"), (struct wire_bytes){bytes, size});
    value = json_loadb((const char *)to.bytes, to.size, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    assert(value != NULL);
    json_decref(value);
    return 0;
}
