/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A binding's share of a topic's partitions: membership, claims, batches, positions.
 *
 * Happy path: the group gives a partition; the row of its position is taken over (epoch + 1), which
 * says where to read from and what was claimed behind it; records are gathered, up to a thousand of
 * them are claimed in one statement, sent, and when all are done the position moves on: with the
 * next claim, or, when nothing comes, with the next tick.
 *
 * Failures:
 * - The claim is refused: another process has taken the partition over. It is left alone until the
 * group gives it again.
 * - The ledger is away, or a claim's outcome not known: what was gathered is dropped and the
 * partition taken over anew; records that were claimed before are made again with the same ids.
 * - A record that cannot be sent (Kafka is full, or away) is tried again each tick.
 * - The topic is not there, or may not be read: said, and asked for again every few seconds.
 *
 * A partition that is given back waits for what it has claimed, for a while: what is not done by
 * then is done again by the next one, under the same ids.
 *
 * At shutdown: as above.
 */

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "producers/ingest_topics.h"
#include "schema/topics.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ASK_GAP_MS 2000  /* between two looks at a topic that is not there */
#define ENDS_GAP_MS 3000 /* between two looks at the ends of the logs */
#define ASK_TIMEOUT_MS 3000
#define AGAIN_MS 500    /* after a takeover or a claim that failed */
#define RESEND_MS 1000  /* … of what Kafka has refused */
#define LOST_MS 10000   /* … that another process has fenced */
#define RELEASE_MS 3000 /* a rebalance waits so long for what is under way */
#define LEAVE_MS 1000
#define TOLD_GAP_MS 10000 /* what is wrong is said again so often */
#define TROUBLE_MS 5000   /* … and is over when nobody has said it for so long */

PG_STATEMENT(
    topic_take,
    "INSERT INTO topic_position AS p (binding_id, result, number, owner) VALUES ($1, $2, $3, "
    "$4) ON CONFLICT (binding_id, result, number) DO UPDATE SET epoch = p.epoch + 1, owner = "
    "excluded.owner, updated_at = now() RETURNING epoch, coalesce(position, -1), "
    "coalesce(claim_to, -1), coalesce(claim_ms, 0), claim_targets::text");
PG_STATEMENT(
    topic_claim,
    "UPDATE topic_position SET position = $5, claim_to = $6, claim_ms = $7, claim_targets = $8, "
    "log_end = $9, accepted = accepted + $10, refused = refused + $11, repeated = repeated + "
    "$12, updated_at = now() WHERE binding_id = $1 AND result = $2 AND number = $3 AND epoch = "
    "$4 RETURNING epoch");
PG_STATEMENT(topic_tell,
             "INSERT INTO topic_problem AS p (binding_id, result, owner, problem) VALUES ($1, "
             "$2, $3, $4) ON CONFLICT (binding_id, result, owner) DO UPDATE SET problem = "
             "excluded.problem, at = now()");
PG_STATEMENT(topic_fine,
             "DELETE FROM topic_problem WHERE binding_id = $1 AND result = $2 AND owner = $3");

static void partition_pump(struct partition *partition);
static void partition_take(struct partition *partition);

void stream_trouble(struct stream *stream, const char *fmt, ...)
{
    char text[INGEST_PROBLEM_SIZE];
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    stream->problem_ms = loop_now_ms(stream->topics->loop);
    if (strcmp(text, stream->problem) == 0)
        return;
    mem_copy_text(stream->problem, text);
    log_warn("binding_troubled", LOG_STR("binding", stream->binding->name),
             LOG_STR("tenant", stream->binding->tenant), LOG_STR("way", stream->kind->what),
             LOG_STR("problem", text));
}

static void stream_count(struct stream *stream, const char *outcome, uint64_t count)
{
    const char *const values[] = {stream->binding->name, outcome};

    if (count > 0)
        metric_add(
            metrics_series(stream->topics->metrics, INGEST_METRIC_ingest_records_total, values),
            (double)count);
}

/* ---- items and batches ---- */

static void items_free(struct topics *topics, struct item *items, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        topics->bytes -= items[i].made.size;
        ingest_record_done(&items[i].made);
    }
    free(items);
}

