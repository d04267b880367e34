/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a user's server writes to its standard output and error, as lines of our log.
 *
 * Bounded in each direction: a line is cut at SERVER_LINE_MAX bytes; at most SERVER_LINES_A_SECOND
 * are logged, the others are counted and the count is logged; the pipe is read at no more than
 * SERVER_BYTES_A_SECOND, so that a server that floods it waits for itself and costs us little. The
 * newest lines are kept for the reason that is told when it ends.
 *
 * Thread: the loop's.   Tests: tests/unit/test_server_log.c
 */

#include "base/err.h"

struct loop;
struct server_log;

#define SERVER_LINE_MAX 500
#define SERVER_LINES_A_SECOND 200
#define SERVER_BYTES_A_SECOND (4u << 20)
#define SERVER_LINES_KEPT 12

/* Takes the reading end of a pipe. */
int server_log_open(struct loop *loop, int fd, struct server_log **ret_log,
                    struct err *err) MUST_CHECK;
void server_log_close(struct server_log **log_p);

/* Reads what is in the pipe now, at most a pipe full: after the end of the process. */
void server_log_finish(struct server_log *log);

/* The newest lines that fit, oldest first, with " | " between; "" when there were none. */
void server_log_last(const struct server_log *log, char *to, size_t to_size);
