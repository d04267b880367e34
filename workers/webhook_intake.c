/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/webhook_intake.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/loop.h"
#include "brokers/fault.h"
#include "schema/job.h"
#include "schema/message.h"
#include "schema/topics.h"

#define GROUP "headrace.webhook"
#define ROWS_MAX QUEUE_BATCH_MAX /* of one insert: what the reader hands over at once */
#define CLAIM_MAX 500
#define LOOK_MS 1000 /* how often due rows are looked for without a hint */
#define SOON_MS 100  /* … and after a hint that one is due soon */
#define AGAIN_MS 500 /* after a failed insert */
#define SHARDS_MAX 1024
#define LEAVE_MS_MAX 1000 /* what is in memory is sent after it */

/* Rows of one partition on their way into the ledger. */
struct rows {
    struct webhook_delivery *deliveries[ROWS_MAX];
    bool canceled[ROWS_MAX];
    size_t count, size;
    int64_t next_offset; /* to be stored once they are committed */
};

struct partition {
    struct webhook_intake *intake;
    uint32_t number;
    struct queue_reader *reader;
    struct rows gathering, inserting;
    bool busy; /* `inserting` is in use: sent, or to be sent again */
    bool sent; /* its answer is still to come */
};

struct webhook_intake {
    struct webhook_intake_options options;
    struct loop *loop;
    struct queue_election *election;
    struct queue_consumer *consumer;
    struct wire_decoder *decoder;
    struct loop_timer *look, *again, *sooner;
    uint32_t claim_limit;
    struct partition *partitions[SHARDS_MAX];
    size_t partition_count;
    bool claiming;
    bool hungry; /* more is due, or waits in memory's way, than the sender had room for */
    bool soon;   /* a look comes before the next one of each second */
    void (*on_left)(void *opaque);
    void *left_opaque;
};

static void rows_insert(struct partition *partition);

/* ---- due rows ---- */

static void look(struct webhook_intake *intake);

static void on_claimed(void *opaque, const struct pg_answer *answer)
{
    struct webhook_intake *intake = opaque;
    size_t count;

    intake->claiming = false;
    if (answer->err.code != ERR_OK) {
        intake->options.on_trouble(intake->options.opaque, "claim", &answer->err);
        return;
    }
    count = pg_row_count(answer, 0);
    for (size_t i = 0; i < count && webhook_sender_room(intake->options.sender) > 0; i++) {
        struct webhook_delivery *delivery = webhook_store_row(answer, i);

        webhook_sender_put(intake->options.sender, &delivery);
    }
    intake->hungry = count == intake->claim_limit;
    if (intake->hungry)
        look(intake);
}

static void look(struct webhook_intake *intake)
{
    uint32_t room = webhook_sender_room(intake->options.sender);
    uint32_t shards[SHARDS_MAX];
    struct err err;

    intake->hungry = intake->hungry || room == 0;
    if (intake->claiming || room == 0 || intake->partition_count == 0)
        return;
    for (size_t i = 0; i < intake->partition_count; i++)
        shards[i] = intake->partitions[i]->number;
    intake->claim_limit = room < CLAIM_MAX ? room : CLAIM_MAX;
    intake->claiming = webhook_store_claim(intake->options.pg, shards, intake->partition_count,
                                           intake->claim_limit, intake->options.claim_ms,
                                           on_claimed, intake, &err) == 0;
}

static void on_soon(void *opaque)
{
    struct webhook_intake *intake = opaque;

    intake->soon = false;
    look(intake);
}

void webhook_intake_room(struct webhook_intake *intake, bool soon)
{
    if (intake->hungry)
        look(intake);
    if (!soon || intake->soon)
        return;
    intake->soon = true;
    loop_timer_start(intake->sooner, SOON_MS, 0);
}

static void on_look(void *opaque)
{
    look(opaque);
}

/* ---- records to rows ---- */

static void rows_free(struct rows *rows)
{
    for (size_t i = 0; i < rows->count; i++)
        webhook_delivery_free(&rows->deliveries[i]);
    rows->count = 0;
    rows->size = 0;
}

