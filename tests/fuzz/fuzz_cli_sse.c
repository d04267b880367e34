/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: whatever a server sends as events is read within its bounds, and the same in one piece as
 * in two. */

#include <string.h>

#include "base/assert.h"
#include "cli/sse.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

struct seen {
    size_t count, size;
};

static void on_event(void *opaque, const char *event, const char *data)
{
    struct seen *seen = opaque;

    assert(strlen(event) < SSE_NAME_SIZE);
    seen->count++;
    seen->size += strlen(data);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    size_t cut = size > 0 ? bytes[0] % size : 0;
    struct seen whole = {0, 0}, halves = {0, 0};
    struct sse sse;
    struct err err;
    int r;

    sse_init(&sse, on_event, &whole);
    r = sse_feed(&sse, bytes, size, &err);
    sse_done(&sse);
    sse_init(&sse, on_event, &halves);
    if (sse_feed(&sse, bytes, cut, &err) == 0)
        assert(sse_feed(&sse, bytes + cut, size - cut, &err) == r);
    sse_done(&sse);
    assert(r < 0 || (whole.count == halves.count && whole.size == halves.size));
    return 0;
}
