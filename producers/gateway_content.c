/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a bulk job has written, as one text: the blobs of its chunks, one after the other, in the
 * order of its input. For /v1/files/{id}/content of its files, and, while it runs, for what is
 * there so far: up to the first chunk that is not done, so that who asks again sees the same and
 * more.
 *
 *   numbers of chunks, a page at a time -> blob -> pieces, as the client takes them -> next blob
 *
 * Failures: a blob that cannot be read cuts the answer off; its client sees a broken one.
 */

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/log.h"
#include "base/loop.h"
#include "brokers/blob.h"
#include "brokers/pg.h"
#include "producers/gateway.h"

#define PIECE_SIZE (64u << 10)
#define WAITING_SIZE_MAX (256u << 10)
#define PAGE_MAX 1000

PG_STATEMENT(content_chunks,
             "SELECT c.number FROM bulk_chunk c WHERE c.bulk_id = $1 AND c.number > $2 AND CASE "
             "WHEN $3 THEN c.error_size ELSE c.output_size END > 0 AND c.number < coalesce((SELECT "
             "min(o.number) FROM bulk_chunk o WHERE o.bulk_id = $1 AND NOT o.done), 2147483647) "
             "ORDER BY c.number LIMIT $4");

struct content {
    LIST_ENTRY(content) link;
    struct call *call;
    struct gateway *gateway;
    struct http_stream *stream; /* NULL: not begun, or its client has left */
    struct wire_id bulk;
    bool errors, waiting, gone, last_page; /* waiting: for an answer that comes back with us */
    uint32_t numbers[PAGE_MAX];
    size_t count, at;
    int64_t newest;
    int fd; /* of the blob that is sent; -1: none */
    uint64_t sent;
    struct loop_timer *room;
};

static void content_step(struct content *content);

static void content_free(struct content **content_p)
{
    struct content *content = TAKE(*content_p);

    LIST_REMOVE(content, link);
    if (content->fd >= 0)
        (void)close(content->fd);
    loop_timer_free(&content->room);
    free(content);
}

static void content_end(struct content *content, bool whole)
{
    if (whole)
        http_stream_end(&content->stream);
    else
        http_stream_abort(&content->stream);
    call_end_stream(&content->call, whole ? 200 : 502);
    content_free(&content);
}

/* True: its client has left, and it is over. */
static bool content_is_gone(struct content *content)
{
    content->waiting = false;
    if (!content->gone)
        return false;
    content_free(&content);
    return true;
}

/* ---- its client ---- */

static void on_gone(struct http_stream *stream, void *opaque)
{
    struct content *content = opaque;

    (void)stream;
    http_stream_abort(&content->stream);
    call_leave(&content->call);
    content->gone = true;
    if (!content->waiting)
        content_free(&content);
}

static void on_room(struct http_stream *stream, void *opaque)
{
    (void)stream;
    loop_timer_start(((struct content *)opaque)->room, 0, 0); /* not from inside the server */
}

static void on_room_later(void *opaque)
{
    struct content *content = opaque;

    if (content->fd >= 0 && !content->waiting)
        content_step(content);
}

/* ---- blobs ---- */

static void on_blob(void *opaque, int fd, uint64_t size, const struct err *err)
{
    struct content *content = opaque;

    (void)size;
    if (content_is_gone(content)) {
        if (err->code == ERR_OK)
            (void)close(fd);
        return;
    }
    if (err->code != ERR_OK) {
        log_warn("bulk_output_not_read", LOG_ERR(err));
        content_end(content, false);
        return;
    }
    content->fd = fd;
    content->sent = 0;
    content_step(content);
}

static void content_open(struct content *content)
{
    char key[BLOB_KEY_SIZE];
    struct err err;

    blob_key_bulk(&content->bulk, content->numbers[content->at++], content->errors, key);
    content->waiting = true;
    if (blob_open(content->gateway->blobs, key, on_blob, content, &err) == 0)
        return;
    content->waiting = false;
    content_end(content, false);
}

/* False: there is no room, on_room comes; or it is over. */
static bool content_pump(struct content *content)
{
    char piece[PIECE_SIZE];
    struct err err;
    ssize_t n;

    while ((n = pread(content->fd, piece, sizeof(piece), (off_t)content->sent)) > 0) {
        if (http_stream_write(content->stream, piece, (size_t)n, &err) < 0)
            return false;
        content->sent += (uint64_t)n;
    }
    (void)close(content->fd);
    content->fd = -1;
    if (n == 0)
        return true;
    content_end(content, false);
    return false;
}

/* ---- pages of chunks ---- */

static void on_numbers(void *opaque, const struct pg_answer *answer)
{
    struct content *content = opaque;

    if (content_is_gone(content))
        return;
    if (answer->err.code != ERR_OK) {
        content_end(content, false);
        return;
    }
    content->count = pg_row_count(answer, 0);
    content->at = 0;
    content->last_page = content->count < PAGE_MAX;
    for (size_t i = 0; i < content->count; i++)
        content->numbers[i] = (uint32_t)pg_u64(answer, 0, i, 0);
    if (content->count > 0)
        content->newest = content->numbers[content->count - 1];
    content_step(content);
}

static void content_ask(struct content *content)
{
    struct pg_batch *batch = pg_batch_new();
    struct err err;
    int r;

    pg_add(batch, &content_chunks);
    pg_bind_id(batch, &content->bulk);
    pg_bind_i32(batch, content->newest);
    pg_bind_bool(batch, content->errors);
    pg_bind_i64(batch, PAGE_MAX);
    r = pg_pool_send(content->gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_numbers, content,
                     &err);
    pg_batch_free(&batch);
    content->waiting = r == 0;
    if (r < 0)
        content_end(content, false);
}

static void content_step(struct content *content)
{
    if (content->fd >= 0 && !content_pump(content))
        return;
    if (content->at < content->count)
        content_open(content);
    else if (content->last_page)
        content_end(content, true);
    else
        content_ask(content);
}

void content_begin(struct call *call, const struct wire_id *bulk, bool errors)
{
    static const struct http_stream_calls calls = {.on_room = on_room, .on_gone = on_gone};
    struct content *content = xcalloc(1, sizeof(*content));

    LIST_INSERT_HEAD(&call->gateway->contents, content, link);
    content->call = call;
    content->gateway = call->gateway;
    content->bulk = *bulk;
    content->errors = errors;
    content->newest = -1;
    content->fd = -1;
    content->room = loop_timer_new(call->gateway->loop, on_room_later, content);
    call_set_type(call, WIRE_TEXT_OF(MEDIA_TYPE_BYTES));
    content->stream = call_answer_stream(call, 200, WAITING_SIZE_MAX, &calls, content);
    content_step(content);
}

/* What waited for an answer when its server was closed. Their calls are ended by calls_close(). */
void gateway_contents_close(struct gateway *gateway)
{
    struct content *content;

    while ((content = LIST_FIRST(&gateway->contents)) != NULL) {
        http_stream_abort(&content->stream);
        content_free(&content);
    }
}
