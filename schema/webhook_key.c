/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/webhook_key.h"

#include <sodium.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

#define PREFIX_SIZE(prefix) (sizeof(prefix) - 1)

static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
#define LETTER_COUNT (sizeof(letters) - 1)
#define BASE64_LETTERS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="

void webhook_secret_make(const uint8_t random[WEBHOOK_SECRET_RANDOM_SIZE],
                         char to[WEBHOOK_SECRET_TEXT_SIZE])
{
    size_t used = PREFIX_SIZE(WEBHOOK_SECRET_PREFIX);

    memcpy(to, WEBHOOK_SECRET_PREFIX, used);
    for (size_t i = 0; i < WEBHOOK_SECRET_RANDOM_SIZE && used < WEBHOOK_SECRET_TEXT_SIZE - 1; i++) {
        if (random[i] < 256 / LETTER_COUNT * LETTER_COUNT)
            to[used++] = letters[random[i] % LETTER_COUNT];
    }
    assert(used == WEBHOOK_SECRET_TEXT_SIZE - 1);
    to[used] = '\0';
}

int webhook_secret_check(const char *secret, struct err *err)
{
    size_t prefix_size = PREFIX_SIZE(WEBHOOK_SECRET_PREFIX);

    if (strncmp(secret, WEBHOOK_SECRET_PREFIX, prefix_size) != 0)
        return err_set(err, ERR_MALFORMED, "webhook secret does not start with '%s'",
                       WEBHOOK_SECRET_PREFIX);
    if (strlen(secret) != prefix_size + WEBHOOK_SECRET_TAIL_SIZE ||
        strspn(secret + prefix_size, letters) != WEBHOOK_SECRET_TAIL_SIZE)
        return err_set(err, ERR_MALFORMED,
                       "webhook secret must be '%s' and %d characters of [A-Za-z0-9]",
                       WEBHOOK_SECRET_PREFIX, WEBHOOK_SECRET_TAIL_SIZE);
    return 0;
}

void webhook_key_make(const uint8_t seed[WEBHOOK_SEED_SIZE], struct webhook_key_pair *ret_key)
{
    _Static_assert(WEBHOOK_SEED_SIZE == crypto_sign_SEEDBYTES, "Ed25519's own");
    _Static_assert(WEBHOOK_PRIVATE_KEY_SIZE == crypto_sign_SECRETKEYBYTES, "Ed25519's own");
    _Static_assert(WEBHOOK_PUBLIC_KEY_SIZE == crypto_sign_PUBLICKEYBYTES, "Ed25519's own");
    if (crypto_sign_seed_keypair(ret_key->public_key, ret_key->private_key, seed) != 0)
        NEVER("a seed always makes a key pair");
}

int webhook_key_parse(const char *text, struct webhook_key_pair *ret_key, struct err *err)
{
    size_t prefix_size = PREFIX_SIZE(WEBHOOK_PRIVATE_KEY_PREFIX), size = 0;
    uint8_t bytes[WEBHOOK_PRIVATE_KEY_SIZE];
    struct webhook_key_pair key;
    int r;

    if (strncmp(text, WEBHOOK_PRIVATE_KEY_PREFIX, prefix_size) != 0)
        return err_set(err, ERR_MALFORMED, "webhook key does not start with '%s'",
                       WEBHOOK_PRIVATE_KEY_PREFIX);
    r = sodium_base642bin(bytes, sizeof(bytes), text + prefix_size, strlen(text + prefix_size),
                          NULL, &size, NULL, sodium_base64_VARIANT_ORIGINAL);
    /* libsodium 1.0.18 takes some bytes past 127 for letters. */
    if (r != 0 || size != sizeof(bytes) || text[strspn(text, BASE64_LETTERS "_")] != '\0') {
        sodium_memzero(bytes, sizeof(bytes));
        return err_set(err, ERR_MALFORMED, "webhook key must be '%s' and %d bytes in base64",
                       WEBHOOK_PRIVATE_KEY_PREFIX, WEBHOOK_PRIVATE_KEY_SIZE);
    }
    webhook_key_make(bytes, &key);
    r = sodium_memcmp(key.private_key, bytes, sizeof(bytes));
    sodium_memzero(bytes, sizeof(bytes));
    if (r != 0) {
        sodium_memzero(&key, sizeof(key));
        return err_set(err, ERR_MALFORMED, "the halves of the webhook key do not belong together");
    }
    *ret_key = key;
    sodium_memzero(&key, sizeof(key));
    return 0;
}

void webhook_key_format_private(const struct webhook_key_pair *key,
                                char to[WEBHOOK_PRIVATE_KEY_TEXT_SIZE])
{
    size_t prefix_size = PREFIX_SIZE(WEBHOOK_PRIVATE_KEY_PREFIX);

    memcpy(to, WEBHOOK_PRIVATE_KEY_PREFIX, prefix_size);
    (void)sodium_bin2base64(to + prefix_size, WEBHOOK_PRIVATE_KEY_TEXT_SIZE - prefix_size,
                            key->private_key, sizeof(key->private_key),
                            sodium_base64_VARIANT_ORIGINAL);
}

void webhook_key_format_public(const uint8_t key[WEBHOOK_PUBLIC_KEY_SIZE],
                               char to[WEBHOOK_PUBLIC_KEY_TEXT_SIZE])
{
    size_t prefix_size = PREFIX_SIZE(WEBHOOK_PUBLIC_KEY_PREFIX);

    memcpy(to, WEBHOOK_PUBLIC_KEY_PREFIX, prefix_size);
    (void)sodium_bin2base64(to + prefix_size, WEBHOOK_PUBLIC_KEY_TEXT_SIZE - prefix_size, key,
                            WEBHOOK_PUBLIC_KEY_SIZE, sodium_base64_VARIANT_ORIGINAL);
}

void webhook_key_format_url(const uint8_t key[WEBHOOK_PUBLIC_KEY_SIZE],
                            char to[WEBHOOK_PUBLIC_KEY_URL_SIZE])
{
    (void)sodium_bin2base64(to, WEBHOOK_PUBLIC_KEY_URL_SIZE, key, WEBHOOK_PUBLIC_KEY_SIZE,
                            sodium_base64_VARIANT_URLSAFE_NO_PADDING);
}
