/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What is told after a commit: for each job that the flush made final, its final key, a wake-up and
 * a `completed` record, all made from the committed row. Once Kafka has reported them the number of
 * the flush rides in a later flush row; a new owner publishes everything above it again
 * (PROTOCOL 1). Flushes are reported in any order, the number moves over those that are.
 */

#include <stdlib.h>
#include <string.h>

#include "brokers/owner_int.h"

static struct ledger_final final_of(const struct flush_job *row)
{
    const struct message_submit *submit = &row->spec->submit;

    return (struct ledger_final){
        .completed =
            {
                .id = submit->id,
                .round = row->spec->round,
                .tenant = submit->tenant,
                .model = submit->model,
                .deployment = submit->deployment,
                .environment = submit->environment,
                .state = row->state,
                .error_class = row->error_class,
                .error_message = row->error_message,
                .output = row->output,
                .output_blob = row->output_blob,
                .output_size = row->output_size,
                .webhook_url = submit->webhook_url,
                .accepted_us = row->spec->accepted_us,
                .finished_us = row->state_us,
                .trace = submit->trace,
                .attempts = row->attempt_count,
                .output_type = row->output_type,
                .http_status = row->http_status,
            },
        .gateway = submit->gateway,
        .sync = submit->sync,
        .bulk = row->spec->rank == JOB_RANK_BULK,
    };
}

/* Moves the published number over all flushes at the front whose records are reported. */
static void publish_advance(struct owner *owner)
{
    struct flush_batch *batch;

    while ((batch = TAILQ_FIRST(&owner->unpublished)) != NULL && batch->published) {
        TAILQ_REMOVE(&owner->unpublished, batch, link);
        owner->published_epoch = owner->epoch;
        owner->published_number = batch->flush.number;
        owner->unpublished_bytes -= batch->size;
        owner->unpublished_count--;
        owner->stats.published += batch->final_count;
        flush_batch_free(&batch);
    }
    command_on_published(owner);
}

static void publish_add(struct owner *owner, struct flush_batch *batch)
{
    struct todo_node *node;

    TAILQ_INSERT_TAIL(&owner->unpublished, batch, link);
    owner->unpublished_bytes += batch->size;
    owner->unpublished_count++;
    if (batch->final_count == 0) {
        batch->published = true;
        publish_advance(owner);
        return;
    }
    node = todo_add(owner, OWNER_TODO_PUBLISH);
    node->todo.publish.flush_number = batch->flush.number;
    node->todo.publish.finals = batch->finals;
    node->todo.publish.final_count = batch->final_count;
}

/* Takes the committed flush. Only rows that the statement returned are told about. */
void publish_batch(struct owner *owner, struct flush_batch *batch, const bool *applied)
{
    batch->finals = xcalloc(batch->flush.job_count + 1, sizeof(*batch->finals));
    for (size_t i = 0; i < batch->flush.job_count; i++) {
        const struct flush_job *row = &batch->jobs[i];

        if (!job_state_final(row->state))
            continue;
        if (!applied[i] && owner_guarded(owner, OWNER_GUARD_RETURNING)) {
            owner->stats.fenced++;
            continue;
        }
        batch->finals[batch->final_count++] = final_of(row);
    }
    publish_add(owner, batch);
}

void owner_on_published(struct owner *owner, uint64_t flush_number)
{
    struct flush_batch *batch;

    TAILQ_FOREACH(batch, &owner->unpublished, link)
    {
        if (batch->flush.number == flush_number)
            batch->published = true;
    }
    publish_advance(owner);
}

static struct wire_text text_dup(struct wire_text text)
{
    return (struct wire_text){text.size == 0 ? NULL : xmemdup(text.text, text.size), text.size};
}

/* The store's memory ends with the call that hands the takeover over, so what is to be published
 * again is copied as one encoded message each, and read from there. */
static void takeover_copy(struct owner *owner, struct flush_batch *batch,
                          const struct ledger_final *from)
{
    struct flush_item *item = &batch->items[batch->final_count];
    struct ledger_final *to = &batch->finals[batch->final_count];
    struct message message;
    struct err err;

    buf_clear(&owner->scratch);
    if (message_encode(MESSAGE_COMPLETED, &from->completed, &owner->scratch, &err) < 0)
        return; /* no writer of ours makes one; the webhook sender could not read it either */
    item->copy = xmemdup(owner->scratch.bytes, owner->scratch.size);
    if (message_decode(owner->decoder, item->copy, owner->scratch.size, &message, &err) < 0)
        NEVER("a message that was encoded cannot be decoded");
    to->completed = message.completed;
    item->gateway = text_dup(from->gateway);
    to->gateway = item->gateway;
    to->sync = from->sync;
    to->bulk = from->bulk;
    batch->size += owner->scratch.size;
    batch->final_count++;
}

void publish_takeover(struct owner *owner, const struct ledger_takeover *takeover)
{
    size_t count = owner_guarded(owner, OWNER_GUARD_REPUBLISH) ? takeover->unpublished_count : 0;
    struct flush_batch *batch = xcalloc(1, sizeof(*batch));

    batch->flush.epoch = owner->epoch;
    batch->finals = xcalloc(count + 1, sizeof(*batch->finals));
    batch->items = xcalloc(count + 1, sizeof(*batch->items));
    batch->item_count = count;
    for (size_t i = 0; i < count; i++)
        takeover_copy(owner, batch, &takeover->unpublished[i]);
    publish_add(owner, batch);
}
