/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Limits of tenants and API keys on their way from Postgres to the owners of our shards.
 *
 * Read whole when Postgres is reached and at each change that headrace_config tells of; an owner
 * gets what is known when it is made, and dispatches nothing before (owner_options.await_limits).
 *
 * Failures: a reading that fails is tried again after a second; meanwhile the last one rules.
 */

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/loop.h"
#include "brokers/broker.h"
#include "brokers/pg.h"
#include "brokers/sched.h"
#include "schema/limits.h"

#define READ_TIMEOUT_MS 5000
#define RETRY_MS 1000
#define NAME_SIZE 65

PG_STATEMENT(limits_of_tenants,
             "SELECT id, limit_of(limits, 'running_jobs'), limit_of(limits, 'weight') FROM tenant "
             "WHERE limits <> '{}' AND deleted_at IS NULL");
PG_STATEMENT(limits_of_keys,
             "SELECT prefix, limit_of(limits, 'running_jobs'), NULL::double precision "
             "FROM api_key WHERE limits <> '{}' AND revoked_at IS NULL");

typedef char limit_holder[NAME_SIZE];

struct broker_limits {
    struct broker *broker;
    struct loop_timer *retry;
    bool known, reading, wanted; /* wanted: they changed while they were read */
    struct owner_limit *limits;
    limit_holder *names; /* what the limits' names point at */
    size_t count;
};

static void limits_read(void *opaque);

static void limits_give(const struct broker_limits *limits, struct shard *shard)
{
    owner_on_limits(shard->owner, limits->limits, limits->count);
}

void broker_limits_apply(struct shard *shard)
{
    const struct broker_limits *limits = shard->broker->limits;

    if (limits->known)
        limits_give(limits, shard);
}

static void limit_take(struct broker_limits *limits, enum owner_party kind,
                       const struct pg_answer *answer, size_t at, size_t row)
{
    struct owner_limit *to = &limits->limits[limits->count];
    limit_holder *name = &limits->names[limits->count++];
    struct limits values = {0};

    if (!pg_is_null(answer, at, row, 1))
        limits_set(&values, LIMIT_running_jobs, pg_double(answer, at, row, 1));
    if (!pg_is_null(answer, at, row, 2))
        limits_set(&values, LIMIT_weight, pg_double(answer, at, row, 2));
    mem_copy_text(*name, pg_c(answer, at, row, 0));
    *to = (struct owner_limit){
        .kind = kind,
        .name = WIRE_TEXT_OF(*name),
        .running_max = limits_has(&values, LIMIT_running_jobs)
                           ? (uint64_t)limits_get(&values, LIMIT_running_jobs, 0)
                           : UINT64_MAX,
        .weight = (uint32_t)limits_get(&values, LIMIT_weight, SCHED_WEIGHT_ONE),
    };
}

static void limits_take(struct broker_limits *limits, const struct pg_answer *answer)
{
    size_t tenants = pg_row_count(answer, 0), keys = pg_row_count(answer, 1);

    limits->limits = xrealloc(limits->limits, tenants + keys + 1, sizeof(*limits->limits));
    limits->names = xrealloc(limits->names, tenants + keys + 1, sizeof(*limits->names));
    limits->count = 0;
    limits->known = true;
    for (size_t i = 0; i < tenants; i++)
        limit_take(limits, OWNER_PARTY_TENANT, answer, 0, i);
    for (size_t i = 0; i < keys; i++)
        limit_take(limits, OWNER_PARTY_KEY, answer, 1, i);
}

static void on_limits(void *opaque, const struct pg_answer *answer)
{
    struct broker_limits *limits = opaque;
    struct shard *shard;

    limits->reading = false;
    if (answer->err.code == ERR_OK) {
        limits_take(limits, answer);
        LIST_FOREACH(shard, &limits->broker->shards, next)
        {
            if (shard->phase != SHARD_OWNED)
                continue;
            shard_touch(shard);
            limits_give(limits, shard);
        }
    } else {
        log_warn("limits_not_read", LOG_ERR(&answer->err), LOG_U64("retry_ms", RETRY_MS));
        loop_timer_start(limits->retry, RETRY_MS, 0);
    }
    if (limits->wanted)
        limits_read(limits);
}

static void limits_read(void *opaque)
{
    struct broker_limits *limits = opaque;
    OWNED(pg_batch_free) struct pg_batch *batch = NULL;
    struct err err;

    limits->wanted = limits->reading;
    if (limits->reading)
        return;
    batch = pg_batch_new();
    pg_add(batch, &limits_of_tenants);
    pg_add(batch, &limits_of_keys);
    limits->reading = pg_send(limits->broker->pg, &batch, READ_TIMEOUT_MS, on_limits, limits,
                              &err) == 0;
    if (!limits->reading)
        loop_timer_start(limits->retry, RETRY_MS, 0);
}

/* NULL: connected (again), something may have been missed. */
static void on_notify(void *opaque, const char *payload)
{
    if (payload == NULL || strncmp(payload, "tenant ", 7) == 0 ||
        strncmp(payload, "api_key ", 8) == 0)
        limits_read(opaque);
}

void broker_limits_open(struct broker *broker)
{
    struct broker_limits *limits = xcalloc(1, sizeof(*limits));

    limits->broker = broker;
    limits->retry = loop_timer_new(broker->loop, limits_read, limits);
    broker->limits = limits;
    pg_listen(broker->pg, "headrace_config", on_notify, limits);
}

void broker_limits_close(struct broker *broker)
{
    struct broker_limits *limits = TAKE(broker->limits);

    if (limits == NULL)
        return;
    loop_timer_free(&limits->retry);
    free(limits->limits);
    free(limits->names);
    free(limits);
}
