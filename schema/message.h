/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The messages of schema/messages.def as C structs, and their codec.
 *
 *     struct message_submit submit = {.id = id, .tenant = …};
 *     r = message_encode(MESSAGE_SUBMIT, &submit, &buf, &err);
 *
 * Texts and bytes of a decoded message are borrowed (base/wire.h says from whom).
 * Thread: any; a decoder belongs to one thread.   Tests: tests/unit/test_wire.c
 */

#include "base/wire.h"

/* The generation of all messages and engine frames together: raised with the version of any of
 * them, so that people can see which programs understand each other. A single message goes by its
 * own version, which leads it. */
#define MESSAGE_WIRE_VERSION 1

/* NOLINTBEGIN: the generator macros of a .def table */
#define MESSAGE(name, NAME, number, version) struct message_##name {
#define FIELD(name, key, kind, member, required, limit) WIRE_C_##kind member;
#define END(name)                                                                                  \
    }                                                                                              \
    ;
#include "schema/messages.def"
#undef MESSAGE
#undef FIELD
#undef END
/* NOLINTEND */

enum message_type {
#define MESSAGE(name, NAME, number, version) MESSAGE_##NAME = (number),
#define FIELD(name, key, kind, member, required, limit)
#define END(name)
#include "schema/messages.def"
#undef MESSAGE
#undef FIELD
#undef END
};

struct message {
    enum message_type type;
    union {
#define MESSAGE(name, NAME, number, version) struct message_##name name;
#define FIELD(name, key, kind, member, required, limit)
#define END(name)
#include "schema/messages.def"
#undef MESSAGE
#undef FIELD
#undef END
    };
};

/* Appends the struct of that type to buf. ERR_RANGE: a field is missing or over its limit. */
int message_encode(enum message_type type, const void *fields, struct buf *buf,
                   struct err *err) MUST_CHECK;

/* Decodes any message of the list. ERR_MALFORMED: no such message. ERR_UNSUPPORTED: newer version
 * or a type that this program does not know. */
int message_decode(struct wire_decoder *decoder, const void *bytes, size_t size,
                   struct message *ret_message, struct err *err) MUST_CHECK;

const char *message_type_name(enum message_type type); /* "submit"; static storage */
