/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What we need of a Kafka server, asked of a real one with the client library that we ship.
 * The versions of both are chosen by this program: a new one is taken when it passes.
 *
 *     kafka_smoke BROKERS
 *
 * Steps: make a topic whose time is the server's append time; produce lz4 records by an
 * idempotent producer with acks=all; fetch them from a given offset without a group, twice;
 * join a group of two members cooperatively and let one leave; read both watermarks.
 * Prints a line a step; the first failure ends it with exit code 1.
 */

#include <librdkafka/rdkafka.h>

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PARTITION_COUNT = 4, RECORD_COUNT = 4000, RECORD_SIZE = 256, WAIT_MS = 20000 };

static const char *brokers;
static char topic[64];

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail(__LINE__, __VA_ARGS__);                                                           \
    } while (0)

__attribute__((noreturn, format(printf, 2, 3))) static void fail(int line, const char *fmt, ...)
{
    va_list args;

    fprintf(stderr, "kafka_smoke: line %d: ", line);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* A client with the given settings, as name and value in turn, ended by NULL. */
static rd_kafka_t *client_new(rd_kafka_type_t type, ...)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char text[512];
    const char *name;
    rd_kafka_t *client;
    va_list args;

    CHECK(rd_kafka_conf_set(conf, "bootstrap.servers", brokers, text, sizeof(text)) ==
              RD_KAFKA_CONF_OK,
          "%s", text);
    va_start(args, type);
    while ((name = va_arg(args, const char *)) != NULL) {
        const char *value = va_arg(args, const char *);

        CHECK(rd_kafka_conf_set(conf, name, value, text, sizeof(text)) == RD_KAFKA_CONF_OK, "%s",
              text);
    }
    va_end(args);
    client = rd_kafka_new(type, conf, text, sizeof(text));
    CHECK(client != NULL, "%s", text);
    return client;
}

static void make_topic(void)
{
    rd_kafka_t *client = client_new(RD_KAFKA_PRODUCER, NULL);
    rd_kafka_queue_t *queue = rd_kafka_queue_new(client);
    char text[512];
    rd_kafka_NewTopic_t *wanted = rd_kafka_NewTopic_new(topic, PARTITION_COUNT, 1, text,
                                                        sizeof(text));
    const rd_kafka_topic_result_t **results;
    rd_kafka_event_t *event;
    size_t count;

    CHECK(wanted != NULL, "%s", text);
    rd_kafka_NewTopic_set_config(wanted, "message.timestamp.type", "LogAppendTime");
    rd_kafka_CreateTopics(client, &wanted, 1, NULL, queue);
    event = rd_kafka_queue_poll(queue, WAIT_MS);
    CHECK(event != NULL, "the topic was not made in %d ms", WAIT_MS);
    CHECK(rd_kafka_event_error(event) == RD_KAFKA_RESP_ERR_NO_ERROR, "make topic: %s",
          rd_kafka_event_error_string(event));
    results = rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(event),
                                                  &count);
    CHECK(count == 1 && rd_kafka_topic_result_error(results[0]) == RD_KAFKA_RESP_ERR_NO_ERROR,
          "make topic: %s", rd_kafka_topic_result_error_string(results[0]));
    rd_kafka_event_destroy(event);
    rd_kafka_NewTopic_destroy(wanted);
    rd_kafka_queue_destroy(queue);
    rd_kafka_destroy(client);
    printf("topic: %d partitions, append time\n", PARTITION_COUNT);
}

static int report_count;

static void on_report(rd_kafka_t *client, const rd_kafka_message_t *message, void *opaque)
{
    (void)client;
    (void)opaque;
    CHECK(message->err == RD_KAFKA_RESP_ERR_NO_ERROR, "a record was not taken: %s",
          rd_kafka_err2str(message->err));
    CHECK(message->offset >= 0, "a report without an offset");
    report_count++;
}

/* Record i goes to partition i % PARTITION_COUNT, so each has its own rising numbers. */
static void produce(void)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    static const char *const settings[][2] = {
        {"acks", "all"},
        {"enable.idempotence", "true"},
        {"compression.codec", "lz4"},
        {"linger.ms", "2"},
    };
    char text[512];
    char body[RECORD_SIZE];
    rd_kafka_t *client;

    CHECK(rd_kafka_conf_set(conf, "bootstrap.servers", brokers, text, sizeof(text)) ==
              RD_KAFKA_CONF_OK,
          "%s", text);
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
        CHECK(rd_kafka_conf_set(conf, settings[i][0], settings[i][1], text, sizeof(text)) ==
                  RD_KAFKA_CONF_OK,
              "%s", text);
    rd_kafka_conf_set_dr_msg_cb(conf, on_report);
    client = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof(text));
    CHECK(client != NULL, "%s", text);
    memset(body, 'x', sizeof(body));
    for (int i = 0; i < RECORD_COUNT; i++) {
        snprintf(body, sizeof(body), "record %d", i);
        rd_kafka_resp_err_t code = rd_kafka_producev(
            client, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_PARTITION(i % PARTITION_COUNT),
            RD_KAFKA_V_VALUE(body, sizeof(body)), RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
            RD_KAFKA_V_END);
        CHECK(code == RD_KAFKA_RESP_ERR_NO_ERROR, "produce: %s", rd_kafka_err2str(code));
    }
    CHECK(rd_kafka_flush(client, WAIT_MS) == RD_KAFKA_RESP_ERR_NO_ERROR, "flush ran out of time");
    CHECK(report_count == RECORD_COUNT, "%d reports for %d records", report_count, RECORD_COUNT);
    rd_kafka_destroy(client);
    printf("produce: %d records, lz4, idempotent, acks=all\n", RECORD_COUNT);
}

