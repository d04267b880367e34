/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A pushed archive, looked through from end to end before anything of it is accepted: tar, plain or
 * packed with gzip or zstd.
 *
 * Refused: anything but files and directories; paths that are absolute, climb, are too long or too
 * deep, or come twice; too many files; more bytes than allowed once unpacked; a safetensors file
 * whose header cannot be one; an archive that ends early.
 *
 * What its files are decides the engine: schema/model_plan.h.
 *
 * gateway_archive_look() blocks and belongs on a thread of the pool. Thread: any.
 * Tests: tests/unit/test_gateway_archive.c
 */

#include <stdint.h>

#include "base/err.h"
#include "schema/model_plan.h"

#define ARCHIVE_FILES_MAX 10000
#define ARCHIVE_DEPTH_MAX 16
#define ARCHIVE_PATH_SIZE_MAX 1024

/* ERR_MALFORMED, ERR_TOO_BIG or ERR_UNSUPPORTED name the file that is refused, and why. */
int gateway_archive_look(const char *path, uint64_t content_size_max, struct model_facts *ret_facts,
                         struct err *err) MUST_CHECK;

/* ERR_MALFORMED unless the path may be unpacked below a directory. For tests, too. */
int gateway_archive_path_check(const char *path, struct err *err) MUST_CHECK;
