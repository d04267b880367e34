/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Small files, directories, log tails and free ports, as `headrace dev` needs them.
 * Thread: any.   Tests: tests/unit/test_dev_files.c
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/buf.h"

/* Writes a whole file so that a reader sees the old text or the new one, never a part. */
int dev_file_write(const char *path, const char *text, struct err *err) MUST_CHECK;

/* Reads a whole file into *ret_text, which is to be freed; ERR_NOT_FOUND when there is none. */
int dev_file_read(const char *path, size_t limit, char **ret_text, struct err *err) MUST_CHECK;

bool dev_file_exists(const char *path);

/* The last lines of a log, each with the given indent; "" when there is none. To be freed. */
char *dev_file_tail(const char *path, int line_count, const char *indent);

/* 0 when there is none. */
off_t dev_file_size(const char *path);

/* The first lines, from the given byte on, that have one of the words (NULL at the end; case does
 * not count), each with the given indent; "" when there is none. Looks at one MiB. To be freed. */
char *dev_file_lines_with(const char *path, off_t from, const char *const *words, int line_count,
                          const char *indent);

/* Makes a directory of mode 0700 and those above it. */
int dev_dir_make(const char *path, struct err *err) MUST_CHECK;

/* Removes a directory with all in it; one that is not there is no error. */
int dev_dir_remove(const char *path, struct err *err) MUST_CHECK;

/* A port on 127.0.0.1 that can be bound now: the preferred one if it is free, else any, outside the
 * range of outgoing connections where there is room. */
int dev_port_pick(uint16_t preferred, uint16_t *ret_port, struct err *err) MUST_CHECK;

/* True when something listens there. */
bool dev_port_answers(uint16_t port);

/* The full path of a program, from PATH and then from the extra directories (NULL at the end);
 * NULL when there is none. To be freed. */
char *dev_program_find(const char *name, const char *const *extra_dirs);