/* The delivery of a row that came back, or NULL. Rows come back in the order in which they went, so
 * each look begins behind the last hit; *at is where. */
static struct webhook_delivery **rows_find(struct rows *rows, const struct webhook_key *key,
                                           size_t *at)
{
    for (size_t n = 0; n < rows->count; n++) {
        size_t i = (*at + n) % rows->count;

        if (rows->deliveries[i] != NULL &&
            memcmp(&rows->deliveries[i]->key, key, sizeof(*key)) == 0) {
            *at = i + 1;
            return &rows->deliveries[i];
        }
    }
    return NULL;
}

/* Those that the insert made go to the sender; others were there before, or are final. */
static void rows_dispatch(struct partition *partition, const struct pg_answer *answer)
{
    struct webhook_sender *sender = partition->intake->options.sender;
    struct rows *rows = &partition->inserting;
    size_t at = 0;

    for (size_t row = 0; row < pg_row_count(answer, 0); row++) {
        const struct webhook_key key = {.job = pg_id(answer, 0, row, 0),
                                        .round = pg_u64(answer, 0, row, 1)};
        struct webhook_delivery **delivery;

        if (pg_i64(answer, 0, row, 2) != DELIVERY_PENDING)
            continue;
        if (webhook_sender_room(sender) == 0) {
            partition->intake->hungry = true;
            continue; /* a claim brings it back later */
        }
        delivery = rows_find(rows, &key, &at);
        if (delivery != NULL)
            webhook_sender_put(sender, delivery);
    }
}

static void on_inserted(void *opaque, const struct pg_answer *answer)
{
    struct partition *partition = opaque;
    struct webhook_intake *intake = partition->intake;

    partition->sent = false;
    if (partition->reader == NULL) { /* revoked meanwhile: the next reader inserts them again */
        rows_free(&partition->inserting);
        rows_free(&partition->gathering);
        free(partition);
        return;
    }
    if (answer->err.code != ERR_OK) {
        intake->options.on_trouble(intake->options.opaque, "insert", &answer->err);
        if (!loop_timer_is_running(intake->again))
            loop_timer_start(intake->again, AGAIN_MS, 0);
        return;
    }
    fault_point(FAULT_webhook_inserted);
    rows_dispatch(partition, answer);
    queue_election_store(intake->election, partition->number, partition->inserting.next_offset);
    rows_free(&partition->inserting);
    partition->busy = false;
    queue_reader_resume(partition->reader);
    rows_insert(partition);
}

/* Sends what `inserting` holds. */
static void rows_send(struct partition *partition)
{
    struct rows *rows = &partition->inserting;
    struct webhook_intake *intake = partition->intake;
    struct err err;

    if (partition->sent)
        return;
    partition->sent = webhook_store_insert(intake->options.pg, rows->deliveries, rows->canceled,
                                           rows->count, intake->options.claim_ms, on_inserted,
                                           partition, &err) == 0;
    if (partition->sent)
        return;
    intake->options.on_trouble(intake->options.opaque, "insert", &err);
    if (!loop_timer_is_running(intake->again))
        loop_timer_start(intake->again, AGAIN_MS, 0);
}

static void rows_insert(struct partition *partition)
{
    struct rows *rows = &partition->gathering;

    if (partition->busy || rows->next_offset == 0)
        return;
    if (rows->count == 0) { /* nothing but jobs without webhooks */
        queue_election_store(partition->intake->election, partition->number, rows->next_offset);
        rows->next_offset = 0;
        return;
    }
    partition->busy = true;
    partition->inserting = *rows;
    *rows = (struct rows){0};
    rows_send(partition);
}

static void on_insert_again(void *opaque)
{
    struct webhook_intake *intake = opaque;

    for (size_t i = 0; i < intake->partition_count; i++) {
        if (intake->partitions[i]->busy)
            rows_send(intake->partitions[i]);
    }
}

