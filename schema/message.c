/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/message.h"

#include "base/assert.h"

/* One table of fields a message, then one row a message. */
#define MESSAGE(name, NAME, number, version) static const struct wire_field name##_fields[] = {
#define FIELD(name, key, kind, member, required, limit)                                            \
    {key, WIRE_KIND_##kind, required, limit, offsetof(struct message_##name, member), #member},
#define END(name)                                                                                  \
    }                                                                                              \
    ;
#include "schema/messages.def"
#undef MESSAGE
#undef FIELD
#undef END

static const struct wire_type message_types[] = {
#define MESSAGE(name, NAME, number, version)                                                       \
    {number, version, #name, name##_fields, COUNT_OF(name##_fields), sizeof(struct message_##name)},
#define FIELD(name, key, kind, member, required, limit)
#define END(name)
#include "schema/messages.def"
#undef MESSAGE
#undef FIELD
#undef END
};

static const struct wire_type *type_find(uint32_t number)
{
    for (size_t i = 0; i < COUNT_OF(message_types); i++) {
        if (message_types[i].type == number)
            return &message_types[i];
    }
    return NULL;
}

int message_encode(enum message_type type, const void *fields, struct buf *buf, struct err *err)
{
    const struct wire_type *row = type_find(type);

    if (row == NULL)
        NEVER("message type is out of range");
    return wire_encode(row, fields, buf, err);
}

int message_decode(struct wire_decoder *decoder, const void *bytes, size_t size,
                   struct message *ret_message, struct err *err)
{
    const struct wire_type *row;
    uint32_t number;
    int r;

    r = wire_peek_type(bytes, size, &number, err);
    if (r < 0)
        return r;
    row = type_find(number);
    if (row == NULL)
        return err_set(err, ERR_UNSUPPORTED, "message type %u is not known here", number);
    r = wire_decode(decoder, row, bytes, size, &ret_message->submit, err);
    if (r == 0)
        ret_message->type = (enum message_type)number;
    return r;
}

const char *message_type_name(enum message_type type)
{
    const struct wire_type *row = type_find(type);

    return row == NULL ? "unknown" : row->name;
}
