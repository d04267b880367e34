/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A committed flush becomes known: the final key in Redis, a wake-up to the gateway that waits, and
 * a record in `completed`, made from the committed row (DESIGN 3.4).
 *
 * Happy path: all of a flush at once; when Kafka has reported the last record, the owner may say so
 * in a later flush row.
 *
 * Failures: a record that fails, or may have failed, is sent again: copies are equal, and consumers
 * know a job by (id, round). Redis is told once, and only a hint: who misses it asks Postgres.
 *
 * At shutdown or when the shard is lost: dropped; the next owner publishes again what is above the
 * number in the ledger.
 */

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "brokers/broker.h"
#include "brokers/fault.h"
#include "schema/chain.h"
#include "schema/job_id.h"

#define WAKE_COMPLETED_MAX 4096 /* what a wake-up may carry: its field's limit */

enum record_phase {
    RECORD_NEW,    /* Redis was not told yet either */
    RECORD_UNSENT, /* to be sent (again) */
    RECORD_SENT,
    RECORD_REPORTED,
};

/* One flush. */
struct publication {
    TAILQ_ENTRY(publication) next; /* in its list, or in broker->dropped_publications */
    struct broker *broker;
    struct publication_list *list; /* NULL: dropped, only reports are awaited */
    uint64_t flush_number;
    const struct ledger_final *finals; /* the owner's, until it is told */
    uint32_t final_count, unsent_count, sent_count;
    uint8_t phases[]; /* enum record_phase by final */
};

struct publication_list {
    struct shard *shard;
    TAILQ_HEAD(, publication) head;
};

struct publication_list *publications_new(struct shard *shard)
{
    struct publication_list *list = xcalloc(1, sizeof(*list));

    list->shard = shard;
    TAILQ_INIT(&list->head);
    return list;
}

static void publication_drop(struct publication *publication)
{
    TAILQ_REMOVE(&publication->list->head, publication, next);
    publication->list = NULL;
    if (publication->sent_count == 0)
        free(publication);
    else
        TAILQ_INSERT_TAIL(&publication->broker->dropped_publications, publication, next);
}

static void dropped_free(struct publication *publication)
{
    TAILQ_REMOVE(&publication->broker->dropped_publications, publication, next);
    free(publication);
}

void publications_forget(struct broker *broker)
{
    struct publication *publication;

    while ((publication = TAILQ_FIRST(&broker->dropped_publications)) != NULL)
        dropped_free(publication);
}

void publications_free(struct publication_list **list_p)
{
    struct publication_list *list = TAKE(*list_p);
    struct publication *publication;

    if (list == NULL)
        return;
    while ((publication = TAILQ_FIRST(&list->head)) != NULL)
        publication_drop(publication);
    free(list);
}

static void on_reported(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct publication *publication = opaque;
    struct shard *shard;

    publication->sent_count--;
    if (publication->list == NULL) {
        if (publication->sent_count == 0)
            dropped_free(publication);
        return;
    }
    shard = publication->list->shard;
    if (report->code != ERR_OK) {
        publication->phases[tag] = RECORD_UNSENT;
        publication->unsent_count++;
        shard_touch(shard);
        return;
    }
    publication->phases[tag] = RECORD_REPORTED;
    if (publication->sent_count + publication->unsent_count > 0)
        return;
    fault_point(FAULT_broker_completed);
    shard_touch(shard);
    owner_on_published(shard->owner, publication->flush_number);
    publication_drop(publication);
}

static bool is_coordinator(struct wire_text channel)
{
    return channel.size >= sizeof(CHAIN_BOOT_PREFIX) - 1 &&
           memcmp(channel.text, CHAIN_BOOT_PREFIX, sizeof(CHAIN_BOOT_PREFIX) - 1) == 0;
}

