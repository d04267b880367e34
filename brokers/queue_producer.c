/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sends records to Kafka and reports each exactly once.
 *
 * Happy path: queue_produce() copies the record into the lane of its partition. At the end of the
 * loop's turn each lane hands its records to librdkafka when nothing of it is under way (group
 * commit: an idle lane waits for nobody, a busy one gathers while the previous request is out and
 * keeps a gap unless enough wait). librdkafka sends them as one request, and its delivery reports
 * come back through the pump; the last report of a lane lets its next group go.
 *
 * Why nothing may follow a group that is under way: librdkafka 2.0.2 compares the *records* of an
 * idempotent partition that are in flight with its limit of 5 *requests*. Past five it does not
 * send what waits, but its thread does not sleep either: it polls without a pause until the answer
 * comes (33 polls a job were counted). For the same reason a larger group must reach it in one
 * piece: a linger of a tenth of a millisecond lets us finish handing over before it begins to send.
 *
 * Why there are two clients: that linger is a whole millisecond in the end, since librdkafka sleeps
 * in such. Four crossings pay it four times, and at a low rate there is nothing to gather. So small
 * groups go through a client without linger; in pieces or not, they are within the limit. Only one
 * group of a partition is ever under way, so the order stays, whichever client has it.
 *
 * Failures:
 * - Kafka is away: records stay in lanes and in librdkafka, without a time limit (a limit would
 *   tear holes into the idempotent sequence, which 2.0.2 can turn into a fatal error); past the
 *   limits of the options queue_produce() answers ERR_FULL.
 * - A report of failure says whether the record may be in the log: ERR_UNKNOWN, or certainly not.
 * - Fatal error of the producer: everything that librdkafka holds is settled (ERR_UNKNOWN where
 *   it was sent and may be in the log), the client is replaced, lanes go on. Blocks for some
 * milliseconds.
 *
 * At shutdown: the caller waits for queue_producer_unreported() to become 0, then closes.
 *
 * Thread: the loop's.   Tests: tests/unit/test_queue.c
 */

#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/loop.h"
#include "brokers/queue_kafka.h"

#define RECORD_COUNT_MAX_DEFAULT 50000
#define RECORD_SIZE_MAX_DEFAULT (64u << 20)
#define GROUP_COUNT_DEFAULT 256
#define GROUP_GAP_US_DEFAULT 3000
#define GROUP_BUSY_COUNT 4     /* a lane whose last group had so many has a gap between groups */
#define PROMPT_COUNT_MAX 4     /* below what librdkafka compares with its 5 */
#define GROUP_COUNT_MAX 1000   /* of one hand-over: what fits into one request … */
#define GROUP_SIZE_MAX 900000u /* … of message.max.bytes */
#define PARTITION_MAX 4096
#define RETIRE_POLLS_MAX 100 /* of 10 ms, for the reports of purged records */

struct record {
    TAILQ_ENTRY(record) next; /* in its lane, then in producer->under_way */
    struct lane *lane;
    struct client *client; /* that has it; NULL in its lane */
    queue_report_fn *done;
    void *opaque;
    uint64_t tag;
    size_t size, key_size;
    rd_kafka_headers_t *headers; /* NULL: none, or librdkafka has them */
    uint8_t bytes[];             /* key, then value */
};
TAILQ_HEAD(record_list, record);

/* One partition of a topic. */
struct lane {
    TAILQ_ENTRY(lane) next; /* in producer->waiting while records wait */
    struct queue_topic *topic;
    uint32_t partition;
    struct record_list records;
    uint32_t waiting_count, under_way_count;
    uint32_t group_count; /* records of the last group */
    uint64_t sent_us;
};
TAILQ_HEAD(lane_list, lane);

enum pace {
    PACE_PROMPT, /* groups of at most PROMPT_COUNT_MAX */
    PACE_GATHER,
    PACE_COUNT
};

/* Of librdkafka: a connection to each broker of Kafka, a producer id, threads. */
struct client {
    struct queue_producer *producer;
    rd_kafka_t *handle;
    rd_kafka_queue_t *main_queue;
    struct queue_pump *pump;
    uint32_t under_way_count;
    bool down;
};

