/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: frames survive any cut of the stream, and any size of data; a peer that breaks the format
 * is told so and never makes us read or map what is not there. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "workers/frame_link.h"

#define BIG_SIZE (3u << 20)

static void text_is(struct wire_text text, const char *want)
{
    assert_true(wire_text_equal(text, want));
}

/* ---- codec and stream ---- */

static void test_every_cut(void **state)
{
    OWNED(buf_done) struct buf stream = BUF_WITH_LIMIT(1u << 20);
    OWNED(wire_decoder_free) struct wire_decoder *decoder = wire_decoder_new();
    const struct frame_cancel cancel = {.id = 7};
    const struct frame_evt evt = {.kind = FRAME_EVT_OUTPUT,
                                  .id = UINT64_MAX,
                                  .data = {(const uint8_t *)"{}", 2},
                                  .granted = 65};
    struct err err;

    (void)state;
    assert_int_equal(frame_encode(FRAME_CANCEL, &cancel, &stream, &err), 0);
    assert_int_equal(frame_encode(FRAME_EVT, &evt, &stream, &err), 0);
    for (size_t cut = 0; cut <= stream.size; cut++) {
        struct frame_reader reader;
        int count = 0;

        frame_reader_init(&reader);
        for (int part = 0; part < 2; part++) {
            size_t size = part == 0 ? cut : stream.size - cut, room;
            uint8_t *to = frame_reader_room(&reader, &room);
            struct wire_bytes body;

            memcpy(to, stream.bytes + (part == 0 ? 0 : cut), size);
            frame_reader_commit(&reader, size);
            while (frame_reader_next(&reader, &body, &err) == 1) {
                struct frame frame;

                assert_int_equal(frame_decode(decoder, body.bytes, body.size, &frame, &err), 0);
                assert_int_equal(frame.type, count == 0 ? FRAME_CANCEL : FRAME_EVT);
                if (count++ == 1) {
                    assert_int_equal(frame.evt.id, UINT64_MAX);
                    assert_int_equal(frame.evt.granted, 65);
                    assert_memory_equal(frame.evt.data.bytes, "{}", 2);
                }
            }
        }
        assert_int_equal(count, 2);
        frame_reader_done(&reader);
    }
}

static void test_bad_streams(void **state)
{
    static const struct {
        const char *what;
        uint8_t bytes[8];
        size_t size;
        int want;
    } rows[] = {
        {"half a head", {0, 0, 0}, 3, 0},
        {"half a body", {0, 0, 0, 4, 0x93}, 5, 0},
        {"an empty frame", {0, 0, 0, 0}, 4, ERR_MALFORMED},
        {"4 GiB", {0xff, 0xff, 0xff, 0xff}, 4, ERR_TOO_BIG},
        {"just too long", {0, 0x11, 0, 1}, 4, ERR_TOO_BIG},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct frame_reader reader;
        struct wire_bytes body;
        struct err err;
        size_t room;

        frame_reader_init(&reader);
        memcpy(frame_reader_room(&reader, &room), rows[i].bytes, rows[i].size);
        frame_reader_commit(&reader, rows[i].size);
        assert_int_equal(frame_reader_next(&reader, &body, &err), rows[i].want);
        frame_reader_done(&reader);
    }
}

static void test_limits_leave_nothing(void **state)
{
    OWNED(buf_done) struct buf stream = BUF_WITH_LIMIT(1u << 20);
    OWNED(mem_free) char *text = xcalloc(1, 5000);
    struct frame_evt evt = {.kind = FRAME_EVT_ERROR, .text = {text, 5000}};
    struct frame_req req = {.id = 0};
    struct err err;

    (void)state;
    memset(text, 'x', 5000);
    assert_int_equal(frame_encode(FRAME_EVT, &evt, &stream, &err), ERR_RANGE);
    assert_string_equal(err.text, "evt.text has 5000, the limit is 4096");
    assert_int_equal(frame_encode(FRAME_REQ, &req, &stream, &err), ERR_RANGE);
    assert_int_equal(stream.size, 0);
}

/* ---- links ---- */

static void pair_open(struct frame_link *links[2])
{
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    for (int i = 0; i < 2; i++)
        links[i] = frame_link_new(fds[i]);
}

/* Moves bytes until a frame is there. */
static int pair_next(struct frame_link *from, struct frame_link *to, struct frame *ret_frame,
                     struct err *err)
{
    bool more = true;
    int r = frame_link_next(to, ret_frame, err);

    for (int i = 0; r == 0 && i < 10000; i++) {
        if (frame_link_flush(from, &more, err) < 0)
            return -1;
        r = frame_link_receive(to, err);
        if (r >= 0)
            r = frame_link_next(to, ret_frame, err);
    }
    return r;
}

/* Small, large, small: order, content and descriptors survive, whatever the socket's buffer. */
static void test_large_data_beside(void **state)
{
    OWNED(mem_free) uint8_t *big = xmalloc(BIG_SIZE);
    struct frame_link *links[2];
    struct frame frame;
    struct err err;

    (void)state;
    pair_open(links);
    for (uint64_t id = 1; id <= 9; id++) {
        struct frame_req req = {.id = id, .input = {big, id % 3 == 0 ? BIG_SIZE : id * 1000}};

        memset(big, (int)id, BIG_SIZE);
        assert_int_equal(frame_link_send(links[0], FRAME_REQ, &req, &err), 0);
    }
    for (uint64_t id = 1; id <= 9; id++) {
        assert_int_equal(pair_next(links[0], links[1], &frame, &err), 1);
        assert_int_equal(frame.type, FRAME_REQ);
        assert_int_equal(frame.req.id, id);
        assert_int_equal(frame.req.input.size, id % 3 == 0 ? BIG_SIZE : id * 1000);
        memset(big, (int)id, BIG_SIZE);
        assert_memory_equal(frame.req.input.bytes, big, frame.req.input.size);
    }
    frame_link_free(&links[0]);
    assert_int_equal(frame_link_receive(links[1], &err), ERR_UNAVAILABLE);
    frame_link_free(&links[1]);
}

