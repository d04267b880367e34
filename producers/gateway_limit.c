/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Caps: who has too much waiting, as the sums of queue_delta say it each second, and how a refusal
 * tells so. A refusal comes before anything is produced; what slips through between two readings
 * becomes a row like any other (PROTOCOL 17).
 *
 * Failures: with Postgres away the last reading rules: what was full stays so, what was not is let
 * in.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/loop.h"
#include "base/metrics.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_body.h"

#define READ_GAP_MS 1000
#define READ_TIMEOUT_MS 5000
#define FULL_MAX 10000 /* pools or tenants at a limit that are remembered */
#define RETRY_AFTER_S 2
#define ANSWER_SIZE_MAX 4096

/* One row for each limit that is reached: who, which one, its value, the sum. */
PG_STATEMENT(limit_full_pools,
             "SELECT pool, l.name, l.highest, l.now FROM (SELECT pool, sum(waiting)::bigint AS "
             "waiting, sum(bytes)::bigint AS bytes FROM queue_delta GROUP BY pool) q, LATERAL "
             "(VALUES ('pool_waiting_jobs', $1::bigint, q.waiting), ('pool_payload_bytes', "
             "$2::bigint, q.bytes)) "
             "l (name, highest, now) WHERE l.now >= l.highest ORDER BY 1, 2 LIMIT 10000");
PG_STATEMENT(limit_full_tenants,
             "SELECT q.tenant, l.name, l.highest::bigint, l.now FROM (SELECT m.tenant, "
             "sum(d.waiting)::bigint AS waiting, sum(d.delayed)::bigint AS delayed, "
             "sum(d.bytes)::bigint AS bytes FROM queue_delta d JOIN deployment p ON p.id = "
             "d.deployment JOIN model m ON m.id = p.model_id GROUP BY m.tenant) q JOIN tenant t "
             "ON t.id = q.tenant, LATERAL (VALUES ('waiting_jobs', coalesce(limit_of(t.limits, "
             "'waiting_jobs'), $1), q.waiting), ('delayed_jobs', coalesce(limit_of(t.limits, "
             "'delayed_jobs'), $2), q.delayed), ('payload_bytes', coalesce(limit_of(t.limits, "
             "'payload_bytes'), $3), q.bytes)) l (name, highest, now) "
             "WHERE l.now >= l.highest ORDER BY 1, 2 LIMIT 10000");

/* Somebody who is at a limit. */
struct full {
    char name[CONFIG_NAME_SIZE];
    char limit[REFUSAL_LIMIT_SIZE];
    double highest, now;
};

struct full_list {
    struct full *items; /* by name, of which only the first is looked at */
    size_t count;
};

struct caps {
    struct gateway *gateway;
    struct full_list pools, tenants;
    bool is_reading;
    uint64_t read_ms;
};

int gateway_caps_open(struct gateway *gateway, struct err *err)
{
    (void)err;
    gateway->caps = xcalloc(1, sizeof(*gateway->caps));
    gateway->caps->gateway = gateway;
    return 0;
}

void gateway_caps_close(struct caps **caps_p)
{
    struct caps *caps = TAKE(*caps_p);

    if (caps == NULL)
        return;
    free(caps->pools.items);
    free(caps->tenants.items);
    free(caps);
}

/* ---- reading ---- */

static int compare_full(const void *a, const void *b)
{
    return strcmp(((const struct full *)a)->name, ((const struct full *)b)->name);
}

static void take_full(const struct pg_answer *answer, size_t at, struct full_list *list)
{
    size_t rows = pg_row_count(answer, at);

    list->items = xrealloc(list->items, rows + 1, sizeof(*list->items));
    list->count = rows;
    for (size_t i = 0; i < rows; i++) {
        struct full *item = &list->items[i];

        mem_copy_text(item->name, pg_c(answer, at, i, 0));
        mem_copy_text(item->limit, pg_c(answer, at, i, 1));
        item->highest = (double)pg_i64(answer, at, i, 2);
        item->now = (double)pg_i64(answer, at, i, 3);
    }
    if (rows > 0)
        qsort(list->items, rows, sizeof(*list->items), compare_full);
}