/* Reads one partition from the given offset to its end, as an owner reads after a takeover. */
static void fetch(int partition, int64_t start)
{
    rd_kafka_t *client = client_new(RD_KAFKA_CONSUMER, "group.id", "smoke-unused",
                                    "auto.offset.reset", "error", "enable.auto.commit", "false",
                                    "enable.partition.eof", "true", "check.crcs", "true", NULL);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    int64_t deadline = now_ms() + WAIT_MS;
    int64_t next = start;
    bool ended = false;

    rd_kafka_topic_partition_list_add(list, topic, partition)->offset = start;
    CHECK(rd_kafka_assign(client, list) == RD_KAFKA_RESP_ERR_NO_ERROR, "assign");
    while (!ended) {
        rd_kafka_message_t *message = rd_kafka_consumer_poll(client, 100);
        rd_kafka_timestamp_type_t kind;
        char expected[32];

        CHECK(now_ms() < deadline, "partition %d was not read in %d ms", partition, WAIT_MS);
        if (message == NULL)
            continue;
        if (message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
            ended = true;
        } else {
            CHECK(message->err == RD_KAFKA_RESP_ERR_NO_ERROR, "fetch: %s",
                  rd_kafka_message_errstr(message));
            CHECK(message->offset == next, "offset %" PRId64 ", not %" PRId64, message->offset,
                  next);
            snprintf(expected, sizeof(expected), "record %d",
                     (int)next * PARTITION_COUNT + partition);
            CHECK(message->len == RECORD_SIZE && strcmp(message->payload, expected) == 0,
                  "offset %" PRId64 " holds another record", next);
            rd_kafka_message_timestamp(message, &kind);
            CHECK(kind == RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME, "no append time");
            next++;
        }
        rd_kafka_message_destroy(message);
    }
    CHECK(next == RECORD_COUNT / PARTITION_COUNT, "read up to %" PRId64, next);
    rd_kafka_topic_partition_list_destroy(list);
    rd_kafka_consumer_close(client);
    rd_kafka_destroy(client);
    printf("fetch: partition %d from offset %" PRId64 "\n", partition, start);
}

static rd_kafka_t *member_new(const char *name)
{
    rd_kafka_t *client = client_new(
        RD_KAFKA_CONSUMER, "group.id", topic, "client.id", name, "auto.offset.reset", "earliest",
        "enable.auto.commit", "false", "partition.assignment.strategy", "cooperative-sticky",
        "session.timeout.ms", "6000", "heartbeat.interval.ms", "500", NULL);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);

    rd_kafka_poll_set_consumer(client);
    rd_kafka_topic_partition_list_add(list, topic, RD_KAFKA_PARTITION_UA);
    CHECK(rd_kafka_subscribe(client, list) == RD_KAFKA_RESP_ERR_NO_ERROR, "subscribe");
    rd_kafka_topic_partition_list_destroy(list);
    return client;
}

static int member_partition_count(rd_kafka_t *member)
{
    rd_kafka_topic_partition_list_t *list;
    rd_kafka_message_t *message = rd_kafka_consumer_poll(member, 20);
    int count;

    if (message != NULL)
        rd_kafka_message_destroy(message);
    CHECK(rd_kafka_assignment(member, &list) == RD_KAFKA_RESP_ERR_NO_ERROR, "assignment");
    count = list->cnt;
    rd_kafka_topic_partition_list_destroy(list);
    return count;
}

static void group(void)
{
    int64_t started = now_ms();
    rd_kafka_t *one = member_new("one");
    rd_kafka_t *two;

    while (member_partition_count(one) != PARTITION_COUNT)
        CHECK(now_ms() < started + WAIT_MS, "the only member did not get every partition");
    printf("group: one member has all after %" PRId64 " ms\n", now_ms() - started);

    started = now_ms();
    two = member_new("two");
    for (int of_one = 0, of_two = 0; of_one != 2 || of_two != 2;) {
        of_one = member_partition_count(one);
        of_two = member_partition_count(two);
        CHECK(now_ms() < started + WAIT_MS, "two members hold %d and %d", of_one, of_two);
    }
    printf("group: two members share after %" PRId64 " ms\n", now_ms() - started);

    started = now_ms();
    rd_kafka_consumer_close(two);
    rd_kafka_destroy(two);
    while (member_partition_count(one) != PARTITION_COUNT)
        CHECK(now_ms() < started + WAIT_MS, "the other's partitions did not come back");
    printf("group: the other left, all are back after %" PRId64 " ms\n", now_ms() - started);
    rd_kafka_consumer_close(one);
    rd_kafka_destroy(one);
}

static void watermarks(void)
{
    rd_kafka_t *client = client_new(RD_KAFKA_PRODUCER, NULL);
    int64_t low;
    int64_t high;
    rd_kafka_resp_err_t code = rd_kafka_query_watermark_offsets(client, topic, 1, &low, &high,
                                                                WAIT_MS);

    CHECK(code == RD_KAFKA_RESP_ERR_NO_ERROR, "watermarks: %s", rd_kafka_err2str(code));
    CHECK(low == 0 && high == RECORD_COUNT / PARTITION_COUNT, "watermarks %" PRId64 " %" PRId64,
          low, high);
    rd_kafka_destroy(client);
    printf("watermarks: 0 and %" PRId64 "\n", high);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: kafka_smoke BROKERS\n");
        return 1;
    }
    brokers = argv[1];
    snprintf(topic, sizeof(topic), "smoke-%" PRId64, now_ms());
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("client: librdkafka %s\n", rd_kafka_version_str());
    make_topic();
    produce();
    fetch(0, 0);
    fetch(3, 700);
    group();
    watermarks();
    printf("kafka_smoke: ok\n");
    return 0;
}
