/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Kill switches, read once for all shards: together with the check of a shard before its takeover,
 * so that nothing is dispatched past one that is on; after each notification; and every few
 * seconds. While Postgres is away the last ones hold.
 */

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/loop.h"
#include "brokers/broker.h"
#include "brokers/pg.h"

#define READ_INTERVAL_MS 5000
#define READ_TIMEOUT_MS 5000

PG_STATEMENT(switches_read, "SELECT kind, tenant, value FROM switch ORDER BY id LIMIT 10000");

static enum switch_kind kind_of(const char *name)
{
    return strcmp(name, "tenant") == 0  ? SWITCH_TENANT
           : strcmp(name, "model") == 0 ? SWITCH_MODEL
                                        : SWITCH_TAG;
}

void switches_ask(struct pg_batch *batch)
{
    pg_add(batch, &switches_read);
}

void switches_take(struct broker *broker, const struct pg_answer *answer, size_t at)
{
    size_t count = pg_row_count(answer, at);
    struct ledger_switch *switches = xcalloc(count + 1, sizeof(*switches));
    struct shard *shard;

    for (size_t i = 0; i < count; i++) {
        switches[i].kind = kind_of(pg_c(answer, at, i, 0));
        mem_copy_text(switches[i].tenant, pg_c(answer, at, i, 1));
        mem_copy_text(switches[i].value, pg_c(answer, at, i, 2));
    }
    if (count == broker->switch_count &&
        (count == 0 || memcmp(switches, broker->switches, count * sizeof(*switches)) == 0)) {
        free(switches);
        return;
    }
    log_info("switches_read", LOG_U64("count", count));
    free(broker->switches);
    broker->switches = switches;
    broker->switch_count = count;
    LIST_FOREACH(shard, &broker->shards, next)
    {
        if (shard->phase != SHARD_OWNED)
            continue;
        shard_touch(shard);
        owner_set_switches(shard->owner, switches, count);
    }
}

static void on_read(void *opaque, const struct pg_answer *answer)
{
    struct broker *broker = opaque;

    broker->switches_due = false;
    if (answer->err.code == ERR_OK)
        switches_take(broker, answer, 0);
    else
        log_warn("switches_not_read", LOG_ERR(&answer->err));
}

static void switches_read_now(void *opaque)
{
    struct broker *broker = opaque;
    struct pg_batch *batch;
    struct err err;

    if (broker->switches_due)
        return;
    batch = pg_batch_new();
    switches_ask(batch);
    broker->switches_due = pg_send(broker->pg, &batch, READ_TIMEOUT_MS, on_read, broker, &err) == 0;
    pg_batch_free(&batch);
}

static void on_notify(void *opaque, const char *payload)
{
    struct broker *broker = opaque;

    if (payload != NULL && strncmp(payload, "switch ", 7) == 0) {
        broker->switches_due = false; /* what is under way may be older than this */
        switches_read_now(broker);
    }
}

void switches_open(struct broker *broker)
{
    pg_listen(broker->pg, "headrace_config", on_notify, broker);
    broker->switches_timer = loop_timer_new(broker->loop, switches_read_now, broker);
    loop_timer_start(broker->switches_timer, READ_INTERVAL_MS, READ_INTERVAL_MS);
}

void switches_close(struct broker *broker)
{
    loop_timer_free(&broker->switches_timer);
    mem_free(&broker->switches);
    broker->switch_count = 0;
}
