/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/webhook_sign.h"

#include <inttypes.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"

#define DIGEST_SIZE 32
#define PREFIX_SIZE (sizeof(WEBHOOK_SECRET_PREFIX) - 1)
#define STANDARD_KEY_SIZE (WEBHOOK_SECRET_TAIL_SIZE / 4 * 3)

int webhook_secret_check(const char *secret, struct err *err)
{
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

    if (strncmp(secret, WEBHOOK_SECRET_PREFIX, PREFIX_SIZE) != 0)
        return err_set(err, ERR_MALFORMED, "webhook secret does not start with '%s'",
                       WEBHOOK_SECRET_PREFIX);
    if (strlen(secret) != PREFIX_SIZE + WEBHOOK_SECRET_TAIL_SIZE ||
        strspn(secret + PREFIX_SIZE, allowed) != WEBHOOK_SECRET_TAIL_SIZE)
        return err_set(err, ERR_MALFORMED,
                       "webhook secret must be '%s' and %d characters of [A-Za-z0-9]",
                       WEBHOOK_SECRET_PREFIX, WEBHOOK_SECRET_TAIL_SIZE);
    return 0;
}

/* One part of what is authenticated. */
struct part {
    const void *bytes;
    size_t size;
};

/* Fetched once: an implicit fetch for each message costs two to three times the hash. */
static EVP_MAC *hmac_algorithm(void)
{
    static EVP_MAC *hmac;

    if (hmac == NULL)
        hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
    assert(hmac != NULL);
    return hmac;
}

static void hmac_sha256(struct part key, const struct part *parts, size_t part_count,
                        uint8_t digest[DIGEST_SIZE])
{
    char name[] = "SHA256";
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string("digest", name, 0),
        OSSL_PARAM_construct_end(),
    };
    EVP_MAC_CTX *context = EVP_MAC_CTX_new(hmac_algorithm());
    size_t size = 0;
    int good = context != NULL && EVP_MAC_init(context, key.bytes, key.size, params);

    for (size_t i = 0; i < part_count && good; i++)
        good = EVP_MAC_update(context, parts[i].bytes, parts[i].size);
    good = good && EVP_MAC_final(context, digest, &size, DIGEST_SIZE);
    EVP_MAC_CTX_free(context);
    assert(good && size == DIGEST_SIZE);
}

void webhook_sign_baseten(const struct webhook_secrets *secrets,
                          const struct webhook_message *message, struct buf *value)
{
    struct part body = {message->body, message->body_size};

    for (int i = 0; i < secrets->count; i++) {
        struct part key = {secrets->text[i], strlen(secrets->text[i])};
        uint8_t digest[DIGEST_SIZE];
        char hex[2 * DIGEST_SIZE + 1];

        hmac_sha256(key, &body, 1, digest);
        (void)sodium_bin2hex(hex, sizeof(hex), digest, sizeof(digest));
        buf_printf(value, "%sv1=%s", i > 0 ? "," : "", hex);
    }
}

/* The bytes that the 40 characters behind the prefix stand for. */
static size_t standard_key(const char *secret, uint8_t key[STANDARD_KEY_SIZE])
{
    size_t size = 0;
    int r = sodium_base642bin(key, STANDARD_KEY_SIZE, secret + PREFIX_SIZE,
                              WEBHOOK_SECRET_TAIL_SIZE, NULL, &size, NULL,
                              sodium_base64_VARIANT_ORIGINAL_NO_PADDING);

    assert(r == 0 && size == STANDARD_KEY_SIZE); /* webhook_secret_check() let it in */
    return size;
}

void webhook_sign_standard(const struct webhook_secrets *secrets,
                           const struct webhook_message *message, struct buf *value)
{
    char stamp[32];
    int stamp_size = snprintf(stamp, sizeof(stamp), ".%" PRIu64 ".", message->timestamp_s);
    const struct part parts[] = {
        {message->id, strlen(message->id)},
        {stamp, (size_t)stamp_size},
        {message->body, message->body_size},
    };

    for (int i = 0; i < secrets->count; i++) {
        uint8_t key[STANDARD_KEY_SIZE], digest[DIGEST_SIZE];
        char text[sodium_base64_ENCODED_LEN(DIGEST_SIZE, sodium_base64_VARIANT_ORIGINAL)];
        struct part key_part = {key, standard_key(secrets->text[i], key)};

        hmac_sha256(key_part, parts, COUNT_OF(parts), digest);
        sodium_memzero(key, sizeof(key));
        (void)sodium_bin2base64(text, sizeof(text), digest, sizeof(digest),
                                sodium_base64_VARIANT_ORIGINAL);
        buf_printf(value, "%sv1,%s", i > 0 ? " " : "", text);
    }
}
