/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Gateways look after each other: what the callers of a lost one had waited for is canceled, since
 * nobody is left to do it for them.
 *
 *   six times a lease: our own row gets its beat, and all rows are read, with the boots that jobs
 *   of callers name and that have none -> who has not changed for a lease is lost
 *   (gateway_lease.c) -> its row goes, its callers' jobs get a command each
 *
 * Every gateway looks, so two may find the same one lost: a second cancel of a job does nothing.
 * One that was only cut off for a lease, or stopped, has a row again at its next beat; its callers
 * are told that they were canceled. Postgres away: nobody is lost until a lease after it is back.
 */

#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/metrics.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_lease.h"

#define BEATS_A_LEASE 6
#define COLUMN_BOOT 0
#define COLUMN_BEAT 1

PG_STATEMENT(gateway_beat, "INSERT INTO gateway (boot) VALUES ($1) ON CONFLICT (boot) DO UPDATE "
                           "SET beat = gateway.beat + 1, seen_at = now()");
PG_STATEMENT(gateway_look,
             "SELECT boot, beat FROM gateway UNION ALL (SELECT DISTINCT j.gateway, 0::bigint FROM "
             "job j WHERE j.sync AND j.state IN (1, 2) AND j.idempotency_key IS NULL AND j.gateway "
             "IS NOT NULL AND NOT EXISTS (SELECT FROM gateway g WHERE g.boot = j.gateway))");
PG_STATEMENT(gateway_is_lost, "SELECT gateway_lost($1, $2)");

struct peers {
    struct gateway *gateway;
    struct leases *leases;
    struct loop_timer *timer;
    uint32_t asking; /* answers that are due */
};

static void on_lost(void *opaque, const struct pg_answer *answer)
{
    struct peers *peers = opaque;
    int64_t canceled;

    peers->asking--;
    if (answer->err.code != ERR_OK) {
        log_warn("gateway_lost_not_noted", LOG_ERR(&answer->err));
        return; /* a lease later again */
    }
    canceled = pg_i64(answer, 0, 0, 0);
    metric_add(metrics_of(peers->gateway->metrics, GATEWAY_METRIC_gateway_callers_lost_total),
               (double)canceled);
    log_info("gateway_lost", LOG_I64("canceled", canceled));
}

static void peer_is_lost(struct peers *peers, const char *boot, int64_t beat)
{
    struct pg_batch *batch = pg_batch_new();
    struct err err;

    log_info("gateway_not_heard_of", LOG_STR("boot", boot),
             LOG_U64("lease_ms", peers->gateway->settings.gateway_lease_ms));
    pg_add(batch, &gateway_is_lost);
    pg_bind_c(batch, boot);
    pg_bind_i64(batch, beat);
    if (pg_send(peers->gateway->pg_control, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_lost, peers,
                &err) < 0)
        pg_batch_free(&batch);
    else
        peers->asking++;
}

static void on_look(void *opaque, const struct pg_answer *answer)
{
    struct peers *peers = opaque;

    peers->asking--;
    if (answer->err.code != ERR_OK)
        return; /* the gap counts */
    leases_begin(peers->leases, loop_now_ms(peers->gateway->loop));
    for (size_t row = 0; row < pg_row_count(answer, 1); row++) {
        const char *boot = pg_c(answer, 1, row, COLUMN_BOOT);
        int64_t beat = pg_i64(answer, 1, row, COLUMN_BEAT);

        if (leases_see(peers->leases, boot, beat))
            peer_is_lost(peers, boot, beat);
    }
    leases_end(peers->leases);
}

static void on_time(void *opaque)
{
    struct peers *peers = opaque;
    struct gateway *gateway = peers->gateway;
    struct pg_batch *batch;
    struct err err;

    if (peers->asking > 0 || !pg_connected(gateway->pg_control))
        return;
    batch = pg_batch_new();
    pg_add(batch, &gateway_beat);
    pg_bind_c(batch, gateway->boot);
    pg_add(batch, &gateway_look);
    if (pg_send(gateway->pg_control, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_look, peers, &err) < 0)
        pg_batch_free(&batch);
    else
        peers->asking++;
}

int gateway_peers_open(struct gateway *gateway, struct err *err)
{
    struct peers *peers = gateway->peers = xcalloc(1, sizeof(*peers));
    uint64_t lease_ms = gateway->settings.gateway_lease_ms;

    (void)err;
    peers->gateway = gateway;
    peers->leases = leases_new(gateway->boot, lease_ms);
    peers->timer = loop_timer_new(gateway->loop, on_time, peers);
    loop_timer_start(peers->timer, 0, lease_ms / BEATS_A_LEASE);
    return 0;
}

void gateway_peers_close(struct peers **peers_p)
{
    struct peers *peers = TAKE(*peers_p);

    if (peers == NULL)
        return;
    loop_timer_free(&peers->timer);
    leases_free(&peers->leases);
    free(peers);
}
