/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_reserve.h"

#include <openssl/evp.h>
#include <string.h>

#include "base/assert.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "schema/job_id.h"

/* Two statements in one transaction: the second has a snapshot of its own and sees the row that
 * made the first one wait. */
PG_STATEMENT(reserve_insert,
             "INSERT INTO idempotency AS i "
             "(tenant, key, job_id, fingerprint, deployment_id, expires_at) "
             "VALUES ($1, $2, $3, $4, $5, now() + make_interval(secs => $6)) "
             "ON CONFLICT (tenant, key) DO UPDATE SET job_id = EXCLUDED.job_id, "
             "fingerprint = EXCLUDED.fingerprint, deployment_id = EXCLUDED.deployment_id, "
             "created_at = now(), expires_at = EXCLUDED.expires_at WHERE i.expires_at < now()");
PG_STATEMENT(reserve_look, "SELECT i.job_id, i.fingerprint, i.deployment_id, "
                           "EXISTS (SELECT 1 FROM job j WHERE j.id = i.job_id) "
                           "FROM idempotency i WHERE i.tenant = $1 AND i.key = $2");

enum reserve_verdict reserve_decide(const struct wire_id *ours,
                                    const uint8_t fingerprint[RESERVE_DIGEST_SIZE],
                                    const struct reserve_row *row)
{
    if (job_id_equal(ours, &row->job))
        return RESERVE_NEW;
    if (memcmp(fingerprint, row->fingerprint, RESERVE_DIGEST_SIZE) != 0)
        return RESERVE_MISMATCH;
    return row->in_ledger ? RESERVE_ANSWER : RESERVE_REPEAT;
}

int reserve_key_check(const char *key, struct err *err)
{
    size_t size = strlen(key);

    if (size == 0 || size > RESERVE_KEY_SIZE_MAX)
        return err_set(err, ERR_RANGE, "Idempotency-Key has %zu characters; 1 to %d are allowed",
                       size, RESERVE_KEY_SIZE_MAX);
    for (size_t i = 0; i < size; i++) {
        if (key[i] < 0x20 || key[i] > 0x7e)
            return err_set(err, ERR_RANGE,
                           "Idempotency-Key has the byte 0x%02x at %zu; visible ASCII is allowed",
                           (unsigned char)key[i], i);
    }
    return 0;
}

EVP_MD_CTX *reserve_fingerprint_begin(const char *model, const char *environment,
                                      const char *deployment, const char *form)
{
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    const char *const names[] = {model, environment, environment[0] != '\0' ? "" : deployment};
    int ok = EVP_DigestInit_ex(digest, EVP_sha256(), NULL);

    for (size_t i = 0; i < COUNT_OF(names); i++)
        ok &= EVP_DigestUpdate(digest, names[i], strlen(names[i]) + 1);
    ok &= EVP_DigestUpdate(digest, form, strlen(form));
    assert(ok == 1);
    return digest;
}

void reserve_fingerprint(const char *model, const char *environment, const char *deployment,
                         const char *form, struct wire_bytes body, uint8_t to[RESERVE_DIGEST_SIZE])
{
    EVP_MD_CTX *digest = reserve_fingerprint_begin(model, environment, deployment, form);
    int ok = EVP_DigestUpdate(digest, body.bytes, body.size);

    ok &= EVP_DigestFinal_ex(digest, to, NULL);
    EVP_MD_CTX_free(digest);
    assert(ok == 1);
}

int reserve_send(struct pg_pool *pool, const struct reserve *reserve,
                 void (*done)(void *opaque, const struct pg_answer *answer), void *opaque,
                 struct err *err)
{
    struct pg_batch *batch;
    int r;

    if (!pg_pool_connected(pool))
        return err_set(err, ERR_UNAVAILABLE,
                       "Idempotency-Key cannot be reserved: Postgres is away; requests without "
                       "one are taken");
    batch = pg_batch_new();
    pg_add(batch, &reserve_insert);
    pg_bind_c(batch, reserve->tenant);
    pg_bind_c(batch, reserve->key);
    pg_bind_id(batch, &reserve->job);
    pg_bind_bytes(batch, (struct wire_bytes){reserve->fingerprint, RESERVE_DIGEST_SIZE});
    pg_bind_c(batch, reserve->deployment);
    pg_bind_double(batch, (double)reserve->lifetime_ms / 1000);
    pg_add(batch, &reserve_look);
    pg_bind_c(batch, reserve->tenant);
    pg_bind_c(batch, reserve->key);
    r = pg_pool_send(pool, &batch, GATEWAY_QUERY_TIMEOUT_MS, done, opaque, err);
    pg_batch_free(&batch);
    return r;
}

int reserve_read(const struct pg_answer *answer, struct reserve_row *ret_row,
                 const char **ret_deployment, struct err *err)
{
    struct wire_bytes fingerprint;

    if (pg_row_count(answer, 1) != 1)
        return err_set(err, ERR_UNAVAILABLE, "the reservation of Idempotency-Key is gone");
    fingerprint = pg_bytes(answer, 1, 0, 1);
    if (fingerprint.size != RESERVE_DIGEST_SIZE)
        return err_set(err, ERR_INTERNAL, "a fingerprint has %zu bytes", fingerprint.size);
    ret_row->job = pg_id(answer, 1, 0, 0);
    memcpy(ret_row->fingerprint, fingerprint.bytes, RESERVE_DIGEST_SIZE);
    ret_row->in_ledger = pg_bool(answer, 1, 0, 3);
    *ret_deployment = pg_c(answer, 1, 0, 2);
    return 0;
}
