/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Media types of inputs and outputs, as they stand in Content-Type: "image/png", "text/plain;
 * charset=utf-8". Empty means JSON: most are, and then nothing is carried or stored.
 *
 * Names are compared without regard to case, parameters are ignored.
 *
 * Pure.   Thread: any.   Tests: tests/unit/test_media_type.c, tests/fuzz/fuzz_media_type.c
 */

#include <stdbool.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/wire.h"

#define MEDIA_TYPE_SIZE_MAX 255
#define MEDIA_TYPE_JSON "application/json"
#define MEDIA_TYPE_BYTES "application/octet-stream"
#define MEDIA_TYPE_EVENTS "text/event-stream"

/* ERR_RANGE unless it is empty, or "type/subtype" with parameters in printable ASCII, and short
 * enough: safe to send as a header. */
int media_type_check(struct wire_text type, struct err *err) MUST_CHECK;

/* Is it this one, parameters apart? An empty one is MEDIA_TYPE_JSON. */
bool media_type_is(struct wire_text type, const char *name);

/* Does a list as of the Accept header name it, with any weight but 0? Wildcards do not count. */
bool media_type_listed(const char *list, const char *name);

/* Appends the member "text": "…" when the bytes are UTF-8, else "base64": "…". */
void media_append_member(struct buf *to, struct wire_bytes bytes);

/* Appends bytes of that type as a JSON value: JSON as it is (nothing at all is null), text as a
 * string, the rest as {"content_type", "base64"}. What is called JSON and is none counts as text:
 * the value never ends before its bytes do. */
void media_append_value(struct buf *to, struct wire_text type, struct wire_bytes bytes);
