/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a coordinator stands on, made of memory: Postgres, Kafka's producer, Redis and the loop of
 * one process, in place of brokers/ and base/loop.c, which are not linked into this test.
 *
 * What was asked waits as an event; the world answers them one by one, in the order that Postgres
 * and Kafka keep and no other. A process that dies has its unanswered events dropped.
 */

#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "base/assert.h"
#include "base/buf.h"
#include "base/http_client.h"
#include "base/loop.h"
#include "base/mem.h"
#include "brokers/blob.h"
#include "brokers/cache.h"
#include "brokers/jq.h"
#include "brokers/pg.h"
#include "brokers/queue.h"
#include "schema/chain.h"
#include "schema/job_id.h"
#include "schema/model_plan.h"

#define BATCH_STATEMENTS_MAX 4
#define BATCH_IDS_MAX 1024
#define BATCH_VALUES_MAX 1024
#define BATCH_DIGESTS_MAX 1024
#define COLUMNS_MAX 6
#define TIMERS_MAX 4

struct pg_batch {
    const char *names[BATCH_STATEMENTS_MAX];
    size_t count;
    struct wire_id ids[BATCH_IDS_MAX]; /* of all statements */
    size_t id_count;
    int64_t number; /* the last one */
    bool flag;
    double seconds;
    int64_t numbers[BATCH_VALUES_MAX];
    size_t number_count;
    char texts[BATCH_VALUES_MAX][CHAIN_NAME_SIZE]; /* longer ones are cut */
    size_t text_count;
    uint8_t digests[BATCH_DIGESTS_MAX][BLOB_DIGEST_SIZE]; /* other bytes are not kept */
    size_t digest_count;
};

struct cell {
    bool null;
    int64_t number;
    struct wire_id id;
    char *text; /* NULL: none */
};

struct table {
    struct cell (*rows)[COLUMNS_MAX];
    size_t count;
};

struct pg_result {
    struct table tables[BATCH_STATEMENTS_MAX];
};

enum event_type { EVENT_PG, EVENT_REPORT, EVENT_CACHED, EVENT_WAKE };

struct event {
    TAILQ_ENTRY(event) link;
    enum event_type type;
    void *opaque;
    struct pg_batch *batch;
    pg_done_fn *answered;
    queue_report_fn *reported;
    int code; /* REPORT */
    cache_done_fn *cached;
    struct wire_id id; /* CACHED */
    struct buf bytes;  /* WAKE */
};
TAILQ_HEAD(events, event);

struct loop_timer {
    loop_call *call;
    void *opaque;
    uint64_t due_ms, repeat_ms; /* due 0: not running */
};

/* A process. */
struct loop {
    unsigned number;
    uint64_t now_ms;
    struct loop_timer timers[TIMERS_MAX];
    size_t timer_count;
    struct events events;
    bool pg_away, kafka_away, redis_away;
    const struct cache_listener_calls *listener;
    void *listener_opaque;
    char boot[64];
    void *world;
};

struct pg {
    struct loop *loop;
};
struct queue_producer {
    struct loop *loop;
};
struct queue_topic {
    int unused;
};
struct cache {
    struct loop *loop;
};
struct cache_listener {
    struct loop *loop;
};

/* The world's: takes a record into intake. Returns the code of the report. */
static int world_produce(struct loop *loop, const void *bytes, size_t size);

static struct event *event_add(struct loop *loop, enum event_type type, void *opaque)
{
    struct event *event = xcalloc(1, sizeof(*event));

    event->type = type;
    event->opaque = opaque;
    buf_init(&event->bytes, 1 << 16);
    TAILQ_INSERT_TAIL(&loop->events, event, link);
    return event;
}

static void event_free(struct loop *loop, struct event *event)
{
    TAILQ_REMOVE(&loop->events, event, link);
    buf_done(&event->bytes);
    free(event->batch);
    free(event);
}

/* ---- rows ---- */

static struct cell *row_add(struct pg_result *result, size_t at)
{
    struct table *table = &result->tables[at];

    table->rows = xrealloc(table->rows, table->count + 1, sizeof(*table->rows));
    memset(&table->rows[table->count], 0, sizeof(*table->rows));
    return table->rows[table->count++];
}

