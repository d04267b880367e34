/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Server-sent events, cut at any byte: lines in, events out. An event ends with an empty line; its
 * data lines are joined by line breaks; comments and fields of other names are skipped.
 *
 * Pure.   Thread: its owner's.   Tests: tests/unit/test_cli_sse.c, tests/fuzz/fuzz_cli_sse.c
 */

#include "base/buf.h"
#include "base/err.h"

#define SSE_LINE_SIZE_MAX (1u << 20)
#define SSE_NAME_SIZE 32
#define SSE_ID_SIZE 64

/* event: "" where it has no name of its own. data is terminated; both are borrowed. */
typedef void sse_call(void *opaque, const char *event, const char *data);

struct sse {
    struct buf line, data;
    char event[SSE_NAME_SIZE], id[SSE_ID_SIZE]; /* id: of the newest event that had one */
    bool has_data;
    sse_call *on_event;
    void *opaque;
};

void sse_init(struct sse *sse, sse_call *on_event, void *opaque);
void sse_done(struct sse *sse);

/* ERR_TOO_BIG: a line, or the data of an event, is over SSE_LINE_SIZE_MAX. */
int sse_feed(struct sse *sse, const void *bytes, size_t size, struct err *err) MUST_CHECK;
