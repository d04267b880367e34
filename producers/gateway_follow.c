/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Happy path: a wake-up says that the job is final; its key is read from Redis, all who follow it
 * are told.
 *
 * Failures: the key is not there, or Redis is away: the row says it. No wake-up: every LOOK_MS at
 * first, then every LOOK_MS_MAX, one query asks for all jobs that are due; at once for all when the
 * subscription had to be made anew. Postgres is away as well: the followers wait on, up to their
 * own limits.
 *
 * At shutdown: whoever still follows is let go of without a call; queries that are out are dropped
 * by their adapters.
 */

#include "producers/gateway_follow.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/loop.h"
#include "brokers/cache.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "schema/job.h"
#include "schema/job_id.h"

#define uthash_fatal(text) NEVER(text)
#define uthash_malloc(size) xmalloc(size)
#include <uthash.h>

#define LOOK_MS 250
#define LOOK_MS_MAX 1000
#define LOOK_COUNT_MAX 1000
#define MISSED_COUNT 256
#define READ_ENTRIES 16 /* of a reading: at most 1 MiB */

PG_STATEMENT(follow_look, "SELECT id FROM job WHERE id = ANY($1) AND state NOT IN (1, 2)");
PG_STATEMENT(
    follow_final,
    "SELECT j.round, j.tenant, j.model, j.deployment, coalesce(j.environment, ''), "
    "j.state, j.error_class, coalesce(j.error_message, ''), r.output, "
    "coalesce(r.output_blob, ''), coalesce(r.output_size, 0), coalesce(r.output_type, ''), "
    "coalesce(r.http_status, 0), j.attempt_count, j.accepted_at, j.state_at, "
    "coalesce(j.webhook_url, '') FROM job j "
    "LEFT JOIN job_result r ON r.job_id = j.id AND r.round = j.round "
    "WHERE j.id = $1 AND j.state NOT IN (1, 2)");

/* A job that somebody follows. */
struct topic {
    UT_hash_handle hh;
    struct follows *follows;
    struct wire_id id;
    TAILQ_HEAD(, follow) list;
    uint32_t pin_count; /* who will still look at it */
    uint64_t look_ms, gap_ms;
    bool asking; /* its key, or its row, is being read */
};

struct follow {
    TAILQ_ENTRY(follow) link;
    LIST_ENTRY(follow) all_link; /* until it is freed for good */
    struct gateway *gateway;
    struct topic *topic; /* NULL: it was freed while a reading is out */
    const struct follow_calls *calls;
    void *opaque;
    struct cursor cursor;
    uint64_t read_ms;
    bool alone, reading, again;
};

struct follows {
    struct gateway *gateway;
    struct topic *topics; /* by id */
    LIST_HEAD(, follow) all;
    struct loop_timer *look; /* runs while there are topics */
    bool looking;
    struct missed {
        struct wire_id id;
        bool final;
    } missed[MISSED_COUNT]; /* wake-ups that nobody waited for, a ring */
    size_t missed_at;
};

/* ---- topics ---- */

static struct topic *topic_find(struct follows *follows, const struct wire_id *id)
{
    struct topic *topic;

    HASH_FIND(hh, follows->topics, id, sizeof(*id), topic);
    return topic;
}

static void topic_free_when_done(struct topic *topic)
{
    if (topic->pin_count > 0 || !TAILQ_EMPTY(&topic->list))
        return;
    HASH_DEL(topic->follows->topics, topic);
    if (topic->follows->topics == NULL)
        loop_timer_stop(topic->follows->look);
    free(topic);
}

static void topic_unpin(struct topic *topic)
{
    topic->pin_count--;
    topic_free_when_done(topic);
}

static struct topic *topic_get(struct follows *follows, const struct wire_id *id)
{
    struct topic *topic = topic_find(follows, id);

    if (topic != NULL)
        return topic;
    topic = xcalloc(1, sizeof(*topic));
    topic->follows = follows;
    topic->id = *id;
    topic->gap_ms = LOOK_MS;
    topic->look_ms = loop_now_ms(follows->gateway->loop) + LOOK_MS;
    TAILQ_INIT(&topic->list);
    HASH_ADD(hh, follows->topics, id, sizeof(topic->id), topic);
    if (!loop_timer_is_running(follows->look))
        loop_timer_start(follows->look, LOOK_MS, LOOK_MS);
    return topic;
}

