/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: handshakes are taken or refused as RFC 6455 says, what programs tell one another comes back
 * as it was or is refused, and a track knows where frames end however the bytes are cut. Method:
 * tables, the RFC's own examples, and every cut of a stream. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/mem.h"
#include "schema/websocket.h"

#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
#define BYTES(text) ((struct wire_bytes){(const uint8_t *)(text), sizeof(text) - 1})

static void test_handshake(void **state)
{
    static const struct {
        struct websocket_ask ask;
        int status;
    } rows[] = {
        {{"websocket", "Upgrade", "13", KEY}, 0},
        {{"WebSocket", "keep-alive, upgrade", "13", KEY}, 0},
        {{"h2c ,\twebsocket ", "Upgrade", "13", KEY}, 0},
        {{NULL, NULL, NULL, NULL}, 426},
        {{"websockets", "Upgrade", "13", KEY}, 426},
        {{"websocket", NULL, "13", KEY}, 400},
        {{"websocket", "close", "13", KEY}, 400},
        {{"websocket", "Upgrade", "8", KEY}, 426},
        {{"websocket", "Upgrade", NULL, KEY}, 426},
        {{"websocket", "Upgrade", "13", NULL}, 400},
        {{"websocket", "Upgrade", "13", ""}, 400},
        {{"websocket", "Upgrade", "13", "dGhlIHNhbXBsZSBub25jZQ="}, 400},
        {{"websocket", "Upgrade", "13", "dGhlIHNhbXBsZSBub25\r\nQ=="}, 400},
    };
    const char *text = "";

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        int status = websocket_ask_check(&rows[i].ask, &text);

        if (status != rows[i].status)
            fail_msg("row %zu: %d, %s", i, status, text);
    }
}

static void test_accept(void **state)
{
    char accept[WEBSOCKET_ACCEPT_SIZE];

    (void)state;
    websocket_accept(KEY, accept);
    assert_string_equal(accept, ACCEPT);
}

static void test_offer(void **state)
{
    const struct websocket_offer offer = {.gateway = "127.0.0.1:8090",
                                          .token = "0123456789abcdef0123456789abcdef",
                                          .key = KEY,
                                          .protocols = "chat, \"x\"",
                                          .extensions = "permessage-deflate"};
    struct buf text = BUF_WITH_LIMIT(8192);
    struct websocket_offer read = {0};
    struct err err;

    (void)state;
    websocket_offer_write(&offer, &text);
    assert_int_equal(websocket_offer_read((struct wire_bytes){text.bytes, text.size}, &read, &err),
                     0);
    assert_memory_equal(&read, &offer, sizeof(offer));
    buf_done(&text);
    assert_int_equal(websocket_offer_read(BYTES("[1]"), &read, &err), ERR_MALFORMED);
    assert_int_equal(websocket_offer_read(BYTES("{\"gateway\":1}"), &read, &err), ERR_MALFORMED);
    assert_int_equal(websocket_offer_read(BYTES("{\"gateway\":\"a\",\"token\":\"0\",\"key\":\"" KEY
                                                "\",\"protocols\":\"\",\"extensions\":\"\"}"),
                                          &read, &err),
                     ERR_RANGE);
}

static void test_answer(void **state)
{
    const struct websocket_answer answer = {.protocol = "chat", .extensions = ""};
    struct buf text = BUF_WITH_LIMIT(8192);
    struct websocket_answer read = {0};
    struct err err;

    (void)state;
    websocket_answer_write(&answer, &text);
    assert_int_equal(text.bytes[text.size - 1], '\n');
    assert_int_equal(
        websocket_answer_read((struct wire_bytes){text.bytes, text.size - 1}, &read, &err), 0);
    assert_string_equal(read.protocol, "chat");
    assert_string_equal(read.extensions, "");
    buf_done(&text);
    assert_int_equal(websocket_answer_read(
                         BYTES("{\"protocol\":\"a\\r\\nX: y\",\"extensions\":\"\"}"), &read, &err),
                     ERR_RANGE);
    assert_int_equal(websocket_answer_read(BYTES("HTTP/1.1 101"), &read, &err), ERR_MALFORMED);
    assert_int_equal(websocket_answer_read(BYTES("{}"), &read, &err), ERR_MALFORMED);
}

#define HEAD "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: Upgrade\r\n"

