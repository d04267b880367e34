/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: whatever a client, a model or a host says is read within its bounds; what passes can stand
 * in a header; a track says the same however its bytes are cut. */

#include <string.h>

#include "base/assert.h"
#include "base/mem.h"
#include "schema/websocket.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void track_check(const uint8_t *bytes, size_t size)
{
    struct websocket_track whole = {.message_size_max = 1000}, cut = whole;
    struct err err;
    int r = websocket_track_bytes(&whole, bytes, size, &err), s = 0;

    for (size_t i = 0; s == 0 && i < size; i++)
        s = websocket_track_bytes(&cut, bytes + i, 1, &err);
    assert(r == s);
    if (r == 0)
        assert(whole.close_code == cut.close_code && whole.message_count == cut.message_count &&
               websocket_track_is_between(&whole) == websocket_track_is_between(&cut));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    OWNED(mem_free) char *text = xmalloc(size + 1);
    struct wire_bytes all = {bytes, size};
    struct websocket_response response;
    struct websocket_answer answer;
    struct websocket_offer offer;
    struct websocket_ask ask;
    const char *why;
    struct err err;

    if (size > 0)
        memcpy(text, bytes, size);
    text[size] = '\0';
    ask = (struct websocket_ask){text, text, text, text};
    (void)websocket_ask_check(&ask, &why);
    (void)websocket_list_has(text, "upgrade");
    if (websocket_offer_read(all, &offer, &err) == 0)
        assert(strpbrk(offer.protocols, "\r\n") == NULL);
    if (websocket_answer_read(all, &answer, &err) == 0)
        assert(strpbrk(answer.protocol, "\r\n") == NULL &&
               strpbrk(answer.extensions, "\r\n") == NULL);
    if (websocket_response_read(all, &response, &err) == 1) {
        assert(response.head_size <= size);
        assert(websocket_response_check(&response, "dGhlIHNhbXBsZSBub25jZQ==", &err) < 0 ||
               response.status == 101);
    }
    track_check(bytes, size);
    return 0;
}
