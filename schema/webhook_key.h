/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What signs webhooks, as text: a shared secret (HMAC) or a key pair (Ed25519).
 *
 *   whsec_<40 of A-Z a-z 0-9>            the secret, shared with the receiver
 *   whsk_<base64 of seed and public key> the private key: sealed at once, never shown
 *   whpk_<base64 of the public key>      for everybody
 *
 * Source: Standard Webhooks specification 1.0, "Signature scheme"; RFC 8032.
 * Pure: random bytes are an argument.   Thread: any.   Tests: tests/unit/test_webhook_key.c
 */

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define WEBHOOK_SECRET_PREFIX "whsec_"
#define WEBHOOK_SECRET_TAIL_SIZE 40 /* characters of [A-Za-z0-9] behind the prefix: 30 bytes */
#define WEBHOOK_SECRET_TEXT_SIZE (sizeof(WEBHOOK_SECRET_PREFIX) + WEBHOOK_SECRET_TAIL_SIZE)
#define WEBHOOK_SECRET_HINT_SIZE 4 /* last characters that lists show */

#define WEBHOOK_SEED_SIZE 32
#define WEBHOOK_PRIVATE_KEY_SIZE                                                                   \
    64 /* seed and public key, as libsodium and the standard have it                               \
        */
#define WEBHOOK_PUBLIC_KEY_SIZE 32
#define WEBHOOK_PRIVATE_KEY_PREFIX "whsk_"
#define WEBHOOK_PUBLIC_KEY_PREFIX "whpk_"
#define WEBHOOK_PRIVATE_KEY_TEXT_SIZE (sizeof(WEBHOOK_PRIVATE_KEY_PREFIX) + 88)
#define WEBHOOK_PUBLIC_KEY_TEXT_SIZE (sizeof(WEBHOOK_PUBLIC_KEY_PREFIX) + 44)
#define WEBHOOK_PUBLIC_KEY_URL_SIZE 44 /* base64url without padding, as a JWK has it */

/* Each random byte below 248 makes a character, so that all are equally likely; the rest of them
 * are skipped: 80 bytes are enough but for one call in 10^40, which is asserted. */
#define WEBHOOK_SECRET_RANDOM_SIZE 80
void webhook_secret_make(const uint8_t random[WEBHOOK_SECRET_RANDOM_SIZE],
                         char to[WEBHOOK_SECRET_TEXT_SIZE]);

/* ERR_MALFORMED unless it is "whsec_" and 40 characters of [A-Za-z0-9]. */
int webhook_secret_check(const char *secret, struct err *err) MUST_CHECK;

struct webhook_key_pair {
    uint8_t private_key[WEBHOOK_PRIVATE_KEY_SIZE]; /* wipe it after use */
    uint8_t public_key[WEBHOOK_PUBLIC_KEY_SIZE];
};

void webhook_key_make(const uint8_t seed[WEBHOOK_SEED_SIZE], struct webhook_key_pair *ret_key);

/* Reads "whsk_…". ERR_MALFORMED also when its public half is not that of its seed. */
int webhook_key_parse(const char *text, struct webhook_key_pair *ret_key,
                      struct err *err) MUST_CHECK;

void webhook_key_format_private(const struct webhook_key_pair *key,
                                char to[WEBHOOK_PRIVATE_KEY_TEXT_SIZE]);
void webhook_key_format_public(const uint8_t key[WEBHOOK_PUBLIC_KEY_SIZE],
                               char to[WEBHOOK_PUBLIC_KEY_TEXT_SIZE]);
void webhook_key_format_url(const uint8_t key[WEBHOOK_PUBLIC_KEY_SIZE],
                            char to[WEBHOOK_PUBLIC_KEY_URL_SIZE]);
