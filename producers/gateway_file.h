/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Files of clients, as OpenAI's /v1/files has them: what an upload becomes, and how a row is shown.
 * Pure.   Thread: any.   Tests: tests/unit/test_gateway_file.c
 */

#include <stdint.h>

#include "base/http_server.h"
#include "base/wire.h"

#define OPENAI_ID_SIZE 40 /* a prefix, 32 hex digits, a terminator */
#define FILE_ID_PREFIX "file-"
#define BATCH_ID_PREFIX "batch_"
#define FILE_NAME_SIZE 256
#define FILE_EXPIRY_S_MIN 3600
#define FILE_EXPIRY_S_MAX 2592000

struct json_t;
struct pg_answer;

/* Columns that file_json() reads, from an alias f. */
#define FILE_COLUMNS "f.id, f.purpose, f.filename, f.size, f.created_at, f.expires_at"

void openai_id_format(const char *prefix, const struct wire_id *id, char to[OPENAI_ID_SIZE]);
bool openai_id_parse(const char *prefix, const char *text, struct wire_id *ret_id) MUST_CHECK;
/* ERR_NOT_FOUND for what is none, as for one that is not there. */
int file_id_parse(const char *text, struct wire_id *ret_id, struct err *err) MUST_CHECK;

/* The fields of an upload besides the file's bytes. */
struct file_fields {
    char purpose[64], filename[FILE_NAME_SIZE];
    char anchor[32], seconds[16]; /* of expires_after */
    uint64_t file_size;           /* so far */
    bool has_file, has_purpose;
};

/* Takes a piece of a field; what is of the file's bytes is left to the caller (*ret_is_file).
 * Fields that are not known are ignored. ERR_MALFORMED or ERR_RANGE names the field. */
int file_fields_take(struct file_fields *fields, const struct http_form_piece *piece,
                     bool *ret_is_file, struct err *err) MUST_CHECK;

/* Is that all? *ret_expiry_s 0: it does not expire. */
int file_fields_check(const struct file_fields *fields, uint64_t *ret_expiry_s,
                      struct err *err) MUST_CHECK;

/* A time as OpenAI tells it: in seconds since 1970, or null. */
struct json_t *json_of_second(const struct pg_answer *answer, size_t at, size_t row, size_t column);

/* A row that begins with FILE_COLUMNS, as OpenAI's client reads it. The caller's. */
struct json_t *file_json(const struct pg_answer *answer, size_t at, size_t row);
