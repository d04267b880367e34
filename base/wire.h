/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Messages as tables: one list of fields makes the C struct, the encoder and the decoder.
 *
 * On the wire a message is the msgpack array [version, type, {key: value, …}]. Keys are small
 * integers that are never used again for something else; a field that is zero or empty is left
 * out; unknown keys are skipped, so that either side may be upgraded first. A higher version than
 * ours is refused by name (ERR_UNSUPPORTED): it says that skipping would be wrong.
 *
 * A list of messages is a .def file of MESSAGE/FIELD/END rows (see schema/messages.def).
 *
 * Decoded texts, bytes and lists are borrowed: from the input, or from the decoder until its next
 * use. The input is walked with bounds before msgpack-c sees it, because that library trusts the
 * element counts of a header (5 bytes can make it allocate 8 GB).
 *
 * Source: msgpack specification 2.0, github.com/msgpack/msgpack.
 * Thread: a decoder belongs to one thread.   Tests: tests/unit/test_wire.c, tests/fuzz/fuzz_wire.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

#define WIRE_DEPTH_MAX 8
#define WIRE_ID_SIZE 16

struct wire_bytes {
    const uint8_t *bytes; /* borrowed; NULL when empty */
    size_t size;
};

struct wire_text {
    const char *text; /* borrowed, not terminated, UTF-8 as the sender promised; NULL when empty */
    size_t size;
};

struct wire_id {
    uint8_t bytes[WIRE_ID_SIZE];
};

struct wire_u64s {
    const uint64_t *values; /* borrowed */
    size_t count;
};

enum wire_kind {
    WIRE_KIND_U64,
    WIRE_KIND_BOOL,
    WIRE_KIND_ID,
    WIRE_KIND_TEXT,
    WIRE_KIND_BYTES,
    WIRE_KIND_U64S,
};

/* The C type of each kind, for the struct generators of .def files. */
#define WIRE_C_U64 uint64_t
#define WIRE_C_BOOL bool
#define WIRE_C_ID struct wire_id
#define WIRE_C_TEXT struct wire_text
#define WIRE_C_BYTES struct wire_bytes
#define WIRE_C_U64S struct wire_u64s

struct wire_field {
    uint8_t key;
    enum wire_kind kind;
    bool required;  /* absent, zero or empty is an error */
    uint32_t limit; /* TEXT, BYTES: bytes; U64S: values; others: unused */
    size_t offset;  /* of the member in the message struct */
    const char *name;
};

struct wire_type {
    uint32_t type;
    uint32_t version;
    const char *name;
    const struct wire_field *fields;
    size_t field_count;
    size_t struct_size;
};

struct wire_decoder;

struct wire_decoder *wire_decoder_new(void);
void wire_decoder_free(struct wire_decoder **decoder_p);

/* Appends the message to buf. A field over its limit or a missing required one is an error of the
 * caller that must not be sent: ERR_RANGE, and buf is as before. */
int wire_encode(const struct wire_type *type, const void *message, struct buf *buf,
                struct err *err) MUST_CHECK;

/* Reads the type of an encoded message without decoding it. */
int wire_peek_type(const void *bytes, size_t size, uint32_t *ret_type, struct err *err) MUST_CHECK;

/* Decodes into *ret_message, a struct of `type`; absent fields are zero. ERR_MALFORMED for what is
 * no such message, ERR_UNSUPPORTED for a higher version. */
int wire_decode(struct wire_decoder *decoder, const struct wire_type *type, const void *bytes,
                size_t size, void *ret_message, struct err *err) MUST_CHECK;

/* 0 when the bytes are exactly one msgpack value whose every count fits into what is there. */
int wire_walk(const void *bytes, size_t size, struct err *err) MUST_CHECK;

#define WIRE_TEXT_OF(c_string) ((struct wire_text){(c_string), strlen(c_string)})
bool wire_text_equal(struct wire_text text, const char *c_string);
char *wire_text_dup(struct wire_text text); /* terminated copy, the caller's to free */
