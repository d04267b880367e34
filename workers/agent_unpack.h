/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Unpacks a pushed model archive into the cache of this machine: <cache>/<digest>/.
 *
 * The bytes are hashed while they are read, and nothing appears under its name unless the digest
 * was right: everything goes to a folder beside it first, which is renamed at the end. A folder of
 * that name is taken for complete, so each archive is unpacked once.
 *
 * An archive is a user's: regular files and folders only, names that stay inside, no more of them
 * and no more bytes than the limits. Modes are ours (0644, 0755).
 *
 * Blocks; for a thread of libuv's pool.   Tests: tests/unit/test_agent_unpack.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define AGENT_UNPACK_FILES_MAX 20000
#define AGENT_UNPACK_PATH_MAX 1024

/* digest: 64 hex digits. *ret_folder is the caller's to free. ERR_MALFORMED, ERR_TOO_BIG,
 * ERR_MISMATCH: the archive is at fault; ERR_IO and others: this machine is. */
int agent_unpack(int fd, const char *digest, const char *cache, uint64_t content_size_max,
                 char **ret_folder, struct err *err) MUST_CHECK;

/* The folder of a digest that is unpacked already; NULL: it is not. The caller's to free. */
char *agent_unpacked(const char *cache, const char *digest);

/* Moves models that no digest of the list needs out of the way (quick, so that nobody starts with
 * one that is being removed), for agent_sweep_remove() to remove. `all`: also what an unpacking
 * that was cut short has left; only before the first one. Returns how many there are to remove. */
size_t agent_sweep_mark(const char *cache, const char *const *digests, size_t digest_count,
                        bool all);
void agent_sweep_remove(const char *cache); /* blocks */

/* Removes a folder and all that is in it; links are not followed. */
int agent_remove_tree(const char *path, struct err *err) MUST_CHECK;
