/* SPDX-License-Identifier: Apache-2.0 */

/*
 * /metrics, /healthz and /readyz of the broker. Numbers are gathered when somebody asks: what the
 * parts count is copied into the metrics then.
 *
 * /readyz says 200 once Kafka has told our share of the shards and every one of them dispatches.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/http_server.h"
#include "base/log.h"
#include "base/metrics.h"
#include "brokers/broker.h"
#include "brokers/pg.h"

static const struct metric_row metric_rows[] = {
#define METRICS_ROWS
#include "base/metrics_rows.def"
#include "brokers/broker_metrics.def"
#include "base/metrics_end.def"
};

/* ---- Gathering */

static void shard_count(struct broker *broker, enum broker_metric metric, const char *number,
                        uint64_t now, uint64_t before)
{
    if (now > before)
        metric_add(metrics_series(broker->metrics, metric, &number), (double)(now - before));
}

static void shard_gauge(struct broker *broker, enum broker_metric metric, const char *number,
                        uint64_t value)
{
    metric_set(metrics_series(broker->metrics, metric, &number), (double)value);
}

static void depth_set(void *opaque, struct wire_text pool, enum job_rank rank, uint64_t waiting,
                      uint64_t running)
{
    struct broker *broker = opaque;
    char pool_text[80], rank_text[8];
    const char *values[] = {pool_text, rank_text};

    (void)snprintf(pool_text, sizeof(pool_text), "%.*s", (int)pool.size, pool.text);
    (void)snprintf(rank_text, sizeof(rank_text), "%d", (int)rank);
    metric_set(metrics_series(broker->metrics, BROKER_METRIC_broker_queue_waiting, values),
               (double)waiting);
    metric_set(metrics_series(broker->metrics, BROKER_METRIC_broker_queue_running, values),
               (double)running);
}

