/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Start: is the dispatch topic there (make it if not) -> its partition of ours -> where that ends
 * -> a reader from there -> the core knows its position and says Hello. The end is asked for here
 * because librdkafka, told to find it, waits half a second when it does not know the leader yet.
 *
 * Failures: while Kafka is away everything waits and is tried again, a running job goes on; what
 * must be told is kept until it is. A reader that is dead (the topic was made anew) ends this boot:
 * what it missed is not known here.
 */

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "brokers/fault.h"
#include "schema/topics.h"
#include "workers/worker_int.h"

#define QUEUE_TIMEOUT_MS 10000
#define QUEUE_AGAIN_MS 500
#define QUEUE_RETRY_MS 100
#define QUEUE_CLIENT_ID_SIZE 96

/* ---- out ---- */

static void parcel_free(struct parcel **parcel_p)
{
    struct parcel *parcel = TAKE(*parcel_p);

    if (parcel == NULL)
        return;
    LIST_REMOVE(parcel, all);
    buf_done(&parcel->bytes);
    free(parcel);
}

static void parcel_wait(struct parcel *parcel)
{
    struct worker *worker = parcel->worker;

    STAILQ_INSERT_TAIL(&worker->retry, parcel, again);
    if (!loop_timer_is_running(worker->retry_timer))
        loop_timer_start(worker->retry_timer, QUEUE_RETRY_MS, 0);
}

static void parcel_on_report(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct parcel *parcel = opaque;
    struct worker *worker = parcel->worker;

    (void)tag;
    if (report->code != ERR_OK) {
        log_warn("message_not_reported", LOG_STR("message", message_type_name(parcel->type)),
                 LOG_STR("code", err_name(report->code)), LOG_STR("error", report->why));
        parcel_wait(parcel);
        return;
    }
    if (parcel->type == MESSAGE_FINISHED)
        fault_point(FAULT_worker_reported);
    worker_tick(worker);
    if (parcel->type == MESSAGE_FINISHED)
        worker_core_on_finished_reported(worker->core, parcel->token);
    else if (parcel->type == MESSAGE_HELLO)
        worker_core_on_hello_reported(worker->core);
    else if (parcel->type == MESSAGE_BYE)
        worker_core_on_bye_reported(worker->core);
    if (parcel->type == MESSAGE_HELLO)
        worker_say(worker,
                   json_pack("{s:s, s:s, s:I, s:I, s:s, s:i}", "event", "ready", "worker",
                             worker->settings.worker, "boot", (json_int_t)worker->options.boot,
                             "pid", (json_int_t)worker->options.pid, "engine",
                             worker->loaded.engine, "slots", (int)worker->options.slot_count));
    parcel_free(&parcel);
    worker_act(worker);
}

static void parcel_send(struct parcel *parcel)
{
    struct worker *worker = parcel->worker;
    const struct queue_message message = {
        .topic = worker->outcome,
        .partition = worker->options.shard,
        .bytes = parcel->bytes.bytes,
        .size = parcel->bytes.size,
        .done = parcel_on_report,
        .opaque = parcel,
        .tag = parcel->token,
    };
    struct err err;

    if (queue_produce(worker->producer, &message, &err) < 0) {
        log_warn("message_not_taken", LOG_STR("message", message_type_name(parcel->type)),
                 LOG_ERR(&err));
        parcel_wait(parcel);
    }
}

static void queue_on_retry(void *opaque)
{
    struct worker *worker = opaque;
    STAILQ_HEAD(, parcel) waiting = STAILQ_HEAD_INITIALIZER(waiting);
    struct parcel *parcel;

    STAILQ_CONCAT(&waiting, &worker->retry);
    while ((parcel = STAILQ_FIRST(&waiting)) != NULL) {
        STAILQ_REMOVE_HEAD(&waiting, again);
        parcel_send(parcel);
    }
}

