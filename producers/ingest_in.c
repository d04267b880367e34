/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A record of a bound topic on its way to be a job.
 *
 * Happy path: mapped as it is read; with the claim it gets its id, the reservation of its key (when
 * it has one) and the row that its result will be addressed by; then its input goes to the blob
 * store if it is large, and the Submit to intake, marked as a repeat: it may be one.
 *
 * Failures: what cannot be mapped goes to the dead-letter topic, with why in its headers, is passed
 * over, or stops its partition, as the binding says. A key that has a job already: that one's
 * Submit is produced again under its own id, since whoever reserved it may have died before.
 */

#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/loop.h"
#include "brokers/blob.h"
#include "producers/ingest_topics.h"
#include "schema/job.h"
#include "schema/message.h"

#define RECORD_SIZE_MAX (128u << 10)
#define REFUSALS_KEPT 20 /* of a batch, as rows */
#define DEAD_HEADERS 5

PG_STATEMENT(
    topic_reserve,
    "INSERT INTO idempotency AS i (tenant, key, job_id, fingerprint, deployment_id, "
    "expires_at) SELECT DISTINCT ON (u.key) $1, u.key, u.job, u.digest, u.deployment, now() + "
    "make_interval(secs => $6) FROM unnest($2::text[], $3::uuid[], $4::bytea[], $5::text[]) "
    "WITH ORDINALITY AS u (key, job, digest, deployment, n) ORDER BY u.key, u.n ON CONFLICT "
    "(tenant, key) DO UPDATE SET job_id = excluded.job_id, fingerprint = "
    "excluded.fingerprint, deployment_id = excluded.deployment_id, created_at = now(), "
    "expires_at = excluded.expires_at WHERE i.expires_at < now()");
PG_STATEMENT(
    topic_reserved,
    "SELECT i.job_id, i.deployment_id FROM unnest($2::text[]) WITH ORDINALITY AS u (key, n) "
    "JOIN idempotency i ON i.tenant = $1 AND i.key = u.key ORDER BY u.n");
PG_STATEMENT(
    topic_record_insert,
    "INSERT INTO topic_record (job_id, binding_id, number, record_offset, key, headers) SELECT "
    "u.job, $1, $2, u.at, u.key, u.headers FROM unnest($3::uuid[], $4::bigint[], $5::bytea[], "
    "$6::bytea[]) AS u (job, at, key, headers) WHERE EXISTS (SELECT FROM topic_position p WHERE "
    "p.binding_id = $1 AND NOT p.result AND p.number = $2 AND p.epoch = $7) ON CONFLICT DO "
    "NOTHING");
PG_STATEMENT(
    topic_refuse,
    "INSERT INTO topic_refusal (binding_id, number, record_offset, reason) SELECT $1, $2, u.at, "
    "u.reason FROM unnest($3::bigint[], $4::text[]) AS u (at, reason) ON CONFLICT DO NOTHING");

static bool in_take(struct partition *partition, const struct queue_record *record,
                    struct item *item)
{
    struct binding *binding = partition->stream->binding;
    struct topics *topics = partition->topics;

    ingest_map_record(topics->mapper, binding->mapping, binding->topic, partition->number, record,
                      binding->result_topic != NULL, &item->made);
    if (item->made.reason == NULL && item->made.input_size > JOB_INPUT_INLINE_MAX &&
        topics->blobs == NULL)
        item->made.reason = xasprintf("its input has %zu bytes; over %u it needs a blob store, and "
                                      "this ingest has none",
                                      item->made.input_size, JOB_INPUT_INLINE_MAX);
    if (item->made.reason == NULL)
        (void)crypto_hash_sha256(item->digest, (const uint8_t *)item->made.input,
                                 item->made.input_size);
    return true;
}

/* ---- how many ---- */

static bool runs_ahead(struct topics *topics, const struct topic_targets *targets)
{
    for (size_t i = 0; i < targets->count; i++) {
        const struct shard_pace *pace = &topics->shards[targets->items[i].shard];

        if (pace->reported - pace->floor > topics->settings->topics_ahead)
            return true;
    }
    return false;
}

static bool stops_at(const struct binding *binding, const struct item *item)
{
    return item->made.reason != NULL && binding->dead_topic == NULL && !binding->skips_bad;
}

static size_t in_allow(struct partition *partition, const struct item *items, size_t count)
{
    struct stream *stream = partition->stream;
    struct binding *binding = stream->binding;
    struct topics *topics = partition->topics;
    size_t good = 0;

    if (binding->problem[0] != '\0' || binding->targets.count == 0)
        return 0;
    if (runs_ahead(topics, &binding->targets)) {
        topics->hurry = true;
        return 0;
    }
    if (binding->room < 1) {
        stream_trouble(stream, "waits: %s", binding->limit);
        return 0;
    }
    if ((double)count > binding->room)
        count = (size_t)binding->room;
    while (good < count && !stops_at(binding, &items[good]))
        good++;
    if (good == 0)
        stream_trouble(stream, "partition %u stands still at offset %lld: %.300s",
                       partition->number, (long long)items[0].offset, items[0].made.reason);
    binding->room -= (double)good;
    return good;
}

