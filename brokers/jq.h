/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Expressions of a chain (schema/chain_jq.h), run where they can hurt nobody: in processes of their
 * own that keep the compiled program, have no environment, files or network, and end when a request
 * takes too much (brokers/jq_host.h). jq_check() only looks whether jq compiles them.
 *
 *     jq_pool_ask(request) ─▶ waits for a process ─▶ answer or error, once
 *
 * An expression that takes too much, or that jq does not survive, is an error of that request, and
 * the next one has a new process. A process that somebody else killed is no error of the request,
 * which is asked again, three times at most.
 * Shutdown: jq_pool_close() kills the processes; what was asked is not answered any more.
 *
 * Thread: the loop's; jq_check(): any.   Tests: tests/unit/test_jq.c
 */

#include <jansson.h>

#include "base/err.h"
#include "schema/chain.h"

#define JQ_POOL_HOSTS 2

struct jq_pool;
struct loop;

/* Blocks for as long as jq compiles, 20 ms and 1 more for each expression. ERR_MALFORMED names
 * step, key and line. Nothing to do for a chain without expressions. */
int jq_check(const struct chain *chain, struct err *err) MUST_CHECK;

/* The same for a chain as JSON, which is read first. */
int jq_check_json(const char *text, struct err *err) MUST_CHECK;

/* The chain is borrowed for life. Processes are started as they are needed. */
struct jq_pool *jq_pool_new(struct loop *loop, const struct chain *chain);
void jq_pool_close(struct jq_pool **pool_p);

/* values: the callback's; NULL: it failed, and error, borrowed, says why. */
typedef void jq_done_fn(void *opaque, json_t *values, const char *error);

/* Takes the request. Answered later, never from inside the call. */
void jq_pool_ask(struct jq_pool *pool, char **request_p, size_t size, jq_done_fn *done,
                 void *opaque);
