/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Webhook deliveries: list, show with every try, send again.
 *
 * A replay gives a delivery its whole schedule anew; the sender finds the row when it next looks,
 * at most a second later. Its id stays the same: a receiver that keeps ids drops what it has. One
 * that was canceled, or whose endpoint is disabled, is not sent again.
 *
 * A delivery is named by its webhook-id, msg_<job>_<round>, or by its job: then the newest round.
 * The cursor of a page is the id of its last delivery.
 */

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_delivery_id.h"
#include "producers/gateway_time.h"
#include "producers/gateway_view.h"

#define BODY_SIZE_MAX 65536
#define PAGE_MAX 1000
#define PAGE_DEFAULT 50
#define REPLAY_MAX 10000
#define REPLAY_DEFAULT 1000
#define URL_SIZE_MAX 2048
#define DAY_MS 86400000ull
#define QUEUE_DAYS_MAX 4 /* a job is this much older than its delivery at most */

/* A state stands in the text where an index holds only that state: statements are planned once. */
#define DELIVERY_FILTER(state)                                                                     \
    " d.tenant = $1 AND " state " AND ($2::text IS NULL OR d.model = $2) "                         \
    "AND ($3::text IS NULL OR webhook_endpoint_url(d.url) = $3) "                                  \
    "AND ($4::uuid IS NULL OR d.job_id >= $4) "                                                    \
    "AND ($5::timestamptz IS NULL OR d.created_at >= $5) "
#define DELIVERY_COLUMNS                                                                           \
    "d.job_id, d.round, d.webhook_id, d.model, d.url, webhook_endpoint_url(d.url), d.state, "      \
    "d.try_count, d.last_http_status, d.last_error, d.next_at, d.created_at, d.finished_at, "      \
    "d.replayed_at "
#define DELIVERY_LIST(state)                                                                       \
    "SELECT " DELIVERY_COLUMNS "FROM delivery d WHERE" DELIVERY_FILTER(                            \
        state) "AND ($6::uuid IS NULL OR (d.job_id, d.round) < ($6, $7)) "                         \
               "ORDER BY d.job_id DESC, d.round DESC LIMIT $8"

PG_STATEMENT(deliveries_list, DELIVERY_LIST("($9 = 0 OR d.state = $9)"));
PG_STATEMENT(deliveries_list_failed, DELIVERY_LIST("d.state = 3 AND $9 = 3"));
PG_STATEMENT(delivery_show, "SELECT " DELIVERY_COLUMNS "FROM delivery d WHERE d.tenant = $1 "
                            "AND d.job_id = $2 AND ($3 = 0 OR d.round = $3) "
                            "ORDER BY d.round DESC LIMIT 1");
PG_STATEMENT(
    delivery_tries,
    "SELECT t.number, t.started_at, t.took_us, t.http_status, t.address, t.error, t.answer "
    "FROM delivery_try t JOIN delivery d ON d.job_id = t.job_id AND d.round = t.round "
    "AND d.endpoint = t.endpoint WHERE d.tenant = $1 AND t.job_id = $2 AND t.round = "
    "CASE WHEN $3 = 0 THEN (SELECT max(n.round) FROM delivery n WHERE n.job_id = $2) "
    "ELSE $3 END ORDER BY t.number DESC LIMIT 1000");

/* Not what is canceled; not where the endpoint is disabled: it would be given up at once. */
#define DELIVERY_CAN_GO                                                                            \
    " AND d.state IN (1, 2, 3) AND d.try_count < 32000 AND NOT EXISTS (SELECT FROM "               \
    "webhook_endpoint e WHERE e.tenant = d.tenant AND e.url = webhook_endpoint_url(d.url) "        \
    "AND e.disabled_at IS NOT NULL) "
#define DELIVERY_SEND                                                                              \
    "UPDATE delivery d SET state = 1, next_at = now(), finished_at = NULL, "                       \
    "try_base = d.try_count, replayed_at = now() "
PG_STATEMENT(delivery_why_not,
             "SELECT d.state, e.disabled_reason, d.webhook_id FROM delivery d "
             "LEFT JOIN webhook_endpoint e ON e.tenant = d.tenant "
             "AND e.url = webhook_endpoint_url(d.url) AND e.disabled_at IS NOT NULL "
             "WHERE d.tenant = $1 AND d.job_id = $2 AND ($3 = 0 OR d.round = $3) "
             "ORDER BY d.round DESC LIMIT 1");
