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

/* What the standard signs, in pieces that are never joined. */
struct standard_parts {
    char stamp[32];
    struct part list[3];
};

static void standard_parts_of(const struct webhook_message *message, struct standard_parts *ret)
{
    int stamp_size = snprintf(ret->stamp, sizeof(ret->stamp), ".%" PRIu64 ".",
                              message->timestamp_s);

    ret->list[0] = (struct part){message->id, strlen(message->id)};
    ret->list[1] = (struct part){ret->stamp, (size_t)stamp_size};
    ret->list[2] = (struct part){message->body, message->body_size};
}

static void append_standard(struct buf *value, const char *scheme, const uint8_t *signature,
                            size_t size)
{
    char text[sodium_base64_ENCODED_LEN(crypto_sign_BYTES, sodium_base64_VARIANT_ORIGINAL)];

    (void)sodium_bin2base64(text, sizeof(text), signature, size, sodium_base64_VARIANT_ORIGINAL);
    buf_printf(value, "%s%s,%s", value->size > 0 ? " " : "", scheme, text);
}

/* Ed25519 reads its message twice and so wants it in one piece. */
static void sign_with_keys(const struct webhook_secrets *secrets,
                           const struct standard_parts *parts, struct buf *value)
{
    size_t size = parts->list[0].size + parts->list[1].size + parts->list[2].size;
    OWNED(buf_done) struct buf joined = BUF_WITH_LIMIT(size);

    if (secrets->key_count == 0)
        return;
    for (size_t i = 0; i < COUNT_OF(parts->list); i++)
        buf_append(&joined, parts->list[i].bytes, parts->list[i].size);
    assert(joined.size == size);
    for (int i = 0; i < secrets->key_count; i++) {
        uint8_t signature[crypto_sign_BYTES];

        if (crypto_sign_detached(signature, NULL, joined.bytes, joined.size,
                                 secrets->private_keys[i]) != 0)
            NEVER("a key pair always signs");
        append_standard(value, "v1a", signature, sizeof(signature));
    }
}

void webhook_sign_standard(const struct webhook_secrets *secrets,
                           const struct webhook_message *message, struct buf *value)
{
    struct standard_parts parts;

    standard_parts_of(message, &parts);
    for (int i = 0; i < secrets->count; i++) {
        uint8_t key[STANDARD_KEY_SIZE], digest[DIGEST_SIZE];
        struct part key_part = {key, standard_key(secrets->text[i], key)};

        hmac_sha256(key_part, parts.list, COUNT_OF(parts.list), digest);
        sodium_memzero(key, sizeof(key));
        append_standard(value, "v1", digest, sizeof(digest));
    }
    sign_with_keys(secrets, &parts, value);
}
