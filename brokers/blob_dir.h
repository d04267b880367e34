/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What an adapter of the blob store does, blocking, on a thread of libuv's pool; and the adapter
 * for a directory of this machine (or one that all machines mount).
 *
 * A blob is written to a file under tmp/, synced, renamed to its key, and the directories on the
 * way are synced: after the answer it survives a power loss. What a crash leaves under tmp/ is
 * removed by the next open, once it is an hour old.
 *
 * Thread: any; a blob_dir never changes after its open.   Tests: tests/unit/test_blob.c
 */

#include <stdint.h>

#include "brokers/blob.h"

struct blob_dir;

int blob_dir_open(const char *path, struct blob_dir **ret_dir, struct err *err) MUST_CHECK;
void blob_dir_close(struct blob_dir **dir_p);

int blob_dir_put(struct blob_dir *dir, const char *key, const void *bytes, size_t size,
                 struct err *err) MUST_CHECK;
int blob_dir_read(struct blob_dir *dir, const char *key, int *ret_fd, uint64_t *ret_size,
                  struct err *err) MUST_CHECK;
int blob_dir_remove(struct blob_dir *dir, const char *key, struct err *err) MUST_CHECK;

/* As blob_list(): keys of blobs lie at any depth below the prefix. */
int blob_dir_list(struct blob_dir *dir, const struct blob_listing *listing, struct blob_list *list,
                  struct err *err) MUST_CHECK;

/* A new file under tmp/, for writing; *ret_path is the caller's to free. */
int blob_dir_make_file(struct blob_dir *dir, int *ret_fd, char **ret_path,
                       struct err *err) MUST_CHECK;

/* Syncs the file and makes it the blob of that key; the path is gone afterwards. */
int blob_dir_adopt(struct blob_dir *dir, const char *key, int fd, const char *path,
                   struct err *err) MUST_CHECK;

/* Writes all of it, however often the kernel takes less. */
int blob_dir_write(int fd, const void *bytes, size_t size, struct err *err) MUST_CHECK;
