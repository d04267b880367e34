/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/webhook_store.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

PG_STATEMENT(
    webhook_insert,
    "INSERT INTO delivery (job_id, round, shard, state, next_at, finished_at, tenant, model, url,"
    "                      webhook_id, record, last_error)"
    " SELECT r.job_id, r.round, r.shard,"
    "        CASE WHEN r.canceled THEN 4 WHEN e.url IS NOT NULL THEN 3 ELSE 1 END,"
    "        CASE WHEN r.canceled OR e.url IS NOT NULL THEN NULL"
    "             ELSE now() + $1 * interval '1 millisecond' END,"
    "        CASE WHEN r.canceled OR e.url IS NOT NULL THEN now() END,"
    "        r.tenant, r.model, r.url, r.webhook_id, r.record,"
    "        CASE WHEN e.url IS NOT NULL THEN 'endpoint is disabled: ' || e.disabled_reason END"
    "   FROM unnest($2::uuid[], $3::smallint[], $4::smallint[], $5::boolean[], $6::text[],"
    "               $7::text[], $8::text[], $9::text[], $10::bytea[], $11::text[])"
    "        AS r (job_id, round, shard, canceled, tenant, model, url, webhook_id, record,"
    "              endpoint_url)"
    "   LEFT JOIN webhook_endpoint e ON e.tenant = r.tenant AND e.url = r.endpoint_url"
    "        AND e.disabled_at IS NOT NULL"
    " ON CONFLICT DO NOTHING"
    " RETURNING job_id, round, state");

PG_STATEMENT(
    webhook_claim,
    "WITH claimed AS ("
    "UPDATE delivery d SET next_at = now() + $1 * interval '1 millisecond'"
    "  FROM (SELECT job_id, round, endpoint FROM delivery"
    "         WHERE state = 1 AND shard = ANY ($2) AND next_at <= now()"
    "         ORDER BY next_at LIMIT $3 FOR UPDATE SKIP LOCKED) due"
    " WHERE d.job_id = due.job_id AND d.round = due.round AND d.endpoint = due.endpoint"
    " RETURNING d.job_id, d.round, d.shard, d.try_count, d.tenant, d.url, d.webhook_id, d.record,"
    "           d.try_base, d.created_at, d.replayed_at)"
    "SELECT c.job_id, c.round, c.shard, c.try_count, c.tenant, c.url, c.webhook_id, c.record,"
    "       c.try_base,"
    "       (extract(epoch FROM now() - coalesce(c.replayed_at, c.created_at)) * 1000)::bigint,"
    "       e.disabled_reason"
    "  FROM claimed c"
    "  LEFT JOIN webhook_endpoint e ON e.tenant = c.tenant"
    "       AND e.url = webhook_endpoint_url(c.url) AND e.disabled_at IS NOT NULL");

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

PG_STATEMENT(webhook_put_off,
             "UPDATE delivery d SET next_at = now() + r.delay_ms * interval '1 millisecond'"
             "  FROM unnest($1::uuid[], $2::smallint[], $3::bigint[])"
             "       AS r (job_id, round, delay_ms)"
             " WHERE d.job_id = r.job_id AND d.round = r.round AND d.endpoint = 'job'"
             "   AND d.state = 1");

PG_STATEMENT(
    webhook_disable,
    "WITH disabled AS ("
    "INSERT INTO webhook_endpoint AS e (tenant, url, disabled_at, disabled_by, disabled_reason)"
    " SELECT DISTINCT r.tenant, r.url, now(), 'receiver', 'it answered 410 Gone'"
    "   FROM unnest($1::text[], $2::text[]) AS r (tenant, url) ORDER BY 1, 2"
    " ON CONFLICT (tenant, url) DO UPDATE SET disabled_at = excluded.disabled_at,"
    "    disabled_by = excluded.disabled_by, disabled_reason = excluded.disabled_reason"
    "  WHERE e.disabled_at IS NULL"
    " RETURNING tenant, url)"
    "INSERT INTO audit (tenant, actor, action, target)"
    " SELECT tenant, 'receiver', 'WEBHOOK_ENDPOINT_DISABLED', url FROM disabled");

