/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/webhook_store.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

PG_STATEMENT(
    webhook_insert,
    "INSERT INTO delivery (job_id, round, shard, state, next_at, finished_at, tenant, model, url,"
    "                      webhook_id, record, last_error)"
    " SELECT r.job_id, r.round, r.shard,"
    "        CASE WHEN r.canceled THEN 4 WHEN g.url IS NOT NULL THEN 3 ELSE 1 END,"
    "        CASE WHEN r.canceled OR g.url IS NOT NULL THEN NULL"
    "             ELSE now() + $1 * interval '1 millisecond' END,"
    "        CASE WHEN r.canceled OR g.url IS NOT NULL THEN now() END,"
    "        r.tenant, r.model, r.url, r.webhook_id, r.record,"
    "        CASE WHEN g.url IS NOT NULL THEN 'endpoint answered 410 Gone at ' || g.at END"
    "   FROM unnest($2::uuid[], $3::smallint[], $4::smallint[], $5::boolean[], $6::text[],"
    "               $7::text[], $8::text[], $9::text[], $10::bytea[])"
    "        AS r (job_id, round, shard, canceled, tenant, model, url, webhook_id, record)"
    "   LEFT JOIN webhook_gone g ON g.tenant = r.tenant AND g.url = r.url"
    " ON CONFLICT DO NOTHING"
    " RETURNING job_id, round, state");

PG_STATEMENT(
    webhook_claim,
    "UPDATE delivery d SET next_at = now() + $1 * interval '1 millisecond'"
    "  FROM (SELECT job_id, round, endpoint FROM delivery"
    "         WHERE state = 1 AND shard = ANY ($2) AND next_at <= now()"
    "         ORDER BY next_at LIMIT $3 FOR UPDATE SKIP LOCKED) due"
    " WHERE d.job_id = due.job_id AND d.round = due.round AND d.endpoint = due.endpoint"
    " RETURNING d.job_id, d.round, d.shard, d.try_count, d.tenant, d.url, d.webhook_id, d.record");

PG_STATEMENT(
    webhook_tries,
    "INSERT INTO delivery_try (job_id, round, number, http_status, started_at, took_us, address,"
    "                          error, answer)"
    " SELECT * FROM unnest($1::uuid[], $2::smallint[], $3::smallint[], $4::smallint[],"
    "                      $5::timestamptz[], $6::bigint[], $7::text[], $8::text[], $9::text[])"
    " ON CONFLICT DO NOTHING");

PG_STATEMENT(
    webhook_outcomes,
    "UPDATE delivery d SET state = r.state, try_count = r.number, last_http_status = r.status,"
    "       next_at = CASE WHEN r.state = 1 THEN now() + r.delay_ms * interval '1 millisecond' END,"
    "       finished_at = CASE WHEN r.state = 1 THEN NULL ELSE now() END, last_error = r.error"
    "  FROM unnest($1::uuid[], $2::smallint[], $3::smallint[], $4::smallint[], $5::smallint[],"
    "              $6::bigint[], $7::text[])"
    "       AS r (job_id, round, state, number, status, delay_ms, error)"
    " WHERE d.job_id = r.job_id AND d.round = r.round AND d.endpoint = 'job' AND d.state = 1");

PG_STATEMENT(webhook_mark_gone, "INSERT INTO webhook_gone (tenant, url)"
                                " SELECT DISTINCT * FROM unnest($1::text[], $2::text[])"
                                " ON CONFLICT DO NOTHING");

PG_STATEMENT(webhook_secrets, "SELECT id, sealed FROM webhook_secret"
                              " WHERE tenant = $1 AND deleted_at IS NULL"
                              "   AND (retires_at IS NULL OR retires_at > now())"
                              " ORDER BY created_at DESC LIMIT 2");

static struct wire_bytes bytes_of(const struct buf *buf)
{
    return (struct wire_bytes){buf->bytes, buf->size};
}

