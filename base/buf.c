/* SPDX-License-Identifier: Apache-2.0 */

#include "base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

#define BUF_ROOM_MIN 64

void buf_init(struct buf *buf, size_t limit)
{
    *buf = BUF_WITH_LIMIT(limit);
}

void buf_done(struct buf *buf)
{
    free(buf->bytes);
    *buf = BUF_WITH_LIMIT(buf->limit);
}

void buf_clear(struct buf *buf)
{
    buf->size = 0;
    buf->failed = false;
}

void buf_move(struct buf *to, struct buf *from)
{
    assert(to->bytes == NULL);
    *to = *from;
    *from = BUF_WITH_LIMIT(to->limit);
}

/* Makes room for `size` more bytes and one terminator behind them. */
static bool buf_grow(struct buf *buf, size_t size)
{
    size_t need, room;

    if (buf->failed || size > buf->limit || buf->size > buf->limit - size) {
        buf->failed = true;
        return false;
    }
    need = buf->size + size + 1;
    if (need <= buf->room)
        return true;
    room = buf->room < BUF_ROOM_MIN ? BUF_ROOM_MIN : buf->room;
    while (room < need)
        room *= 2;
    buf->bytes = xrealloc(buf->bytes, room, 1);
    buf->room = room;
    return true;
}

uint8_t *buf_reserve(struct buf *buf, size_t size)
{
    return buf_grow(buf, size) ? buf->bytes + buf->size : NULL;
}

void buf_commit(struct buf *buf, size_t size)
{
    assert(size < buf->room - buf->size);
    buf->size += size;
}

void buf_append(struct buf *buf, const void *bytes, size_t size)
{
    if (!buf_grow(buf, size))
        return;
    if (size > 0)
        memcpy(buf->bytes + buf->size, bytes, size);
    buf->size += size;
}

void buf_append_text(struct buf *buf, const char *text)
{
    buf_append(buf, text, strlen(text));
}

void buf_append_byte(struct buf *buf, uint8_t byte)
{
    buf_append(buf, &byte, 1);
}

void buf_printf(struct buf *buf, const char *fmt, ...)
{
    va_list args, again;
    int n;

    va_start(args, fmt);
    va_copy(again, args);
    n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    assert(n >= 0);
    if (buf_grow(buf, (size_t)n)) {
        (void)vsnprintf((char *)buf->bytes + buf->size, (size_t)n + 1, fmt, again);
        buf->size += (size_t)n;
    }
    va_end(again);
}

void buf_consume(struct buf *buf, size_t size)
{
    assert(size <= buf->size);
    buf->size -= size;
    if (buf->size > 0)
        memmove(buf->bytes, buf->bytes + size, buf->size);
}

const char *buf_text(struct buf *buf)
{
    if (buf->bytes == NULL)
        return "";
    buf->bytes[buf->size] = '\0';
    return (const char *)buf->bytes;
}

int buf_check(const struct buf *buf, const char *what, struct err *err)
{
    if (buf->failed)
        return err_set(err, ERR_TOO_BIG, "%s is over its limit of %zu bytes", what, buf->limit);
    return 0;
}
