/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Chunk -> jobs: each request of it becomes a Submit, in the order of the file.
 *
 * A Submit says less than the gateway's: no caller waits, and its class is below all priorities.
 * What ends it in time is its total deadline, the bulk job's own. Its start deadline is the same
 * span for all, since jobs are served in the order of these: so lines run in the order of the file.
 * Of those that Kafka did not take for sure, all of the chunk are sent again, marked `repeat`: the
 * ids are the same. A line that was good when it was validated and is not any more, since somebody
 * has changed the file below us, ends the bulk job by its number.
 */

#include <jansson.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json_fast.h"
#include "base/log.h"
#include "producers/ingest.h"
#include "schema/message.h"

#define RECORD_SIZE_MAX (128u << 10)
#define FULL_MS 5
#define LIMIT_MS_MIN 1000
#define QUEUE_LIMIT_MS (1000ull * JOB_QUEUE_LIMIT_S_MAX)

int chunk_read(struct chunk *chunk, struct err *err)
{
    struct buf bytes = BUF_WITH_LIMIT((size_t)chunk->size + JSON_FAST_PADDING);
    uint8_t *to = buf_reserve(&bytes, (size_t)chunk->size + JSON_FAST_PADDING);
    size_t have = 0;
    ssize_t n = 1;

    if (to == NULL)
        return err_set(err, ERR_INTERNAL, "a chunk found no room");
    while (have < chunk->size && n > 0) {
        n = pread(chunk->bulk->fd, to + have, chunk->size - have, (off_t)(chunk->start + have));
        have += n > 0 ? (size_t)n : 0;
    }
    if (have < chunk->size) {
        int r = n < 0 ? err_set_errno(err, ERR_IO, "read the input")
                      : err_set(err, ERR_IO, "the input ends inside of chunk %u", chunk->number);

        buf_done(&bytes);
        return r;
    }
    memset(to + have, 0, JSON_FAST_PADDING);
    buf_commit(&bytes, have);
    buf_done(&chunk->bytes);
    chunk->bytes = bytes;
    chunk->at = 0;
    chunk->line = chunk->first_line;
    chunk->only_at = 0;
    chunk->bad_at = 0;
    return 0;
}

/* Lines are asked for in their order. */
static bool chunk_wants(struct chunk *chunk, uint64_t line)
{
    if (chunk->only == NULL)
        return true;
    while (chunk->only_at < chunk->only_count && chunk->only[chunk->only_at] < line)
        chunk->only_at++;
    return chunk->only_at < chunk->only_count && chunk->only[chunk->only_at] == line;
}

/* chunk->line is then one more than that line's number. */
bool chunk_next(struct chunk *chunk, const char **ret_line, size_t *ret_size)
{
    while (chunk->at < chunk->bytes.size) {
        const char *text = (const char *)chunk->bytes.bytes + chunk->at;
        size_t left = chunk->bytes.size - chunk->at;
        const char *end = memchr(text, '\n', left);
        size_t size = end == NULL ? left : (size_t)(end - text);

        chunk->at += size + (end != NULL);
        chunk->line++;
        if (bulk_line_is_blank(text, size) || !chunk_wants(chunk, chunk->line - 1))
            continue;
        *ret_line = text;
        *ret_size = size;
        return true;
    }
    return false;
}

const json_t *chunk_bad(struct chunk *chunk)
{
    for (; chunk->bad_at < json_array_size(chunk->bad); chunk->bad_at++) {
        const json_t *bad = json_array_get(chunk->bad, chunk->bad_at);
        uint64_t line = (uint64_t)json_integer_value(json_object_get(bad, "line"));

        if (line + 1 >= chunk->line)
            return line + 1 == chunk->line ? bad : NULL;
    }
    return NULL;
}

/* ---- reports ---- */

static void chunk_reported(struct chunk *chunk)
{
    struct bulk *bulk = chunk->bulk;

    if (chunk->unreported > 0 || chunk->stage != CHUNK_REPORTS)
        return;
    if (chunk->resend) {
        chunk->stage = CHUNK_SEND;
        chunk->repeat = true;
        chunk->job_count = 0;
        bulk_go_on(bulk, INGEST_RETRY_MS);
        return;
    }
    chunk->stage = CHUNK_WATCH;
    chunk->sent_ms = loop_now_ms(bulk->ingest->loop);
    if (bulk->cancelling)
        chunk_cancel(chunk);
    bulk_go_on(bulk, 0);
}

static void on_report(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct chunk *chunk = opaque;
    struct bulk *bulk = chunk->bulk;

    (void)tag;
    if (!bulk_unpin(bulk))
        return;
    chunk->unreported--;
    if (report->code != ERR_OK && !chunk->resend) {
        chunk->resend = true;
        log_warn("lines_not_sent", LOG_STR("bulk", bulk->text), LOG_U64("chunk", chunk->number),
                 LOG_STR("error", report->why));
    }
    chunk_reported(chunk);
}

