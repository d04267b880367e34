/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Both signatures of a webhook, over the same body.
 *
 *   X-BASETEN-SIGNATURE  v1=<hex>[,v1=<hex>]   HMAC-SHA256, key = the whole secret string,
 *                                              message = the raw body
 *   webhook-signature    v1,<base64>[ v1,…]    HMAC-SHA256, key = the bytes behind "whsec_",
 *                                              message = "<id>.<timestamp>.<body>"
 *
 * One signature for each active secret, newest first: while a secret is being rotated, receivers
 * that know either of the two are content.
 *
 * Source: Standard Webhooks specification 1.0; docs/webhooks.md.
 * Thread: any.   Tests: tests/unit/test_webhook_sign.c
 */

#include <stdint.h>

#include "base/buf.h"

#define WEBHOOK_SECRET_PREFIX "whsec_"
#define WEBHOOK_SECRET_TAIL_SIZE 40 /* characters of [A-Za-z0-9] behind the prefix: 30 bytes */
#define WEBHOOK_SECRET_TEXT_SIZE (sizeof(WEBHOOK_SECRET_PREFIX) + WEBHOOK_SECRET_TAIL_SIZE)
#define WEBHOOK_SECRETS_MAX 2 /* active at once: the new one and, for a day, the old one */

struct webhook_secrets {
    char text[WEBHOOK_SECRETS_MAX][WEBHOOK_SECRET_TEXT_SIZE]; /* newest first */
    int count;
};

/* What is signed. id and body are borrowed. */
struct webhook_message {
    const char *id;       /* webhook-id: the same on every try */
    uint64_t timestamp_s; /* webhook-timestamp: of this try */
    const uint8_t *body;
    size_t body_size;
};

/* ERR_MALFORMED unless it is "whsec_" and 40 characters of [A-Za-z0-9]. */
int webhook_secret_check(const char *secret, struct err *err) MUST_CHECK;

/* Appends the header values; with no secret nothing is appended. */
void webhook_sign_baseten(const struct webhook_secrets *secrets,
                          const struct webhook_message *message, struct buf *value);
void webhook_sign_standard(const struct webhook_secrets *secrets,
                           const struct webhook_message *message, struct buf *value);
