/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A few connections as one: each batch goes to the connected one with the least in flight. While
 * none is connected the first one takes all, so that they wait in one place.
 */

#include "base/assert.h"
#include "brokers/pg_int.h"

struct pg_pool {
    uint32_t count;
    struct pg *of[PG_POOL_MAX];
};

int pg_pool_open(struct loop *loop, const struct pg_options *options, uint32_t count,
                 struct pg_pool **ret_pool, struct err *err)
{
    OWNED(pg_pool_close) struct pg_pool *pool = xcalloc(1, sizeof(*pool));
    int r;

    assert(count >= 1 && count <= PG_POOL_MAX);
    for (; pool->count < count; pool->count++) {
        r = pg_open(loop, options, &pool->of[pool->count], err);
        if (r < 0)
            return r;
    }
    *ret_pool = TAKE(pool);
    return 0;
}

void pg_pool_close(struct pg_pool **pool_p)
{
    struct pg_pool *pool = TAKE(*pool_p);

    if (pool == NULL)
        return;
    for (uint32_t i = 0; i < pool->count; i++)
        pg_close(&pool->of[i]);
    mem_free(&pool);
}

bool pg_pool_connected(const struct pg_pool *pool)
{
    for (uint32_t i = 0; i < pool->count; i++) {
        if (pg_connected(pool->of[i]))
            return true;
    }
    return false;
}

struct pg *pg_pool_pick(struct pg_pool *pool)
{
    struct pg *best = NULL;

    for (uint32_t i = 0; i < pool->count; i++) {
        struct pg *pg = pool->of[i];

        if (pg_connected(pg) && (best == NULL || pg_in_flight(pg) < pg_in_flight(best)))
            best = pg;
    }
    return best == NULL ? pool->of[0] : best;
}

int pg_pool_send(struct pg_pool *pool, struct pg_batch **batch_p, uint32_t timeout_ms,
                 pg_done_fn *done, void *opaque, struct err *err)
{
    return pg_send(pg_pool_pick(pool), batch_p, timeout_ms, done, opaque, err);
}
