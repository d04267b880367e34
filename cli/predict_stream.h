/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Pieces of answers on standard output: of a sync call, and of a job's stream, which is followed
 * again behind its last event when the connection is lost.
 *
 * Thread: the only one of a command.   Tests: tests/stack/test_sync.py
 */

#include <jansson.h>

#include "cli/client.h"

/* A client_bytes_call. */
bool stream_print(const void *bytes, size_t size, void *opaque);

/* Prints until the final event, whose status object is the caller's. */
int stream_follow(const struct client *client, const char *id, bool quiet, json_t **ret_status,
                  struct err *err) MUST_CHECK;
