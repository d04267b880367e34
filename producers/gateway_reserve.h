/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Idempotency-Key: which job a key stands for, decided by Postgres before anything is produced
 * (PROTOCOL 8).
 *
 *     row of the key after our insert       what follows
 *     ours                                  NEW: produce
 *     another job, same fingerprint,
 *        in the ledger                      ANSWER: it was accepted
 *        not in the ledger                  REPEAT: produce the same id again, marked `repeat`, for
 *                                           the winner may have died before it produced
 *     another fingerprint                   MISMATCH: 422
 *
 * The decision is pure; the statement is in gateway_submit.c's hands through reserve_send().
 * Thread: the loop's.   Tests: tests/unit/test_gateway_reserve.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/wire.h"

struct pg_answer;
struct pg_pool;

#define RESERVE_KEY_SIZE_MAX 255
#define RESERVE_DIGEST_SIZE 32

enum reserve_verdict {
    RESERVE_NEW,
    RESERVE_ANSWER,
    RESERVE_REPEAT,
    RESERVE_MISMATCH,
};

struct reserve_row { /* as it stands after the insert */
    struct wire_id job;
    uint8_t fingerprint[RESERVE_DIGEST_SIZE];
    bool in_ledger;
};

enum reserve_verdict reserve_decide(const struct wire_id *ours,
                                    const uint8_t fingerprint[RESERVE_DIGEST_SIZE],
                                    const struct reserve_row *row);

/* ERR_RANGE unless the key is 1 to 255 visible ASCII characters. */
int reserve_key_check(const char *key, struct err *err) MUST_CHECK;

/* Of the target, the form (of a sync call: its route and media type; "": async) and the body: the
 * same request again has the same one, by whatever name it calls the model. */
struct evp_md_ctx_st;
struct evp_md_ctx_st *reserve_fingerprint_begin(const char *model, const char *environment,
                                                const char *deployment,
                                                const char *form); /* feed it the body */
void reserve_fingerprint(const char *model, const char *environment, const char *deployment,
                         const char *form, struct wire_bytes body, uint8_t to[RESERVE_DIGEST_SIZE]);

struct reserve {
    const char *tenant, *key, *deployment;
    struct wire_id job;
    uint8_t fingerprint[RESERVE_DIGEST_SIZE];
    uint64_t lifetime_ms;
};
int reserve_send(struct pg_pool *pool, const struct reserve *reserve,
                 void (*done)(void *opaque, const struct pg_answer *answer), void *opaque,
                 struct err *err) MUST_CHECK;

/* The row of a committed answer; deployment is borrowed from it. ERR_UNAVAILABLE: it is gone
 * already (expired in between). */
int reserve_read(const struct pg_answer *answer, struct reserve_row *ret_row,
                 const char **ret_deployment, struct err *err) MUST_CHECK;
