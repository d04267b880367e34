/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Pieces of answers, from the engine host to a stream in Redis, for those who follow them.
 *
 * Happy path: what came in a turn of the loop is one entry (at most PIECE_SIZE_MAX bytes) and one
 * wake-up; entries are numbered from 1 within their attempt, and the last one says so.
 *
 * Nothing waits for Redis: a piece that it does not take is lost to followers, who see the gap in
 * the numbers and find the whole answer in the job's result. Nothing is kept here but what came in
 * this turn. In Redis at most --stream-max of an answer and STREAM_ENTRIES_MAX entries are kept;
 * the places at which old ones may be cut are noted in MARKS steps. Earlier attempts go first, and
 * one whose token is over is refused by Redis, because its places are lower than the newest.
 *
 * At shutdown: what was sent is sent, the rest of the run is over with it.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "brokers/cache.h"
#include "schema/chain.h"
#include "schema/job_id.h"
#include "schema/media_type.h"
#include "workers/worker_int.h"

#define PIECE_SIZE_MAX (64u << 10)
#define STREAM_ENTRIES_MAX 16384u
#define MARKS 16u

struct stream {
    UT_hash_handle hh;
    TAILQ_ENTRY(stream) dirty_link;
    struct worker *worker;
    uint64_t token, number; /* of the newest entry */
    uint64_t attempt, offset;
    struct wire_id job;
    struct buf pending; /* came in this turn */
    bool dirty;
    uint64_t expire_us;
    uint64_t marks[MARKS], mark_count;     /* numbers of entries, a ring */
    uint64_t marked_bytes, marked_entries; /* since the newest mark */
    char type[MEDIA_TYPE_SIZE_MAX + 1], gateway[65];
};

int worker_stream_open(struct worker *worker, struct err *err)
{
    const struct cache_options options = {.url = worker->settings.redis};

    TAILQ_INIT(&worker->dirty_streams);
    worker->stream_record = BUF_WITH_LIMIT(2 * PIECE_SIZE_MAX);
    if (worker->settings.redis[0] == '\0')
        return 0;
    return cache_open(worker->loop, &options, &worker->cache, err);
}

static struct stream *stream_find(struct worker *worker, uint64_t token)
{
    struct stream *stream;

    HASH_FIND(hh, worker->streams, &token, sizeof(token), stream);
    return stream;
}

static void stream_free(struct stream **stream_p)
{
    struct stream *stream = TAKE(*stream_p);
    struct worker *worker = stream->worker;

    if (stream->dirty)
        TAILQ_REMOVE(&worker->dirty_streams, stream, dirty_link);
    HASH_DEL(worker->streams, stream);
    buf_done(&stream->pending);
    free(stream);
}

void worker_stream_drop_all(struct worker *worker)
{
    struct stream *stream, *next;

    HASH_ITER(hh, worker->streams, stream, next)
    {
        stream_free(&stream);
    }
}

void worker_stream_close(struct worker *worker)
{
    worker_stream_drop_all(worker);
    cache_close(&worker->cache);
    buf_done(&worker->stream_record);
}

void worker_stream_begin(struct worker *worker, const struct worker_todo *todo)
{
    struct stream *stream;

    if (worker->cache == NULL)
        return;
    stream = xcalloc(1, sizeof(*stream));
    stream->worker = worker;
    stream->token = todo->token;
    stream->job = todo->run.job;
    stream->attempt = todo->run.number;
    stream->pending = BUF_WITH_LIMIT(FRAME_FD_SIZE_MAX);
    if (todo->run.gateway.size >= sizeof(CHAIN_BOOT_PREFIX) - 1 &&
        memcmp(todo->run.gateway.text, CHAIN_BOOT_PREFIX, sizeof(CHAIN_BOOT_PREFIX) - 1) == 0)
        job_id_format(&stream->job, stream->gateway); /* a coordinator reads no pieces */
    else
        (void)snprintf(stream->gateway, sizeof(stream->gateway), "%.*s",
                       (int)todo->run.gateway.size,
                       todo->run.gateway.size > 0 ? todo->run.gateway.text : "");
    HASH_ADD(hh, worker->streams, token, sizeof(stream->token), stream);
}

static void stream_soil(struct stream *stream)
{
    if (stream->dirty)
        return;
    stream->dirty = true;
    TAILQ_INSERT_TAIL(&stream->worker->dirty_streams, stream, dirty_link);
}

/* ---- one entry ---- */

/* Notes where to cut later, so often that what is kept is bounded in bytes and in entries. */
static void stream_mark(struct stream *stream, size_t size)
{
    stream->marked_bytes += size;
    stream->marked_entries++;
    if (stream->marked_bytes < stream->worker->settings.stream_max_size / MARKS &&
        stream->marked_entries < STREAM_ENTRIES_MAX / MARKS)
        return;
    stream->marks[stream->mark_count++ % MARKS] = stream->number;
    stream->marked_bytes = stream->marked_entries = 0;
}

