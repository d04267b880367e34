/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A result as others get it, by webhook and in result topics: the fields of Baseten's callback,
 * made from a committed result. Every try of a delivery sends the same bytes.
 *
 * Thread: any.   Tests: tests/unit/test_result_body.c
 */

#include "base/buf.h"
#include "schema/message.h"

#define WEBHOOK_BODY_SIZE_MAX (101u << 20)

/* Appends the JSON; output is completed->output, or what its blob holds: JSON is put in verbatim,
 * of other types see media_append_value(). What a model has answered to a failure stays out. */
int result_body_write(const struct message_completed *completed, struct wire_bytes output,
                      struct buf *body, struct err *err) MUST_CHECK;