PG_STATEMENT(delivery_send,
             "WITH sent AS (" DELIVERY_SEND "WHERE d.tenant = $1 AND d.job_id = $2 AND d.round = "
             "CASE WHEN $3 = 0 THEN (SELECT max(n.round) FROM delivery n WHERE n.job_id = $2) "
             "ELSE $3 END" DELIVERY_CAN_GO "RETURNING d.webhook_id), "
             "logged AS (INSERT INTO audit (tenant, actor, action, target) "
             "SELECT $1, $4, 'WEBHOOK_DELIVERY_REPLAYED', webhook_id FROM sent) "
             "SELECT webhook_id FROM sent");

#define DELIVERY_CHOOSE(state)                                                                     \
    "SELECT d.job_id, d.round, d.endpoint FROM delivery d WHERE" DELIVERY_FILTER(state)            \
        DELIVERY_CAN_GO "ORDER BY d.job_id LIMIT $6"
#define DELIVERY_COUNT(state) "SELECT count(*) FROM (" DELIVERY_CHOOSE(state) ") c"
#define DELIVERY_SEND_CHOSEN(state)                                                                \
    "WITH chosen AS (" DELIVERY_CHOOSE(                                                            \
        state) " FOR UPDATE OF d), "                                                               \
               "sent AS (" DELIVERY_SEND                                                           \
               "FROM chosen c WHERE d.job_id = c.job_id AND d.round = c.round "                    \
               "AND d.endpoint = c.endpoint RETURNING 1), "                                        \
               "counted AS (SELECT count(*) AS count FROM sent), "                                 \
               "logged AS (INSERT INTO audit (tenant, actor, action, target, details) "            \
               "SELECT $1, $8, 'WEBHOOK_DELIVERIES_REPLAYED', coalesce($3, '*'), "                 \
               "jsonb_build_object('count', count, 'model', $2::text, 'since', $5::timestamptz) "  \
               "FROM counted WHERE count > 0) SELECT count FROM counted"
PG_STATEMENT(deliveries_count, DELIVERY_COUNT("d.state = $7"));
PG_STATEMENT(deliveries_count_failed, DELIVERY_COUNT("d.state = 3 AND $7 = 3"));
PG_STATEMENT(deliveries_send, DELIVERY_SEND_CHOSEN("d.state = $7"));
PG_STATEMENT(deliveries_send_failed, DELIVERY_SEND_CHOSEN("d.state = 3 AND $7 = 3"));

static const char *const state_names[] = {
    [VIEW_DELIVERY_PENDING] = "PENDING",
    [VIEW_DELIVERY_SUCCEEDED] = "SUCCEEDED",
    [VIEW_DELIVERY_FAILED] = "FAILED",
    [VIEW_DELIVERY_CANCELED] = "CANCELED",
};

/* ---- filters, the same for lists and replays ---- */

struct filter {
    enum view_delivery state; /* NONE: any */
    const char *model, *since;
    char endpoint[URL_SIZE_MAX + 1]; /* "": any */
    uint64_t since_us;
    struct wire_id from;
};

static int read_state(const char *text, enum view_delivery most, enum view_delivery *ret_state,
                      struct err *err)
{
    for (enum view_delivery state = VIEW_DELIVERY_PENDING; state <= most; state++) {
        if (strcmp(state_names[state], text) == 0) {
            *ret_state = state;
            return 0;
        }
    }
    return err_set(err, ERR_RANGE, "status is '%.40s'; it must be PENDING, SUCCEEDED%s", text,
                   most == VIEW_DELIVERY_CANCELED ? ", FAILED or CANCELED" : " or FAILED");
}

static int filter_check(struct filter *filter, struct err *err)
{
    static const uint8_t lowest[JOB_ID_RANDOM_SIZE] = {0};
    uint64_t from_ms;
    int r = 0;

    if (filter->model != NULL)
        r = name_check("model", filter->model, err);
    if (r == 0 && filter->since != NULL)
        r = gateway_time_parse(filter->since, &filter->since_us, err);
    if (r < 0 || filter->since_us == 0)
        return r;
    from_ms = filter->since_us / 1000;
    from_ms = from_ms > QUEUE_DAYS_MAX * DAY_MS ? from_ms - QUEUE_DAYS_MAX * DAY_MS : 0;
    filter->from = job_id_make(0, from_ms, lowest);
    return 0;
}