/* One array parameter: `bind` is done for each delivery, named `d`, at index `i`. */
#define BIND_ARRAY(batch, type, deliveries, count, bind)                                           \
    do {                                                                                           \
        pg_bind_array((batch), (type), (count));                                                   \
        for (size_t i = 0; i < (count); i++) {                                                     \
            const struct webhook_delivery *d = (deliveries)[i];                                    \
            bind;                                                                                  \
        }                                                                                          \
    } while (0)

static int send_batch(struct pg *pg, struct pg_batch **batch_p, pg_done_fn *done, void *opaque,
                      struct err *err)
{
    int r = pg_send(pg, batch_p, WEBHOOK_STORE_TIMEOUT_MS, done, opaque, err);

    if (r < 0)
        pg_batch_free(batch_p);
    return r;
}

int webhook_store_insert(struct pg *pg, struct webhook_delivery *const *deliveries,
                         const bool *canceled, size_t count, uint64_t claim_ms, pg_done_fn *done,
                         void *opaque, struct err *err)
{
    struct pg_batch *b = pg_batch_new();

    pg_add(b, &webhook_insert);
    pg_bind_i64(b, (int64_t)claim_ms);
    BIND_ARRAY(b, PG_ID, deliveries, count, pg_bind_id(b, &d->key.job));
    BIND_ARRAY(b, PG_I16, deliveries, count, pg_bind_i16(b, (int64_t)d->key.round));
    BIND_ARRAY(b, PG_I16, deliveries, count, pg_bind_i16(b, d->shard));
    BIND_ARRAY(b, PG_BOOL, deliveries, count, ((void)d, pg_bind_bool(b, canceled[i])));
    BIND_ARRAY(b, PG_TEXT, deliveries, count, pg_bind_c(b, d->tenant));
    BIND_ARRAY(b, PG_TEXT, deliveries, count, pg_bind_c(b, d->model));
    BIND_ARRAY(b, PG_TEXT, deliveries, count, pg_bind_c(b, d->url));
    BIND_ARRAY(b, PG_TEXT, deliveries, count, pg_bind_c(b, d->webhook_id));
    BIND_ARRAY(b, PG_BYTES, deliveries, count, pg_bind_bytes(b, bytes_of(&d->record)));
    return send_batch(pg, &b, done, opaque, err);
}

int webhook_store_claim(struct pg *pg, const uint32_t *shards, size_t shard_count, size_t limit,
                        uint64_t claim_ms, pg_done_fn *done, void *opaque, struct err *err)
{
    struct pg_batch *b = pg_batch_new();

    pg_add(b, &webhook_claim);
    pg_bind_i64(b, (int64_t)claim_ms);
    pg_bind_array(b, PG_I16, shard_count);
    for (size_t i = 0; i < shard_count; i++)
        pg_bind_i16(b, shards[i]);
    pg_bind_i64(b, (int64_t)limit);
    return send_batch(pg, &b, done, opaque, err);
}

struct webhook_delivery *webhook_store_row(const struct pg_answer *answer, size_t row)
{
    struct webhook_delivery *delivery = xcalloc(1, sizeof(*delivery));
    struct wire_bytes record = pg_bytes(answer, 0, row, 7);

    delivery->key.job = pg_id(answer, 0, row, 0);
    delivery->key.round = pg_u64(answer, 0, row, 1);
    delivery->shard = (uint32_t)pg_u64(answer, 0, row, 2);
    delivery->try_count = (uint32_t)pg_u64(answer, 0, row, 3);
    delivery->tenant = wire_text_dup(pg_text(answer, 0, row, 4));
    delivery->url = wire_text_dup(pg_text(answer, 0, row, 5));
    mem_copy_text(delivery->webhook_id, pg_c(answer, 0, row, 6));
    buf_init(&delivery->record, record.size);
    buf_append(&delivery->record, record.bytes, record.size);
    return delivery;
}

static int64_t state_of(const struct webhook_delivery *delivery)
{
    switch (delivery->outcome) {
    case WEBHOOK_DELIVERED:
        return DELIVERY_SUCCEEDED;
    case WEBHOOK_AGAIN:
        return DELIVERY_PENDING;
    case WEBHOOK_GIVEN_UP:
    case WEBHOOK_GIVEN_UP_GONE:
        break;
    }
    return DELIVERY_FAILED;
}

