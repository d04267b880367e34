/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One webhook message in the sender's memory.
 *
 *   NEW ─▶ SECRETS (its tenant's are being read) ─▶ SENDING ─▶ ENDED (result is being written) ─▶
 * gone
 *
 * Owned by the sender's table (workers/webhook_sender.h). Its row in the ledger is the truth; what
 * is lost with the process is claimed and sent again.
 */

#include <stdint.h>
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

struct webhook_delivery {
    struct webhook_key key;
    UT_hash_handle hh;
    struct webhook_delivery *next; /* in the line of those that wait for secrets */
    uint32_t shard;
    uint32_t try_count; /* made so far */
    char *tenant, *model, *url;
    char webhook_id[WEBHOOK_ID_SIZE];
    char trace[33];    /* id, for logs; "": none, or not begun */
    struct buf record; /* the encoded `completed` message */
    struct buf body;   /* while it is sent */

    /* The result of the try that just ended. */
    uint64_t started_us, took_us;
    int http_status;
    enum webhook_outcome outcome;
    uint64_t delay_ms;
    char address[64];
    char error[256];
    char answer[513];
};

void webhook_delivery_free(struct webhook_delivery **delivery_p);

/* "msg_<job id>_<round>": the same on every try. */
void webhook_delivery_name(struct webhook_delivery *delivery);
