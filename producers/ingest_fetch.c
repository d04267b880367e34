/* SPDX-License-Identifier: Apache-2.0 */

/*
 * An input that is at a URL: it becomes a file in the blob store first, then all is as with an
 * upload, and whatever becomes of the URL does not matter any more.
 *
 *     GET -> pieces -> blob_upload -> its end under the file's key -> row of the file -> opened
 *
 * The URL is a user's: each connection is shown to the guard (brokers/address_guard.h) after its
 * name was resolved, redirects are followed here, one by one, and so are guarded like the first.
 *
 * Failures: what may pass (no connection, one that breaks or stalls, 408, 429, 5xx) is tried again,
 * until FETCH_TRIES in a row have brought nothing; where the server has said what the file is (a
 * strong ETag), it goes on behind what is there, by Range and If-Range. What does not pass fails
 * the bulk job by name. Killed in the middle, the next ingest begins anew: nothing remains of an
 * upload that has no end.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/http_client.h"
#include "base/log.h"
#include "producers/ingest.h"

#define PIECE_SIZE (1u << 20)
#define PIECE_SIZE_MAX (4u << 20)
#define IGNORED_SIZE_MAX (64u << 10) /* of an answer that is no file */
#define FETCH_TRIES 5
#define FETCH_HOPS 5
#define AGAIN_MS 500 /* doubled with each try */
#define STALL_MS 30000
#define ETAG_SIZE 256
#define NAME_MAX_SIZE 200

PG_STATEMENT(fetch_done,
             "WITH mine AS (UPDATE bulk SET input_blob = $3, input_size = $4, input_url = NULL "
             "WHERE id = $1 AND epoch = $2 AND status = 'validating' RETURNING tenant, "
             "input_file_id) INSERT INTO file (id, tenant, purpose, filename, size, digest, blob) "
             "SELECT input_file_id, tenant, 'batch', $5, $4, $6, $3 FROM mine RETURNING id");

struct fetch {
    struct bulk *bulk;
    struct http_transfer *transfer; /* NULL: none is open */
    struct blob_upload *upload;     /* NULL: nothing was written */
    struct loop_timer *again;
    struct buf piece; /* came, and is not written yet */
    char *url;        /* of this hop */
    char name[NAME_MAX_SIZE], etag[ETAG_SIZE], blob[BLOB_KEY_SIZE];
    uint64_t taken, had; /* bytes of the file so far; at the last failure */
    uint64_t ignored;    /* of answers that are none */
    unsigned hops, tries;
    bool begun;             /* the beginning of this answer was looked at */
    bool writing, paused;   /* a piece is on its way to the store; the server waits for it */
    bool complete, closing; /* all came; the blob gets its key */
    bool astray;            /* the server sent what was not asked for */
};

static void fetch_send(struct fetch *fetch);
static void fetch_go_on(struct fetch *fetch);

/* ---- its end ---- */

void bulk_fetch_free(struct fetch **fetch_p)
{
    struct fetch *fetch = TAKE(*fetch_p);

    if (fetch == NULL)
        return;
    blob_upload_free(&fetch->upload);
    loop_timer_free(&fetch->again);
    buf_done(&fetch->piece);
    free(fetch->url);
    free(fetch);
}

/* The bulk job lives on, unless it is somebody else's. */
static bool fetch_over(struct fetch *fetch)
{
    struct bulk *bulk = fetch->bulk;

    assert(fetch->transfer == NULL);
    bulk_fetch_free(&bulk->fetch);
    return bulk_unpin(bulk);
}

void bulk_fetch_stop(struct bulk *bulk)
{
    struct fetch *fetch = bulk->fetch;

    if (fetch == NULL || fetch->closing)
        return; /* the blob's answer ends it */
    if (fetch->transfer != NULL)
        http_transfer_cancel(fetch->transfer);
    else if (!fetch_over(fetch))
        return;
}

static void fetch_refuse(struct fetch *fetch, const char *code, const struct err *err)
{
    struct bulk *bulk = fetch->bulk;

    log_info("bulk_not_fetched", LOG_STR("bulk", bulk->text), LOG_STR("tenant", bulk->tenant),
             LOG_ERR(err));
    if (fetch_over(fetch))
        bulk_scan_refuse(bulk, code, err->text);
}

/* Ours, not the server's: its lease lapses, and somebody tries again. */
static void fetch_drop(struct fetch *fetch, const struct err *err)
{
    struct bulk *bulk = fetch->bulk;

    if (err != NULL)
        log_warn("bulk_not_fetched", LOG_STR("bulk", bulk->text), LOG_ERR(err));
    if (fetch_over(fetch))
        bulk_drop(bulk);
}

