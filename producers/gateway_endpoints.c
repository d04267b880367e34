/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Webhook endpoints: how they are, and switching them off and on. An endpoint is a URL without its
 * query. One that is disabled gets nothing: deliveries to it are given up, and can be replayed once
 * it is enabled again. Both are written into the audit log, in the same transaction.
 */

#include <jansson.h>
#include <string.h>

#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_delivery_id.h"

#define BODY_SIZE_MAX 65536
#define URL_SIZE_MAX 2048
#define REASON_LENGTH_MAX 200 /* characters */
#define PAGE_MAX 1000
#define PAGE_DEFAULT 100

PG_STATEMENT(endpoints_list,
             "SELECT e.url, e.disabled_at, e.disabled_by, e.disabled_reason, "
             "circuit_name(e.circuit), e.failure_count, e.last_http_status, e.last_error, "
             "e.last_success_at, e.last_failure_at, "
             "CASE WHEN e.circuit <> 1 THEN e.retry_at END, coalesce(e.latency_ms, -1), "
             "e.updated_at FROM webhook_endpoint e WHERE e.tenant = $1 "
             "AND ($2 = '' OR ($2 = 'disabled') = (e.disabled_at IS NOT NULL)) "
             "AND ($3 = '' OR $3 = circuit_name(e.circuit)) AND e.url > $4 "
             "ORDER BY e.url LIMIT $5");
PG_STATEMENT(endpoint_disable,
             "WITH changed AS (INSERT INTO webhook_endpoint AS e "
             "(tenant, url, disabled_at, disabled_by, disabled_reason) VALUES ($1, $2, now(), $3, "
             "$4) ON CONFLICT (tenant, url) DO UPDATE SET disabled_at = now(), disabled_by = $3, "
             "disabled_reason = $4, updated_at = now() WHERE e.disabled_at IS NULL RETURNING url), "
             "logged AS (INSERT INTO audit (tenant, actor, action, target, details) "
             "SELECT $1, $3, 'WEBHOOK_ENDPOINT_DISABLED', url, "
             "jsonb_build_object('reason', $4::text) FROM changed) SELECT count(*) FROM changed");
PG_STATEMENT(endpoint_enable,
             "WITH changed AS (UPDATE webhook_endpoint SET disabled_at = NULL, disabled_by = NULL, "
             "disabled_reason = NULL, circuit = 1, failure_count = 0, updated_at = now() "
             "WHERE tenant = $1 AND url = $2 AND disabled_at IS NOT NULL RETURNING url), "
             "logged AS (INSERT INTO audit (tenant, actor, action, target) "
             "SELECT $1, $3, 'WEBHOOK_ENDPOINT_ENABLED', url FROM changed) "
             "SELECT count(*) FROM changed");

/* ---- list ---- */

static json_t *endpoint_json(const struct pg_answer *answer, size_t row)
{
    int64_t latency_ms = pg_i64(answer, 0, row, 11);

    return json_pack(
        "{s:s, s:s, s:o, s:o, s:o, s:s, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o}", "url",
        pg_c(answer, 0, row, 0), "status", pg_is_null(answer, 0, row, 1) ? "enabled" : "disabled",
        "disabled_at", json_of_time(answer, 0, row, 1), "disabled_by",
        json_of_text(answer, 0, row, 2), "disabled_reason", json_of_text(answer, 0, row, 3),
        "circuit", pg_c(answer, 0, row, 4), "failures", (json_int_t)pg_i64(answer, 0, row, 5),
        "last_http_status", (json_int_t)pg_i64(answer, 0, row, 6), "last_error",
        json_of_text(answer, 0, row, 7), "last_success_at", json_of_time(answer, 0, row, 8),
        "last_failure_at", json_of_time(answer, 0, row, 9), "retry_at",
        json_of_time(answer, 0, row, 10), "latency_ms",
        latency_ms < 0 ? json_null() : json_integer(latency_ms), "updated_at",
        json_of_time(answer, 0, row, 12));
}

static void on_endpoints(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    int64_t limit = PAGE_DEFAULT;
    json_t *list, *body;
    size_t count;
    struct err err;

    if (!call_take_answer(&call, answer))
        return;
    if (call_query_number(call, "limit", PAGE_DEFAULT, 1, PAGE_MAX, &limit, &err) < 0)
        limit = PAGE_DEFAULT; /* it was checked before the query */
    count = pg_row_count(answer, 0);
    list = json_array();
    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(list, endpoint_json(answer, i));
    body = json_pack("{s:o, s:o}", "endpoints", list, "next_cursor",
                     count == (size_t)limit ? json_of_text(answer, 0, count - 1, 0) : json_null());
    call_answer_json(&call, 200, &body);
}

