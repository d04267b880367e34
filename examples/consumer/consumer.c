/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Reads results from Headrace's topic `completed` and prints a line a job.
 *
 *     cc -o consumer consumer.c $(pkg-config --cflags --libs rdkafka msgpack)
 *     ./consumer BOOTSTRAP [GROUP]        until Ctrl-C
 *
 * A job may come more than once, with equal bytes: what was done for (id, round) must not be done
 * again. This program only prints, so it remembers nothing; one that acts keeps (id, round) where
 * it keeps its results, in the same transaction. The offset is stored after that, never before.
 * Format: docs/kafka.md.
 */

#include <inttypes.h>
#include <librdkafka/rdkafka.h>
#include <msgpack.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define WIRE_VERSION 1
#define WIRE_COMPLETED 30

enum { KEY_ID = 1, KEY_ROUND = 2, KEY_MODEL = 4, KEY_STATE = 7, KEY_ERROR = 9, KEY_OUTPUT = 10 };

static volatile sig_atomic_t stopping;

static void on_signal(int number)
{
    (void)number;
    stopping = 1;
}

static const char *state_name(uint64_t state)
{
    static const char *const names[] = {"?",      "?",       "?",       "SUCCEEDED",
                                        "FAILED", "EXPIRED", "CANCELED"};

    return state < sizeof(names) / sizeof(names[0]) ? names[state] : "?";
}

/* What is not there is zero or empty; keys that we do not know are skipped. */
struct job {
    const uint8_t *id; /* 16 bytes */
    uint64_t round, state;
    msgpack_object_str model, error;
    uint32_t output_size;
};

static void job_take(struct job *job, uint64_t key, const msgpack_object *value)
{
    if (key == KEY_ID && value->type == MSGPACK_OBJECT_BIN && value->via.bin.size == 16)
        job->id = (const uint8_t *)value->via.bin.ptr;
    else if (key == KEY_ROUND && value->type == MSGPACK_OBJECT_POSITIVE_INTEGER)
        job->round = value->via.u64;
    else if (key == KEY_STATE && value->type == MSGPACK_OBJECT_POSITIVE_INTEGER)
        job->state = value->via.u64;
    else if (key == KEY_MODEL && value->type == MSGPACK_OBJECT_STR)
        job->model = value->via.str;
    else if (key == KEY_ERROR && value->type == MSGPACK_OBJECT_STR)
        job->error = value->via.str;
    else if (key == KEY_OUTPUT && value->type == MSGPACK_OBJECT_BIN)
        job->output_size = value->via.bin.size;
}

/* [version, type, {key: value, …}] */
static int job_read(const msgpack_object *object, struct job *job)
{
    const msgpack_object *parts = object->via.array.ptr;

    if (object->type != MSGPACK_OBJECT_ARRAY || object->via.array.size != 3 ||
        parts[0].type != MSGPACK_OBJECT_POSITIVE_INTEGER || parts[0].via.u64 > WIRE_VERSION ||
        parts[1].type != MSGPACK_OBJECT_POSITIVE_INTEGER || parts[1].via.u64 != WIRE_COMPLETED ||
        parts[2].type != MSGPACK_OBJECT_MAP)
        return -1;
    for (uint32_t i = 0; i < parts[2].via.map.size; i++) {
        const msgpack_object_kv *pair = &parts[2].via.map.ptr[i];

        if (pair->key.type == MSGPACK_OBJECT_POSITIVE_INTEGER)
            job_take(job, pair->key.via.u64, &pair->val);
    }
    return job->id != NULL ? 0 : -1;
}

static void job_print(const struct job *job)
{
    for (int i = 0; i < 16; i++)
        printf("%02x%s", job->id[i], i == 3 || i == 5 || i == 7 || i == 9 ? "-" : "");
    printf(" %" PRIu64 " %.*s %s %u bytes %.*s\n", job->round, (int)job->model.size,
           job->model.size > 0 ? job->model.ptr : "", state_name(job->state), job->output_size,
           (int)job->error.size, job->error.size > 0 ? job->error.ptr : "");
    fflush(stdout);
}

static void record_take(const rd_kafka_message_t *record)
{
    msgpack_unpacked unpacked;
    struct job job = {.round = 0};

    msgpack_unpacked_init(&unpacked);
    if (msgpack_unpack_next(&unpacked, record->payload, record->len, NULL) ==
            MSGPACK_UNPACK_SUCCESS &&
        job_read(&unpacked.data, &job) == 0)
        job_print(&job);
    else
        fprintf(stderr, "offset %" PRId64 " of partition %d is not understood\n", record->offset,
                record->partition);
    msgpack_unpacked_destroy(&unpacked);
}

static rd_kafka_t *consumer_open(const char *bootstrap, const char *group)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_topic_partition_list_t *topics = rd_kafka_topic_partition_list_new(1);
    char why[512] = "";
    rd_kafka_t *consumer;

    if (rd_kafka_conf_set(conf, "bootstrap.servers", bootstrap, why, sizeof(why)) !=
            RD_KAFKA_CONF_OK ||
        rd_kafka_conf_set(conf, "group.id", group, why, sizeof(why)) != RD_KAFKA_CONF_OK ||
        rd_kafka_conf_set(conf, "auto.offset.reset", "earliest", why, sizeof(why)) !=
            RD_KAFKA_CONF_OK ||
        rd_kafka_conf_set(conf, "enable.auto.offset.store", "false", why, sizeof(why)) !=
            RD_KAFKA_CONF_OK ||
        (consumer = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof(why))) == NULL) {
        fprintf(stderr, "%s\n", why);
        return NULL;
    }
    (void)rd_kafka_poll_set_consumer(consumer);
    (void)rd_kafka_topic_partition_list_add(topics, "completed", RD_KAFKA_PARTITION_UA);
    (void)rd_kafka_subscribe(consumer, topics);
    rd_kafka_topic_partition_list_destroy(topics);
    return consumer;
}

int main(int argc, char **argv)
{
    rd_kafka_t *consumer;

    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: consumer BOOTSTRAP [GROUP]\n");
        return 1;
    }
    consumer = consumer_open(argv[1], argc > 2 ? argv[2] : "example-c");
    if (consumer == NULL)
        return 1;
    (void)signal(SIGINT, on_signal);
    (void)signal(SIGTERM, on_signal);
    while (!stopping) {
        rd_kafka_message_t *record = rd_kafka_consumer_poll(consumer, 500);

        if (record == NULL)
            continue;
        if (record->err == RD_KAFKA_RESP_ERR_NO_ERROR) {
            record_take(record);
            (void)rd_kafka_offset_store(record->rkt, record->partition, record->offset);
        } else {
            fprintf(stderr, "%s\n", rd_kafka_message_errstr(record));
        }
        rd_kafka_message_destroy(record);
    }
    (void)rd_kafka_consumer_close(consumer); /* commits what was stored */
    rd_kafka_destroy(consumer);
    return 0;
}