/* ---- again ---- */

static void on_again(void *opaque)
{
    fetch_send(opaque);
}

static void fetch_forget(struct fetch *fetch)
{
    blob_upload_free(&fetch->upload);
    buf_clear(&fetch->piece);
    fetch->writing = false;
    fetch->taken = 0;
    fetch->etag[0] = '\0';
}

/* What came is kept where the server can be asked for the rest of the same file. */
static void fetch_again(struct fetch *fetch, struct err *err)
{
    if (fetch->etag[0] == '\0')
        fetch_forget(fetch);
    if (fetch->taken > fetch->had)
        fetch->tries = 0;
    fetch->had = fetch->taken;
    if (++fetch->tries == FETCH_TRIES) {
        (void)err_wrap(err, "the file at the URL could not be read, the last time");
        fetch_refuse(fetch, "url_not_read", err);
        return;
    }
    log_info("bulk_fetch_again", LOG_STR("bulk", fetch->bulk->text), LOG_U64("have", fetch->taken),
             LOG_ERR(err));
    loop_timer_start(fetch->again, (uint64_t)AGAIN_MS << fetch->tries, 0);
}

/* ---- the file ---- */

static void on_recorded(void *opaque, const struct pg_answer *answer)
{
    struct bulk *bulk = opaque;

    if (!bulk_unpin(bulk))
        return;
    if (answer->err.code != ERR_OK || pg_row_count(answer, 0) == 0) {
        bulk_drop(bulk); /* canceled meanwhile, or claimed anew and fetched anew */
        return;
    }
    bulk_open_input(bulk);
}

static void on_closed(void *opaque, const struct err *err)
{
    struct fetch *fetch = opaque;
    struct bulk *bulk = fetch->bulk;
    uint8_t digest[BLOB_DIGEST_SIZE];
    char name[NAME_MAX_SIZE];
    struct pg_batch *batch;

    fetch->closing = false;
    if (err->code != ERR_OK) {
        fetch_drop(fetch, err);
        return;
    }
    blob_upload_digest(fetch->upload, digest);
    mem_copy_text(bulk->blob, fetch->blob);
    mem_copy_text(name, fetch->name);
    bulk->input_size = fetch->taken;
    log_info("bulk_fetched", LOG_STR("bulk", bulk->text), LOG_STR("tenant", bulk->tenant),
             LOG_U64("size", fetch->taken), LOG_U64("tries", fetch->tries + 1));
    if (!fetch_over(fetch))
        return;
    batch = pg_batch_new();
    pg_add(batch, &fetch_done);
    pg_bind_id(batch, &bulk->id);
    pg_bind_i64(batch, bulk->epoch);
    pg_bind_c(batch, bulk->blob);
    pg_bind_i64(batch, (int64_t)bulk->input_size);
    pg_bind_c(batch, name);
    pg_bind_bytes(batch, (struct wire_bytes){digest, sizeof(digest)});
    if (!bulk_query(bulk, &batch, on_recorded, bulk))
        bulk_drop(bulk);
}

static void on_written(void *opaque, const struct err *err)
{
    struct fetch *fetch = opaque;

    fetch->writing = false;
    if (err->code != ERR_OK && fetch->transfer != NULL)
        bulk_drop(fetch->bulk); /* ends the transfer, too */
    else if (err->code != ERR_OK)
        fetch_drop(fetch, err);
    else
        fetch_go_on(fetch);
}

/* A piece to the store; ERR_OK also when it is not due. */
static int fetch_write(struct fetch *fetch, struct err *err)
{
    int r = buf_check(&fetch->piece, "a piece of the file", err);

    if (r < 0 || fetch->writing ||
        fetch->piece.size < (fetch->complete ? (size_t)1 : (size_t)PIECE_SIZE))
        return r;
    if (fetch->upload == NULL)
        r = blob_upload_new(fetch->bulk->ingest->blobs, &fetch->upload, err);
    if (r == 0)
        r = blob_upload_write(fetch->upload, &fetch->piece, on_written, fetch, err);
    if (r < 0)
        return r;
    buf_init(&fetch->piece, PIECE_SIZE_MAX);
    fetch->writing = true;
    return 0;
}