struct queue_topic {
    SLIST_ENTRY(queue_topic) next;
    struct queue_producer *producer;
    char *name;
    rd_kafka_topic_t *handles[PACE_COUNT]; /* of the present clients */
    struct lane **lanes;                   /* by partition; NULL where nothing was sent yet */
    uint32_t lane_count;
};

struct queue_producer {
    struct loop *loop;
    struct queue_producer_options options;
    char *bootstrap, *client_id, *properties;
    struct client clients[PACE_COUNT];
    struct loop_turn *turn;
    struct loop_timer *timer;
    SLIST_HEAD(, queue_topic) topics;
    struct lane_list waiting;
    struct record_list under_way; /* librdkafka points at them */
    struct queue_producer_counts counts;
    bool fatal, silent;
};

static const struct queue_property producer_properties[] = {
    {"acks", "all"},
    {"enable.idempotence", "true"},
    {"compression.codec", "lz4"},
    {"message.timeout.ms", "0"},
    {"message.max.bytes", "1048576"},
    {"partitioner", "murmur2_random"},            /* as Java's client spreads keys */
    {"queue.buffering.max.messages", "10000000"}, /* our own limits are lower */
    {"queue.buffering.max.kbytes", "2097151"},
    {NULL, NULL},
};

static const char *const linger_ms[PACE_COUNT] = {[PACE_PROMPT] = "0", [PACE_GATHER] = "0.1"};

/* ---- Reports */

static void record_free(struct record *record)
{
    if (record->headers != NULL)
        rd_kafka_headers_destroy(record->headers);
    free(record);
}

static void record_settle(struct queue_producer *producer, struct record *record,
                          const struct queue_report *report)
{
    struct lane *lane = record->lane;

    TAILQ_REMOVE(&producer->under_way, record, next);
    assert(lane->under_way_count > 0);
    lane->under_way_count--;
    record->client->under_way_count--;
    producer->counts.unreported--;
    producer->counts.unreported_size -= record->size + record->key_size;
    if (report->code == ERR_OK)
        producer->counts.reported_ok++;
    else
        producer->counts.reported_failed++;
    if (record->done != NULL && !producer->silent)
        record->done(record->opaque, record->tag, report);
    record_free(record);
}

static void on_delivery(rd_kafka_t *client, const rd_kafka_message_t *message, void *opaque)
{
    struct client *from = opaque;
    struct queue_producer *producer = from->producer;
    struct queue_report report = {.offset = -1, .why = ""};
    rd_kafka_timestamp_type_t timestamp_type;
    int64_t timestamp_ms;

    (void)client;
    if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR) {
        timestamp_ms = rd_kafka_message_timestamp(message, &timestamp_type);
        report.offset = message->offset;
        if (timestamp_type != RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && timestamp_ms > 0)
            report.append_us = (uint64_t)timestamp_ms * 1000;
        from->down = false;
        producer->counts.connected = true;
    } else {
        report.code = queue_code(message->err);
        if (rd_kafka_message_status(message) != RD_KAFKA_MSG_STATUS_NOT_PERSISTED)
            report.code = ERR_UNKNOWN;
        report.why = rd_kafka_err2str(message->err);
    }
    record_settle(producer, message->_private, &report);
}

static void on_error(rd_kafka_t *client, int code, const char *reason, void *opaque)
{
    struct client *from = opaque;
    struct queue_producer *producer = from->producer;

    (void)client;
    (void)reason;
    if (code == RD_KAFKA_RESP_ERR__FATAL)
        producer->fatal = true;
    if (code == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN)
        from->down = true;
    if (producer->clients[PACE_PROMPT].down && producer->clients[PACE_GATHER].down)
        producer->counts.connected = false;
}

/* ---- The clients and their replacement */

static void client_pumped(void *opaque);

