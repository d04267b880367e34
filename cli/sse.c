/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/sse.h"

#include <stdio.h>
#include <string.h>

void sse_init(struct sse *sse, sse_call *on_event, void *opaque)
{
    *sse = (struct sse){.line = BUF_WITH_LIMIT(SSE_LINE_SIZE_MAX),
                        .data = BUF_WITH_LIMIT(SSE_LINE_SIZE_MAX),
                        .on_event = on_event,
                        .opaque = opaque};
}

void sse_done(struct sse *sse)
{
    buf_done(&sse->line);
    buf_done(&sse->data);
}

static void sse_end_event(struct sse *sse)
{
    if (sse->has_data)
        sse->on_event(sse->opaque, sse->event, buf_text(&sse->data));
    buf_clear(&sse->data);
    sse->event[0] = '\0';
    sse->has_data = false;
}

static void sse_take_line(struct sse *sse, const char *line)
{
    size_t name = strcspn(line, ":");
    const char *value = line + name + (line[name] == ':');

    if (line[0] == '\0') {
        sse_end_event(sse);
        return;
    }
    value += *value == ' ';
    if (name == 5 && strncmp(line, "event", name) == 0)
        (void)snprintf(sse->event, sizeof(sse->event), "%s", value);
    if (name == 2 && strncmp(line, "id", name) == 0)
        (void)snprintf(sse->id, sizeof(sse->id), "%s", value);
    if (name != 4 || strncmp(line, "data", name) != 0)
        return;
    if (sse->has_data)
        buf_append_byte(&sse->data, '\n');
    buf_append_text(&sse->data, value);
    sse->has_data = true;
}

int sse_feed(struct sse *sse, const void *bytes, size_t size, struct err *err)
{
    const char *at = bytes, *end = at + size;

    while (at < end) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        int r;

        buf_append(&sse->line, at, (size_t)((stop == NULL ? end : stop) - at));
        r = buf_check(&sse->line, "a line of the stream", err);
        if (r < 0 || stop == NULL)
            return r;
        if (sse->line.size > 0 && sse->line.bytes[sse->line.size - 1] == '\r')
            sse->line.size--;
        sse_take_line(sse, buf_text(&sse->line));
        buf_clear(&sse->line);
        r = buf_check(&sse->data, "an event of the stream", err);
        if (r < 0)
            return r;
        at = stop + 1;
    }
    return 0;
}