static void topic_news(struct topic *topic)
{
    struct follow *follow, *next;

    topic->pin_count++;
    for (follow = TAILQ_FIRST(&topic->list); follow != NULL; follow = next) {
        next = TAILQ_NEXT(follow, link);
        if (follow->calls->on_news != NULL)
            follow->calls->on_news(follow->opaque);
    }
    topic_unpin(topic);
}

/* ---- what is final ---- */

static void topic_final(struct topic *topic, const struct message_completed *completed)
{
    struct follow *follow, *next;

    for (follow = TAILQ_FIRST(&topic->list); follow != NULL; follow = next) {
        next = TAILQ_NEXT(follow, link);
        follow->calls->on_final(follow->opaque, completed);
    }
}

static struct message_completed completed_of(const struct topic *topic,
                                             const struct pg_answer *answer)
{
    return (struct message_completed){
        .id = topic->id,
        .round = pg_u64(answer, 0, 0, 0),
        .tenant = pg_text(answer, 0, 0, 1),
        .model = pg_text(answer, 0, 0, 2),
        .deployment = pg_text(answer, 0, 0, 3),
        .environment = pg_text(answer, 0, 0, 4),
        .state = pg_u64(answer, 0, 0, 5),
        .error_class = pg_u64(answer, 0, 0, 6),
        .error_message = pg_text(answer, 0, 0, 7),
        .output = pg_bytes(answer, 0, 0, 8),
        .output_blob = pg_text(answer, 0, 0, 9),
        .output_size = pg_u64(answer, 0, 0, 10),
        .output_type = pg_text(answer, 0, 0, 11),
        .http_status = pg_u64(answer, 0, 0, 12),
        .attempts = pg_u64(answer, 0, 0, 13),
        .accepted_us = pg_time_us(answer, 0, 0, 14),
        .finished_us = pg_time_us(answer, 0, 0, 15),
        .webhook_url = pg_text(answer, 0, 0, 16),
    };
}

static void on_row(void *opaque, const struct pg_answer *answer)
{
    struct topic *topic = opaque;
    struct message_completed completed;

    topic->asking = false;
    if (answer->err.code == ERR_OK && pg_row_count(answer, 0) == 1) {
        completed = completed_of(topic, answer);
        topic_final(topic, &completed);
    }
    topic_unpin(topic); /* no row: the next look finds it */
}

static void topic_ask_row(struct topic *topic)
{
    struct gateway *gateway = topic->follows->gateway;
    struct pg_batch *batch = pg_batch_new();
    struct err err;

    pg_add(batch, &follow_final);
    pg_bind_id(batch, &topic->id);
    topic->asking = pg_pool_connected(gateway->pg) &&
                    pg_pool_send(gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_row, topic,
                                 &err) == 0;
    topic->pin_count += topic->asking;
    pg_batch_free(&batch);
}

static void on_cached(void *opaque, int code, const void *bytes, size_t size)
{
    struct topic *topic = opaque;
    struct message message;
    struct err err;

    topic->asking = false;
    if (code == ERR_OK &&
        message_decode(topic->follows->gateway->decoder, bytes, size, &message, &err) == 0 &&
        message.type == MESSAGE_COMPLETED)
        topic_final(topic, &message.completed);
    else if (!TAILQ_EMPTY(&topic->list))
        topic_ask_row(topic);
    topic_unpin(topic);
}

static void topic_ask(struct topic *topic)
{
    if (topic->asking)
        return;
    topic->asking = cache_get_final(topic->follows->gateway->cache, &topic->id, on_cached, topic) ==
                    0;
    if (topic->asking)
        topic->pin_count++;
    else
        topic_ask_row(topic);
}

/* ---- wake-ups, and their loss ---- */

static void topic_hear(struct topic *topic, bool final)
{
    if (final)
        topic_ask(topic);
    else
        topic_news(topic);
}

