/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a body that is read as it comes is judged and taken apart like one that is read whole.
 * Method: the first byte says in what pieces it comes; base/json_fast.h reads it whole. A key that
 * is spelled with escapes stays in the envelope, and there it must be. */

#include <string.h>

#include "base/assert.h"
#include "base/json_fast.h"
#include "producers/gateway_scan.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

struct parts {
    struct scan scan;
    struct buf input;
    int code;
};

static void take_apart(struct parts *parts, const uint8_t *bytes, size_t size, size_t piece)
{
    struct err err;

    scan_init(&parts->scan);
    parts->input = BUF_WITH_LIMIT(1u << 20);
    parts->code = 0;
    for (size_t at = 0; at < size && parts->code == 0; at += piece)
        parts->code = scan_feed(&parts->scan, bytes + at, size - at < piece ? size - at : piece,
                                &parts->input, &err);
    if (parts->code == 0)
        parts->code = scan_end(&parts->scan, &err);
}

static void compare(struct json_fast *json, const struct parts *parts)
{
    struct json_field field;

    while (json_fast_next(json, &field)) {
        if (field.key_size != 11 || memcmp(field.key, "model_input", 11) != 0 ||
            field.type != JSON_TYPE_OBJECT)
            continue;
        if (parts->input.size == 0)
            return; /* its key was spelled with escapes */
        assert(field.raw_size == parts->input.size);
        assert(memcmp(field.raw, parts->input.bytes, field.raw_size) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static struct json_fast *whole, *around;
    struct parts parts, again;
    struct err err, around_err;
    int r;

    if (size == 0 || size > 100000)
        return 0;
    if (whole == NULL) {
        whole = json_fast_new();
        around = json_fast_new();
    }
    take_apart(&parts, bytes + 1, size - 1, 1 + bytes[0] % 16);
    take_apart(&again, bytes + 1, size - 1, size);
    assert(parts.code == again.code);
    r = json_fast_parse(whole, (const char *)bytes + 1, size - 1, false, &err);
    if (r == 0) {
        /* One thing is stricter here: half a surrogate pair. */
        assert(parts.code == 0 || memchr(bytes, 'u', size) != NULL);
        if (parts.code == 0)
            compare(whole, &parts);
    } else if (parts.code == 0) {
        /* What the small reader refuses at the top level it finds in the envelope, too. */
        r = json_fast_parse(around, (const char *)parts.scan.envelope.bytes,
                            parts.scan.envelope.size, false, &around_err);
        assert(r < 0);
    }
    if (parts.code == 0) {
        assert(parts.input.size == again.input.size &&
               parts.scan.envelope.size == again.scan.envelope.size);
    }
    scan_done(&parts.scan);
    scan_done(&again.scan);
    buf_done(&parts.input);
    buf_done(&again.input);
    return 0;
}
