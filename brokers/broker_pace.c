/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What our shards see of the pace of pools, written down every few seconds where it has changed:
 * gateways estimate by it whether a job would start in time. A row a pool and shard, and nobody
 * waits for it: a writing that fails is made up for by the next one.
 */

#include <stdlib.h>

#include "base/loop.h"
#include "base/mem.h"
#include "brokers/broker.h"
#include "brokers/pg.h"

#define WRITE_INTERVAL_MS 2000
#define WRITE_TIMEOUT_MS 5000
#define POOLS_MAX 1000 /* of a shard and writing */

PG_STATEMENT(pace_write,
             "INSERT INTO pool_pace AS p (pool, shard, service_us, slots) SELECT "
             "unnest($1::text[]), $2, unnest($3::bigint[]), unnest($4::bigint[]) ON CONFLICT "
             "(pool, shard) DO UPDATE SET service_us = excluded.service_us, slots = "
             "excluded.slots, at = now() WHERE p.slots <> excluded.slots OR p.at < now() - "
             "interval '20 seconds' OR abs(p.service_us - excluded.service_us) * 10 > "
             "p.service_us");

struct pace {
    struct wire_text pool;
    uint64_t service_us, slots;
};

struct paces {
    struct pace items[POOLS_MAX];
    size_t count;
};

static void pace_add(void *opaque, struct wire_text pool, uint64_t service_us, uint64_t slots)
{
    struct paces *paces = opaque;

    if (paces->count < POOLS_MAX)
        paces->items[paces->count++] = (struct pace){pool, service_us, slots};
}

static bool shard_paces(struct shard *shard, struct paces *paces, struct pg_batch *batch)
{
    paces->count = 0;
    owner_each_pace(shard->owner, pace_add, paces);
    if (paces->count == 0)
        return false;
    pg_add(batch, &pace_write);
    pg_bind_array(batch, PG_TEXT, paces->count);
    for (size_t i = 0; i < paces->count; i++)
        pg_bind_text(batch, paces->items[i].pool);
    pg_bind_i16(batch, (int64_t)shard->number);
    pg_bind_array(batch, PG_I64, paces->count);
    for (size_t i = 0; i < paces->count; i++)
        pg_bind_i64(batch, (int64_t)paces->items[i].service_us);
    pg_bind_array(batch, PG_I64, paces->count);
    for (size_t i = 0; i < paces->count; i++)
        pg_bind_i64(batch, (int64_t)paces->items[i].slots);
    return true;
}

static void on_written(void *opaque, const struct pg_answer *answer)
{
    struct broker *broker = opaque;

    (void)answer;
    broker->pace_due = false;
}

static void paces_write(void *opaque)
{
    OWNED(pg_batch_free) struct pg_batch *batch = NULL;
    OWNED(mem_free) struct paces *paces = NULL;
    struct broker *broker = opaque;
    struct shard *shard;
    bool any = false;
    struct err err;

    if (broker->pace_due || !pg_connected(broker->pg))
        return;
    batch = pg_batch_new();
    paces = xmalloc(sizeof(*paces));
    LIST_FOREACH(shard, &broker->shards, next)
    {
        if (shard->phase == SHARD_OWNED)
            any |= shard_paces(shard, paces, batch);
    }
    if (any)
        broker->pace_due = pg_send(broker->pg, &batch, WRITE_TIMEOUT_MS, on_written, broker,
                                   &err) == 0;
}

void broker_pace_open(struct broker *broker)
{
    broker->pace_timer = loop_timer_new(broker->loop, paces_write, broker);
    loop_timer_start(broker->pace_timer, WRITE_INTERVAL_MS, WRITE_INTERVAL_MS);
}

void broker_pace_close(struct broker *broker)
{
    loop_timer_free(&broker->pace_timer);
}