PG_STATEMENT(
    webhook_health,
    "INSERT INTO webhook_endpoint AS e (tenant, url, circuit, failure_count, last_http_status,"
    "    last_error, last_success_at, last_failure_at, retry_at, latency_ms)"
    " SELECT r.tenant, r.url, r.circuit, r.failures, r.status, r.error, r.success_at, r.failure_at,"
    "        CASE WHEN r.circuit <> 1 THEN now() + r.wait_ms * interval '1 millisecond' END,"
    "        r.latency_ms"
    "   FROM unnest($1::text[], $2::text[], $3::smallint[], $4::integer[], $5::smallint[],"
    "               $6::text[], $7::timestamptz[], $8::timestamptz[], $9::bigint[], $10::integer[])"
    "        AS r (tenant, url, circuit, failures, status, error, success_at, failure_at, wait_ms,"
    "              latency_ms)"
    "  ORDER BY 1, 2" /* two senders lock the same rows in the same order */
    " ON CONFLICT (tenant, url) DO UPDATE SET circuit = excluded.circuit,"
    "    failure_count = excluded.failure_count, last_http_status = excluded.last_http_status,"
    "    last_error = excluded.last_error,"
    "    last_success_at = coalesce(excluded.last_success_at, e.last_success_at),"
    "    last_failure_at = coalesce(excluded.last_failure_at, e.last_failure_at),"
    "    retry_at = excluded.retry_at, latency_ms = excluded.latency_ms, updated_at = now()");

PG_STATEMENT(webhook_sweep, "DELETE FROM webhook_endpoint WHERE (tenant, url) IN"
                            " (SELECT tenant, url FROM webhook_endpoint WHERE disabled_at IS NULL"
                            "     AND updated_at < now() - interval '4 days' LIMIT 10000)");

PG_STATEMENT(webhook_secrets, "SELECT id, sealed, kind FROM webhook_secret"
                              " WHERE tenant = $1 AND deleted_at IS NULL"
                              "   AND (retires_at IS NULL OR retires_at > now())"
                              " ORDER BY created_at DESC LIMIT 4");

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

static void bind_endpoint(struct pg_batch *b, const struct webhook_delivery *delivery)
{
    pg_bind_text(b, (struct wire_text){delivery->url, webhook_url_endpoint_size(delivery->url)});
}

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
    BIND_ARRAY(b, PG_TEXT, deliveries, count, bind_endpoint(b, d));
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
    delivery->try_base = (uint32_t)pg_u64(answer, 0, row, 8);
    delivery->age_ms = pg_i64(answer, 0, row, 9) > 0 ? pg_u64(answer, 0, row, 9) : 0;
    if (!pg_is_null(answer, 0, row, 10))
        delivery->disabled = xstrdup(pg_c(answer, 0, row, 10));
    return delivery;
}

