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
 * What the files are decides the engine, unless headrace.json at the top says so:
 *
 *     {"engine": "sim", "device": "cpu", "slots": 4, "replicas": 1, "settings": {…}}
 *
 * gateway_archive_look() blocks and belongs on a thread of the pool; gateway_archive_plan() is
 * pure. Thread: any.   Tests: tests/unit/test_gateway_archive.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define ARCHIVE_FILES_MAX 10000
#define ARCHIVE_DEPTH_MAX 16
#define ARCHIVE_PATH_SIZE_MAX 1024
#define ARCHIVE_JSON_SIZE_MAX (1u << 20) /* of a file that we read ourselves */
#define ARCHIVE_ENGINE_SIZE 32
#define ARCHIVE_DEVICE_SIZE 16
#define ARCHIVE_SLOTS_MAX 2048
#define ARCHIVE_REPLICAS_MAX 1000

struct archive_facts {
    uint32_t file_count, safetensors_count;
    uint64_t content_size;
    char *config_json, *headrace_json; /* at the top; NULL: there is none */
    bool has_tokenizer;                /* vocab.txt or tokenizer.json at the top */
};
void gateway_archive_facts_done(struct archive_facts *facts);

/* ERR_MALFORMED, ERR_TOO_BIG or ERR_UNSUPPORTED name the file that is refused, and why. */
int gateway_archive_look(const char *path, uint64_t content_size_max,
                         struct archive_facts *ret_facts, struct err *err) MUST_CHECK;

/* ERR_MALFORMED unless the path may be unpacked below a directory. For tests, too. */
int gateway_archive_path_check(const char *path, struct err *err) MUST_CHECK;

struct archive_plan {
    char engine[ARCHIVE_ENGINE_SIZE], device[ARCHIVE_DEVICE_SIZE];
    uint32_t slot_count, replica_count;
    char *settings; /* a JSON object, the engine's own */
};
void gateway_archive_plan_done(struct archive_plan *plan);

/* What will run it. ERR_UNSUPPORTED says what was looked for and is missing. */
int gateway_archive_plan(const struct archive_facts *facts, struct archive_plan *ret_plan,
                         struct err *err) MUST_CHECK;
