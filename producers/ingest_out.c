/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A final job on its way to a result topic.
 *
 * Happy path: a record of `completed`, of the binding's model; the claim asks which record the job
 * was made of (where the binding has a topic of its own) and moves the position; the result goes
 * out with the key and the headers of that record, and with its id, round and status.
 *
 * At least once: what was sent and not yet written down is sent again after a crash, under the same
 * id and round. Results over JOB_OUTPUT_INLINE_MAX are in the blob store: what goes out refers to
 * them.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "producers/ingest_topics.h"
#include "schema/job.h"
#include "schema/message.h"
#include "schema/result_body.h"

#define OUR_HEADERS 5

PG_STATEMENT(
    topic_origin,
    "SELECT r.job_id IS NOT NULL, r.key, r.headers, r.number, r.record_offset FROM "
    "unnest($2::uuid[]) WITH ORDINALITY AS u (job, n) LEFT JOIN topic_record r ON r.job_id = "
    "u.job AND r.binding_id = $1 ORDER BY u.n");

static void made_header(struct ingest_record *made, const char *name, const char *value)
{
    const struct queue_header header = {name, value, strlen(value)};

    ingest_headers_pack(&header, 1, &made->headers);
}

/* Of a result that has no place in a record its size and where it is. */
static int body_write(const struct message_completed *completed, struct ingest_record *made,
                      struct err *err)
{
    struct buf body = BUF_WITH_LIMIT(QUEUE_RECORD_MAX);
    bool apart = completed->output_blob.size > 0;
    char size[24];
    int r = apart ? -1 : result_body_write(completed, completed->output, &body, err);

    if (r < 0) {
        struct message_completed referred = *completed;

        buf_done(&body);
        buf_init(&body, QUEUE_RECORD_MAX);
        referred.output_type = (struct wire_text){0};
        (void)snprintf(size, sizeof(size), "%llu", (unsigned long long)completed->output_size);
        made_header(made, "headrace-output-size", size);
        r = result_body_write(&referred, (struct wire_bytes){0}, &body, err);
    }
    made->input_size = body.size;
    made->input = (char *)TAKE(body.bytes);
    buf_done(&body);
    return r;
}

static bool out_take(struct partition *partition, const struct queue_record *record,
                     struct item *item)
{
    struct stream *stream = partition->stream;
    const struct binding *binding = stream->binding;
    struct ingest_record *made = &item->made;
    const struct message_completed *completed;
    char id[JOB_ID_TEXT_SIZE], round[24];
    struct message message;
    struct err err;

    if (message_decode(partition->topics->decoder, record->bytes, record->size, &message, &err) <
            0 ||
        message.type != MESSAGE_COMPLETED)
        return false;
    completed = &message.completed;
    if (!wire_text_equal(completed->tenant, binding->tenant) ||
        !wire_text_equal(completed->model, binding->model) || !job_state_known(completed->state) ||
        (binding->topic != NULL && job_id_time_ms(&completed->id) < binding->created_ms))
        return false;
    item->job = completed->id;
    made->priority = -1;
    buf_init(&made->headers, 2 * INGEST_HEADERS_SIZE_MAX);
    job_id_format(&completed->id, id);
    (void)snprintf(round, sizeof(round), "%llu", (unsigned long long)completed->round);
    made_header(made, "headrace-request-id", id);
    made_header(made, "headrace-round", round);
    made_header(made, "headrace-status", job_state_name((enum job_state)completed->state));
    if (body_write(completed, made, &err) < 0) {
        stream_trouble(stream, "job %s: %s", id, err.text);
        ingest_record_done(made);
        return false;
    }
    made->size = made->input_size + made->headers.size;
    return true;
}

static size_t out_allow(struct partition *partition, const struct item *items, size_t count)
{
    (void)partition, (void)items;
    return count;
}