static void batch_free(struct batch **batch_p)
{
    struct batch *batch = TAKE(*batch_p);

    if (batch == NULL)
        return;
    items_free(batch->partition->topics, batch->items, batch->count);
    free(batch);
}

/* They are read again by whoever goes on: a batch that is under way ends before them. */
static void gathered_drop(struct partition *partition)
{
    if (partition->gathered_count > 0)
        partition->next_offset = partition->gathered[0].offset;
    items_free(partition->topics, TAKE(partition->gathered), partition->gathered_count);
    partition->gathered_count = 0;
}

/* Nothing of ours is on its way any more. */
static bool partition_is_idle(const struct partition *partition)
{
    return partition->batch == NULL && !partition->asking;
}

static void partition_free(struct partition *partition)
{
    queue_reader_close(&partition->reader);
    gathered_drop(partition);
    batch_free(&partition->batch);
    LIST_REMOVE(partition, link);
    free(partition->claim_targets);
    free(partition);
}

/* ---- the ledger ---- */

/* Everything is read and claimed anew, from where the ledger says. */
static void partition_restart(struct partition *partition)
{
    queue_reader_close(&partition->reader);
    gathered_drop(partition);
    batch_free(&partition->batch);
    partition->epoch = 0;
    partition->again_ms = loop_now_ms(partition->topics->loop) + AGAIN_MS;
}

/* It is another's. Should the group give it to nobody else, a takeover that came late has fenced
 * us. */
static void partition_lose(struct partition *partition)
{
    partition_restart(partition);
    partition->again_ms = loop_now_ms(partition->topics->loop) + LOST_MS;
    log_info("partition_fenced", LOG_STR("binding", partition->stream->binding->name),
             LOG_U64("partition", partition->number));
}

static void bind_place(struct pg_batch *pg, const struct partition *partition)
{
    const struct stream *stream = partition->stream;

    pg_bind_c(pg, stream->binding->id);
    pg_bind_bool(pg, stream->result);
    pg_bind_i32(pg, (int64_t)partition->number);
}

/* position -> position, and from there to claim_to by that time and those targets. */
static void add_claim(struct pg_batch *pg, struct partition *partition, int64_t claim_to,
                      uint64_t claim_ms, const char *targets)
{
    pg_add(pg, &topic_claim);
    bind_place(pg, partition);
    pg_bind_i64(pg, (int64_t)partition->epoch);
    pg_bind_i64(pg, partition->position);
    pg_bind_i64(pg, claim_to);
    pg_bind_i64(pg, (int64_t)claim_ms);
    pg_bind_json(pg, targets);
    pg_bind_i64(pg, partition->log_end > claim_to ? partition->log_end : claim_to);
    pg_bind_i64(pg, (int64_t)partition->accepted);
    pg_bind_i64(pg, (int64_t)partition->refused);
    pg_bind_i64(pg, (int64_t)partition->repeated);
    partition->written = partition->position;
    partition->accepted = partition->refused = partition->repeated = 0;
}

/* True: nobody waits for the answer any more, and the partition is gone. */
static bool answer_is_late(struct partition *partition)
{
    partition->asking = false;
    if (partition->stream != NULL)
        return false;
    if (partition->batch != NULL && partition->batch->claimed)
        return true; /* its reports free it */
    partition_free(partition);
    return true;
}

static void claim_count(struct partition *partition, const char *outcome)
{
    metric_add(
        metrics_series(partition->topics->metrics, INGEST_METRIC_ingest_claims_total, &outcome), 1);
}

/* False: the partition has been given up, for now or for good. */
static bool claim_succeeded(struct partition *partition, const struct pg_answer *answer)
{
    if (answer->err.code != ERR_OK) {
        claim_count(partition, "failed");
        stream_trouble(partition->stream, "the ledger: %.300s", answer->err.text);
        partition_restart(partition);
        return false;
    }
    if (pg_row_count(answer, 0) == 0) {
        claim_count(partition, "fenced");
        partition_lose(partition);
        return false;
    }
    claim_count(partition, "ok");
    return true;
}

static void batch_over(struct batch *batch);

static void batch_unpin(struct batch *batch)
{
    batch->left--;
    if (batch->left == 0)
        batch_over(batch);
}

