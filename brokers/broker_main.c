/* SPDX-License-Identifier: Apache-2.0 */

/*
 * `headrace broker`: owns shards. It reads what was submitted and what workers report, decides,
 * writes the ledger, sends attempts to workers and results to whoever wants them.
 *
 * Happy path: make the topics, join the election, take over every shard that Kafka gives us, serve
 * until SIGTERM. Then leave the group: shards are drained (at most --drain), the others take over
 * within a heartbeat. With --keep-place drain, but stay a member: the same --instance that comes
 * back within the session finds its shards untouched.
 *
 * Failures: Kafka missing at the start: exit code 2 after --start-wait. Postgres or Redis missing:
 * it waits, and says so in /readyz. Another process with our --instance, or the only shard cannot
 * be served by this program: exit code 3; so is a drain that hangs.
 *
 * Order that matters: the end-of-turn call of the broker is made after those of the Kafka producer
 * and of Redis, so that libuv runs it before them, and what the to-dos of a turn add leaves with
 * the same turn.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/rng.h"
#include "base/settings.h"
#include "brokers/broker.h"
#include "brokers/fault.h"
#include "brokers/model_names.h"
#include "schema/topics.h"

#define SCRATCH_SIZE_MAX (2u << 20)
#define TOPICS_TIMEOUT_MS 10000
#define TOPICS_RETRY_MS 500
#define LEAVE_EXTRA_MS 250 /* after the drain, for Kafka's answer */
#define EXIT_DRAINED 0
#define EXIT_USAGE 1
#define EXIT_DEPENDENCY 2
#define EXIT_FATAL 3

int broker_main(int argc, char **argv); /* cli/commands.def */

static const struct setting setting_rows[] = {
#define SETTINGS_ROWS struct broker_settings
#include "base/settings_rows.def"
#include "brokers/broker_settings.def"
#include "base/settings_end.def"
};

static const struct settings_program program = {
    .command = "broker",
    .wire_version = MESSAGE_WIRE_VERSION,
    .purpose = "Owns shards of the ledger: schedules, dispatches, writes, publishes.",
    .rows = setting_rows,
    .row_count = COUNT_OF(setting_rows),
};

struct queue_options broker_queue_options(const struct broker *broker)
{
    return (struct queue_options){
        .bootstrap = broker->settings.kafka,
        .client_id = broker->boot,
        .properties = broker->settings.kafka_properties,
    };
}

bool broker_is_ready(const struct broker *broker)
{
    const struct shard *shard;

    if (broker->phase != BROKER_RUNNING || !broker->elected || broker->revoking)
        return false;
    LIST_FOREACH(shard, &broker->shards, next)
    {
        if (shard->owner == NULL || !owner_stats(shard->owner).live)
            return false;
    }
    return true;
}

static void shards_close(struct broker *broker)
{
    struct shard *shard;

    while ((shard = LIST_FIRST(&broker->shards)) != NULL)
        shard_close(&shard);
}

static bool shards_drained(const struct broker *broker)
{
    const struct shard *shard;

    LIST_FOREACH(shard, &broker->shards, next)
    {
        if (!shard_drained(shard))
            return false;
    }
    return true;
}

/* ---- Election */

static void on_spans_flushed(void *opaque)
{
    struct broker *broker = opaque;

    loop_stop(broker->loop);
}

/* Nothing is ours any more: the end. */
static void on_left(void *opaque)
{
    struct broker *broker = opaque;

    if (!broker->left)
        broker_trace_flush(broker, on_spans_flushed);
    broker->left = true;
}

static void on_assigned(void *opaque, const uint32_t *partitions, size_t partition_count)
{
    struct broker *broker = opaque;

    log_info("elected", LOG_U64("shards", partition_count));
    broker->elected = true;
    if (broker->phase == BROKER_DRAINING)
        return;
    for (size_t i = 0; i < partition_count; i++) {
        if (partitions[i] < BROKER_SHARDS_MAX)
            (void)shard_open(broker, partitions[i]);
    }
}

