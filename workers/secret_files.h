/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Secrets as files of a folder that one engine host has to itself, for servers, which have no other
 * way to be given them: /secrets in a sandbox, a folder in the scratch folder of `basic`, one in
 * /dev/shm without any confinement. Files have mode 0400, the folder 0700.
 *
 * Thread: the host's.   Tests: tests/unit/test_secret_files.c
 */

#include "base/err.h"

struct json_t;
struct wire_bytes;

/* Where `headrace confine` says that they belong. */
#define SECRET_FILES_VARIABLE "SECRETS_DIR"

/* Writes a file for each name of `declared`: its member of `values` (a JSON object, may be empty),
 * else its own text in `declared`. Names that have neither are in *ret_missing, with commas
 * between; the caller frees; NULL: none. ERR_IO names the file. */
int secret_files_write(const char *folder, const struct json_t *declared, struct wire_bytes values,
                       char **ret_missing, struct err *err) MUST_CHECK;

/* A folder of this process in memory ($RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR, /run, at last
 * /dev/shm); removes those of processes that are gone. The caller frees the text, and removes the
 * folder with secret_files_remove(). */
int secret_files_folder_make(char **ret_folder, struct err *err) MUST_CHECK;
void secret_files_remove(const char *folder);