static void batch_send(struct batch *batch)
{
    batch->left++; /* what is done at once must not end the batch in here */
    for (size_t i = 0; i < batch->count; i++) {
        if (batch->items[i].stage == ITEM_READY)
            batch->partition->stream->kind->send(&batch->items[i]);
    }
    batch_unpin(batch);
}

static void on_claimed(void *opaque, const struct pg_answer *answer)
{
    struct partition *partition = opaque;

    if (answer_is_late(partition) || !claim_succeeded(partition, answer))
        return;
    partition->batch->claimed = true;
    if (!partition->stream->result)
        fault_point(FAULT_ingest_claimed);
    if (partition->stream->kind->on_claimed != NULL)
        partition->stream->kind->on_claimed(partition->batch, answer);
    batch_send(partition->batch);
}

static void on_position(void *opaque, const struct pg_answer *answer)
{
    struct partition *partition = opaque;

    if (!answer_is_late(partition) && claim_succeeded(partition, answer))
        partition_pump(partition);
}

static void ledger_send(struct partition *partition, struct pg_batch *pg, pg_done_fn *done)
{
    struct err err;

    if (pg_send(partition->topics->pg_claims, &pg, INGEST_QUERY_MS, done, partition, &err) < 0) {
        stream_trouble(partition->stream, "the ledger: %.300s", err.text);
        partition_restart(partition);
    } else {
        partition->asking = true;
    }
    pg_batch_free(&pg);
}

/* The position alone; what is claimed behind it stays so. */
static void position_write(struct partition *partition)
{
    struct pg_batch *pg = pg_batch_new();
    bool claimed = partition->claim_to > partition->position;

    add_claim(pg, partition, claimed ? partition->claim_to : partition->position,
              claimed ? partition->claim_ms : 0, claimed ? partition->claim_targets : NULL);
    ledger_send(partition, pg, on_position);
}

/* ---- batches ---- */

/* Records that an earlier claim has are claimed again as they were, and not together with others.
 */
static size_t claimed_before(const struct partition *partition)
{
    size_t count = 0;

    while (count < partition->gathered_count &&
           partition->gathered[count].offset < partition->claim_to)
        count++;
    return count;
}

static struct batch *batch_take(struct partition *partition, size_t count)
{
    struct batch *batch = xcalloc(1, sizeof(*batch));
    size_t rest = partition->gathered_count - count;

    batch->partition = partition;
    batch->items = xcalloc(count, sizeof(*batch->items));
    batch->count = batch->left = count;
    memcpy(batch->items, partition->gathered, count * sizeof(*batch->items));
    memmove(partition->gathered, partition->gathered + count, rest * sizeof(*batch->items));
    partition->gathered_count = rest;
    for (size_t i = 0; i < count; i++)
        batch->items[i].batch = batch;
    if (rest == 0)
        mem_free(&partition->gathered);
    return batch;
}

static int64_t batch_end(const struct partition *partition, const struct batch *batch)
{
    return partition->gathered_count == 0 ? partition->next_offset
                                          : batch->items[batch->count - 1].offset + 1;
}

static void batch_claim(struct partition *partition, size_t count, bool again)
{
    struct binding *binding = partition->stream->binding;
    struct batch *batch = batch_take(partition, count);
    struct pg_batch *pg = pg_batch_new();
    struct err err;

    partition->batch = batch;
    batch->claim_ms = again ? partition->claim_ms : clock_wall_ms();
    batch->targets = binding->targets;
    if (again && topic_targets_read(partition->claim_targets, &batch->targets, &err) < 0)
        NEVER("what was claimed was read before");
    if (!again) {
        partition->claim_to = batch_end(partition, batch);
        partition->claim_ms = batch->claim_ms;
        mem_free(&partition->claim_targets);
        if (binding->targets_json != NULL)
            partition->claim_targets = xstrdup(binding->targets_json);
    }
    add_claim(pg, partition, partition->claim_to, partition->claim_ms, partition->claim_targets);
    partition->stream->kind->claim(batch, pg);
    metric_observe(metrics_of(partition->topics->metrics, INGEST_METRIC_ingest_batch_records),
                   (double)count);
    ledger_send(partition, pg, on_claimed);
}

