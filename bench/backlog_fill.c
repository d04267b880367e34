/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A backlog for `bench/run backlog`: copies of one accepted job, each under an id of its own,
 * straight into `intake`.
 *
 *   backlog_fill KAFKA SHARD OFFSET JOBS
 *
 * OFFSET is that of the job's Submit in the shard's partition. Only the gateway is left out, whose
 * part does not depend on how much waits: the owner reads the copies, and writes their rows, like
 * any others. Ends when Kafka has all of them; exit code 1 if it refused one.
 *
 * One thread.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/loop.h"
#include "base/rng.h"
#include "brokers/queue.h"
#include "schema/job_id.h"
#include "schema/message.h"
#include "schema/topics.h"

#define UNREPORTED_MAX 20000u
#define GROUP_COUNT 1000
#define TURN_MS 1

struct fill {
    struct loop *loop;
    struct queue_producer *producer;
    struct queue_topic *intake;
    struct queue_consumer *consumer;
    struct queue_reader *reader;
    struct loop_timer *timer;
    struct wire_decoder *decoder;
    struct message_submit submit; /* points into `bytes` */
    struct buf bytes, record;
    uint32_t shard;
    uint64_t job_count, produced, reported, refused;
};

static void die(const char *what)
{
    (void)fprintf(stderr, "backlog_fill: %s\n", what);
    exit(2);
}

static void on_report(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct fill *fill = opaque;

    (void)tag;
    fill->refused += report->code != ERR_OK;
    if (++fill->reported == fill->job_count)
        loop_stop(fill->loop);
}

static void copy_produce(struct fill *fill)
{
    uint8_t entropy[JOB_ID_RANDOM_SIZE];
    struct queue_message message = {
        .topic = fill->intake, .partition = fill->shard, .done = on_report, .opaque = fill};
    struct err err;

    rng_secret_bytes(entropy, sizeof(entropy));
    fill->submit.received_us = clock_wall_us();
    fill->submit.id = job_id_make(fill->shard, clock_wall_ms(), entropy);
    buf_clear(&fill->record);
    if (message_encode(MESSAGE_SUBMIT, &fill->submit, &fill->record, &err) < 0)
        die(err.text);
    message.bytes = fill->record.bytes;
    message.size = fill->record.size;
    if (queue_produce(fill->producer, &message, &err) < 0)
        die(err.text);
    fill->produced++;
}

static void on_timer(void *opaque)
{
    struct fill *fill = opaque;

    if (fill->submit.max_attempts == 0)
        return; /* the job to copy was not read yet */
    queue_reader_close(&fill->reader);
    while (fill->produced < fill->job_count && fill->produced - fill->reported < UNREPORTED_MAX)
        copy_produce(fill);
}

static void on_records(void *opaque, const struct queue_record *records, size_t record_count)
{
    struct fill *fill = opaque;
    struct message message;
    struct err err;

    (void)record_count;
    if (fill->submit.max_attempts != 0)
        return;
    buf_append(&fill->bytes, records[0].bytes, records[0].size);
    if (message_decode(fill->decoder, fill->bytes.bytes, fill->bytes.size, &message, &err) < 0)
        die(err.text);
    if (message.type != MESSAGE_SUBMIT)
        die("there is no Submit at that offset");
    fill->submit = message.submit;
}

static void on_end(void *opaque, int64_t offset)
{
    const struct fill *fill = opaque;

    (void)offset;
    if (fill->submit.max_attempts == 0)
        die("the log ends before that offset");
}

static void on_error(void *opaque, const struct err *err)
{
    (void)opaque;
    die(err->text);
}

static void open_all(struct fill *fill, const char *kafka, int64_t offset)
{
    static const struct queue_reader_calls calls = {on_records, on_end, on_error};
    const struct queue_producer_options options = {
        .queue = {.bootstrap = kafka, .client_id = "backlog_fill"}, .group_count = GROUP_COUNT};
    struct err err;

    if (loop_open(&fill->loop, &err) < 0 ||
        queue_producer_open(fill->loop, &options, &fill->producer, &err) < 0 ||
        queue_consumer_open(fill->loop, &options.queue, &fill->consumer, &err) < 0 ||
        queue_reader_open(fill->consumer, topic_name(TOPIC_INTAKE), fill->shard, offset, &calls,
                          fill, &fill->reader, &err) < 0)
        die(err.text);
    fill->intake = queue_producer_topic(fill->producer, topic_name(TOPIC_INTAKE));
    fill->decoder = wire_decoder_new();
    fill->timer = loop_timer_new(fill->loop, on_timer, fill);
    loop_timer_start(fill->timer, TURN_MS, TURN_MS);
}

int main(int argc, char **argv)
{
    struct fill fill = {.shard = 0};

    if (argc != 5)
        die("usage: backlog_fill KAFKA SHARD OFFSET JOBS");
    fill.shard = (uint32_t)strtoul(argv[2], NULL, 10);
    fill.job_count = strtoull(argv[4], NULL, 10);
    if (fill.job_count == 0)
        die("JOBS is a number above 0");
    buf_init(&fill.bytes, QUEUE_RECORD_MAX);
    buf_init(&fill.record, QUEUE_RECORD_MAX);
    open_all(&fill, argv[1], strtoll(argv[3], NULL, 10));
    loop_run(fill.loop);
    if (fill.refused > 0)
        (void)fprintf(stderr, "backlog_fill: Kafka refused %" PRIu64 " of %" PRIu64 "\n",
                      fill.refused, fill.job_count);
    return fill.refused > 0 ? 1 : 0;
}
