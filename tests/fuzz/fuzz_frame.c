/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Engine frames from a hostile host: the input is what a socket would deliver. The first byte says
 * how long the pieces are that it arrives in, so that every cut is tried.
 */

#include <stdlib.h>
#include <string.h>

#include "workers/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    OWNED(wire_decoder_free) struct wire_decoder *decoder = wire_decoder_new();
    OWNED(frame_reader_done) struct frame_reader reader;
    size_t piece = size == 0 ? 1 : (size_t)bytes[0] + 1;
    struct err err;
    int r = 0;

    frame_reader_init(&reader);
    for (size_t at = 1; r == 0 && at < size; at += piece) {
        struct wire_bytes body;
        struct frame frame;
        size_t room, n = size - at < piece ? size - at : piece;

        memcpy(frame_reader_room(&reader, &room), bytes + at, n);
        frame_reader_commit(&reader, n);
        while ((r = frame_reader_next(&reader, &body, &err)) == 1) {
            uint64_t sum = 0;

            if (frame_decode(decoder, body.bytes, body.size, &frame, &err) < 0)
                continue;
            /* What a frame lends must be readable to its last byte. */
            if (frame.type == FRAME_EVT) {
                for (size_t i = 0; i < frame.evt.data.size; i++)
                    sum += frame.evt.data.bytes[i];
                for (size_t i = 0; i < frame.evt.text.size; i++)
                    sum += (uint8_t)frame.evt.text.text[i];
            }
            if (sum == UINT64_MAX)
                abort();
        }
    }
    return 0;
}