static bool memory_is_full(const struct topics *topics)
{
    return topics->bytes >= topics->settings->topics_memory_size;
}

/* Nothing was of concern: the position moves on, and is written when there is time. */
static void partition_skip(struct partition *partition)
{
    if (partition->gathered_count == 0 && partition->batch == NULL && partition->epoch != 0 &&
        partition->next_offset > partition->position)
        partition->position = partition->next_offset;
}

static void partition_pump(struct partition *partition)
{
    struct stream *stream = partition->stream;
    size_t count;

    if (partition->reader == NULL || !partition_is_idle(partition) || partition->leaving)
        return;
    partition_skip(partition);
    if (partition->gathered_count > 0) {
        bool again = partition->gathered[0].offset < partition->claim_to;

        count = again ? claimed_before(partition) : partition->gathered_count;
        if (!again)
            count = stream->binding->paused
                        ? 0
                        : stream->kind->allow(partition, partition->gathered, count);
        if (count == 0)
            return;
        batch_claim(partition, count, again);
    }
    if (partition->gathered_count == 0 && partition->reader != NULL &&
        !memory_is_full(stream->topics))
        queue_reader_resume(partition->reader);
}

static void batch_over(struct batch *batch)
{
    struct partition *partition = batch->partition;
    struct stream *stream = partition->stream;
    int64_t end = batch_end(partition, batch);

    partition->batch = NULL;
    batch_free(&batch);
    if (stream == NULL) {
        if (!partition->asking)
            partition_free(partition);
        return;
    }
    partition->position = end;
    fault_point(stream->result ? FAULT_ingest_results_sent : FAULT_ingest_sent);
    stream_count(stream, stream->result ? "sent" : "accepted", partition->accepted);
    stream_count(stream, "refused", partition->refused);
    stream_count(stream, "repeated", partition->repeated);
    if (stream->election != NULL)
        queue_election_store(stream->election, partition->number, end);
    partition_pump(partition);
}

void item_done(struct item *item)
{
    struct batch *batch = item->batch;
    struct partition *partition = batch->partition;

    assert(item->stage != ITEM_DONE);
    item->stage = ITEM_DONE;
    if (item->made.reason != NULL)
        partition->refused++;
    else if (item->repeated)
        partition->repeated++;
    else if (!item->foreign)
        partition->accepted++;
    batch_unpin(batch);
}

void item_again(struct item *item)
{
    struct partition *partition = item->batch->partition;

    item->stage = ITEM_READY;
    partition->again_ms = loop_now_ms(partition->topics->loop) + RESEND_MS;
    if (partition->stream == NULL) /* nobody sends it any more: the next one will */
        item_done(item);
}

/* ---- records ---- */

static void on_records(void *opaque, const struct queue_record *records, size_t record_count)
{
    struct partition *partition = opaque;
    struct topics *topics = partition->topics;

    /* A turn has INGEST_BATCH_MAX at most, and comes only when nothing was gathered before it. */
    assert(partition->gathered_count + record_count <= INGEST_BATCH_MAX);
    partition->gathered = xrealloc(partition->gathered, partition->gathered_count + record_count,
                                   sizeof(struct item));
    for (size_t i = 0; i < record_count; i++) {
        struct item *item = &partition->gathered[partition->gathered_count];

        *item = (struct item){.offset = records[i].offset};
        partition->next_offset = records[i].offset + 1;
        if (!partition->stream->kind->take(partition, &records[i], item))
            continue;
        topics->bytes += item->made.size;
        partition->gathered_count++;
    }
    if (partition->next_offset > partition->log_end)
        partition->log_end = partition->next_offset;
    queue_reader_pause(partition->reader);
    partition_pump(partition);
}

/* Of a start at the end, this is where it begins. */
static void on_end(void *opaque, int64_t offset)
{
    struct partition *partition = opaque;

    partition->log_end = offset;
    if (partition->next_offset < offset)
        partition->next_offset = offset;
    partition_skip(partition);
}

