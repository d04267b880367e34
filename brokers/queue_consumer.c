/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Reads partitions from explicit offsets. Each reader has a queue of its own inside librdkafka, so
 * closing one drops exactly its records, and pausing one means not to look into its queue.
 *
 * Happy path: on_records with up to QUEUE_BATCH_MAX records a turn of the loop; on_end when the
 * log's end is met.
 *
 * Failures: a start offset that is not in the log, a topic that does not exist or may not be read:
 * on_error, and the reader is dead. Kafka away: librdkafka connects again and goes on at the same
 * offset; a topic that was there and is missing in the metadata (a broker that has just started)
 * counts as away.
 *
 * fetch.wait.max.ms is low because one client has one fetch under way per broker: a reader that is
 * added waits for the answer of the fetch that does not know it yet. A steady client adds none for
 * long, and each of its fetches costs Kafka as much when nothing comes: it waits longer.
 *
 * Thread: the loop's.   Tests: tests/unit/test_queue.c
 */

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/loop.h"
#include "brokers/queue_kafka.h"

struct queue_consumer {
    struct loop *loop;
    rd_kafka_t *client;
    rd_kafka_queue_t *main_queue;
    struct queue_pump *pump;
    uint32_t reader_count;
};

struct queue_reader {
    struct queue_consumer *consumer;
    rd_kafka_topic_t *topic;
    uint32_t partition;
    rd_kafka_queue_t *queue;
    struct queue_pump *pump;
    const struct queue_reader_calls *calls;
    void *opaque;
    int64_t position;
    bool started, paused, dead, in_call, closed;
};

static const struct queue_property consumer_properties[] = {
    {"enable.auto.commit", "false"},
    {"enable.partition.eof", "true"},
    {"auto.offset.reset", "error"},
    {"fetch.error.backoff.ms", "50"},
    {"fetch.message.max.bytes", "1048576"},
    {"queued.min.messages", "20000"},
    {"queued.max.messages.kbytes", "16384"},
    {"allow.auto.create.topics", "false"},
    {NULL, NULL},
};

/* ---- The client */

/* Nothing is expected here: errors of partitions come through their readers. It must be emptied
 * all the same. */
static void consumer_pumped(void *opaque)
{
    struct queue_consumer *consumer = opaque;

    (void)rd_kafka_poll(consumer->client, 0);
}

static void on_error_ignored(rd_kafka_t *client, int code, const char *reason, void *opaque)
{
    (void)client, (void)code, (void)reason, (void)opaque;
}

int queue_consumer_open(struct loop *loop, const struct queue_options *options,
                        struct queue_consumer **ret_consumer, struct err *err)
{
    OWNED(queue_consumer_close) struct queue_consumer *consumer = xcalloc(1, sizeof(*consumer));
    struct queue_property own[COUNT_OF(consumer_properties) + 1] = {
        {"fetch.wait.max.ms", options->steady ? "500" : "100"}};
    rd_kafka_conf_t *conf;
    int r;

    consumer->loop = loop;
    memcpy(own + 1, consumer_properties, sizeof(consumer_properties));
    r = queue_conf_new(options, own, &conf, err);
    if (r < 0)
        return r;
    rd_kafka_conf_set_error_cb(conf, on_error_ignored);
    r = queue_client_new(RD_KAFKA_CONSUMER, conf, &consumer->client, err);
    if (r < 0)
        return r;
    consumer->main_queue = rd_kafka_queue_get_main(consumer->client);
    r = queue_pump_new(loop, consumer->main_queue, consumer_pumped, consumer, &consumer->pump, err);
    if (r < 0)
        return r;
    *ret_consumer = TAKE(consumer);
    return 0;
}

void queue_consumer_close(struct queue_consumer **consumer_p)
{
    struct queue_consumer *consumer = TAKE(*consumer_p);

    if (consumer == NULL)
        return;
    assert(consumer->reader_count == 0);
    queue_pump_free(&consumer->pump);
    if (consumer->main_queue != NULL)
        rd_kafka_queue_destroy(consumer->main_queue);
    if (consumer->client != NULL)
        rd_kafka_destroy(consumer->client);
    free(consumer);
}

/* ---- A reader */

static void reader_destroy(struct queue_reader *reader)
{
    queue_pump_free(&reader->pump);
    if (reader->started)
        (void)rd_kafka_consume_stop(reader->topic, (int32_t)reader->partition);
    if (reader->queue != NULL)
        rd_kafka_queue_destroy(reader->queue);
    if (reader->topic != NULL)
        rd_kafka_topic_destroy(reader->topic);
    reader->consumer->reader_count--;
    free(reader);
}

void queue_reader_close(struct queue_reader **reader_p)
{
    struct queue_reader *reader = TAKE(*reader_p);

    if (reader == NULL)
        return;
    reader->closed = true;
    if (!reader->in_call)
        reader_destroy(reader);
}

static void reader_hand_out(struct queue_reader *reader, struct queue_record *records,
                            size_t *record_count_p)
{
    size_t record_count = *record_count_p;

    *record_count_p = 0;
    if (record_count == 0 || reader->closed)
        return;
    reader->position = records[record_count - 1].offset + 1;
    reader->calls->on_records(reader->opaque, records, record_count);
}