static struct cache_place stream_oldest(const struct stream *stream)
{
    return (struct cache_place){
        stream->token, stream->mark_count < MARKS ? 0 : stream->marks[stream->mark_count % MARKS]};
}

/* The size of a part at the front that is no longer than the limit and splits no character. */
static size_t part_size(const uint8_t *bytes, size_t size)
{
    size_t part = PIECE_SIZE_MAX;

    if (size <= part)
        return size;
    while (part > PIECE_SIZE_MAX - 4 && (bytes[part] & 0xc0) == 0x80)
        part--;
    return part > PIECE_SIZE_MAX - 4 ? part : PIECE_SIZE_MAX;
}

static void stream_write(struct stream *stream, struct wire_bytes data, bool last)
{
    struct worker *worker = stream->worker;
    const struct message_piece piece = {.data = data,
                                        .offset = stream->offset,
                                        .output_type = WIRE_TEXT_OF(stream->type),
                                        .attempt = stream->attempt,
                                        .last = last};
    struct cache_place place = {stream->token, ++stream->number};
    struct err err;

    buf_clear(&worker->stream_record);
    if (message_encode(MESSAGE_PIECE, &piece, &worker->stream_record, &err) < 0)
        NEVER("a piece within its limits cannot be encoded");
    worker->stream_counts.pieces++;
    worker->stream_counts.bytes += data.size;
    stream->offset += data.size;
    stream_mark(stream, data.size);
    if (cache_stream_add(worker->cache, &stream->job, place, stream_oldest(stream),
                         worker->stream_record.bytes, worker->stream_record.size, NULL, NULL) < 0)
        worker->stream_counts.lost++;
}

static void stream_wake(struct stream *stream)
{
    struct worker *worker = stream->worker;
    const struct message_wake wake = {.id = stream->job, .state = JOB_IN_PROGRESS};
    struct err err;

    buf_clear(&worker->stream_record);
    if (stream->gateway[0] != '\0' &&
        message_encode(MESSAGE_WAKE, &wake, &worker->stream_record, &err) == 0)
        (void)cache_wake(worker->cache, WIRE_TEXT_OF(stream->gateway), worker->stream_record.bytes,
                         worker->stream_record.size);
}

/* The time to live is renewed while pieces come, and counts from the last one. */
static void stream_expire(struct stream *stream, bool last)
{
    struct worker *worker = stream->worker;
    uint64_t now_us = clock_mono_us(), ttl_us = worker->settings.stream_ttl_ms * 1000;

    if (!last && now_us < stream->expire_us)
        return;
    stream->expire_us = now_us + ttl_us / 4;
    (void)cache_stream_expire(worker->cache, &stream->job,
                              1 + (uint32_t)(worker->settings.stream_ttl_ms / 1000));
}

static void stream_flush(struct stream *stream, bool last)
{
    size_t at = 0;

    while (at < stream->pending.size) {
        size_t size = part_size(stream->pending.bytes + at, stream->pending.size - at);

        stream_write(stream, (struct wire_bytes){stream->pending.bytes + at, size}, false);
        at += size;
    }
    if (stream->pending.size > PIECE_SIZE_MAX)
        buf_done(&stream->pending);
    else
        buf_clear(&stream->pending);
    if (last)
        stream_write(stream, (struct wire_bytes){0}, true);
    stream_expire(stream, last);
    stream_wake(stream);
}

/* ---- from the host ---- */

void worker_stream_add(struct worker *worker, uint64_t token, struct wire_bytes bytes,
                       struct wire_text type)
{
    struct stream *stream = stream_find(worker, token);
    struct err err;

    if (stream == NULL || bytes.size == 0)
        return;
    if (stream->offset == 0 && stream->pending.size == 0 && media_type_check(type, &err) == 0)
        (void)snprintf(stream->type, sizeof(stream->type), "%.*s", (int)type.size,
                       type.size > 0 ? type.text : "");
    if (stream->pending.size >= PIECE_SIZE_MAX)
        stream_flush(stream, false);
    buf_append(&stream->pending, bytes.bytes, bytes.size);
    stream_soil(stream);
}

void worker_stream_flush(struct worker *worker)
{
    struct stream *stream;

    while ((stream = TAILQ_FIRST(&worker->dirty_streams)) != NULL) {
        TAILQ_REMOVE(&worker->dirty_streams, stream, dirty_link);
        stream->dirty = false;
        if (stream->pending.size > 0)
            stream_flush(stream, false);
    }
}

/* Before its Finished is told: whoever hears of that finds the last piece. */
void worker_stream_end(struct worker *worker, uint64_t token)
{
    struct stream *stream = stream_find(worker, token);

    if (stream == NULL)
        return;
    if (stream->number > 0 || stream->pending.size > 0)
        stream_flush(stream, true);
    stream_free(&stream);
}
