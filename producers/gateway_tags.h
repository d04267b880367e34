/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Tags of a submit: the header X-Headrace-Tags, "team-a, exp-7". Pure.
 *
 * Thread: any.   Tests: tests/unit/test_gateway_filter.c
 */

#include "base/buf.h"
#include "base/err.h"

#define TAGS_MAX 8
#define TAG_SIZE_MAX 64
#define TAGS_SIZE (TAGS_MAX * (TAG_SIZE_MAX + 1)) /* with the NUL */

/* Letters, digits and . _ : / = @ + - ; ERR_RANGE says so. */
int tag_check(const char *tag, size_t size, struct err *err) MUST_CHECK;

/* The tags sorted, each once, with commas between; header NULL: none. */
int tags_read(const char *header, char ret_tags[TAGS_SIZE], struct err *err) MUST_CHECK;