/* ---- the claim ---- */

/* Of the place and nothing else, but for the shard and the time of the claim. */
static void item_identify(struct item *item)
{
    const struct batch *batch = item->batch;
    const struct partition *partition = batch->partition;
    const char *binding = partition->stream->binding->id;
    const int64_t place[2] = {partition->number, item->offset};
    uint8_t hash[crypto_generichash_BYTES];
    crypto_generichash_state state;
    uint64_t share = 0;

    (void)crypto_generichash_init(&state, NULL, 0, sizeof(hash));
    (void)crypto_generichash_update(&state, (const uint8_t *)place, sizeof(place));
    (void)crypto_generichash_update(&state, (const uint8_t *)binding, strlen(binding));
    (void)crypto_generichash_final(&state, hash, sizeof(hash));
    memcpy(&share, hash + JOB_ID_RANDOM_SIZE, sizeof(share));
    share %= batch->targets.weight;
    while (share >= batch->targets.items[item->target].weight)
        share -= batch->targets.items[item->target++].weight;
    item->job = job_id_make(batch->targets.items[item->target].shard, batch->claim_ms, hash);
}

static size_t count_keyed(const struct batch *batch)
{
    size_t count = 0;

    for (size_t i = 0; i < batch->count; i++)
        count += batch->items[i].made.dedupe != NULL;
    return count;
}

#define EACH_KEYED(batch, item)                                                                    \
    for (struct item *item = (batch)->items; item < (batch)->items + (batch)->count; item++)       \
        if (item->made.dedupe != NULL)

static void claim_keys(struct batch *batch, struct pg_batch *pg, size_t keyed)
{
    const struct partition *partition = batch->partition;

    pg_add(pg, &topic_reserve);
    pg_bind_c(pg, partition->stream->binding->tenant);
    pg_bind_array(pg, PG_TEXT, keyed);
    EACH_KEYED(batch, item) pg_bind_c(pg, item->made.dedupe);
    pg_bind_array(pg, PG_ID, keyed);
    EACH_KEYED(batch, item) pg_bind_id(pg, &item->job);
    pg_bind_array(pg, PG_BYTES, keyed);
    EACH_KEYED(batch, item) pg_bind_bytes(pg, (struct wire_bytes){item->digest, 32});
    pg_bind_array(pg, PG_TEXT, keyed);
    EACH_KEYED(batch, item) pg_bind_c(pg, batch->targets.items[item->target].deployment);
    pg_bind_double(pg, (double)partition->topics->settings->keyed_lifetime_ms / 1000);
    pg_add(pg, &topic_reserved);
    pg_bind_c(pg, partition->stream->binding->tenant);
    pg_bind_array(pg, PG_TEXT, keyed);
    EACH_KEYED(batch, item) pg_bind_c(pg, item->made.dedupe);
}

static void claim_records(struct batch *batch, struct pg_batch *pg)
{
    const struct partition *partition = batch->partition;
    size_t good = 0;

    for (size_t i = 0; i < batch->count; i++)
        good += batch->items[i].made.reason == NULL;

#define EACH_GOOD                                                                                  \
    for (size_t i = 0; i < batch->count; i++)                                                      \
        if (batch->items[i].made.reason == NULL)
    pg_add(pg, &topic_record_insert);
    pg_bind_c(pg, partition->stream->binding->id);
    pg_bind_i32(pg, (int64_t)partition->number);
    pg_bind_array(pg, PG_ID, good);
    EACH_GOOD pg_bind_id(pg, &batch->items[i].job);
    pg_bind_array(pg, PG_I64, good);
    EACH_GOOD pg_bind_i64(pg, batch->items[i].offset);
    pg_bind_array(pg, PG_BYTES, good);
    EACH_GOOD
    {
        const struct ingest_record *made = &batch->items[i].made;
        static const uint8_t nothing[1];

        pg_bind_bytes(pg,
                      (struct wire_bytes){made->has_key && made->key == NULL ? nothing : made->key,
                                          made->key_size});
    }
    pg_bind_array(pg, PG_BYTES, good);
    EACH_GOOD pg_bind_bytes(pg, (struct wire_bytes){batch->items[i].made.headers.bytes,
                                                    batch->items[i].made.headers.size});
#undef EACH_GOOD
    pg_bind_i64(pg, (int64_t)partition->epoch); /* the claim before it has failed without it */
}

