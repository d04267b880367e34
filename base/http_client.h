/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * HTTP client (libcurl's multi interface inside the loop), for peers that we trust and for URLs
 * that users gave us. Use one client for each kind: connections are pooled per client, and a pooled
 * connection is checked only when it is opened.
 *
 * Never follows redirects, never asks a proxy, speaks http and https only. With an address check
 * (options.check_address) each connection is shown to it before a packet leaves, after the name was
 * resolved, so that no spelling of a URL and no DNS answer gets past it.
 *
 * Happy path: http_client_send() -> on_done(result) from the loop, once.
 * Failures: all through on_done, with result.outcome; http_client_send itself refuses only what is
 * no URL. An HTTP status of any kind is HTTP_OUTCOME_ANSWERED.
 * Shutdown: http_client_close() cancels what is open; on_done is called with CANCELED.
 *
 * Thread: the loop's; http_client_call() blocks and needs no loop.
 * Tests: tests/unit/test_http_client.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/http_server.h" /* struct http_header */

struct loop;
struct http_client;
struct http_transfer;

/* Returns false to refuse a connection to this address; may run on the loop's thread only. */
typedef bool http_address_check(const struct sockaddr *address, socklen_t address_size,
                                void *opaque);

struct http_client_options {                /* 0 or NULL: the value in brackets */
    uint32_t connection_count_max;          /* [256]; further requests wait */
    uint32_t connection_count_max_per_host; /* [16] */
    http_address_check *check_address;      /* [everything is allowed] */
    void *check_opaque;
    const char *ca_path;    /* PEM bundle to trust [the system's] */
    const char *user_agent; /* ["headrace/<version>"] */
};

int http_client_open(struct loop *loop, const struct http_client_options *options,
                     struct http_client **ret_client, struct err *err) MUST_CHECK;
void http_client_close(struct http_client **client_p);
uint32_t http_client_open_count(const struct http_client *client); /* sent and not yet done */

enum http_outcome {
    HTTP_OUTCOME_ANSWERED,    /* status and body are set */
    HTTP_OUTCOME_BLOCKED,     /* the address check refused every address */
    HTTP_OUTCOME_NAME,        /* the host name does not resolve */
    HTTP_OUTCOME_UNREACHABLE, /* no connection */
    HTTP_OUTCOME_TLS,         /* certificate or handshake */
    HTTP_OUTCOME_TIMEOUT,
    HTTP_OUTCOME_BROKEN,       /* the connection broke, or what came was no HTTP */
    HTTP_OUTCOME_BODY_TOO_BIG, /* the answer passed its limit; status is set */
    HTTP_OUTCOME_CANCELED,
};
const char *http_outcome_name(enum http_outcome outcome); /* "timeout"; static storage */

struct http_result {
    enum http_outcome outcome;
    int status;        /* 0 unless an answer began */
    struct buf *body;  /* the callback may buf_move() it out; empty otherwise */
    const char *error; /* what went wrong, for people; "" when answered */
    uint64_t took_us, connect_us;
    char address[64];               /* of the peer, numeric; "" without a connection */
    struct http_transfer *transfer; /* for http_transfer_header() */
};

/* A header of the answer, during on_done; NULL when absent. */
const char *http_transfer_header(const struct http_transfer *transfer, const char *name);

/* Where `reference` (a Location) leads to, seen from `url`; the caller frees. ERR_MALFORMED: to no
 * URL of http or https. Thread: any. */
int http_url_resolve(const char *url, const char *reference, char **ret_url,
                     struct err *err) MUST_CHECK;

/* Seconds since 1970 of an HTTP date in any of its three forms; -1: it is none. Thread: any. */
int64_t http_date_parse(const char *text);

typedef void http_result_call(const struct http_result *result, void *opaque);

/* Status of the answer so far, also from on_receive; 0 before it began. */
int http_transfer_status(const struct http_transfer *transfer);

/* The answer as it comes instead of collected; returning false ends the transfer (CANCELED). */
typedef bool http_receive_call(const void *bytes, size_t size, void *opaque);

struct http_send {
    const char *method; /* NULL: GET, or POST with a body; HEAD goes without one */
    const char *url;
    const struct http_header *headers; /* "Expect" is sent only with `sign` */
    size_t header_count;
    const void *body; /* borrowed until on_done */
    size_t body_size;
    int body_fd;          /* with body NULL and body_size > 0: read from this file; borrowed */
    uint64_t body_offset; /* where in that file the body begins */
    const char *sign;     /* AWS signature, version 4: "aws:amz:<region>:s3"; NULL: none. The caller
                           * adds x-amz-content-sha256 and keeps the query sorted and escaped */
    const char *sign_user, *sign_secret;
    void (*on_progress)(uint64_t sent_size, void *opaque); /* of the body; NULL: none */
    uint32_t timeout_ms;           /* the whole exchange [30 s]; UINT32_MAX: none */
    uint32_t connect_timeout_ms;   /* [5 s] */
    uint32_t stall_timeout_ms;     /* nothing moved for so long, in whole seconds: TIMEOUT [none] */
    size_t answer_size_max;        /* [64 KiB] */
    http_receive_call *on_receive; /* NULL: collect */
    http_result_call *on_done;
    void *opaque; /* for all calls above */
};

/* Headers and URL are copied. *ret_transfer (may be NULL) can be canceled until on_done. */
int http_client_send(struct http_client *client, const struct http_send *send,
                     struct http_transfer **ret_transfer, struct err *err) MUST_CHECK;

/* Stops and resumes reading the answer; the peer is held up meanwhile. To stop may be asked for
 * from on_receive too, to resume may not. Resuming may call on_receive and on_done before it
 * returns. A stopped transfer still ends by its timeout. */
void http_transfer_pause(struct http_transfer *transfer);
void http_transfer_resume(struct http_transfer *transfer);

/* Ends it now; on_done is called before this returns. */
void http_transfer_cancel(struct http_transfer *transfer);

/* The same exchange for command lines: blocks until on_done was called. */
int http_client_call(const struct http_client_options *options, const struct http_send *send,
                     struct err *err) MUST_CHECK;
