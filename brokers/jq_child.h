/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Inside of brokers/jq.h: a process that runs expressions, from its start to what it ended of. */

#include <sys/types.h>

#include "base/buf.h"
#include "base/err.h"
#include "schema/chain.h"

#define JQ_BINDING_MAX (8u << 20) /* of the message with the program */

/* Its socket in *ret_fd, which the caller closes. */
int jq_child_start(pid_t *ret_pid, int *ret_fd, struct err *err) MUST_CHECK;

/* Ends it, if it has not ended, and reaps it. True: it ended by itself, of what it was asked, which
 * the text says. */
bool jq_child_end(pid_t pid, char *text, size_t text_size);

/* The first message, with its head. */
void jq_child_program(const struct chain *chain, struct buf *to);

void jq_child_head(uint8_t to[4], size_t size);

/* Of a refusal of the program: "step a: input.x: jq: line 1: …". */
int jq_child_refusal(const struct chain *chain, const uint8_t *bytes, size_t size, struct err *err);
