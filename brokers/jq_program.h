/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A program of a chain's expressions (schema/chain_jq.h) in libjq: compiled once, run for each
 * request. It takes what it takes, of time and of memory, and libjq ends the process when there is
 * none left: only processes that may be lost run it (brokers/jq_host_main.c).
 *
 * Thread: one at a time.   Tests: tests/unit/test_jq.c
 */

#include "base/buf.h"
#include "base/err.h"

#define JQ_ANSWER_MAX (66u << 20) /* of all values of one answer, as JSON */

struct jq_program;

/* ERR_MALFORMED with what jq says of it, see chain_jq_explain(). */
int jq_program_open(const char *text, struct jq_program **ret_program, struct err *err) MUST_CHECK;
void jq_program_close(struct jq_program **program_p);

/* Appends the values of as many items of the request as have room, at least of one, as a list.
 * ERR_MISMATCH: the expression failed; the text is what it said. */
int jq_program_run(struct jq_program *program, const char *request, size_t size,
                   struct buf *ret_answer, struct err *err) MUST_CHECK;