static void shard_gather(struct shard *shard)
{
    struct broker *broker = shard->broker;
    struct owner_stats now = shard->owner != NULL ? owner_stats(shard->owner)
                                                  : (struct owner_stats){0};
    const struct owner_stats *before = &shard->counted;
    char number[16];

    (void)snprintf(number, sizeof(number), "%u", shard->number);
    shard_gauge(broker, BROKER_METRIC_broker_shard_live, number, now.live);
    if (shard->owner == NULL)
        return;
#define COUNT(metric, field)                                                                       \
    shard_count(broker, BROKER_METRIC_broker_##metric, number, now.field, before->field)
#define GAUGE(metric, field) shard_gauge(broker, BROKER_METRIC_broker_##metric, number, now.field)
    COUNT(jobs_accepted_total, accepted);
    COUNT(attempts_total, dispatched);
    COUNT(attempts_finished_total, finished);
    COUNT(attempts_handed_back_total, handed_back);
    COUNT(attempts_fenced_total, fenced);
    COUNT(retries_total, retried);
    COUNT(jobs_expired_total, expired);
    COUNT(jobs_canceled_total, canceled);
    COUNT(commands_total, commands);
    COUNT(jobs_replayed_total, replayed);
    COUNT(leases_lost_total, lost);
    COUNT(jobs_published_total, published);
    COUNT(records_dead_total, dead_records);
    COUNT(records_repeated_total, duplicate_records);
    COUNT(flushes_total, flushes);
    GAUGE(jobs_in_memory, waiting_in_memory);
    GAUGE(jobs_in_memory_bytes, waiting_bytes);
    GAUGE(jobs_running, running);
    GAUGE(jobs_delayed, delayed);
    GAUGE(jobs_barred, barred);
    GAUGE(jobs_parked, parked);
    GAUGE(changes_unflushed, unflushed);
    GAUGE(flushes_unpublished, unpublished);
    GAUGE(workers, workers);
    GAUGE(intake_paused, intake_paused);
#undef COUNT
#undef GAUGE
    shard->counted = now;
    owner_each_depth(shard->owner, depth_set, broker);
}

static void depth_clear(void *opaque, struct wire_text pool, enum job_rank rank, uint64_t waiting,
                        uint64_t running)
{
    (void)waiting, (void)running;
    depth_set(opaque, pool, rank, 0, 0);
}

void watch_shard_left(struct shard *shard)
{
    static const enum broker_metric gauges[] = {
        BROKER_METRIC_broker_shard_live,    BROKER_METRIC_broker_jobs_in_memory,
        BROKER_METRIC_broker_jobs_running,  BROKER_METRIC_broker_jobs_in_memory_bytes,
        BROKER_METRIC_broker_jobs_delayed,  BROKER_METRIC_broker_changes_unflushed,
        BROKER_METRIC_broker_workers,       BROKER_METRIC_broker_flushes_unpublished,
        BROKER_METRIC_broker_intake_paused,
    };
    char number[16];

    if (shard->owner == NULL)
        return;
    shard_gather(shard); /* counts of the time since the last look */
    (void)snprintf(number, sizeof(number), "%u", shard->number);
    for (size_t i = 0; i < COUNT_OF(gauges); i++)
        shard_gauge(shard->broker, gauges[i], number, 0);
    owner_each_depth(shard->owner, depth_clear, shard->broker);
}

static void total_count(struct broker *broker, enum broker_metric metric, uint64_t now,
                        uint64_t *before)
{
    if (now > *before)
        metric_add(metrics_of(broker->metrics, metric), (double)(now - *before));
    *before = now;
}

static void broker_gather(struct broker *broker)
{
    struct queue_producer_counts queue = {0};
    uint64_t takeovers = broker->counted_takeovers;
    struct shard *shard;
    uint32_t owned = 0;

    LIST_FOREACH(shard, &broker->shards, next)
    {
        owned++;
        shard_gather(shard);
    }
    if (broker->producer != NULL)
        queue = queue_producer_counts(broker->producer);
#define GAUGE(metric, value)                                                                       \
    metric_set(metrics_of(broker->metrics, BROKER_METRIC_broker_##metric), (double)(value))
#define COUNT(metric, now, before)                                                                 \
    total_count(broker, BROKER_METRIC_broker_##metric, (now), (before))
    GAUGE(ready, broker_is_ready(broker));
    GAUGE(shards_owned, owned);
    GAUGE(kafka_unreported, queue.unreported);
    GAUGE(redis_connected, cache_connected(broker->cache));
    GAUGE(postgres_connected, pg_connected(broker->pg));
    COUNT(kafka_records_total, queue.taken, &broker->counted_queue.taken);
    COUNT(kafka_groups_total, queue.groups, &broker->counted_queue.groups);
    COUNT(kafka_renewals_total, queue.renewals, &broker->counted_queue.renewals);
    COUNT(redis_failures_total, cache_counts(broker->cache).failed,
          &broker->counted_redis_failures);
    COUNT(takeovers_total, broker->takeover_count, &takeovers);
    COUNT(maintenance_failures_total, broker->maintenance_failures,
          &broker->counted_maintenance_failures);
#undef GAUGE
#undef COUNT
    broker->counted_takeovers = (uint32_t)takeovers;
}

/* ---- Serving */

static const char *not_ready(void *opaque)
{
    struct broker *broker = opaque;
    struct shard *shard;

    if (broker->phase == BROKER_DRAINING)
        return "draining";
    if (broker->phase != BROKER_RUNNING || !broker->elected)
        return "waiting for Kafka's election";
    LIST_FOREACH(shard, &broker->shards, next)
    {
        if (shard->owner != NULL && owner_stats(shard->owner).live)
            continue;
        (void)snprintf(broker->not_ready, sizeof(broker->not_ready), "shard %u %s%s", shard->number,
                       shard->waits_for[0] != 0 ? "waits: " : "is being taken over",
                       shard->waits_for);
        return broker->not_ready;
    }
    return NULL;
}

static void on_request(struct http_request *request, void *opaque)
{
    static const char text[] = "there are /metrics, /healthz and /readyz\n";
    const struct http_header header = {"Content-Type", "text/plain; charset=utf-8"};
    struct broker *broker = opaque;
    const struct metrics_pages pages = {
        .metrics = broker->metrics, .not_ready = not_ready, .opaque = broker};

    if (strcmp(http_request_target(request), "/metrics") == 0)
        broker_gather(broker);
    if (!metrics_pages_answer(&pages, &request))
        http_request_answer(&request, 404, &header, 1, text, sizeof(text) - 1);
}

int watch_open(struct broker *broker, struct err *err)
{
    const struct metrics_options metrics = {
        .prefix = "headrace_",
        .prefix_again = broker->settings.metrics_prefix[0] != 0 ? broker->settings.metrics_prefix
                                                                : NULL,
        .rows = metric_rows,
        .row_count = COUNT_OF(metric_rows),
    };
    const struct http_server_options http = {.address = broker->settings.listen,
                                             .port = (uint16_t)broker->settings.port,
                                             .server_name = "headrace"};
    int r = metrics_open(&metrics, &broker->metrics, err);

    if (r == 0)
        r = http_server_open(broker->loop, &http, on_request, broker, &broker->http, err);
    if (r < 0)
        return r;
    broker->flush_seconds = metrics_of(broker->metrics, BROKER_METRIC_broker_flush_seconds);
    broker->flush_jobs = metrics_of(broker->metrics, BROKER_METRIC_broker_flush_jobs);
    log_info("listening", LOG_STR("address", broker->settings.listen),
             LOG_U64("port", http_server_port(broker->http)));
    return 0;
}

void watch_close(struct broker *broker)
{
    http_server_close(&broker->http);
    metrics_close(&broker->metrics);
}
