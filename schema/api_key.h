/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * API keys: "<prefix>.<secret>", shown once. The prefix (8 characters of a-z and 2-9) is public, it
 * tells keys apart in lists and logs; the secret is 32 random bytes in base64url. What is stored is
 * the prefix and the SHA-256 of the whole text: a secret of 256 bits needs no slow hash.
 *
 * Also here: ids of models, deployments and secrets, made of the same letters as prefixes.
 *
 * Pure: random bytes are an argument.   Thread: any.   Tests: tests/unit/test_api_key.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define API_KEY_PREFIX_SIZE 9 /* with its terminator, as the other two */
#define API_KEY_TEXT_SIZE 53
#define API_KEY_DIGEST_SIZE 32
#define API_KEY_RANDOM_SIZE 40
#define SHORT_ID_SIZE 9
#define SHORT_ID_RANDOM_SIZE 8

struct api_key {
    char prefix[API_KEY_PREFIX_SIZE];
    char text[API_KEY_TEXT_SIZE]; /* the secret itself: show it, then forget it */
    uint8_t digest[API_KEY_DIGEST_SIZE];
};

enum api_key_role {
    API_KEY_ROLE_ADMIN,
    API_KEY_ROLE_PREDICT,
    API_KEY_ROLE_METRICS,
    API_KEY_ROLE_COUNT,
};

void api_key_make(const uint8_t random[API_KEY_RANDOM_SIZE], struct api_key *ret_key);

/* Splits and digests what a client sent; ret_key->text stays empty. ERR_UNAUTHORIZED for anything
 * that cannot be a key. */
int api_key_parse(const char *text, struct api_key *ret_key, struct err *err) MUST_CHECK;

/* The key inside the value of an Authorization header: "Bearer <key>" or "Api-Key <key>", the
 * scheme in any case. NULL: neither. */
const char *api_key_of_header(const char *authorization);

/* In constant time. */
bool api_key_digest_equal(const uint8_t a[API_KEY_DIGEST_SIZE],
                          const uint8_t b[API_KEY_DIGEST_SIZE]);

const char *api_key_role_name(enum api_key_role role); /* "admin": as in SQL; static storage */
const char *api_key_role_type(enum api_key_role role); /* "WORKSPACE_MANAGE_ALL": as on the wire */
int api_key_role_parse(const char *name, enum api_key_role *ret_role, struct err *err) MUST_CHECK;
/* Takes the wire's four types; PERSONAL is an admin's. ERR_RANGE names the allowed ones. */
int api_key_type_parse(const char *type, enum api_key_role *ret_role, struct err *err) MUST_CHECK;

/* Eight letters, to be tried again with other bytes when the id is taken. */
void short_id_make(const uint8_t random[SHORT_ID_RANDOM_SIZE], char to[SHORT_ID_SIZE]);

/* ERR_RANGE unless it is 1 to 64 of a-z A-Z 0-9 . _ - and begins with a letter or digit; `what`
 * names the value in the text. For names of models, deployments, environments and keys. */
int name_check(const char *what, const char *name, struct err *err) MUST_CHECK;