static void claim_refusals(struct batch *batch, struct pg_batch *pg)
{
    const struct partition *partition = batch->partition;
    const struct item *bad[REFUSALS_KEPT];
    size_t count = 0;

    for (size_t i = 0; i < batch->count && count < REFUSALS_KEPT; i++) {
        if (batch->items[i].made.reason != NULL)
            bad[count++] = &batch->items[i];
    }
    if (count == 0)
        return;
    pg_add(pg, &topic_refuse);
    pg_bind_c(pg, partition->stream->binding->id);
    pg_bind_i32(pg, (int64_t)partition->number);
    pg_bind_array(pg, PG_I64, count);
    for (size_t i = 0; i < count; i++)
        pg_bind_i64(pg, bad[i]->offset);
    pg_bind_array(pg, PG_TEXT, count);
    for (size_t i = 0; i < count; i++)
        pg_bind_c(pg, bad[i]->made.reason);
}

static void in_claim(struct batch *batch, struct pg_batch *pg)
{
    size_t keyed = count_keyed(batch);

    for (size_t i = 0; i < batch->count; i++) {
        if (batch->items[i].made.reason == NULL)
            item_identify(&batch->items[i]);
    }
    if (keyed > 0)
        claim_keys(batch, pg, keyed);
    if (batch->partition->stream->binding->result_topic != NULL)
        claim_records(batch, pg);
    claim_refusals(batch, pg);
}

/* The job that has the key already, by a deployment that we know how to address. */
static void item_adopt(struct item *item, const struct wire_id *job, const char *deployment)
{
    const struct topic_targets *targets = &item->batch->targets;

    item->repeated = true;
    item->foreign = true;
    item->job = *job;
    for (size_t i = 0; i < targets->count; i++) {
        if (strcmp(targets->items[i].deployment, deployment) != 0)
            continue;
        item->target = (uint32_t)i;
        item->foreign = false;
    }
}

static void in_on_claimed(struct batch *batch, const struct pg_answer *answer)
{
    size_t row = 0, keyed = count_keyed(batch);

    if (keyed == 0 || pg_row_count(answer, 2) != keyed)
        return; /* one that has expired in this moment: it runs under the id that it was given */
    EACH_KEYED(batch, item)
    {
        struct wire_id job = pg_id(answer, 2, row, 0);

        if (!job_id_equal(&job, &item->job))
            item_adopt(item, &job, pg_c(answer, 2, row, 1));
        row++;
    }
}

/* ---- sending ---- */

static void on_report(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct item *item = opaque;
    struct shard_pace *pace = &item->batch->partition->topics->shards[job_id_shard(&item->job)];

    (void)tag;
    if (report->code != ERR_OK) {
        if (item->batch->partition->stream != NULL)
            stream_trouble(item->batch->partition->stream, "the platform's Kafka: %s", report->why);
        item_again(item);
        return;
    }
    if (report->offset > pace->reported)
        pace->reported = report->offset;
    item_done(item);
}

static struct message_submit item_message(const struct item *item, const char *blob)
{
    const struct batch *batch = item->batch;
    const struct binding *binding = batch->partition->stream->binding;
    const struct topic_target *target = &batch->targets.items[item->target];

    return (struct message_submit){
        .id = item->job,
        .tenant = WIRE_TEXT_OF(binding->tenant),
        .model = WIRE_TEXT_OF(binding->model),
        .deployment = WIRE_TEXT_OF(target->deployment),
        .environment = WIRE_TEXT_OF(target->environment),
        .pool = WIRE_TEXT_OF(target->pool),
        .priority = item->made.priority >= 0 ? (uint64_t)item->made.priority : binding->priority,
        .input = {blob[0] == '\0' ? (const uint8_t *)item->made.input : NULL,
                  blob[0] == '\0' ? item->made.input_size : 0},
        .input_blob = WIRE_TEXT_OF(blob),
        .input_size = item->made.input_size,
        .input_digest = {item->digest, sizeof(item->digest)},
        .max_attempts = binding->max_attempts,
        .initial_delay_ms = JOB_INITIAL_DELAY_MS_DEFAULT,
        .max_delay_ms = JOB_MAX_DELAY_MS_DEFAULT,
        .queue_limit_ms = binding->queue_limit_ms,
        .run_limit_ms = target->run_limit_ms,
        .idempotency_key = item->made.dedupe == NULL ? (struct wire_text){NULL, 0}
                                                     : WIRE_TEXT_OF(item->made.dedupe),
        .repeat = true,
        .trace = WIRE_TEXT_OF(item->made.trace),
        .received_us = clock_wall_us(),
        .slot_count = 1,
        .tags = WIRE_TEXT_OF(binding->tags),
    };
}

