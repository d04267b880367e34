/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Who may be sent to now: pure, time and jitter are arguments, no I/O.
 *
 * An endpoint is a tenant's URL without its query; endpoints of one host share an origin. Each has
 * a valve, and a delivery passes through both: one endpoint that hangs leaves its host's others
 * alone, one host that hangs (with a new path for every job) leaves the other hosts alone.
 *
 *   CLOSED ──failures_max in a row──▶ OPEN ──its time is over──▶ HALF_OPEN ──success──▶ CLOSED
 *                                      ▲                             │
 *                                      └───────failure, twice as long┘
 *
 * An origin fails when nothing answers; an endpoint fails also by 408, 425, 429 and 5xx. Any other
 * answer proves that somebody is there. A receiver that names a time (Retry-After) opens its
 * endpoint's valve for that long.
 *
 * A valve lets endpoint_max (origin_max) deliveries through at once, fewer as the sender's total
 * runs out: what is slow then keeps one or two places, what is quick finds one free. What finds
 * none waits in a line of its endpoint, in memory, and behind line_max (fewer as memory runs out)
 * it is sent away until its turn should come: LATER.
 *
 *   ask → GO:    it is counted in; exactly one end must follow
 *         LINE:  the caller keeps it in endpoint->line; webhook_gate_next() hands it out
 *         LATER: the caller puts it back into the ledger for *ret_delay_ms
 *
 * Endpoints that nothing is known to be wrong with are forgotten, the longest unused first.
 *
 * Thread: the loop's.   Tests: tests/unit/test_webhook_gate.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <uthash.h>

#define WEBHOOK_OPEN_MS_FIRST 15000u
#define WEBHOOK_OPEN_MS_MAX 300000u
#define WEBHOOK_BUSY_MS_MAX 60000u

enum webhook_circuit {
    WEBHOOK_CIRCUIT_CLOSED = 1, /* as in the ledger */
    WEBHOOK_CIRCUIT_OPEN,
    WEBHOOK_CIRCUIT_HALF_OPEN,
};

struct webhook_delivery;
struct webhook_gate;

struct webhook_gate_options {
    uint32_t total_max;    /* under way at once */
    uint32_t endpoint_max; /* of them to one endpoint */
    uint32_t origin_max;   /* to one host, for one tenant */
    uint32_t waiting_max;  /* in lines, together */
    uint32_t line_max;     /* in one line */
    uint32_t failures_max; /* in a row that open a circuit; 0: none ever opens */
    uint32_t known_max;    /* endpoints remembered; more than can be under way and waiting */
    double time_scale;     /* 1.0; tests shorten the times of circuits */
};

struct webhook_valve {
    uint32_t in_flight;
    uint32_t failure_count; /* in a row */
    enum webhook_circuit circuit;
    uint64_t open_ms;  /* how long it opened last; 0: it is well */
    uint64_t until_ms; /* OPEN: then one may try */
    bool held;         /* the receiver named that time: no success of another one ends it sooner */
    bool probing;      /* HALF_OPEN: one is trying */
};

struct webhook_origin;

struct webhook_endpoint {
    char *key;       /* tenant, newline, URL */
    const char *url; /* in the key */
    char *tenant;
    struct webhook_origin *origin;
    struct webhook_valve valve;
    TAILQ_HEAD(, webhook_delivery) line;
    uint32_t waiting;  /* in the line */
    double latency_ms; /* of answers, smoothed */
    double slot_ms;    /* when the last one that was sent away should come back */
    uint64_t used_ms;
    /* The caller's: what it knows and wrote down of this endpoint; a dirty one is not forgotten. */
    uint64_t seen_count, written_ms, success_us, failure_us;
    enum webhook_circuit written_circuit;
    int last_status;
    char last_error[128];
    bool dirty;
    TAILQ_ENTRY(webhook_endpoint) dirty_next;
    /* The gate's. */
    enum { WEBHOOK_NOWHERE, WEBHOOK_IN_RING, WEBHOOK_IN_ORIGIN } place;
    TAILQ_ENTRY(webhook_endpoint) place_next, used_next;
    UT_hash_handle hh;
};

enum webhook_verdict { WEBHOOK_GO, WEBHOOK_LINE, WEBHOOK_LATER };

struct webhook_gate_result {
    bool neutral;            /* says nothing about the receiver: it was never asked */
    int http_status;         /* 0: no answer */
    uint64_t retry_after_ms; /* that the receiver asked for; 0: none */
    uint64_t took_ms;
};

struct webhook_gate *webhook_gate_new(const struct webhook_gate_options *options);
void webhook_gate_free(struct webhook_gate **gate_p); /* lines must be empty */

/* Finds or makes the endpoint of a URL; it lives while something of it is under way or waits. */
struct webhook_endpoint *webhook_gate_find(struct webhook_gate *gate, const char *tenant,
                                           const char *url, uint64_t now_ms);

enum webhook_verdict webhook_gate_ask(struct webhook_gate *gate, struct webhook_endpoint *endpoint,
                                      uint64_t now_ms, double jitter, uint64_t *ret_delay_ms);

/* What was let through is over. webhook_gate_next() has to be called behind it. */
void webhook_gate_end(struct webhook_gate *gate, struct webhook_endpoint *endpoint,
                      const struct webhook_gate_result *result, uint64_t now_ms, double jitter);

/* LINE: it was put into the line's end; and out of its head, for whatever reason. */
void webhook_gate_waits(struct webhook_gate *gate, struct webhook_endpoint *endpoint);
void webhook_gate_left(struct webhook_gate *gate, struct webhook_endpoint *endpoint);

/* The next endpoint, by turns, whose line's head may go now: that one is counted in. NULL: none.
 * With *ret_drain nothing was counted in: its circuit is not closed, and each in its line is to be
 * taken out and asked for anew. */
struct webhook_endpoint *webhook_gate_next(struct webhook_gate *gate, uint64_t now_ms,
                                           bool *ret_drain);

/* The worse of the endpoint's and its host's. */
enum webhook_circuit webhook_endpoint_circuit(const struct webhook_endpoint *endpoint);
/* When one that is not closed may be tried; 0: now. */
uint64_t webhook_endpoint_until_ms(const struct webhook_endpoint *endpoint);
uint32_t webhook_gate_open_count(const struct webhook_gate *gate); /* circuits not closed */
uint32_t webhook_gate_waiting(const struct webhook_gate *gate);
uint32_t webhook_gate_in_flight(const struct webhook_gate *gate);

/* The URL up to its query or fragment; the length of its scheme, host and port. */
size_t webhook_url_endpoint_size(const char *url);
size_t webhook_url_origin_size(const char *url);