static struct webhook_delivery *delivery_make(const struct message_completed *completed,
                                              uint32_t shard, const struct queue_record *record)
{
    struct webhook_delivery *delivery = xcalloc(1, sizeof(*delivery));

    delivery->key.job = completed->id;
    delivery->key.round = completed->round;
    delivery->shard = shard;
    delivery->tenant = wire_text_dup(completed->tenant);
    delivery->model = wire_text_dup(completed->model);
    delivery->url = wire_text_dup(completed->webhook_url);
    webhook_delivery_name(delivery);
    buf_init(&delivery->record, record->size);
    buf_append(&delivery->record, record->bytes, record->size);
    return delivery;
}

static void record_take(struct partition *partition, const struct queue_record *record)
{
    struct webhook_intake *intake = partition->intake;
    struct rows *rows = &partition->gathering;
    struct message message;
    struct err err;
    int r;

    rows->next_offset = record->offset + 1;
    metric_add(metrics_of(intake->options.metrics, WEBHOOK_METRIC_webhook_records_total), 1);
    r = message_decode(intake->decoder, record->bytes, record->size, &message, &err);
    if (r == 0 && message.type != MESSAGE_COMPLETED)
        r = err_set(&err, ERR_MALFORMED, "offset %lld holds a %s", (long long)record->offset,
                    message_type_name(message.type));
    if (r < 0) {
        intake->options.on_trouble(intake->options.opaque, "record", &err);
        return;
    }
    if (message.completed.webhook_url.size == 0)
        return;
    rows->canceled[rows->count] = message.completed.state == JOB_CANCELED;
    rows->deliveries[rows->count++] = delivery_make(&message.completed, partition->number, record);
    rows->size += record->size;
}

static void on_records(void *opaque, const struct queue_record *records, size_t record_count)
{
    struct partition *partition = opaque;

    /* The reader is paused while something is gathered, but hands out the rest of its turn, in
     * several pieces when it saw the log's end in between. A turn has ROWS_MAX records at most. */
    assert(partition->gathering.count + record_count <= ROWS_MAX);
    for (size_t i = 0; i < record_count; i++)
        record_take(partition, &records[i]);
    rows_insert(partition);
    if (partition->gathering.next_offset != 0)
        queue_reader_pause(partition->reader);
}

static void on_end(void *opaque, int64_t offset)
{
    (void)opaque;
    (void)offset;
}

/* ---- partitions ---- */

/* Stops reading. While an insert is under way its answer still needs the partition. */
static void partition_close(struct partition *partition)
{
    queue_reader_close(&partition->reader);
    if (partition->sent)
        return;
    rows_free(&partition->gathering);
    rows_free(&partition->inserting);
    free(partition);
}

static void partitions_close(struct webhook_intake *intake)
{
    for (size_t i = 0; i < intake->partition_count; i++)
        partition_close(intake->partitions[i]);
    intake->partition_count = 0;
}

static void on_reader_error(void *opaque, const struct err *err);

static int partition_read(struct partition *partition, int64_t offset, struct err *err)
{
    static const struct queue_reader_calls calls = {on_records, on_end, on_reader_error};

    queue_reader_close(&partition->reader);
    return queue_reader_open(partition->intake->consumer, topic_name(TOPIC_COMPLETED),
                             partition->number, offset, &calls, partition, &partition->reader, err);
}

/* An offset that retention has overtaken: what it pointed at is in the ledger; start over. */
static void on_reader_error(void *opaque, const struct err *err)
{
    struct partition *partition = opaque;
    struct webhook_intake *intake = partition->intake;
    struct err again;

    intake->options.on_trouble(intake->options.opaque, "read", err);
    if (err_class(err->code) == ERR_CLASS_RETRY)
        return;
    if (err->code != ERR_RANGE || partition_read(partition, QUEUE_OFFSET_BEGIN, &again) < 0)
        intake->options.on_fatal(intake->options.opaque, err);
}