/* After a write, or the end of an answer. */
static void fetch_go_on(struct fetch *fetch)
{
    struct err err = {.code = ERR_OK};
    int r = fetch_write(fetch, &err);

    if (r == 0 && fetch->complete && !fetch->writing) {
        blob_key_file(&fetch->bulk->input_file, fetch->blob);
        r = blob_upload_end(fetch->upload, fetch->blob, on_closed, fetch, &err);
        fetch->closing = r == 0;
    }
    if (r < 0) {
        fetch_drop(fetch, &err);
        return;
    }
    if (fetch->paused && fetch->piece.size < PIECE_SIZE && fetch->transfer != NULL) {
        fetch->paused = false;
        http_transfer_resume(fetch->transfer); /* may be over then, and the fetch with it */
    }
}

/* ---- an answer ---- */

/* False: it is not what was asked for. */
static bool answer_begin(struct fetch *fetch, int status)
{
    const char *range = http_transfer_header(fetch->transfer, "Content-Range");
    unsigned long long from = 0;

    fetch->begun = true;
    if (status == 200 && fetch->taken > 0)
        fetch_forget(fetch); /* another file, or a server that has no ranges: from its beginning */
    if (status != 206)
        return true;
    return range != NULL && sscanf(range, "bytes %20llu-", &from) == 1 && from == fetch->taken;
}

static bool on_receive(const void *bytes, size_t size, void *opaque)
{
    struct fetch *fetch = opaque;
    int status = http_transfer_status(fetch->transfer);
    struct err err;

    if (status != 200 && status != 206) {
        fetch->ignored += size;
        return fetch->ignored <= IGNORED_SIZE_MAX;
    }
    fetch->astray = !fetch->begun && !answer_begin(fetch, status);
    if (fetch->astray)
        return false;
    buf_append(&fetch->piece, bytes, size);
    fetch->taken += size;
    if (fetch->writing && fetch->piece.size >= PIECE_SIZE && !fetch->paused) {
        fetch->paused = true;
        http_transfer_pause(fetch->transfer);
    }
    return fetch_write(fetch, &err) == 0;
}

static bool may_pass(const struct http_result *result)
{
    switch (result->outcome) {
    case HTTP_OUTCOME_ANSWERED:
        return result->status == 408 || result->status == 429 || result->status >= 500;
    case HTTP_OUTCOME_NAME:
    case HTTP_OUTCOME_UNREACHABLE:
    case HTTP_OUTCOME_TIMEOUT:
    case HTTP_OUTCOME_BROKEN:
        return true;
    default:
        return false;
    }
}

