/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Websockets as far as they are ours to read: the handshake (RFC 6455, 4), what a gateway and a
 * model's host tell one another before the first byte is passed on, and the borders of frames.
 *
 *     client ──GET, Upgrade──▶ gateway    the job's input is an offer: who the client is to be
 *                              gateway ◀── token, a line ── the host, on a connection of its own
 *                              gateway ── go, a byte ─────▶ …
 *                              gateway ◀── answer, a line ── … once the model has accepted
 *     client ◀──101────────── gateway    from here on bytes are passed on as they are
 *
 * Frames are never taken apart or made anew: a track only follows where they end, so that a close
 * frame can be put between two of them, and what they say of the end is known.
 *
 * Pure.   Thread: any.   Tests: tests/unit/test_websocket.c, tests/fuzz/fuzz_websocket.c
 */

#include <stdbool.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/wire.h"

#define WEBSOCKET_METHOD "WEBSOCKET" /* of a job's route; no HTTP method is called so */
#define WEBSOCKET_PATH "/v1/websocket"
#define WEBSOCKET_TYPE "application/vnd.headrace.websocket+json" /* of its input */
#define WEBSOCKET_KEY_SIZE 24
#define WEBSOCKET_ACCEPT_SIZE 29 /* with its end */
#define WEBSOCKET_TOKEN_SIZE 33  /* of 32 hexadecimal digits, with its end */
#define WEBSOCKET_GO '\n'
#define WEBSOCKET_ADDRESS_SIZE 64 /* "10.0.0.1:8090", "[::1]:8090" */
#define WEBSOCKET_LIST_SIZE 1025  /* of protocols or extensions, with its end */
#define WEBSOCKET_LINE_SIZE_MAX 4096
#define WEBSOCKET_HEAD_SIZE_MAX 16384 /* of a server's answer */

/* "WEBSOCKET /path" */
bool websocket_is_route(struct wire_text route);

/* ---- the handshake ---- */

struct websocket_ask { /* values of headers, or NULL */
    const char *upgrade, *connection, *version, *key;
};

/* Whether a header's value, a list with commas, has that word in it, in any case. */
bool websocket_list_has(const char *list, const char *word);

/* 0, or the status to refuse with: 426 when no websocket is asked for, or of another version; 400
 * else. *ret_text says why; static storage. */
int websocket_ask_check(const struct websocket_ask *ask, const char **ret_text);

/* Sec-WebSocket-Accept for a key. */
void websocket_accept(const char *key, char to[WEBSOCKET_ACCEPT_SIZE]);

/* ---- what is told between programs ---- */

struct websocket_offer {
    char gateway[WEBSOCKET_ADDRESS_SIZE]; /* where the host dials to */
    char token[WEBSOCKET_TOKEN_SIZE];     /* once; whoever says it is the model */
    char key[WEBSOCKET_KEY_SIZE + 1];
    char protocols[WEBSOCKET_LIST_SIZE], extensions[WEBSOCKET_LIST_SIZE]; /* "": none */
};
void websocket_offer_write(const struct websocket_offer *offer, struct buf *to);
/* ERR_MALFORMED, ERR_RANGE: it is none. */
int websocket_offer_read(struct wire_bytes bytes, struct websocket_offer *ret_offer,
                         struct err *err) MUST_CHECK;

struct websocket_answer { /* what the model has chosen; "": none */
    char protocol[WEBSOCKET_LIST_SIZE], extensions[WEBSOCKET_LIST_SIZE];
};
/* With the line feed. */
void websocket_answer_write(const struct websocket_answer *answer, struct buf *to);
/* Without it. ERR_MALFORMED, ERR_RANGE: nobody may be answered so. */
int websocket_answer_read(struct wire_bytes line, struct websocket_answer *ret_answer,
                          struct err *err) MUST_CHECK;

/* ---- a server's own answer to a handshake ---- */

struct websocket_response {
    int status;
    size_t head_size; /* the body, or the first frame, begins there */
    bool has_length;
    uint64_t length;
    char upgrade[16], accept[64], type[256];
    struct websocket_answer answer;
};
/* 1: the head is whole. 0: more bytes are needed. ERR_MALFORMED, ERR_TOO_BIG: it is no answer. */
int websocket_response_read(struct wire_bytes bytes, struct websocket_response *ret_response,
                            struct err *err) MUST_CHECK;
/* 101 for that key; else ERR_MISMATCH. */
int websocket_response_check(const struct websocket_response *response, const char *key,
                             struct err *err) MUST_CHECK;

/* ---- frames, one direction of a connection ---- */

struct websocket_track { /* all 0 at first, but message_size_max */
    uint64_t message_size_max;
    uint64_t message_count;
    uint16_t close_code; /* of the close frame; 1005 when it says none; 0: there was none */
    /* Inside: where it stands. */
    uint8_t head[14];
    size_t head_size;
    uint64_t left, message_size;
    uint8_t close[2];
    size_t close_size;
};
/* ERR_TOO_BIG: a message is over its limit. What follows a close frame is not looked at. */
int websocket_track_bytes(struct websocket_track *track, const void *bytes, size_t size,
                          struct err *err) MUST_CHECK;
/* No frame has begun that is not whole: another one may be put here. */
bool websocket_track_is_between(const struct websocket_track *track);

#define WEBSOCKET_CLOSE_SIZE_MAX 127
#define WEBSOCKET_CLOSE_NORMAL 1000
#define WEBSOCKET_CLOSE_LEAVES 1001 /* who serves it goes away, or has been told to end it */
#define WEBSOCKET_CLOSE_NONE 1005   /* the frame says none; never sent */
#define WEBSOCKET_CLOSE_BROKEN 1006 /* there was no frame; never sent */
#define WEBSOCKET_CLOSE_TOO_BIG 1009
#define WEBSOCKET_CLOSE_FAILED 1011

/* A server's close frame; a long reason is cut. Returns its size. */
size_t websocket_close_write(uint16_t code, const char *reason,
                             uint8_t to[WEBSOCKET_CLOSE_SIZE_MAX]);
