/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Sync calls: what a request asks for beside its body, and the caller that waits for the answer.
 *
 *     headers ─▶ sync_ask_read() ─▶ gateway_submit.c: a job like any other ─▶ Kafka's report
 *             ─▶ sync_wait() ─▶ the job is final: the model's answer, or why there is none
 *                            └▶ pieces come first: a chunked answer, from the first piece on
 *
 * Thread: the gateway's loop.   Tests: tests/unit/test_gateway_sync.c, tests/stack/test_sync.py
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/wire.h"
#include "schema/media_type.h"

#define SYNC_ROUTE_SIZE_MAX 2048

struct call;
struct message_completed;
struct websocket;

/* What a sync request asks for. */
struct sync_ask {
    bool stream;  /* pieces, if there are any */
    bool streams; /* a step of the chain does */
    bool of_step; /* of a run: those of its step that streams */
    bool events;  /* … as server-sent events, whatever the step makes */
    uint64_t timeout_ms;
    char type[MEDIA_TYPE_SIZE_MAX + 1];  /* of the body; "": JSON */
    char route[SYNC_ROUTE_SIZE_MAX + 1]; /* "POST /v1/x?y=1"; "": predict */
    struct websocket *websocket;         /* of one, until its caller waits; NULL: of none */
};

/* ERR_RANGE names the header, its value and its limit. */
int sync_ask_read(const struct call *call, bool is_truss, struct sync_ask *ret_ask,
                  struct err *err) MUST_CHECK;

/* Of a chain one of whose steps streams: is that what is asked for, by "stream": true in the input
 * (JSON; NULL: not looked at) or by Accept: text/event-stream? */
void sync_ask_step(const struct call *call, const char *input, size_t size, struct sync_ask *ask);

/* Kafka has the job; from here on the call is answered by what becomes of it. keyed: it was sent
 * with an Idempotency-Key, so its client will come again, and leaving does not cancel it. known: it
 * may be final already. Takes the call. */
struct sync_job {
    struct wire_id id;
    bool keyed, known;
};
void sync_wait(struct call **call_p, const struct sync_ask *ask, const struct sync_job *job);

/* Ends the call as a job that is final and has not succeeded says. */
void sync_answer_failure(struct call *call, const struct message_completed *completed);

/* ---- pure parts ---- */

/* "POST" and "/model/m/production/sync/v1/x%20y?z" with 4 segments in front of it become
 * "POST /v1/x%20y?z"; the target as it was sent. ERR_RANGE: too long. */
int sync_route_write(const char *method, const char *target, size_t skip,
                     char to[SYNC_ROUTE_SIZE_MAX + 1], struct err *err) MUST_CHECK;

/* Status and error_code for a failure that the model has not answered itself. */
struct sync_failure {
    int status;
    const char *error_code;
    const char *source_code; /* X-BASETEN-ERROR-CODE */
};
struct sync_failure sync_failure_of(uint64_t state, uint64_t error_class);

/* Pieces are wanted unless the client wants JSON alone, and is none that says so but reads streams:
 * the rule of the Truss server. */
bool sync_wants_stream(const char *accept, const char *user_agent);