static int64_t state_of(const struct webhook_delivery *delivery)
{
    switch (delivery->outcome) {
    case WEBHOOK_DELIVERED:
        return DELIVERY_SUCCEEDED;
    case WEBHOOK_AGAIN:
    case WEBHOOK_PUT_OFF:
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

static void add_put_off(struct pg_batch *b, struct webhook_delivery *const *deliveries,
                        size_t count)
{
    pg_add(b, &webhook_put_off);
    BIND_ARRAY(b, PG_ID, deliveries, count, pg_bind_id(b, &d->key.job));
    BIND_ARRAY(b, PG_I16, deliveries, count, pg_bind_i16(b, (int64_t)d->key.round));
    BIND_ARRAY(b, PG_I64, deliveries, count, pg_bind_i64(b, (int64_t)d->delay_ms));
}

static void add_disable(struct pg_batch *b, struct webhook_delivery *const *deliveries,
                        size_t count)
{
    pg_add(b, &webhook_disable);
    BIND_ARRAY(b, PG_TEXT, deliveries, count, pg_bind_c(b, d->tenant));
    BIND_ARRAY(b, PG_TEXT, deliveries, count, bind_endpoint(b, d));
}

/* What happened to each: which rows it means. */
struct sorted {
    struct webhook_delivery *tried[WEBHOOK_RESULTS_MAX], *ended[WEBHOOK_RESULTS_MAX];
    struct webhook_delivery *put_off[WEBHOOK_RESULTS_MAX], *gone[WEBHOOK_RESULTS_MAX];
    size_t tried_count, ended_count, put_off_count, gone_count;
};

static void sort_out(struct webhook_delivery *const *deliveries, size_t count,
                     struct sorted *sorted)
{
    *sorted = (struct sorted){.tried_count = 0};
    for (size_t i = 0; i < count; i++) {
        if (deliveries[i]->outcome == WEBHOOK_PUT_OFF)
            sorted->put_off[sorted->put_off_count++] = deliveries[i];
        else
            sorted->ended[sorted->ended_count++] = deliveries[i];
        if (deliveries[i]->outcome == WEBHOOK_GIVEN_UP_GONE)
            sorted->gone[sorted->gone_count++] = deliveries[i];
        if (deliveries[i]->tried)
            sorted->tried[sorted->tried_count++] = deliveries[i];
    }
}

int webhook_store_results(struct pg *pg, struct webhook_delivery *const *deliveries, size_t count,
                          pg_done_fn *done, void *opaque, struct err *err)
{
    struct pg_batch *b = pg_batch_new();
    struct sorted sorted;

    assert(count <= WEBHOOK_RESULTS_MAX);
    sort_out(deliveries, count, &sorted);
    if (sorted.tried_count > 0)
        add_tries(b, sorted.tried, sorted.tried_count);
    if (sorted.ended_count > 0)
        add_outcomes(b, sorted.ended, sorted.ended_count);
    if (sorted.put_off_count > 0)
        add_put_off(b, sorted.put_off, sorted.put_off_count);
    if (sorted.gone_count > 0)
        add_disable(b, sorted.gone, sorted.gone_count);
    return send_batch(pg, &b, done, opaque, err);
}

/* One array parameter: `bind` is done for each endpoint, named `e`. */
#define BIND_ENDPOINTS(batch, type, bind)                                                          \
    do {                                                                                           \
        pg_bind_array((batch), (type), count);                                                     \
        for (size_t i = 0; i < count; i++) {                                                       \
            const struct webhook_endpoint *e = endpoints[i];                                       \
            bind;                                                                                  \
        }                                                                                          \
    } while (0)

static int64_t failures_of(const struct webhook_endpoint *endpoint)
{
    return endpoint->valve.failure_count < INT32_MAX ? endpoint->valve.failure_count : INT32_MAX;
}

static int64_t wait_of(const struct webhook_endpoint *endpoint, uint64_t now_ms)
{
    uint64_t until_ms = webhook_endpoint_until_ms(endpoint);

    return until_ms > now_ms ? (int64_t)(until_ms - now_ms) : 0;
}

int webhook_store_health(struct pg *pg, struct webhook_endpoint *const *endpoints, size_t count,
                         uint64_t now_ms, pg_done_fn *done, void *opaque, struct err *err)
{
    struct pg_batch *b = pg_batch_new();

    pg_add(b, &webhook_health);
    BIND_ENDPOINTS(b, PG_TEXT, pg_bind_c(b, e->tenant));
    BIND_ENDPOINTS(b, PG_TEXT, pg_bind_c(b, e->url));
    BIND_ENDPOINTS(b, PG_I16, pg_bind_i16(b, webhook_endpoint_circuit(e)));
    BIND_ENDPOINTS(b, PG_I32, pg_bind_i32(b, failures_of(e)));
    BIND_ENDPOINTS(b, PG_I16, pg_bind_i16(b, e->last_status));
    BIND_ENDPOINTS(b, PG_TEXT, pg_bind_c(b, text_or_null(e->last_error)));
    BIND_ENDPOINTS(b, PG_TIME, pg_bind_time(b, e->success_us));
    BIND_ENDPOINTS(b, PG_TIME, pg_bind_time(b, e->failure_us));
    BIND_ENDPOINTS(b, PG_I64, pg_bind_i64(b, wait_of(e, now_ms)));
    BIND_ENDPOINTS(b, PG_I32, pg_bind_i32(b, (int64_t)e->latency_ms));
    return send_batch(pg, &b, done, opaque, err);
}

int webhook_store_sweep(struct pg *pg, pg_done_fn *done, void *opaque, struct err *err)
{
    struct pg_batch *b = pg_batch_new();

    pg_add(b, &webhook_sweep);
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