/* Settles what the client holds, but for what it does not report in time. */
static void client_empty(struct client *client)
{
    queue_pump_free(&client->pump);
    if (client->under_way_count > 0)
        (void)rd_kafka_purge(client->handle, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
    for (int i = 0; i < RETIRE_POLLS_MAX && client->under_way_count > 0; i++)
        (void)rd_kafka_poll(client->handle, 10);
}

static void client_destroy(struct client *client)
{
    if (client->handle == NULL)
        return;
    rd_kafka_queue_destroy(client->main_queue);
    rd_kafka_destroy(TAKE(client->handle));
}

/* Records wait in librdkafka's memory until their client is destroyed, so they are freed only by
 * their report or after that. */
static void clients_stop(struct queue_producer *producer)
{
    const struct queue_report unknown = {
        .code = ERR_UNKNOWN, .offset = -1, .why = "the producer had to be replaced"};
    struct queue_topic *topic;
    struct record *record;

    for (int i = 0; i < PACE_COUNT; i++)
        client_empty(&producer->clients[i]);
    SLIST_FOREACH(topic, &producer->topics, next)
    {
        for (int i = 0; i < PACE_COUNT; i++) {
            rd_kafka_topic_destroy(topic->handles[i]);
            topic->handles[i] = NULL;
        }
    }
    for (int i = 0; i < PACE_COUNT; i++)
        client_destroy(&producer->clients[i]);
    while ((record = TAILQ_FIRST(&producer->under_way)) != NULL)
        record_settle(producer, record, &unknown);
}

static int client_start(struct queue_producer *producer, enum pace pace, struct err *err)
{
    struct client *client = &producer->clients[pace];
    struct queue_property own[COUNT_OF(producer_properties) + 1] = {{"linger.ms", linger_ms[pace]}};
    struct queue_topic *topic;
    rd_kafka_conf_t *conf;
    int r;

    memcpy(own + 1, producer_properties, sizeof(producer_properties));
    r = queue_conf_new(&producer->options.queue, own, &conf, err);
    if (r < 0)
        return r;
    client->producer = producer;
    client->down = false;
    rd_kafka_conf_set_opaque(conf, client);
    rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
    rd_kafka_conf_set_error_cb(conf, on_error);
    r = queue_client_new(RD_KAFKA_PRODUCER, conf, &client->handle, err);
    if (r < 0)
        return r;
    client->main_queue = rd_kafka_queue_get_main(client->handle);
    SLIST_FOREACH(topic, &producer->topics, next)
    topic->handles[pace] = rd_kafka_topic_new(client->handle, topic->name, NULL);
    return queue_pump_new(producer->loop, client->main_queue, client_pumped, client, &client->pump,
                          err);
}

static int clients_start(struct queue_producer *producer, struct err *err)
{
    int r = client_start(producer, PACE_PROMPT, err);

    return r < 0 ? r : client_start(producer, PACE_GATHER, err);
}

static void producer_renew(struct queue_producer *producer)
{
    struct err err;

    producer->fatal = false;
    producer->counts.renewals++;
    clients_stop(producer);
    if (clients_start(producer, &err) < 0)
        NEVER("the same options made a producer before");
}

static void client_pumped(void *opaque)
{
    struct client *client = opaque;

    (void)rd_kafka_poll(client->handle, 0);
    if (client->producer->fatal)
        producer_renew(client->producer);
}

void queue_producer_break(struct queue_producer *producer)
{
    for (int i = 0; i < PACE_COUNT; i++)
        (void)rd_kafka_test_fatal_error(producer->clients[i].handle,
                                        RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
                                        "made by a test");
}

/* ---- Hand-over */

static int lane_partition(const struct lane *lane)
{
    return lane->partition == QUEUE_PARTITION_BY_KEY ? RD_KAFKA_PARTITION_UA : (int)lane->partition;
}

/* librdkafka takes the headers when it takes the record. */
static int record_hand_over_headers(struct lane *lane, enum pace pace, struct record *record)
{
    struct queue_topic *topic = lane->topic;
    const uint8_t *value = record->bytes + record->key_size;
    const void *key = record->key_size > 0 ? record->bytes : NULL;
    rd_kafka_resp_err_t code;

    code = rd_kafka_producev(
        topic->producer->clients[pace].handle, RD_KAFKA_V_RKT(topic->handles[pace]),
        RD_KAFKA_V_PARTITION(lane_partition(lane)), RD_KAFKA_V_VALUE((void *)value, record->size),
        RD_KAFKA_V_KEY(key, record->key_size), RD_KAFKA_V_HEADERS(record->headers),
        RD_KAFKA_V_OPAQUE(record), RD_KAFKA_V_END);
    if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
        record->headers = NULL;
    return code;
}

static int record_hand_over(struct lane *lane, enum pace pace, struct record *record)
{
    struct queue_topic *topic = lane->topic;
    struct client *client = &topic->producer->clients[pace];
    const uint8_t *value = record->bytes + record->key_size;
    const void *key = record->key_size > 0 ? record->bytes : NULL;

    record->client = client;
    client->under_way_count++;
    if (record->headers != NULL)
        return record_hand_over_headers(lane, pace, record);
    if (rd_kafka_produce(topic->handles[pace], lane_partition(lane), 0, (void *)value, record->size,
                         key, record->key_size, record) != 0)
        return rd_kafka_last_error();
    return RD_KAFKA_RESP_ERR_NO_ERROR;
}

/* Moves what makes one request from the lane's waiting records to the group. */
static void lane_take_group(struct lane *lane, struct record_list *group)
{
    size_t size = 0;
    struct record *record;

    lane->group_count = 0;
    while ((record = TAILQ_FIRST(&lane->records)) != NULL && lane->group_count < GROUP_COUNT_MAX &&
           (lane->group_count == 0 || size + record->size + record->key_size <= GROUP_SIZE_MAX)) {
        size += record->size + record->key_size;
        TAILQ_REMOVE(&lane->records, record, next);
        TAILQ_INSERT_TAIL(group, record, next);
        lane->group_count++;
        lane->waiting_count--;
    }
}

static void lane_hand_over(struct queue_producer *producer, struct lane *lane, uint64_t now_us)
{
    struct record_list group = TAILQ_HEAD_INITIALIZER(group);
    struct record *record;
    enum pace pace;

    producer->counts.groups++;
    lane->sent_us = now_us;
    lane_take_group(lane, &group);
    pace = lane->group_count <= PROMPT_COUNT_MAX ? PACE_PROMPT : PACE_GATHER;
    if (lane->waiting_count == 0)
        TAILQ_REMOVE(&producer->waiting, lane, next);
    while ((record = TAILQ_FIRST(&group)) != NULL) {
        int code;

        TAILQ_REMOVE(&group, record, next);
        TAILQ_INSERT_TAIL(&producer->under_way, record, next);
        lane->under_way_count++;
        code = record_hand_over(lane, pace, record);
        if (code != RD_KAFKA_RESP_ERR_NO_ERROR) {
            const struct queue_report report = {
                .code = queue_code(code), .offset = -1, .why = rd_kafka_err2str(code)};
            /* Its callback may produce again: that goes into the next group. */
            record_settle(producer, record, &report);
        }
    }
}

/* When the lane may hand over: at once when it was idle. A busy one waits for its last report and
 * keeps a gap between its groups, because each request costs Kafka as much as dozens of records
 * do. */
static uint64_t lane_due_us(const struct queue_producer *producer, const struct lane *lane)
{
    const struct queue_producer_options *options = &producer->options;

    if (lane->under_way_count > 0)
        return UINT64_MAX; /* its last report brings us back here */
    if (lane->waiting_count >= options->group_count || lane->group_count < GROUP_BUSY_COUNT)
        return 0;
    return lane->sent_us + options->group_gap_us;
}

static void producer_turn(void *opaque)
{
    struct queue_producer *producer = opaque;
    struct lane *lane, *following, *last = TAILQ_LAST(&producer->waiting, lane_list);
    uint64_t now_us, due_us, wait_us = UINT64_MAX;

    if (last == NULL)
        return;
    loop_timer_stop(producer->timer);
    now_us = clock_mono_us();
    for (lane = TAILQ_FIRST(&producer->waiting); lane != NULL; lane = following) {
        following = lane == last ? NULL : TAILQ_NEXT(lane, next);
        due_us = lane_due_us(producer, lane);
        if (due_us <= now_us) {
            lane_hand_over(producer, lane, now_us);
            if (lane->waiting_count > 0 && lane->under_way_count == 0)
                wait_us = 0; /* all of the group were refused: no report will bring us back */
        } else if (due_us != UINT64_MAX && due_us - now_us < wait_us) {
            wait_us = due_us - now_us;
        }
    }
    if (wait_us != UINT64_MAX && !loop_timer_is_running(producer->timer))
        loop_timer_start(producer->timer, (wait_us + 999) / 1000, 0);
}

/* ---- The contract */

static void producer_timer(void *opaque)
{
    (void)opaque; /* waking the loop is enough: producer_turn() follows */
}

static void options_copy(struct queue_producer *producer,
                         const struct queue_producer_options *options)
{
    struct queue_producer_options *own = &producer->options;

    *own = *options;
    if (own->record_count_max == 0)
        own->record_count_max = RECORD_COUNT_MAX_DEFAULT;
    if (own->record_size_max == 0)
        own->record_size_max = RECORD_SIZE_MAX_DEFAULT;
    if (own->group_count == 0)
        own->group_count = GROUP_COUNT_DEFAULT;
    if (own->group_gap_us == 0)
        own->group_gap_us = GROUP_GAP_US_DEFAULT;
    if (options->queue.bootstrap != NULL)
        own->queue.bootstrap = producer->bootstrap = xstrdup(options->queue.bootstrap);
    if (options->queue.client_id != NULL)
        own->queue.client_id = producer->client_id = xstrdup(options->queue.client_id);
    if (options->queue.properties != NULL)
        own->queue.properties = producer->properties = xstrdup(options->queue.properties);
}

int queue_producer_open(struct loop *loop, const struct queue_producer_options *options,
                        struct queue_producer **ret_producer, struct err *err)
{
    OWNED(queue_producer_close) struct queue_producer *producer = xcalloc(1, sizeof(*producer));
    int r;

    producer->loop = loop;
    SLIST_INIT(&producer->topics);
    TAILQ_INIT(&producer->waiting);
    TAILQ_INIT(&producer->under_way);
    options_copy(producer, options);
    r = clients_start(producer, err);
    if (r < 0)
        return r;
    producer->turn = loop_turn_new(loop, producer_turn, producer);
    producer->timer = loop_timer_new(loop, producer_timer, producer);
    *ret_producer = TAKE(producer);
    return 0;
}

static void topic_free(struct queue_topic *topic)
{
    for (uint32_t i = 0; i < topic->lane_count; i++) {
        struct record *record;

        while (topic->lanes[i] != NULL &&
               (record = TAILQ_FIRST(&topic->lanes[i]->records)) != NULL) {
            TAILQ_REMOVE(&topic->lanes[i]->records, record, next);
            record_free(record);
        }
        free(topic->lanes[i]);
    }
    free(topic->lanes);
    free(topic->name);
    free(topic);
}

void queue_producer_close(struct queue_producer **producer_p)
{
    struct queue_producer *producer = TAKE(*producer_p);
    struct queue_topic *topic;

    if (producer == NULL)
        return;
    producer->silent = true;
    clients_stop(producer);
    while ((topic = SLIST_FIRST(&producer->topics)) != NULL) {
        SLIST_REMOVE_HEAD(&producer->topics, next);
        topic_free(topic);
    }
    loop_turn_free(&producer->turn);
    loop_timer_free(&producer->timer);
    free(producer->bootstrap);
    free(producer->client_id);
    free(producer->properties);
    free(producer);
}

struct queue_topic *queue_producer_topic(struct queue_producer *producer, const char *name)
{
    struct queue_topic *topic;

    SLIST_FOREACH(topic, &producer->topics, next)
    {
        if (strcmp(topic->name, name) == 0)
            return topic;
    }
    topic = xcalloc(1, sizeof(*topic));
    topic->producer = producer;
    topic->name = xstrdup(name);
    for (int i = 0; i < PACE_COUNT; i++)
        topic->handles[i] = rd_kafka_topic_new(producer->clients[i].handle, name, NULL);
    SLIST_INSERT_HEAD(&producer->topics, topic, next);
    return topic;
}

static struct lane *topic_lane(struct queue_topic *topic, uint32_t partition)
{
    if (partition >= topic->lane_count) {
        topic->lanes = xrealloc(topic->lanes, partition + 1, sizeof(struct lane *));
        memset(topic->lanes + topic->lane_count, 0,
               (partition + 1 - topic->lane_count) * sizeof(struct lane *));
        topic->lane_count = partition + 1;
    }
    if (topic->lanes[partition] == NULL) {
        struct lane *lane = xcalloc(1, sizeof(*lane));

        lane->topic = topic;
        lane->partition = partition;
        TAILQ_INIT(&lane->records);
        topic->lanes[partition] = lane;
    }
    return topic->lanes[partition];
}

static rd_kafka_headers_t *headers_new(const struct queue_message *message)
{
    bool traced = message->trace != NULL && message->trace[0] != 0;
    rd_kafka_headers_t *headers;

    if (!traced && message->header_count == 0)
        return NULL;
    assert(message->header_count <= QUEUE_HEADERS_MAX);
    headers = rd_kafka_headers_new(message->header_count + 1);
    if (traced)
        (void)rd_kafka_header_add(headers, "traceparent", -1, message->trace, -1);
    for (size_t i = 0; i < message->header_count; i++)
        (void)rd_kafka_header_add(headers, message->headers[i].name, -1, message->headers[i].value,
                                  (ssize_t)message->headers[i].size);
    return headers;
}

static struct record *record_new(const struct queue_message *message)
{
    struct record *record = xmalloc(sizeof(*record) + message->key_size + message->size);

    record->client = NULL;
    record->done = message->done;
    record->opaque = message->opaque;
    record->tag = message->tag;
    record->size = message->size;
    record->key_size = message->key_size;
    record->headers = headers_new(message);
    if (message->key_size > 0)
        memcpy(record->bytes, message->key, message->key_size);
    if (message->size > 0)
        memcpy(record->bytes + message->key_size, message->bytes, message->size);
    return record;
}

int queue_produce(struct queue_producer *producer, const struct queue_message *message,
                  struct err *err)
{
    size_t size = message->size + message->key_size;
    struct lane *lane;
    struct record *record;

    assert(message->topic->producer == producer);
    assert(message->partition < PARTITION_MAX);
    assert(message->key_size <= QUEUE_KEY_MAX);
    if (message->size > QUEUE_RECORD_MAX)
        return err_set(err, ERR_TOO_BIG, "record for '%s' has %zu bytes, at most %u are sent",
                       message->topic->name, message->size, QUEUE_RECORD_MAX);
    if (producer->counts.unreported >= producer->options.record_count_max ||
        producer->counts.unreported_size + size > producer->options.record_size_max)
        return err_set(err, ERR_FULL, "%u records (%zu bytes) wait for Kafka already",
                       producer->counts.unreported, producer->counts.unreported_size);
    lane = topic_lane(message->topic, message->partition);
    record = record_new(message);
    record->lane = lane;
    if (lane->waiting_count++ == 0) {
        TAILQ_INSERT_TAIL(&producer->waiting, lane, next);
        /* The turn's end may have passed for us already (its calls have an order): the loop must
         * not go to sleep. */
        loop_timer_start(producer->timer, 0, 0);
    }
    TAILQ_INSERT_TAIL(&lane->records, record, next);
    producer->counts.unreported++;
    producer->counts.unreported_size += size;
    producer->counts.taken++;
    return 0;
}

struct queue_producer_counts queue_producer_counts(const struct queue_producer *producer)
{
    return producer->counts;
}

uint32_t queue_producer_unreported(const struct queue_producer *producer)
{
    return producer->counts.unreported;
}
