/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One webhook message in the sender's memory.
 *
 *   put ─▶ in the line of its endpoint ─▶ waiting for its tenant's secrets ─▶ being sent
 *     └──────────── put off ────────────────────────────────────────────────▶ result being
 *                                                                              written ─▶ gone
 *
 * Owned by the sender's table (workers/webhook_sender.h). Its row in the ledger is the truth; what
 * is lost with the process is claimed and sent again.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <uthash.h>

#include "base/buf.h"
#include "base/wire.h"
#include "workers/webhook_plan.h"

#define WEBHOOK_URL_SIZE_MAX 2048
#define WEBHOOK_ID_SIZE 64

/* What makes a delivery unique besides its endpoint; compared byte by byte, so no padding. */
struct webhook_key {
    struct wire_id job;
    uint64_t round;
};

struct webhook_endpoint;

struct webhook_delivery {
    struct webhook_key key;
    UT_hash_handle hh;
    TAILQ_ENTRY(webhook_delivery) next; /* in a line: its endpoint's, or for secrets */
    struct webhook_endpoint *endpoint;
    uint32_t shard;
    uint32_t try_count; /* made so far, all replays together */
    uint32_t try_base;  /* made before its last replay */
    uint64_t age_ms;    /* since it was made, or last replayed */
    char *disabled;     /* why its endpoint is; NULL: it is not */
    char *tenant, *model, *url;
    char webhook_id[WEBHOOK_ID_SIZE];
    char trace[33];    /* id, for logs; "": none, or not begun */
    struct buf record; /* the encoded `completed` message */
    struct buf body;   /* while it is sent */

    /* The result of the try that just ended, or of not trying. */
    bool tried;
    uint64_t started_us, took_us;
    int http_status;
    enum webhook_outcome outcome;
    uint64_t delay_ms;
    char address[64];
    char error[256];
    char answer[513];
};

void webhook_delivery_free(struct webhook_delivery **delivery_p);

/* Sets the error of a try: what is no printable ASCII becomes a dot, so that a text column takes it
 * whatever a receiver or a library said, and wherever it is cut. */
void webhook_delivery_set_error(struct webhook_delivery *delivery, const char *text);

/* "msg_<job id>_<round>": the same on every try. */
void webhook_delivery_name(struct webhook_delivery *delivery);
