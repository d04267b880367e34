/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What --input says: JSON in the option itself, @FILE, or - for standard input.
 *
 * Thread: the only one of a command.
 */

#include <jansson.h>

#include "base/buf.h"

#define INPUT_SIZE_MAX (100u << 20)

/* Appends the bytes. ERR_USAGE for an option that is empty or names no file, ERR_IO. */
int input_read(const char *input, struct buf *text, struct err *err) MUST_CHECK;

/* The same as JSON, the caller's; ERR_USAGE says line and column of what is none. */
int input_load(const char *input, json_t **ret_json, struct err *err) MUST_CHECK;
