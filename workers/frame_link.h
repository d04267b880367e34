/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One end of the socket between a worker and its engine host: frames out, frames in, and the
 * descriptors of large inputs and outputs beside them.
 *
 *     frame_link_send(link, FRAME_REQ, &req, &err)     gathers; nothing leaves yet
 *     frame_link_flush(link, &err)                     writes what the socket takes
 *     frame_link_receive(link, &err)                   reads what is there
 *     while (frame_link_next(link, &frame, &err) == 1) the frames of it
 *
 * Never blocks. A memfd travels with the first byte of its frame, so descriptors arrive in the
 * order of the frames that name them. Bounded: FRAME_LINK_UNSENT_MAX bytes wait unsent; credits
 * keep both sides far below it, so passing it is the peer's fault and ends the link.
 *
 * Failures: any negative code means that the link is over, except ERR_RANGE of frame_link_send.
 * Thread: its owner's.   Tests: tests/unit/test_frame.c
 */

#include "workers/frame.h"

struct frame_link;

#define FRAME_LINK_UNSENT_MAX (256u << 20)
#define FRAME_LINK_FDS_MAX 1024 /* received and not yet asked for, or unsent */

/* Takes the descriptor, a stream socket, and makes it non-blocking. */
struct frame_link *frame_link_new(int fd);
void frame_link_free(struct frame_link **link_p);
int frame_link_fd(const struct frame_link *link);

/* Gathers one frame. The bytes of a REQ's input and of an EVT's data go inside it up to
 * FRAME_INLINE_MAX, else into a sealed memfd. ERR_RANGE: a field is over its limit, nothing was
 * gathered. ERR_TOO_BIG: over FRAME_FD_SIZE_MAX, likewise. */
int frame_link_send(struct frame_link *link, enum frame_type type, const void *fields,
                    struct err *err) MUST_CHECK;

/* A REQ whose input is in a memfd already: its input_fd_size names the bytes. Seals the descriptor,
 * which must allow it, and takes it, also when it fails. */
int frame_link_send_fd(struct frame_link *link, const struct frame_req *req, int fd,
                       struct err *err) MUST_CHECK;

/* A REQ of a websocket, with tunnel set: the socket goes beside it, as it is, and is taken. */
int frame_link_send_tunnel(struct frame_link *link, const struct frame_req *req, int fd,
                           struct err *err) MUST_CHECK;

/* An EVT whose data is in a memfd, likewise: its data_fd_size names the bytes. */
int frame_link_send_evt_fd(struct frame_link *link, const struct frame_evt *evt, int fd,
                           struct err *err) MUST_CHECK;

/* Writes as much as the socket takes; true in *ret_more when something is left. */
int frame_link_flush(struct frame_link *link, bool *ret_more, struct err *err) MUST_CHECK;

/* Reads once. 1: there may be frames. 0: nothing was there. ERR_UNAVAILABLE: the peer is gone and
 * everything it sent was read. */
int frame_link_receive(struct frame_link *link, struct err *err) MUST_CHECK;

/* 1: a frame, valid until the next call of this or of frame_link_receive(); bytes that came in a
 * memfd stand in `input` or `data` as if they had come inside. 0: none is whole. */
int frame_link_next(struct frame_link *link, struct frame *ret_frame, struct err *err) MUST_CHECK;

/* The descriptor behind bytes of the frame that was given out last; -1 when they came inside it.
 * Borrowed: closed where the frame ends to be valid. */
int frame_link_fd_of(const struct frame_link *link, const void *bytes);

/* The socket beside a REQ with tunnel that was given out last: the caller's from now on. -1: there
 * is none (any more). One that nobody takes is closed where the frame ends to be valid. */
int frame_link_take_tunnel(struct frame_link *link);
