/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The blob store: inputs over the inline limit, large results, model archives. Keys are paths made
 * by the functions below; a blob is written whole, is durable before its call is answered, and
 * never changes. Putting the same key again replaces it by equal bytes.
 *
 *     small:  blob_put(key, bytes)                                   -> done
 *             blob_get(key, limit)                                   -> bytes
 *     large:  blob_upload_new, blob_upload_write…, blob_upload_end   -> done
 *             blob_put_file(key, descriptor)                         -> done
 *             blob_copy(key, descriptor)                             -> size, digest
 *             blob_open(key)                                         -> descriptor to read from
 *     care:   blob_list(prefix, after), blob_remove(key)
 *
 * The large forms never hold a blob in memory, whatever its size: bytes rest in files.
 *
 * The calls do not block: a directory's work runs on libuv's threads, S3 is spoken over the loop,
 * and each call is answered exactly once, from the loop, in any order. Adapters: a directory
 * (blob_dir.c; URL "file:///var/lib/headrace/blobs" or a bare path), and S3 (blob_s3.c; URL
 * "s3://bucket/prefix", blob_s3_options.h).
 *
 * Failures: ERR_NOT_FOUND for a key without a blob, ERR_TOO_BIG past a limit, ERR_FULL when
 * BLOB_CALLS_MAX calls wait or the store has no room, ERR_UNAVAILABLE when it cannot be reached or
 * refuses us, ERR_IO for the rest. A failed put leaves no part of a blob behind.
 * Shutdown: blob_close() drops the answers of what is under way; the work itself ends or is undone.
 *
 * Thread: the loop's.   Tests: tests/unit/test_blob.c, test_blob_s3.c
 */

#include <stdint.h>

#include "base/buf.h"
#include "base/wire.h"

#define BLOB_KEY_SIZE 160 /* the longest key, with its terminator */
#define BLOB_CALLS_MAX 4096
#define BLOB_DIGEST_SIZE 32

struct loop;
struct blob_store;
struct blob_upload;

int blob_store_open(struct loop *loop, const char *url, struct blob_store **ret_store,
                    struct err *err) MUST_CHECK;
void blob_store_close(struct blob_store **store_p);

/* ---- Keys. Day first, so that retention is the removal of a directory; then id, then token: a
 * fenced attempt can never overwrite the result of the one that counted. */

void blob_key_input(const struct wire_id *job, char to[BLOB_KEY_SIZE]);
void blob_key_output(const struct wire_id *job, uint64_t token, char to[BLOB_KEY_SIZE]);
void blob_key_archive(const uint8_t digest[BLOB_DIGEST_SIZE], char to[BLOB_KEY_SIZE]);

void blob_key_file(const struct wire_id *file, char to[BLOB_KEY_SIZE]); /* of a client's upload */
/* Of what a chunk of a bulk job came to: answers, or failures. */
void blob_key_bulk(const struct wire_id *bulk, uint32_t chunk, bool errors, char to[BLOB_KEY_SIZE]);

/* ERR_MALFORMED unless it is 1 to 159 characters of [A-Za-z0-9._-] in segments that are neither
 * empty nor begin with a dot. */
int blob_key_check(const char *key, struct err *err) MUST_CHECK;

/* ---- Calls. err->code is ERR_OK on success; everything shown to a callback is borrowed. */

typedef void blob_done_call(void *opaque, const struct err *err);
typedef void blob_bytes_call(void *opaque, struct buf *bytes, const struct err *err);
typedef void blob_file_call(void *opaque, int fd, uint64_t size, const struct err *err);
typedef void blob_copied_call(void *opaque, uint64_t size, const uint8_t digest[BLOB_DIGEST_SIZE],
                              const struct err *err);

/* Takes the bytes (bytes is empty afterwards), also when it fails. */
int blob_put(struct blob_store *store, const char *key, struct buf *bytes, blob_done_call *done,
             void *opaque, struct err *err) MUST_CHECK;

/* The whole blob, at most limit bytes; the callback may buf_move() the bytes out. They are followed
 * by BLOB_PADDING readable zero bytes that do not count. */
#define BLOB_PADDING 64
int blob_get(struct blob_store *store, const char *key, size_t limit, blob_bytes_call *done,
             void *opaque, struct err *err) MUST_CHECK;

/* size bytes of the descriptor, from its start; it is duplicated, the caller's may be closed. */
int blob_put_file(struct blob_store *store, const char *key, int fd, uint64_t size,
                  blob_done_call *done, void *opaque, struct err *err) MUST_CHECK;

/* Writes the blob, at most limit bytes, into the descriptor (duplicated as well) from its start. */
int blob_copy(struct blob_store *store, const char *key, int fd, uint64_t limit,
              blob_copied_call *done, void *opaque, struct err *err) MUST_CHECK;

/* A descriptor to read the blob from, at its start; the callback's to close. */
int blob_open(struct blob_store *store, const char *key, blob_file_call *done, void *opaque,
              struct err *err) MUST_CHECK;

/* Removing what is not there succeeds; folders that this empties go, too. */
int blob_remove(struct blob_store *store, const char *key, blob_done_call *done, void *opaque,
                struct err *err) MUST_CHECK;

/* ---- What is there, in the order of the keys. */

#define BLOB_LIST_LAST_SIZE 1040 /* the longest key that a store may show us, ours or not */
#define BLOB_LIST_COUNT_MAX 1000

struct blob_entry {
    char key[BLOB_KEY_SIZE];
    uint64_t size, modified_us; /* of a folder: 0 */
};

struct blob_list {
    struct blob_entry *entries;
    size_t count, room;
    bool more;                      /* ask again with after = last */
    char last[BLOB_LIST_LAST_SIZE]; /* may be no key of ours */
};

void blob_list_add(struct blob_list *list, const char *key, uint64_t size, uint64_t modified_us);
void blob_list_done(struct blob_list *list);

typedef void blob_list_call(void *opaque, struct blob_list *list, const struct err *err);

/* Blobs whose keys begin with prefix (it ends in a slash), behind `after` ("": from the first on),
 * at most count_max. folders: the next level's names instead of blobs. */
struct blob_listing {
    const char *prefix, *after;
    uint32_t count_max;
    bool folders;
};
int blob_list(struct blob_store *store, const struct blob_listing *listing, blob_list_call *done,
              void *opaque, struct err *err) MUST_CHECK;

/* ---- A large blob, written as it arrives, in a file of its own until its key is known. One write
 * at a time: the next only after the answer of the one before. */

int blob_upload_new(struct blob_store *store, struct blob_upload **ret_upload,
                    struct err *err) MUST_CHECK;

/* Takes the bytes. */
int blob_upload_write(struct blob_upload *upload, struct buf *bytes, blob_done_call *done,
                      void *opaque, struct err *err) MUST_CHECK;
uint64_t blob_upload_size(const struct blob_upload *upload);

/* SHA-256 of what was written; to be asked once, after the last write was answered. */
void blob_upload_digest(struct blob_upload *upload, uint8_t to[BLOB_DIGEST_SIZE]);

/* Where the bytes are meanwhile, for whoever must look into them before they count. */
const char *blob_upload_path(const struct blob_upload *upload);

/* Makes it the blob of that key. The upload is still the caller's to free. */
int blob_upload_end(struct blob_upload *upload, const char *key, blob_done_call *done, void *opaque,
                    struct err *err) MUST_CHECK;

/* Before the end: nothing remains of it. May be called while a write is under way; its answer is
 * then dropped. */
void blob_upload_free(struct blob_upload **upload_p);
