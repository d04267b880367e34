/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Secrets at rest: sealed with a key that stays outside of the database.
 *
 * A sealed value is [version 1][24-byte nonce][box]; the box is XChaCha20-Poly1305 over the secret,
 * bound to a context ("webhook_secret ws_1"), so that a row copied into another row does not open.
 *
 * The key is a file with 64 hex digits, readable by its owner only. `headrace dev` makes one; in
 * production all programs that seal or open get the same file (--seal-key-file).
 *
 * Source: libsodium, crypto_aead_xchacha20poly1305_ietf; draft-irtf-cfrg-xchacha-03.
 * Thread: any; a key belongs to its opener.   Tests: tests/unit/test_seal.c
 */

#include <stdint.h>

#include "base/buf.h"

struct seal_key;

/* ERR_USAGE says what is wrong with the file: absent, readable by others, not 64 hex digits. */
int seal_key_open(const char *path, struct seal_key **ret_key, struct err *err) MUST_CHECK;
void seal_key_close(struct seal_key **key_p); /* wipes it */

/* Writes a new key file, mode 0600; ERR_CONFLICT when there is one already. */
int seal_key_make(const char *path, struct err *err) MUST_CHECK;

/* Appends the sealed value. */
void seal_close(const struct seal_key *key, const char *context, const void *secret,
                size_t secret_size, struct buf *sealed);

/* Appends the secret. ERR_MISMATCH: another key, another context, or the value was changed. */
int seal_open(const struct seal_key *key, const char *context, const void *sealed,
              size_t sealed_size, struct buf *secret, struct err *err) MUST_CHECK;
