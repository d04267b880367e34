/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A growing byte buffer that is given its limit when it is made, so that forgetting the limit is
 * impossible. Once an append would pass the limit the buffer is marked failed and ignores what
 * follows; the caller checks once, at the end, with buf_check().
 *
 * Embedded (buf_init/buf_done) or moved with TAKE-like buf_move().
 * Thread: its owner's.   Tests: tests/unit/test_buf.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct buf {
    uint8_t *bytes; /* NULL while empty; not terminated, see buf_text() */
    size_t size;    /* bytes in use */
    size_t room;    /* bytes allocated */
    size_t limit;   /* size may not pass this */
    bool failed;    /* an append was refused */
};

#define BUF_WITH_LIMIT(max) ((struct buf){.limit = (max)})

void buf_init(struct buf *buf, size_t limit);
void buf_done(struct buf *buf);  /* frees the bytes; the buffer is empty and usable again */
void buf_clear(struct buf *buf); /* keeps the memory, forgets content and failure */

/* Moves content out of *from into an empty *to; *from is empty afterwards, with its limit. */
void buf_move(struct buf *to, struct buf *from);

void buf_append(struct buf *buf, const void *bytes, size_t size);
void buf_append_text(struct buf *buf, const char *text);
void buf_append_byte(struct buf *buf, uint8_t byte);
void buf_printf(struct buf *buf, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Returns room for size more bytes at the end, to be filled in by the caller and then made part of
 * the buffer with buf_commit(); NULL (and failed) past the limit. */
uint8_t *buf_reserve(struct buf *buf, size_t size);
void buf_commit(struct buf *buf, size_t size);

/* Removes the first size bytes. */
void buf_consume(struct buf *buf, size_t size);

/* The content as a C string: a terminator is kept behind the last byte and not counted. */
const char *buf_text(struct buf *buf);

/* 0, or ERR_TOO_BIG when an append was refused; `what` names the content in the text. */
int buf_check(const struct buf *buf, const char *what, struct err *err) MUST_CHECK;