void gateway_follows_on_wake(struct follows *follows, const void *bytes, size_t size)
{
    struct message message;
    struct topic *topic;
    struct err err;
    bool final;

    if (message_decode(follows->gateway->decoder, bytes, size, &message, &err) < 0 ||
        message.type != MESSAGE_WAKE || message.wake.request != 0)
        return; /* a hint that cannot be read is none */
    topic = topic_find(follows, &message.wake.id);
    final = job_state_known(message.wake.state) &&
            job_state_final((enum job_state)message.wake.state);
    if (topic != NULL)
        topic_hear(topic, final);
    else
        follows->missed[follows->missed_at++ % MISSED_COUNT] = (struct missed){message.wake.id,
                                                                               final};
}

void follow_catch_up(struct follow *follow)
{
    const struct follows *follows = follow->gateway->follows;
    bool heard = false, final = false;

    for (size_t i = 0; i < MISSED_COUNT; i++) {
        if (memcmp(&follows->missed[i].id, &follow->topic->id, sizeof(struct wire_id)) == 0) {
            heard = true;
            final |= follows->missed[i].final;
        }
    }
    if (heard)
        topic_hear(follow->topic, final);
}

static void on_look(void *opaque, const struct pg_answer *answer)
{
    struct follows *follows = opaque;

    follows->looking = false;
    for (size_t i = 0; answer->err.code == ERR_OK && i < pg_row_count(answer, 0); i++) {
        struct wire_id id = pg_id(answer, 0, i, 0);
        struct topic *topic = topic_find(follows, &id);

        if (topic != NULL && !topic->asking)
            topic_ask_row(topic);
    }
}

/* Asks Postgres for those that are due. */
static void follows_look(struct follows *follows, uint64_t now_ms)
{
    struct topic *topic, *next, *due[LOOK_COUNT_MAX];
    struct pg_batch *batch;
    size_t count = 0;
    struct err err;

    if (follows->looking || !pg_pool_connected(follows->gateway->pg))
        return;
    HASH_ITER(hh, follows->topics, topic, next)
    {
        if (topic->look_ms <= now_ms && count < LOOK_COUNT_MAX && !topic->asking)
            due[count++] = topic;
    }
    if (count == 0)
        return;
    batch = pg_batch_new();
    pg_add(batch, &follow_look);
    pg_bind_array(batch, PG_ID, count);
    for (size_t i = 0; i < count; i++) {
        pg_bind_id(batch, &due[i]->id);
        due[i]->look_ms = now_ms + due[i]->gap_ms;
        due[i]->gap_ms = 2 * due[i]->gap_ms < LOOK_MS_MAX ? 2 * due[i]->gap_ms : LOOK_MS_MAX;
    }
    follows->looking = pg_pool_send(follows->gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_look,
                                    follows, &err) == 0;
    pg_batch_free(&batch);
}

/* A wake-up about pieces may be lost as well: whoever has read nothing for a while looks. */
static void follows_read(struct follows *follows, uint64_t now_ms)
{
    struct topic *topic, *next;

    HASH_ITER(hh, follows->topics, topic, next)
    {
        const struct follow *first = TAILQ_FIRST(&topic->list);

        if (first != NULL && first->read_ms + LOOK_MS_MAX <= now_ms)
            topic_news(topic);
    }
}

static void on_timer(void *opaque)
{
    struct follows *follows = opaque;
    uint64_t now_ms = loop_now_ms(follows->gateway->loop);

    follows_look(follows, now_ms);
    follows_read(follows, now_ms);
}

void gateway_follows_look(struct follows *follows)
{
    struct topic *topic, *next;

    HASH_ITER(hh, follows->topics, topic, next)
    {
        topic->look_ms = 0;
        topic->gap_ms = LOOK_MS;
        topic_news(topic);
    }
}

void gateway_follows_on_joined(struct follows *follows, const char *name)
{
    struct topic *topic;
    struct wire_id id;
    struct err err;

    if (job_id_parse(name, &id, &err) < 0)
        return;
    topic = topic_find(follows, &id);
    if (topic == NULL)
        return;
    topic->look_ms = 0; /* what was said before was not heard */
    topic_news(topic);
}

/* ---- pieces ---- */

/* False: no room, or the follow is gone. */
static bool follow_take(struct follow *follow, const struct cache_entry *entry)
{
    struct cursor_step step;
    struct message message;
    struct err err;

    if (message_decode(follow->gateway->decoder, entry->bytes, entry->size, &message, &err) < 0 ||
        message.type != MESSAGE_PIECE)
        return true; /* not ours, or of a newer program: it counts as a gap */
    step = cursor_look(&follow->cursor, entry->place, &message.piece);
    if (step.old)
        return true;
    if (!follow->calls->on_piece(follow->opaque, &step, entry->place, &message.piece))
        return false;
    if (follow->topic != NULL)
        cursor_take(&follow->cursor, entry->place, &message.piece);
    return follow->topic != NULL;
}

