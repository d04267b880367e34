/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_late.h"

#include "brokers/pg.h"
#include "producers/gateway.h"

#define LATE_TIMEOUT_MS 1000

PG_STATEMENT(
    late_depths,
    "SELECT coalesce(sum(w), 0)::bigint, coalesce(sum(w) FILTER (WHERE tenant = $2), "
    "0)::bigint, count(*) FILTER (WHERE w > 0 OR tenant = $2), coalesce(sum(r), 0)::bigint "
    "FROM (SELECT m.tenant, coalesce(sum(q.waiting) FILTER (WHERE q.rank <= $3), 0) AS w, "
    "sum(q.running) AS r FROM queue_delta q JOIN deployment d ON d.id = q.deployment "
    "JOIN model m ON m.id = d.model_id WHERE q.pool = $1 GROUP BY m.tenant) x");
PG_STATEMENT(late_pace, "SELECT coalesce(max(service_us), 0)::bigint, coalesce(sum(slots), "
                        "0)::bigint FROM pool_pace WHERE pool = $1 AND "
                        "at > now() - interval '1 minute'");

double late_estimate_s(const struct late_figures *figures)
{
    uint64_t turns = figures->tenants == 0 ? 1 : figures->tenants;
    double before;

    if (figures->slots == 0 || figures->service_us == 0)
        return -1;
    if (figures->waiting == 0 && figures->running < figures->slots)
        return 0;
    before = ((double)figures->own_waiting + 1) * (double)turns - 1;
    if (before > (double)figures->waiting)
        before = (double)figures->waiting;
    return (before + 1) * (double)figures->service_us / 1e6 / (double)figures->slots;
}

int late_send(struct pg_pool *pool, const struct late_question *question,
              void (*done)(void *opaque, const struct pg_answer *answer), void *opaque,
              struct err *err)
{
    OWNED(pg_batch_free) struct pg_batch *batch = NULL;

    if (!pg_pool_connected(pool))
        return err_set(err, ERR_UNAVAILABLE, "Postgres is away");
    batch = pg_batch_new();
    pg_add(batch, &late_depths);
    pg_bind_c(batch, question->pool);
    pg_bind_c(batch, question->tenant);
    pg_bind_i16(batch, question->rank);
    pg_add(batch, &late_pace);
    pg_bind_c(batch, question->pool);
    return pg_pool_send(pool, &batch, LATE_TIMEOUT_MS, done, opaque, err);
}

struct late_figures late_read(const struct pg_answer *answer)
{
    struct late_figures figures = {0};

    if (answer->err.code != ERR_OK)
        return figures;
    figures.waiting = pg_u64(answer, 0, 0, 0);
    figures.own_waiting = pg_u64(answer, 0, 0, 1);
    figures.tenants = pg_u64(answer, 0, 0, 2);
    figures.running = pg_u64(answer, 0, 0, 3);
    figures.service_us = pg_u64(answer, 1, 0, 0);
    figures.slots = pg_u64(answer, 1, 0, 1);
    return figures;
}
