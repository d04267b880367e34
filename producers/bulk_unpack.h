/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A packed input of a bulk job (gzip, zstd), unpacked into a file without a name.
 * Thread: any; blocks.   Tests: tests/unit/test_bulk_unpack.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

bool bulk_is_packed(int fd); /* by its first bytes; the position stays */

/* The caller's to close: *ret_fd. ERR_MALFORMED when it is cut off or broken, ERR_TOO_BIG when it
 * has more than limit bytes, ERR_IO when the folder has no room. */
int bulk_unpack(int fd, const char *folder, uint64_t limit, int *ret_fd, uint64_t *ret_size,
                struct err *err) MUST_CHECK;