static void out_claim(struct batch *batch, struct pg_batch *pg)
{
    const struct binding *binding = batch->partition->stream->binding;

    if (binding->topic == NULL)
        return;
    pg_add(pg, &topic_origin);
    pg_bind_c(pg, binding->id);
    pg_bind_array(pg, PG_ID, batch->count);
    for (size_t i = 0; i < batch->count; i++)
        pg_bind_id(pg, &batch->items[i].job);
}

static void out_on_claimed(struct batch *batch, const struct pg_answer *answer)
{
    struct topics *topics = batch->partition->topics;

    if (batch->partition->stream->binding->topic == NULL)
        return;
    for (size_t i = 0; i < batch->count && i < pg_row_count(answer, 1); i++) {
        struct item *item = &batch->items[i];
        struct ingest_record *made = &item->made;
        struct wire_bytes key = pg_bytes(answer, 1, i, 1), headers = pg_bytes(answer, 1, i, 2);
        char number[24];

        item->foreign = !pg_bool(answer, 1, i, 0);
        if (item->foreign)
            continue;
        topics->bytes -= made->size;
        made->has_key = !pg_is_null(answer, 1, i, 1);
        made->key_size = key.size;
        if (key.size > 0)
            made->key = xmemdup(key.bytes, key.size);
        (void)snprintf(number, sizeof(number), "%lld", (long long)pg_i64(answer, 1, i, 3));
        made_header(made, "headrace-partition", number);
        (void)snprintf(number, sizeof(number), "%lld", (long long)pg_i64(answer, 1, i, 4));
        made_header(made, "headrace-offset", number);
        buf_append(&made->headers, headers.bytes, headers.size);
        made->size += key.size + headers.size;
        topics->bytes += made->size;
    }
}

/* The topic takes less than that: its headers say the rest, and where the result is. */
static void body_shrink(struct item *item)
{
    char id[JOB_ID_TEXT_SIZE];

    job_id_format(&item->job, id);
    free(item->made.input);
    item->made.input = xasprintf(
        "{\"request_id\":\"%s\",\"type\":\"async_request_completed\",\"data\":null}", id);
    item->made.input_size = strlen(item->made.input);
}

static void on_report(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct item *item = opaque;
    struct stream *stream = item->batch->partition->stream;

    (void)tag;
    if (report->code == ERR_OK) {
        item_done(item);
        return;
    }
    if (stream != NULL)
        stream_trouble(stream, "result topic '%s': %s", stream->binding->result_topic, report->why);
    if (report->code == ERR_TOO_BIG)
        body_shrink(item);
    item_again(item);
}

static void out_send(struct item *item)
{
    struct stream *stream = item->batch->partition->stream;
    struct ingest_record *made = &item->made;
    struct queue_header headers[INGEST_HEADERS_MAX + OUR_HEADERS];
    size_t count = ingest_headers_unpack(
        (struct wire_bytes){made->headers.bytes, made->headers.size}, headers, COUNT_OF(headers));
    char id[JOB_ID_TEXT_SIZE];
    bool own_key = stream->binding->topic != NULL;
    struct queue_message message = {.topic = stream->topic_out,
                                    .partition = QUEUE_PARTITION_BY_KEY,
                                    .key = own_key ? made->key : (const void *)id,
                                    .key_size = own_key ? made->key_size : sizeof(id) - 1,
                                    .bytes = made->input,
                                    .size = made->input_size,
                                    .headers = headers,
                                    .header_count = count,
                                    .done = on_report,
                                    .opaque = item};
    struct err err;

    if (item->foreign) {
        item_done(item);
        return;
    }
    job_id_format(&item->job, id);
    if (queue_produce(stream->producer, &message, &err) == 0)
        item->stage = ITEM_SENDING;
    else
        stream_trouble(stream, "result topic '%s': %s", stream->binding->result_topic, err.text);
}

const struct stream_kind stream_out = {
    .what = "out",
    .take = out_take,
    .allow = out_allow,
    .claim = out_claim,
    .on_claimed = out_on_claimed,
    .send = out_send,
};