static void follow_done(struct follow *follow)
{
    LIST_REMOVE(follow, all_link);
    free(follow);
}

static void on_entries(void *opaque, int code, const struct cache_entry *entries, size_t count)
{
    struct follow *follow = opaque;
    size_t taken = 0;

    follow->read_ms = loop_now_ms(follow->gateway->loop);
    while (follow->topic != NULL && taken < count && follow_take(follow, &entries[taken]))
        taken++;
    follow->reading = false;
    if (follow->topic == NULL) {
        follow_done(follow);
        return;
    }
    if (taken == count && (count == READ_ENTRIES || follow->again)) {
        follow_read(follow);
        return;
    }
    follow->calls->on_read(follow->opaque, code != ERR_OK || taken == count);
}

void follow_read(struct follow *follow)
{
    if (follow->reading) {
        follow->again = true;
        return;
    }
    follow->again = false;
    follow->read_ms = loop_now_ms(follow->gateway->loop);
    follow->reading = cache_stream_read(follow->gateway->cache, &follow->topic->id,
                                        follow->cursor.place, READ_ENTRIES, on_entries,
                                        follow) == 0;
    if (!follow->reading)
        follow->calls->on_read(follow->opaque, true);
}

const struct cursor *follow_cursor(const struct follow *follow)
{
    return &follow->cursor;
}

void follow_ask_final(struct follow *follow)
{
    topic_ask(follow->topic);
}

/* ---- life ---- */

static void follow_join(const struct follow *follow, bool join)
{
    char name[JOB_ID_TEXT_SIZE];

    if (follow->alone)
        return;
    job_id_format(&follow->topic->id, name);
    if (join)
        cache_listener_join(follow->gateway->listener, name);
    else if (follow->gateway->listener != NULL)
        cache_listener_leave(follow->gateway->listener, name);
}

struct follow *follow_new(struct gateway *gateway, const struct wire_id *id, bool alone,
                          const struct cursor *cursor, const struct follow_calls *calls,
                          void *opaque)
{
    struct follow *follow = xcalloc(1, sizeof(*follow));

    follow->gateway = gateway;
    follow->topic = topic_get(gateway->follows, id);
    follow->calls = calls;
    follow->opaque = opaque;
    follow->alone = alone;
    follow->cursor = *cursor;
    follow->read_ms = loop_now_ms(gateway->loop);
    TAILQ_INSERT_TAIL(&follow->topic->list, follow, link);
    LIST_INSERT_HEAD(&gateway->follows->all, follow, all_link);
    follow_join(follow, true);
    return follow;
}

void follow_free(struct follow **follow_p)
{
    struct follow *follow = TAKE(*follow_p);
    struct topic *topic;

    if (follow == NULL)
        return;
    topic = follow->topic;
    follow_join(follow, false);
    TAILQ_REMOVE(&topic->list, follow, link);
    follow->topic = NULL;
    if (!follow->reading)
        follow_done(follow); /* else on_entries() does */
    topic_free_when_done(topic);
}

int gateway_follows_open(struct gateway *gateway, struct err *err)
{
    struct follows *follows = xcalloc(1, sizeof(*follows));

    (void)err;
    LIST_INIT(&follows->all);
    follows->gateway = gateway;
    follows->look = loop_timer_new(gateway->loop, on_timer, follows);
    gateway->follows = follows;
    return 0;
}

/* After the adapters are closed: nobody calls back any more. */
void gateway_follows_close(struct follows **follows_p)
{
    struct follows *follows = TAKE(*follows_p);
    struct topic *topic, *next;
    struct follow *follow;

    if (follows == NULL)
        return;
    HASH_ITER(hh, follows->topics, topic, next)
    {
        HASH_DEL(follows->topics, topic);
        free(topic);
    }
    while ((follow = LIST_FIRST(&follows->all)) != NULL)
        follow_done(follow);
    loop_timer_free(&follows->look);
    free(follows);
}