static void bind_filter(struct pg_batch *batch, const struct call *call,
                        const struct filter *filter)
{
    const struct config *config = gateway_watch_config(call->gateway->watch);
    const struct config_model *model = filter->model == NULL || config == NULL
                                           ? NULL
                                           : gateway_config_find_model(config, call->tenant,
                                                                       filter->model);

    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, model != NULL ? model->id : filter->model);
    pg_bind_c(batch, filter->endpoint[0] != '\0' ? filter->endpoint : NULL);
    pg_bind_id(batch, filter->since_us > 0 ? &filter->from : NULL);
    pg_bind_time(batch, filter->since_us);
}

/* ---- list ---- */

static json_t *delivery_json(const struct pg_answer *answer, size_t row)
{
    struct wire_id job = pg_id(answer, 0, row, 0);
    char id[JOB_ID_TEXT_SIZE];

    job_id_format(&job, id);
    return json_pack(
        "{s:s, s:s, s:I, s:s, s:s, s:s, s:s, s:I, s:I, s:o, s:o, s:o, s:o, s:o}", "id",
        pg_c(answer, 0, row, 2), "request_id", id, "round", (json_int_t)pg_i64(answer, 0, row, 1),
        "model_id", pg_c(answer, 0, row, 3), "url", pg_c(answer, 0, row, 4), "endpoint",
        pg_c(answer, 0, row, 5), "status", state_names[pg_i64(answer, 0, row, 6)], "try_count",
        (json_int_t)pg_i64(answer, 0, row, 7), "last_http_status",
        (json_int_t)pg_i64(answer, 0, row, 8), "last_error", json_of_text(answer, 0, row, 9),
        "next_try_at", json_of_time(answer, 0, row, 10), "created_at",
        json_of_time(answer, 0, row, 11), "finished_at", json_of_time(answer, 0, row, 12),
        "replayed_at", json_of_time(answer, 0, row, 13));
}

static void on_deliveries(void *opaque, const struct pg_answer *answer)
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
        (void)json_array_append_new(list, delivery_json(answer, i));
    body = json_pack("{s:o, s:o}", "deliveries", list, "next_cursor",
                     count == (size_t)limit ? json_of_text(answer, 0, count - 1, 2) : json_null());
    call_answer_json(&call, 200, &body);
}

static int list_read(const struct call *call, struct filter *filter, struct wire_id *before,
                     uint64_t *before_round, int64_t *limit, struct err *err)
{
    const struct http_target *target = &call->target;
    const char *status = http_target_query(target, "status");
    const char *endpoint = http_target_query(target, "endpoint");
    const char *cursor = http_target_query(target, "cursor");
    int r = call_query_number(call, "limit", PAGE_DEFAULT, 1, PAGE_MAX, limit, err);

    filter->model = http_target_query(target, "model");
    filter->since = http_target_query(target, "since");
    if (r == 0 && status != NULL)
        r = read_state(status, VIEW_DELIVERY_CANCELED, &filter->state, err);
    if (r == 0 && endpoint != NULL)
        r = endpoint_url_read(endpoint, filter->endpoint, sizeof(filter->endpoint), err);
    if (r == 0)
        r = filter_check(filter, err);
    if (r == 0 && cursor != NULL && delivery_id_parse(cursor, before, before_round, err) < 0)
        r = err_set(err, ERR_MALFORMED, "cursor is '%.80s'; it must be one from next_cursor",
                    cursor);
    return r;
}

