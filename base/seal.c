/* SPDX-License-Identifier: Apache-2.0 */

#include "base/seal.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/rng.h"

#define KEY_SIZE crypto_aead_xchacha20poly1305_ietf_KEYBYTES
#define NONCE_SIZE crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
#define TAG_SIZE crypto_aead_xchacha20poly1305_ietf_ABYTES
#define KEY_TEXT_SIZE (2 * KEY_SIZE)
#define SEAL_VERSION 1

struct seal_key {
    uint8_t bytes[KEY_SIZE];
};

static void close_fd(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

static int key_read(int fd, const char *path, struct seal_key *key, struct err *err)
{
    char text[KEY_TEXT_SIZE + 2];
    struct stat info;
    size_t size = 0;
    ssize_t n;
    int r;

    if (fstat(fd, &info) != 0)
        return err_set_errno(err, ERR_USAGE, "key file '%s'", path);
    if ((info.st_mode & 077) != 0)
        return err_set(err, ERR_USAGE, "key file '%s' has mode %03o: chmod 600 it", path,
                       (unsigned)info.st_mode & 0777u);
    n = read(fd, text, sizeof(text));
    if (n == (ssize_t)KEY_TEXT_SIZE + 1 && text[KEY_TEXT_SIZE] == '\n')
        n--;
    r = n == (ssize_t)KEY_TEXT_SIZE
            ? sodium_hex2bin(key->bytes, KEY_SIZE, text, KEY_TEXT_SIZE, NULL, &size, NULL)
            : -1;
    sodium_memzero(text, sizeof(text));
    if (r != 0 || size != KEY_SIZE)
        return err_set(err, ERR_USAGE, "key file '%s' must hold %zu hex digits", path,
                       (size_t)KEY_TEXT_SIZE);
    return 0;
}

int seal_key_open(const char *path, struct seal_key **ret_key, struct err *err)
{
    OWNED(close_fd) int fd = open(path, O_RDONLY | O_CLOEXEC);
    OWNED(seal_key_close) struct seal_key *key = NULL;
    int r;

    assert(sodium_init() >= 0);
    if (fd < 0)
        return err_set_errno(err, ERR_USAGE, "key file '%s'", path);
    key = xcalloc(1, sizeof(*key));
    r = key_read(fd, path, key, err);
    if (r == 0)
        *ret_key = TAKE(key);
    return r;
}

void seal_key_close(struct seal_key **key_p)
{
    struct seal_key *key = TAKE(*key_p);

    if (key == NULL)
        return;
    sodium_memzero(key, sizeof(*key));
    free(key);
}

int seal_key_make(const char *path, struct err *err)
{
    OWNED(close_fd) int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    uint8_t bytes[KEY_SIZE];
    char text[KEY_TEXT_SIZE + 1];
    ssize_t n;

    if (fd < 0)
        return err_set_errno(err, errno == EEXIST ? ERR_CONFLICT : ERR_IO, "key file '%s'", path);
    rng_secret_bytes(bytes, sizeof(bytes));
    (void)sodium_bin2hex(text, sizeof(text), bytes, sizeof(bytes));
    n = write(fd, text, KEY_TEXT_SIZE);
    sodium_memzero(bytes, sizeof(bytes));
    sodium_memzero(text, sizeof(text));
    if (n != (ssize_t)KEY_TEXT_SIZE || fsync(fd) != 0)
        return err_set_errno(err, ERR_IO, "key file '%s'", path);
    return 0;
}

void seal_close(const struct seal_key *key, const char *context, const void *secret,
                size_t secret_size, struct buf *sealed)
{
    uint8_t nonce[NONCE_SIZE];
    unsigned long long box_size = 0;
    uint8_t *box;

    rng_secret_bytes(nonce, sizeof(nonce));
    buf_append_byte(sealed, SEAL_VERSION);
    buf_append(sealed, nonce, sizeof(nonce));
    box = buf_reserve(sealed, secret_size + TAG_SIZE);
    if (box == NULL)
        return;
    (void)crypto_aead_xchacha20poly1305_ietf_encrypt(box, &box_size, secret, secret_size,
                                                     (const uint8_t *)context, strlen(context),
                                                     NULL, nonce, key->bytes);
    buf_commit(sealed, box_size);
}

int seal_open(const struct seal_key *key, const char *context, const void *sealed,
              size_t sealed_size, struct buf *secret, struct err *err)
{
    const uint8_t *bytes = sealed;
    size_t head = 1 + NONCE_SIZE;
    unsigned long long size = 0;
    uint8_t *room;

    if (sealed_size < head + TAG_SIZE || bytes[0] != SEAL_VERSION)
        return err_set(err, ERR_MALFORMED, "%s: not a sealed value of version %d", context,
                       SEAL_VERSION);
    room = buf_reserve(secret, sealed_size - head - TAG_SIZE);
    if (room == NULL)
        return buf_check(secret, context, err);
    if (crypto_aead_xchacha20poly1305_ietf_decrypt(room, &size, NULL, bytes + head,
                                                   sealed_size - head, (const uint8_t *)context,
                                                   strlen(context), bytes + 1, key->bytes) != 0)
        return err_set(err, ERR_MISMATCH,
                       "%s: does not open with this key (was the key file replaced?)", context);
    buf_commit(secret, size);
    return 0;
}
