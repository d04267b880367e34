/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One line of a bulk job: what its input says, and what stands in its output.
 *
 *     {"custom_id": "a-1", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", …}}
 *     {"model_input": …}    of a bulk job of one model, whose endpoint is BULK_PREDICT; a custom_id
 * may stand beside it, else it is the line's number
 *
 * Pure.   Thread: any; a reader belongs to one.   Tests: tests/unit/test_bulk_line.c
 */

#include <stdint.h>

#include "base/buf.h"
#include "base/wire.h"
#include "schema/job.h"

#define BULK_CUSTOM_ID_SIZE_MAX 512
#define BULK_CODE_SIZE 32
#define BULK_MODEL_SIZE 65
#define BULK_PREDICT "predict"

struct bulk_reader;

struct bulk_reader *bulk_reader_new(void);
void bulk_reader_free(struct bulk_reader **reader_p);

struct bulk_line {
    struct wire_text custom_id;       /* as JSON, in its quotes; borrowed from the line */
    struct wire_text custom_id_plain; /* what it says; until the next line is read */
    char model[BULK_MODEL_SIZE];      /* "": the bulk job's only one */
    struct wire_text body;            /* as JSON; borrowed */
};

/* JSON_FAST_PADDING bytes behind the line must be readable. On failure ret_code is a word for
 * programs ("invalid_json_line", "duplicate_custom_id" …), err->text a sentence. */
int bulk_line_read(struct bulk_reader *reader, const char *line, size_t size, uint64_t number,
                   const char *endpoint, struct bulk_line *ret_line, char ret_code[BULK_CODE_SIZE],
                   struct err *err) MUST_CHECK;

/* Nothing but spaces: no line at all. */
bool bulk_line_is_blank(const char *line, size_t size);

/* A line's job: the same whenever it is asked for. Line 1 is the file's first. */
struct wire_id bulk_line_job(const struct wire_id *bulk, uint64_t line, uint32_t shard);

/* What became of a line. Without a job it was never run: job NULL. */
struct bulk_outcome {
    const struct wire_id *job;
    uint64_t line;
    struct wire_text custom_id; /* as JSON */
    enum job_state state;
    enum error_class class;
    uint64_t attempts;
    int http_status; /* the model's own; 0: none */
    struct wire_text error_message;
    struct wire_bytes output; /* of the model, of a failure too */
    bool output_is_json;      /* by its type */
    const char *never_run;    /* without a job: "batch_expired", "batch_cancelled" */
};

/* Does it belong into the output, and not into the error file? */
bool bulk_outcome_is_good(const struct bulk_outcome *outcome);

/* Appends one line of JSON, with its end. What says it is JSON and is none stands there as text. */
void bulk_outcome_append(struct bulk_reader *reader, const struct bulk_outcome *outcome,
                         struct buf *to);