void worker_produce(struct worker *worker, enum message_type type, const void *fields,
                    uint64_t token)
{
    bool must = type == MESSAGE_FINISHED || type == MESSAGE_HELLO || type == MESSAGE_BYE;
    OWNED(parcel_free) struct parcel *parcel = xcalloc(1, sizeof(*parcel));
    struct err err;
    int r;

    *parcel = (struct parcel){.worker = worker, .type = type, .token = token};
    LIST_INSERT_HEAD(&worker->parcels, parcel, all);
    buf_init(&parcel->bytes, QUEUE_RECORD_MAX);
    r = message_encode(type, fields, &parcel->bytes, &err);
    if (r == 0 && must) {
        parcel_send(TAKE(parcel));
        if (type == MESSAGE_FINISHED)
            fault_point(FAULT_worker_finished);
        return;
    }
    if (r == 0) {
        const struct queue_message message = {.topic = worker->outcome,
                                              .partition = worker->options.shard,
                                              .bytes = parcel->bytes.bytes,
                                              .size = parcel->bytes.size};

        r = queue_produce(worker->producer, &message, &err);
    }
    if (r < 0)
        log_error("message_dropped", LOG_STR("message", message_type_name(type)), LOG_ERR(&err));
}

/* ---- standby ---- */

/* The core says Hello when it is told what has been read: in standby it is not told. */
void worker_queue_tell_warm(struct worker *worker)
{
    if (!worker->standby || worker->told_warm || !worker->standby_reads ||
        !worker_core_stats(worker->core).host_ready)
        return;
    worker->told_warm = true;
    log_info("worker_waits");
    worker_say(worker, json_pack("{s:s, s:s, s:I, s:I}", "event", "warm", "worker",
                                 worker->settings.worker, "boot", (json_int_t)worker->options.boot,
                                 "pid", (json_int_t)worker->options.pid));
}

static bool queue_stands_by(struct worker *worker, uint64_t position)
{
    if (!worker->standby)
        return false;
    worker->standby_position = position;
    worker->standby_reads = true;
    worker_queue_tell_warm(worker);
    return true;
}

void worker_queue_serve(struct worker *worker)
{
    if (!worker->standby)
        return;
    worker->standby = false;
    log_info("worker_serves");
    worker_tick(worker);
    if (worker->standby_reads)
        worker_core_on_read(worker->core, worker->standby_position);
    worker_act(worker);
}

/* ---- in ---- */

static void queue_on_records(void *opaque, const struct queue_record *records, size_t record_count)
{
    struct worker *worker = opaque;
    uint64_t position = (uint64_t)records[record_count - 1].offset + 1;
    struct message message;
    struct err err;

    if (queue_stands_by(worker, position))
        return; /* none of it is for this boot: nobody knows of it */
    worker_tick(worker);
    for (size_t i = 0; i < record_count; i++) {
        if (message_decode(worker->decoder, records[i].bytes, records[i].size, &message, &err) <
            0) {
            worker->unreadable_records++;
            log_warn("record_unreadable", LOG_I64("offset", records[i].offset), LOG_ERR(&err));
        } else if (message.type == MESSAGE_ATTEMPT) {
            worker_core_on_attempt(worker->core, &message.attempt);
        } else if (message.type == MESSAGE_REVOKE) {
            worker_core_on_revoke(worker->core, &message.revoke);
        }
    }
    worker_core_on_read(worker->core, position);
    fault_point(FAULT_worker_read);
    worker_act(worker);
}

static void queue_on_end(void *opaque, int64_t offset)
{
    struct worker *worker = opaque;

    if (queue_stands_by(worker, (uint64_t)offset))
        return;
    worker_tick(worker);
    worker_core_on_read(worker->core, (uint64_t)offset);
    worker_act(worker);
}

static void queue_on_reader_error(void *opaque, const struct err *err)
{
    struct worker *worker = opaque;

    log_warn("dispatch_unreadable", LOG_STR("topic", worker->dispatch), LOG_ERR(err));
    if (err_class(err->code) == ERR_CLASS_RETRY)
        return;
    worker_leave(worker, 3);
}

/* ---- start ---- */

static void queue_again(struct worker *worker, const struct err *err)
{
    log_warn("kafka_not_ready", LOG_STR("topic", worker->dispatch), LOG_ERR(err));
    loop_timer_start(worker->connect_timer, QUEUE_AGAIN_MS, 0);
}

