/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: whatever bytes arrive from a topic, decoding them is an error or a message that encodes
 * again and decodes to the same bytes. */

#include <string.h>

#include "base/assert.h"
#include "schema/message.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    OWNED(wire_decoder_free) struct wire_decoder *decoder = wire_decoder_new();
    OWNED(buf_done) struct buf once = BUF_WITH_LIMIT(16u << 20);
    OWNED(buf_done) struct buf twice = BUF_WITH_LIMIT(16u << 20);
    struct message message;
    struct err err;

    if (message_decode(decoder, bytes, size, &message, &err) < 0)
        return 0;
    assert(message_encode(message.type, &message.submit, &once, &err) == 0);
    assert(message_decode(decoder, once.bytes, once.size, &message, &err) == 0);
    assert(message_encode(message.type, &message.submit, &twice, &err) == 0);
    assert(once.size == twice.size && memcmp(once.bytes, twice.bytes, once.size) == 0);
    return 0;
}
