/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A large submit's body, read as it comes: the value of the top-level "model_input" is handed on
 * verbatim, piece by piece; everything around it is gathered, with {} in its place, for the reader
 * of small bodies (gateway_body.h). So a body of any size costs the memory of its smallest part.
 *
 *     {"priority":1,"model_input":{"text":"…100 MB…"}}
 *      '---------- envelope ------'   '---- input ----'
 *
 * The syntax of all of it is checked on the way, as strictly as base/json_fast.h does:
 * ERR_MALFORMED with the position, ERR_RANGE past JSON_FAST_DEPTH_MAX. An envelope over
 * SCAN_ENVELOPE_SIZE_MAX is ERR_TOO_BIG. A model_input that is no object stays in the envelope, for
 * its reader to refuse.
 *
 * Pure: no I/O, no clock. Thread: its owner's.
 * Tests: tests/unit/test_gateway_scan.c, tests/fuzz/fuzz_gateway_scan.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"

#define SCAN_ENVELOPE_SIZE_MAX (256u << 10)

enum scan_at { /* what may come next */
               SCAN_AT_VALUE,
               SCAN_AT_VALUE_OR_END, /* behind [ */
               SCAN_AT_KEY,
               SCAN_AT_KEY_OR_END, /* behind { */
               SCAN_AT_COLON,
               SCAN_AT_AFTER, /* behind a value: comma or the end of what holds it */
               SCAN_AT_STRING,
               SCAN_AT_ESCAPE,
               SCAN_AT_HEX,     /* of \uXXXX */
               SCAN_AT_LOW,     /* the backslash of the second half of a pair */
               SCAN_AT_LOW_U,   /* its u */
               SCAN_AT_LITERAL, /* true, false, null */
               SCAN_AT_MINUS,   /* digits must follow */
               SCAN_AT_ZERO,
               SCAN_AT_INT,
               SCAN_AT_POINT, /* a digit must follow */
               SCAN_AT_FRACTION,
               SCAN_AT_E, /* sign or digit */
               SCAN_AT_E_SIGN,
               SCAN_AT_EXPONENT,
               SCAN_AT_END, /* white space only */
};

struct scan {
    enum scan_at at;
    uint64_t position; /* bytes read */
    uint64_t objects;  /* bit n: level n is an object */
    int depth;
    bool in_key, key_matches, input_next; /* input_next: the value to come is model_input's */
    bool in_input;                        /* what is read goes to the input */
    size_t key_size;                      /* of a top-level key, so far */
    const char *literal;
    uint32_t code;               /* of an escape */
    int hex_count;               /* digits still to come */
    bool want_low;               /* …of the second half of a pair */
    uint8_t utf8_left;           /* continuation bytes to come */
    uint8_t utf8_low, utf8_high; /* bounds of the next one */
    struct buf envelope;
};

void scan_init(struct scan *scan);
void scan_done(struct scan *scan);

/* Reads bytes; those of the input are appended to `input`, which the caller empties as it likes. */
int scan_feed(struct scan *scan, const void *bytes, size_t size, struct buf *input,
              struct err *err) MUST_CHECK;

/* The body is over: ERR_MALFORMED unless it was whole. */
int scan_end(const struct scan *scan, struct err *err) MUST_CHECK;