static void item_produce(struct item *item)
{
    struct topics *topics = item->batch->partition->topics;
    OWNED(buf_done) struct buf record = BUF_WITH_LIMIT(RECORD_SIZE_MAX);
    struct queue_message message;
    struct message_submit fields;
    char blob[BLOB_KEY_SIZE] = "";
    struct err err;
    int r;

    if (item->made.input_size > JOB_INPUT_INLINE_MAX)
        blob_key_input(&item->job, blob);
    fields = item_message(item, blob);
    r = message_encode(MESSAGE_SUBMIT, &fields, &record, &err);
    message = (struct queue_message){.topic = topics->intake,
                                     .partition = job_id_shard(&item->job),
                                     .bytes = record.bytes,
                                     .size = record.size,
                                     .trace = item->made.trace,
                                     .done = on_report,
                                     .opaque = item};
    if (r == 0)
        r = queue_produce(topics->producer, &message, &err);
    if (r == 0)
        item->stage = ITEM_SENDING;
    else
        stream_trouble(item->batch->partition->stream, "the platform's Kafka: %s", err.text);
}

static void on_stored(void *opaque, const struct err *err)
{
    struct item *item = opaque;
    struct stream *stream = item->batch->partition->stream;

    item->stored = err->code == ERR_OK;
    if (stream != NULL && item->stored) {
        item->stage = ITEM_READY;
        item_produce(item);
        return;
    }
    if (stream != NULL)
        stream_trouble(stream, "the blob store: %.300s", err->text);
    item_again(item);
}

static void item_store(struct item *item)
{
    struct topics *topics = item->batch->partition->topics;
    struct buf input = BUF_WITH_LIMIT(QUEUE_RECORD_MAX * 2);
    char key[BLOB_KEY_SIZE];
    struct err err;

    blob_key_input(&item->job, key);
    buf_append(&input, item->made.input, item->made.input_size);
    if (blob_put(topics->blobs, key, &input, on_stored, item, &err) == 0)
        item->stage = ITEM_SENDING;
    else
        stream_trouble(item->batch->partition->stream, "the blob store: %.300s", err.text);
    buf_done(&input);
}

/* ---- dead letters ---- */

static void on_buried(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct item *item = opaque;
    struct stream *stream = item->batch->partition->stream;

    (void)tag;
    if (report->code == ERR_OK) {
        item_done(item);
        return;
    }
    if (stream != NULL)
        stream_trouble(stream, "dead-letter topic '%s': %s", stream->binding->dead_topic,
                       report->why);
    if (report->code == ERR_TOO_BIG)
        item->made.value_size = 0; /* that topic takes less than this one: its place says enough */
    item_again(item);
}

static void item_bury(struct item *item)
{
    struct partition *partition = item->batch->partition;
    struct stream *stream = partition->stream;
    struct queue_header headers[INGEST_HEADERS_MAX + DEAD_HEADERS];
    char number[12], offset[24];
    size_t count = ingest_headers_unpack(
        (struct wire_bytes){item->made.headers.bytes, item->made.headers.size}, headers,
        INGEST_HEADERS_MAX);
    const struct queue_header ours[DEAD_HEADERS] = {
        {"headrace-error", item->made.reason, strlen(item->made.reason)},
        {"headrace-binding", stream->binding->name, strlen(stream->binding->name)},
        {"headrace-topic", stream->binding->topic, strlen(stream->binding->topic)},
        {"headrace-partition", number,
         (size_t)snprintf(number, sizeof(number), "%u", partition->number)},
        {"headrace-offset", offset,
         (size_t)snprintf(offset, sizeof(offset), "%lld", (long long)item->offset)},
    };
    struct queue_message message = {.topic = stream->topic_out,
                                    .partition = QUEUE_PARTITION_BY_KEY,
                                    .key = item->made.key,
                                    .key_size = item->made.key_size,
                                    .bytes = item->made.value,
                                    .size = item->made.value_size,
                                    .headers = headers,
                                    .header_count = count + DEAD_HEADERS,
                                    .done = on_buried,
                                    .opaque = item};
    struct err err;

    memcpy(headers + count, ours, sizeof(ours));
    if (queue_produce(stream->producer, &message, &err) == 0)
        item->stage = ITEM_SENDING;
    else
        stream_trouble(stream, "dead-letter topic '%s': %s", stream->binding->dead_topic, err.text);
}

static void in_send(struct item *item)
{
    if (item->made.reason != NULL && item->batch->partition->stream->producer != NULL)
        item_bury(item);
    else if (item->made.reason != NULL || item->foreign)
        item_done(item);
    else if (item->made.input_size > JOB_INPUT_INLINE_MAX && !item->stored)
        item_store(item);
    else
        item_produce(item);
}

const struct stream_kind stream_in = {
    .what = "in",
    .take = in_take,
    .allow = in_allow,
    .claim = in_claim,
    .on_claimed = in_on_claimed,
    .send = in_send,
};