static void on_sums(void *opaque, const struct pg_answer *answer)
{
    struct caps *caps = opaque;

    caps->is_reading = false;
    if (answer->err.code != ERR_OK)
        return;
    take_full(answer, 0, &caps->pools);
    take_full(answer, 1, &caps->tenants);
    public_depths_take(caps->gateway, answer, 2);
}

static int64_t bytes_or_none(uint64_t size)
{
    return size == 0 || size > INT64_MAX ? INT64_MAX : (int64_t)size;
}

static void read_sums(struct caps *caps)
{
    const struct gateway_settings *settings = &caps->gateway->settings;
    struct pg_batch *batch;
    struct err err;

    if (caps->is_reading || !pg_pool_connected(caps->gateway->pg))
        return;
    batch = pg_batch_new();
    pg_add(batch, &limit_full_pools);
    pg_bind_i64(batch, settings->pool_waiting_max);
    pg_bind_i64(batch, bytes_or_none(settings->pool_payload_max_size));
    pg_add(batch, &limit_full_tenants);
    pg_bind_double(batch, (double)settings->tenant_waiting_max);
    pg_bind_double(batch, (double)settings->tenant_delayed_max);
    pg_bind_double(batch, (double)bytes_or_none(settings->tenant_payload_max_size));
    public_depths_ask(batch);
    caps->is_reading = pg_pool_send(caps->gateway->pg, &batch, READ_TIMEOUT_MS, on_sums, caps,
                                    &err) == 0;
    pg_batch_free(&batch);
}

void gateway_caps_tick(struct caps *caps, uint64_t now_ms)
{
    if (now_ms - caps->read_ms < READ_GAP_MS)
        return;
    caps->read_ms = now_ms;
    read_sums(caps);
}

/* ---- refusing ---- */

static bool admits(const struct full_list *list, const char *what, const char *name,
                   struct refusal *ret_refusal)
{
    struct full want;
    const struct full *found;

    if (list->count == 0)
        return true;
    mem_copy_text(want.name, name);
    found = bsearch(&want, list->items, list->count, sizeof(want), compare_full);
    if (found == NULL)
        return true;
    *ret_refusal = (struct refusal){.status = 429,
                                    .limit = found->limit,
                                    .value = found->highest,
                                    .current = found->now,
                                    .retry_after_s = RETRY_AFTER_S};
    (void)snprintf(ret_refusal->text, sizeof(ret_refusal->text),
                   "%s '%s' is at its limit %s: it is %.0f, and there are %.0f", what, name,
                   found->limit, found->highest, found->now);
    return false;
}

bool gateway_caps_admit_tenant(const struct caps *caps, const char *tenant,
                               struct refusal *ret_refusal)
{
    return admits(&caps->tenants, "tenant", tenant, ret_refusal);
}

bool gateway_caps_admit_pool(const struct caps *caps, const char *pool, struct refusal *ret_refusal)
{
    return admits(&caps->pools, "pool", pool, ret_refusal);
}

void call_refuse(struct call **call_p, const struct refusal *refusal)
{
    struct call *call = *call_p;
    struct buf body = BUF_WITH_LIMIT(ANSWER_SIZE_MAX);

    assert(refusal->status == 429 || refusal->status == 503);
    (void)snprintf(call->retry_after, sizeof(call->retry_after), "%u", refusal->retry_after_s);
    buf_append_text(&body, "{\"error\":");
    json_append_string(&body, refusal->text, strlen(refusal->text));
    buf_printf(&body,
               ",\"error_code\":\"%s\",\"limit\":\"%s\",\"limit_value\":%.15g,\"current\":%.15g",
               refusal->status == 429 ? "rate_limited" : "internal_baseten_error", refusal->limit,
               refusal->value, refusal->current);
    if (refusal->estimate_s > 0)
        buf_printf(&body, ",\"estimated_wait_seconds\":%.3f", refusal->estimate_s);
    buf_append_byte(&body, '}');
    metric_add(metrics_series(call->gateway->metrics, GATEWAY_METRIC_gateway_refusals_total,
                              &refusal->limit),
               1);
    call_answer(call_p, refusal->status, &body);
    buf_done(&body);
}
