/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_large.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "producers/gateway_scan.h"
#include "schema/job.h"

#define PIECE_SIZE (512u << 10)
#define PIECE_SIZE_MAX (4u << 20) /* with what comes while a piece is written */

struct large {
    struct blob_store *blobs;
    struct http_request *request; /* NULL: its body is read */
    struct scan scan;
    struct buf piece; /* of the input, not yet written */
    struct blob_upload *upload;
    EVP_MD_CTX *digest, *fingerprint;
    uint64_t limit, body_size, input_size;
    bool writing, raw;
    large_call *done;
    void *opaque;
};

struct large *large_new(struct blob_store *blobs, uint64_t limit, bool raw, large_call *done,
                        void *opaque, struct evp_md_ctx_st **fingerprint_p)
{
    struct large *large = xcalloc(1, sizeof(*large));

    large->blobs = blobs;
    large->limit = limit;
    large->raw = raw;
    large->done = done;
    large->opaque = opaque;
    large->fingerprint = TAKE(*fingerprint_p);
    large->piece = BUF_WITH_LIMIT(PIECE_SIZE_MAX);
    large->digest = EVP_MD_CTX_new();
    if (large->digest == NULL || EVP_DigestInit_ex(large->digest, EVP_sha256(), NULL) != 1)
        NEVER("SHA-256 is not to be had");
    scan_init(&large->scan);
    return large;
}

void large_free(struct large **large_p)
{
    struct large *large = TAKE(*large_p);

    if (large == NULL)
        return;
    blob_upload_free(&large->upload);
    EVP_MD_CTX_free(large->digest);
    EVP_MD_CTX_free(large->fingerprint);
    scan_done(&large->scan);
    buf_done(&large->piece);
    free(large);
}

/* Whoever hears of a failure frees the large one. */
static void large_tell(struct large *large, const struct err *err)
{
    large->done(large->opaque, err);
}

static void large_write(struct large *large);

/* Goes on after bytes came or a piece was written. */
static void large_go_on(struct large *large)
{
    static const struct err good = {.code = ERR_OK};
    bool ended = large->request == NULL;

    if (large->writing)
        return;
    if (large->piece.size >= PIECE_SIZE ||
        (ended && large->piece.size > 0 &&
         (large->upload != NULL || large->piece.size > JOB_INPUT_INLINE_MAX)))
        large_write(large);
    else if (ended)
        large_tell(large, &good);
    else
        http_request_resume_body(large->request);
}

static void on_written(void *opaque, const struct err *err)
{
    struct large *large = opaque;

    large->writing = false;
    if (err->code != ERR_OK)
        large_tell(large, err);
    else
        large_go_on(large);
}

static void large_write(struct large *large)
{
    struct err err;
    int r = 0;

    if (large->request != NULL)
        http_request_pause_body(large->request);
    if (large->upload == NULL)
        r = blob_upload_new(large->blobs, &large->upload, &err);
    large->writing = r == 0;
    if (r == 0)
        r = blob_upload_write(large->upload, &large->piece, on_written, large, &err);
    if (r < 0) {
        large->writing = false;
        large_tell(large, &err);
    }
}

static int large_take(struct large *large, const void *bytes, size_t size, struct err *err)
{
    size_t before = large->piece.size;
    int r;

    large->body_size += size;
    if (large->body_size > large->limit)
        return err_set(err, ERR_TOO_BIG, "the body has more than the %llu bytes that are allowed",
                       (unsigned long long)large->limit);
    if (large->fingerprint != NULL && EVP_DigestUpdate(large->fingerprint, bytes, size) != 1)
        NEVER("SHA-256 is not to be had");
    if (large->raw)
        buf_append(&large->piece, bytes, size);
    r = large->raw ? buf_check(&large->piece, "a piece of the body", err)
                   : scan_feed(&large->scan, bytes, size, &large->piece, err);
    if (r < 0)
        return r;
    large->input_size += large->piece.size - before;
    if (large->piece.size > before && EVP_DigestUpdate(large->digest, large->piece.bytes + before,
                                                       large->piece.size - before) != 1)
        NEVER("SHA-256 is not to be had");
    return 0;
}

static void on_chunk(struct http_request *request, const void *bytes, size_t size, void *opaque)
{
    struct large *large = opaque;
    struct err err;
    int r;

    (void)request;
    if (bytes == NULL) {
        large->request = NULL;
        r = large->raw ? 0 : scan_end(&large->scan, &err);
    } else {
        r = large_take(large, bytes, size, &err);
    }
    if (r < 0)
        large_tell(large, &err);
    else if (bytes == NULL || large->piece.size >= PIECE_SIZE)
        large_go_on(large);
}

void large_begin(struct large *large, struct http_request *request)
{
    large->request = request;
    http_request_stream_body(request, on_chunk, large);
}

struct buf *large_envelope(struct large *large)
{
    struct buf *envelope = &large->scan.envelope;
    uint8_t *padding;

    envelope->limit += HTTP_BODY_PADDING;
    padding = buf_reserve(envelope, HTTP_BODY_PADDING);
    memset(padding, 0, HTTP_BODY_PADDING);
    return envelope;
}

uint64_t large_body_size(const struct large *large)
{
    return large->body_size;
}

uint64_t large_input_size(const struct large *large)
{
    return large->input_size;
}

void large_input_digest(struct large *large, uint8_t to[BLOB_DIGEST_SIZE])
{
    int done = EVP_DigestFinal_ex(large->digest, to, NULL);

    assert(done == 1);
}

void large_fingerprint(struct large *large, uint8_t to[BLOB_DIGEST_SIZE])
{
    int done = EVP_DigestFinal_ex(large->fingerprint, to, NULL);

    assert(done == 1);
}

struct buf *large_small_input(struct large *large)
{
    return large->upload == NULL ? &large->piece : NULL;
}

int large_end(struct large *large, const char *key, large_call *done, void *opaque, struct err *err)
{
    return blob_upload_end(large->upload, key, done, opaque, err);
}
