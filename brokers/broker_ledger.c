/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Postgres beside the ledger's own sessions: whether its offsets are of this Kafka, and the care of
 * its days.
 *
 * The check: a shard's row keeps the id of the cluster that its offsets count in. Another cluster
 * (a reset Kafka, an embedded one) is a named error and never a skip (PROTOCOL 4). The id of a
 * topic is not to be had from librdkafka 2.0.2: a topic that was made anew is found by its offsets
 * (floor_check in broker_shard.c).
 *
 * The care: days ahead are made, old ones dropped, what has no days is swept; changes of depths and
 * what ended in each hour are added up. Any number of brokers
 * may do it at once. Failures are logged and counted; the next time tries again.
 */

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/loop.h"
#include "brokers/broker.h"
#include "brokers/pg.h"
#include "schema/topics.h"

#define CHECK_TIMEOUT_MS 5000
#define CARE_TIMEOUT_MS 60000
#define COMPACT_INTERVAL_MS 10000
#define SWEEP_COUNT 10000 /* rows of one table that one call takes at most */
#define SWEEP_AGAIN_MS 1000

/* ---- Of which Kafka are the offsets? */

PG_STATEMENT(shard_cluster,
             "INSERT INTO shard AS s (id, cluster, intake_topic, outcome_topic)"
             " VALUES ($1, $2, $3, $4)"
             " ON CONFLICT (id) DO UPDATE SET cluster = excluded.cluster,"
             "  intake_topic = excluded.intake_topic, outcome_topic = excluded.outcome_topic"
             " WHERE s.cluster IN ('', excluded.cluster)"
             " RETURNING cluster");

static void on_cluster(void *opaque, const struct pg_answer *answer)
{
    struct shard *shard = opaque;
    struct err err = answer->err;

    if (shard->phase == SHARD_CHECKING && err.code != ERR_OK) {
        shard_retry(shard, &err);
    } else if (shard->phase == SHARD_CHECKING && pg_row_count(answer, 0) == 0) {
        (void)err_set(&err, ERR_DEPENDENCY,
                      "the ledger of shard %u was written from another Kafka cluster than %s: its "
                      "offsets mean nothing here. Use that cluster, or an empty database",
                      shard->number, shard->broker->cluster_id);
        broker_give_up(shard, &err);
    } else if (shard->phase == SHARD_CHECKING) {
        switches_take(shard->broker, answer, 1);
        shard_take(shard);
    }
    shard_unref(&shard);
}

void ledger_check_cluster(struct shard *shard)
{
    struct broker *broker = shard->broker;
    OWNED(pg_batch_free) struct pg_batch *batch = pg_batch_new();
    struct err err;

    pg_add(batch, &shard_cluster);
    pg_bind_i16(batch, (int64_t)shard->number);
    pg_bind_c(batch, broker->cluster_id);
    pg_bind_c(batch, topic_name(TOPIC_INTAKE));
    pg_bind_c(batch, topic_name(TOPIC_OUTCOME));
    switches_ask(batch);
    if (pg_send(broker->pg, &batch, CHECK_TIMEOUT_MS, on_cluster, shard_ref(shard), &err) < 0) {
        shard_retry(shard, &err);
        shard_unref(&shard);
    }
}

/* ---- Days */

PG_STATEMENT(days_make, "SELECT partitions_make(now())");
PG_STATEMENT(days_drop, "SELECT retention_drop($1 * interval '1 second')");
PG_STATEMENT(days_sweep, "SELECT retention_sweep($1 * interval '1 second') + "
                         "retention_sweep_control($1 * interval '1 second', "
                         "$2 * interval '1 second') + chain_cache_sweep() + "
                         "chain_call_sweep($1 * interval '1 second')");
PG_STATEMENT(days_drop_flush, "SELECT flush_drop()");
PG_STATEMENT(depths_compact, "SELECT queue_compact()");
PG_STATEMENT(hours_fill, "SELECT hours_fill()");

static void care_done(struct broker *broker, const struct pg_answer *answer, const char *event)
{
    if (answer->err.code == ERR_OK)
        return;
    broker->maintenance_failures++;
    log_warn(event, LOG_ERR(&answer->err));
}

static void on_maintained(void *opaque, const struct pg_answer *answer)
{
    struct broker *broker = opaque;

    broker->maintenance_due = false;
    care_done(broker, answer, "maintenance_failed");
    if (answer->err.code != ERR_OK)
        return;
    log_info("maintenance_done", LOG_I64("days_made", pg_i64(answer, 0, 0, 0)),
             LOG_I64("days_dropped", pg_i64(answer, 1, 0, 0)),
             LOG_I64("flush_days_dropped", pg_i64(answer, 2, 0, 0)),
             LOG_I64("rows_swept", pg_i64(answer, 3, 0, 0)));
    if (pg_i64(answer, 3, 0, 0) >= SWEEP_COUNT) /* there is more: a table was swept to its bound */
        loop_timer_start(broker->maintenance_timer, SWEEP_AGAIN_MS,
                         broker->settings.maintenance_ms);
}

static void on_compacted(void *opaque, const struct pg_answer *answer)
{
    struct broker *broker = opaque;

    broker->compact_due = false;
    care_done(broker, answer, "compact_failed");
}

static void care_send(struct broker *broker, struct pg_batch **batch_p, pg_done_fn *done, bool *due)
{
    struct err err;

    if (pg_send(broker->pg, batch_p, CARE_TIMEOUT_MS, done, broker, &err) == 0)
        *due = true;
    pg_batch_free(batch_p);
}

static void maintain(void *opaque)
{
    struct broker *broker = opaque;
    const double keep_s = (double)broker->settings.retention_ms / 1000;
    struct pg_batch *batch;

    if (broker->maintenance_due)
        return;
    batch = pg_batch_new();
    pg_add(batch, &days_make);
    pg_add(batch, &days_drop);
    pg_bind_double(batch, keep_s);
    pg_add(batch, &days_drop_flush);
    pg_add(batch, &days_sweep);
    pg_bind_double(batch, keep_s);
    pg_bind_double(batch, (double)broker->settings.audit_keep_ms / 1000);
    care_send(broker, &batch, on_maintained, &broker->maintenance_due);
}

static void compact(void *opaque)
{
    struct broker *broker = opaque;
    struct pg_batch *batch;

    if (broker->compact_due)
        return;
    batch = pg_batch_new();
    pg_add(batch, &depths_compact);
    pg_add(batch, &hours_fill);
    care_send(broker, &batch, on_compacted, &broker->compact_due);
}

int ledger_open(struct broker *broker, struct err *err)
{
    const struct pg_options options = {.url = broker->settings.postgres,
                                       .application = broker->boot};
    int r = pg_open(broker->loop, &options, &broker->pg, err);

    if (r < 0)
        return r;
    broker->maintenance_timer = loop_timer_new(broker->loop, maintain, broker);
    loop_timer_start(broker->maintenance_timer, 0, broker->settings.maintenance_ms);
    broker->compact_timer = loop_timer_new(broker->loop, compact, broker);
    loop_timer_start(broker->compact_timer, COMPACT_INTERVAL_MS, COMPACT_INTERVAL_MS);
    switches_open(broker);
    return 0;
}

void ledger_close(struct broker *broker)
{
    loop_timer_free(&broker->maintenance_timer);
    loop_timer_free(&broker->compact_timer);
    switches_close(broker);
    pg_close(&broker->pg);
}