/* A query field that is one of these words, or absent: "". */
static int read_word(const struct call *call, const char *name, const char *const words[],
                     size_t word_count, const char *listed, const char **ret_word, struct err *err)
{
    const char *text = http_target_query(&call->target, name);

    *ret_word = "";
    if (text == NULL)
        return 0;
    for (size_t i = 0; i < word_count; i++) {
        if (strcmp(words[i], text) == 0) {
            *ret_word = words[i];
            return 0;
        }
    }
    return err_set(err, ERR_RANGE, "%s is '%.40s'; it must be %s", name, text, listed);
}

void endpoints_begin(struct call *call)
{
    static const char *const statuses[] = {"enabled", "disabled"};
    static const char *const circuits[] = {"closed", "open", "half-open"};
    const char *cursor = http_target_query(&call->target, "cursor");
    const char *status = "", *circuit = "";
    char after[URL_SIZE_MAX + 1] = "";
    struct pg_batch *batch;
    int64_t limit;
    struct err err;
    int r = call_query_number(call, "limit", PAGE_DEFAULT, 1, PAGE_MAX, &limit, &err);

    if (r == 0)
        r = read_word(call, "status", statuses, COUNT_OF(statuses), "enabled or disabled", &status,
                      &err);
    if (r == 0)
        r = read_word(call, "circuit", circuits, COUNT_OF(circuits), "closed, open or half-open",
                      &circuit, &err);
    if (r == 0 && cursor != NULL && endpoint_url_read(cursor, after, sizeof(after), &err) < 0)
        r = err_set(&err, ERR_MALFORMED, "cursor is '%.80s'; it must be one from next_cursor",
                    cursor);
    if (r < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &endpoints_list);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, status);
    pg_bind_c(batch, circuit);
    pg_bind_c(batch, after);
    pg_bind_i64(batch, limit);
    call_query(call, &batch, on_endpoints);
}

/* ---- off and on ---- */

struct change {
    struct call *call;
    char url[URL_SIZE_MAX + 1];
    const char *status;
};

static void on_changed(void *opaque, const struct pg_answer *answer)
{
    OWNED(mem_free) struct change *change = opaque;
    json_t *body;

    if (!call_take_answer(&change->call, answer))
        return;
    body = json_pack("{s:s, s:s, s:b}", "url", change->url, "status", change->status, "changed",
                     pg_i64(answer, 0, 0, 0) > 0);
    call_answer_json(&change->call, 200, &body);
}

static int read_change(struct call *call, json_t *body, struct change *change,
                       const char **ret_reason, struct err *err)
{
    const json_t *url = json_object_get(body, "url");
    const json_t *reason = json_object_get(body, "reason");

    change->call = call;
    if (!json_is_string(url))
        return err_set(err, ERR_MALFORMED, "url must be a string: the endpoint's address");
    if (reason != NULL && (!json_is_string(reason) ||
                           strlen(json_string_value(reason)) != json_string_length(reason) ||
                           count_characters(json_string_value(reason)) > REASON_LENGTH_MAX))
        return err_set(err, ERR_RANGE, "reason must be a string of at most %d characters",
                       REASON_LENGTH_MAX);
    *ret_reason = json_string_value(reason);
    if (*ret_reason == NULL || **ret_reason == '\0')
        *ret_reason = "by hand";
    if (strlen(json_string_value(url)) != json_string_length(url))
        return err_set(err, ERR_RANGE, "url has a character of value 0");
    return endpoint_url_read(json_string_value(url), change->url, sizeof(change->url), err);
}

static void change_endpoint(struct call *call, bool disable)
{
    OWNED(mem_free) struct change *change = xcalloc(1, sizeof(*change));
    struct pg_batch *batch = pg_batch_new();
    const char *reason = NULL;
    json_t *body = NULL;
    struct err err;
    int r = call_read_json(call, &body, &err);

    if (r == 0)
        r = read_change(call, body, change, &reason, &err);
    if (r == 0) {
        change->status = disable ? "disabled" : "enabled";
        pg_add(batch, disable ? &endpoint_disable : &endpoint_enable);
        pg_bind_c(batch, call->tenant);
        pg_bind_c(batch, change->url);
        pg_bind_c(batch, call->key_prefix);
        if (disable)
            pg_bind_c(batch, reason);
        r = pg_pool_send(call->gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_changed, change,
                         &err);
    }
    if (r < 0)
        call_fail(&call, &err);
    else
        (void)TAKE(change);
    pg_batch_free(&batch);
    json_decref(body);
}

static void disable_endpoint(struct call *call)
{
    change_endpoint(call, true);
}

static void enable_endpoint(struct call *call)
{
    change_endpoint(call, false);
}

void endpoint_disable_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, disable_endpoint);
}

void endpoint_enable_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, enable_endpoint);
}
