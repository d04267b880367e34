/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The body of a submit: bytes in, checked values out. Unknown fields are taken and named in the
 * warnings; a known field of a wrong type or out of range is an error that names field, value and
 * limit. A field that is null counts as absent.
 *
 * Pure but for its parsers.   Thread: one reader a thread.
 * Tests: tests/unit/test_gateway_body.c, tests/fuzz/fuzz_submit_body.c
 */

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/buf.h"
#include "base/wire.h"

#define SUBMIT_WEBHOOK_SIZE_MAX 2048

static inline struct wire_text text_or_none(const char *text)
{
    return text == NULL ? (struct wire_text){NULL, 0} : WIRE_TEXT_OF(text);
}
#define SUBMIT_WARNINGS_MAX 16
#define SUBMIT_SLOTS_MAX 4096
#define SUBMIT_WARNINGS_SIZE_MAX 8192

struct body_reader;

struct submit_body {
    const char *input; /* JSON of model_input, verbatim; borrowed from the body */
    size_t input_size;
    char *webhook_url; /* NULL: none */
    uint32_t priority, queue_limit_s;
    uint32_t max_attempts, initial_delay_ms, max_delay_ms;
    uint32_t slot_count;
    uint64_t run_at_us; /* not before; 0: now */
    bool refuse_late;   /* rather than accept what will expire */
    bool stream;        /* the answer's pieces can be followed */
    uint32_t warning_count;
    struct buf warnings; /* `"…","…"`: the items of a JSON array; empty: none */
};

struct body_reader *body_reader_new(void);
void body_reader_free(struct body_reader **reader_p);

/* padded as in json_fast_parse(). loopback_http: http:// is allowed to loopback hosts. On failure
 * (ERR_MALFORMED, ERR_RANGE, ERR_TOO_BIG) nothing is to be released. */
int body_read_submit(struct body_reader *reader, const void *bytes, size_t size, bool padded,
                     bool loopback_http, struct submit_body *ret_body, struct err *err) MUST_CHECK;
void submit_body_done(struct submit_body *body);

/* ERR_MALFORMED unless the bytes are one JSON value: what predict sends by default. */
int body_check_json(struct body_reader *reader, const void *bytes, size_t size, bool padded,
                    struct err *err) MUST_CHECK;

/* ERR_RANGE unless it is an absolute https:// URL with a host (http:// to loopback on demand). */
int webhook_url_check(const char *url, bool loopback_http, struct err *err) MUST_CHECK;

/* Appends the text in quotes, escaped as JSON wants; the text must be UTF-8. */
void json_append_string(struct buf *to, const char *text, size_t size);
