/* SPDX-License-Identifier: Apache-2.0 */

/*
 * POST .../wake: a deployment that has no replicas gets one. 202 either way, with no body: the
 * replica loads by itself, and requests wait for it in their queue.
 *
 * And what is asked of chains: there are none yet, so each name is one that does not exist.
 */

#include <stdio.h>

#include "brokers/pg.h"
#include "producers/gateway.h"

/* The trigger of `deployment` tells agents and gateways. */
PG_STATEMENT(wake_deployment, "UPDATE deployment SET replicas_wanted = 1 "
                              "WHERE id = $1 AND replicas_wanted = 0 AND replicas_max > 0");

static void on_awake(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct buf nothing = BUF_WITH_LIMIT(1);

    if (call_take_answer(&call, answer))
        call_answer(&call, 202, &nothing);
}

static void on_choice(struct call *call, const struct config_choice *choice)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &wake_deployment);
    pg_bind_c(batch, choice->deployment->id);
    call_query(call, &batch, on_awake);
}

void wake_begin(struct call *call)
{
    gateway_watch_choose(call, on_choice);
}