void deliveries_begin(struct call *call)
{
    struct filter filter = {.state = VIEW_DELIVERY_NONE};
    struct pg_batch *batch;
    struct wire_id before;
    uint64_t before_round = 0;
    bool has_cursor = http_target_query(&call->target, "cursor") != NULL;
    int64_t limit;
    struct err err;

    if (list_read(call, &filter, &before, &before_round, &limit, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch,
           filter.state == VIEW_DELIVERY_FAILED ? &deliveries_list_failed : &deliveries_list);
    bind_filter(batch, call, &filter);
    pg_bind_id(batch, has_cursor ? &before : NULL);
    pg_bind_i16(batch, (int64_t)before_round);
    pg_bind_i64(batch, limit);
    pg_bind_i16(batch, (int64_t)filter.state);
    call_query(call, &batch, on_deliveries);
}

/* ---- one ---- */

static json_t *tries_json(const struct pg_answer *answer)
{
    json_t *list = json_array();

    for (size_t i = pg_row_count(answer, 1); i > 0; i--) { /* oldest first */
        size_t row = i - 1;

        (void)json_array_append_new(list,
                                    json_pack("{s:I, s:o, s:f, s:I, s:o, s:o, s:o}", "number",
                                              (json_int_t)pg_i64(answer, 1, row, 0), "started_at",
                                              json_of_time(answer, 1, row, 1), "seconds",
                                              (double)pg_i64(answer, 1, row, 2) / 1e6,
                                              "http_status", (json_int_t)pg_i64(answer, 1, row, 3),
                                              "address", json_of_text(answer, 1, row, 4), "error",
                                              json_of_text(answer, 1, row, 5), "answer",
                                              json_of_text(answer, 1, row, 6)));
    }
    return list;
}

static void on_delivery(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "client_error", "there is no such delivery");
        return;
    }
    body = delivery_json(answer, 0);
    (void)json_object_set_new(body, "tries", tries_json(answer));
    call_answer_json(&call, 200, &body);
}

static void bind_one(struct pg_batch *batch, const struct call *call, const struct wire_id *job,
                     uint64_t round)
{
    pg_bind_c(batch, call->tenant);
    pg_bind_id(batch, job);
    pg_bind_i16(batch, (int64_t)round);
}

void delivery_begin(struct call *call)
{
    struct pg_batch *batch;
    struct wire_id job;
    uint64_t round;
    struct err err;

    if (delivery_id_parse(call->match.param, &job, &round, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &delivery_show);
    bind_one(batch, call, &job, round);
    pg_add(batch, &delivery_tries);
    bind_one(batch, call, &job, round);
    call_query(call, &batch, on_delivery);
}

/* Says why nothing was sent. */
static void answer_why_not(struct call **call_p, const struct pg_answer *answer)
{
    struct err err;

    if (pg_row_count(answer, 0) == 0)
        (void)err_set(&err, ERR_NOT_FOUND, "there is no such delivery");
    else if (!pg_is_null(answer, 0, 0, 1))
        (void)err_set(&err, ERR_CONFLICT, "its endpoint is disabled (%s): enable it first",
                      pg_c(answer, 0, 0, 1));
    else if (pg_i64(answer, 0, 0, 0) == VIEW_DELIVERY_CANCELED)
        (void)err_set(&err, ERR_CONFLICT, "its job was canceled: there is nothing to send");
    else
        (void)err_set(&err, ERR_CONFLICT, "it was tried too often to be counted on");
    call_fail(call_p, &err);
}

static void on_replayed_one(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 1) == 0) {
        answer_why_not(&call, answer);
        return;
    }
    body = json_pack("{s:s, s:s}", "id", pg_c(answer, 1, 0, 0), "status", "PENDING");
    call_answer_json(&call, 200, &body);
}

void delivery_replay_begin(struct call *call)
{
    struct pg_batch *batch;
    struct wire_id job;
    uint64_t round;
    struct err err;

    if (delivery_id_parse(call->match.param, &job, &round, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &delivery_why_not);
    bind_one(batch, call, &job, round);
    pg_add(batch, &delivery_send);
    bind_one(batch, call, &job, round);
    pg_bind_c(batch, call->key_prefix);
    call_query(call, &batch, on_replayed_one);
}

/* ---- many ---- */

struct replay {
    struct call *call;
    int64_t limit;
    bool dry_run;
};

static void on_replayed(void *opaque, const struct pg_answer *answer)
{
    OWNED(mem_free) struct replay *replay = opaque;
    json_t *body;
    int64_t count;

    if (!call_take_answer(&replay->call, answer))
        return;
    count = pg_i64(answer, 0, 0, 0);
    body = json_pack("{s:I, s:I, s:b, s:b}", "matched", (json_int_t)count, "replayed",
                     (json_int_t)(replay->dry_run ? 0 : count), "dry_run", replay->dry_run, "more",
                     count == replay->limit);
    call_answer_json(&replay->call, 200, &body);
}

static int read_text(const json_t *value, const char *name, const char **ret_text, struct err *err)
{
    if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value))
        return err_set(err, ERR_MALFORMED, "%s must be a string", name);
    *ret_text = json_string_value(value);
    return 0;
}