static void on_reader_error(void *opaque, const struct err *err)
{
    struct partition *partition = opaque;
    struct stream *stream = partition->stream;

    if (err_class(err->code) == ERR_CLASS_RETRY) {
        stream_trouble(stream, "%s", err->text);
        return;
    }
    if (err->code == ERR_RANGE)
        (void)snprintf(
            stream->trouble, sizeof(stream->trouble),
            "partition %u: offset %lld is not in the topic any more: records before what is "
            "there are gone, or the topic was made anew; bind it again to begin anew",
            partition->number, (long long)partition->position);
    else
        mem_copy_text(stream->trouble, err->text);
    stream_trouble(stream, "%s", stream->trouble);
    partition->dead = true;
    queue_reader_close(&partition->reader);
    gathered_drop(partition);
}

static void partition_read(struct partition *partition)
{
    static const struct queue_reader_calls calls = {on_records, on_end, on_reader_error};
    struct stream *stream = partition->stream;
    int64_t start = partition->position;
    struct err err;

    if (start < 0)
        start = stream->binding->start_at_end ? QUEUE_OFFSET_END : QUEUE_OFFSET_BEGIN;
    partition->next_offset = partition->position;
    if (queue_reader_open(
            stream->consumer, stream->result ? topic_name(TOPIC_COMPLETED) : stream->binding->topic,
            partition->number, start, &calls, partition, &partition->reader, &err) < 0) {
        stream_trouble(stream, "%s", err.text);
        partition_restart(partition);
    }
}

static void on_taken(void *opaque, const struct pg_answer *answer)
{
    struct partition *partition = opaque;

    if (answer_is_late(partition))
        return;
    if (answer->err.code != ERR_OK || pg_row_count(answer, 0) != 1) {
        stream_trouble(partition->stream, "the ledger: %.300s", answer->err.text);
        partition->again_ms = loop_now_ms(partition->topics->loop) + AGAIN_MS;
        return;
    }
    partition->epoch = pg_u64(answer, 0, 0, 0);
    partition->position = partition->written = pg_i64(answer, 0, 0, 1);
    partition->claim_to = pg_i64(answer, 0, 0, 2);
    partition->claim_ms = pg_u64(answer, 0, 0, 3);
    mem_free(&partition->claim_targets);
    if (!pg_is_null(answer, 0, 0, 4))
        partition->claim_targets = xstrdup(pg_c(answer, 0, 0, 4));
    if (!partition->leaving)
        partition_read(partition);
}

static void partition_take(struct partition *partition)
{
    struct pg_batch *pg = pg_batch_new();

    pg_add(pg, &topic_take);
    bind_place(pg, partition);
    pg_bind_c(pg, partition->topics->boot);
    ledger_send(partition, pg, on_taken);
}

/* ---- the group ---- */

static void on_assigned(void *opaque, const uint32_t *numbers, size_t count)
{
    struct stream *stream = opaque;

    log_info("partitions_assigned", LOG_STR("binding", stream->binding->name),
             LOG_STR("way", stream->kind->what), LOG_U64("count", count));
    stream->trouble[0] = '\0';
    for (size_t i = 0; i < count; i++) {
        struct partition *partition = xcalloc(1, sizeof(*partition));

        partition->stream = stream;
        partition->topics = stream->topics;
        partition->number = numbers[i];
        partition->position = partition->written = partition->claim_to = -1;
        LIST_INSERT_HEAD(&stream->partitions, partition, link);
        partition_take(partition);
    }
}

/* It is freed by the last answer that it waits for. */
static void partition_orphan(struct partition *partition)
{
    struct batch *batch = partition->batch;

    queue_reader_close(&partition->reader);
    LIST_REMOVE(partition, link);
    LIST_INSERT_HEAD(&partition->topics->orphans, partition, link);
    partition->stream = NULL;
    if (batch != NULL && batch->claimed) {
        batch->left++;
        for (size_t i = 0; i < batch->count; i++) {
            if (batch->items[i].stage == ITEM_READY)
                item_done(&batch->items[i]);
        }
        batch_unpin(batch);
        return;
    }
    if (!partition->asking)
        partition_free(partition);
}

void orphans_free(struct topics *topics)
{
    struct partition *partition;

    while ((partition = LIST_FIRST(&topics->orphans)) != NULL)
        partition_free(partition);
}