static void test_response(void **state)
{
    static const struct {
        struct wire_bytes bytes;
        int code, status;
        bool good;
    } rows[] = {
        {BYTES(HEAD "Sec-WebSocket-Accept: " ACCEPT "\r\n\r\nrest"), 1, 101, true},
        {BYTES(HEAD "Sec-WebSocket-Accept: " ACCEPT " \r\n\r\n"), 1, 101, true},
        {BYTES(HEAD "Sec-WebSocket-Accept: x\r\n\r\n"), 1, 101, false},
        {BYTES(HEAD "\r\n"), 1, 101, false},
        {BYTES("HTTP/1.1 101\r\nUpgrade: h2c\r\nSec-WebSocket-Accept: " ACCEPT "\r\n\r\n"), 1, 101,
         false},
        {BYTES("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno"), 1, 403, false},
        {BYTES("HTTP/1.0 200\r\n\r\n"), 1, 200, false},
        {BYTES("HTTP/1.1 101 Switch"), 0, 0, false},
        {BYTES(""), 0, 0, false},
        {BYTES("SSH-2.0\r\n\r\n"), ERR_MALFORMED, 0, false},
        {BYTES("HTTP/1.1 abc\r\n\r\n"), ERR_MALFORMED, 0, false},
        {BYTES("HTTP/1.1 200 OK\r\nno colon\r\n\r\n"), ERR_MALFORMED, 0, false},
        {BYTES("HTTP/1.1 200 OK\r\n: x\r\n\r\n"), ERR_MALFORMED, 0, false},
    };
    struct websocket_response response;
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        int r = websocket_response_read(rows[i].bytes, &response, &err);

        if (r != rows[i].code || (r == 1 && response.status != rows[i].status))
            fail_msg("row %zu: %d", i, r);
        if (r == 1)
            assert_int_equal(websocket_response_check(&response, KEY, &err) == 0, rows[i].good);
    }
    assert_int_equal(websocket_response_read(rows[0].bytes, &response, &err), 1);
    assert_string_equal((const char *)rows[0].bytes.bytes + response.head_size, "rest");
    assert_int_equal(websocket_response_read(rows[5].bytes, &response, &err), 1);
    assert_true(response.has_length && response.length == 2);
    assert_int_equal(
        websocket_response_read(
            BYTES(HEAD "Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b\r\n\r\n"), &response,
            &err),
        1);
    assert_string_equal(response.answer.protocol, "a, b");
}

/* "Hello" in two fragments with a ping between them, a long one, and a masked close of 1001. */
static size_t stream_write(uint8_t *to)
{
    static const uint8_t begin[] = {0x01, 3, 'H', 'e', 'l', 0x89, 0, 0x80, 2, 'l', 'o'};
    static const uint8_t end[] = {0x88, 0x82, 1, 2, 3, 4, 0x03 ^ 1, 0xe9 ^ 2};
    size_t size = sizeof(begin);

    memcpy(to, begin, size);
    to[size++] = 0x82;
    to[size++] = 126;
    to[size++] = 0x01;
    to[size++] = 0x00;
    memset(to + size, 0x88, 256);
    size += 256;
    memcpy(to + size, end, sizeof(end));
    return size + sizeof(end);
}

static void test_track_at_every_cut(void **state)
{
    uint8_t bytes[512];
    size_t size = stream_write(bytes), count = 0;
    struct err err;

    (void)state;
    for (size_t cut = 0; cut <= size; cut++) {
        struct websocket_track track = {.message_size_max = 256};

        assert_int_equal(websocket_track_bytes(&track, bytes, cut, &err), 0);
        count += websocket_track_is_between(&track);
        assert_int_equal(websocket_track_bytes(&track, bytes + cut, size - cut, &err), 0);
        assert_int_equal(track.close_code, 1001);
        assert_int_equal(track.message_count, 2);
        assert_true(websocket_track_is_between(&track));
    }
    assert_int_equal(count, 6); /* before each of the five frames, and at the end */
}

static void test_track_limits(void **state)
{
    static const uint8_t huge[] = {0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    static const uint8_t parts[] = {0x01, 2, 'a', 'b', 0x00, 2, 'c', 'd'};
    static const uint8_t bare[] = {0x88, 0};
    struct websocket_track track = {.message_size_max = 100};
    struct err err;

    (void)state;
    assert_int_equal(websocket_track_bytes(&track, huge, sizeof(huge), &err), ERR_TOO_BIG);
    track = (struct websocket_track){.message_size_max = 3};
    assert_int_equal(websocket_track_bytes(&track, parts, sizeof(parts), &err), ERR_TOO_BIG);
    track = (struct websocket_track){.message_size_max = 4};
    assert_int_equal(websocket_track_bytes(&track, parts, sizeof(parts), &err), 0);
    track = (struct websocket_track){.message_size_max = 4};
    assert_int_equal(websocket_track_bytes(&track, bare, sizeof(bare), &err), 0);
    assert_int_equal(track.close_code, WEBSOCKET_CLOSE_NONE);
    assert_int_equal(websocket_track_bytes(&track, huge, sizeof(huge), &err), 0); /* after it */
}

static void test_close(void **state)
{
    struct websocket_track track = {.message_size_max = 4};
    uint8_t frame[WEBSOCKET_CLOSE_SIZE_MAX];
    char reason[300];
    struct err err;
    size_t size;

    (void)state;
    memset(reason, 'x', sizeof(reason) - 1);
    reason[sizeof(reason) - 1] = '\0';
    size = websocket_close_write(1011, reason, frame);
    assert_int_equal(size, WEBSOCKET_CLOSE_SIZE_MAX);
    assert_int_equal(websocket_track_bytes(&track, frame, size, &err), 0);
    assert_int_equal(track.close_code, 1011);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_handshake),    cmocka_unit_test(test_accept),
        cmocka_unit_test(test_offer),        cmocka_unit_test(test_answer),
        cmocka_unit_test(test_response),     cmocka_unit_test(test_track_at_every_cut),
        cmocka_unit_test(test_track_limits), cmocka_unit_test(test_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
