/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The signatures of a webhook, over the same body.
 *
 *   X-BASETEN-SIGNATURE  v1=<hex>[,v1=<hex>]   HMAC-SHA256, key = the whole secret string,
 *                                              message = the raw body
 *   webhook-signature    v1,<base64>[ v1,…]    HMAC-SHA256, key = the bytes behind "whsec_",
 *                                              message = "<id>.<timestamp>.<body>"
 *                        v1a,<base64>[ v1a,…]  Ed25519 over the same message
 *
 * One signature for each active secret and key, newest first: while one is being rotated,
 * receivers that know either of the two are content.
 *
 * Source: Standard Webhooks specification 1.0; docs/webhooks.md.
 * Thread: any.   Tests: tests/unit/test_webhook_sign.c
 */

#include <stdint.h>

#include "base/buf.h"
#include "schema/webhook_key.h"

#define WEBHOOK_SECRETS_MAX 2 /* active at once of a kind: the new one and, for a day, the old */

struct webhook_secrets {
    char text[WEBHOOK_SECRETS_MAX][WEBHOOK_SECRET_TEXT_SIZE]; /* newest first */
    int count;
    uint8_t private_keys[WEBHOOK_SECRETS_MAX][WEBHOOK_PRIVATE_KEY_SIZE]; /* newest first */
    int key_count;
};

/* What is signed. id and body are borrowed. */
struct webhook_message {
    const char *id;       /* webhook-id: the same on every try */
    uint64_t timestamp_s; /* webhook-timestamp: of this try */
    const uint8_t *body;
    size_t body_size;
};

/* Appends the header values; with no secret nothing is appended. */
void webhook_sign_baseten(const struct webhook_secrets *secrets,
                          const struct webhook_message *message, struct buf *value);
void webhook_sign_standard(const struct webhook_secrets *secrets,
                           const struct webhook_message *message, struct buf *value);
