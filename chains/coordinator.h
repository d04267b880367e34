/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Carries out what the planner asks for: runs of one chain, each an attempt of a job.
 *
 *     coordinator_run(id, job, input)
 *       -> chain_begin() in Postgres: whose the run is now, whom its steps go to, what was
 * submitted
 *       -> the planner asks for a job:  in the ledger already: its outcome, or wait for it
 *                                       else: a Submit to intake, named by (run, step, item, round)
 *       -> a wake-up, or a look at the ledger every 250 ms to 2 s: a job is final
 *       -> …
 *       -> on_output, on_error or on_put_off, once
 *
 * It keeps nothing that the ledger does not have. Killed at any point, the next attempt of the run
 * plans anew and finds what was submitted; a Submit that may be a second one is marked `repeat`,
 * and its id is the same, so no step has two jobs in a round. An attempt that is over (its token is
 * lower than the row's) gets no row from chain_begin(); what one that does not know it yet submits,
 * the newer one submits with the same ids.
 *
 * Canceled, it forgets the run and looks what the run's job has come to: jobs of a run that is over
 * are canceled (chain_leftovers(), also every 5 s for runs whose coordinator died), those of one
 * that goes on elsewhere are left to it.
 *
 * Failures: Postgres is away at the beginning: the attempt is handed back. Later: outcomes come
 * late. Kafka or the blob store refuse: tried again every 250 ms. Redis is away: looks alone.
 *
 * Thread: the loop's.   Tests: tests/stack/test_chains.py; the planner: tests/unit/test_chain_sim.c
 */

#include "schema/chain.h"
#include "schema/job.h"
#include "base/wire.h"

struct loop;
struct coordinator;

struct coordinator_options {
    const char *postgres, *kafka, *kafka_properties, *redis, *blobs; /* "": no Redis, no blobs */
    const char *deployment;                                          /* id of the chain's */
    const char *http_allow;    /* ranges that are not public and may be called all the same */
    struct wire_bytes secrets; /* one JSON object, name to value; empty: none */
};

struct coordinator_calls {
    void (*on_output)(void *opaque, uint64_t id, const char *json, size_t size);
    void (*on_error)(void *opaque, uint64_t id, enum error_class class, const char *text);
    /* The run has nothing to do but wait. Its next attempt is wanted then, or when the ledger has a
     * command to wake it. */
    void (*on_put_off)(void *opaque, uint64_t id, uint64_t delay_ms, const char *why);
};

/* The chain is borrowed for life. */
int coordinator_open(struct loop *loop, const struct coordinator_options *options,
                     const struct chain *chain, const struct coordinator_calls *calls, void *opaque,
                     struct coordinator **ret_coordinator, struct err *err) MUST_CHECK;
void coordinator_close(struct coordinator **coordinator_p);

struct coordinator_run {
    uint64_t id; /* the token of the attempt */
    struct wire_id job;
    uint64_t number;   /* of the attempt, from 1 */
    uint64_t limit_ms; /* from now */
    struct wire_bytes input;
    struct wire_text trace;
};

/* Answered once, perhaps from inside the call. Everything is copied. */
void coordinator_run(struct coordinator *coordinator, const struct coordinator_run *run);

/* Forgets the run, without a call; see above. False: there is none, it was answered. */
bool coordinator_cancel(struct coordinator *coordinator, uint64_t id);
