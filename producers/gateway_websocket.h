/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Websockets: a client that waits for a model's host, and then what is passed on between them.
 *
 *     websocket_begin() ─▶ gateway_submit.c: a job whose input is an offer ─▶ Kafka's report
 *       ─▶ websocket_wait() ─▶ a host dials our tunnel address and says the offer's token
 *       ─▶ the model has accepted: 101 to the client ─▶ bytes both ways ─▶ closed, and the job
 * final
 *
 * Thread: the gateway's loop.   Tests: tests/stack/test_websocket.py
 */

#include <stdint.h>

#include "producers/gateway_sync.h"

struct buf;
struct call;
struct gateway;
struct websocket;

/* Whether a request asks for one. */
bool websocket_is_asked(const struct call *call);

/* One more, for this call; ERR_FULL at websockets-max. */
int websocket_new(const struct call *call, struct websocket **ret_websocket,
                  struct err *err) MUST_CHECK;
void websocket_free(struct websocket **websocket_p); /* before websocket_wait() took it */

/* The job's input, which is WEBSOCKET_TYPE. */
void websocket_write_input(const struct websocket *websocket, struct buf *to);

/* Kafka has the job. Takes both. */
void websocket_wait(struct call **call_p, struct websocket **websocket_p, uint64_t timeout_ms,
                    const struct sync_job *job);

/* For gateway_tunnel.c: a host said that token. Takes the descriptor, also when nobody waits. */
void websocket_take_tunnel(struct gateway *gateway, const char *token, int fd);
