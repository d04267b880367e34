/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One command of Docker or Podman that is not the container itself (fetch, look, tell), as a
 * process on the loop with a time limit; what it has printed comes with its end.
 *
 * It is under a keeper (workers/confine.h), and ends with us. Failures to start come as an end,
 * too. Thread: the loop's.   Tests: tests/stack/test_training_container.py
 */

#include "base/loop.h"
#include "workers/container.h"

#define CONTAINER_CALL_TEXT_SIZE 2048

struct container_call;

/* exit_code -1: it did not start, was killed, or took too long. text: the last of what it printed,
 * without the line break at its end. The call is freed behind it. */
typedef void container_done(void *opaque, int exit_code, const char *text);

/* words ends in NULL. The call is the loop's until `done`, which never comes from within this
 * function; *ret_call is emptied then, too. */
void container_call(struct loop *loop, const struct container_tool *tool, const char *const *words,
                    uint64_t limit_ms, container_done *done, void *opaque,
                    struct container_call **ret_call);

void container_call_end(struct container_call *call);     /* killed; `done` comes */
void container_call_free(struct container_call **call_p); /* killed; `done` does not come */
