/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What one record costs the Kafka broker, by how many records travel in one request.
 *
 *     kafka_cost BROKERS BROKER_PID [SECONDS [ROUNDS]]
 *
 * Method: one partition, one request in flight, as a shard's owner produces. A produce request
 * holds exactly b records (batch.num.messages). The same log is then read with a fetch limit of
 * one byte, so that each answer holds exactly one batch. CPU is utime + stime of the broker
 * process from /proc, less what it burns when idle; a cell is the median of ROUNDS runs of
 * SECONDS each, after one that is thrown away. Latency:
 * 100 records a second at fixed times, from the produce call to the consumer's hand.
 */

#include <librdkafka/rdkafka.h>

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BODY_SIZE = 256, WAIT_MS = 30000, ROUND_COUNT_MAX = 15, LATENCY_COUNT = 2000 };
enum { IDLE_SECONDS = 5, LATENCY_STEP_US = 10000, WINDOW_REQUESTS = 2 };

static const char *brokers;
static const char *broker_pid;
static double idle_share; /* cores that the broker burns with nothing to do */

struct cell {
    double core_us;    /* of the broker, a record */
    double per_second; /* records */
};

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fputs("kafka_cost: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static int64_t now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* utime + stime of the broker in microseconds. */
static double broker_cpu_us(void)
{
    char path[64];
    char text[1024];
    unsigned long user;
    unsigned long system;
    char *at;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%s/stat", broker_pid);
    file = fopen(path, "r");
    if (file == NULL || fgets(text, sizeof(text), file) == NULL)
        fail("the broker's process %s is gone", broker_pid);
    fclose(file);
    at = strrchr(text, ')');
    if (at == NULL ||
        sscanf(at + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
        fail("%s cannot be read", path);
    return (double)(user + system) * 1e6 / (double)sysconf(_SC_CLK_TCK);
}

static rd_kafka_conf_t *conf_new(const char *const settings[][2], size_t count)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char text[256];

    if (rd_kafka_conf_set(conf, "bootstrap.servers", brokers, text, sizeof(text)) !=
        RD_KAFKA_CONF_OK)
        fail("%s", text);
    for (size_t i = 0; i < count; i++)
        if (rd_kafka_conf_set(conf, settings[i][0], settings[i][1], text, sizeof(text)) !=
            RD_KAFKA_CONF_OK)
            fail("%s", text);
    return conf;
}

static rd_kafka_t *client_new(rd_kafka_type_t type, rd_kafka_conf_t *conf)
{
    char text[256];
    rd_kafka_t *client = rd_kafka_new(type, conf, text, sizeof(text));

    if (client == NULL)
        fail("%s", text);
    return client;
}

static void topic_make(const char *name, bool flush_each)
{
    rd_kafka_t *client = client_new(RD_KAFKA_PRODUCER, conf_new(NULL, 0));
    rd_kafka_queue_t *queue = rd_kafka_queue_new(client);
    char text[256];
    rd_kafka_NewTopic_t *wanted = rd_kafka_NewTopic_new(name, 1, 1, text, sizeof(text));
    rd_kafka_event_t *event;

    if (flush_each)
        rd_kafka_NewTopic_set_config(wanted, "flush.messages", "1");
    rd_kafka_CreateTopics(client, &wanted, 1, NULL, queue);
    event = rd_kafka_queue_poll(queue, WAIT_MS);
    if (event == NULL || rd_kafka_event_error(event) != RD_KAFKA_RESP_ERR_NO_ERROR)
        fail("the topic %s was not made", name);
    rd_kafka_event_destroy(event);
    rd_kafka_NewTopic_destroy(wanted);
    rd_kafka_queue_destroy(queue);
    rd_kafka_destroy(client);
}

static void topic_drop(const char *name)
{
    rd_kafka_t *client = client_new(RD_KAFKA_PRODUCER, conf_new(NULL, 0));
    rd_kafka_queue_t *queue = rd_kafka_queue_new(client);
    rd_kafka_DeleteTopic_t *old = rd_kafka_DeleteTopic_new(name);
    rd_kafka_event_t *event;

    rd_kafka_DeleteTopics(client, &old, 1, NULL, queue);
    event = rd_kafka_queue_poll(queue, WAIT_MS);
    if (event != NULL)
        rd_kafka_event_destroy(event);
    rd_kafka_DeleteTopic_destroy(old);
    rd_kafka_queue_destroy(queue);
    rd_kafka_destroy(client);
}

static int64_t reported_count;

static void on_report(rd_kafka_t *client, const rd_kafka_message_t *message, void *opaque)
{
    (void)client;
    (void)opaque;
    if (message->err != RD_KAFKA_RESP_ERR_NO_ERROR)
        fail("a record was not taken: %s", rd_kafka_err2str(message->err));
    reported_count++;
}

static struct cell cell_of(int64_t count, int64_t took_us, double cpu_us)
{
    double own_us = cpu_us - idle_share * (double)took_us;

    return (struct cell){.core_us = own_us / (double)count,
                         .per_second = (double)count * 1e6 / (double)took_us};
}

/* Produces for the given time in requests of b records each. */
static struct cell produce(const char *topic, int b, int seconds)
{
    char batch[16];
    const char *const settings[][2] = {
        {"acks", "all"},        {"enable.idempotence", "true"},   {"compression.codec", "lz4"},
        {"linger.ms", "10000"}, {"batch.num.messages", batch},    {"batch.size", "8000000"},
        {"max.in.flight", "1"}, {"message.max.bytes", "8000000"},
    };
    rd_kafka_conf_t *conf;
    rd_kafka_t *client;
    char body[BODY_SIZE];
    int64_t sent = 0;
    int64_t first;
    int64_t started;
    double cpu_us;

    snprintf(batch, sizeof(batch), "%d", b);
    conf = conf_new(settings, sizeof(settings) / sizeof(settings[0]));
    rd_kafka_conf_set_dr_msg_cb(conf, on_report);
    client = client_new(RD_KAFKA_PRODUCER, conf);
    reported_count = 0;
    for (size_t i = 0; i < sizeof(body); i++)
        body[i] = (char)('a' + random() % 26);
    /* The first batch pays for connecting; the clock starts behind it. */
    for (first = 0, started = 0, cpu_us = 0;;) {
        while (sent < reported_count + (int64_t)WINDOW_REQUESTS * b) {
            memcpy(body, &sent, sizeof(sent));
            if (rd_kafka_producev(client, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_PARTITION(0),
                                  RD_KAFKA_V_VALUE(body, sizeof(body)),
                                  RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
                                  RD_KAFKA_V_END) != RD_KAFKA_RESP_ERR_NO_ERROR)
                fail("produce");
            sent++;
        }
        rd_kafka_poll(client, 1000);
        if (first == 0 && reported_count > 0) {
            first = reported_count;
            started = now_us();
            cpu_us = broker_cpu_us();
        }
        if (first != 0 && now_us() - started > (int64_t)seconds * 1000000)
            break;
    }
    struct cell cell = cell_of(reported_count - first, now_us() - started,
                               broker_cpu_us() - cpu_us);
    if (rd_kafka_flush(client, WAIT_MS) != RD_KAFKA_RESP_ERR_NO_ERROR)
        fail("flush");
    rd_kafka_destroy(client);
    return cell;
}

/* Reads the topic from its beginning for the given time, one batch an answer, or to its end. */
static struct cell fetch(const char *topic, int seconds)
{
    static const char *const settings[][2] = {
        {"group.id", "kafka-cost"},        {"enable.auto.commit", "false"},
        {"auto.offset.reset", "earliest"}, {"enable.partition.eof", "true"},
        {"fetch.message.max.bytes", "1"},  {"queued.min.messages", "1000000"},
    };
    rd_kafka_t *client = client_new(RD_KAFKA_CONSUMER,
                                    conf_new(settings, sizeof(settings) / sizeof(settings[0])));
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    int64_t count = 0;
    int64_t first = 0;
    int64_t started = 0;
    double cpu_us = 0;
    bool ended = false;

    rd_kafka_topic_partition_list_add(list, topic, 0)->offset = RD_KAFKA_OFFSET_BEGINNING;
    rd_kafka_assign(client, list);
    while (!ended) {
        rd_kafka_message_t *message = rd_kafka_consumer_poll(client, 1000);

        if (message == NULL)
            continue;
        ended = message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF;
        if (!ended && message->err != RD_KAFKA_RESP_ERR_NO_ERROR)
            fail("fetch: %s", rd_kafka_message_errstr(message));
        count += ended ? 0 : 1;
        rd_kafka_message_destroy(message);
        if (first == 0 && count > 0) {
            first = count;
            started = now_us();
            cpu_us = broker_cpu_us();
        }
        ended = ended || now_us() - started > (int64_t)seconds * 1000000;
    }
    struct cell cell = cell_of(count - first, now_us() - started, broker_cpu_us() - cpu_us);

    rd_kafka_topic_partition_list_destroy(list);
    rd_kafka_consumer_close(client);
    rd_kafka_destroy(client);
    return cell;
}

static int cell_compare(const void *a, const void *b)
{
    double left = ((const struct cell *)a)->core_us;
    double right = ((const struct cell *)b)->core_us;

    return left < right ? -1 : left > right;
}

static void row_measure(int b, bool flush_each, int seconds, int round_count)
{
    struct cell produced[ROUND_COUNT_MAX];
    struct cell fetched[ROUND_COUNT_MAX];
    char topic[64];

    for (int round = -1; round < round_count; round++) {
        snprintf(topic, sizeof(topic), "cost-%d-%d-%" PRId64, b, flush_each, now_us());
        topic_make(topic, flush_each);
        struct cell out = produce(topic, b, round < 0 ? 2 : seconds);
        struct cell in = fetch(topic, round < 0 ? 2 : seconds);

        topic_drop(topic);
        if (round >= 0) {
            produced[round] = out;
            fetched[round] = in;
        }
    }
    qsort(produced, (size_t)round_count, sizeof(produced[0]), cell_compare);
    qsort(fetched, (size_t)round_count, sizeof(fetched[0]), cell_compare);
    const struct cell *out = &produced[round_count / 2];
    const struct cell *in = &fetched[round_count / 2];

    printf("| %d | %s | %.2f | %.0f | %.0f | %.2f | %.0f | %.0f |\n", b,
           flush_each ? "each record" : "page cache", out->core_us, out->core_us * b,
           out->per_second, in->core_us, in->core_us * b, in->per_second);
    fflush(stdout);
}

/* A JVM compiles what it has run often: without this the first rows would pay for all. */
static void warm_up(int seconds)
{
    static const int sizes[] = {1, 100};

    topic_make("cost-warm-up", false);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        (void)produce("cost-warm-up", sizes[i], seconds);
    (void)fetch("cost-warm-up", seconds);
    topic_drop("cost-warm-up");
}

static int double_compare(const void *a, const void *b)
{
    return *(const double *)a < *(const double *)b ? -1 : *(const double *)a > *(const double *)b;
}

/* Takes what has arrived; each record carries the time of its produce call. */
static int latency_take(rd_kafka_t *consumer, int timeout_ms, double *taken_us)
{
    rd_kafka_message_t *message = rd_kafka_consumer_poll(consumer, timeout_ms);
    int64_t sent_us;
    int got = 0;

    if (message != NULL && message->err == RD_KAFKA_RESP_ERR_NO_ERROR) {
        memcpy(&sent_us, message->payload, sizeof(sent_us));
        *taken_us = (double)(now_us() - sent_us);
        got = 1;
    }
    if (message != NULL)
        rd_kafka_message_destroy(message);
    return got;
}

static void latency_measure(bool flush_each)
{
    static const char *const out_settings[][2] = {
        {"acks", "all"}, {"enable.idempotence", "true"}, {"linger.ms", "0"}};
    static const char *const in_settings[][2] = {
        {"group.id", "kafka-cost"}, {"enable.auto.commit", "false"}, {"fetch.min.bytes", "1"}};
    static double took_us[LATENCY_COUNT];
    char topic[64];
    char body[BODY_SIZE] = {0};
    rd_kafka_conf_t *conf = conf_new(out_settings, 3);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_t *producer;
    rd_kafka_t *consumer;
    int sent = 0;
    int got = 0;
    int64_t next_us;

    snprintf(topic, sizeof(topic), "latency-%" PRId64, now_us());
    topic_make(topic, flush_each);
    rd_kafka_conf_set_dr_msg_cb(conf, on_report);
    producer = client_new(RD_KAFKA_PRODUCER, conf);
    consumer = client_new(RD_KAFKA_CONSUMER, conf_new(in_settings, 3));
    rd_kafka_topic_partition_list_add(list, topic, 0)->offset = RD_KAFKA_OFFSET_BEGINNING;
    rd_kafka_assign(consumer, list);
    for (next_us = now_us(); got < LATENCY_COUNT;) {
        int64_t left_us = next_us - now_us();

        if (sent < LATENCY_COUNT && left_us <= 0) {
            int64_t due_us = next_us;

            memcpy(body, &due_us, sizeof(due_us));
            rd_kafka_producev(producer, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_PARTITION(0),
                              RD_KAFKA_V_VALUE(body, sizeof(body)),
                              RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END);
            sent++;
            next_us += LATENCY_STEP_US;
        }
        rd_kafka_poll(producer, 0);
        got += latency_take(consumer, left_us > 1000 ? (int)(left_us / 1000) : 0, &took_us[got]);
    }
    /* The first second pays for connections and metadata. */
    qsort(took_us + 100, LATENCY_COUNT - 100, sizeof(took_us[0]), double_compare);
    printf("| %s | %.2f | %.2f | %.2f |\n", flush_each ? "each record" : "page cache",
           took_us[100 + (LATENCY_COUNT - 100) / 2] / 1000,
           took_us[100 + (LATENCY_COUNT - 100) * 99 / 100] / 1000,
           took_us[LATENCY_COUNT - 1] / 1000);
    rd_kafka_topic_partition_list_destroy(list);
    rd_kafka_consumer_close(consumer);
    rd_kafka_destroy(consumer);
    rd_kafka_destroy(producer);
    topic_drop(topic);
}

int main(int argc, char **argv)
{
    static const int sizes[] = {1, 10, 100, 1000};
    int seconds = argc > 3 ? (int)strtoul(argv[3], NULL, 10) : 5;
    int round_count = argc > 4 ? (int)strtoul(argv[4], NULL, 10) : 3;
    double cpu_us;

    if (argc < 3 || seconds < 1 || round_count < 1 || round_count > ROUND_COUNT_MAX) {
        fprintf(stderr, "usage: kafka_cost BROKERS BROKER_PID [SECONDS [ROUNDS]]\n");
        return 1;
    }
    brokers = argv[1];
    broker_pid = argv[2];
    warm_up(seconds * 2);
    cpu_us = broker_cpu_us();
    sleep(IDLE_SECONDS);
    idle_share = (broker_cpu_us() - cpu_us) / (IDLE_SECONDS * 1e6);
    printf("idle broker: %.1f ms of CPU a second\n\n", idle_share * 1000);
    printf("| records a request | flush | produce: core-us a record | a request | records/s | "
           "fetch: core-us a record | a request | records/s |\n"
           "| --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for (int flush_each = 0; flush_each < 2; flush_each++)
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
            row_measure(sizes[i], flush_each == 1, seconds, round_count);
    printf("\n| round trip at 100/s | p50 ms | p99 ms | max ms |\n| --- | --- | --- | --- |\n");
    latency_measure(false);
    latency_measure(true);
    return 0;
}