/* Everything was written and published, or the time for it is over. */
static void revoke_finish(struct broker *broker)
{
    loop_timer_stop(broker->drain_timer);
    broker->revoking = false;
    broker->elected = false;
    shards_close(broker);
    queue_election_release(broker->election);
    if (broker->keeping)
        on_left(broker);
}

static void shards_drain(struct broker *broker)
{
    struct shard *shard;

    broker->revoking = true;
    LIST_FOREACH(shard, &broker->shards, next)
    shard_drain(shard);
    fault_point(FAULT_broker_revoked);
    loop_timer_start(broker->drain_timer, broker->settings.drain_ms, 0);
}

static void on_revoked(void *opaque)
{
    log_info("revoked");
    shards_drain(opaque);
}

static void on_drain_timeout(void *opaque)
{
    struct broker *broker = opaque;

    if (broker->revoking)
        revoke_finish(broker);
}

static void on_lost(void *opaque)
{
    struct broker *broker = opaque;

    log_warn("lost", LOG_STR("why", "the session with Kafka is over; others may own our shards"));
    loop_timer_stop(broker->drain_timer);
    broker->revoking = broker->elected = false;
    shards_close(broker);
    if (broker->keeping)
        on_left(broker);
}

static void on_election_error(void *opaque, const struct err *err)
{
    struct broker *broker = opaque;

    if (err_class(err->code) != ERR_CLASS_FATAL) {
        log_warn("election_disturbed", LOG_ERR(err));
        return;
    }
    log_error("election_failed", LOG_ERR(err));
    shards_close(broker); /* who has our place owns our shards */
    broker->exit_code = EXIT_FATAL;
    loop_end_within(broker->settings.drain_ms + LOOP_END_EXTRA_MS, EXIT_FATAL);
    loop_stop(broker->loop);
}

static const struct queue_election_calls election_calls = {on_assigned, on_revoked, on_lost,
                                                           on_election_error};

static int election_join(struct broker *broker, struct err *err)
{
    const struct queue_election_options options = {
        .queue = broker_queue_options(broker),
        .topic = topic_name(TOPIC_INTAKE),
        .group = broker->settings.group,
        .instance = broker->settings.instance[0] != 0 ? broker->settings.instance : NULL,
        .session_timeout_ms = (uint32_t)broker->settings.session_ms,
    };

    return queue_election_open(broker->loop, &options, &election_calls, broker, &broker->election,
                               err);
}

/* ---- Topics */

static void topics_fail(struct broker *broker, const struct err *err)
{
    if (err_class(err->code) == ERR_CLASS_RETRY && clock_mono_ms() < broker->start_deadline_ms) {
        loop_timer_start(broker->start_timer, TOPICS_RETRY_MS, 0);
        return;
    }
    log_error("start_failed", LOG_ERR(err));
    broker->exit_code = EXIT_DEPENDENCY;
    loop_stop(broker->loop);
}

static void on_topics(void *opaque, const struct err *err)
{
    struct broker *broker = opaque;
    struct err own;

    if (broker->phase != BROKER_STARTING)
        return;
    if (err == NULL && election_join(broker, &own) < 0)
        err = &own;
    if (err != NULL) {
        topics_fail(broker, err);
        return;
    }
    broker->phase = BROKER_RUNNING;
    log_info("started", LOG_U64("wire", MESSAGE_WIRE_VERSION),
             LOG_STR("group", broker->settings.group), LOG_STR("cluster", broker->cluster_id),
             LOG_U64("shards", broker->shard_count));
}

static void topics_ensure(struct broker *broker)
{
    struct queue_topic_spec specs[TOPIC_COUNT];
    size_t spec_count = 0;

    for (enum topic topic = 0; topic < TOPIC_COUNT; topic++) {
        if (topic_partitions(topic) == TOPIC_PARTITIONS_POOL)
            continue; /* made by the first worker of the pool */
        specs[spec_count++] = (struct queue_topic_spec){
            .name = topic_name(topic),
            .partition_count = topic_partitions(topic) == TOPIC_PARTITIONS_ONE
                                   ? 1
                                   : broker->shard_count,
            .retention_ms = topic_retention_ms(topic),
            .append_time = topic_append_time(topic),
            .replica_count = (uint32_t)broker->settings.replicas,
        };
    }
    queue_admin_ensure(broker->admin, specs, spec_count, TOPICS_TIMEOUT_MS, on_topics, broker);
}