static void partitions_orphan(struct stream *stream)
{
    struct partition *partition, *next;

    for (partition = LIST_FIRST(&stream->partitions); partition != NULL; partition = next) {
        next = LIST_NEXT(partition, link);
        partition_orphan(partition);
    }
}

/* One step towards giving back; true when it is. */
static bool partition_leave(struct partition *partition)
{
    partition->leaving = true;
    queue_reader_close(&partition->reader);
    gathered_drop(partition);
    if (!partition_is_idle(partition))
        return false;
    if (partition->epoch != 0 && !partition->dead && partition->position != partition->written) {
        position_write(partition);
        return false;
    }
    partition_free(partition);
    return true;
}

static void release_step(struct stream *stream, uint64_t now_ms)
{
    struct partition *partition, *next;

    for (partition = LIST_FIRST(&stream->partitions); partition != NULL; partition = next) {
        next = LIST_NEXT(partition, link);
        (void)partition_leave(partition);
    }
    if (!LIST_EMPTY(&stream->partitions) && now_ms < stream->release_by_ms)
        return;
    partitions_orphan(stream);
    stream->releasing = false;
    queue_election_release(stream->election);
}

static void on_revoked(void *opaque)
{
    struct stream *stream = opaque;
    uint64_t now_ms = loop_now_ms(stream->topics->loop);

    stream->releasing = true;
    stream->release_by_ms = now_ms + RELEASE_MS;
    release_step(stream, now_ms);
}

static void on_lost(void *opaque)
{
    struct stream *stream = opaque;

    stream->releasing = false;
    partitions_orphan(stream);
}

static void on_election_error(void *opaque, const struct err *err)
{
    struct stream *stream = opaque;

    stream_trouble(stream, "group '%s': %s",
                   stream->result ? "headrace.results" : stream->binding->group, err->text);
    stream->broken = stream->broken || err_class(err->code) == ERR_CLASS_FATAL;
}

/* ---- opening ---- */

static struct queue_options user_cluster(const struct binding *binding)
{
    const struct ingest_settings *settings = binding->topics->settings;
    bool own = binding->brokers[0] == '\0';

    return (struct queue_options){.bootstrap = own ? settings->kafka : binding->brokers,
                                  .client_id = "headrace-ingest",
                                  .properties = own ? settings->kafka_properties
                                                    : binding->properties};
}

static struct queue_options own_cluster(const struct topics *topics)
{
    return (struct queue_options){.bootstrap = topics->settings->kafka,
                                  .client_id = "headrace-ingest",
                                  .properties = topics->settings->kafka_properties};
}

static int stream_open_producer(struct stream *stream, struct err *err)
{
    const struct binding *binding = stream->binding;
    const char *topic = stream->result ? binding->result_topic : binding->dead_topic;
    const struct queue_producer_options options = {.queue = user_cluster(binding)};
    int r;

    if (topic == NULL || stream->producer != NULL)
        return 0;
    r = queue_producer_open(stream->topics->loop, &options, &stream->producer, err);
    if (r == 0)
        stream->topic_out = queue_producer_topic(stream->producer, topic);
    return r;
}

static int stream_join(struct stream *stream, struct err *err)
{
    static const struct queue_election_calls calls = {on_assigned, on_revoked, on_lost,
                                                      on_election_error};
    const struct binding *binding = stream->binding;
    OWNED(mem_free) char *results = xasprintf("headrace.results.%s", binding->id);
    const struct queue_election_options election = {
        .queue = stream->result ? own_cluster(stream->topics) : user_cluster(binding),
        .topic = stream->result ? topic_name(TOPIC_COMPLETED) : binding->topic,
        .group = stream->result ? results : binding->group,
        .session_timeout_ms = (uint32_t)stream->topics->settings->topics_session_ms,
    };
    int r = stream_open_producer(stream, err);

    if (r == 0)
        r = queue_consumer_open(stream->topics->loop, &election.queue, &stream->consumer, err);
    if (r == 0)
        r = queue_election_open(stream->topics->loop, &election, &calls, stream, &stream->election,
                                err);
    stream->is_open = r == 0;
    return r;
}