/* A whole number, also when it is written as 10.0: JSON makes no difference. */
static int read_limit(const json_t *value, int64_t *ret_limit, struct err *err)
{
    double number = json_number_value(value); /* 0 when it is none */

    if (!(number >= 1 && number <= REPLAY_MAX) || number != (double)(int64_t)number)
        return err_set(err, ERR_RANGE, "limit must be a number of 1 to %d", REPLAY_MAX);
    *ret_limit = (int64_t)number;
    return 0;
}

/* One member of the body. A name that is not known is refused: a filter with a slip of the pen
 * would choose more than was meant. */
static int read_member(const char *name, const json_t *value, struct filter *filter,
                       struct replay *replay, struct err *err)
{
    const char *text = NULL;
    int r;

    if (strcmp(name, "model") == 0)
        return read_text(value, name, &filter->model, err);
    if (strcmp(name, "since") == 0)
        return read_text(value, name, &filter->since, err);
    if (strcmp(name, "status") == 0) {
        r = read_text(value, name, &text, err);
        return r < 0 ? r : read_state(text, VIEW_DELIVERY_FAILED, &filter->state, err);
    }
    if (strcmp(name, "endpoint") == 0) {
        r = read_text(value, name, &text, err);
        return r < 0 ? r : endpoint_url_read(text, filter->endpoint, sizeof(filter->endpoint), err);
    }
    if (strcmp(name, "dry_run") == 0 && json_is_boolean(value)) {
        replay->dry_run = json_is_true(value);
        return 0;
    }
    if (strcmp(name, "limit") == 0)
        return read_limit(value, &replay->limit, err);
    if (strcmp(name, "dry_run") == 0)
        return err_set(err, ERR_MALFORMED, "dry_run must be true or false");
    return err_set(err, ERR_MALFORMED,
                   "'%.40s' is no filter; there are status, model, endpoint, since, limit, dry_run",
                   name);
}

static void replay_send(struct replay **replay_p, const struct filter *filter)
{
    struct replay *replay = *replay_p;
    struct call *call = replay->call;
    struct pg_batch *batch = pg_batch_new();
    bool failed = filter->state == VIEW_DELIVERY_FAILED;
    struct err err;

    if (replay->dry_run)
        pg_add(batch, failed ? &deliveries_count_failed : &deliveries_count);
    else
        pg_add(batch, failed ? &deliveries_send_failed : &deliveries_send);
    bind_filter(batch, call, filter);
    pg_bind_i64(batch, replay->limit);
    pg_bind_i16(batch, (int64_t)filter->state);
    if (!replay->dry_run)
        pg_bind_c(batch, call->key_prefix);
    if (pg_pool_send(call->gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_replayed, replay,
                     &err) < 0)
        call_fail(&replay->call, &err);
    else
        *replay_p = NULL;
    pg_batch_free(&batch);
}

static void replay_many(struct call *call)
{
    OWNED(mem_free) struct replay *replay = xcalloc(1, sizeof(*replay));
    struct filter filter = {.state = VIEW_DELIVERY_FAILED};
    json_t *body = NULL, *value;
    const char *name;
    struct err err;
    int r = call_read_json(call, &body, &err);

    *replay = (struct replay){.call = call, .limit = REPLAY_DEFAULT};
    json_object_foreach(body, name, value)
    {
        if (r == 0)
            r = read_member(name, value, &filter, replay, &err);
    }
    if (r == 0)
        r = filter_check(&filter, &err);
    if (r < 0)
        call_fail(&call, &err);
    else
        replay_send(&replay, &filter); /* what it binds is copied */
    json_decref(body);
}

void deliveries_replay_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, replay_many);
}