static void queue_on_made(void *opaque, const struct err *err)
{
    struct worker *worker = opaque;

    if (err != NULL)
        queue_again(worker, err);
    else
        loop_timer_start(worker->connect_timer, 0, 0);
}

/* The partition's end is where this boot begins: what was written before is for others. */
static void queue_on_ends(void *opaque, int64_t begin, int64_t end, const struct err *err)
{
    static const struct queue_reader_calls calls = {
        .on_records = queue_on_records, .on_end = queue_on_end, .on_error = queue_on_reader_error};
    struct worker *worker = opaque;
    struct err mine;

    (void)begin;
    if (err != NULL) {
        queue_again(worker, err);
        return;
    }
    if (queue_reader_open(worker->consumer, worker->dispatch, worker->options.partition, end,
                          &calls, worker, &worker->reader, &mine) < 0) {
        log_error("dispatch_unreadable", LOG_STR("topic", worker->dispatch), LOG_ERR(&mine));
        worker_leave(worker, 2);
        return;
    }
    queue_on_end(worker, end);
}

static void queue_on_about(void *opaque, const char *cluster_id, uint32_t partition_count,
                           const struct err *err)
{
    struct worker *worker = opaque;
    const struct queue_topic_spec spec = {.name = worker->dispatch,
                                          .partition_count = (uint32_t)worker->settings.partitions,
                                          .retention_ms = topic_retention_ms(TOPIC_DISPATCH),
                                          .append_time = topic_append_time(TOPIC_DISPATCH)};

    (void)cluster_id;
    if (err != NULL) {
        queue_again(worker, err);
        return;
    }
    if (partition_count == 0) {
        queue_admin_ensure(worker->admin, &spec, 1, QUEUE_TIMEOUT_MS, queue_on_made, worker);
        return;
    }
    worker->options.partition = topic_dispatch_partition(worker->settings.worker, partition_count);
    worker_core_set_partition(worker->core, worker->options.partition);
    queue_admin_ends(worker->admin, worker->dispatch, worker->options.partition, QUEUE_TIMEOUT_MS,
                     queue_on_ends, worker);
}

static void queue_on_connect(void *opaque)
{
    struct worker *worker = opaque;

    queue_admin_about(worker->admin, worker->dispatch, QUEUE_TIMEOUT_MS, queue_on_about, worker);
}

int worker_queue_open(struct worker *worker, struct err *err)
{
    char client_id[QUEUE_CLIENT_ID_SIZE];
    struct queue_producer_options options = {
        .queue = {.bootstrap = worker->settings.kafka,
                  .client_id = client_id,
                  .properties = worker->settings.kafka_properties,
                  .steady = true}};
    int r;

    (void)snprintf(client_id, sizeof(client_id), "worker-%s", worker->settings.worker);
    STAILQ_INIT(&worker->retry);
    LIST_INIT(&worker->parcels);
    worker->retry_timer = loop_timer_new(worker->loop, queue_on_retry, worker);
    worker->connect_timer = loop_timer_new(worker->loop, queue_on_connect, worker);
    worker->decoder = wire_decoder_new();
    r = topic_dispatch_name(WIRE_TEXT_OF(worker->settings.pool), worker->dispatch, err);
    if (r == 0)
        r = queue_admin_open(worker->loop, &options.queue, &worker->admin, err);
    if (r == 0)
        r = queue_producer_open(worker->loop, &options, &worker->producer, err);
    if (r == 0)
        r = queue_consumer_open(worker->loop, &options.queue, &worker->consumer, err);
    if (r < 0)
        return r;
    worker->outcome = queue_producer_topic(worker->producer, topic_name(TOPIC_OUTCOME));
    loop_timer_start(worker->connect_timer, 0, 0);
    return 0;
}

void worker_queue_close(struct worker *worker)
{
    struct parcel *parcel;

    queue_reader_close(&worker->reader);
    queue_consumer_close(&worker->consumer);
    queue_producer_close(&worker->producer);
    queue_admin_close(&worker->admin);
    while ((parcel = LIST_FIRST(&worker->parcels)) != NULL)
        parcel_free(&parcel);
    wire_decoder_free(&worker->decoder);
    loop_timer_free(&worker->retry_timer);
    loop_timer_free(&worker->connect_timer);
}