/* Once per job and owner: the key for those who poll, the wake-up for the one who waits. */
static void final_tell(struct shard *shard, const struct ledger_final *final,
                       const struct buf *bytes)
{
    struct broker *broker = shard->broker;
    struct message_wake wake = {.id = final->completed.id, .state = final->completed.state};
    const uint32_t ttl_s = (uint32_t)(broker->settings.final_ttl_ms / 1000);
    struct err err;

    if (ttl_s > 0 && !final->bulk)
        (void)cache_set_final(broker->cache, &final->completed.id, bytes->bytes, bytes->size, ttl_s,
                              NULL, NULL);
    if (final->gateway.size == 0)
        return;
    if (is_coordinator(final->gateway) && bytes->size <= WAKE_COMPLETED_MAX)
        wake.completed = (struct wire_bytes){bytes->bytes, bytes->size};
    buf_clear(&broker->wake_scratch);
    if (message_encode(MESSAGE_WAKE, &wake, &broker->wake_scratch, &err) == 0)
        (void)cache_wake(broker->cache, final->gateway, broker->wake_scratch.bytes,
                         broker->wake_scratch.size);
}

/* False: Kafka's queue is full, try again later. */
static bool final_send(struct publication *publication, uint32_t index)
{
    struct shard *shard = publication->list->shard;
    struct broker *broker = shard->broker;
    const struct ledger_final *final = &publication->finals[index];
    struct queue_message message = {
        .topic = broker->completed,
        .partition = shard->number,
        .key = final->completed.id.bytes,
        .key_size = WIRE_ID_SIZE,
        .done = on_reported,
        .opaque = publication,
        .tag = index,
    };
    struct err err;

    buf_clear(&broker->scratch);
    if (message_encode(MESSAGE_COMPLETED, &final->completed, &broker->scratch, &err) < 0)
        NEVER("a committed row makes a valid message");
    if (publication->phases[index] == RECORD_NEW) {
        final_tell(shard, final, &broker->scratch);
        publication->phases[index] = RECORD_UNSENT;
        fault_point(FAULT_broker_told);
    }
    message.bytes = broker->scratch.bytes;
    message.size = broker->scratch.size;
    return queue_produce(broker->producer, &message, &err) == 0;
}

/* What ended badly is news; the rest only for who looks closely. */
static void final_log(struct shard *shard, const struct message_completed *completed)
{
    bool bad = completed->state == JOB_FAILED || completed->state == JOB_EXPIRED;
    enum log_level level = bad ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG;
    char id[JOB_ID_TEXT_SIZE];

    if (!log_enabled(level))
        return;
    job_id_format(&completed->id, id);
    log_line(level, "job_published", LOG_STR("job", id), LOG_U64("attempt", completed->attempts),
             LOG_TEXT("tenant", completed->tenant.text, completed->tenant.size),
             LOG_TRACE(completed->trace.text, completed->trace.size),
             LOG_STR("state", job_state_name((enum job_state)completed->state)),
             LOG_STR(bad && error_class_known(completed->error_class) ? "class" : NULL,
                     error_class_known(completed->error_class)
                         ? error_class_name((enum error_class)completed->error_class)
                         : ""),
             LOG_U64("round", completed->round), LOG_U64("shard", shard->number));
}

/* False: Kafka's queue is full. */
static bool publication_push(struct publication *publication)
{
    for (uint32_t i = 0; i < publication->final_count && publication->unsent_count > 0; i++) {
        if (publication->phases[i] > RECORD_UNSENT)
            continue;
        if (!final_send(publication, i))
            return false;
        publication->phases[i] = RECORD_SENT;
        publication->unsent_count--;
        publication->sent_count++;
    }
    return true;
}

bool publications_push(struct shard *shard)
{
    struct publication *publication;

    TAILQ_FOREACH(publication, &shard->publications->head, next)
    {
        if (!publication_push(publication))
            return true;
    }
    return false;
}

void publication_add(struct shard *shard, uint64_t flush_number, const struct ledger_final *finals,
                     size_t final_count)
{
    struct publication *publication = xcalloc(1, sizeof(*publication) + final_count);

    publication->broker = shard->broker;
    publication->list = shard->publications;
    publication->flush_number = flush_number;
    publication->finals = finals;
    publication->final_count = publication->unsent_count = (uint32_t)final_count;
    TAILQ_INSERT_TAIL(&shard->publications->head, publication, next);
    for (size_t i = 0; i < final_count; i++) {
        final_log(shard, &finals[i].completed);
        broker_public_final(shard->broker, &finals[i]);
        broker_trace_final(shard->broker, &finals[i].completed);
    }
    if (final_count == 0) {
        owner_on_published(shard->owner, flush_number);
        publication_drop(publication);
        return;
    }
    (void)publications_push(shard);
}
