/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A model directory as one archive (tar, zstd level 1) in an unnamed file, with its digest.
 *
 * Regular files and directories only: a link or a device in the directory is an error that names
 * it. Entries are sorted and carry no times or owners, so the same files give the same digest and
 * a second push of them uploads nothing new.
 *
 * Hidden files are left out, and what .truss_ignore at the top names (cli/ignore.h); without that
 * file, compiled Python.
 *
 * Thread: the only one of a command.   Tests: tests/unit/test_push_archive.c
 */

#include <stdint.h>

#include "base/err.h"
#include "schema/model_plan.h"

#define PUSH_FILES_MAX 10000
#define PUSH_DEPTH_MAX 16
#define PUSH_SOURCES_MAX 64

struct push_archive {
    int fd; /* at its start; the caller closes it */
    uint64_t size;
    uint64_t file_count, content_size;
    uint64_t left_out_count; /* files and folders that .truss_ignore names */
    char digest[65];         /* SHA-256 of the archive, hex */
};

int push_archive_make(const char *folder, struct push_archive *ret_archive,
                      struct err *err) MUST_CHECK;

/* What is packed besides the folder, and what of it is not: workspaces of training jobs. */
struct push_sources {
    char *excludes[PUSH_SOURCES_MAX];  /* names at the top of the folder */
    char *externals[PUSH_SOURCES_MAX]; /* folders elsewhere: each stands at the top by its name */
    size_t exclude_count, external_count;
    uint64_t content_size_max; /* 0: none */
};

/* ERR_TOO_BIG: over content_size_max; ERR_USAGE: two things would have one name. */
int push_archive_make_of(const char *folder, const struct push_sources *sources,
                         struct push_archive *ret_archive, struct err *err) MUST_CHECK;

/* What push_archive_make() would pack, for model_plan_make(); writes nothing. */
int push_archive_look(const char *folder, struct model_facts *ret_facts,
                      struct err *err) MUST_CHECK;