static const char *text_or_null(const char *text)
{
    return *text != '\0' ? text : NULL;
}

static void add_tries(struct pg_batch *b, struct webhook_delivery *const *deliveries, size_t count)
{
    pg_add(b, &webhook_tries);
    BIND_ARRAY(b, PG_ID, deliveries, count, pg_bind_id(b, &d->key.job));
    BIND_ARRAY(b, PG_I16, deliveries, count, pg_bind_i16(b, (int64_t)d->key.round));
    BIND_ARRAY(b, PG_I16, deliveries, count, pg_bind_i16(b, d->try_count));
    BIND_ARRAY(b, PG_I16, deliveries, count, pg_bind_i16(b, d->http_status));
    BIND_ARRAY(b, PG_TIME, deliveries, count, pg_bind_time(b, d->started_us));
    BIND_ARRAY(b, PG_I64, deliveries, count, pg_bind_i64(b, (int64_t)d->took_us));
    BIND_ARRAY(b, PG_TEXT, deliveries, count, pg_bind_c(b, text_or_null(d->address)));
    BIND_ARRAY(b, PG_TEXT, deliveries, count, pg_bind_c(b, text_or_null(d->error)));
    BIND_ARRAY(b, PG_TEXT, deliveries, count, pg_bind_c(b, text_or_null(d->answer)));
}

static void add_outcomes(struct pg_batch *b, struct webhook_delivery *const *deliveries,
                         size_t count)
{
    pg_add(b, &webhook_outcomes);
    BIND_ARRAY(b, PG_ID, deliveries, count, pg_bind_id(b, &d->key.job));
    BIND_ARRAY(b, PG_I16, deliveries, count, pg_bind_i16(b, (int64_t)d->key.round));
    BIND_ARRAY(b, PG_I16, deliveries, count, pg_bind_i16(b, state_of(d)));
    BIND_ARRAY(b, PG_I16, deliveries, count, pg_bind_i16(b, d->try_count));
    BIND_ARRAY(b, PG_I16, deliveries, count, pg_bind_i16(b, d->http_status));
    BIND_ARRAY(b, PG_I64, deliveries, count, pg_bind_i64(b, (int64_t)d->delay_ms));
    BIND_ARRAY(b, PG_TEXT, deliveries, count, pg_bind_c(b, text_or_null(d->error)));
}

static void add_gone(struct pg_batch *b, struct webhook_delivery *const *deliveries, size_t count)
{
    size_t gone_count = 0;

    for (size_t i = 0; i < count; i++)
        gone_count += deliveries[i]->outcome == WEBHOOK_GIVEN_UP_GONE;
    if (gone_count == 0)
        return;
    pg_add(b, &webhook_mark_gone);
    pg_bind_array(b, PG_TEXT, gone_count);
    for (size_t i = 0; i < count; i++) {
        if (deliveries[i]->outcome == WEBHOOK_GIVEN_UP_GONE)
            pg_bind_c(b, deliveries[i]->tenant);
    }
    pg_bind_array(b, PG_TEXT, gone_count);
    for (size_t i = 0; i < count; i++) {
        if (deliveries[i]->outcome == WEBHOOK_GIVEN_UP_GONE)
            pg_bind_c(b, deliveries[i]->url);
    }
}

int webhook_store_results(struct pg *pg, struct webhook_delivery *const *deliveries, size_t count,
                          pg_done_fn *done, void *opaque, struct err *err)
{
    struct pg_batch *b = pg_batch_new();

    add_tries(b, deliveries, count);
    add_outcomes(b, deliveries, count);
    add_gone(b, deliveries, count);
    return send_batch(pg, &b, done, opaque, err);
}

int webhook_store_secrets(struct pg *pg, const char *tenant, pg_done_fn *done, void *opaque,
                          struct err *err)
{
    struct pg_batch *b = pg_batch_new();

    pg_add(b, &webhook_secrets);
    pg_bind_c(b, tenant);
    return send_batch(pg, &b, done, opaque, err);
}