static void reader_failed(struct queue_reader *reader, const rd_kafka_message_t *message)
{
    int code = queue_code(message->err);
    struct err err;

    if (code == ERR_NOT_FOUND && reader->position >= 0)
        code = ERR_UNAVAILABLE;
    (void)err_set(&err, code, "read %s[%u] from %lld: %s", rd_kafka_topic_name(reader->topic),
                  reader->partition, (long long)reader->position, rd_kafka_message_errstr(message));
    reader->dead = err_class(code) != ERR_CLASS_RETRY;
    reader->calls->on_error(reader->opaque, &err);
}

static struct queue_record record_of(const rd_kafka_message_t *message)
{
    rd_kafka_timestamp_type_t timestamp_type;
    int64_t timestamp_ms = rd_kafka_message_timestamp(message, &timestamp_type);

    return (struct queue_record){
        .offset = message->offset,
        .append_us = timestamp_ms > 0 ? (uint64_t)timestamp_ms * 1000 : 0,
        .key = message->key,
        .key_size = message->key_len,
        .bytes = message->payload,
        .size = message->len,
        .origin = message,
    };
}

size_t queue_record_headers(const struct queue_record *record, struct queue_header *headers,
                            size_t room)
{
    rd_kafka_headers_t *list;
    size_t count = 0;

    if (record->origin == NULL || /* made by a test: librdkafka looks behind what it has given */
        rd_kafka_message_headers(record->origin, &list) != RD_KAFKA_RESP_ERR_NO_ERROR)
        return 0;
    while (count < room &&
           rd_kafka_header_get_all(list, count, &headers[count].name, &headers[count].value,
                                   &headers[count].size) == RD_KAFKA_RESP_ERR_NO_ERROR)
        count++;
    return count;
}

/* Records in one call as far as they follow each other; ends and errors between them in order. */
static void reader_deliver(struct queue_reader *reader, rd_kafka_message_t **messages,
                           size_t message_count)
{
    struct queue_record records[QUEUE_BATCH_MAX];
    size_t record_count = 0;

    for (size_t i = 0; i < message_count && !reader->closed && !reader->dead; i++) {
        const rd_kafka_message_t *message = messages[i];

        if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR) {
            records[record_count++] = record_of(message);
            continue;
        }
        reader_hand_out(reader, records, &record_count);
        if (reader->closed)
            break;
        if (message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
            reader->position = message->offset;
            reader->calls->on_end(reader->opaque, message->offset);
        } else {
            reader_failed(reader, message);
        }
    }
    reader_hand_out(reader, records, &record_count);
}

static void reader_pumped(void *opaque)
{
    struct queue_reader *reader = opaque;
    rd_kafka_message_t *messages[QUEUE_BATCH_MAX];
    ssize_t message_count;

    if (reader->paused || reader->dead)
        return;
    message_count = rd_kafka_consume_batch_queue(reader->queue, 0, messages, QUEUE_BATCH_MAX);
    if (message_count <= 0)
        return;
    reader->in_call = true;
    reader_deliver(reader, messages, (size_t)message_count);
    reader->in_call = false;
    for (ssize_t i = 0; i < message_count; i++)
        rd_kafka_message_destroy(messages[i]);
    if (reader->closed)
        reader_destroy(reader);
    else
        queue_pump_again(reader->pump); /* the queue may hold more than one batch */
}

int queue_reader_open(struct queue_consumer *consumer, const char *topic, uint32_t partition,
                      int64_t start_offset, const struct queue_reader_calls *calls, void *opaque,
                      struct queue_reader **ret_reader, struct err *err)
{
    OWNED(queue_reader_close) struct queue_reader *reader = xcalloc(1, sizeof(*reader));
    int r;

    assert(start_offset >= QUEUE_OFFSET_BEGIN);
    consumer->reader_count++;
    reader->consumer = consumer;
    reader->partition = partition;
    reader->calls = calls;
    reader->opaque = opaque;
    reader->position = start_offset >= 0 ? start_offset : -1;
    reader->topic = rd_kafka_topic_new(consumer->client, topic, NULL);
    if (reader->topic == NULL)
        return err_set(err, queue_code(rd_kafka_last_error()), "topic '%s': %s", topic,
                       rd_kafka_err2str(rd_kafka_last_error()));
    reader->queue = rd_kafka_queue_new(consumer->client);
    r = queue_pump_new(consumer->loop, reader->queue, reader_pumped, reader, &reader->pump, err);
    if (r < 0)
        return r;
    /* librdkafka's words for the ends of the log are -2 and -1, as ours. */
    if (rd_kafka_consume_start_queue(reader->topic, (int32_t)partition, start_offset,
                                     reader->queue) != 0)
        return err_set(err, queue_code(rd_kafka_last_error()), "read %s[%u]: %s", topic, partition,
                       rd_kafka_err2str(rd_kafka_last_error()));
    reader->started = true;
    *ret_reader = TAKE(reader);
    return 0;
}

int64_t queue_reader_position(const struct queue_reader *reader)
{
    return reader->position;
}

void queue_reader_pause(struct queue_reader *reader)
{
    reader->paused = true;
}

void queue_reader_resume(struct queue_reader *reader)
{
    reader->paused = false;
    queue_pump_again(reader->pump);
}