static bool is_redirect(int status)
{
    return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

/* Where it leads to, seen from where we are; never from https to http. The caller frees. */
static int redirect_read(const struct fetch *fetch, const char *location, char **ret_url,
                         struct err *err)
{
    int r;

    if (location == NULL)
        return err_set(err, ERR_RANGE, "a redirect that leads nowhere");
    if (fetch->hops == FETCH_HOPS)
        return err_set(err, ERR_RANGE, "more than %d redirects, one after the other", FETCH_HOPS);
    r = http_url_resolve(fetch->url, location, ret_url, err);
    if (r < 0)
        return err_wrap(err, "a redirect");
    if (strncmp(fetch->url, "https:", 6) != 0 || strncmp(*ret_url, "https:", 6) == 0)
        return 0;
    mem_free(ret_url);
    return err_set(err, ERR_RANGE, "a redirect from https to http is not followed");
}

static void fetch_redirect(struct fetch *fetch, const char *location)
{
    char *url;
    struct err err;

    if (redirect_read(fetch, location, &url, &err) < 0) {
        fetch_refuse(fetch, "url_not_read", &err);
        return;
    }
    free(fetch->url);
    fetch->url = url;
    fetch->hops++;
    loop_timer_start(fetch->again, 0, 0);
}

/* What the server calls the file, if that may be asked for again byte by byte. */
static void keep_etag(struct fetch *fetch, const struct http_result *result)
{
    const char *etag = http_transfer_header(result->transfer, "ETag");

    if (result->status != 200)
        return;
    if (etag != NULL && etag[0] == '"' && strlen(etag) < sizeof(fetch->etag))
        mem_copy_text(fetch->etag, etag);
    else
        fetch->etag[0] = '\0';
}

static void fetch_fail(struct fetch *fetch, const struct http_result *result)
{
    struct err err;

    if (result->outcome == HTTP_OUTCOME_BLOCKED)
        (void)err_set(&err, ERR_FORBIDDEN,
                      "the URL leads to an address that is not public (url-allow of the ingest)");
    else if (result->outcome == HTTP_OUTCOME_BODY_TOO_BIG)
        (void)err_set(&err, ERR_TOO_BIG,
                      "the file at the URL has more than the %llu bytes of url-max",
                      (unsigned long long)fetch->bulk->ingest->settings.url_max_size);
    else if (result->status != 0 && result->status != 200 && result->status != 206)
        (void)err_set(&err, ERR_UNAVAILABLE, "the server of the URL answers %d", result->status);
    else if (fetch->astray)
        (void)err_set(&err, ERR_UNAVAILABLE,
                      "the server of the URL sends another part of the file");
    else
        (void)err_set(&err, ERR_UNAVAILABLE, "the URL: %.200s", result->error);
    if (may_pass(result) || fetch->astray) {
        if (fetch->astray)
            fetch->etag[0] = '\0';
        fetch_again(fetch, &err);
    } else {
        fetch_refuse(fetch, "url_not_read", &err);
    }
}

static void on_done(const struct http_result *result, void *opaque)
{
    struct fetch *fetch = opaque;
    bool answered = result->outcome == HTTP_OUTCOME_ANSWERED;

    fetch->transfer = NULL;
    if (fetch->bulk->dead || (result->outcome == HTTP_OUTCOME_CANCELED && !fetch->astray &&
                              fetch->ignored <= IGNORED_SIZE_MAX)) {
        fetch_drop(fetch, NULL); /* stopped, or the store took no more */
        return;
    }
    if (answered && is_redirect(result->status)) {
        fetch_redirect(fetch, http_transfer_header(result->transfer, "Location"));
        return;
    }
    if (answered && (result->status == 200 || result->status == 206) && fetch->taken > 0) {
        fetch->complete = true;
        fetch_go_on(fetch);
        return;
    }
    if (answered && result->status == 200) {
        struct err err;

        (void)err_set(&err, ERR_RANGE, "the file at the URL is empty");
        fetch_refuse(fetch, "empty_file", &err);
        return;
    }
    if (fetch->begun)
        keep_etag(fetch, result);
    fetch_fail(fetch, result);
}

static void fetch_send(struct fetch *fetch)
{
    struct ingest *ingest = fetch->bulk->ingest;
    uint64_t limit = ingest->settings.url_max_size;
    char range[64];
    const struct http_header headers[] = {{"Range", range}, {"If-Range", fetch->etag}};
    struct http_send send = {
        .url = fetch->url,
        .headers = headers,
        .header_count = fetch->taken > 0 ? COUNT_OF(headers) : 0,
        .timeout_ms = UINT32_MAX,
        .stall_timeout_ms = STALL_MS,
        .answer_size_max = limit > fetch->taken ? limit - fetch->taken : 1,
        .on_receive = on_receive,
        .on_done = on_done,
        .opaque = fetch,
    };
    struct err err;

    if (fetch->writing) { /* what was begun before: its answer is near */
        loop_timer_start(fetch->again, AGAIN_MS, 0);
        return;
    }
    (void)snprintf(range, sizeof(range), "bytes=%llu-", (unsigned long long)fetch->taken);
    fetch->begun = fetch->paused = fetch->astray = false;
    fetch->ignored = 0;
    if (http_client_send(ingest->http, &send, &fetch->transfer, &err) < 0)
        fetch_refuse(fetch, "url_not_read", &err);
}

/* The last segment of its path, as far as it is plain. */
static void name_read(const char *url, char to[NAME_MAX_SIZE])
{
    size_t end = strcspn(url, "?#"), at = end;

    while (at > 0 && url[at - 1] != '/')
        at--;
    (void)snprintf(to, NAME_MAX_SIZE, "%.*s", (int)(end - at), url + at);
    if (to[0] == '\0' || strspn(to, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                    "0123456789._-") != strlen(to))
        (void)snprintf(to, NAME_MAX_SIZE, "lines.jsonl");
}

void bulk_fetch_begin(struct bulk *bulk, const char *url)
{
    struct fetch *fetch = xcalloc(1, sizeof(*fetch));

    fetch->bulk = bulk;
    fetch->url = xstrdup(url);
    name_read(url, fetch->name);
    buf_init(&fetch->piece, PIECE_SIZE_MAX);
    fetch->again = loop_timer_new(bulk->ingest->loop, on_again, fetch);
    bulk->fetch = fetch;
    bulk_pin(bulk);
    loop_timer_start(fetch->again, 0, 0);
}