/* ---- a line ---- */

static uint64_t limit_ms(const struct bulk *bulk)
{
    uint64_t now_us = clock_wall_us();
    uint64_t left_ms = bulk->expires_us > now_us ? (bulk->expires_us - now_us) / 1000 : 0;

    return left_ms < LIMIT_MS_MIN ? LIMIT_MS_MIN : left_ms;
}

static struct message_submit line_message(const struct chunk *chunk, const struct bulk_line *line,
                                          const struct target *target, const struct wire_id *job,
                                          const uint8_t *digest)
{
    const struct bulk *bulk = chunk->bulk;

    return (struct message_submit){
        .id = *job,
        .tenant = WIRE_TEXT_OF(bulk->tenant),
        .model = WIRE_TEXT_OF(target->model),
        .deployment = WIRE_TEXT_OF(target->deployment),
        .environment = WIRE_TEXT_OF(target->environment),
        .pool = WIRE_TEXT_OF(target->pool),
        .priority = JOB_PRIORITY_BULK,
        .input_size = line->body.size,
        .input_digest = {digest, BLOB_DIGEST_SIZE},
        .max_attempts = JOB_ATTEMPTS_DEFAULT,
        .initial_delay_ms = JOB_INITIAL_DELAY_MS_DEFAULT,
        .max_delay_ms = JOB_MAX_DELAY_MS_DEFAULT,
        .queue_limit_ms = QUEUE_LIMIT_MS,
        .total_limit_ms = limit_ms(bulk),
        .run_limit_ms = target->run_limit_ms,
        .repeat = chunk->repeat,
        .received_us = clock_wall_us(),
        .slot_count = 1,
        .key_prefix = WIRE_TEXT_OF(bulk->key_prefix),
        .route = WIRE_TEXT_OF(bulk->route),
    };
}

static int line_produce(struct chunk *chunk, const struct wire_id *job,
                        const struct message_submit *submit, struct err *err)
{
    struct ingest *ingest = chunk->bulk->ingest;
    OWNED(buf_done) struct buf record = BUF_WITH_LIMIT(RECORD_SIZE_MAX);
    int r = message_encode(MESSAGE_SUBMIT, submit, &record, err);
    const struct queue_message message = {.topic = ingest->intake,
                                          .partition = job_id_shard(job),
                                          .bytes = record.bytes,
                                          .size = record.size,
                                          .done = on_report,
                                          .opaque = chunk};

    if (r == 0)
        r = queue_produce(ingest->producer, &message, err);
    if (r < 0)
        return r;
    chunk->unreported++;
    bulk_pin(chunk->bulk);
    return 0;
}

/* A large input is a blob first; its Submit follows. */
struct large_line {
    struct chunk *chunk;
    struct wire_id job;
    char blob[BLOB_KEY_SIZE], model[BULK_MODEL_SIZE];
    uint8_t digest[BLOB_DIGEST_SIZE];
    size_t size;
};

static void on_large(void *opaque, const struct err *err)
{
    OWNED(mem_free) struct large_line *large = opaque;
    struct chunk *chunk = large->chunk;
    struct bulk *bulk = chunk->bulk;
    const struct bulk_line line = {.body = {.size = large->size}};
    struct message_submit submit;
    struct err mine = *err;

    if (!bulk_unpin(bulk))
        return;
    chunk->unreported--;
    if (mine.code == ERR_OK) {
        submit = line_message(chunk, &line, target_find(bulk, large->model, &mine), &large->job,
                              large->digest);
        submit.input_blob = WIRE_TEXT_OF(large->blob);
        mine.code = line_produce(chunk, &large->job, &submit, &mine);
    }
    if (mine.code < 0) {
        log_warn("line_not_sent", LOG_STR("bulk", bulk->text), LOG_ERR(&mine));
        chunk->resend = true;
    }
    chunk_reported(chunk);
}

static int line_store(struct chunk *chunk, const struct bulk_line *line, const struct wire_id *job,
                      const uint8_t *digest, struct err *err)
{
    struct large_line *large = xcalloc(1, sizeof(*large));
    struct buf input = BUF_WITH_LIMIT(line->body.size);
    int r;

    large->chunk = chunk;
    large->job = *job;
    large->size = line->body.size;
    mem_copy_text(large->model, line->model);
    memcpy(large->digest, digest, sizeof(large->digest));
    blob_key_input(job, large->blob);
    buf_append(&input, line->body.text, line->body.size);
    r = blob_put(chunk->bulk->ingest->blobs, large->blob, &input, on_large, large, err);
    if (r < 0) {
        buf_done(&input);
        free(large);
        return r;
    }
    chunk->unreported++;
    bulk_pin(chunk->bulk);
    return 0;
}

