/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The talk of an engine host that is ours with its worker, for hosts whose requests last: credit
 * is given once with READY, and each request comes back in one EVT.
 *
 *     HELLO ─▶ LOAD: on_load() ─▶ READY ─▶ REQ: on_req() … host_frames_output() or _error()
 *           ─▶ DRAIN: on_drain(), and when all is answered BYE ─▶ the loop stops
 *
 * Failures: a load that fails is a BYE that says why, for good; a worker that breaks the protocol
 * or is gone stops the loop. host_frames_close() says the last words and returns the exit code.
 *
 * Thread: the loop's.   Tests: tests/stack/test_chains.py, tests/stack/test_training.py
 */

#include "schema/job.h"
#include "workers/frame.h"

#define HOST_FRAMES_FD 3

struct host_frames;
struct loop;

struct host_frames_calls {
    const char *host, *engine; /* "host-chain", "chain" */
    int (*on_load)(void *opaque, const struct frame_load *load, struct err *err);
    void (*on_req)(void *opaque, const struct frame_req *req); /* loaded, and within the credit */
    bool (*on_cancel)(void *opaque, uint64_t id); /* false: it is not here (any more) */
    bool (*on_drain)(void *opaque); /* NULL, or true: host_frames_drained() will be called */
};

int host_frames_open(struct loop *loop, const struct host_frames_calls *calls, void *opaque,
                     struct host_frames **ret_frames, struct err *err) MUST_CHECK;

/* A request is answered: its credit comes back. */
void host_frames_output(struct host_frames *frames, uint64_t id, const char *json, size_t size);
void host_frames_error(struct host_frames *frames, uint64_t id, enum error_class class,
                       const char *text);
/* Handed back, for a time: its next attempt begins then, or when somebody asks for it. */
void host_frames_put_off(struct host_frames *frames, uint64_t id, uint64_t delay_ms,
                         const char *text);

void host_frames_drained(struct host_frames *frames);

/* Ends with a BYE. exit_code 2: starting again would not help. */
void host_frames_end(struct host_frames *frames, int exit_code, enum error_class class,
                     const char *why);

/* Sends what is unsent, and frees. */
int host_frames_close(struct host_frames **frames_p);

/* What such a process does before all else: signals and core dumps are its worker's business, and
 * it dies with it. False: nobody has started it who speaks frames; said in the log. */
bool host_frames_begin(const char *host);