static void on_about(void *opaque, const char *cluster_id, uint32_t partition_count,
                     const struct err *err)
{
    struct broker *broker = opaque;

    if (broker->phase != BROKER_STARTING)
        return;
    if (err != NULL) {
        topics_fail(broker, err);
        return;
    }
    free(broker->cluster_id);
    broker->cluster_id = xstrdup(cluster_id);
    broker->shard_count = (uint32_t)broker->settings.shards;
    if (partition_count > broker->shard_count)
        broker->shard_count = partition_count; /* the others must have as many as intake */
    topics_ensure(broker);
}

static void topics_start(void *opaque)
{
    struct broker *broker = opaque;

    queue_admin_about(broker->admin, topic_name(TOPIC_INTAKE), TOPICS_TIMEOUT_MS, on_about, broker);
}

/* ---- Stopping */

void broker_stop(struct broker *broker, int exit_code)
{
    if (broker->phase == BROKER_DRAINING) {
        loop_stop(broker->loop); /* asked twice: at once */
        return;
    }
    log_info("draining");
    if (exit_code != EXIT_DRAINED)
        broker->exit_code = exit_code;
    broker->phase = BROKER_DRAINING;
    loop_end_within(broker->settings.drain_ms + LOOP_END_EXTRA_MS, EXIT_FATAL);
    if (broker->election == NULL) {
        loop_stop(broker->loop);
    } else if (broker->settings.keep_place && exit_code == EXIT_DRAINED) {
        broker->keeping = true;
        shards_drain(broker);
    } else {
        queue_election_leave(broker->election, (uint32_t)broker->settings.drain_ms + LEAVE_EXTRA_MS,
                             on_left);
    }
}

static void on_sigterm(void *opaque)
{
    broker_stop(opaque, EXIT_DRAINED);
}

static void on_sighup(void *opaque)
{
    struct err err;

    (void)opaque;
    if (log_reopen(&err) < 0)
        log_warn("log_not_reopened", LOG_ERR(&err));
}

void broker_give_up(struct shard *shard, const struct err *err)
{
    struct broker *broker = shard->broker;

    log_error("shard_given_up", LOG_U64("shard", shard->number), LOG_ERR(err));
    shard->phase = SHARD_WAITING; /* for ever: nothing starts its timer */
    shard->dirty = true;
    if (LIST_FIRST(&broker->shards) == shard && LIST_NEXT(shard, next) == NULL)
        broker_stop(broker, EXIT_FATAL);
}

static void on_turn(void *opaque)
{
    struct broker *broker = opaque;
    struct shard *shard, *following;

    for (shard = LIST_FIRST(&broker->shards); shard != NULL; shard = following) {
        following = LIST_NEXT(shard, next);
        shard_turn(shard);
    }
    if (broker->revoking && shards_drained(broker))
        revoke_finish(broker);
}

/* ---- From settings to exit code */

static int parts_open(struct broker *broker, struct err *err)
{
    const struct queue_options queue = broker_queue_options(broker);
    const struct queue_producer_options producer = {.queue = queue};
    const struct cache_options cache = {.url = broker->settings.redis};
    int r = watch_open(broker, err);

    if (r == 0)
        r = broker_trace_open(broker, err);
    if (r == 0)
        r = queue_admin_open(broker->loop, &queue, &broker->admin, err);
    if (r == 0)
        r = queue_producer_open(broker->loop, &producer, &broker->producer, err);
    if (r == 0)
        r = queue_consumer_open(broker->loop, &queue, &broker->consumer, err);
    if (r == 0)
        r = cache_open(broker->loop, &cache, &broker->cache, err);
    if (r == 0)
        r = ledger_open(broker, err);
    if (r == 0)
        r = broker_blobs_open(broker, err);
    if (r == 0)
        r = broker_training_open(broker, err);
    if (r < 0)
        return r;
    broker_public_open(broker);
    broker->intake = queue_producer_topic(broker->producer, topic_name(TOPIC_INTAKE));
    broker_limits_open(broker);
    broker_pace_open(broker);
    broker->completed = queue_producer_topic(broker->producer, topic_name(TOPIC_COMPLETED));
    broker->intake_dead = queue_producer_topic(broker->producer, topic_name(TOPIC_INTAKE_DEAD));
    broker->turn = loop_turn_new(broker->loop, on_turn, broker);
    broker->start_timer = loop_timer_new(broker->loop, topics_start, broker);
    broker->drain_timer = loop_timer_new(broker->loop, on_drain_timeout, broker);
    return loop_on_signals(broker->loop, on_sigterm, on_sighup, broker, err);
}

