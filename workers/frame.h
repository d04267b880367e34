/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Frames between a worker and its engine host: the structs of frame.def and their codec.
 *
 *     worker                                host
 *                         <------ HELLO     who I am
 *       LOAD              ------>
 *                         <------ EVT LOADING …
 *                         <------ READY     credit: so many requests
 *       REQ …  CANCEL …   ------>
 *                         <------ EVT ACCEPTED, TOKENS …, OUTPUT or ERROR (raises the credit)
 *                         <------ STATS     each second
 *       DRAIN             ------>
 *                         <------ BYE       and the socket closes
 *
 * A frame is a 4-byte length, big-endian, then that many bytes of a message in the table codec of
 * base/wire.h: the msgpack array [version, type, {key: value}]. Unknown keys are skipped, so either
 * side may be newer.
 *
 * Pure: bytes in, frames out. Sockets and descriptors are workers/frame_link.h.
 * Thread: its owner's.   Tests: tests/unit/test_frame.c, tests/fuzz/fuzz_frame.c
 */

#include "base/wire.h"

#define FRAME_PROTOCOL 1u
#define FRAME_HEAD_SIZE 4

/* Bytes that travel inside a frame; longer inputs and outputs go in a memfd beside it. */
#define FRAME_INLINE_MAX (1u << 20)

/* Length of the largest frame without its head: inline data and the other fields. */
#define FRAME_SIZE_MAX (FRAME_INLINE_MAX + (64u << 10))

/* What a memfd may hold: an input or an output as a whole. */
#define FRAME_FD_SIZE_MAX (256u << 20)

/* NOLINTBEGIN: the generator macros of a .def table */
#define FRAME(name, NAME, number, version) struct frame_##name {
#define FIELD(name, key, kind, member, required, limit) WIRE_C_##kind member;
#define END(name)                                                                                  \
    }                                                                                              \
    ;
#include "workers/frame.def"
#undef FRAME
#undef FIELD
#undef END
/* NOLINTEND */

enum frame_type {
#define FRAME(name, NAME, number, version) FRAME_##NAME = (number),
#define FIELD(name, key, kind, member, required, limit)
#define END(name)
#include "workers/frame.def"
#undef FRAME
#undef FIELD
#undef END
};

enum frame_evt_kind {
    FRAME_EVT_ACCEPTED = 1, /* it is in the engine's queue */
    FRAME_EVT_TOKENS,       /* data is a piece of the answer */
    FRAME_EVT_OUTPUT,       /* final: data is the answer */
    FRAME_EVT_ERROR,        /* final: error_class and text say why */
    FRAME_EVT_LOADING,      /* done_size of total_size bytes of weights are read */
};

struct frame {
    enum frame_type type;
    union {
#define FRAME(name, NAME, number, version) struct frame_##name name;
#define FIELD(name, key, kind, member, required, limit)
#define END(name)
#include "workers/frame.def"
#undef FRAME
#undef FIELD
#undef END
    };
};

/* Appends head and body to buf. ERR_RANGE: a field is missing or over its limit; buf is as it was.
 */
int frame_encode(enum frame_type type, const void *fields, struct buf *buf,
                 struct err *err) MUST_CHECK;

/* Decodes one body (without head). Texts and bytes are borrowed from `bytes` and the decoder. */
int frame_decode(struct wire_decoder *decoder, const void *bytes, size_t size,
                 struct frame *ret_frame, struct err *err) MUST_CHECK;

const char *frame_type_name(enum frame_type type); /* "hello"; static storage */

/* A stream of frames, cut at any byte. */
struct frame_reader {
    struct buf bytes;
    size_t at; /* the next frame's head; what is before it is used up */
};

void frame_reader_init(struct frame_reader *reader);
void frame_reader_done(struct frame_reader *reader);

/* Room for the next read(2), at least a page; then frame_reader_commit() what was read. NULL never:
 * frame_reader_next() must have been called until it gave 0. */
uint8_t *frame_reader_room(struct frame_reader *reader, size_t *ret_size);
void frame_reader_commit(struct frame_reader *reader, size_t size);

/* 1: *ret_body is the body of a whole frame, valid until the next frame_reader_room(). 0: more
 * bytes are needed. ERR_MALFORMED, ERR_TOO_BIG: the peer does not speak this; the stream is over.
 */
int frame_reader_next(struct frame_reader *reader, struct wire_bytes *ret_body,
                      struct err *err) MUST_CHECK;
