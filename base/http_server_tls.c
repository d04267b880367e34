/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Certificate and key of the server, looked at before the TLS library gets them: what that says of
 * a bad file is one number for every fault, and its user has to know which file and why.
 */

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "base/http_server_int.h"

static void bio_done(BIO **bio)
{
    BIO_free(*bio);
}

static void x509_done(X509 **certificate)
{
    X509_free(*certificate);
}

static void pkey_done(EVP_PKEY **key)
{
    EVP_PKEY_free(*key);
}

/* A key with a password has nobody to ask for it. */
static int no_password(char *to, int size, int writing, void *opaque)
{
    (void)to, (void)size, (void)writing, (void)opaque;
    return -1;
}

int tls_check(const struct http_server_options *options, const struct buf *cert,
              const struct buf *key, struct err *err)
{
    OWNED(bio_done) BIO *cert_bio = BIO_new_mem_buf(cert->bytes, (int)cert->size);
    OWNED(bio_done) BIO *key_bio = BIO_new_mem_buf(key->bytes, (int)key->size);
    OWNED(x509_done) X509 *first = NULL;
    OWNED(pkey_done) EVP_PKEY *pkey = NULL;
    int r = 0;

    if (cert_bio == NULL || key_bio == NULL)
        return err_set(err, ERR_MEMORY, "no memory to read the TLS certificate");
    first = PEM_read_bio_X509(cert_bio, NULL, no_password, NULL);
    pkey = PEM_read_bio_PrivateKey(key_bio, NULL, no_password, NULL);
    if (first == NULL)
        r = err_set(err, ERR_USAGE, "'%s' does not begin with a certificate in PEM",
                    options->tls_cert_path);
    else if (pkey == NULL)
        r = err_set(err, ERR_USAGE, "'%s' holds no private key in PEM, or one with a password",
                    options->tls_key_path);
    else if (X509_check_private_key(first, pkey) != 1)
        r = err_set(err, ERR_USAGE, "the key '%s' does not belong to the certificate '%s'",
                    options->tls_key_path, options->tls_cert_path);
    ERR_clear_error();
    return r;
}
