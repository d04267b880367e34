/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/frame.h"

#include "base/assert.h"

#define FRAME_READ_SIZE (64u << 10)

/* One table of fields a frame, then one row a frame. */
#define FRAME(name, NAME, number, version) static const struct wire_field name##_fields[] = {
#define FIELD(name, key, kind, member, required, limit)                                            \
    {key, WIRE_KIND_##kind, required, limit, offsetof(struct frame_##name, member), #member},
#define END(name)                                                                                  \
    }                                                                                              \
    ;
#include "workers/frame.def"
#undef FRAME
#undef FIELD
#undef END

static const struct wire_type frame_types[] = {
#define FRAME(name, NAME, number, version)                                                         \
    {number, version, #name, name##_fields, COUNT_OF(name##_fields), sizeof(struct frame_##name)},
#define FIELD(name, key, kind, member, required, limit)
#define END(name)
#include "workers/frame.def"
#undef FRAME
#undef FIELD
#undef END
};

static const struct wire_type *type_find(uint32_t number)
{
    for (size_t i = 0; i < COUNT_OF(frame_types); i++) {
        if (frame_types[i].type == number)
            return &frame_types[i];
    }
    return NULL;
}

const char *frame_type_name(enum frame_type type)
{
    const struct wire_type *row = type_find(type);

    return row == NULL ? "unknown" : row->name;
}

int frame_encode(enum frame_type type, const void *fields, struct buf *buf, struct err *err)
{
    const struct wire_type *row = type_find(type);
    uint8_t *head = buf_reserve(buf, FRAME_HEAD_SIZE);
    size_t start = buf->size, size;
    int r;

    if (row == NULL)
        NEVER("frame type is out of range");
    if (head == NULL)
        return buf_check(buf, row->name, err);
    buf_commit(buf, FRAME_HEAD_SIZE);
    r = wire_encode(row, fields, buf, err);
    if (r < 0) {
        buf->size = start;
        return r;
    }
    size = buf->size - start - FRAME_HEAD_SIZE;
    assert(size <= FRAME_SIZE_MAX);
    for (int i = 0; i < FRAME_HEAD_SIZE; i++)
        buf->bytes[start + (size_t)i] = (uint8_t)(size >> (24 - 8 * i));
    return 0;
}

int frame_decode(struct wire_decoder *decoder, const void *bytes, size_t size,
                 struct frame *ret_frame, struct err *err)
{
    const struct wire_type *row;
    uint32_t number;
    int r;

    r = wire_peek_type(bytes, size, &number, err);
    if (r < 0)
        return r;
    row = type_find(number);
    if (row == NULL)
        return err_set(err, ERR_UNSUPPORTED, "frame type %u is not known here", number);
    r = wire_decode(decoder, row, bytes, size, &ret_frame->hello, err);
    if (r == 0)
        ret_frame->type = (enum frame_type)number;
    return r;
}

/* ---- the stream ---- */

void frame_reader_init(struct frame_reader *reader)
{
    *reader = (struct frame_reader){0};
    buf_init(&reader->bytes, FRAME_HEAD_SIZE + FRAME_SIZE_MAX + FRAME_READ_SIZE);
}

void frame_reader_done(struct frame_reader *reader)
{
    buf_done(&reader->bytes);
    reader->at = 0;
}

uint8_t *frame_reader_room(struct frame_reader *reader, size_t *ret_size)
{
    uint8_t *room;

    buf_consume(&reader->bytes, reader->at);
    reader->at = 0;
    room = buf_reserve(&reader->bytes, FRAME_READ_SIZE);
    assert(room != NULL);
    *ret_size = FRAME_READ_SIZE;
    return room;
}

void frame_reader_commit(struct frame_reader *reader, size_t size)
{
    assert(size <= FRAME_READ_SIZE);
    buf_commit(&reader->bytes, size);
}

int frame_reader_next(struct frame_reader *reader, struct wire_bytes *ret_body, struct err *err)
{
    size_t left = reader->bytes.size - reader->at, size = 0;
    const uint8_t *head;

    if (left < FRAME_HEAD_SIZE)
        return 0;
    head = reader->bytes.bytes + reader->at;
    for (int i = 0; i < FRAME_HEAD_SIZE; i++)
        size = size << 8 | head[i];
    if (size > FRAME_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "a frame claims %zu bytes, the limit is %u", size,
                       FRAME_SIZE_MAX);
    if (size == 0)
        return err_set(err, ERR_MALFORMED, "a frame is empty");
    if (left < FRAME_HEAD_SIZE + size)
        return 0;
    *ret_body = (struct wire_bytes){head + FRAME_HEAD_SIZE, size};
    reader->at += FRAME_HEAD_SIZE + size;
    return 1;
}
