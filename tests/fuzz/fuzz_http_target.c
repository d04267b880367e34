/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: whatever a client writes behind the method or into traceparent, what comes out keeps its
 * promises: no segment is empty, has a slash or goes up; a context formats to what parses again. */

#include <string.h>

#include "base/assert.h"
#include "base/http_server.h"
#include "base/trace.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void check_target(const char *text)
{
    static struct http_target target;
    struct err err;

    if (http_target_parse(text, &target, &err) < 0)
        return;
    assert(target.segment_count <= HTTP_PATH_SEGMENTS_MAX);
    for (size_t i = 0; i < target.segment_count; i++) {
        const char *segment = target.segments[i];

        assert(segment[0] != '\0' && strpbrk(segment, "/\\\n\r\t") == NULL);
        assert(strcmp(segment, ".") != 0 && strcmp(segment, "..") != 0);
    }
    for (size_t i = 0; i < target.field_count; i++)
        assert(http_target_query(&target, target.fields[i].name) != NULL);
}

static void check_traceparent(const char *text)
{
    struct trace_context context, again;
    char written[TRACE_PARENT_SIZE];
    struct err err;

    if (trace_context_parse(text, &context, &err) < 0)
        return;
    trace_context_format(&context, written);
    assert(trace_context_parse(written, &again, &err) == 0);
    assert(memcmp(context.trace_id, again.trace_id, sizeof(context.trace_id)) == 0);
    assert(memcmp(context.span_id, again.span_id, sizeof(context.span_id)) == 0);
    assert(context.sampled == again.sampled);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    OWNED(mem_free) char *text = xmalloc(size + 1);

    if (size > 0)
        memcpy(text, bytes, size);
    text[size] = '\0';
    check_target(text);
    check_traceparent(text);
    return 0;
}