static void result_done(struct pg_result *result)
{
    for (size_t i = 0; i < BATCH_STATEMENTS_MAX; i++) {
        for (size_t n = 0; n < result->tables[i].count; n++) {
            for (size_t c = 0; c < COLUMNS_MAX; c++)
                free(result->tables[i].rows[n][c].text);
        }
        free(result->tables[i].rows);
    }
}

static const struct cell *cell_at(const struct pg_answer *answer, size_t at, size_t row,
                                  size_t column)
{
    assert(at < BATCH_STATEMENTS_MAX && row < answer->result->tables[at].count);
    return &answer->result->tables[at].rows[row][column];
}

/* ---- Postgres ---- */

int pg_open(struct loop *loop, const struct pg_options *options, struct pg **ret_pg,
            struct err *err)
{
    /* Refused, each would cost an attempt: all slots may have a run that begins. */
    assert(options->in_flight_max >= MODEL_SLOTS_MAX);
    (void)err;
    *ret_pg = xcalloc(1, sizeof(**ret_pg));
    (*ret_pg)->loop = loop;
    return 0;
}

void pg_close(struct pg **pg_p)
{
    free(TAKE(*pg_p));
}

bool pg_connected(const struct pg *pg)
{
    return !pg->loop->pg_away;
}

struct pg_batch *pg_batch_new(void)
{
    return xcalloc(1, sizeof(struct pg_batch));
}

void pg_batch_free(struct pg_batch **batch_p)
{
    free(TAKE(*batch_p));
}

void pg_add(struct pg_batch *batch, const struct pg_statement *statement)
{
    assert(batch->count < BATCH_STATEMENTS_MAX);
    batch->names[batch->count++] = statement->name;
}

void pg_bind_array(struct pg_batch *batch, enum pg_type type, size_t count)
{
    (void)batch;
    (void)type;
    (void)count;
}

void pg_bind_c(struct pg_batch *batch, const char *text)
{
    assert(batch->text_count < BATCH_VALUES_MAX);
    mem_copy_text(batch->texts[batch->text_count], text == NULL ? "" : text);
    batch->text_count++;
}

void pg_bind_i64(struct pg_batch *batch, int64_t value)
{
    assert(batch->number_count < BATCH_VALUES_MAX);
    batch->number = batch->numbers[batch->number_count++] = value;
}

void pg_bind_i32(struct pg_batch *batch, int64_t value)
{
    pg_bind_i64(batch, value);
}

void pg_bind_i16(struct pg_batch *batch, int64_t value)
{
    pg_bind_i64(batch, value);
}

void pg_bind_id(struct pg_batch *batch, const struct wire_id *id)
{
    assert(batch->id_count < BATCH_IDS_MAX);
    batch->ids[batch->id_count++] = *id;
}

void pg_bind_bytes(struct pg_batch *batch, struct wire_bytes bytes)
{
    if (bytes.size != BLOB_DIGEST_SIZE)
        return;
    assert(batch->digest_count < BATCH_DIGESTS_MAX);
    memcpy(batch->digests[batch->digest_count++], bytes.bytes, bytes.size);
}

void pg_bind_bool(struct pg_batch *batch, bool value)
{
    batch->flag = value;
}

void pg_bind_double(struct pg_batch *batch, double value)
{
    batch->seconds = value;
}

bool pg_is_null(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    return cell_at(answer, at, row, column)->null;
}

int pg_send(struct pg *pg, struct pg_batch **batch_p, uint32_t timeout_ms, pg_done_fn *done,
            void *opaque, struct err *err)
{
    struct event *event = event_add(pg->loop, EVENT_PG, opaque);

    (void)timeout_ms;
    (void)err;
    event->batch = TAKE(*batch_p);
    event->answered = done;
    return 0;
}

size_t pg_row_count(const struct pg_answer *answer, size_t at)
{
    return answer->result->tables[at].count;
}

bool pg_bool(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    return cell_at(answer, at, row, column)->number != 0;
}

int64_t pg_i64(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    return cell_at(answer, at, row, column)->number;
}

uint64_t pg_u64(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    return (uint64_t)cell_at(answer, at, row, column)->number;
}

