/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The body of a large submit, from the socket to a file of the blob store, with a bounded piece of
 * it in memory: what comes is scanned (gateway_scan.h), its input is written in pieces, and the
 * client is paused while a piece is being written.
 *
 *     large_begin -> done(err) -> large_envelope(), large_input_size() …
 *                              -> large_end(key) -> done(err)
 *
 * Failures end in done(err); the body is not read on. large_free() at any time leaves nothing.
 *
 * Thread: the loop's.   Tests: tests/stack/test_blob_s3.py
 */

#include "base/buf.h"
#include "base/http_server.h"
#include "brokers/blob.h"

/* Bodies announced with more than this, or not announced at all, are read so; smaller ones are
 * collected, which costs fewer steps. */
#define LARGE_BODY_SIZE (1u << 20)
#define LARGE_MEMORY_SIZE (1u << 20) /* what one takes, about */

struct evp_md_ctx_st;
struct large;

typedef void large_call(void *opaque, const struct err *err);

/* raw: the body is the input as it is, nothing is scanned and there is no envelope. fingerprint: a
 * begun digest that is fed with the body; NULL: none. Taken. */
struct large *large_new(struct blob_store *blobs, uint64_t limit, bool raw, large_call *done,
                        void *opaque, struct evp_md_ctx_st **fingerprint_p);
void large_free(struct large **large_p);

void large_begin(struct large *large, struct http_request *request);

/* Once the body is here. */
struct buf *large_envelope(struct large *large); /* padded as a collected body is */
uint64_t large_body_size(const struct large *large);
uint64_t large_input_size(const struct large *large);
void large_input_digest(struct large *large, uint8_t to[BLOB_DIGEST_SIZE]);
void large_fingerprint(struct large *large, uint8_t to[BLOB_DIGEST_SIZE]);

/* An input that turned out to be small is here; else NULL, and large_end() makes it a blob. */
struct buf *large_small_input(struct large *large);
int large_end(struct large *large, const char *key, large_call *done, void *opaque,
              struct err *err) MUST_CHECK;