static void test_data_over_its_limit(void **state)
{
    struct frame_evt evt = {.kind = FRAME_EVT_OUTPUT,
                            .data = {(const uint8_t *)"", FRAME_FD_SIZE_MAX + 1}};
    struct frame_link *links[2];
    struct err err;

    (void)state;
    pair_open(links);
    assert_int_equal(frame_link_send(links[0], FRAME_EVT, &evt, &err), ERR_TOO_BIG);
    frame_link_free(&links[0]);
    frame_link_free(&links[1]);
}

/* A peer that names a descriptor and sends none, a short one, or one that it could shrink. */
static void test_hostile_descriptors(void **state)
{
    static const struct {
        const char *want;
        bool send, seal;
        size_t size;
    } rows[] = {
        {"a frame names a descriptor that did not come", false, false, 0},
        {"a descriptor is no memfd sealed against changes", true, false, 4096},
        {"a memfd is shorter than the 4096 bytes of its frame", true, true, 100},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(buf_done) struct buf bytes = BUF_WITH_LIMIT(4096);
        const struct frame_req req = {.id = 1, .input_fd_size = 4096};
        int fd = memfd_create("test", MFD_ALLOW_SEALING), fds[2];
        struct frame_link *link;
        struct frame frame;
        struct err err;
        char room[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
        struct iovec piece;
        struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
        struct cmsghdr *head = (void *)room;

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
        assert_int_equal(ftruncate(fd, (off_t)rows[i].size), 0);
        if (rows[i].seal)
            assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE), 0);
        assert_int_equal(frame_encode(FRAME_REQ, &req, &bytes, &err), 0);
        piece = (struct iovec){bytes.bytes, bytes.size};
        if (rows[i].send) {
            message.msg_control = room;
            message.msg_controllen = sizeof(room);
            head->cmsg_len = CMSG_LEN(sizeof(int));
            head->cmsg_level = SOL_SOCKET;
            head->cmsg_type = SCM_RIGHTS;
            memcpy(CMSG_DATA(head), &fd, sizeof(fd));
        }
        assert_int_equal(sendmsg(fds[0], &message, 0), bytes.size);
        link = frame_link_new(fds[1]);
        assert_int_equal(frame_link_receive(link, &err), 1);
        assert_int_equal(frame_link_next(link, &frame, &err), ERR_MALFORMED);
        assert_string_equal(err.text, rows[i].want);
        frame_link_free(&link);
        (void)close(fds[0]);
        (void)close(fd);
    }
}

/* A websocket's connection goes over as it is; one that nobody takes is closed. */
static void test_tunnels(void **state)
{
    struct frame_link *links[2];
    int ends[2][2], taken;
    struct frame frame;
    struct err err;
    char byte = 0;

    (void)state;
    pair_open(links);
    for (uint64_t id = 1; id <= 2; id++) {
        const struct frame_req req = {.id = id, .tunnel = true, .input = {(const uint8_t *)"x", 1}};

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends[id - 1]), 0);
        assert_int_equal(frame_link_send_tunnel(links[0], &req, ends[id - 1][1], &err), 0);
    }
    assert_int_equal(pair_next(links[0], links[1], &frame, &err), 1);
    assert_true(frame.req.id == 1 && frame.req.input.size == 1);
    taken = frame_link_take_tunnel(links[1]);
    assert_true(taken >= 0);
    assert_int_equal(frame_link_take_tunnel(links[1]), -1);
    assert_int_equal(pair_next(links[0], links[1], &frame, &err), 1);
    assert_int_equal(send(taken, "!", 1, 0), 1);
    assert_int_equal(recv(ends[0][0], &byte, 1, 0), 1);
    frame_link_free(&links[1]);
    assert_int_equal(recv(ends[1][0], &byte, 1, 0), 0); /* closed at both places */
    frame_link_free(&links[0]);
    (void)close(taken);
    (void)close(ends[0][0]);
    (void)close(ends[1][0]);
}

static void test_hello(void **state)
{
    const struct frame_hello hello = {
        .protocol = FRAME_PROTOCOL, .host = WIRE_TEXT_OF("host-c"), .pid = 42};
    struct frame_link *links[2];
    struct frame frame;
    struct err err;

    (void)state;
    pair_open(links);
    assert_int_equal(frame_link_send(links[1], FRAME_HELLO, &hello, &err), 0);
    assert_int_equal(pair_next(links[1], links[0], &frame, &err), 1);
    assert_string_equal(frame_type_name(frame.type), "hello");
    text_is(frame.hello.host, "host-c");
    assert_int_equal(frame.hello.pid, 42);
    frame_link_free(&links[0]);
    frame_link_free(&links[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_cut),
        cmocka_unit_test(test_bad_streams),
        cmocka_unit_test(test_limits_leave_nothing),
        cmocka_unit_test(test_large_data_beside),
        cmocka_unit_test(test_data_over_its_limit),
        cmocka_unit_test(test_hostile_descriptors),
        cmocka_unit_test(test_tunnels),
        cmocka_unit_test(test_hello),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
