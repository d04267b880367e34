/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What is in the folder that a training job saves its checkpoints to, and the digests of it.
 *
 * Each folder at the top is a checkpoint, and so is a single file. Names that begin with a dot or
 * with "tmp", or end in ".tmp", are still being written by whoever names them so, and are skipped.
 * A checkpoint is not complete while a file of such a name is in it, or while an index of shards
 * (*.index.json of Hugging Face) names a shard that is not there. Links are not followed.
 *
 * Blocks; for a thread of libuv's pool.   Tests: tests/unit/test_trainer_scan.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define SCAN_NAME_SIZE 256
#define SCAN_FILES_MAX 20000  /* of a checkpoint */
#define SCAN_ENTRIES_MAX 1000 /* of a folder */
#define SCAN_DIGEST_SIZE 32

struct scan_entry {
    char name[SCAN_NAME_SIZE];
    uint64_t mark; /* of names, sizes, times and inodes: another one, something has changed */
    uint64_t size;
    size_t file_count;
    bool complete;
    bool passed_over; /* it is there, and nothing else was looked at */
};

struct scan {
    struct scan_entry *entries;
    size_t count, room;
};

/* Names in the order of strcmp() that need no look into them. */
struct scan_known {
    const char *const *names;
    size_t count;
};

/* A folder that is not there is empty. */
int trainer_scan_folder(const char *folder, const struct scan_known *known, struct scan *ret_scan,
                        struct err *err) MUST_CHECK;
void trainer_scan_done(struct scan *scan);

/* Whether something of that name at the top is no checkpoint yet. */
bool trainer_scan_is_being_written(const char *name);

struct scan_file {
    char *path; /* below the checkpoint */
    uint64_t size;
    uint32_t mode;
    uint8_t digest[SCAN_DIGEST_SIZE];
};

struct scan_files {
    struct scan_file *files;
    size_t count, room;
    uint64_t mark, size;
    char *adapter; /* adapter_config.json of a LoRA, JSON; NULL: it has none */
};

/* The files of one checkpoint with their digests; mark is that of the moment before they were read.
 * ERR_TOO_BIG: too many files. */
int trainer_scan_read(const char *folder, const char *name, struct scan_files *ret_files,
                      struct err *err) MUST_CHECK;
void trainer_scan_files_done(struct scan_files *files);

/* What mark it has now; 0: it is not there. */
uint64_t trainer_scan_mark(const char *folder, const char *name);