static void parts_close(struct broker *broker)
{
    shards_close(broker);
    queue_election_close(&broker->election);
    loop_turn_free(&broker->turn);
    loop_timer_free(&broker->start_timer);
    loop_timer_free(&broker->drain_timer);
    broker_pace_close(broker);
    ledger_close(broker);
    broker_blobs_close(broker);
    broker_training_close(broker);
    model_names_free(&broker->names);
    broker_limits_close(broker);
    cache_close(&broker->cache);
    queue_consumer_close(&broker->consumer);
    queue_producer_close(&broker->producer);
    queue_admin_close(&broker->admin);
    tracer_close(&broker->tracer);
    watch_close(broker);
    shards_forget(broker);
    publications_forget(broker);
    buf_done(&broker->scratch);
    buf_done(&broker->wake_scratch);
    free(broker->cluster_id);
}

static void boot_name(struct broker *broker)
{
    char host[32] = "";

    (void)gethostname(host, sizeof(host) - 1);
    (void)snprintf(broker->boot, sizeof(broker->boot), "broker-%s-%d", host, (int)getpid());
}

static int broker_run(struct broker *broker, struct err *err)
{
    int r = loop_open(&broker->loop, err);

    if (r < 0)
        return EXIT_FATAL;
    buf_init(&broker->scratch, SCRATCH_SIZE_MAX);
    buf_init(&broker->wake_scratch, SCRATCH_SIZE_MAX);
    boot_name(broker);
    r = parts_open(broker, err);
    if (r == 0) {
        broker->start_deadline_ms = clock_mono_ms() + broker->settings.start_wait_ms;
        loop_timer_start(broker->start_timer, 0, 0);
        loop_run(broker->loop);
    } else {
        log_error("start_failed", LOG_ERR(err));
        broker->exit_code = r == ERR_USAGE ? EXIT_USAGE : EXIT_DEPENDENCY;
    }
    parts_close(broker);
    loop_close(&broker->loop);
    log_info("stopped", LOG_I64("exit_code", broker->exit_code));
    return broker->exit_code;
}

static int settings_check(const struct broker_settings *settings, struct err *err)
{
    if (settings->keep_place && settings->instance[0] == 0)
        return err_set(err, ERR_USAGE, "--keep-place needs --instance: the place has that name");
    return 0;
}

int broker_main(int argc, char **argv)
{
    struct broker broker = {.exit_code = EXIT_DRAINED};
    struct log_options log = {.program = "broker"};
    enum settings_outcome outcome;
    struct err err;
    int code = EXIT_USAGE;

    LIST_INIT(&broker.shards);
    LIST_INIT(&broker.closed_shards);
    TAILQ_INIT(&broker.dropped_publications);
    if (settings_parse(&program, argc, argv, &broker.settings, NULL, &outcome, &err) < 0) {
        (void)fprintf(stderr, "headrace broker: %s\n", err.text);
        return EXIT_USAGE;
    }
    if (outcome == SETTINGS_QUIT) {
        settings_free(&program, &broker.settings);
        return EXIT_DRAINED;
    }
    log.path = broker.settings.log_file[0] != 0 ? broker.settings.log_file : NULL;
    if (settings_check(&broker.settings, &err) < 0 ||
        log_level_parse(broker.settings.log_level, &log.level, &err) < 0 ||
        log_open(&log, &err) < 0) {
        (void)fprintf(stderr, "headrace broker: %s\n", err.text);
    } else {
        code = broker_run(&broker, &err);
        log_close();
    }
    settings_free(&program, &broker.settings);
    return code;
}
