/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The adapter of the blob store for S3 and what speaks like it: path-style, signed with version 4
 * (libcurl), over the loop; nothing blocks.
 *
 *     put, up to one part:  PUT                                        -> done
 *     put, larger:          POST ?uploads, PUT a part…, POST complete  -> done
 *     get:                  GET, into memory or into a descriptor as it comes
 *     list, remove:         GET ?list-type=2, DELETE
 *
 * What may pass (no connection, a broken one, 429, 5xx, a part that came too late) is tried again
 * with growing, jittered waits: BLOB_S3_TRIES times for one exchange, and none is begun later than
 * BLOB_S3_PATIENCE_MS after the first. BLOB_S3_ACTIVE_MAX calls are under way; others wait in line.
 * A put that fails gives its parts back (a crash leaves them to the bucket's own rules).
 *
 * Failures: ERR_NOT_FOUND; ERR_TOO_BIG past the limit of a get; ERR_FULL when the store has no room
 * or a spool has none; ERR_UNAVAILABLE, with the store's own code in the text, when it cannot be
 * reached or refuses us: keys and buckets are put right without the request's help.
 * Shutdown: blob_s3_close() ends every call with ERR_CANCELED before it returns.
 *
 * Thread: the loop's.   Tests: tests/unit/test_blob_s3.c, tests/stack/test_blob_s3.py
 */

#include <openssl/types.h>
#include <sys/queue.h>

#include "brokers/blob.h"

#define BLOB_S3_TRIES 4
#define BLOB_S3_PATIENCE_MS 15000
#define BLOB_S3_ACTIVE_MAX 64

struct blob_s3;
struct blob_s3_options;

enum blob_s3_work {
    BLOB_S3_PUT,    /* bytes, or fd when bytes is NULL; size */
    BLOB_S3_GET,    /* to, or fd when to is NULL; at most limit bytes */
    BLOB_S3_REMOVE, /* what is not there is removed */
    BLOB_S3_LIST,   /* key is the prefix */
};

/* One call. What it points to is borrowed until `done`, which may free the ask. */
struct blob_s3_ask {
    enum blob_s3_work work;
    const char *key;
    const void *bytes;
    int fd;
    uint64_t size; /* of a put; of a get, once it is done */
    uint64_t limit;
    struct buf *to;
    EVP_MD_CTX *digest; /* of a get: fed with what comes; NULL: none. Begun anew at each try */
    const char *after;  /* of a list: keys behind this one only, "": all */
    uint32_t count_max;
    bool folders;
    struct blob_list *list;
    struct err err;
    void (*done)(struct blob_s3_ask *ask);
};

/* The options are copied. */
int blob_s3_open(struct loop *loop, const struct blob_s3_options *options, struct blob_s3 **ret_s3,
                 struct err *err) MUST_CHECK;
void blob_s3_close(struct blob_s3 **s3_p);

void blob_s3_send(struct blob_s3 *s3, struct blob_s3_ask *ask);

/* A nameless file for bytes on their way: gone with its descriptor, also after a crash. */
int blob_s3_spool(const struct blob_s3 *s3, int *ret_fd, struct err *err) MUST_CHECK;