static void on_about(void *opaque, const char *cluster_id, uint32_t partition_count,
                     const struct err *err)
{
    struct stream *stream = opaque;
    const struct binding *binding = stream->binding;
    const char *topic = stream->result ? binding->result_topic : binding->topic;
    struct err why;

    (void)cluster_id;
    stream->asking = false;
    if (err != NULL) {
        stream_trouble(stream, "topic '%s': %s", topic, err->text);
        return;
    }
    if (partition_count == 0) {
        stream_trouble(stream, "there is no topic '%s' at %s", topic,
                       binding->brokers[0] != '\0' ? binding->brokers : "the platform's Kafka");
        return;
    }
    stream->problem[0] = '\0';
    if (!stream->is_open && stream_join(stream, &why) < 0)
        stream_trouble(stream, "%s", why.text);
}

/* Is the topic there, and may it be read? */
static void stream_ask(struct stream *stream, uint64_t now_ms)
{
    struct queue_options options = user_cluster(stream->binding);
    struct err err;

    options.explains = true;
    stream->asked_ms = now_ms;
    if (stream->admin == NULL &&
        queue_admin_open(stream->topics->loop, &options, &stream->admin, &err) < 0) {
        stream_trouble(stream, "%s", err.text);
        return;
    }
    stream->asking = true;
    queue_admin_about(stream->admin,
                      stream->result ? stream->binding->result_topic : stream->binding->topic,
                      ASK_TIMEOUT_MS, on_about, stream);
}

struct stream *stream_new(struct binding *binding, const struct stream_kind *kind)
{
    struct stream *stream = xcalloc(1, sizeof(*stream));

    stream->binding = binding;
    stream->topics = binding->topics;
    stream->kind = kind;
    stream->result = kind == &stream_out;
    LIST_INIT(&stream->partitions);
    return stream;
}

/* ---- time ---- */

static void on_ends(void *opaque, int64_t begin, int64_t end, const struct err *err)
{
    struct stream *stream = opaque;
    (void)begin;
    stream->asking = false;
    if (err == NULL && !LIST_EMPTY(&stream->partitions)) {
        struct partition *partition = LIST_FIRST(&stream->partitions);

        if (end > partition->log_end)
            partition->log_end = end;
        /* The next one is asked about next time. */
        if (LIST_NEXT(partition, link) != NULL) {
            struct partition *last = partition;

            while (LIST_NEXT(last, link) != NULL)
                last = LIST_NEXT(last, link);
            LIST_REMOVE(partition, link);
            LIST_INSERT_AFTER(last, partition, link);
        }
    }
}

static void stream_lag(struct stream *stream)
{
    const char *const values[] = {stream->binding->name};
    struct partition *partition;
    double lag = 0;

    LIST_FOREACH(partition, &stream->partitions, link)
    {
        if (partition->position >= 0 && partition->log_end > partition->position)
            lag += (double)(partition->log_end - partition->position);
    }
    if (!stream->result)
        metric_set(
            metrics_series(stream->topics->metrics, INGEST_METRIC_ingest_lag_records, values), lag);
}

static void partition_tick(struct partition *partition, uint64_t now_ms)
{
    if (partition->dead || partition->leaving || partition->asking)
        return;
    if (partition->epoch == 0) {
        if (now_ms >= partition->again_ms && partition->batch == NULL)
            partition_take(partition);
        return;
    }
    if (partition->batch != NULL) {
        if (now_ms >= partition->again_ms)
            batch_send(partition->batch);
        return;
    }
    partition_pump(partition);
    if (partition_is_idle(partition) && partition->position >= 0 &&
        partition->position != partition->written)
        position_write(partition);
}

static const char *stream_problem(struct stream *stream, uint64_t now_ms)
{
    const struct binding *binding = stream->binding;

    if (stream->trouble[0] != '\0')
        return stream->trouble;
    if (stream->problem[0] != '\0' && now_ms - stream->problem_ms > TROUBLE_MS)
        stream->problem[0] = '\0';
    if (stream->problem[0] != '\0')
        return stream->problem;
    return stream->result || binding->problem[0] == '\0' ? "" : binding->problem;
}