static int line_send(struct chunk *chunk, const char *text, size_t size, struct err *err)
{
    struct bulk *bulk = chunk->bulk;
    uint8_t digest[crypto_hash_sha256_BYTES];
    char code[BULK_CODE_SIZE];
    struct message_submit submit;
    struct target *target = NULL;
    struct bulk_line line;
    struct wire_id job;
    int r = bulk_line_read(bulk->ingest->reader, text, size, chunk->line - 1, bulk->endpoint, &line,
                           code, err);

    if (r == 0)
        target = target_find(bulk, line.model, err);
    if (target == NULL)
        return err_set(err, ERR_MALFORMED,
                       "the file has changed: line %llu was good, and is not any more (%.300s)",
                       (unsigned long long)chunk->line - 1, err->text);
    job = bulk_line_job(&bulk->id, chunk->line - 1, target->shard);
    (void)crypto_hash_sha256(digest, (const uint8_t *)line.body.text, line.body.size);
    if (line.body.size > JOB_INPUT_INLINE_MAX) {
        r = line_store(chunk, &line, &job, digest, err);
    } else {
        submit = line_message(chunk, &line, target, &job, digest);
        submit.input = (struct wire_bytes){(const uint8_t *)line.body.text, line.body.size};
        r = line_produce(chunk, &job, &submit, err);
    }
    if (r < 0)
        return r;
    if (chunk->job_count == chunk->job_room) {
        chunk->job_room = chunk->job_room == 0 ? 256 : 2 * chunk->job_room;
        chunk->jobs = xrealloc(chunk->jobs, chunk->job_room, sizeof(*chunk->jobs));
    }
    chunk->jobs[chunk->job_count++] = job;
    return 0;
}

/* ---- a chunk ---- */

void chunk_send(struct chunk *chunk)
{
    struct bulk *bulk = chunk->bulk;
    uint32_t before = chunk->job_count;
    uint64_t failed = 0;
    const char *text;
    size_t size;
    struct err err;
    int r = 0;

    if (chunk->bytes.size == 0) {
        r = chunk_read(chunk, &err);
        chunk->resend = false;
    }
    while (r == 0) {
        size_t at = chunk->at;
        uint64_t line = chunk->line;

        if (!chunk_next(chunk, &text, &size))
            break;
        if (chunk_bad(chunk) != NULL)
            continue;
        r = line_send(chunk, text, size, &err);
        if (r < 0) {
            failed = chunk->line - 1;
            chunk->at = at;
            chunk->line = line;
        }
    }
    metric_add(metrics_of(bulk->ingest->metrics, INGEST_METRIC_ingest_lines_sent_total),
               chunk->job_count - before);
    if (r == ERR_FULL) {
        bulk_go_on(bulk, FULL_MS);
        return;
    }
    if (r == ERR_MALFORMED) {
        bulk_lose_input(bulk, "input_changed", failed, err.text);
        return;
    }
    if (r < 0) {
        log_warn("lines_not_sent", LOG_STR("bulk", bulk->text), LOG_U64("chunk", chunk->number),
                 LOG_ERR(&err));
        bulk_drop(bulk); /* its lease lapses, and it is tried again */
        return;
    }
    buf_done(&chunk->bytes);
    chunk->stage = CHUNK_REPORTS;
    chunk_reported(chunk);
    bulk_go_on(bulk, 0); /* the next one */
}

/* What is final refuses it. */
void chunk_cancel(struct chunk *chunk)
{
    struct bulk *bulk = chunk->bulk;
    struct ingest *ingest = bulk->ingest;
    struct err err;
    int r = 0;

    for (uint32_t i = 0; i < chunk->job_count && r == 0; i++) {
        const struct message_cancel cancel = {.id = chunk->jobs[i],
                                              .tenant = WIRE_TEXT_OF(bulk->tenant)};
        OWNED(buf_done) struct buf record = BUF_WITH_LIMIT(1024);
        struct queue_message message;

        r = message_encode(MESSAGE_CANCEL, &cancel, &record, &err);
        message = (struct queue_message){.topic = ingest->intake,
                                         .partition = job_id_shard(&chunk->jobs[i]),
                                         .bytes = record.bytes,
                                         .size = record.size};
        if (r == 0)
            r = queue_produce(ingest->producer, &message, &err);
    }
    if (r < 0) /* they run on until their deadline, or their end */
        log_warn("lines_not_canceled", LOG_STR("bulk", bulk->text), LOG_ERR(&err));
}
