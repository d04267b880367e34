/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/api_key.h"

#include <openssl/evp.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/assert.h"

#define LETTERS "abcdefghijkmnpqrstuvwxyz23456789" /* 32: no l, o, 0, 1 */
#define PREFIX_LENGTH (API_KEY_PREFIX_SIZE - 1)
#define SECRET_LENGTH (API_KEY_TEXT_SIZE - 1 - PREFIX_LENGTH - 1)
#define NAME_LENGTH_MAX 64

_Static_assert(sizeof(LETTERS) == 33, "five bits choose a letter");
_Static_assert(SECRET_LENGTH == 43, "32 bytes in base64url without padding");

static const struct {
    const char *name, *type;
} roles[API_KEY_ROLE_COUNT] = {
    [API_KEY_ROLE_ADMIN] = {"admin", "WORKSPACE_MANAGE_ALL"},
    [API_KEY_ROLE_PREDICT] = {"predict", "WORKSPACE_INVOKE"},
    [API_KEY_ROLE_METRICS] = {"metrics", "WORKSPACE_EXPORT_METRICS"},
};

static void letters_make(const uint8_t *random, size_t count, char *to)
{
    for (size_t i = 0; i < count; i++)
        to[i] = LETTERS[random[i] & 31];
    to[count] = '\0';
}

static void digest_make(const char *text, uint8_t to[API_KEY_DIGEST_SIZE])
{
    int done = EVP_Digest(text, strlen(text), to, NULL, EVP_sha256(), NULL);

    assert(done == 1);
}

void api_key_make(const uint8_t random[API_KEY_RANDOM_SIZE], struct api_key *ret_key)
{
    char secret[SECRET_LENGTH + 1];

    letters_make(random, PREFIX_LENGTH, ret_key->prefix);
    (void)sodium_bin2base64(secret, sizeof(secret), random + PREFIX_LENGTH,
                            API_KEY_RANDOM_SIZE - PREFIX_LENGTH,
                            sodium_base64_VARIANT_URLSAFE_NO_PADDING);
    (void)snprintf(ret_key->text, sizeof(ret_key->text), "%s.%s", ret_key->prefix, secret);
    digest_make(ret_key->text, ret_key->digest);
}

int api_key_parse(const char *text, struct api_key *ret_key, struct err *err)
{
    if (strnlen(text, API_KEY_TEXT_SIZE) != API_KEY_TEXT_SIZE - 1 ||
        strspn(text, LETTERS) != PREFIX_LENGTH || text[PREFIX_LENGTH] != '.')
        return err_set(err, ERR_UNAUTHORIZED, "this is no API key");
    *ret_key = (struct api_key){0};
    memcpy(ret_key->prefix, text, PREFIX_LENGTH);
    digest_make(text, ret_key->digest);
    return 0;
}

const char *api_key_of_header(const char *authorization)
{
    static const char *const schemes[] = {"Bearer ", "Api-Key "};

    for (size_t i = 0; authorization != NULL && i < COUNT_OF(schemes); i++) {
        size_t size = strlen(schemes[i]);

        if (strncasecmp(authorization, schemes[i], size) == 0)
            return authorization + size + strspn(authorization + size, " ");
    }
    return NULL;
}

bool api_key_digest_equal(const uint8_t a[API_KEY_DIGEST_SIZE],
                          const uint8_t b[API_KEY_DIGEST_SIZE])
{
    return sodium_memcmp(a, b, API_KEY_DIGEST_SIZE) == 0;
}

const char *api_key_role_name(enum api_key_role role)
{
    assert(role < API_KEY_ROLE_COUNT);
    return roles[role].name;
}

const char *api_key_role_type(enum api_key_role role)
{
    assert(role < API_KEY_ROLE_COUNT);
    return roles[role].type;
}

int api_key_role_parse(const char *name, enum api_key_role *ret_role, struct err *err)
{
    for (enum api_key_role role = 0; role < API_KEY_ROLE_COUNT; role++) {
        if (strcmp(name, roles[role].name) == 0) {
            *ret_role = role;
            return 0;
        }
    }
    return err_set(err, ERR_RANGE, "role is '%.40s'; it must be admin, predict or metrics", name);
}

int api_key_type_parse(const char *type, enum api_key_role *ret_role, struct err *err)
{
    if (strcmp(type, "PERSONAL") == 0) {
        *ret_role = API_KEY_ROLE_ADMIN;
        return 0;
    }
    for (enum api_key_role role = 0; role < API_KEY_ROLE_COUNT; role++) {
        if (strcmp(type, roles[role].type) == 0) {
            *ret_role = role;
            return 0;
        }
    }
    return err_set(err, ERR_RANGE,
                   "type is '%.40s'; it must be PERSONAL, WORKSPACE_MANAGE_ALL, WORKSPACE_INVOKE "
                   "or WORKSPACE_EXPORT_METRICS",
                   type);
}

void short_id_make(const uint8_t random[SHORT_ID_RANDOM_SIZE], char to[SHORT_ID_SIZE])
{
    letters_make(random, SHORT_ID_SIZE - 1, to);
}

int name_check(const char *what, const char *name, struct err *err)
{
    size_t size = strnlen(name, NAME_LENGTH_MAX + 1);

    if (size == 0 || size > NAME_LENGTH_MAX)
        return err_set(err, ERR_RANGE, "%s has %s characters; 1 to %d are allowed", what,
                       size == 0 ? "no" : "too many", NAME_LENGTH_MAX);
    for (size_t i = 0; i < size; i++) {
        char c = name[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');

        if (!plain && (i == 0 || (c != '.' && c != '_' && c != '-')))
            return err_set(err, ERR_RANGE,
                           "%s is '%s'; allowed are letters, digits and, not as the first, . _ -",
                           what, name);
    }
    return 0;
}