static void on_told(void *opaque, const struct pg_answer *answer)
{
    (void)opaque, (void)answer; /* said again in a while */
}

/* What is wrong is a row, for as long as it is said. */
static void stream_tell(struct stream *stream, uint64_t now_ms)
{
    const char *problem = stream_problem(stream, now_ms);
    struct pg_batch *pg;
    struct err err;

    if (strcmp(problem, stream->told) == 0 &&
        (problem[0] == '\0' || now_ms - stream->told_ms < TOLD_GAP_MS))
        return;
    if (!pg_connected(stream->topics->pg))
        return;
    pg = pg_batch_new();
    pg_add(pg, problem[0] != '\0' ? &topic_tell : &topic_fine);
    pg_bind_c(pg, stream->binding->id);
    pg_bind_bool(pg, stream->result);
    pg_bind_c(pg, stream->topics->boot);
    if (problem[0] != '\0')
        pg_bind_c(pg, problem);
    if (pg_send(stream->topics->pg, &pg, INGEST_QUERY_MS, on_told, stream->topics, &err) == 0) {
        mem_copy_text(stream->told, problem);
        stream->told_ms = now_ms;
    }
    pg_batch_free(&pg);
}

/* The membership is over for good: a new one is asked for. */
static void stream_reopen(struct stream *stream)
{
    stream->broken = stream->is_open = stream->releasing = false;
    partitions_orphan(stream);
    queue_election_close(&stream->election);
    queue_consumer_close(&stream->consumer);
}

void stream_tick(struct stream *stream, uint64_t now_ms)
{
    struct partition *partition, *next;

    if (stream->broken)
        stream_reopen(stream);
    if (!stream->is_open && !stream->asking && !stream->binding->refused &&
        now_ms - stream->asked_ms >= ASK_GAP_MS)
        stream_ask(stream, now_ms);
    if (stream->releasing)
        release_step(stream, now_ms);
    for (partition = LIST_FIRST(&stream->partitions); partition != NULL; partition = next) {
        next = LIST_NEXT(partition, link);
        partition_tick(partition, now_ms);
    }
    if (!stream->result && stream->is_open && !stream->asking &&
        (partition = LIST_FIRST(&stream->partitions)) != NULL &&
        now_ms - stream->asked_ms >= ENDS_GAP_MS) {
        stream->asked_ms = now_ms;
        stream->asking = true;
        queue_admin_ends(stream->admin, stream->binding->topic, partition->number, ASK_TIMEOUT_MS,
                         on_ends, stream);
    }
    stream_lag(stream);
    stream_tell(stream, now_ms);
}

/* ---- the end ---- */

static void on_left(void *opaque)
{
    struct stream *stream = opaque;

    stream->left = true;
}

void stream_leave(struct stream *stream)
{
    if (stream->election == NULL)
        stream->left = true;
    else
        queue_election_leave(stream->election,
                             stream->topics->settings->drain_ms > LEAVE_MS ? RELEASE_MS + LEAVE_MS
                                                                           : LEAVE_MS,
                             on_left);
}

size_t stream_busy(const struct stream *stream)
{
    const struct partition *partition;
    size_t count = stream->left ? 0 : 1;

    LIST_FOREACH(partition, &stream->partitions, link)
    {
        count++;
    }
    return count;
}

/* What is under way in the user's cluster is dropped without a report. */
static void others_forget(struct stream *stream)
{
    struct partition *partition;

    LIST_FOREACH(partition, &stream->partitions, link)
    {
        struct batch *batch = partition->batch;

        for (size_t i = 0; batch != NULL && i < batch->count; i++) {
            if (batch->items[i].stage == ITEM_SENDING &&
                (stream->result || batch->items[i].made.reason != NULL))
                batch->items[i].stage = ITEM_READY;
        }
    }
}

void stream_close(struct stream **stream_p)
{
    struct stream *stream = TAKE(*stream_p);

    if (stream == NULL)
        return;
    queue_producer_close(&stream->producer);
    others_forget(stream);
    partitions_orphan(stream);
    queue_election_close(&stream->election);
    queue_consumer_close(&stream->consumer);
    queue_admin_close(&stream->admin);
    free(stream);
}
