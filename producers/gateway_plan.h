/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Requests that are to run at a time: rows until then (gateway_plan.c).
 *
 * Thread: the gateway's loop.   Tests: tests/stack/test_commands.py
 */

#include <stdbool.h>
#include <stdint.h>

#include "brokers/pg.h"

struct buf;
struct call;
struct gateway;
struct message_submit;

/* Keeps the record of that Submit until run_at; done's answer is for plan_taken(). ERR_RANGE: its
 * input is in the blob store, where nobody would know of it until then. */
int plan_send(struct gateway *gateway, const struct message_submit *submit, uint64_t run_at_us,
              const struct buf *record, pg_done_fn *done, void *opaque, struct err *err) MUST_CHECK;

/* False: the tenant has too many of them, and the call was refused. */
bool plan_taken(struct call **call_p, const struct pg_answer *answer) MUST_CHECK;

/* As a job's row in status_find: where the ledger has none. */
#define PLAN_STATUS_ROW                                                                            \
    "SELECT CASE WHEN p.canceled_at IS NULL THEN 1 ELSE 6 END::smallint, p.model, p.deployment, "  \
    "p.environment, p.created_at, coalesce(p.canceled_at, p.created_at), CASE WHEN p.canceled_at " \
    "IS NULL THEN 0 ELSE 11 END::smallint, '', false, 0::smallint, 0::smallint, p.run_at FROM "    \
    "planned p WHERE p.job_id = $1 AND p.tenant = $2 AND NOT EXISTS (SELECT FROM job WHERE id = "  \
    "$1)"