struct wire_id pg_id(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    return cell_at(answer, at, row, column)->id;
}

const char *pg_c(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    const char *text = cell_at(answer, at, row, column)->text;

    return text == NULL ? "" : text;
}

struct wire_text pg_text(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    return WIRE_TEXT_OF(pg_c(answer, at, row, column));
}

struct wire_bytes pg_bytes(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    const char *text = pg_c(answer, at, row, column);

    return (struct wire_bytes){(const uint8_t *)text, strlen(text)};
}

/* ---- Kafka ---- */

int queue_producer_open(struct loop *loop, const struct queue_producer_options *options,
                        struct queue_producer **ret_producer, struct err *err)
{
    (void)options;
    (void)err;
    *ret_producer = xcalloc(1, sizeof(**ret_producer));
    (*ret_producer)->loop = loop;
    return 0;
}

void queue_producer_close(struct queue_producer **producer_p)
{
    free(TAKE(*producer_p));
}

struct queue_topic *queue_producer_topic(struct queue_producer *producer, const char *name)
{
    static struct queue_topic topic;

    (void)producer;
    (void)name;
    return &topic;
}

int queue_produce(struct queue_producer *producer, const struct queue_message *message,
                  struct err *err)
{
    struct event *event;
    int code;

    if (producer->loop->kafka_away)
        return err_set(err, ERR_FULL, "Kafka is away");
    code = world_produce(producer->loop, message->bytes, message->size);
    if (message->done == NULL)
        return 0;
    event = event_add(producer->loop, EVENT_REPORT, message->opaque);
    event->reported = message->done;
    event->code = code;
    return 0;
}

/* ---- Redis ---- */

int cache_open(struct loop *loop, const struct cache_options *options, struct cache **ret_cache,
               struct err *err)
{
    (void)options;
    (void)err;
    *ret_cache = xcalloc(1, sizeof(**ret_cache));
    (*ret_cache)->loop = loop;
    return 0;
}

void cache_close(struct cache **cache_p)
{
    free(TAKE(*cache_p));
}

int cache_listen(struct cache *cache, const char *boot, const struct cache_listener_calls *calls,
                 void *opaque, struct cache_listener **ret_listener, struct err *err)
{
    (void)err;
    *ret_listener = xcalloc(1, sizeof(**ret_listener));
    (*ret_listener)->loop = cache->loop;
    cache->loop->listener = calls;
    cache->loop->listener_opaque = opaque;
    mem_copy_text(cache->loop->boot, boot);
    return 0;
}

void cache_listener_close(struct cache_listener **listener_p)
{
    struct cache_listener *listener = TAKE(*listener_p);

    if (listener != NULL)
        listener->loop->listener = NULL;
    free(listener);
}

int cache_get_final(struct cache *cache, const struct wire_id *id, cache_done_fn *done,
                    void *opaque)
{
    struct event *event;

    if (cache->loop->redis_away)
        return ERR_UNAVAILABLE;
    event = event_add(cache->loop, EVENT_CACHED, opaque);
    event->cached = done;
    event->id = *id;
    return 0;
}

/* ---- streams: nobody follows one here ---- */

int cache_stream_add(struct cache *cache, const struct wire_id *id, struct cache_place place,
                     struct cache_place oldest, const void *bytes, size_t size, cache_done_fn *done,
                     void *opaque)
{
    (void)id, (void)place, (void)oldest, (void)bytes, (void)size, (void)done, (void)opaque;
    return cache->loop->redis_away ? ERR_UNAVAILABLE : 0;
}

int cache_stream_expire(struct cache *cache, const struct wire_id *id, uint32_t ttl_s)
{
    (void)id, (void)ttl_s;
    return cache->loop->redis_away ? ERR_UNAVAILABLE : 0;
}

int cache_wake(struct cache *cache, struct wire_text boot, const void *bytes, size_t size)
{
    (void)boot, (void)bytes, (void)size;
    return cache->loop->redis_away ? ERR_UNAVAILABLE : 0;
}

/* ---- the blob store: inputs and outputs of this test are small ---- */