static void on_stored(void *opaque, uint32_t number, int64_t offset, const struct err *err)
{
    struct webhook_intake *intake = opaque;
    struct err reader_err;

    for (size_t i = 0; i < intake->partition_count; i++) {
        struct partition *partition = intake->partitions[i];

        if (partition->number != number || partition->reader != NULL)
            continue;
        if (err != NULL) {
            intake->options.on_trouble(intake->options.opaque, "stored offset", err);
            queue_election_ask_stored(intake->election, number, on_stored, intake);
        } else if (partition_read(partition, offset < 0 ? QUEUE_OFFSET_BEGIN : offset,
                                  &reader_err) < 0) {
            intake->options.on_fatal(intake->options.opaque, &reader_err);
        }
    }
}

static void on_assigned(void *opaque, const uint32_t *numbers, size_t count)
{
    struct webhook_intake *intake = opaque;

    assert(count <= SHARDS_MAX);
    partitions_close(intake);
    for (size_t i = 0; i < count; i++) {
        struct partition *partition = xcalloc(1, sizeof(*partition));

        partition->intake = intake;
        partition->number = numbers[i];
        intake->partitions[intake->partition_count++] = partition;
        queue_election_ask_stored(intake->election, numbers[i], on_stored, intake);
    }
    look(intake);
}

static void on_revoked(void *opaque)
{
    struct webhook_intake *intake = opaque;

    partitions_close(intake);
    queue_election_release(intake->election);
}

static void on_lost(void *opaque)
{
    partitions_close(opaque);
}

static void on_election_error(void *opaque, const struct err *err)
{
    struct webhook_intake *intake = opaque;

    if (err_class(err->code) == ERR_CLASS_RETRY)
        intake->options.on_trouble(intake->options.opaque, "election", err);
    else
        intake->options.on_fatal(intake->options.opaque, err);
}

int webhook_intake_open(struct loop *loop, const struct webhook_intake_options *options,
                        struct webhook_intake **ret_intake, struct err *err)
{
    static const struct queue_election_calls calls = {on_assigned, on_revoked, on_lost,
                                                      on_election_error};
    OWNED(webhook_intake_close) struct webhook_intake *intake = xcalloc(1, sizeof(*intake));
    const struct queue_election_options election = {
        .queue = options->queue,
        .topic = topic_name(TOPIC_COMPLETED),
        .group = GROUP,
        .instance = options->instance,
    };
    struct queue_options steady = options->queue;
    int r;

    intake->options = *options;
    intake->loop = loop;
    intake->decoder = wire_decoder_new();
    intake->look = loop_timer_new(loop, on_look, intake);
    intake->again = loop_timer_new(loop, on_insert_again, intake);
    intake->sooner = loop_timer_new(loop, on_soon, intake);
    steady.steady = true;
    r = queue_consumer_open(loop, &steady, &intake->consumer, err);
    if (r == 0)
        r = queue_election_open(loop, &election, &calls, intake, &intake->election, err);
    if (r < 0)
        return r;
    loop_timer_start(intake->look, LOOK_MS, LOOK_MS);
    *ret_intake = TAKE(intake);
    return 0;
}

void webhook_intake_close(struct webhook_intake **intake_p)
{
    struct webhook_intake *intake = TAKE(*intake_p);

    if (intake == NULL)
        return;
    for (size_t i = 0; i < intake->partition_count; i++)
        intake->partitions[i]->sent = false; /* the ledger is closed before us: no answer comes */
    partitions_close(intake);
    queue_election_close(&intake->election);
    queue_consumer_close(&intake->consumer);
    wire_decoder_free(&intake->decoder);
    loop_timer_free(&intake->look);
    loop_timer_free(&intake->again);
    loop_timer_free(&intake->sooner);
    free(intake);
}

static void on_election_left(void *opaque)
{
    struct webhook_intake *intake = opaque;

    intake->on_left(intake->left_opaque);
}

void webhook_intake_leave(struct webhook_intake *intake, void (*on_left)(void *opaque),
                          void *opaque)
{
    intake->on_left = on_left;
    intake->left_opaque = opaque;
    loop_timer_stop(intake->look);
    loop_timer_stop(intake->sooner);
    queue_election_leave(intake->election, LEAVE_MS_MAX, on_election_left);
}