int blob_store_open(struct loop *loop, const char *url, struct blob_store **ret_store,
                    struct err *err)
{
    (void)loop;
    (void)url;
    (void)ret_store;
    return err_set(err, ERR_UNSUPPORTED, "no blobs here");
}

void blob_store_close(struct blob_store **store_p)
{
    *store_p = NULL;
}

int blob_get(struct blob_store *store, const char *key, size_t limit, blob_bytes_call *done,
             void *opaque, struct err *err)
{
    (void)store;
    (void)key;
    (void)limit;
    (void)done;
    (void)opaque;
    return err_set(err, ERR_UNSUPPORTED, "no blobs here");
}

int blob_put(struct blob_store *store, const char *key, struct buf *bytes, blob_done_call *done,
             void *opaque, struct err *err)
{
    (void)store;
    (void)key;
    (void)bytes;
    (void)done;
    (void)opaque;
    return err_set(err, ERR_UNSUPPORTED, "no blobs here");
}

void blob_key_input(const struct wire_id *job, char to[BLOB_KEY_SIZE])
{
    (void)job;
    to[0] = '\0';
}

/* ---- calls of URLs, which the chains of this test do not have ---- */

int http_client_open(struct loop *loop, const struct http_client_options *options,
                     struct http_client **ret_client, struct err *err)
{
    (void)loop;
    (void)options;
    (void)ret_client;
    return err_set(err, ERR_UNSUPPORTED, "no calls here");
}

void http_client_close(struct http_client **client_p)
{
    *client_p = NULL;
}

int http_client_send(struct http_client *client, const struct http_send *send,
                     struct http_transfer **ret_transfer, struct err *err)
{
    (void)client;
    (void)send;
    (void)ret_transfer;
    return err_set(err, ERR_UNSUPPORTED, "no calls here");
}

void http_transfer_cancel(struct http_transfer *transfer)
{
    (void)transfer;
    NEVER("a call");
}

const char *http_transfer_header(const struct http_transfer *transfer, const char *name)
{
    (void)transfer;
    (void)name;
    NEVER("a call");
}

/* ---- jq: the chains of this test have no expressions ---- */

struct jq_pool {
    int unused;
};

struct jq_pool *jq_pool_new(struct loop *loop, const struct chain *chain)
{
    (void)loop;
    (void)chain;
    return xcalloc(1, sizeof(struct jq_pool));
}

void jq_pool_close(struct jq_pool **pool_p)
{
    free(TAKE(*pool_p));
}

void jq_pool_ask(struct jq_pool *pool, char **request_p, size_t size, jq_done_fn *done,
                 void *opaque)
{
    (void)pool;
    (void)request_p;
    (void)size;
    (void)done;
    (void)opaque;
    NEVER("an expression");
}

/* ---- the loop ---- */

uint64_t loop_now_ms(const struct loop *loop)
{
    return loop->now_ms;
}

struct loop_timer *loop_timer_new(struct loop *loop, loop_call *call, void *opaque)
{
    struct loop_timer *timer = &loop->timers[loop->timer_count++];

    assert(loop->timer_count <= TIMERS_MAX);
    *timer = (struct loop_timer){.call = call, .opaque = opaque};
    return timer;
}

/* Its due time is of the loop that it was made for: the clock is one for all. */
static uint64_t fake_clock_ms;

void loop_timer_start(struct loop_timer *timer, uint64_t delay_ms, uint64_t repeat_ms)
{
    timer->due_ms = fake_clock_ms + delay_ms;
    timer->repeat_ms = repeat_ms;
}

void loop_timer_free(struct loop_timer **timer_p)
{
    struct loop_timer *timer = TAKE(*timer_p);

    if (timer != NULL)
        timer->due_ms = 0;
}

static void loop_fire(struct loop *loop)
{
    loop->now_ms = fake_clock_ms;
    for (size_t i = 0; i < loop->timer_count; i++) {
        struct loop_timer *timer = &loop->timers[i];

        if (timer->due_ms == 0 || timer->due_ms > fake_clock_ms)
            continue;
        timer->due_ms = timer->repeat_ms == 0 ? 0 : fake_clock_ms + timer->repeat_ms;
        timer->call(timer->opaque);
    }
}
